"""In which form the network is computed on each platform: the sums are the same in all of them."""

import dataclasses

import jax

from flair_jax.models.ops.tpu import LANES

NARROWEST = 16  # channels of the last decoder block


@dataclasses.dataclass(frozen=True)
class Form:
    """A way to compute the network.

    Attributes:
        fold: how many neighbouring pixels of a row are worked on as one, see `flair_jax.models.ops.tpu`.
        on_cpu: whether convolution and pooling are those of `on_cpu`.
    """

    fold: int = 1
    on_cpu: bool = False


PLAIN = Form()
# TPU: what its vectors pad, memory traffic pays for. CPU: the caches are small, and operations
# dear. GPU: cuDNN takes narrow maps as they are.
FORMS = {"tpu": Form(fold=LANES // NARROWEST), "cpu": Form(on_cpu=True), "gpu": PLAIN}


def form_for(platform: str | None = None) -> Form:
    """The form for a platform as JAX names it; None: for its default backend."""
    return FORMS.get(platform or jax.default_backend(), PLAIN)
