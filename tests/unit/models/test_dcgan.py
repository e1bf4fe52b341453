"""AC-GAN's own networks."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from trainer.foundation.errors import SettingError
from trainer.models import ModelConfig
from trainer.models.dcgan import DCGANDiscriminatorConfig, DCGANGeneratorConfig
from trainer.models.layers import BatchNorm2d

PAPER = ModelConfig(resolution=128, classes=10, latent_dim=100)
CIFAR = ModelConfig(resolution=32, classes=10, latent_dim=100)
SMALL = {128: (8, 6, 5, 4, 3), 32: (8, 6, 5, 4)}
NARROW = (2, 3, 4, 5, 6, 7)


def networks(resolution, **discriminator):
    torch.manual_seed(0)
    model = ModelConfig(resolution=resolution, classes=4, latent_dim=6)
    G = DCGANGeneratorConfig(widths=SMALL[resolution]).build(model)
    return G, DCGANDiscriminatorConfig(widths=NARROW, **discriminator).build(model)


def size(network):
    return sum(p.numel() for p in network.parameters())


def test_parameter_counts_follow_from_the_published_layers():
    """Counted from the table: weights, biases where no batch norm follows, two numbers per normalised channel."""
    with torch.device("meta"):
        transposed = [(768, 384, 5), (384, 256, 5), (256, 192, 5), (192, 64, 5)]
        G = 110 * 768 + 768 + sum(i * o * k * k + 2 * o for i, o, k in transposed) + 64 * 3 * 8 * 8 + 3
        assert size(DCGANGeneratorConfig().build(PAPER)) == G == 11_465_731
        convs = [(16, 32), (32, 64), (64, 128), (128, 256), (256, 512)]
        D = 3 * 16 * 9 + 16 + sum(i * o * 9 + 2 * o for i, o in convs)
        heads = 13 * 13 * 512 * 11 + 11
        assert size(DCGANDiscriminatorConfig().build(PAPER)) == D + heads == 2_525_579
        heads = 4 * 4 * 512 * 11 + 11
        assert size(DCGANDiscriminatorConfig().build(CIFAR)) == D + heads
        transposed = [(384, 192, 4), (192, 96, 4), (96, 48, 4)]
        G = 110 * 384 + 384 + sum(i * o * k * k + 2 * o for i, o, k in transposed) + 48 * 3 * 4 * 4 + 3
        assert size(DCGANGeneratorConfig().build(CIFAR)) == G


@pytest.mark.parametrize("resolution", [32, 128])
def test_shapes_and_heads(resolution):
    G, D = networks(resolution)
    y = torch.tensor([0, 3, 3])
    images = G(torch.randn(3, 6), y)
    assert images.shape == (3, 3, resolution, resolution)
    assert images.abs().max() <= 1
    output = D(images, y)
    assert output.logits.shape == (3,)
    assert output.class_logits.shape == (3, 4)


def test_class_is_appended_or_overwrites_the_first_latents():
    for placement, inputs in (("appended", 10), ("overwrites_latents", 6)):
        model = ModelConfig(resolution=32, classes=4, latent_dim=6)
        G = DCGANGeneratorConfig(widths=SMALL[32], class_placement=placement).build(model).eval()
        assert G.linear.in_features == inputs
        seen = []
        G.linear.register_forward_pre_hook(lambda layer, x, seen=seen: seen.append(x[0]))
        z, y = torch.randn(2, 6), torch.tensor([1, 3])
        code = F.one_hot(y, 4).float()
        images = G(z, y)
        want = torch.cat([z, code], 1) if placement == "appended" else torch.cat([code, z[:, 4:]], 1)
        assert torch.equal(seen[0], want)
        assert torch.equal(G(z, code), images)  # class weights stand in for the one-hot code


def test_initial_weights_are_normal_with_002():
    torch.manual_seed(0)
    model = ModelConfig(resolution=32, classes=10, latent_dim=100)
    G, D = DCGANGeneratorConfig().build(model), DCGANDiscriminatorConfig().build(model)
    for network in (G, D):
        for layer in network.modules():
            if isinstance(layer, BatchNorm2d):
                assert (layer.weight == 1).all()
                assert (layer.bias == 0).all()
            elif isinstance(getattr(layer, "weight", None), torch.Tensor) and layer.weight.numel() > 5000:
                assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
                assert abs(layer.weight.mean().item()) < 0.002
                assert layer.bias is None or not layer.bias.any()


@pytest.mark.parametrize("resolution", [32, 128])
def test_generator_equals_the_formula(resolution):
    """One-hot code and latents, linear, ReLU; every input pixel of a transposed convolution adds its kernel at `stride` times
    its place; batch norm over the pass, ReLU; tanh."""
    G, _ = networks(resolution)
    G.double()
    for layer in G.modules():
        if isinstance(layer, BatchNorm2d):
            torch.nn.init.normal_(layer.weight)
            torch.nn.init.normal_(layer.bias)
    z, labels = np.random.default_rng(0).normal(size=(3, 6)), np.array([2, 0, 3])
    h = np.concatenate([z, np.eye(4)[labels]], axis=1)
    weight, bias = (p.detach().numpy() for p in (G.linear.weight, G.linear.bias))
    h = np.maximum(h @ weight.T + bias, 0)[:, :, None, None]
    for layer in G.stages:
        if isinstance(layer, torch.nn.ConvTranspose2d):
            (stride, _), (padding, _), (kernel, _) = layer.stride, layer.padding, layer.kernel_size
            weight, (n, _, height, width) = layer.weight.detach().numpy(), h.shape
            canvas = np.zeros((n, weight.shape[1], (height - 1) * stride + kernel, (width - 1) * stride + kernel))
            for i in range(height):
                for j in range(width):
                    stamp = np.tensordot(h[:, :, i, j], weight, axes=1)
                    canvas[:, :, i * stride : i * stride + kernel, j * stride : j * stride + kernel] += stamp
            h = canvas[:, :, padding : canvas.shape[2] - padding, padding : canvas.shape[3] - padding]
            h = h + (0 if layer.bias is None else layer.bias.detach().numpy()[None, :, None, None])
        elif isinstance(layer, BatchNorm2d):
            mean, var = h.mean((0, 2, 3), keepdims=True), h.var((0, 2, 3), keepdims=True)
            gain, bias = (p.detach().numpy()[None, :, None, None] for p in (layer.weight, layer.bias))
            h = (h - mean) / np.sqrt(var + 1e-5) * gain + bias
        else:
            assert isinstance(layer, torch.nn.ReLU)
            h = np.maximum(h, 0)
    images = G(torch.from_numpy(z), torch.from_numpy(labels)).detach().numpy()
    assert images.shape == (3, 3, resolution, resolution)
    np.testing.assert_allclose(images, np.tanh(h), rtol=1e-9, atol=1e-12)


def test_discriminator_equals_the_formula():
    """Convolution, batch norm over the pass, leaky ReLU 0.2; two linear heads on the flattened map."""
    _, D = networks(32, dropout=0.0)
    D.double()
    for layer in D.modules():
        if isinstance(layer, BatchNorm2d):
            torch.nn.init.normal_(layer.weight)
            torch.nn.init.normal_(layer.bias)
    x = torch.randn(3, 3, 32, 32).double()
    h = x.numpy()
    layers = list(D.stages)
    for layer in layers:
        if isinstance(layer, torch.nn.Conv2d):
            padded = np.pad(h, ((0, 0), (0, 0), (1, 1), (1, 1)))
            windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
            windows = windows[:, :, :: layer.stride[0], :: layer.stride[0]]
            h = np.tensordot(windows, layer.weight.detach().numpy(), axes=([1, 4, 5], [1, 2, 3])).transpose(0, 3, 1, 2)
            h = h + (0 if layer.bias is None else layer.bias.detach().numpy()[None, :, None, None])
        elif isinstance(layer, BatchNorm2d):
            mean, var = h.mean((0, 2, 3), keepdims=True), h.var((0, 2, 3), keepdims=True)
            gain, bias = (p.detach().numpy()[None, :, None, None] for p in (layer.weight, layer.bias))
            h = (h - mean) / np.sqrt(var + 1e-5) * gain + bias
        elif isinstance(layer, torch.nn.LeakyReLU):
            h = np.where(h > 0, h, 0.2 * h)
    flat = h.reshape(3, -1)
    output = D(x, None)
    for got, head in ((output.logits[:, None], D.source), (output.class_logits, D.classifier)):
        want = flat @ head.weight.detach().numpy().T + head.bias.detach().numpy()
        np.testing.assert_allclose(got.detach().numpy(), want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("setting", [{"dropout": 0.5}, {"dropout": 0.0, "activation_noise": 0.1}])
def test_dropout_and_noise_draw_from_the_default_generator_in_training_only(setting):
    _, D = networks(32, **setting)
    x = torch.randn(2, 3, 32, 32)

    def logits():
        torch.manual_seed(5)
        return D(x, None).logits

    first, again = logits(), logits()
    assert torch.equal(first, again)
    assert not torch.equal(D(x, None).logits, first)
    D.eval()
    assert torch.equal(D(x, None).logits, D(x, None).logits)


def test_activation_noise_has_the_given_spread():
    from trainer.models.dcgan import ActivationNoise

    torch.manual_seed(0)
    noise = ActivationNoise(0.3)(torch.zeros(100_000))
    assert noise.std().item() == pytest.approx(0.3, rel=0.02)


@pytest.mark.parametrize(
    ("config", "model", "setting"),
    [
        (DCGANGeneratorConfig(), ModelConfig(resolution=64), "generator.name"),
        (DCGANDiscriminatorConfig(), ModelConfig(resolution=64), "discriminator.name"),
        (DCGANGeneratorConfig(widths=(4, 4)), CIFAR, "generator.widths"),
        (
            DCGANGeneratorConfig(class_placement="overwrites_latents"),
            ModelConfig(resolution=32, classes=10, latent_dim=10),
            "model.latent_dim",
        ),
    ],
)
def test_impossible_networks_are_refused_by_setting(config, model, setting):
    with pytest.raises(SettingError, match=f"^{setting}: "), torch.device("meta"):
        config.build(model)
