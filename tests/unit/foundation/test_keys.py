"""Draws are functions of their key: stable over versions, different for every counter."""

import hashlib
import itertools

import torch

from trainer.foundation import keys


def test_keys_differ_in_every_counter() -> None:
    made = [
        keys.key(*counters)
        for counters in itertools.product((0, 1), ("latents", "labels"), (0, 1, 11), (0, 1), (0, 1, 11))
    ]
    assert len(set(made)) == len(made)
    assert all(0 <= key < 2**63 for key in made)


def test_golden_draws() -> None:
    """If this fails, checkpoints of earlier versions no longer go on as they would have."""
    latents = keys.draw_latents(keys.generator(5, "latents", 7, 2, 1), 40, 16, "normal")
    labels = keys.draw_labels(keys.generator(5, "labels", 7, 2, 1), 400, 10)
    assert keys.key(5, "latents", 7, 2, 1) == GOLDEN_KEY
    assert hashlib.sha256(labels.numpy().tobytes()).hexdigest()[:16] == GOLDEN_LABELS
    assert torch.allclose(latents.flatten()[:3], torch.tensor(GOLDEN_LATENTS), atol=1e-6)


def test_draws_do_not_touch_the_default_generator() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    keys.draw_latents(keys.generator(0, "latents"), 10, 4, "uniform")
    assert torch.equal(torch.rand(3), expected)


def test_distributions() -> None:
    normal = keys.draw_latents(keys.generator(0, "a"), 1000, 64, "normal")
    uniform = keys.draw_latents(keys.generator(0, "a"), 1000, 64, "uniform")
    unit = keys.draw_latents(keys.generator(0, "a"), 1000, 64, "unit_uniform")
    labels = keys.draw_labels(keys.generator(0, "b"), 100_000, 10)
    assert torch.equal(unit * 2 - 1, uniform)
    assert abs(float(normal.mean())) < 0.02
    assert abs(float(normal.std()) - 1) < 0.02
    assert uniform.min() >= -1
    assert uniform.max() < 1
    assert abs(float(uniform.std()) - 3**-0.5) < 0.01
    assert torch.bincount(labels, minlength=10).min() > 9_500


GOLDEN_KEY = 6547605473786067274
GOLDEN_LABELS = "c252868798d57d75"
GOLDEN_LATENTS = [-0.6497606, 0.2094603, 0.0165838]
