"""The conditional GAN's networks, and its losses and gradients against an independent form in NumPy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.support.games import draw_of, losses, method_of
from trainer.methods.adversarial import AdversarialConfig
from trainer.models import ModelConfig
from trainer.models.maxout import Maxout, MaxoutDiscriminatorConfig, MLPGeneratorConfig

PAPER = ModelConfig(resolution=28, image_channels=1, classes=10, latent_dim=100, latent_distribution="unit_uniform")
SMALL = ModelConfig(resolution=4, image_channels=1, classes=3, latent_dim=5)
G_SMALL = MLPGeneratorConfig(latent_width=4, class_width=6, joint_width=7, weight_range=0.8)
D_SMALL = MaxoutDiscriminatorConfig(
    image_units=6, class_units=3, pieces=5, joint_units=5, joint_pieces=4, weight_range=0.8
)


def size(network):
    return sum(p.numel() for p in network.parameters())


def test_parameter_counts_follow_from_the_papers_layers():
    G, D = MLPGeneratorConfig().build(PAPER), MaxoutDiscriminatorConfig().build(PAPER)
    assert size(G) == 100 * 200 + 200 + 10 * 1000 + 1000 + 1200 * 1200 + 1200 + 1200 * 784 + 784 == 2_413_984
    assert size(D) == 785 * 1200 + 11 * 250 + 291 * 960 + 241 == 1_224_351
    assert abs(G.joint.weight.detach().abs().max() - 0.05) < 1e-6
    assert abs(D.image.linear.weight.detach().abs().max() - 0.005) < 1e-6
    assert not any(layer.bias.any() for layer in (G.pixels, D.logit, D.joint.linear))


def test_without_classes_nothing_sees_labels():
    model = ModelConfig(resolution=28, image_channels=1, classes=0, latent_dim=100)
    G, D = MLPGeneratorConfig().build(model), MaxoutDiscriminatorConfig().build(model)
    images = G(torch.rand(2, 100), torch.tensor([0, 0]))
    assert images.shape == (2, 1, 28, 28)
    assert D(images, torch.tensor([0, 0])).logits.shape == (2,)
    assert size(G) == 2_413_984 - 11_000 - 1000 * 1200


def test_maxout_is_the_largest_of_each_units_own_pieces():
    layer = Maxout(3, 4, 5).double()
    x = torch.randn(6, 3, dtype=torch.float64)
    weight, bias = layer.linear.weight.detach().numpy(), layer.linear.bias.detach().numpy()
    expected = np.empty((6, 4))
    for sample in range(6):
        for unit in range(4):
            pieces = [weight[unit * 5 + j] @ x[sample].numpy() + bias[unit * 5 + j] for j in range(5)]
            expected[sample, unit] = max(pieces)
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, atol=1e-12)


def test_classes_may_be_mixed():
    G = G_SMALL.build(SMALL).eval()
    z = torch.rand(2, 5)
    assert torch.equal(G(z, torch.tensor([1, 2])), G(z, F.one_hot(torch.tensor([1, 2]), 3).float()))


# NumPy ------------------------------------------------------------------------------------------------------------------


class Linear:
    """y = x W^T + b, and the gradients of W and b."""

    def __init__(self, layer):
        self.W, self.b = layer.weight.detach().numpy(), layer.bias.detach().numpy()

    def forward(self, x):
        self.x = x
        return x @ self.W.T + self.b

    def backward(self, dy):
        self.dW, self.db = dy.T @ self.x, dy.sum(0)
        return dy @ self.W


class Pieces(Linear):
    def __init__(self, layer):
        super().__init__(layer.linear)
        self.pieces = layer.pieces

    def forward(self, x):
        y = super().forward(x).reshape(len(x), -1, self.pieces)
        self.winner = y.argmax(2)
        return y.max(2)

    def backward(self, dy):
        full = np.zeros((*dy.shape, self.pieces))
        np.put_along_axis(full, self.winner[..., None], dy[..., None], 2)
        return super().backward(full.reshape(len(dy), -1))


class NumpyD:
    def __init__(self, network):
        self.image, self.label, self.joint = Pieces(network.image), Pieces(network.label), Pieces(network.joint)
        self.logit = Linear(network.logit)
        self.layers = [(self.image, "image.linear"), (self.label, "label.linear"), (self.joint, "joint.linear")]
        self.layers.append((self.logit, "logit"))

    def forward(self, images, code, masks):
        self.masks = masks
        h = np.concatenate([self.image.forward(images * masks[0]), self.label.forward(code)], 1)
        self.units = self.image.W.shape[0] // self.image.pieces
        return self.logit.forward(self.joint.forward(h * masks[1]) * masks[2])[:, 0]

    def backward(self, d):
        dh = self.joint.backward(self.logit.backward(d[:, None]) * self.masks[2]) * self.masks[1]
        self.label.backward(dh[:, self.units :])
        return self.image.backward(dh[:, : self.units]) * self.masks[0]


class NumpyG:
    def __init__(self, network):
        self.latent, self.label, self.joint, self.pixels = map(
            Linear, (network.latent, network.label, network.joint, network.pixels)
        )
        self.layers = [(getattr(self, name), name) for name in ("latent", "label", "joint", "pixels")]

    def forward(self, z, code, masks):
        self.masks = masks
        self.a = np.concatenate([self.latent.forward(z), self.label.forward(code)], 1)
        self.b = self.joint.forward(np.maximum(self.a, 0) * masks[0])
        self.p = 1 / (1 + np.exp(-self.pixels.forward(np.maximum(self.b, 0) * masks[1])))
        return self.p

    def backward(self, dp):
        db = self.pixels.backward(dp * self.p * (1 - self.p)) * self.masks[1] * (self.b > 0)
        da = self.joint.backward(db) * self.masks[0] * (self.a > 0)
        self.latent.backward(da[:, : self.latent.b.size])
        self.label.backward(da[:, self.latent.b.size :])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def masks_of(batch, *layers):
    """What dropout multiplies by, drawn as the network draws: one after the other from torch's generator."""
    return [F.dropout(torch.ones(batch, width, dtype=torch.float64), share).numpy() for width, share in layers]


def assert_gradients(network, layers):
    named = dict(network.named_parameters())
    for layer, name in layers:
        np.testing.assert_allclose(named[f"{name}.weight"].grad.numpy(), layer.dW, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(named[f"{name}.bias"].grad.numpy(), layer.db, rtol=1e-10, atol=1e-12)


@pytest.fixture
def game():
    G, D = G_SMALL.build(SMALL).double(), D_SMALL.build(SMALL).double()
    method = method_of(AdversarialConfig(loss="non_saturating"), model=SMALL, generator=G_SMALL, discriminator=D_SMALL)
    rng = np.random.default_rng(1)
    z, labels = rng.random((7, 5)), rng.integers(0, 3, 7)
    real, real_labels = rng.random((7, 16)), rng.integers(0, 3, 7)
    draw = draw_of(*map(torch.from_numpy, (z, labels, 2 * real.reshape(7, 1, 4, 4) - 1, real_labels)))
    return method, {"generator": G, "discriminator": D}, draw, (z, np.eye(3)[labels], real, np.eye(3)[real_labels])


G_DROPOUT = ((10, 0.5), (7, 0.5))
D_DROPOUT = ((16, 0.2), (9, 0.5), (5, 0.5))


def test_the_discriminators_loss_and_gradient(game):
    method, networks, draw, (z, code, real, real_code) = game
    G, D = NumpyG(networks["generator"]), NumpyD(networks["discriminator"])
    torch.manual_seed(4)
    found = losses(method, "discriminator", networks, draw)["loss"]
    found.backward()
    torch.manual_seed(4)
    images = G.forward(z, code, masks_of(7, *G_DROPOUT))
    a = D.forward(real, real_code, masks_of(7, *D_DROPOUT))
    loss = np.log1p(np.exp(-a)).mean()
    D.backward(-sigmoid(-a) / 7)
    first = [(layer.dW, layer.db) for layer, _ in D.layers]
    b = D.forward(images, code, masks_of(7, *D_DROPOUT))
    loss += np.log1p(np.exp(b)).mean()
    D.backward(sigmoid(b) / 7)
    for (layer, _), (dW, db) in zip(D.layers, first, strict=True):
        layer.dW, layer.db = layer.dW + dW, layer.db + db
    assert abs(float(found) - loss) < 1e-12
    assert_gradients(networks["discriminator"], D.layers)


def test_the_generators_loss_and_gradient(game):
    method, networks, draw, (z, code, *_) = game
    G, D = NumpyG(networks["generator"]), NumpyD(networks["discriminator"])
    torch.manual_seed(5)
    found = losses(method, "generator", networks, draw)["loss"]
    found.backward()
    torch.manual_seed(5)
    a = D.forward(G.forward(z, code, masks_of(7, *G_DROPOUT)), code, masks_of(7, *D_DROPOUT))
    G.backward(D.backward(-sigmoid(-a) / 7))
    assert abs(float(found) - np.log1p(np.exp(-a)).mean()) < 1e-12
    assert_gradients(networks["generator"], G.layers)


def test_samples_are_drawn_without_dropout():
    G = G_SMALL.build(SMALL)
    z, y = torch.rand(1, 5).expand(20, 5), torch.zeros(20, dtype=torch.int64)
    assert not torch.equal(G(z, y)[0], G(z, y)[1])
    G.eval()
    assert torch.equal(G(z, y)[0], G(z, y)[1])


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_losses_are_finite_where_the_discriminator_is_sure(game, scale):
    method, networks, draw, _ = game
    with torch.no_grad():
        networks["discriminator"].logit.weight.mul_(0)
        networks["discriminator"].logit.bias.fill_(scale)
    for player in ("discriminator", "generator"):
        loss = losses(method, player, networks, draw)["loss"]
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad is None or p.grad.isfinite().all() for n in networks.values() for p in n.parameters())
