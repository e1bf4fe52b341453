"""Adversarial losses as plain functions of the discriminator's logits, and the classification loss.

A loss is two functions and a name in `LOSSES`, the only list: settings of the type `LossName` are held against it.
real: logits [n] of real images, fake: logits [m] of generated ones. D(x) below is the logit, sigma the logistic function.
Each returns a scalar to be minimised.

The generator's side sees the logits of generated images alone. A relativistic loss needs those of real ones as well, so
it is out of reach here: its generator's turn must read real images, which is a matter of the method.
"""

from collections.abc import Callable
from typing import Annotated, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from trainer.foundation.choices import OneOf


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """E max(0, 1 - D(x)) + E max(0, 1 + D(G(z))) (Miyato et al. 2018, Eq. 16)."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def linear_generator(fake: Tensor) -> Tensor:
    """-E D(G(z)): the generator's side of the hinge (Miyato et al. 2018, Eq. 17) and of the Wasserstein loss."""
    return -fake.mean()


def cross_entropy_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """-E log sigma(D(x)) - E log(1 - sigma(D(G(z)))) (Goodfellow et al. 2014, Eq. 1)."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def non_saturating_generator(fake: Tensor) -> Tensor:
    """-E log sigma(D(G(z))) (Goodfellow et al. 2014, section 3)."""
    return F.softplus(-fake).mean()


def minimax_generator(fake: Tensor) -> Tensor:
    """E log(1 - sigma(D(G(z)))) (Goodfellow et al. 2014, Eq. 1); its gradient fades where D is sure."""
    return -F.softplus(fake).mean()


def least_squares_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """1/2 E (D(x) - 1)^2 + 1/2 E D(G(z))^2 (Mao et al. 2017, Eq. 2 with a = 0, b = 1)."""
    return 0.5 * (real - 1).square().mean() + 0.5 * fake.square().mean()


def least_squares_generator(fake: Tensor) -> Tensor:
    """1/2 E (D(G(z)) - 1)^2 (Mao et al. 2017, Eq. 2 with c = 1)."""
    return 0.5 * (fake - 1).square().mean()


def inverted_least_squares_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """E D(x)^2 + 0.1 E (D(G(z)) - 1)^2 (Karras et al. 2018, appendix B; the weight 0.1 is the official code's)."""
    return real.square().mean() + 0.1 * (fake - 1).square().mean()


def inverted_least_squares_generator(fake: Tensor) -> Tensor:
    """E D(G(z))^2: here real images have the score 0."""
    return fake.square().mean()


def wasserstein_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """E D(G(z)) - E D(x) (Arjovsky et al. 2017, Eq. 3, with the sign turned round)."""
    return fake.mean() - real.mean()


def classification(class_logits: Tensor, labels: Tensor) -> Tensor:
    """-E log P(C = c | x), class_logits [B, K], labels int64 [B] (Odena et al. 2017, Eq. 3; no label smoothing)."""
    return F.cross_entropy(class_logits, labels)


class Loss(NamedTuple):
    """The two sides of an adversarial loss."""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]


LOSSES = {
    "hinge": Loss(hinge_discriminator, linear_generator),
    "non_saturating": Loss(cross_entropy_discriminator, non_saturating_generator),
    "minimax": Loss(cross_entropy_discriminator, minimax_generator),
    "least_squares": Loss(least_squares_discriminator, least_squares_generator),
    "inverted_least_squares": Loss(inverted_least_squares_discriminator, inverted_least_squares_generator),
    "wasserstein": Loss(wasserstein_discriminator, linear_generator),
}
"""The losses by name."""

LossName = Annotated[str, OneOf(LOSSES)]
"""A setting that names one of them."""
