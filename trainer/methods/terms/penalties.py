"""Penalties on the discriminator, each a plain function with its equation.

Both differentiate twice through the discriminator: the returned scalar has a graph to its parameters.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def input_gradient(logits: Tensor, images: Tensor) -> Tensor:
    """d logits_i / d images_i of every sample: [B, C, H, W], with a graph. `images` must require a gradient."""
    return torch.autograd.grad(logits.sum(), images, create_graph=True)[0]


def gradient_penalty(
    logits_of: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, mix: Tensor, target: float = 1.0
) -> Tensor:
    """E ((|grad D(x)| - t) / t)^2 at x = mix real + (1 - mix) fake.

    WGAN-GP (Gulrajani et al. 2017, Eq. 3) for t = 1; the division by t is that of Karras et al. 2018.

    Args:
        logits_of: images [B, C, H, W] -> logits [B].
        real, fake: [B, C, H, W]; no gradient flows into them.
        mix: [B], in [0, 1), U(0, 1) in the papers.
    """
    share = mix[:, None, None, None]
    images = (share * real + (1 - share) * fake).detach().requires_grad_(True)
    lengths: Tensor = torch.linalg.vector_norm(input_gradient(logits_of(images), images).flatten(1), dim=1)
    return ((lengths - target) / target).square().mean()


def r1(real_logits: Tensor, real_images: Tensor) -> Tensor:
    """1/2 E |grad D(x)|^2 at real x (Mescheder et al. 2018, Eq. 9); times gamma it is their penalty."""
    return 0.5 * input_gradient(real_logits, real_images).square().flatten(1).sum(1).mean()


def drift(real_logits: Tensor) -> Tensor:
    """E D(x)^2 at real x: keeps the critic's scale from drifting away (Karras et al. 2018, appendix A.1)."""
    return real_logits.square().mean()
