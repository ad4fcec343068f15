"""A folder for the Hugging Face hub: loaded back, its card and its STAC item."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import rasterio
from flax import nnx

import flair_jax
from flair_jax import config as configuration
from flair_jax.cli.commands import main
from flair_jax.errors import UserError
from flair_jax.inference import loading
from flair_jax.interop import hub_folder, model_card, stac_item
from flair_jax.interop.export import export
from flair_jax.models.functional import split_model
from flair_jax.models.spec import ModelSpec
from flair_jax.models.unet import UNet
from flair_jax.runtime import checksums

CASES = {
    "5 bands": {},
    "rgb, custom": {"bands": ("red", "green", "blue"), "normalization": "custom"},
    "metadata by rows": {"metadata.use": True},
    "metadata by channels": {"metadata.use": True, "metadata.fusion": "channels"},
}
METRICS = {
    "definitions": {"challenge": "of the challenge", "main": "of later"},
    "challenge": {"miou": 0.61234567, "iou": {"building": 0.7, "other": 0.0}},
    "main": {"miou": 0.65, "accuracy": 0.8, "iou": {"building": 0.75, "other": None}},
    "intervals": {
        "level": 0.95, "resamples": 1000, "zones": 12, "challenge_miou": [0.58, 0.64],
        "challenge_iou": {"building": [0.6, 0.8], "other": None},
    },
    "num_patches": 48,
    "split": "test",
}  # fmt: skip


def spec_of(case, **changes):
    config = configuration.default()
    config.update_from_flattened_dict(CASES[case])
    return dataclasses.replace(ModelSpec.from_config(config, (64, 64)), pixel_size=0.2, **changes)


def arrays_of(spec):
    """Weights and statistics other than 0 and 1, which would hide faults."""
    model = UNet(
        len(spec.bands), len(spec.nomenclature), rngs=nnx.Rngs(0),
        metadata_features=45 if spec.takes_metadata else 0,
        **({"fusion": spec.metadata_fusion} if spec.takes_metadata else {}),
    )  # fmt: skip
    rng = np.random.default_rng(1)
    _, params, batch_stats = split_model(model)
    return params, {
        name: rng.uniform(0.5, 1.5, x.shape).astype(np.float32) for name, x in batch_stats.items()
    }


@pytest.fixture(scope="module", params=CASES)
def run(request, tmp_path_factory):
    """A run's workdir with a checkpoint of each case."""
    workdir = tmp_path_factory.mktemp("run")
    spec = spec_of(request.param)
    loading.save_model(workdir / "checkpoints", spec, *arrays_of(spec))
    return workdir


def test_loaded_back_it_is_the_same_model(run, tmp_path):
    folder = export(str(run), str(tmp_path / "flair-unet"), "hub")
    before, after = flair_jax.load_model(run), flair_jax.load_model(folder)
    assert after.spec == before.spec
    for name in before.params.keys() | before.batch_stats.keys():
        ours = {**before.params, **before.batch_stats}[name]
        np.testing.assert_array_equal(ours, {**after.params, **after.batch_stats}[name])
    takes = before.spec.takes_metadata
    if len(before.spec.bands) == 3:
        image = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
        np.testing.assert_array_equal(before(image), after(image))
    names = {p.name for p in folder.iterdir()}
    assert ("config.json" in names) != takes
    assert names - {"config.json"} == {
        "README.md", "model.json", "model.safetensors", "stac_item.json",
    }  # fmt: skip


@pytest.fixture(scope="module")
def model():
    spec = spec_of("rgb, custom")
    return spec, *arrays_of(spec)


def write(path, model, **options):
    hub_folder.write_hub_folder(path, path.name, *model, **{"step": 7, "ema": False} | options)
    return path


def test_the_step_is_kept_and_damage_is_found(model, tmp_path):
    folder = write(tmp_path / "a", model, step=7)
    assert flair_jax.load_model(folder).step == 7
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1000] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors is damaged: its arrays are not"):
        flair_jax.load_model(folder)


def test_other_models_of_a_folder_are_not_asked_for(model, tmp_path):
    folder = write(tmp_path / "a", model)
    for asked in ({"step": 3}, {"ema": True}):
        with pytest.raises(UserError, match="is a published model and no run"):
            flair_jax.load_model(folder, **asked)
    assert not loading.watches_ema(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no step has been saved"):
        flair_jax.load_model(folder)


def test_nothing_is_overwritten_and_nothing_half_written_is_left(model, tmp_path, monkeypatch):
    loading.save_model(tmp_path / "run" / "checkpoints", *model)
    existing = tmp_path / "existing"
    existing.mkdir()
    with pytest.raises(UserError, match="existing exists: give another --output"):
        export(str(tmp_path / "run"), str(existing), "hub")
    with pytest.raises(UserError, match="expects no suffix, as of a folder"):
        export(str(tmp_path / "run"), str(tmp_path / "a.safetensors"), "hub")

    def fail(*_, **__):
        raise OSError("no space")

    monkeypatch.setattr(stac_item, "item", fail)
    with pytest.raises(OSError, match="no space"):
        export(str(tmp_path / "run"), str(tmp_path / "out" / "new"), "hub")
    assert not list((tmp_path / "out").iterdir())


def test_the_licence_is_as_given_or_none(model, tmp_path, capsys):
    loading.save_model(tmp_path / "run" / "checkpoints", *model)
    command = ["export", f"--checkpoint={tmp_path}/run", f"--output={tmp_path}/a"]
    assert main([*command, "--format=hub", "--license=CC BY"]) == 1
    assert "--license=CC BY: expected an SPDX identifier" in capsys.readouterr().err
    assert main([*command, "--format=stablehlo", "--license=MIT"]) == 1
    assert "--license is of --format=hub" in capsys.readouterr().err
    assert main([*command, "--format=hub", "--license=CC-BY-4.0"]) == 0
    text = (tmp_path / "a" / "README.md").read_text()
    assert '\nlicense: "cc-by-4.0"\n' in text
    assert "## Licence\n\nCC-BY-4.0" in text
    item = json.loads((tmp_path / "a" / "stac_item.json").read_text())
    assert item["properties"]["license"] == "CC-BY-4.0"
    spec = model[0]
    without = model_card.text("a", spec, {"step": 0, "weights": "raw"}, 1)
    assert "\nlicense" not in without
    assert "None was stated" in without
    assert "license" not in stac_item.item("a", spec, 1)["properties"]


def test_scores_are_those_of_the_very_weights(model, tmp_path, capsys):
    spec, params, batch_stats = model
    run = tmp_path / "run"
    loading.save_model(run / "checkpoints", spec, params, batch_stats)
    crc = checksums.of_arrays({**params, **batch_stats})
    path = run / "evaluation" / "test" / "metrics.json"
    assert hub_folder.known_scores(str(run), params, batch_stats, False) is None
    path.parent.mkdir(parents=True)
    for content, known in (
        ({"provenance": {"checkpoint": {"arrays_crc32": crc}}}, True),
        ({"provenance": {"checkpoint": {"arrays_crc32": crc + 1}}}, False),
        ({}, False),
    ):
        path.write_text(json.dumps(METRICS | content))
        for checkpoint in (run, run / "checkpoints", run / "checkpoints" / "0"):
            scores = hub_folder.known_scores(str(checkpoint), params, batch_stats, False)
            assert (scores is not None) == known
            assert ("the model card has no scores" in capsys.readouterr().out) != known
    assert hub_folder.known_scores(str(run), params, batch_stats, True) is None


def front_matter(text):
    yaml = pytest.importorskip("yaml")
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def test_the_card_has_bands_classes_normalisation_scores(model):
    spec = model[0]
    text = model_card.text("a", spec, {"step": 7, "weights": "ema"}, 24_438_109, metrics=METRICS)
    values, body = front_matter(text)
    assert values["library_name"] == "segmentation-models-pytorch"
    assert values["pipeline_tag"] == "image-segmentation"
    (entry,) = values["model-index"]
    (result,) = entry["results"]
    assert result["dataset"] == {"type": "flair-1", "name": "FLAIR #1", "split": "test"}
    assert [m["value"] for m in result["metrics"]] == [0.6123, 0.65]
    for line in (
        "| 3 | blue | 101.82 | 44 |",
        "- Normalisation: (digital number - mean) / standard deviation, of each band.",
        "- Pixel size: 0.2 m; images of another have to be resampled.",
        "| 12 | other | `#000000` | 13, 14, 15, 16, 17, 18, 19 | 0 |",
        "| building | 70.00 | 60.00 to 80.00 | 75.00 |",
        "| other | 0.00 | – | – |",
        "| **mIoU** | **61.23** | 58.00 to 64.00 | **65.00** |",
    ):
        assert f"\n{line}\n" in body
    assert "The weights (their exponential moving average) after step 7 of its training" in body
    assert "ynthetic" not in body


def test_the_card_of_a_synthetic_model_warns(model):
    spec = dataclasses.replace(model[0], synthetic=True)
    record = {"step": 7, "weights": "raw"}
    values, body = front_matter(model_card.text("a", spec, record, 1, metrics=METRICS))
    assert "It is of no use on real images" in body
    (result,) = values["model-index"][0]["results"]
    assert result["dataset"]["name"] == "FLAIR #1 (synthetic stand-in)"
    without, body = front_matter(model_card.text("a", spec, record, 1))
    assert "## Scores\n\nNone are known." in body
    assert not {"metrics", "model-index"} & without.keys()


def test_the_hub_reads_the_card(model):
    hub = pytest.importorskip("huggingface_hub")
    text = model_card.text(
        "a", model[0], {"step": 7, "weights": "raw"}, 1, license="MIT", metrics=METRICS
    )
    data = hub.ModelCard(text).data
    assert (data.license, data.model_name) == ("mit", "a")
    found = [(r.metric_type, r.metric_value, r.dataset_split) for r in data.eval_results]
    assert found == [("mean_iou", 0.6123, "test"), ("mean_iou", 0.65, "test")]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["flair-unet", "1 été "])
def test_the_item_is_valid(case, name):
    """By the schemas that pystac brings; that of the extension would have to be fetched."""
    pystac = pytest.importorskip("pystac")
    pytest.importorskip("jsonschema")
    validation = pytest.importorskip("pystac.validation")
    from pystac.extensions.mlm import MLMExtension

    spec = spec_of(case)
    count = sum(x.size for x in jax.tree.leaves(split_model(spec.abstract_model())[1]))
    values = json.loads(json.dumps(stac_item.item(name, spec, count)))
    item = pystac.Item.from_dict(values)
    validation.validate_dict(values | {"stac_extensions": []}, extensions=[])
    assert item.properties["gsd"] == 0.2
    mlm = MLMExtension.ext(item)
    image = mlm.input[0]
    assert image.bands == list(spec.bands)
    assert image.input.shape[1] == len(spec.bands)
    scaling = values["properties"]["mlm:input"][0]["value_scaling"]
    if case == "rgb, custom":
        assert scaling[2] == {"type": "z-score", "mean": 101.82, "stddev": 44}
    else:
        assert scaling == [{"type": "scale", "value": 255}]
    assert len(mlm.input) == 1 + spec.takes_metadata
    (output,) = mlm.output
    assert [c.description for c in output.classes] == spec.nomenclature.names
    assert [c.value for c in output.classes] == list(range(13))
    assert mlm.total_parameters == count


def test_detection_takes_the_folder(model, tmp_path):
    folder = write(tmp_path / "unet", model)
    image = np.random.default_rng(0).integers(1, 256, (3, 64, 64), np.uint8)
    profile = {"driver": "GTiff", "width": 64, "height": 64, "count": 3, "dtype": "uint8"}
    transform = rasterio.Affine(0.2, 0, 900_000, 0, -0.2, 6_500_000)
    with rasterio.open(
        tmp_path / "a.tif", "w", crs="EPSG:2154", transform=transform, **profile
    ) as raster:
        raster.write(image)
    flair_jax.detect_raster(
        folder, tmp_path / "a.tif", tmp_path / "cover.tif", engine="jax", bands=(1, 2, 3)
    )
    with rasterio.open(tmp_path / "cover.tif") as raster:
        found, tags = raster.read(1), raster.tags()
    expected = flair_jax.load_model(folder)(image.transpose(1, 2, 0)[None])
    np.testing.assert_array_equal(found, np.asarray(expected).argmax(-1)[0] + 1)
    assert (tags["MODEL_CHECKPOINT"], tags["MODEL_STEP"]) == (str(folder), "7")
