"""Against segmentation-models-pytorch itself; skipped where it is not installed."""

import argparse
import copy
import dataclasses
import os

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
smp = pytest.importorskip("segmentation_models_pytorch")

from safetensors.torch import load_file, save_file

from flair_jax import config as configuration
from flair_jax.data import nomenclature
from flair_jax.data.bands import BANDS
from flair_jax.data.metadata import encode_reference
from flair_jax.errors import UserError
from flair_jax.inference import loading
from flair_jax.inference.adaptation import BATCH, adapted_statistics
from flair_jax.interop import hub_folder
from flair_jax.interop.export import export
from flair_jax.interop.import_torch import import_weights
from flair_jax.models.functional import forward, split_model
from flair_jax.models.spec import ModelSpec
from flair_jax.runtime.sharding import make_mesh, replicate, to_global
from flair_jax.training.checkpoints import Checkpoints
from flair_jax.training.optimizer import make_optimizer
from flair_jax.training.schedules import Best, Progress
from flair_jax.training.state import create_train_state
from flair_jax.training.step import make_train_step
from flair_jax.weights.architectures import architecture
from flair_jax.weights.torch_files import read
from flair_jax.weights.torch_weights import load_state_dict, network_tensors

# Of the largest logit, or of 1 where all are smaller: after two steps of training the largest is
# 0.4, and the peer's own float32 is 1.6e-5 of it away from its float64 (this project's 1.2e-5).
TOLERANCE = 1e-5
PATCHES = [
    ((924009.6, 6339451.2, 1661.94), "2021-05-28", "08h06", "UCE-M3-f120-s07"),
    ((380265.6, 6571796.8, 4.29), "2018-04-19", "09h23", "CAMERA#017"),
]


class MetadataMLP(torch.nn.Module):
    """45 numbers -> 16: linear, dropout, ReLU, three times; the linear layers are 0, 3 and 6."""

    def __init__(self):
        super().__init__()
        layers = []
        for inputs, outputs in ((45, 64), (64, 32), (32, 16)):
            layers += [torch.nn.Linear(inputs, outputs), torch.nn.Dropout(0.4), torch.nn.ReLU()]
        self.enc_mlp = torch.nn.Sequential(*layers)


class PeerWithMetadata(torch.nn.Module):
    """The U-Net with the MLP's 16 numbers added along the 16 rows of its bottleneck."""

    def __init__(self, seg_model):
        super().__init__()
        self.seg_model = seg_model
        self.enc = MetadataMLP()

    def forward(self, x, metadata):
        features = self.seg_model.encoder(x)
        code = self.enc.enc_mlp(metadata)
        features[-1] = features[-1] + code[:, None, :, None]  # (N, channels, rows, columns)
        return self.seg_model.segmentation_head(self.seg_model.decoder(features))


@dataclasses.dataclass(frozen=True)
class Case:
    """Form of a model; metadata is for 512 x 512 pixels."""

    bands: int
    outputs: int
    metadata: bool

    def model(self, seed=0):
        """A peer with random weights, whose running statistics are not the first ones either."""
        torch.manual_seed(seed)
        model = smp.create_model(
            "unet",
            "resnet34",
            encoder_weights=None,
            in_channels=self.bands,
            classes=self.outputs,
        )
        if self.metadata:
            model = PeerWithMetadata(model)
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if name.endswith("running_mean"):
                    tensor.uniform_(-0.1, 0.1)
                elif name.endswith("running_var"):
                    tensor.uniform_(0.8, 1.2)
                elif name.endswith("enc_mlp.6.bias"):
                    tensor.uniform_(0, 1)  # a code that the logits show
        return model.eval()

    def batch(self, seed=0):
        """Random images and masks, and the metadata of real patches."""
        rng = np.random.default_rng(seed)
        n, height, width = (1, 512, 512) if self.metadata else (2, 96, 64)
        batch = {
            "image": rng.integers(0, 256, (n, height, width, self.bands), dtype=np.uint8),
            "mask": rng.integers(1, 20, (n, height, width), dtype=np.uint8),
            "stop": np.zeros(n, bool),
        }
        if self.metadata:
            batch["metadata"] = np.float32([encode_reference(*PATCHES[seed % 2])])
        return batch

    def logits(self, model, batch):
        """The peer's, (N, H, W, classes), computed in float64.

        Of random weights, the peer itself is in float32 up to 8e-6 of the largest logit away from
        these, and this project up to 4e-6: the two would leave 1e-5 no room for chance.
        """
        x = torch.from_numpy(batch["image"].astype(np.float32) / 255).permute(0, 3, 1, 2)
        inputs = [x, torch.from_numpy(batch["metadata"])] if self.metadata else [x]
        with torch.no_grad():
            logits = copy.deepcopy(model).double()(*(tensor.double() for tensor in inputs))
        return logits.permute(0, 2, 3, 1).numpy()

    def import_options(self):
        return {
            "bands": BANDS[: self.bands],
            "nomenclature": "baseline" if self.outputs == 13 else "full",
            "normalization": "scaling",
        }


# Any two of bands, classes and metadata meet in every combination.
PLAIN = [Case(3, 13, False), Case(4, 19, False), Case(5, 13, False)]
WITH_METADATA = [Case(3, 19, True), Case(4, 13, True), Case(5, 19, True)]
FORMATS = ("pth", "ckpt", "safetensors")


@pytest.fixture(scope="module")
def imported(request, tmp_path_factory):
    """A case, its random peer, and a folder with the peer imported from every format."""
    case = request.param
    folder = tmp_path_factory.mktemp("imported")
    model = case.model()
    torch.save(model.state_dict(), folder / "w.pth")
    torch.save(as_lightning(model.state_dict()), folder / "w.ckpt")
    save_file(model.state_dict(), folder / "w.safetensors")
    for kind in FORMATS:
        import_weights(str(folder / f"w.{kind}"), str(folder / kind), **case.import_options())
    return case, model, folder


our_forward = jax.jit(forward, static_argnums=(0, 1))


def our_logits(run, batch):
    spec, params, batch_stats, _ = loading.load(run, make_mesh())
    graphdef = split_model(spec.abstract_model())[0]
    inputs = {k: batch[k] for k in ("image", "metadata") if k in batch}
    return np.asarray(our_forward(graphdef, spec, params, batch_stats, inputs))


def assert_agree(ours, peers):
    assert ours.shape == peers.shape
    assert np.abs(ours - peers).max() <= TOLERANCE * max(1, np.abs(peers).max())


def as_lightning(state_dict):
    """What a Lightning checkpoint of the reference holds."""
    wrapped = {f"model.{key}": value for key, value in state_dict.items()}
    if not any(key.startswith("seg_model.") for key in state_dict):
        wrapped = {f"model.seg_model.{key}": value for key, value in state_dict.items()}
    return {
        "epoch": 3,
        "global_step": 12,
        "pytorch-lightning_version": "2.0.0",
        "state_dict": wrapped,
        "lr_schedulers": [{"best": torch.tensor(1.0)}],
    }


@pytest.mark.parametrize("imported", PLAIN + WITH_METADATA, indirect=True, ids=str, scope="module")
def test_import_gives_the_same_logits_from_every_format(imported):
    case, model, folder = imported
    batch = case.batch()
    expected = case.logits(model, batch)
    for kind in FORMATS:
        spec = loading.load(folder / kind, make_mesh())[0]
        assert (len(spec.bands), len(spec.nomenclature)) == (case.bands, case.outputs)
        metadata = ("reference", "rows") if case.metadata else ("", "")
        assert (spec.metadata_encoding, spec.metadata_fusion) == metadata
        assert_agree(our_logits(folder / kind, batch), expected)
    if case.metadata:  # the comparison would see a code that is wrong, or in a wrong place
        other = case.logits(model, batch | {"metadata": case.batch(1)["metadata"]})
        assert np.abs(other - expected).max() > 10 * TOLERANCE * np.abs(expected).max()


@pytest.mark.filterwarnings("error:The given NumPy array")  # PyTorch's, of arrays not copied
# A step of 512 x 512 pixels takes seconds, so that one model with metadata has to do.
@pytest.mark.parametrize(
    "imported", PLAIN + WITH_METADATA[-1:], indirect=True, ids=str, scope="module"
)
def test_export_of_a_trained_model_loads_strictly_with_the_same_logits(imported, tmp_path):
    case, first, folder = imported
    train_a_little(case, folder / "pth", tmp_path)
    export(str(tmp_path), str(tmp_path / "out.safetensors"), "torch")
    export(str(tmp_path), str(tmp_path / "out.pth"), "torch")
    batch = case.batch()
    ours = our_logits(tmp_path, batch)
    for tensors in (
        load_file(tmp_path / "out.safetensors"),
        torch.load(tmp_path / "out.pth", weights_only=True),
    ):
        peer = case.model(seed=1)
        peer.load_state_dict(tensors, strict=True)
        assert_agree(ours, case.logits(peer, batch))
    counters = "num_batches_tracked"
    unchanged = {k for k, v in first.state_dict().items() if torch.equal(v, tensors[k])}
    assert all(key.endswith(counters) for key in unchanged), unchanged  # it did learn


def train_a_little(case, source, workdir):
    """Two SGD steps from a checkpoint on, and a checkpoint of them with its spec."""
    mesh = make_mesh()
    spec, params, batch_stats, _ = loading.load(source, mesh)
    graphdef = split_model(spec.abstract_model())[0]
    config = configuration.default()
    config.learning_rate = 1e-3
    optimizer = make_optimizer(config, num_steps=1)
    step = make_train_step(graphdef, spec, config, optimizer, mesh)
    state = replicate(create_train_state(params, batch_stats, optimizer), mesh)
    for seed in range(2):
        state, _ = step(state, to_global(case.batch(seed), mesh))
    checkpoints = Checkpoints(workdir / "checkpoints")
    spec.save(workdir / "checkpoints")
    checkpoints.save(state, Progress(epoch=1, best=Best(2, 1, 1.0)))
    checkpoints.close()


def test_adapted_statistics_are_pytorchs_of_one_pass_in_training_mode():
    """torch.nn.BatchNorm2d with `momentum=None`, which averages over the batches."""
    config = configuration.default()
    config.bands = ("red", "green", "blue")
    spec = ModelSpec.from_config(config, (64, 64))

    def arrays():
        model = spec.build_model()
        load_state_dict(model, {k: v.numpy() for k, v in peer.state_dict().items()})
        return split_model(model)[1:]

    peer = Case(bands=3, outputs=13, metadata=False).model()
    params, batch_stats = arrays()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, BATCH, 64, 64, 3), dtype=np.uint8)
    data = [{"image": batch} for batch in images]
    new = adapted_statistics(spec, params, batch_stats, data, make_mesh())
    for module in peer.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    peer.train()
    with torch.no_grad():
        for batch in images:
            peer(torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255)
    _, expected = arrays()
    assert new.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(new[name], value, rtol=1e-3, atol=1e-4)


class Calls:
    """Unpickled by pickle, it makes a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_not_executed(tmp_path, zipped):
    model = smp.create_model("unet", "resnet34", encoder_weights=None, in_channels=3, classes=13)
    content = {
        "hyper_parameters": argparse.Namespace(path=tmp_path, calls=Calls(tmp_path / "called")),
        "model_state_dict": torch.nn.DataParallel(model).state_dict(),
        "optimizer": torch.optim.Adam(model.parameters()).state_dict(),
    }
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    tensors = read(str(tmp_path / "w.pth"))
    expected = model.state_dict()
    assert list(tensors) == [f"module.{key}" for key in expected]
    for key, value in expected.items():
        np.testing.assert_array_equal(tensors[f"module.{key}"], value.numpy())
    torch.save(model, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"is a pickled object of segmentation_\S+Unet, whose code"):
        read(str(tmp_path / "w.pth"))
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize(
    ("decoder", "encoder", "named"),
    [
        ("upernet", "tu-swin_base_patch4_window7_224", ("UPerNet", "Swin-B")),
        ("upernet", "tu-swinv2_tiny_window8_256", ("UPerNet", "Swin V2")),
        ("upernet", "tu-convnextv2_tiny", ("UPerNet", "ConvNeXtV2-Tiny")),
        ("unet", "tu-convnext_small", ("U-Net", "ConvNeXt-Small")),
        ("unet", "mit_b5", ("U-Net", "MiT-B5")),
        ("unet", "resnet50", ("U-Net", "ResNet50")),
        ("unet", "resnext50_32x4d", ("U-Net", "ResNeXt or wide ResNet50")),
        ("unet", "se_resnet50", ("U-Net", "SE-ResNet")),
        ("unet", "tu-resnet34d", ("U-Net", "ResNet with a deep stem")),
        ("unet", "tu-efficientnet_b0", ("U-Net", "EfficientNet")),
        ("unet", "vgg11", ("U-Net with a centre block", "VGG")),
        ("dpt", "tu-vit_tiny_patch16_224", ("DPT", "ViT")),
        ("unetplusplus", "resnet34", ("U-Net++", "ResNet34")),
        ("deeplabv3", "resnet34", ("DeepLabV3", "ResNet34")),
        ("deeplabv3plus", "resnet34", ("DeepLabV3+", "ResNet34")),
        ("fpn", "resnet34", ("FPN", "ResNet34")),
        ("pspnet", "resnet34", ("PSPNet", "ResNet34")),
        ("linknet", "resnet34", ("LinkNet", "ResNet34")),
        ("manet", "resnet34", ("MAnet", "ResNet34")),
        ("pan", "resnet34", ("PAN", "ResNet34")),
        ("segformer", "mit_b0", ("SegFormer", "MiT-B0")),
    ],
)
def test_architectures_of_the_library_are_named(decoder, encoder, named):
    # MiT computes with numbers of its tensors, which have none on the device "meta".
    with torch.device("cpu" if encoder.startswith("mit") else "meta"):
        model = smp.create_model(decoder, encoder, encoder_weights=None, in_channels=3, classes=19)
    tensors = {
        f"model.seg_model.{key}": np.broadcast_to(np.float32(0), value.shape)
        for key, value in model.state_dict().items()
    }
    assert architecture(network_tensors(tensors)) == named


def test_the_unet_of_flair_hubs_code(tmp_path):
    """A Lightning checkpoint in its names, with what one modality does not use."""
    case = Case(4, 19, False)
    model = case.model()
    wrapped = {
        "model.fusion_handler.conv_f.0.weight": torch.ones(64, 64, 1, 1),
        "criterion.AERIAL_LABEL-COSIA.weight": torch.ones(19),
    }
    for key, value in model.state_dict().items():
        if key.startswith("encoder."):
            wrapped[f"model.encoders.AERIAL_RGBI.seg_model.{key.removeprefix('encoder.')}"] = value
        else:
            wrapped[f"model.main_decoders.AERIAL_LABEL-COSIA.seg_model.{key}"] = value
    content = as_lightning({}) | {
        "state_dict": wrapped,
        "hyper_parameters": argparse.Namespace(config={"path": tmp_path}),
    }
    torch.save(content, tmp_path / "last.ckpt")
    spec = import_weights(str(tmp_path / "last.ckpt"), str(tmp_path), normalization="scaling")
    assert spec.nomenclature == nomenclature.COSIA
    assert spec.bands == BANDS[:4]
    batch = case.batch()
    assert_agree(our_logits(tmp_path, batch), case.logits(model, batch))


def test_flair_inc_file_as_published(tmp_path):
    model = smp.create_model("unet", "resnet34", encoder_weights=None, in_channels=5, classes=19)
    state_dict = {f"model.seg_model.{k}": v for k, v in model.state_dict().items()}
    state_dict["criterion.weight"] = torch.tensor([1.0] * 12 + [0.0] * 7)
    path = tmp_path / "FLAIR-INC_rgbie_12cl_resnet34-unet_weights.pth"
    torch.save(state_dict, path)
    spec = import_weights(str(path), str(tmp_path / "run"))
    assert spec.bands == BANDS
    assert spec.normalization == "custom"
    assert spec.nomenclature.names == nomenclature.FULL.names
    assert spec.nomenclature.weights.tolist() == [1] * 12 + [0] * 7


@pytest.mark.parametrize("normalization", ["custom", "scaling"])
def test_the_library_loads_a_folder_for_the_hub(normalization, tmp_path):
    """By the lines of its model card, which are run here as they are but for its address."""
    config = configuration.default()
    config.bands, config.normalization = ("red", "green", "blue"), normalization
    spec = ModelSpec.from_config(config, (64, 64))
    torch.manual_seed(3)
    peer = smp.create_model("unet", "resnet34", encoder_weights=None, in_channels=3, classes=13)
    model = spec.build_model()
    load_state_dict(model, {key: value.numpy() for key, value in peer.state_dict().items()})
    folder = tmp_path / "unet"
    hub_folder.write_hub_folder(folder, "unet", spec, *split_model(model)[1:], step=1, ema=False)

    tensors = load_file(folder / "model.safetensors")
    peer.load_state_dict(tensors, strict=True)
    assert sum(p.numel() for p in peer.parameters()) == 24_438_109

    blocks = (folder / "README.md").read_text().split("```python\n")[1:]
    ours, theirs = (block.split("```")[0] for block in blocks)
    image = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    names = {"images": image}
    exec(ours.replace("hf://ORGANISATION/unet", str(folder)), names)
    peers = {"images": torch.tensor(image.transpose(0, 3, 1, 2))}
    exec(theirs.replace("ORGANISATION/unet", str(folder)), peers)
    found = peers["probabilities"].numpy().transpose(0, 2, 3, 1)
    with torch.no_grad():
        largest = peers["model"](peers["inputs"]).abs().max().item()
    tolerance = TOLERANCE * max(1, largest)
    np.testing.assert_allclose(np.asarray(names["probabilities"]), found, rtol=0, atol=tolerance)


def test_a_folder_of_the_library_itself_does_not_tell_its_bands(tmp_path):
    smp.create_model("unet", "resnet34", encoder_weights=None, classes=7).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"has 3 input bands and 7 classes: .* --nomenclature=NAME"):
        loading.load(tmp_path, make_mesh())
