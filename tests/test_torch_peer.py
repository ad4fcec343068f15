"""Against segmentation-models-pytorch itself; skipped where it is not installed."""

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch")
smp = pytest.importorskip("segmentation_models_pytorch")

import flair_jax
from flair_jax import classes
from flair_jax.errors import UserError
from flair_jax.evaluate import forward
from flair_jax.export_torch import export_weights
from flair_jax.import_torch import import_weights
from flair_jax.model_card import BANDS
from flair_jax.pretrained import read
from flair_jax.train_state import split_model


@pytest.fixture(scope="module", params=[(3, 13), (4, 19), (5, 13)])
def peer(request):
    """A random peer model whose running statistics are not the first ones either."""
    channels, outputs = request.param
    torch.manual_seed(channels)
    model = smp.create_model(
        "unet", "resnet34", encoder_weights=None, in_channels=channels, classes=outputs
    )
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.uniform_(-0.1, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.8, 1.2)
    return model.eval(), channels, outputs


def logits_of(peer, image):
    """(N, H, W, bands) uint8 -> the peer's logits, channels last."""
    x = torch.from_numpy(image.astype(np.float32) / 255).permute(0, 3, 1, 2)
    with torch.no_grad():
        return peer(x).permute(0, 2, 3, 1).numpy()


def ours(run, image):
    model = flair_jax.load_model(run)
    graphdef = split_model(model.card.abstract_model())[0]
    return np.asarray(forward(graphdef, model.card, *model._arrays, {"image": image}))


def test_import_gives_the_same_logits_from_every_format_and_export_loads_strictly(peer, tmp_path):
    model, channels, outputs = peer
    state_dict = model.state_dict()
    from safetensors.torch import save_file

    save_file(state_dict, tmp_path / "w.safetensors")
    torch.save(state_dict, tmp_path / "w.pth")
    wrapped = {f"model.seg_model.{key}": value for key, value in state_dict.items()}
    torch.save({"state_dict": wrapped, "epoch": 3}, tmp_path / "w.ckpt")

    image = np.random.default_rng(0).integers(0, 256, (2, 96, 64, channels), dtype=np.uint8)
    expected = logits_of(model, image)
    choices = {
        "bands": BANDS[:channels],
        "nomenclature": "baseline" if outputs == 13 else "full",
        "normalization": "scaling",
    }
    for name in ("w.safetensors", "w.pth", "w.ckpt"):
        run = tmp_path / f"run-{name}"
        card = import_weights(str(tmp_path / name), str(run), **choices)
        assert len(card.nomenclature) == outputs
        difference = np.abs(ours(run, image) - expected).max()
        assert difference <= 1e-5 * np.abs(expected).max(), name

    export_weights(str(run), str(tmp_path / "out.pth"))
    again = smp.create_model(
        "unet", "resnet34", encoder_weights=None, in_channels=channels, classes=outputs
    )
    again.load_state_dict(torch.load(tmp_path / "out.pth", weights_only=True), strict=True)
    np.testing.assert_array_equal(logits_of(again.eval(), image), expected)


def test_pickled_code_is_not_executed(tmp_path):
    torch.save({"state_dict": {}, "made_by": dataclasses.Field}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="weights_only=True"):
        read(str(tmp_path / "w.pth"))


def test_flair_inc_file_as_published(tmp_path):
    model = smp.create_model("unet", "resnet34", encoder_weights=None, in_channels=5, classes=19)
    state_dict = {f"model.seg_model.{k}": v for k, v in model.state_dict().items()}
    state_dict["criterion.weight"] = torch.tensor([1.0] * 12 + [0.0] * 7)
    path = tmp_path / "FLAIR-INC_rgbie_12cl_resnet34-unet_weights.pth"
    torch.save(state_dict, path)
    card = import_weights(str(path), str(tmp_path / "run"))
    assert card.bands == BANDS
    assert card.normalization == "custom"
    assert card.nomenclature.names == classes.FULL.names
    assert card.nomenclature.weights.tolist() == [1] * 12 + [0] * 7
