"""The semi-supervised networks: their sizes, weight normalisation and its start, convolutions against a plain form."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from trainer.foundation.errors import SettingError
from trainer.models import ModelConfig
from trainer.models.improved import (
    ImprovedConvDiscriminatorConfig,
    ImprovedConvGeneratorConfig,
    ImprovedMLPDiscriminatorConfig,
    ImprovedMLPGeneratorConfig,
)
from trainer.models.weight_norm import WeightNorm, start_from

MNIST = ModelConfig(resolution=28, image_channels=1, classes=10, latent_dim=100)
CIFAR = ModelConfig(resolution=32, image_channels=3, classes=10, latent_dim=100)


def size(network):
    return sum(p.numel() for p in network.parameters())


def test_parameter_counts_follow_from_the_authors_layers():
    """Scales are trained in the last layer alone; batch norm has a bias and no gain."""
    with torch.device("meta"):
        widths = (784, 1000, 500, 250, 250, 250, 10)
        D = sum(i * o + o for i, o in itertools.pairwise(widths)) + 10
        assert size(ImprovedMLPDiscriminatorConfig().build(MNIST)) == D == 1_538_770
        G = 100 * 500 + 500 + 500 * 500 + 500 + 500 * 784 + 784 + 784
        assert size(ImprovedMLPGeneratorConfig().build(MNIST)) == G
        G = 100 * 8192 + 8192 + 25 * (512 * 256 + 256 * 128 + 128 * 3) + 256 + 128 + 3 + 3
        assert size(ImprovedConvGeneratorConfig().build(CIFAR)) == G == 4_933_382
        for widths, expected in (((96, 192), 1_406_804), ((64, 128), 626_580)):
            assert size(ImprovedConvDiscriminatorConfig(widths=widths).build(CIFAR)) == expected
        assert size(ImprovedMLPDiscriminatorConfig(fake_class=True).build(MNIST)) == D + 250 + 1 + 1


KINDS = {
    "linear": ((3, 4), lambda x, w, b: F.linear(x, w, b)),
    "convolution": ((3, 4, 3, 2, 1), lambda x, w, b: F.conv2d(x, w, b, 2, 1)),
    "transposed": ((3, 4, 5, 1, 2), lambda x, w, b: F.conv_transpose2d(x, w, b, 2, 2, output_padding=1)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_has_the_length_that_the_scale_says(kind):
    shape, plain = KINDS[kind]
    layer = WeightNorm(kind, *shape, trained=True).double()
    with torch.no_grad():
        layer.scale.uniform_(0.5, 2)
        layer.bias.normal_()
    x = torch.randn(2, 3, *(() if kind == "linear" else (6, 6)), dtype=torch.float64)
    weight = layer.weight.detach().numpy().copy()
    for unit in range(4):
        row = weight[:, unit] if kind == "transposed" else weight[unit]
        row *= float(layer.scale[unit].detach()) / np.sqrt(1e-6 + (row**2).sum())
    torch.testing.assert_close(layer(x), plain(x, torch.from_numpy(weight), layer.bias), rtol=1e-12, atol=1e-12)
    if kind == "transposed":
        assert layer(x).shape == (2, 4, 12, 12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_start_gives_outputs_mean_0_and_the_wanted_deviation(kind):
    shape, _ = KINDS[kind]
    layer = WeightNorm(kind, *shape, start_std=0.1).double()
    x = 3 + torch.randn(50, 3, *(() if kind == "linear" else (6, 6)), dtype=torch.float64)
    start_from(layer, x)
    y = layer(x).detach().transpose(0, 1).flatten(1)
    torch.testing.assert_close(y.mean(1), torch.zeros(4, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(y.std(1, correction=0), torch.full((4,), 0.1, dtype=torch.float64))


def test_layers_that_do_not_start_from_data_keep_their_values():
    G = ImprovedMLPGeneratorConfig(widths=(6,)).build(MNIST)
    before = {name: value.clone() for name, value in G.state_dict().items()}
    start_from(G, torch.rand(9, 100), torch.zeros(9, dtype=torch.int64))
    assert all(torch.equal(value, before[name]) for name, value in G.state_dict().items())


@pytest.mark.parametrize("fake_class", [False, True])
@pytest.mark.parametrize("config", [ImprovedMLPDiscriminatorConfig, ImprovedConvDiscriminatorConfig])
def test_the_score_is_the_odds_of_being_real(config, fake_class):
    D = config(fake_class=fake_class).build(CIFAR).eval()
    images = torch.rand(4, 3, 32, 32) * 2 - 1
    out = D(images, torch.zeros(4, dtype=torch.int64))
    assert out.class_logits.shape == (4, 10)
    torch.testing.assert_close(out.logits, out.class_logits.exp().sum(1).log())
    assert torch.equal(out.class_logits, D.head(D.features(images)))
    assert torch.equal(out.features, D.features(images))
    if fake_class:  # over K + 1 classes the softmax is that of the relative logits and a 0
        head = D.logits.layer if hasattr(D, "logits") else D.head.layer
        whole = head(out.features)
        relative = torch.cat([out.class_logits, torch.zeros(4, 1)], 1)
        torch.testing.assert_close(whole.softmax(1), relative.softmax(1))


def test_dropout_and_noise_are_on_in_training_alone():
    for config in (ImprovedMLPDiscriminatorConfig(), ImprovedConvDiscriminatorConfig()):
        D = config.build(CIFAR)
        images, labels = torch.rand(2, 3, 32, 32) * 2 - 1, torch.zeros(2, dtype=torch.int64)
        assert not torch.equal(D(images, labels).logits, D(images, labels).logits)
        D.eval()
        assert torch.equal(D(images, labels).logits, D(images, labels).logits)


def test_generators_make_images_of_the_resolution():
    for config, model in ((ImprovedMLPGeneratorConfig(), MNIST), (ImprovedConvGeneratorConfig(), CIFAR)):
        images = config.build(model)(torch.rand(3, 100), torch.zeros(3, dtype=torch.int64))
        assert images.shape == (3, model.image_channels, model.resolution, model.resolution)
        assert images.abs().max() <= 1
    with pytest.raises(SettingError, match=r"^generator\.widths: 3 of them make 32 px and model\.resolution is 28"):
        ImprovedConvGeneratorConfig().build(MNIST)
    with pytest.raises(SettingError, match=r"improved_mlp needs classes and model\.classes is 0"):
        ImprovedMLPDiscriminatorConfig().build(ModelConfig(resolution=28, image_channels=1, classes=0))
