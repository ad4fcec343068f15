import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_arrays import channels_first, golden, golden_model, images, uniform

from flair_jax.errors import UserError
from flair_jax.models import layers
from flair_jax.models.functional import merge_model, split_model
from flair_jax.models.layers import BatchNorm
from flair_jax.models.ops import for_platform, plain
from flair_jax.models.unet import UNet


def infer(model, x, metadata=None, ops=plain):
    graphdef, params, batch_stats = split_model(model)
    return jax.jit(lambda p, s, x, m: ops.leave(merge_model(graphdef, p, s, ops)(x, m)))(
        params, batch_stats, x, metadata
    )


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize(
    ("name", "shape", "classes"), [("a", (2, 5, 96, 64), 13), ("b", (1, 3, 64, 64), 19)]
)
def test_inference_logits_are_the_references(name, shape, classes, platform):
    """In the form of every platform, all of them computed here on the CPU."""
    expected = golden("unet_eval")[f"logits_{shape[1]}ch_{classes}cls"]
    model = golden_model(shape[1], classes)
    logits = channels_first(infer(model, images(name, shape), ops=for_platform(platform)))
    assert logits.dtype == np.float32
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()


def test_metadata_fusion_is_the_references():
    expected = golden("fusion_eval")
    metadata = jnp.asarray(uniform("mtd", (1, 45)))
    logits = infer(golden_model(metadata_features=45), images("d", (1, 5, 512, 512)), metadata)
    some = channels_first(logits)[:, :, ::8, ::8]
    largest = np.abs(expected["logits_every_8th"]).max()
    assert np.abs(some - expected["logits_every_8th"]).max() <= 1e-4 * largest
    counts = np.bincount(np.asarray(logits).argmax(-1).ravel(), minlength=13)
    assert np.abs(counts - expected["argmax_hist"]).sum() <= 10  # of 262,144 pixels


def test_parameter_count():
    _, params, batch_stats = split_model(UNet(5, 13, rngs=nnx.Rngs(0)))
    assert sum(p.size for p in params.values()) == 24_444_381
    assert (len(params), len(batch_stats)) == (140, 92)
    _, with_metadata, _ = split_model(UNet(5, 13, metadata_features=45, rngs=nnx.Rngs(0)))
    mlp = 45 * 64 + 64 + 64 * 32 + 32 + 32 * 16 + 16
    assert sum(p.size for p in with_metadata.values()) == 24_444_381 + mlp


def test_initial_weights_follow_the_references_distributions():
    _, params, batch_stats = split_model(UNet(5, 13, metadata_features=45, rngs=nnx.Rngs(1)))
    for name, value in params.items():
        value = np.asarray(value)
        if name.endswith(".kernel") and name.startswith("encoder"):
            height, width, _, out = value.shape
            assert value.std() == pytest.approx((2 / (height * width * out)) ** 0.5, rel=0.05), name
        elif name.endswith(".kernel") and name.startswith("decoder"):
            bound = (6 / np.prod(value.shape[:3])) ** 0.5
            assert 0.99 * bound < np.abs(value).max() <= bound, name
        elif name.endswith(".scale"):
            assert (value == 1).all(), name
        elif name.startswith("enc.") and name.endswith(".kernel"):
            bound = value.shape[0] ** -0.5
            assert 0.9 * bound < np.abs(value).max() <= bound, name
        elif name.endswith(".bias") and not name.startswith("enc."):
            assert (value == 0).all(), name
    head = np.asarray(params["segmentation_head.0.kernel"])
    bound = (6 / (9 * (16 + 13))) ** 0.5
    assert 0.99 * bound < np.abs(head).max() <= bound
    assert all((np.asarray(v) == float(k.endswith(".var"))).all() for k, v in batch_stats.items())


def test_running_statistics_are_pytorchs():
    layer = BatchNorm(1)
    x = jnp.asarray([1.0, 2.0, 3.0, 6.0]).reshape(1, 2, 2, 1)
    y = layer(x, train=True)
    assert float(layer.mean[0]) == pytest.approx(0.1 * 3)
    assert float(layer.var[0]) == pytest.approx(0.9 + 0.1 * 14 / 3)  # unbiased: 14 / (4 - 1)
    assert np.asarray(y).ravel() == pytest.approx((np.array([1, 2, 3, 6]) - 3) / np.sqrt(3.50001))


def test_channel_fusion_works_at_any_size_and_turns_with_the_image():
    model = UNet(5, 13, metadata_features=40, fusion="channels", rngs=nnx.Rngs(0))
    x, code = images("a", (2, 5, 96, 64)), jnp.asarray(uniform("mtd", (2, 40)))
    logits = infer(model, x, code)
    assert np.abs(np.asarray(infer(model, x, 0 * code) - logits)).max() > 1e-3
    zeros, numbers = jnp.zeros((1, 3, 4, 512)), jnp.arange(16.0)[None]
    added = np.asarray(model.fuse(zeros, numbers))
    assert (added == added[:, :1, :1]).all()  # alike for all pixels, so flips change nothing
    assert (np.abs(added[0, 0, 0]) > 1e-6).all()  # every channel is fed


def test_row_fusion_adds_a_number_a_row():
    model = nnx.eval_shape(lambda: UNet(5, 13, metadata_features=45, rngs=nnx.Rngs(0)))
    added = np.asarray(model.fuse(jnp.zeros((1, 16, 16, 512)), jnp.arange(16.0)[None]))
    np.testing.assert_array_equal(
        added[0], np.broadcast_to(np.arange(16)[:, None, None], (16, 16, 512))
    )


@pytest.mark.parametrize(
    ("shape", "metadata", "expected"),
    [
        ((1, 64, 80, 5), None, r"multiples of 32, not 64 x 80"),
        ((1, 64, 64, 4), None, r"takes 5 bands, the image has 4"),
        ((1, 64, 64, 5), (1, 45), r"takes no metadata, and some was given"),
    ],
)
def test_wrong_input_is_refused(shape, metadata, expected):
    model = nnx.eval_shape(lambda: UNet(5, 13, rngs=nnx.Rngs(0)))
    given = None if metadata is None else jnp.zeros(metadata)
    with pytest.raises(UserError, match=expected):
        model(jnp.zeros(shape), given)


def test_row_fusion_is_for_512_pixels_only():
    model = nnx.eval_shape(lambda: UNet(5, 13, metadata_features=45, rngs=nnx.Rngs(0)))
    with pytest.raises(UserError, match=r"512 x 512 pixels .* not 256 x 256: set config"):
        model(jnp.zeros((1, 256, 256, 5)), jnp.zeros((1, 45)))
    with pytest.raises(UserError, match="takes metadata, and none was given"):
        model(jnp.zeros((1, 512, 512, 5)))


def test_statistics_of_each_device():
    """Two groups are two batches of half the size; the running statistics are their mean."""
    x = jnp.asarray(uniform("a", (4, 6, 6, 3))) * jnp.array([1.0, 1, 3, 3])[:, None, None, None]
    together, *apart = (BatchNorm(3) for _ in range(3))
    together.groups = 2
    y = together(x, train=True)
    halves = [norm(part, train=True) for norm, part in zip(apart, (x[:2], x[2:]), strict=True)]
    np.testing.assert_allclose(y, jnp.concatenate(halves), atol=1e-6)
    for name in ("mean", "var"):
        mean = sum(np.asarray(getattr(norm, name)[...]) for norm in apart) / 2
        np.testing.assert_allclose(getattr(together, name)[...], mean, rtol=1e-6)


@pytest.mark.parametrize("shape", [(7, 7, 5, 64), (3, 3, 16, 8), (1, 1, 64, 128)])
def test_kernels_are_what_flax_would_draw(shape):
    key = jax.random.key(3)
    for initializer, arguments in (
        (layers.kaiming_normal_fan_out, (2.0, "fan_out", "normal")),
        (layers.kaiming_uniform_fan_in, (2.0, "fan_in", "uniform")),
    ):
        expected = nnx.initializers.variance_scaling(*arguments)(key, shape, jnp.float32)
        np.testing.assert_array_equal(initializer(key, shape, jnp.float32), expected)
