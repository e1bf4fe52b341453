"""What a pass changes does not depend on how many replicas run it here."""

import itertools

import pytest
import torch

from tests.support.games import draw_of, losses, method_of
from trainer.methods.adversarial import AdversarialConfig
from trainer.models import ModelConfig, replica_passes
from trainer.models.layers import BatchNorm2d, SpectralLayer
from trainer.models.resnet import ResNetDiscriminatorConfig, ResNetGeneratorConfig

MODEL = ModelConfig(resolution=8, image_channels=1, classes=3, latent_dim=4)
REPLICAS = 3


def networks():
    torch.manual_seed(0)
    G = ResNetGeneratorConfig(channels=2, multipliers=(2, 1)).build(MODEL)
    D = ResNetDiscriminatorConfig(channels=2, multipliers=(1, 2), downsampling_blocks=1).build(MODEL)
    return G.double(), D.double()


def draws(replica, real=True):
    random = torch.Generator().manual_seed(replica)
    z = torch.randn(5, 4, generator=random, dtype=torch.float64)
    y = torch.randint(3, (5,), generator=random)
    if not real:
        return draw_of(z, y)
    return draw_of(z, y, torch.randn(4, 1, 8, 8, generator=random, dtype=torch.float64), y[:4])


def step(blocks, kind, passes="separate"):
    """Gradients summed over processes (`blocks` of replicas), and the states of each process after the step."""
    method = method_of(AdversarialConfig(passes=passes))
    total, states = {}, []
    for held in blocks:
        G, D = networks()
        with replica_passes(G, D) as start_replica:
            loss = 0
            for c in held:
                start_replica(c)
                draw = draws(c, real=kind == "discriminator")
                loss = loss + losses(method, kind, {"generator": G, "discriminator": D}, draw)["loss"] / REPLICAS
        loss.backward()
        for name, p in itertools.chain(G.named_parameters(prefix="G"), D.named_parameters(prefix="D")):
            if p.grad is not None:
                total[name] = total.get(name, 0) + p.grad
        states.append((dict(G.named_buffers()), dict(D.named_buffers())))
    return total, states


@pytest.mark.parametrize("kind", ["discriminator", "generator"])
@pytest.mark.parametrize("passes", ["separate", "joint"])
def test_any_dealing_of_replicas_to_processes_gives_the_same_step(kind, passes):
    whole, one = step([[0, 1, 2]], kind, passes)
    for blocks in ([[0], [1], [2]], [[0, 1], [2]]):
        dealt, states = step(blocks, kind, passes)
        assert dealt.keys() == whole.keys()
        for name in whole:
            torch.testing.assert_close(dealt[name], whole[name], rtol=1e-11, atol=1e-13, msg=name)
        for _, buffers in states:  # u is the same on every process
            for name, value in buffers.items():
                assert torch.equal(value, one[0][1][name]), name
        for name, value in states[0][0].items():  # the running statistics are replica 0's
            assert torch.equal(value, one[0][0][name]), name


@pytest.mark.parametrize(("passes", "times"), [("separate", 2), ("joint", 1)])
@pytest.mark.parametrize("replicas", [1, 3])
def test_u_moves_once_a_pass_whatever_the_number_of_replicas(monkeypatch, passes, times, replicas):
    calls = []
    normalise = SpectralLayer._normalise
    monkeypatch.setattr(SpectralLayer, "_normalise", lambda self: calls.append(self) or normalise(self))
    step([range(replicas)], "discriminator", passes)
    counts = {id(layer): calls.count(layer) for layer in calls}
    assert set(counts.values()) == {times}
    calls.clear()
    step([range(replicas)], "generator", passes)
    assert {calls.count(layer) for layer in calls} == {1}


def test_outside_the_context_every_forward_is_a_pass_and_nothing_is_kept():
    G, D = networks()
    with replica_passes(G, D) as start_replica:
        start_replica(1)
        D(draws(0)["real_images"], draws(0)["real_labels"])
    assert all(layer._shared is None for layer in D.modules() if isinstance(layer, SpectralLayer))
    assert all(norm.update_statistics for norm in G.modules() if isinstance(norm, BatchNorm2d))
    before = D.linear.u.clone()
    D(draws(0)["real_images"], draws(0)["real_labels"])
    moved = D.linear.weight @ D.linear.weight.T @ before
    torch.testing.assert_close(D.linear.u, (moved / moved.norm()).detach())


def test_an_error_inside_leaves_the_layers_usable():
    G, D = networks()
    with pytest.raises(TypeError), replica_passes(G, D):
        G(None, None)
    with replica_passes(G, D) as start_replica:
        start_replica(0)


def test_replicas_other_than_0_leave_the_running_statistics():
    G, D = networks()
    before = {name: value.clone() for name, value in G.named_buffers()}
    with replica_passes(G, D) as start_replica, torch.no_grad():
        start_replica(1)
        other = G(*draws(1, real=False).values())
        assert all(torch.equal(value, before[name]) for name, value in G.named_buffers())
        start_replica(0)
        G(*draws(0, real=False).values())
    assert not any(torch.equal(value, before[name]) for name, value in G.named_buffers())
    torch.testing.assert_close(G(*draws(1, real=False).values()), other)
