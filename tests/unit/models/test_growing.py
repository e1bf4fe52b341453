"""The layers of networks that grow, against closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.models.growing import (
    EqualisedConvolution,
    EqualisedLinear,
    Reached,
    Stage,
    enlarged,
    faded,
    levels,
    minibatch_deviation,
    pixel_norm,
    real_level,
)


def test_pixel_norm_gives_unit_length_and_leaves_it() -> None:
    x = torch.randn(3, 16, 5, 5, dtype=torch.float64)
    y = pixel_norm(x)
    torch.testing.assert_close(y.square().mean(1), torch.ones(3, 5, 5, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(pixel_norm(y), y, rtol=0, atol=1e-6)


def test_equalised_layers_store_unit_weights_and_use_them_scaled() -> None:
    torch.manual_seed(0)
    for inputs in (8, 512):
        layer = EqualisedConvolution(inputs, 256, 3)
        assert layer.weight.std().item() == pytest.approx(1.0, abs=0.03)
        assert layer.scale == pytest.approx(math.sqrt(2 / (9 * inputs)))
        x = torch.randn(2, inputs, 6, 6)
        torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight * layer.scale, layer.bias, padding=1))
    slow = EqualisedLinear(32, 16, rate_multiplier=0.01)
    assert slow.weight.std().item() == pytest.approx(100, rel=0.1)
    assert slow.bias is not None
    with torch.no_grad():
        slow.bias.fill_(3.0)
    x = torch.randn(4, 32)
    torch.testing.assert_close(slow(x), x @ slow.weight.T * (math.sqrt(2 / 32) * 0.01) + 0.03)
    # The bias is not scaled by the layer's constant.
    layer = EqualisedLinear(50, 4)
    assert layer.bias is not None
    with torch.no_grad():
        layer.bias.fill_(1.0)
    torch.testing.assert_close(layer(torch.zeros(1, 50)), torch.ones(1, 4))


def test_an_activation_multiplies_the_second_moment_by_104() -> None:
    """sqrt(2) is not corrected for the slope: 2 (1 + 0.2^2) / 2."""
    torch.manual_seed(0)
    x = torch.randn(64, 256, dtype=torch.float64)
    y = F.leaky_relu(EqualisedLinear(256, 4096).double()(x), 0.2)
    assert (y.square().mean() / x.square().mean()).item() == pytest.approx(1.04, rel=0.02)


@pytest.mark.parametrize("form", ["transposed", "phases", "merged"])
@pytest.mark.parametrize("by_matrix", [False, True])
def test_other_forms_are_the_same_function_also_in_second_derivatives(form: str, by_matrix: bool) -> None:
    torch.manual_seed(0)
    halves = form == "merged"
    layer = EqualisedConvolution(3, 5, 3, doubles=not halves, halves=halves).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)

    def values() -> list[Tensor]:
        y = layer(x)
        (g,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return [y, g, *torch.autograd.grad(g.square().sum(), [layer.weight])]

    plain = values()
    layer.form, layer.by_matrix = form, by_matrix and form != "transposed"
    for found, expected in zip(values(), plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


def test_deviation_of_equal_samples_is_the_root_of_its_constant() -> None:
    x = torch.ones(8, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(minibatch_deviation(x, 4)[:, 3], torch.full((8, 4, 4), 1e-4, dtype=torch.float64))


def test_groups_are_strided_and_the_variance_is_biased() -> None:
    values = torch.tensor([0.0, 1, 2, 3, 10, 20, 30, 40], dtype=torch.float64).view(8, 1, 1, 1)
    found = minibatch_deviation(values, 4)[:, 1].flatten()
    torch.testing.assert_close(found[::2], torch.full((4,), 11.863811, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(found[1::2], torch.full((4,), 15.700318, dtype=torch.float64), rtol=0, atol=1e-6)
    within = values[[6, 1, 4, 3, 2, 5, 0, 7]]
    torch.testing.assert_close(minibatch_deviation(within, 4)[:, 1].flatten(), found)
    assert minibatch_deviation(values[:3], 4).shape == (3, 2, 1, 1)
    with pytest.raises(ValueError, match=r"groups of 4 do not divide a batch of 6"):
        minibatch_deviation(values[:6], 4)


def test_real_images_are_those_of_the_stored_levels() -> None:
    """Half goes to even, from the means of all pixels; rounding in between would differ."""
    pixels = torch.randint(0, 256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    images = pixels.float() / 127.5 - 1.0
    assert torch.equal(real_level(images, Stage(32)), images)
    for side in (16, 8, 4):
        k = 32 // side
        means = pixels.double().view(4, 3, side, k, side, k).mean((3, 5))
        expected = torch.round(means).float() / 127.5 - 1.0
        assert torch.equal(real_level(images, Stage(side)), expected)
    corner = torch.tensor([[0.0, 1, 1, 0], [0, 1, 2, 2], [0, 0, 0, 0], [0, 0, 0, 0]])[None, None] / 127.5 - 1
    found = (real_level(corner, Stage(2)) + 1) * 127.5
    torch.testing.assert_close(found[0, 0], torch.tensor([[0.0, 1.0], [0.0, 0.0]]))  # means 0.5 and 1.25


def test_fading_reals_have_the_means_of_the_level_below() -> None:
    pixels = torch.randint(0, 256, (2, 1, 16, 16), generator=torch.Generator().manual_seed(1))
    images = (pixels.double() / 127.5 - 1.0).float()
    whole = real_level(images, Stage(8)).double()
    for fade in (0.0, 0.3, 0.9):
        found = real_level(images, Stage(8, fade)).double()
        torch.testing.assert_close(F.avg_pool2d(found, 2), F.avg_pool2d(whole, 2), rtol=0, atol=1e-6)
        means = enlarged(F.avg_pool2d(whole, 2), 8)
        torch.testing.assert_close(found, means + fade * (whole - means), rtol=0, atol=1e-6)


def test_fading_is_exactly_linear() -> None:
    old, new = torch.randn(2, 5, dtype=torch.float64)
    assert torch.equal(faded(old, new, 1.0), new)
    torch.testing.assert_close(faded(old, new, 0.0), old)
    half = (faded(old, new, 0.2) + faded(old, new, 0.6)) / 2
    torch.testing.assert_close(faded(old, new, 0.4), half)


def test_levels_are_powers_of_two() -> None:
    assert levels(32) == [4, 8, 16, 32]
    assert levels(1024, 256) == [256, 512, 1024]
    for resolution in (2, 12, 48):
        with pytest.raises(ValueError, match=rf"^model\.resolution: is {resolution}"):
            levels(resolution)


def test_a_training_pass_notes_its_stage() -> None:
    reached = Reached(4)
    assert reached(None) == Stage(4, 1.0)
    assert reached(Stage(8, 0.25)) == Stage(8, 0.25)
    assert reached(None) == Stage(8, 0.25)
    reached.eval()(Stage(16, 0.5))
    assert reached(None) == Stage(8, 0.25)
