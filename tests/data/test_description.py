import json
import shutil

import own_images
import pytest

from flair_jax.data.bands import BANDS
from flair_jax.data.dataset import dataset_directory, open_split
from flair_jax.data.description import FLAIR_DATA, DataDescription
from flair_jax.data.input_pipeline import batches, eval_order
from flair_jax.data.nomenclature import FULL
from flair_jax.errors import UserError


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    return own_images.built(tmp_path_factory.mktemp("own"))


def test_flairs(data_dir):
    data = open_split(dataset_directory(str(data_dir), "published"), "val").data
    assert (data.is_flairs, data.bands, data.grouped_by) == (True, BANDS, "domain")
    assert data.nomenclature.classes == FULL.classes
    assert data.synthetic  # as its metadata file states
    assert not FLAIR_DATA.synthetic
    assert DataDescription.from_metadata({}) == FLAIR_DATA  # of version 1.0.0


def test_of_own_images(own):
    data = open_split(own, "train").data
    assert (data.name, data.bands) == ("mine", ("red", "green", "blue"))
    assert (data.is_flairs, data.synthetic, data.grouped_by) == (False, False, "group")
    assert data.nomenclature.names_of_values == ((1, "water"), (4, "land"))
    assert data.nomenclature.weights.tolist() == [1, 0.5]
    assert data.nomenclature.rgb.tolist() == [[0, 0, 255], [0, 255, 0]]
    # What is padded is of no class.
    assert data.nomenclature.labels[255] == 255


def test_bands_are_read_by_name(own):
    split = open_split(own, "train")
    order = eval_order(2, 2)
    (all_bands,), (chosen,) = (
        list(batches(split, order, bands=bands)) for bands in (None, ("blue", "red"))
    )
    assert (chosen["image"] == all_bands["image"][..., [2, 0]]).all()
    with pytest.raises(UserError, match="nir are not a choice from red, green, blue: 'nir' is unk"):
        batches(split, order, bands=("red", "nir"))


def test_several_values_of_one_class():
    entries = [(3, "built"), (1, "road"), (0, "built")]
    classes = [{"value": v, "name": name, "colour": f"#00000{v}"} for v, name in entries]
    data = DataDescription.from_metadata({"name": "a", "bands": ["red"], "classes": classes})
    built, road = data.nomenclature.classes
    assert (built.name, built.values, built.colour, built.weight) == ("built", (3, 0), "#000003", 1)
    assert road.values == (1,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bands": ["red"]}, "it names 1 bands, and the patches have 3"),
        ({"classes": [{"value": 1}]}, "it does not describe bands and classes: KeyError"),
        ({"classes": 5}, "it does not describe bands and classes: TypeError"),
    ],
)
def test_damaged_metadata(own, tmp_path, change, message):
    copy = tmp_path / "1.0.0"
    shutil.copytree(own, copy)
    path = copy / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=rf"metadata.json is damaged: {message}"):
        open_split(copy, "train")


def test_names_of_data_sets(own, tmp_path):
    root = own.parents[2]
    assert dataset_directory(str(root), "mine") == own
    for name in ("", "other"):
        with pytest.raises(UserError, match=f"no data set '{name}' in .* one that is there: mine"):
            dataset_directory(str(root), name)
    with pytest.raises(UserError, match="there is no data set of your own images in"):
        dataset_directory(str(tmp_path), "")
    for builder in ("flair", "own_data"):
        (tmp_path / builder / "mine/1.0.0").mkdir(parents=True)
    with pytest.raises(UserError, match="'mine' is the name of two data sets"):
        dataset_directory(str(tmp_path), "mine")
