"""Losses and penalties against their equations."""

import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from trainer.methods.terms import penalties
from trainer.methods.terms.losses import LOSSES, classification

REAL = [-2.0, -0.5, 0.3, 1.0, 4.0]
FAKE = [-3.0, 0.0, 0.7, 2.0]


def log_sigmoid(t):
    return -math.log(1 + math.exp(-t))


# name -> (E over real + E over fake of the discriminator's loss, E over fake of the generator's)
EQUATIONS = {
    "hinge": (lambda r: max(0, 1 - r), lambda f: max(0, 1 + f), lambda f: -f),
    "non_saturating": (lambda r: -log_sigmoid(r), lambda f: -log_sigmoid(-f), lambda f: -log_sigmoid(f)),
    "minimax": (lambda r: -log_sigmoid(r), lambda f: -log_sigmoid(-f), lambda f: log_sigmoid(-f)),
    "least_squares": (lambda r: (r - 1) ** 2 / 2, lambda f: f**2 / 2, lambda f: (f - 1) ** 2 / 2),
    "inverted_least_squares": (lambda r: r**2, lambda f: 0.1 * (f - 1) ** 2, lambda f: f**2),
    "wasserstein": (lambda r: -r, lambda f: f, lambda f: -f),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_equal_their_equations(name):
    of_real, of_fake, of_generator = EQUATIONS[name]
    real, fake = torch.tensor(REAL, dtype=torch.float64), torch.tensor(FAKE, dtype=torch.float64)
    want = np.mean([of_real(t) for t in REAL]) + np.mean([of_fake(t) for t in FAKE])
    assert LOSSES[name].discriminator(real, fake).item() == pytest.approx(want, rel=1e-12)
    assert LOSSES[name].generator(fake).item() == pytest.approx(np.mean([of_generator(t) for t in FAKE]), rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_stay_finite_at_large_logits(name):
    logits = torch.tensor([-1e4, 1e4], requires_grad=True)
    (LOSSES[name].discriminator(logits, logits) + LOSSES[name].generator(logits)).backward()
    assert logits.grad.isfinite().all()


def test_classification_is_the_negative_log_likelihood():
    logits = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 3.0]])
    p = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    want = -(math.log(p[0, 1]) + math.log(p[1, 0])) / 2
    assert classification(logits, torch.tensor([1, 0])).item() == pytest.approx(want, rel=1e-6)


WEIGHT = torch.tensor([[[[3.0, 0.0], [0.0, 4.0]]]], dtype=torch.float64)  # the gradient of sum(w x) has length 5


def linear(x):
    return (WEIGHT * x).flatten(1).sum(1)


@pytest.mark.parametrize(("target", "want"), [(1.0, 16.0), (2.0, 2.25), (5.0, 0.0)])
def test_gradient_penalty_of_a_linear_discriminator(target, want):
    real, fake, mix = torch.randn(3, 1, 2, 2).double(), torch.randn(3, 1, 2, 2).double(), torch.rand(3).double()
    assert penalties.gradient_penalty(linear, real, fake, mix, target).item() == pytest.approx(want)


def test_gradient_penalty_is_taken_between_the_images():
    """D(x) = sum(x^2) / 2 has the gradient x: the penalty tells where it was taken."""
    real, fake = torch.randn(4, 1, 2, 2).double(), torch.randn(4, 1, 2, 2).double()
    mix = torch.tensor([0, 0.25, 0.5, 1], dtype=torch.float64)
    x = mix[:, None, None, None] * real + (1 - mix[:, None, None, None]) * fake
    want = (x.flatten(1).norm(dim=1) - 1).square().mean()
    got = penalties.gradient_penalty(lambda x: x.square().flatten(1).sum(1) / 2, real, fake, mix)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("shape", [(4, 7), (1, 7), (7, 7), (4, 2, 5), (4, 2, 3, 3), (2, 1, 2, 3, 2)], ids=str)
def test_penalties_equal_a_loop_over_samples_of_any_rank(shape):
    """Each sample is mixed with its own partner alone, and its gradient's length is over all of it."""
    torch.manual_seed(0)
    real, fake, mix = torch.randn(shape).double(), torch.randn(shape).double(), torch.rand(shape[0]).double()
    weight = torch.randn(shape[1:]).double()

    def logits(x):
        return torch.tanh(weight * x).flatten(1).sum(1)

    def length(x):
        x = x.detach().requires_grad_(True)
        return torch.autograd.grad(logits(x[None])[0], x)[0].norm()

    rows = list(zip(real, fake, mix, strict=True))
    want = sum((length(r * m + f * (1 - m)) / 2 - 1) ** 2 for r, f, m in rows) / len(rows)
    torch.testing.assert_close(penalties.gradient_penalty(logits, real, fake, mix, target=2.0), want)
    leaf = real.clone().requires_grad_(True)
    want = sum(length(r) ** 2 / 2 for r in real) / len(real)
    torch.testing.assert_close(penalties.r1(logits(leaf), leaf), want)


@pytest.mark.parametrize(
    ("real", "fake", "mix"),
    [
        ((4, 7), (4, 7), (7,)),
        ((4, 7), (4, 7), (4, 1)),
        ((4, 7), (4, 7), ()),
        ((4, 7), (1, 7), (4,)),
        ((4, 7), (4, 6), (4,)),
        ((4, 3, 2, 2), (4, 3, 2), (4,)),
        ((4,), (4,), (4,)),
    ],
    ids=str,
)
def test_shapes_that_do_not_fit_are_refused(real, fake, mix):
    with pytest.raises(ValueError, match="do not fit together"):
        penalties.gradient_penalty(
            lambda x: x.flatten(1).sum(1), torch.zeros(real), torch.zeros(fake), torch.zeros(mix)
        )


def test_r1_and_drift():
    x = torch.randn(3, 1, 2, 2).double().requires_grad_(True)
    assert penalties.r1(linear(x), x).item() == pytest.approx(12.5)
    assert penalties.drift(torch.tensor([1.0, -3.0])).item() == pytest.approx(5)


def test_penalties_differentiate_twice():
    x, fake, mix = torch.randn(2, 1, 2, 2).double(), torch.randn(2, 1, 2, 2).double(), torch.rand(2).double()

    def of_weight(weight):
        def logits(x):
            return torch.tanh(weight * x).flatten(1).sum(1)

        leaf = x.clone().requires_grad_(True)
        return penalties.gradient_penalty(logits, x, fake, mix), penalties.r1(logits(leaf), leaf)

    assert gradcheck(of_weight, torch.randn(1, 1, 2, 2, dtype=torch.float64, requires_grad=True))


def test_input_gradients_of_fp16_passes_are_not_rounded_away() -> None:
    """1e-7 is below what fp16 holds with any accuracy; the gradient goes through the network in fp16."""
    samples = torch.ones(2, 4, requires_grad=True)
    weight = torch.full((4, 1), 3e-4)
    found = {}
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cpu", dtype=dtype):
            hidden = samples @ weight
            logits = (hidden.float() * 3e-4).squeeze(1)
            found[dtype] = penalties.input_gradient(logits, samples)
    torch.testing.assert_close(found[torch.float16], torch.full((2, 4), 9e-8), rtol=1e-2, atol=0)
