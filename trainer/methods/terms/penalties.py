"""Penalties on the discriminator, each a plain function with its equation.

Both gradient penalties differentiate twice through the discriminator: the scalar has a graph to its parameters. Samples
are [B, ...] with one dimension or more behind B: images [B, C, H, W], vectors [B, F].
"""

from collections.abc import Callable

import torch
from torch import Tensor

from trainer.models.layers import convolution_dtype

FP16_SCALE = 2.0**10
"""What the input gradients of fp16 passes are scaled by: up to 64 is then in fp16's range, and down to 6e-8 exact."""


def input_gradient(logits: Tensor, samples: Tensor) -> Tensor:
    """d logits_i / d samples_i of every sample: [B, ...], with a graph. `samples` must require a gradient.

    Under fp16 the sum is scaled on the way through the network, which would round small gradients to 0.
    """
    if convolution_dtype(samples) != torch.float16:
        return torch.autograd.grad(logits.sum(), samples, create_graph=True)[0]
    return torch.autograd.grad(FP16_SCALE * logits.sum(), samples, create_graph=True)[0] / FP16_SCALE


def gradient_penalty(
    logits_of: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, mix: Tensor, target: float = 1.0
) -> Tensor:
    """E ((|grad D(x)| - t) / t)^2 at x = mix real + (1 - mix) fake.

    WGAN-GP (Gulrajani et al. 2017, Eq. 3) for t = 1; the division by t is that of Karras et al. 2018.

    Args:
        logits_of: samples [B, ...] -> logits [B].
        real, fake: [B, ...], of the same shape; no gradient flows into them.
        mix: [B], in [0, 1), U(0, 1) in the papers.

    Raises ValueError for other shapes.
    """
    if real.dim() < 2 or real.shape != fake.shape or mix.shape != real.shape[:1]:
        raise ValueError(
            f"gradient penalty: real samples {list(real.shape)}, generated ones {list(fake.shape)} and mixing weights "
            f"{list(mix.shape)} do not fit together; give [B, ...] twice, and [B]"
        )
    share = mix.reshape(-1, *[1] * (real.dim() - 1))
    samples = (share * real + (1 - share) * fake).detach().requires_grad_(True)
    lengths: Tensor = torch.linalg.vector_norm(input_gradient(logits_of(samples), samples).flatten(1), dim=1)
    return ((lengths - target) / target).square().mean()


def r1(real_logits: Tensor, real_samples: Tensor) -> Tensor:
    """1/2 E |grad D(x)|^2 at real x [B, ...] (Mescheder et al. 2018, Eq. 9); times gamma it is their penalty."""
    return 0.5 * input_gradient(real_logits, real_samples).square().flatten(1).sum(1).mean()


def drift(real_logits: Tensor) -> Tensor:
    """E D(x)^2 at real x: keeps the critic's scale from drifting away (Karras et al. 2018, appendix A.1)."""
    return real_logits.square().mean()
