"""Semi-supervised GANs: losses and gradients against an independent form in NumPy, which images are looked at, refusals."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support.games import losses, problem, turn_of
from trainer.foundation.errors import SettingError
from trainer.foundation.keys import Keys
from trainer.methods import sgan
from trainer.methods.protocol import Shards, results_of
from trainer.methods.schedule import BatchConfig, ScheduleConfig
from trainer.methods.sgan import SGANConfig
from trainer.models import ModelConfig
from trainer.models.improved import ImprovedMLPDiscriminatorConfig, ImprovedMLPGeneratorConfig
from trainer.models.resnet import ResNetDiscriminatorConfig

MODEL = ModelConfig(resolution=4, image_channels=1, classes=3, latent_dim=5, latent_distribution="unit_uniform")
G_SMALL = ImprovedMLPGeneratorConfig(widths=(6, 7))
D_SMALL = ImprovedMLPDiscriminatorConfig(widths=(8, 6), input_noise=0, noise=0)
N = 5


def sgan_problem(**settings):
    settings = {"generator": G_SMALL, "discriminator": D_SMALL, **settings}
    settings.setdefault("batch", BatchConfig(real_per_replica=N, generated_per_replica=N))
    settings.setdefault("schedule", ScheduleConfig(discriminator_steps=1, generator_first=False))
    return problem(settings.pop("model", MODEL), **settings)


# The losses as formulas ------------------------------------------------------------------------------------------------


def lse(o):
    top = o.max(1, keepdims=True)
    return (top + np.log(np.exp(o - top).sum(1, keepdims=True)))[:, 0]


def softmax(o):
    e = np.exp(o - o.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def logits(rows, seed):
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 3, (rows, 4))).requires_grad_()


def test_the_labelled_loss():
    o, y = logits(6, 0), torch.tensor([0, 3, 1, 1, 2, 0])
    loss = sgan.labelled_loss(o, y)
    loss.backward()
    a = o.detach().numpy()
    expected = -a[np.arange(6), y].mean() + lse(a).mean()
    assert abs(loss.item() - expected) < 1e-12
    np.testing.assert_allclose(o.grad.numpy(), (softmax(a) - np.eye(4)[y]) / 6, atol=1e-12)


def test_the_unlabelled_loss_and_its_gradient():
    """-1/2 softmax (1 - p_real) on real, +1/2 softmax p_real on generated images, over the batch."""
    real, fake = logits(6, 1), logits(3, 2)
    loss = sgan.unlabelled_loss(real, fake)
    loss.backward()
    a, b = real.detach().numpy(), fake.detach().numpy()
    expected = -0.5 * lse(a).mean() + 0.5 * np.log1p(np.exp(lse(a))).mean() + 0.5 * np.log1p(np.exp(lse(b))).mean()
    assert abs(loss.item() - expected) < 1e-12
    np.testing.assert_allclose(
        real.grad.numpy(), -0.5 * softmax(a) * (1 - sigmoid(lse(a)))[:, None] / 6, rtol=1e-10, atol=1e-14
    )
    np.testing.assert_allclose(
        fake.grad.numpy(), 0.5 * softmax(b) * sigmoid(lse(b))[:, None] / 3, rtol=1e-10, atol=1e-14
    )


def test_odenas_loss_is_cross_entropy_over_one_class_more():
    """With K + 1 logits, of which the last is subtracted from the others."""
    whole = np.random.default_rng(3).normal(0, 2, (7, 5))
    relative = torch.from_numpy(whole[:, :4] - whole[:, 4:]).requires_grad_()
    y = np.array([0, 3, 1, 2, 4, 4, 4])  # the last three are generated
    loss = sgan.fake_class_loss(relative[:4], torch.from_numpy(y[:4]), relative[4:])
    loss.backward()
    log_p = whole - lse(whole)[:, None]
    weights = np.array([0.5 / 4] * 4 + [0.5 / 3] * 3)
    assert abs(loss.item() + (weights * log_p[np.arange(7), y]).sum()) < 1e-12
    expected = weights[:, None] * (softmax(whole) - np.eye(5)[y])
    np.testing.assert_allclose(relative.grad.numpy(), expected[:, :4], rtol=1e-10, atol=1e-14)
    generator = sgan.saturating_loss(relative[4:].detach())
    assert abs(generator.item() - 0.5 * log_p[4:, 4].mean()) < 1e-12


@pytest.mark.parametrize("how", ["squared", "absolute"])
def test_feature_matching_compares_means_and_takes_real_features_as_constants(how):
    real, fake = logits(6, 4), logits(3, 5)
    loss = sgan.matching_loss(real, fake, how)
    loss.backward()
    difference = fake.detach().numpy().mean(0) - real.detach().numpy().mean(0)
    expected = (difference**2).mean() if how == "squared" else np.abs(difference).mean()
    gradient = (2 * difference if how == "squared" else np.sign(difference)) / 4 / 3
    assert abs(loss.item() - expected) < 1e-12
    np.testing.assert_allclose(fake.grad.numpy(), np.tile(gradient, (3, 1)), rtol=1e-10, atol=1e-14)
    assert real.grad is None


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_losses_are_finite_at_large_logits(scale):
    o = torch.full((2, 3), scale).requires_grad_()
    y = torch.tensor([0, 1])
    for loss in (
        sgan.labelled_loss(o, y),
        sgan.unlabelled_loss(o, o),
        sgan.fake_class_loss(o, y, o),
        sgan.saturating_loss(o),
    ):
        (gradient,) = torch.autograd.grad(loss, o, retain_graph=True)
        assert loss.isfinite()
        assert gradient.isfinite().all()


# The whole method against NumPy ---------------------------------------------------------------------------------------


class Layer:
    """scale * W / |W|, and the gradients of W, scale and bias; of W with respect to its length as well."""

    def __init__(self, layer):
        self.v, self.b, self.g = (t.detach().numpy() for t in (layer.weight, layer.bias, layer.scale))
        self.length = np.sqrt(1e-6 + (self.v**2).sum(1, keepdims=True))
        self.grads = [0, 0, 0]

    def forward(self, x):
        return x @ (self.v * self.g[:, None] / self.length).T + self.b

    def backward(self, x, dy):
        W = self.v * self.g[:, None] / self.length
        dW = dy.T @ x
        along = (dW * self.v).sum(1, keepdims=True)
        dv = self.g[:, None] * (dW / self.length - self.v * along / self.length**3)
        self.grads = [
            old + new for old, new in zip(self.grads, (dv, (along / self.length)[:, 0], dy.sum(0)), strict=True)
        ]
        return dy @ W


class NumpyD:
    def __init__(self, network):
        self.layers = [Layer(layer) for layer in (*network.hidden, network.logits.layer)]

    def forward(self, x):
        inputs = []
        for layer in self.layers:
            inputs.append(x)
            y = layer.forward(x)
            x = np.maximum(y, 0)
        return y, inputs

    def backward(self, inputs, dl):
        for number, (layer, x) in reversed(list(enumerate(zip(self.layers, inputs, strict=True)))):
            dl = layer.backward(x, dl)
            if number:
                dl = dl * (x > 0)
        return dl


@pytest.fixture
def game():
    torch.manual_seed(0)
    config = SGANConfig()
    method = config.build(sgan_problem())
    networks = {name: method.build(name).double() for name in ("generator", "discriminator")}
    networks["discriminator"].hidden[0].bias.data.normal_()
    random = np.random.default_rng(7)
    labelled, unlabelled = random.random((N, 16)), random.random((N, 16))
    y = random.integers(0, 3, N)
    draw = {
        "latents": torch.from_numpy(random.random((N, 5))),
        "labels": torch.zeros(N, dtype=torch.int64),
        "real_images": torch.from_numpy(2 * labelled.reshape(N, 1, 4, 4) - 1),
        "real_labels": torch.from_numpy(y),
        "images": torch.from_numpy(2 * unlabelled.reshape(N, 1, 4, 4) - 1),
    }
    return method, networks, draw, (labelled, y, unlabelled)


def test_the_discriminators_turn_against_numpy(game):
    method, networks, draw, (labelled, y, unlabelled) = game
    with torch.no_grad():
        fake = (networks["generator"](draw["latents"], draw["labels"]).numpy().reshape(N, 16) + 1) / 2
    found = losses(method, "discriminator", networks, draw)
    found["loss"].backward()
    D = NumpyD(networks["discriminator"])
    (o, at_l), (u, at_u), (f, at_f) = map(D.forward, (labelled, unlabelled, fake))
    loss = -o[np.arange(N), y].mean() + lse(o).mean()
    loss += -0.5 * lse(u).mean() + 0.5 * np.log1p(np.exp(lse(u))).mean() + 0.5 * np.log1p(np.exp(lse(f))).mean()
    assert abs(found["loss"].item() - loss) < 1e-10
    D.backward(at_l, (softmax(o) - np.eye(3)[y]) / N)
    D.backward(at_u, -0.5 * softmax(u) * (1 - sigmoid(lse(u)))[:, None] / N)
    D.backward(at_f, 0.5 * softmax(f) * sigmoid(lse(f))[:, None] / N)
    assert_gradients(networks["discriminator"], D)


def assert_gradients(network, D):
    for layer, form in zip((*network.hidden, network.logits.layer), D.layers, strict=True):
        np.testing.assert_allclose(layer.weight.grad.numpy(), form.grads[0], rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(layer.bias.grad.numpy(), form.grads[2], rtol=1e-9, atol=1e-10)
    last = network.logits.layer
    np.testing.assert_allclose(last.scale.grad.numpy(), D.layers[-1].grads[1], rtol=1e-9, atol=1e-10)


def test_the_generators_turn_against_numpy(game):
    """The gradient that reaches the images, by feature matching on the layer before the logits."""
    method, networks, draw, (_, _, unlabelled) = game
    images = {}
    G = networks["generator"]

    def keeping(latents, labels):
        images["fake"] = G(latents, labels)
        images["fake"].retain_grad()
        return images["fake"]

    found = losses(method, "generator", {**networks, "generator": keeping}, draw)["loss"]
    found.backward()
    fake = (images["fake"].detach().numpy().reshape(N, 16) + 1) / 2
    D = NumpyD(networks["discriminator"])
    (_, at_fake), (_, at_real) = D.forward(fake), D.forward(unlabelled)
    difference = at_fake[-1].mean(0) - at_real[-1].mean(0)
    assert abs(found.item() - (difference**2).mean()) < 1e-12
    gradient = np.tile(2 * difference / difference.size / N, (N, 1)) * (at_fake[-1] > 0)
    for number in range(len(D.layers) - 2, -1, -1):
        gradient = D.layers[number].backward(at_fake[number], gradient)
        if number:
            gradient = gradient * (at_fake[number] > 0)
    np.testing.assert_allclose(images["fake"].grad.numpy().reshape(N, 16), gradient / 2, rtol=1e-9, atol=1e-13)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in G.parameters())


# Who is looked at ------------------------------------------------------------------------------------------------------


def fields(seed):
    source = torch.Generator().manual_seed(seed)
    images = torch.rand(N, 1, 4, 4, generator=source) * 2 - 1
    return {"image": images, "class": torch.randint(3, (N,), generator=source)}


def test_hidden_labels_change_nothing():
    method = SGANConfig().build(sgan_problem())
    turn = turn_of(method, "discriminator")
    real = {"labelled": fields(0), "data": fields(1)}
    drawn = method.draw(turn, Keys(0, 3, 1, 0), real)
    flipped = {**real, "data": {**real["data"], "class": 2 - real["data"]["class"]}}
    again = method.draw(turn, Keys(0, 3, 1, 0), flipped)
    assert drawn.keys() == again.keys()
    assert all(torch.equal(drawn[name], again[name]) for name in drawn)
    assert torch.equal(drawn["real_labels"], real["labelled"]["class"])
    without = method.draw(turn, Keys(0, 3, 1, 0), {**real, "data": {"image": real["data"]["image"]}})
    assert drawn.keys() == without.keys()


def test_turns_of_each_form():
    def told(form):
        method = SGANConfig(form=form).build(sgan_problem())
        return [(turn.player, dict(turn.reads), turn.made) for turn in method.turns(0)], dict(method.first)

    both = {"labelled": N, "data": N}
    assert told("feature_matching") == (
        [("discriminator", both, N), ("generator", {"data": N}, N)],
        {"data": 500},
    )
    assert told("fake_class") == (
        [("discriminator", {"labelled": N}, N), ("generator", {}, N)],
        {"labelled": 500},
    )
    assert told("supervised") == ([("discriminator", {"labelled": N}, 0)], {"labelled": 500})
    assert results_of(SGANConfig().build(sgan_problem())) == ("generator", "discriminator")


def test_the_start_gives_every_layer_of_d_mean_0_and_deviation_1():
    torch.manual_seed(0)
    method = SGANConfig().build(sgan_problem())
    networks = {name: method.build(name).double() for name in ("generator", "discriminator")}
    seen = []
    D = networks["discriminator"]
    method.start(networks, {"data": {"image": torch.rand(400, 1, 4, 4, dtype=torch.float64) * 2 - 1}})
    images = {"image": torch.rand(400, 1, 4, 4, dtype=torch.float64) * 2 - 1}
    method.start(networks, {"data": images})
    for layer in (*D.hidden, D.logits.layer):
        layer.register_forward_hook(lambda *call: seen.append(call[2].detach()))
    D(images["image"], torch.zeros(400, dtype=torch.int64))
    for values in seen:
        torch.testing.assert_close(values.mean(0), torch.zeros_like(values[0]), atol=1e-9, rtol=0)
        torch.testing.assert_close(values.std(0, correction=0), torch.ones_like(values[0]), atol=1e-9, rtol=0)


# Refusals --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "settings", "sentence"),
    [
        (SGANConfig(), {"generator": None}, "generator: is missing"),
        (SGANConfig(), {"model": replace(MODEL, classes=0)}, r"model\.classes: is 0, but objective\.name sgan trains"),
        (
            SGANConfig(),
            {"discriminator": ResNetDiscriminatorConfig()},
            r"discriminator\.name: sgan needs a discriminator",
        ),
    ],
)
def test_what_does_not_fit_is_refused(config, settings, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}"):
        config.check(sgan_problem(**settings))


def shards(samples=(10, 10, 10), side=4, labelled=True):
    from data_pipeline.manifest.format import ClassInfo, ImageField, Manifest, ShardInfo

    classes = tuple(ClassInfo(f"c{k}", str(k), n) for k, n in enumerate(samples)) if labelled else ()
    whole = (ShardInfo(name="a", samples=sum(samples), bytes=1, sha256="", index="a", index_sha256=""),)
    return Shards("here", Manifest(classes=classes, content=ImageField(side, side, 1), shards=whole, fingerprint="f"))


@pytest.mark.parametrize(
    ("labelled", "data", "sentence"),
    [
        (shards(labelled=False), shards(), r"sources\.labelled\.shards: the samples have no class"),
        (shards((10, 10)), shards(), r"model\.classes: is 3, but the shards of sources\.labelled hold 2 classes"),
        (
            shards(side=8),
            shards(),
            r"model\.resolution: is 4, but the shards of sources\.labelled in here hold images with 8",
        ),
        (shards(), shards(side=8), r"model\.resolution: is 4, but the shards of data in here hold images with 8"),
        (shards((90, 90, 90)), shards(), r"data\.shards: hold 30 images, fewer than the 270 labelled ones"),
    ],
)
def test_sources_that_do_not_fit_are_refused(labelled, data, sentence):
    method = SGANConfig().build(sgan_problem())
    with pytest.raises(SettingError, match=f"^{sentence}"):
        method.check({"labelled": labelled, "data": data})
    method.check({"labelled": shards((2, 2, 2)), "data": shards(labelled=False)})
