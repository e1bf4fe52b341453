"""The layers against formulas written in NumPy (tests.support.reference), in float64."""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from tests.support import reference
from trainer.models.conditioning import ConditionalBatchNorm2d
from trainer.models.layers import BatchNorm2d, SpectralConv2d, SpectralEmbedding, SpectralLinear

SPECTRAL = {
    "conv3": lambda: SpectralConv2d(3, 5, 3),
    "conv1": lambda: SpectralConv2d(3, 5, 1),
    "linear": lambda: SpectralLinear(6, 4),
    "linear without bias": lambda: SpectralLinear(6, 4, bias=False),
    "embedding": lambda: SpectralEmbedding(7, 4),
}


def layer_and_input(kind):
    layer = SPECTRAL[kind]().double()
    if isinstance(layer, SpectralConv2d):
        return layer, torch.randn(2, 3, 6, 6, dtype=torch.float64)
    if isinstance(layer, SpectralLinear):
        return layer, torch.randn(3, 6, dtype=torch.float64)
    return layer, torch.tensor([0, 6, 6, 2])


def expected(layer, x):
    w, u = reference.spectral(layer.weight.detach().numpy(), layer.u.numpy())
    if isinstance(layer, SpectralConv2d):
        return reference.conv(x.numpy(), w, layer.bias.detach().numpy()), u
    if isinstance(layer, SpectralLinear):
        return x.numpy() @ w.T + (0 if layer.bias is None else layer.bias.detach().numpy()), u
    return w[x.numpy()], u


@pytest.mark.parametrize("kind", SPECTRAL)
def test_spectral_layers_equal_the_formula_and_move_u_once_in_training_only(kind):
    layer, x = layer_and_input(kind)
    if getattr(layer, "bias", None) is not None:
        torch.nn.init.normal_(layer.bias)
    for _ in range(3):
        y, u = expected(layer, x)
        np.testing.assert_allclose(layer(x).detach().numpy(), y, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(layer.u.numpy(), u, rtol=1e-12)
    layer.eval()
    before = layer.u.clone()
    y, _ = expected(layer, x)
    np.testing.assert_allclose(layer(x).detach().numpy(), y, rtol=1e-12, atol=1e-13)
    assert torch.equal(layer.u, before)


@pytest.mark.parametrize("kind", SPECTRAL)
def test_sigma_is_the_largest_singular_value_after_many_iterations(kind):
    layer, x = layer_and_input(kind)
    for _ in range(500):
        layer(x)
    matrix = layer.normalised_weight().detach().flatten(1)
    assert torch.linalg.svdvals(matrix)[0].item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("kind", SPECTRAL)
def test_spectral_gradient_holds_u_and_v_constant(kind):
    layer, x = layer_and_input(kind)
    layer(x)
    weight, u = layer.weight.detach().numpy(), layer.u.numpy().copy()
    direction = np.random.default_rng(0).normal(size=weight.shape)
    probe = np.random.default_rng(1).normal(size=weight.shape)
    (layer.normalised_weight() * torch.from_numpy(probe)).sum().backward()
    want = reference.slope(lambda a: (reference.spectral(a["W"], u)[0] * probe).sum(), {"W": weight}, {"W": direction})
    assert (layer.weight.grad.numpy() * direction).sum() == pytest.approx(want, rel=1e-12)


def test_spectral_graph_survives_a_later_pass():
    """u moves between a pass and its backward (real images, generated images, then one backward)."""
    layer, x = layer_and_input("conv3")
    alone = SpectralConv2d(3, 5, 3).double()
    alone.load_state_dict(layer.state_dict())
    first = layer(x)
    layer(x)
    first.square().sum().backward()
    alone(x).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, alone.weight.grad, rtol=1e-13, atol=0)


def test_frozen_spectral_layer_makes_no_graph():
    layer, x = layer_and_input("conv3")
    layer.requires_grad_(False)
    assert not layer.normalised_weight().requires_grad
    x.requires_grad_(True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is None


@pytest.mark.parametrize("kind", ["linear", "embedding"])
def test_heads_and_the_norm_stay_float32_under_autocast(kind):
    layer, x = layer_and_input(kind)
    layer.float()
    x = x.float() if x.is_floating_point() else x
    twin = SPECTRAL[kind]()
    twin.load_state_dict(layer.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.float32
    assert torch.equal(y, twin(x))
    assert torch.equal(layer.u, twin.u)


def test_conv_runs_in_low_precision_with_a_full_precision_sigma():
    layer, twin, x = SpectralConv2d(3, 5, 3), SpectralConv2d(3, 5, 3), torch.randn(2, 3, 6, 6)
    twin.load_state_dict(layer.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    twin(x)
    assert torch.equal(layer.u, twin.u)


@pytest.mark.parametrize("mixture", [False, True], ids=["labels", "class weights"])
def test_conditional_batch_norm_equals_the_formula(mixture):
    rng = np.random.default_rng(0)
    layer = ConditionalBatchNorm2d(3, classes=4).double()
    torch.nn.init.normal_(layer.gain)
    torch.nn.init.normal_(layer.bias)
    arrays = {
        "n/gammas/W": layer.gain.detach().numpy(),
        "n/betas/W": layer.bias.detach().numpy(),
        "n/avg_mean": np.zeros(3),
        "n/avg_var": np.ones(3),
    }
    y = rng.dirichlet(np.ones(4), size=5) if mixture else np.array([0, 1, 3, 3, 2])
    for train in (True, True, False):
        x = rng.normal(2, 3, size=(5, 3, 4, 4))
        moved = {}
        want = reference._norm(arrays, "n", x, y, train, moved)
        got = layer.train(train)(torch.from_numpy(x), torch.from_numpy(y))
        np.testing.assert_allclose(got.detach().numpy(), want, rtol=1e-12, atol=1e-12)
        arrays |= moved
        np.testing.assert_allclose(layer.norm.running_mean.numpy(), arrays["n/avg_mean"], rtol=1e-13)
        np.testing.assert_allclose(layer.norm.running_var.numpy(), arrays["n/avg_var"], rtol=1e-13)


def test_one_hot_class_weights_are_labels():
    layer = ConditionalBatchNorm2d(3, classes=4).eval()
    torch.nn.init.normal_(layer.gain)
    x, y = torch.randn(2, 3, 4, 4), torch.tensor([3, 1])
    torch.testing.assert_close(layer(x, torch.nn.functional.one_hot(y, 4).float()), layer(x, y))


def test_conditional_batch_norm_gradcheck():
    layer = ConditionalBatchNorm2d(2, classes=3).double()
    y = torch.tensor([0, 2, 2])

    def run(x, gain, bias):
        return torch.func.functional_call(layer, {"gain": gain, "bias": bias}, (x, y))

    inputs = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in [(3, 2, 2, 2), (3, 2), (3, 2)]]
    assert gradcheck(run, inputs)


def test_conditional_batch_norm_keeps_the_low_precision_of_its_input():
    layer = ConditionalBatchNorm2d(3, classes=4)
    layer.fused = True  # the plain form's float32 gain makes the product float32
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(torch.randn(8, 3, 4, 4, dtype=torch.bfloat16), torch.arange(8) % 4)
    assert y.dtype == torch.bfloat16
    assert layer.norm.running_var.dtype == torch.float32


def test_statistics_of_low_precision_batches_do_not_depend_on_the_replica():
    """Switching the update off must not switch the kernel to low-precision statistics."""
    norm = BatchNorm2d(3, affine=False)
    x = torch.randn(16, 3, 8, 8, dtype=torch.bfloat16) * 3 + 5
    first = norm(x)
    norm.update_statistics = False
    mean = norm.running_mean.clone()
    assert torch.equal(norm(x), first)
    assert torch.equal(norm.running_mean, mean)
