"""The iteration follows the official updater, draw by draw, in float64.

The reference is written from the official code's facts (updater.py, links, Chainer's Adam) on tensors under the official
names, and shares no line with trainer/: gradients are torch.autograd's of this functional form.
"""

import itertools
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.support.games import draw_of, method_of
from tests.support.official_arrays import CLASSES, LATENT, official_discriminator, official_generator
from trainer.methods.adversarial import AdversarialConfig
from trainer.methods.schedule import ScheduleConfig
from trainer.models import ModelConfig
from trainer.models.resnet import ResNetDiscriminatorConfig, ResNetGeneratorConfig
from trainer.official.names import official_names
from trainer.players.optimizers import AdamConfig
from trainer.players.player import Player
from trainer.processes.launch import read_launch
from trainer.training.iteration import run_iteration

MOVED = ("/u", "/avg_mean", "/avg_var")
REAL, GENERATED, D_STEPS, ITERATIONS = 4, 6, 5, 4


class Updater:
    """One worker's networks under the official names, and the update of all workers together (ChainerMN's mean)."""

    def __init__(self, loss="hinge"):
        self.nets = {
            name: {k: torch.from_numpy(a).double() for k, a in arrays.items() if not k.endswith("/N")}
            for name, arrays in (
                ("gen", official_generator(32, ch=3)),
                ("dis", official_discriminator(32, ch=4)),
            )
        }
        self.adam = {name: {"t": 0, "m": {}, "v": {}} for name in self.nets}
        self.loss = loss

    def conv(self, x, a, name):
        return F.conv2d(x, a[f"{name}/W"], a[f"{name}/b"], padding=a[f"{name}/W"].shape[-1] // 2)

    def norm(self, x, a, name, y, worker):
        """Chainer: biased variance in the pass, unbiased in the running average; decay 0.9, eps 2e-5."""
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        m = x.numel() / x.shape[1]
        if worker == 0:  # the snapshot is worker 0's
            with torch.no_grad():
                a[f"{name}/avg_mean"].mul_(0.9).add_(0.1 * mean)
                a[f"{name}/avg_var"].mul_(0.9).add_(0.1 * var * m / (m - 1))
        h = (x - mean[:, None, None]) / (var + 2e-5).sqrt()[:, None, None]
        if f"{name}/gamma" in a:
            return h * a[f"{name}/gamma"][:, None, None] + a[f"{name}/beta"][:, None, None]
        return h * a[f"{name}/gammas/W"][y][:, :, None, None] + a[f"{name}/betas/W"][y][:, :, None, None]

    def generate(self, a, z, y, worker):
        h = (z @ a["l1/W"].T + a["l1/b"]).view(len(z), -1, 4, 4)
        for n in (2, 3, 4):
            b = f"block{n}"
            up = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
            r = F.relu(self.norm(h, a, f"{b}/b1", y, worker)).repeat_interleave(2, 2).repeat_interleave(2, 3)
            r = F.relu(self.norm(self.conv(r, a, f"{b}/c1"), a, f"{b}/b2", y, worker))
            h = self.conv(r, a, f"{b}/c2") + self.conv(up, a, f"{b}/c_sc")
        return torch.tanh(self.conv(F.relu(self.norm(h, a, "b5", y, worker)), a, "c5"))

    def normalised(self, a):
        """One pass of spectral norm over all layers: a copy of the arrays with W / sigma, u moved in place."""
        out = dict(a)
        for name in [k.removesuffix("/u") for k in a if k.endswith("/u")]:
            w, u = a[f"{name}/W"], a[f"{name}/u"]
            matrix = w.reshape(len(w), -1)
            with torch.no_grad():
                v = u @ matrix
                v = v / (v.norm() + 1e-12)
                new = v @ matrix.T
                new = new / (new.norm() + 1e-12)
                a[f"{name}/u"] = new.clone()
            out[f"{name}/W"] = w / ((new @ matrix) * v).sum()
        return out

    def judge(self, a, x, y):
        """`a` as `normalised` gives it."""
        r = F.avg_pool2d(self.conv(F.relu(self.conv(x, a, "block1/c1")), a, "block1/c2"), 2)
        h = r + self.conv(F.avg_pool2d(x, 2), a, "block1/c_sc")
        for n in (2, 3, 4):
            r = self.conv(F.relu(self.conv(F.relu(h), a, f"block{n}/c1")), a, f"block{n}/c2")
            h = F.avg_pool2d(r, 2) + F.avg_pool2d(self.conv(h, a, "block2/c_sc"), 2) if n == 2 else r + h
        h = F.relu(h).sum((2, 3))
        return (h @ a["l5/W"].T)[:, 0] + (a["l_y/W"][y] * h).sum(1)

    def losses(self, real, fake):
        if self.loss == "hinge":
            return F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean()
        return F.softplus(-real).mean() + F.softplus(fake).mean()

    def step(self, name, loss, alpha):
        """Chainer's Adam: lr = alpha sqrt(1 - beta2^t) / (1 - beta1^t); p -= lr m / (sqrt(v) + eps)."""
        net, state = self.nets[name], self.adam[name]
        keys = [k for k in net if not k.endswith(MOVED)]
        gradients = torch.autograd.grad(loss, [net[k] for k in keys])
        state["t"] += 1
        lr = alpha * np.sqrt(1 - 0.9 ** state["t"]) / (1 - 0.0 ** state["t"])
        for k, g in zip(keys, gradients, strict=True):
            m, v = (state[s].get(k, torch.zeros_like(g)) for s in "mv")
            state["m"][k], state["v"][k] = m + (1 - 0.0) * (g - m), v + (1 - 0.9) * (g * g - v)
            net[k] = net[k].detach() - lr * state["m"][k] / (state["v"][k].sqrt() + 1e-8)

    def live(self, name):
        for k, value in self.nets[name].items():
            self.nets[name][k] = value.detach().clone().requires_grad_(not k.endswith(MOVED))

    def update_core(self, generator_draws, discriminator_draws, alpha):
        gen, dis = self.nets["gen"], self.nets["dis"]
        for i, draws in enumerate(discriminator_draws):
            if i == 0:
                self.live("gen")
                weights = self.normalised(dis)
                total = 0
                for worker, (z, y) in enumerate(generator_draws):
                    fake = self.judge(weights, self.generate(gen, z, y, worker), y)
                    loss = -fake.mean() if self.loss == "hinge" else F.softplus(-fake).mean()
                    total = total + loss / len(generator_draws)
                self.step("gen", total, alpha)
            self.live("dis")
            passes = [self.normalised(dis), self.normalised(dis)]  # real, then generated
            total = 0
            for worker, (x, y, z, c) in enumerate(draws):
                real = self.judge(passes[0], x, y)
                with torch.no_grad():
                    images = self.generate(gen, z, c, worker)
                total = total + self.losses(real, self.judge(passes[1], images, c)) / len(draws)
            self.step("dis", total, alpha)


def draws_of(random, workers):
    def numbers(*shape):
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    def classes(count):
        return torch.randint(CLASSES, (count,), generator=random)

    generator = [(numbers(GENERATED, LATENT), classes(GENERATED)) for _ in range(workers)]
    discriminator = [
        [(numbers(REAL, 3, 32, 32).tanh(), classes(REAL), numbers(REAL, LATENT), classes(REAL)) for _ in range(workers)]
        for _ in range(D_STEPS)
    ]
    return generator, discriminator


def players(updater, adam):
    model = ModelConfig(resolution=32, classes=CLASSES, latent_dim=LATENT)
    G = ResNetGeneratorConfig(channels=3).build(model)
    D = ResNetDiscriminatorConfig(channels=4).build(model)
    for module, name in ((G, "gen"), (D, "dis")):
        module.double()
        state = {ours: updater.nets[name][theirs] for theirs, ours in official_names(module).items()}
        module.load_state_dict({k: v[0] if k.endswith(".u") else v for k, v in state.items()})
    launch = read_launch()
    modules = {"generator": G, "discriminator": D}
    return {name: Player(name, {name: module}, adam, launch) for name, module in modules.items()}, launch


def follow(workers, loss="hinge", objective=None, adam=None, generator_first=True):
    """Both through the same draws; yields, after each iteration, the largest error of every tensor over its scale."""
    updater = Updater(loss)
    pair, launch = players(updater, adam or AdamConfig())
    schedule = ScheduleConfig(discriminator_steps=D_STEPS, generator_first=generator_first)
    method = method_of(objective or AdversarialConfig(loss=loss), schedule=schedule)
    random = torch.Generator().manual_seed(7)
    for iteration in range(ITERATIONS):
        for_generator, for_discriminator = draws_of(random, workers)
        factor = 1 - iteration / 10  # a decaying learning rate
        updater.update_core(for_generator, for_discriminator, 2e-4 * factor)
        draws = [
            [draw_of(*worker) for worker in for_generator],
            *([draw_of(z, c, x, y) for x, y, z, c in step] for step in for_discriminator),
        ]
        run_iteration(
            method,
            pair,
            method.turns(iteration),
            lambda turn, draws=draws: draws[turn.number],
            {},
            launch=launch,
            replicas=workers,
            rate_factor=factor,
            seed_layers=lambda turn, replica: None,
        )
        errors = {}
        for player, name in (("generator", "gen"), ("discriminator", "dis")):
            module = pair[player].modules[player]
            state = module.state_dict()
            for theirs, ours in official_names(module).items():
                want = updater.nets[name][theirs].detach().view_as(state[ours])
                errors[f"{name}/{theirs}"] = ((state[ours] - want).abs().max() / (1 + want.abs().max())).item()
        yield errors


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("loss", ["hinge", "non_saturating"])
def test_every_tensor_follows_the_official_updater_to_rounding(workers, loss):
    for errors in follow(workers, loss):
        for name, error in errors.items():
            # The true gradient of a bias in front of batch norm is 0. Adam divides its rounding noise (1e-15) by eps
            # (1e-8), in the official code as here; only these biases and the means behind them see it.
            noisy = re.fullmatch(r"gen/(block\d/c\w+/b|.*avg_mean)", name)
            assert error < (2e-9 if noisy else 1e-11), name


@pytest.mark.parametrize(
    "change",
    [
        {"objective": AdversarialConfig(passes="joint")},  # one power iteration instead of two
        {"objective": AdversarialConfig(loss="wasserstein")},
        {"adam": AdamConfig(epsilon_placement="inside_correction", epsilon=1e-3)},
        {"adam": AdamConfig(beta2=0.999)},
        {"generator_first": False},
    ],
)
def test_another_choice_does_not_follow_it(change):
    """The comparison sees what it is there to see."""
    *_, errors = follow(1, **change)
    assert max(errors.values()) > 1e-6


def test_epsilon_stands_outside_the_bias_correction():
    """With an epsilon that matters: p -= alpha sqrt(1 - beta2^t) m / (sqrt(v) + eps), Chainer's form."""
    module = torch.nn.Linear(1, 1, bias=False).double()
    player = Player("generator", {"generator": module}, AdamConfig(learning_rate=0.1, epsilon=0.5), read_launch())
    weight, v = module.weight.item(), 0.0
    for t, gradient in enumerate(itertools.islice(itertools.cycle([0.3, -0.2]), 5), start=1):
        player.step([(module.weight * gradient).sum()], 1.0)
        v += 0.1 * (gradient**2 - v)
        weight -= 0.1 * np.sqrt(1 - 0.9**t) * gradient / (np.sqrt(v) + 0.5)
        assert module.weight.item() == pytest.approx(weight, rel=1e-12)
