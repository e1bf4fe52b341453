"""Whole networks against the NumPy reference: forward, what a pass moves, and gradients, in float64.

The reference gets its arrays by the official names, so that these tests also hold the names and layouts.
"""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from tests.support import reference
from trainer.models import ModelConfig
from trainer.models.conditioning import AuxiliaryClassifierConfig, ConcatConfig, ProjectionConfig, UnconditionalConfig
from trainer.models.resnet import ResNetDiscriminatorConfig, ResNetGeneratorConfig
from trainer.official.names import official_counters, official_names

FORMS = {32: (3, 4, 2), 64: (4, 5, 5), 128: (5, 6, 5)}  # blocks of G, blocks of D, halvings of D
CONDITIONINGS = {"projection": ProjectionConfig(), "concat": ConcatConfig(dimension=6), "none": UnconditionalConfig()}


def randomised(network):
    """The network in float64 with nothing at its initial 0 or 1."""
    network.double()
    with torch.no_grad():
        for name, value in network.state_dict().items():
            value.copy_(torch.rand_like(value) + 0.5 if "var" in name else torch.randn_like(value) * 0.3)
    return network


def arrays_of(network):
    state = network.state_dict()
    return {theirs: state[ours].numpy().copy() for theirs, ours in official_names(network).items()}


def generator_case(resolution, conditional=True):
    torch.manual_seed(resolution)
    model = ModelConfig(resolution=resolution, classes=5 if conditional else 0, latent_dim=6)
    network = randomised(ResNetGeneratorConfig(channels=1 if resolution > 32 else 4).build(model))
    return network, torch.randn(3, 6).double(), torch.tensor([0, 4, 4])


def discriminator_case(resolution, conditioning):
    torch.manual_seed(resolution)
    model = ModelConfig(resolution=resolution, classes=0 if conditioning == "none" else 5)
    config = ResNetDiscriminatorConfig(channels=2, conditioning=CONDITIONINGS[conditioning])
    network = randomised(config.build(model))
    return network, torch.randn(2, 3, resolution, resolution).double(), torch.tensor([0, 4])


def check_moved(network, moved):
    state, names = network.state_dict(), official_names(network)
    assert moved.keys() == {n for n in names if n.endswith(("/u", "/avg_mean", "/avg_var"))}
    for theirs, value in moved.items():
        np.testing.assert_allclose(state[names[theirs]].numpy(), value, rtol=1e-10, atol=1e-13, err_msg=theirs)


def check_gradients(network, loss, reference_loss, arrays):
    """Every tensor's gradient against the reference's slope in a random direction of that tensor."""
    network.zero_grad()
    loss.backward()
    parameters, names, rng = dict(network.named_parameters()), official_names(network), np.random.default_rng(0)
    for theirs, ours in names.items():
        if ours not in parameters:
            continue
        direction = rng.normal(size=arrays[theirs].shape)
        want = reference.slope(reference_loss, arrays, {theirs: direction})
        got = (parameters[ours].grad.numpy() * direction).sum()
        # Biases in front of batch norm have a true gradient of 0: an absolute bound beside the relative one.
        assert got == pytest.approx(want, rel=1e-8, abs=1e-9), theirs


@pytest.mark.parametrize("resolution", FORMS)
@pytest.mark.parametrize("conditional", [True, False])
def test_generator_forward_and_running_averages(resolution, conditional):
    network, z, y = generator_case(resolution, conditional)
    for train in (True, False):
        arrays = arrays_of(network)
        images, moved = reference.generator(arrays, z.numpy(), y.numpy(), train, FORMS[resolution][0])
        got = network.train(train)(z, y).detach().numpy()
        np.testing.assert_allclose(got, images, rtol=1e-10, atol=1e-12)
        check_moved(network, moved)


def test_generator_with_class_weights():
    """Category morphing: rows of gamma and beta are mixed, in every block."""
    network, z, _ = generator_case(32)
    weights = np.random.default_rng(0).dirichlet(np.ones(5), size=3)
    images, _ = reference.generator(arrays_of(network), z.numpy(), weights, True, 3)
    np.testing.assert_allclose(network(z, torch.from_numpy(weights)).detach().numpy(), images, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("conditional", [True, False])
def test_generator_gradients(conditional):
    network, z, y = generator_case(32, conditional)
    arrays, probe = arrays_of(network), np.random.default_rng(1).normal(size=(3, 3, 32, 32))

    def reference_loss(arrays):
        return (reference.generator(arrays, z.numpy(), y.numpy(), True, 3)[0] * probe).sum()

    check_gradients(network, (network(z, y) * torch.from_numpy(probe)).sum(), reference_loss, arrays)


@pytest.mark.parametrize("resolution", FORMS)
@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_discriminator_forward_and_u(resolution, conditioning):
    network, x, y = discriminator_case(resolution, conditioning)
    for _ in range(2):
        logits, moved = reference.discriminator(arrays_of(network), x.numpy(), y.numpy(), *FORMS[resolution][1:])
        np.testing.assert_allclose(network(x, y).logits.detach().numpy(), logits, rtol=1e-9, atol=1e-11)
        check_moved(network, moved)
    network.eval()  # the same formula, and u stays
    before = {name: value.clone() for name, value in network.named_buffers()}
    logits, _ = reference.discriminator(arrays_of(network), x.numpy(), y.numpy(), *FORMS[resolution][1:])
    np.testing.assert_allclose(network(x, y).logits.detach().numpy(), logits, rtol=1e-9, atol=1e-11)
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_discriminator_gradients(conditioning):
    network, x, y = discriminator_case(32, conditioning)
    arrays, probe, images = arrays_of(network), np.array([1.0, -2.0]), x.numpy()

    def reference_loss(arrays):
        return (reference.discriminator(arrays, images, y.numpy(), 4, 2)[0] * probe).sum()

    x = x.clone().requires_grad_(True)
    check_gradients(network, (network(x, y).logits * torch.from_numpy(probe)).sum(), reference_loss, arrays)
    direction = np.random.default_rng(2).normal(size=x.shape)
    moved = images + 1e-30j * direction
    want = (reference.discriminator(arrays, moved, y.numpy(), 4, 2)[0] * probe).sum().imag / 1e-30
    assert (x.grad.numpy() * direction).sum() == pytest.approx(want, rel=1e-8)


def test_small_networks_gradcheck():
    model = ModelConfig(resolution=8, classes=3, latent_dim=2, image_channels=1)
    G = randomised(ResNetGeneratorConfig(channels=1, multipliers=(2, 1)).build(model))
    config = ResNetDiscriminatorConfig(channels=2, multipliers=(1, 1), downsampling_blocks=1)
    D = randomised(config.build(model)).eval()  # in training, u would move between evaluations
    y = torch.tensor([0, 2, 1])
    assert gradcheck(lambda z: G(z, y), torch.randn(3, 2, dtype=torch.float64, requires_grad=True))
    x = torch.randn(3, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: D(x, y).logits, x)


def test_official_names_are_those_of_the_official_files():
    model = ModelConfig(classes=3)
    with torch.device("meta"):
        G = ResNetGeneratorConfig(channels=1).build(model)
        D = ResNetDiscriminatorConfig(channels=1).build(model)
        small = ModelConfig(resolution=32, classes=3)
        cifar_G = ResNetGeneratorConfig(channels=1).build(small)
        cifar_D = ResNetDiscriminatorConfig(channels=1).build(small)
    names = official_names(G)
    assert {"l1/W", "l1/b", "block2/b1/gammas/W", "block6/b2/avg_var", "block6/c_sc/b", "b7/gamma", "l7/W"} <= set(
        names
    )
    assert len(names) == 2 + 5 * 14 + 4 + 2
    assert {"block2/b1/N", "b7/N"} <= official_counters(G)
    names = official_names(D)
    assert {"block1/c_sc/u", "block5/c2/b", "l7/W", "l7/u", "l7/b", "l_y/W", "l_y/u"} <= set(names)
    assert "block6/c_sc/W" not in names
    assert len(names) == 5 * 9 + 6 + 3 + 2
    assert {"b5/gamma", "c5/W", "c5/b"} <= set(official_names(cifar_G))
    assert {"l5/W", "l5/u"} <= set(official_names(cifar_D))
    assert "l5/b" not in official_names(cifar_D)


def test_networks_that_the_official_code_lacks_have_no_names():
    model = ModelConfig(resolution=32, classes=3)
    with torch.device("meta"):
        G = ResNetGeneratorConfig(channels=1, final_norm="conditional").build(model)
        config = ResNetDiscriminatorConfig(channels=1, conditioning=AuxiliaryClassifierConfig())
        D = config.build(model)
    for network in (G, D):
        with pytest.raises(ValueError, match="no counterpart in the official code"):
            official_names(network)
