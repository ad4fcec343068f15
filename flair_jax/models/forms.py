"""In which form the network is computed on each platform: the sums are the same in all of them."""

import dataclasses

import jax

from flair_jax.folding import LANES

NARROWEST = 16  # channels of the last decoder block


@dataclasses.dataclass(frozen=True)
class Form:
    """A way to compute the network.

    Attributes:
        fold: how many neighbouring pixels of a row are worked on as one, see `flair_jax.folding`.
        phases: whether maps that are doubled and then convolved are never made, and kernel
            gradients are taken block by block, see `cpu_convolution`.
    """

    fold: int = 1
    phases: bool = False


PLAIN = Form()
# TPU: what its vectors pad, memory traffic pays for. CPU: the caches are small, and operations
# dear. GPU: cuDNN takes narrow maps as they are.
FORMS = {"tpu": Form(fold=LANES // NARROWEST), "cpu": Form(phases=True), "gpu": PLAIN}


def form_for(platform: str | None = None) -> Form:
    """The form for a platform as JAX names it; None: for its default backend."""
    return FORMS.get(platform or jax.default_backend(), PLAIN)
