"""CycleGAN against an independent form in NumPy, and what others got wrong."""

import hashlib

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.backwards import Adam
from tests.support.cycle_arrays import ListPool, discriminator_loss, generators_loss, judge, translate
from tests.support.games import problem
from trainer.foundation.errors import CheckpointError
from trainer.foundation.keys import Keys
from trainer.methods.cyclegan import CycleGANConfig
from trainer.methods.pools import PASS, PoolRule, check_pool, empty_pool, query_pool
from trainer.methods.schedule import BatchConfig
from trainer.models import ModelConfig
from trainer.models.translation import PatchDiscriminatorConfig, TranslatorConfig
from trainer.players.optimizers import AdamConfig
from trainer.players.player import Player
from trainer.processes.launch import read_launch
from trainer.training.iteration import run_iteration

MODEL = ModelConfig(resolution=12, image_channels=2, classes=0)
GENERATOR = TranslatorConfig(channels=2, blocks=2)
DISCRIMINATOR = PatchDiscriminatorConfig(channels=2, layers=1)
FORM = (2, 1, 1)  # blocks, layers, padding
FAKES = {"a_to_b": "b", "b_to_a": "a"}


def game(config=None, count=1, generator=GENERATOR, discriminator=DISCRIMINATOR):
    batch = BatchConfig(real_per_replica=count)
    return (config or CycleGANConfig(pool=3)).build(
        problem(MODEL, generator=generator, discriminator=discriminator, batch=batch)
    )


def arrays(module):
    return {name: value.detach().double().numpy().copy() for name, value in module.state_dict().items()}


def lively(module, seed):
    """Weights that are not tiny, biases that are not 0, in float64."""
    random = torch.Generator().manual_seed(seed)
    for parameter in module.double().parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=random, dtype=torch.float64)
    return module


def images(count, seed):
    return np.random.default_rng(seed).uniform(-1, 1, (count, 2, 12, 12))


# The networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (TranslatorConfig(blocks=9), 11_378_179),
        (TranslatorConfig(blocks=6), 7_837_699),
        (PatchDiscriminatorConfig(), 2_764_737),
    ],
)
def test_the_parameters_are_as_many_as_the_official_code_prints(config, count):
    with torch.device("meta"):
        network = config.build(ModelConfig(resolution=256, classes=0))
    assert sum(parameter.numel() for parameter in network.parameters()) == count


@pytest.mark.parametrize(
    ("side", "padding", "found"), [(256, 1, 30), (128, 1, 14), (64, 1, 6), (256, 2, 35), (128, 2, 19)]
)
def test_the_map_of_patches_has_the_official_size(side, padding, found):
    config = PatchDiscriminatorConfig(channels=1, padding=padding)
    assert config.map_side(side) == found
    with torch.device("meta"):
        network = config.build(ModelConfig(resolution=side, classes=0))
        assert network(torch.empty(1, 3, side, side)).shape == (1, 1, found, found)


def test_a_score_sees_70_pixels_and_no_more():
    """The size of the patch, by a gradient; instance norm, which couples all pixels, is taken out."""
    network = PatchDiscriminatorConfig(channels=2).build(ModelConfig(resolution=256, classes=0)).double()
    network.layers = nn.Sequential(*[layer for layer in network.layers if not isinstance(layer, nn.GroupNorm)])
    x = torch.randn(1, 3, 256, 256, dtype=torch.float64, requires_grad=True)
    network(x)[0, 0, 15, 15].backward()
    rows = x.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert len(rows) == int(rows[-1] - rows[0]) + 1 == 70


def test_weights_begin_as_in_the_official_code():
    torch.manual_seed(0)
    network = TranslatorConfig(blocks=2, affine=True).build(ModelConfig(resolution=32, classes=0))
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert layer.bias.abs().max() == 0
        if isinstance(layer, nn.GroupNorm):
            assert layer.weight.mean().item() == pytest.approx(1, abs=0.01)
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(("affine", "bias", "padding"), [(False, True, 1), (True, False, 2)])
def test_both_networks_equal_the_independent_form(affine, bias, padding, count, layout):
    """The PyTorch code's layers and the Lua code's, in both layouts: with one sample torch's instance norm is wrong in one."""
    G = lively(TranslatorConfig(channels=2, blocks=2, affine=affine, bias=bias).build(MODEL), 1)
    D = lively(
        PatchDiscriminatorConfig(channels=2, layers=2, affine=affine, bias=bias, padding=padding).build(MODEL), 2
    )
    x = images(count, 3)
    for network, form in (
        (G.to(memory_format=layout), lambda params, grads: translate(params, grads, x, 2)),
        (D.to(memory_format=layout), lambda params, grads: judge(params, grads, x, 2, padding)),
    ):
        grads: dict[str, np.ndarray] = {}
        expected, back = form(arrays(network), grads)
        given = torch.from_numpy(x).requires_grad_(True)
        found = network(given)
        towards = np.random.default_rng(4).normal(size=expected.shape)
        found.backward(torch.from_numpy(towards))
        np.testing.assert_allclose(found.detach().numpy(), expected, rtol=0, atol=1e-9)
        np.testing.assert_allclose(given.grad.numpy(), back(towards), rtol=0, atol=1e-9)
        assert grads.keys() == dict(network.named_parameters()).keys()
        for name, parameter in network.named_parameters():
            np.testing.assert_allclose(parameter.grad.numpy(), grads[name], rtol=0, atol=1e-9, err_msg=name)


# An iteration ---------------------------------------------------------------------------------------------------------


class Reference:
    """Networks, pools and both Adams of the independent form."""

    def __init__(self, config, modules, seed=0):
        self.config, self.seed = config, seed
        self.nets = {name: arrays(module) for name, module in modules.items()}
        self.adams = {name: Adam(2e-4, 0.5, 0.999) for name in modules}
        self.pools = {domain: ListPool(config.pool) for domain in "ab"}
        self.losses, self.grads = {}, {}

    def iterate(self, iteration, a, b, form=FORM):
        real, fakes = {"a": a, "b": b}, {}
        steps = [("a_to_b", "b_to_a"), ("discriminator_b", "discriminator_a")]
        if self.config.order == "alternating":
            steps = [("a_to_b",), ("discriminator_b",), ("b_to_a",), ("discriminator_a",)]
        for movers in steps:
            if movers[0] in FAKES:
                losses, found, (fake_a, fake_b) = generators_loss(
                    self.nets, a, b, form, identity=self.config.identity, movers=movers
                )
                self.losses |= losses
                self.grads |= found
                fakes |= {domain: {"a": fake_a, "b": fake_b}[domain] for domain in map(FAKES.get, movers)}
            else:
                for name in movers:
                    shown = self.shown(name[-1], iteration, fakes[name[-1]])
                    loss, self.grads[name] = discriminator_loss(
                        self.nets[name], real[name[-1]], shown, form, self.config.discriminator_weight
                    )
                    self.losses[f"adversarial of {name}"] = loss
            for name in movers:
                self.adams[name].step(self.nets[name], self.grads[name])

    def shown(self, domain, iteration, fake):
        found = []
        for index, image in enumerate(fake):
            text = f"{self.seed}/pool of {domain}/{iteration * len(fake) + index}/0/0".encode()
            drawn = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1
            found.append(self.pools[domain].query(image, drawn % 2 == 1, (drawn // 2) % max(self.config.pool, 1)))
        return np.stack(found)


@pytest.mark.parametrize(
    "config",
    [
        CycleGANConfig(pool=3),
        CycleGANConfig(pool=0, identity=0.0, discriminator_weight=1.0),
        CycleGANConfig(pool=2, order="alternating", discriminator_weight=1.0),
    ],
    ids=["official", "no pool, no identity", "Lua's order"],
)
@pytest.mark.parametrize("count", [1, 2])
def test_whole_iterations_equal_the_independent_form(config, count):
    """Losses, gradients, both updates and the pools, over 6 iterations, so that the pools have swapped."""
    method, launch = game(config, count), read_launch()
    names = [name for networks in method.players.values() for name in networks]
    modules = {name: lively(method.build(name), number) for number, name in enumerate(names)}
    reference = Reference(config, modules)
    adam = AdamConfig(beta1=0.5, beta2=0.999, epsilon_placement="inside_correction")
    players = {
        player: Player(player, {name: modules[name] for name in networks}, adam, launch)
        for player, networks in method.players.items()
    }
    memory = {
        0: {name: value.double() if value.is_floating_point() else value for name, value in method.memory(0).items()}
    }
    for iteration in range(6):
        a, b = images(count, 10 * iteration), images(count, 10 * iteration + 1)
        real = {"data": {"image": torch.from_numpy(a)}, "b": {"image": torch.from_numpy(b)}}
        scalars = run_iteration(
            method,
            players,
            method.turns(iteration),
            lambda turn, iteration=iteration, real=real: [method.draw(turn, Keys(0, iteration, turn.number, 0), real)],
            memory,
            launch=launch,
            replicas=1,
            rate_factor=1.0,
            seed_layers=lambda turn, replica: None,
        )
        reference.iterate(iteration, a, b)
        for domain in "ab":
            expected = reference.losses[f"adversarial of discriminator_{domain}"]
            assert scalars[f"discriminators/adversarial_{domain}"].item() == pytest.approx(expected, rel=1e-6)
            assert scalars[f"generators/cycle_{domain}"].item() > 0
        for name, module in modules.items():
            for key, value in module.named_parameters():
                gradient = reference.grads[name][key]
                if value.grad is not None:  # in Lua's order the other network's turn has cleared it
                    np.testing.assert_allclose(value.grad.numpy(), gradient, rtol=0, atol=1e-9, err_msg=f"{name} {key}")
                # The true gradient of a bias in front of a norm is 0, and Adam divides its rounding by 1e-8.
                noisy = np.abs(gradient).max() < 1e-12
                np.testing.assert_allclose(
                    value.detach().numpy(), reference.nets[name][key], rtol=0, atol=1e-3 if noisy else 1e-9, err_msg=key
                )
    for domain, pool in reference.pools.items():
        if config.pool:
            np.testing.assert_allclose(memory[0][f"pool_images_{domain}"].numpy(), np.stack(pool.images), atol=1e-9)


def test_the_losses_that_are_logged_are_the_papers():
    """To 1e-9 in float64: the loop's own scalars are float32."""
    method = game(CycleGANConfig(pool=0))
    modules = {name: lively(method.build(name), 5 + len(name)) for of in method.players.values() for name in of}
    a, b = images(2, 0), images(2, 1)
    draw = {"real_a": torch.from_numpy(a), "real_b": torch.from_numpy(b)}
    found, memory = method.loss(method.turns(0)[0], modules, draw, method.memory(0))
    expected, *_ = generators_loss({name: arrays(module) for name, module in modules.items()}, a, b, FORM)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value, abs=1e-9), name
    assert {"real_a", "real_b", "fake_a", "fake_b"} == memory.keys()
    # What is remembered has no graph and is nobody's alias.
    assert not any(value.requires_grad for value in memory.values())


# Orders and memory ----------------------------------------------------------------------------------------------------


def test_the_discriminators_see_images_made_before_the_generators_moved():
    method = game(CycleGANConfig(pool=0))
    turns = method.turns(7)
    assert [turn.player for turn in turns] == ["generators", "discriminators"]
    assert dict(turns[0].reads) == {"data": 1, "b": 1}
    assert not turns[1].reads
    seen = []

    def spy(images):
        seen.append(images)
        return images.sum() * torch.ones(1, 1, 2, 2)

    memory = {
        **method.memory(0),
        **{name: torch.full((1, 2, 12, 12), n) for n, name in ((1.0, "real_b"), (2.0, "fake_b"))},
    }
    networks = {"discriminator_b": spy, "discriminator_a": spy}  # and no generator
    method.loss(turns[1], networks, {}, memory)
    assert [float(images.mean()) for images in seen] == [1, 2, 0, 0]  # of b first: real, fake


def test_each_domain_has_its_own_pool_and_coins():
    rules = [PoolRule(50, 0, domain, replica) for domain in "ab" for replica in (0, 1)]
    decided = {tuple(rule.decide(query) for query in range(50, 90)) for rule in rules}
    assert len(decided) == 4


@pytest.mark.parametrize(("count", "queries"), [(1, 10_000), (3, 2_001)])
def test_a_pool_equals_its_pure_form_over_10_000_queries(count, queries):
    """The running pool against lists, and against the query that the keys say; with interruptions, which leave tensors."""
    rule, pool, lists = PoolRule(50, 9, "a", 2), empty_pool(50, (1, 1, 1)), ListPool(50)
    ages, old = [], 0
    for first in range(0, queries, count):
        new = torch.arange(first, first + count, dtype=torch.float32)[:, None, None, None]
        given, pool = query_pool(pool, new, rule.decisions(first, count))
        for query, found in zip(range(first, first + count), given.flatten().int().tolist(), strict=True):
            what, slot = rule.decide(query)
            assert found == lists.query(query, what != PASS, slot)
            if query % 7 == 0:  # the pure form of one query looks back some 450
                assert found == rule.source(query)
            ages.append(query - found)
            old += found != query
        if first % 1000 < count:  # as a checkpoint has it
            pool = {name: value.clone() for name, value in pool.items()}
            check_pool(rule, first + count, pool["queries"])
    assert pool["queries"].tolist() == rule.held(queries)
    assert pool["images"].flatten().int().tolist() == pool["queries"].tolist()
    assert old / len(ages) == pytest.approx(0.5, abs=0.03)
    assert np.mean([age for age in ages if age]) == pytest.approx(100, rel=0.15)


@pytest.mark.parametrize("queries", [0, 1, 25, 49, 50, 51, 400])
def test_a_pool_that_was_filled_otherwise_is_refused(queries):
    rule = PoolRule(50, 9, "a", 2)
    held = torch.tensor(rule.held(queries))
    assert int((held >= 0).sum()) == min(50, queries)
    check_pool(rule, queries, held)
    for change in ({"seed": 10}, {"domain": "b"}, {"replica": 1}) if queries > 60 else ():
        with pytest.raises(
            CheckpointError, match=r"^memory: slot \d+ of the pool of [ab], replica \d, holds the image of"
        ):
            check_pool(PoolRule(**{"size": 50, "seed": 9, "domain": "a", "replica": 2} | change), queries, held)
    with pytest.raises(CheckpointError, match=r"resume with the run\.seed"):
        check_pool(rule, queries + (1 if queries < 50 else 40), held)


def test_a_pool_keeps_copies():
    pool, image = empty_pool(2, (1, 2, 2)), torch.ones(1, 1, 2, 2, requires_grad=True)
    given, after = query_pool(pool, image, PoolRule(2, 0, "a", 0).decisions(0, 1))
    with torch.no_grad():
        image.zero_()
    assert given.sum() == after["images"].sum() == 4
    assert pool["images"].sum() == 0
    assert not after["images"].requires_grad


def test_real_images_are_resized_and_cut_by_the_keys():
    method = game(CycleGANConfig(load_size=14), count=2)
    large = torch.nn.functional.interpolate(torch.rand(2, 2, 3, 3), (20, 20), mode="bicubic").clamp(-1, 1)
    real = {"data": {"image": large}, "b": {"image": large}}
    turn = method.turns(0)[0]
    found = [method.draw(turn, Keys(0, iteration, 0, 0), real) for iteration in (0, 0, 1)]
    assert found[0]["real_a"].shape == (2, 2, 12, 12)
    assert torch.equal(found[0]["real_a"], found[1]["real_a"])
    places = {float(draw[name][0, 0, 0, 0]) for draw in (found[0], found[2]) for name in ("real_a", "real_b")}
    assert len(places) > 1


def test_translating_takes_any_size_or_says_why_not():
    method = game()
    modules = {name: lively(method.build(name), 1).float().eval() for name in method.players["generators"]}
    sampler = method.sampler(modules)
    source = torch.Generator()
    for height, width in ((12, 12), (8, 8), (13, 18), (31, 9)):
        assert sampler.remake(torch.rand(2, height, width), source).shape == (2, height, width)
    picture = torch.rand(2, 16, 20) * 2 - 1
    assert torch.equal(sampler.remake(picture, source), modules["a_to_b"](picture[None])[0])
    assert torch.equal(sampler.towards("b_to_a").remake(picture, source), modules["b_to_a"](picture[None])[0])
    with pytest.raises(Exception, match=r"^7x40 px, too small"):
        sampler.remake(torch.rand(2, 40, 7), source)
