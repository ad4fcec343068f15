import dataclasses
import json

import pytest

from flair_jax import config as configuration
from flair_jax.data.description import FLAIR_DATA, DataDescription
from flair_jax.data.nomenclature import FULL, LandCover, Nomenclature
from flair_jax.errors import UserError
from flair_jax.models.spec import ModelSpec


@pytest.fixture
def spec():
    config = configuration.default()
    config.metadata.use = True
    return ModelSpec.from_config(config, (512, 512))


def test_round_trip(spec, tmp_path):
    spec.save(tmp_path)
    assert ModelSpec.load(tmp_path) == spec
    assert spec.takes_metadata


def test_model_of_a_card(spec):
    model = spec.abstract_model()
    assert (model.in_channels, model.num_classes, model.metadata_features) == (5, 13, 45)


def test_no_card(tmp_path):
    with pytest.raises(
        UserError, match=r"there is no model.json in .* it is not a folder of checkpoints"
    ):
        ModelSpec.load(tmp_path)


def test_damaged_card(tmp_path):
    (tmp_path / "model.json").write_text('{"bands": ["red"]}')
    with pytest.raises(UserError, match=r"model.json is not a model spec: KeyError\('nomencl"):
        ModelSpec.load(tmp_path)


def test_other_models_are_told_apart(spec):
    spec.check_same_model(spec, "here")
    other = dataclasses.replace(spec, nomenclature=FULL, metadata_encoding="", metadata_fusion="")
    with pytest.raises(UserError) as caught:
        spec.check_same_model(other, "runs/old")
    message = str(caught.value)
    assert "the checkpoint in runs/old is of a different model" in message
    assert "classes: 19 (full) in the checkpoint, 13 (baseline) in the configuration" in message
    assert "metadata encoding" in message


OWN = DataDescription(
    "dubai",
    ("red", "green", "blue", "nir"),
    Nomenclature(
        "dubai", (LandCover("water", "#0000ff", 1.0, (0,)), LandCover("land", "#00ff00", 0.5, (7,)))
    ),
    grouped_by="group",
)


def own_spec(**changes):
    config = configuration.read("own_data").copy_and_resolve_references()
    config.update_from_flattened_dict(changes)
    configuration.validate(config)
    return ModelSpec.from_config(config, (64, 64), 0.0, OWN)


def test_bands_and_classes_of_the_data_set(tmp_path):
    spec = own_spec()
    assert spec.bands == OWN.bands
    assert spec.nomenclature == OWN.nomenclature
    assert (spec.data_name, spec.mask_values) == ("dubai", ((0, "water"), (7, "land")))
    assert (spec.is_flairs, spec.synthetic, spec.refused_values) == (False, False, ())
    spec.save(tmp_path)
    assert ModelSpec.load(tmp_path) == spec
    assert own_spec(bands=("nir", "red")).bands == ("nir", "red")
    water = (("wet", "#0000ff", 1.0, (0,)), ("road", "#000000", 1.0, (7,)))
    custom = own_spec(nomenclature="mine", classes=water)
    assert (custom.nomenclature.names, custom.mask_values) == (["wet", "road"], spec.mask_values)
    some = own_spec(nomenclature="mine", classes=(("a", "#000000", 1.0, (0,)), water[1]))
    assert some.refused_values == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nomenclature": "baseline"}, "are FLAIR's classes, and the data set 'dubai' has its own: "
         "water, land. Train with --config=own_data"),
        ({"bands": ("red", "swir")}, "'swir' is unknown"),
        ({"metadata.use": True}, "which the data set 'dubai' does not have"),
        ({"normalization": "custom"}, "config.normalization_means has 5 numbers, FLAIR's; "),
        ({"nomenclature": "mine", "classes": (("a", "#000000", 1.0, (1,)), ("b", "#000000", 1.0, (
            7,)))}, r"'a': the mask values are \(1,\); those of the data set 'dubai' are 0, 7"),
    ],
)  # fmt: skip
def test_what_the_data_set_does_not_have(changes, message):
    with pytest.raises(UserError, match=message):
        own_spec(**changes)


def test_classes_of_no_data_set():
    config = configuration.read("own_data")
    with pytest.raises(UserError, match="of a data set, and no data set is read here"):
        ModelSpec.from_config(config, (64, 64))
    without = dataclasses.replace(OWN, nomenclature=Nomenclature("x", ()))
    with pytest.raises(UserError, match="are the classes of a data set, and this one has no masks"):
        ModelSpec.from_config(config, (64, 64), data=without)


def test_normalization_of_five_bands_that_are_not_flairs():
    config = configuration.read("own_data").copy_and_resolve_references()
    config.normalization = "custom"
    five = dataclasses.replace(OWN, bands=(*OWN.bands, "slope"))
    with pytest.raises(UserError, match=r"has 5 numbers, FLAIR's; .* doctor --data_dir measures"):
        ModelSpec.from_config(config, (64, 64), data=five)
    config.normalization_means = (1.0, 2.0, 3.0, 4.0, 5.0)
    config.normalization_stds = (5.0, 4.0, 3.0, 2.0, 1.0)
    config.bands = ("slope", "red")
    spec = ModelSpec.from_config(config, (64, 64), data=five)
    assert (spec.means, spec.stds) == ((5, 1), (1, 5))


def test_pixel_sizes_of_unknown_units_are_unknown():
    config = configuration.read("own_data")
    for has_crs, expected in ((True, 0.5), (False, 0.0)):
        data = dataclasses.replace(OWN, has_crs=has_crs)
        assert ModelSpec.from_config(config, (64, 64), 0.5, data).pixel_size == expected


def test_data_of_other_bands_or_classes(spec):
    own = own_spec(bands=("red", "nir"))
    own.check_data(OWN, "here", scored=True)
    with pytest.raises(UserError, match="trained on 'dubai', whose mask values stand for 0 "):
        own.check_data(FLAIR_DATA, "here", scored=True)
    own.check_data(FLAIR_DATA, "here", scored=False)  # it has these bands
    with pytest.raises(UserError, match="blue, nir: it lacks height"):
        spec.check_data(OWN, "here", scored=False)
    spec.check_data(FLAIR_DATA, "here", scored=True)


def test_cards_of_earlier_versions_are_of_flairs_data(spec, tmp_path):
    spec.save(tmp_path)
    path = tmp_path / "model.json"
    added = ("data_name", "mask_values", "synthetic", "pixel_size")
    names = {f.name for f in dataclasses.fields(spec)}.difference(added)
    old = {name: value for name, value in json.loads(path.read_text()).items() if name in names}
    path.write_text(json.dumps(old))
    assert ModelSpec.load(tmp_path) == spec


def test_other_classes_of_the_same_number(spec):
    classes = tuple(dataclasses.replace(c, name=f"my {c.name}") for c in FULL.classes[:13])
    other = dataclasses.replace(spec, nomenclature=Nomenclature("baseline", classes))
    with pytest.raises(UserError, match=r"names of the classes: .*'my building'"):
        spec.check_same_model(other, "here")
