"""The residual networks: sizes, shapes, initial weights, refusals."""

import math

import pytest
import torch

from trainer.foundation.errors import SettingError
from trainer.models import ModelConfig
from trainer.models.conditioning import AuxiliaryClassifierConfig, ConcatConfig, ProjectionConfig, UnconditionalConfig
from trainer.models.resnet import ResNetDiscriminatorConfig, ResNetGeneratorConfig

IMAGENET = ModelConfig()
CIFAR = ModelConfig(resolution=32, classes=10)


def size(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("config", "model", "parameters"),
    [
        (ResNetGeneratorConfig(), IMAGENET, 41_996_931),
        (ResNetGeneratorConfig(channels=256), CIFAR, 4_304_387),
        (ResNetDiscriminatorConfig(), IMAGENET, 30_041_857),
        (ResNetDiscriminatorConfig(conditioning=ConcatConfig()), IMAGENET, 30_538_625),
        (ResNetDiscriminatorConfig(channels=128), CIFAR, 1_055_104),
        # A port's slip, documented by its log: hidden width = output width.
        (ResNetDiscriminatorConfig(hidden_channels="output"), IMAGENET, 39_443_137),
    ],
)
def test_parameter_counts_are_the_official_ones(config, model, parameters):
    with torch.device("meta"):
        assert size(config.build(model)) == parameters


@pytest.mark.parametrize("resolution", [32, 64, 128])
@pytest.mark.parametrize("image_channels", [1, 3])
@pytest.mark.parametrize("classes", [0, 5])
def test_official_forms_make_and_judge_images(resolution, image_channels, classes):
    model = ModelConfig(resolution=resolution, image_channels=image_channels, classes=classes, latent_dim=6)
    G = ResNetGeneratorConfig(channels=1).build(model)
    conditioning = ProjectionConfig() if classes else UnconditionalConfig()
    D = ResNetDiscriminatorConfig(channels=1, conditioning=conditioning).build(model)
    y = torch.tensor([0, 4])
    images = G(torch.randn(2, 6), y)
    assert images.shape == (2, image_channels, resolution, resolution)
    assert images.abs().max() <= 1
    output = D(images, y)
    assert output.logits.shape == (2,)
    assert output.class_logits is None


@pytest.mark.parametrize("resolution", [32, 64, 128])
def test_every_conditioning_fits_every_form(resolution):
    model = ModelConfig(resolution=resolution, classes=5)
    x, y = torch.randn(2, 3, resolution, resolution), torch.tensor([0, 4])
    for conditioning in (ConcatConfig(dimension=4), AuxiliaryClassifierConfig(), UnconditionalConfig()):
        D = ResNetDiscriminatorConfig(channels=1, conditioning=conditioning).build(model)
        output = D(x, y)
        assert output.logits.shape == (2,)
        assert (output.class_logits is not None) == (conditioning.name == "acgan")
        D.eval()
        depends_on_labels = not torch.equal(D(x, y).logits, D(x, y.flip(0)).logits)
        assert depends_on_labels == (conditioning.name == "concat")


def test_final_map_sizes():
    """128 px: five halvings to 4x4 and none in block 6; 64 px: five to 2x2; 32 px: two to 8x8."""
    for resolution, side in ((128, 4), (64, 2), (32, 8)):
        D = ResNetDiscriminatorConfig(channels=1).build(ModelConfig(resolution=resolution, classes=2))
        h = torch.randn(1, 3, resolution, resolution)
        for block in D.blocks:
            h = block(h)
        assert h.shape[-1] == side


def test_initial_weights_follow_glorot_uniform():
    """Bound sqrt(6 / ((in + out) k k)), times sqrt 2 for the blocks' 3x3 convolutions; biases 0, gain 1, shift 0."""
    model = ModelConfig(resolution=32, classes=10)
    G = ResNetGeneratorConfig(channels=32).build(model)
    D = ResNetDiscriminatorConfig(channels=32).build(model)
    for layer, fans, gain in [
        (G.linear, 128 + 512, 1),
        (G.blocks[0].conv1, (32 + 32) * 9, math.sqrt(2)),
        (G.blocks[1].conv2, (32 + 32) * 9, math.sqrt(2)),
        (G.blocks[1].shortcut, 64, 1),
        (G.conv, (32 + 3) * 9, 1),
        (D.blocks[0].conv1, (3 + 32) * 9, math.sqrt(2)),
        (D.blocks[1].shortcut, 64, 1),
        (D.linear, 32 + 1, 1),
        (D.conditioning.embedding, 10 + 32, 1),
    ]:
        bound = gain * math.sqrt(6 / fans)
        assert bound * 0.85 < layer.weight.abs().max() <= bound
        assert getattr(layer, "bias", None) is None or not layer.bias.any()
    assert (G.blocks[0].norm1.gain == 1).all()
    assert (G.blocks[0].norm1.bias == 0).all()


def test_same_seed_same_weights():
    def build():
        torch.manual_seed(3)
        return ResNetDiscriminatorConfig(channels=2).build(CIFAR).state_dict()

    assert all(torch.equal(a, b) for a, b in zip(build().values(), build().values(), strict=True))


def test_frozen_discriminator_gets_no_gradients_and_passes_them_on():
    D = ResNetDiscriminatorConfig(channels=2).build(CIFAR).requires_grad_(False)
    x = torch.randn(2, 3, 32, 32, requires_grad=True)
    D(x, torch.tensor([1, 2])).logits.sum().backward()
    assert x.grad is not None
    assert all(p.grad is None for p in D.parameters())


def test_bfloat16_autocast_returns_float32():
    G = ResNetGeneratorConfig(channels=2).build(CIFAR)
    D = ResNetDiscriminatorConfig(channels=2, conditioning=AuxiliaryClassifierConfig()).build(CIFAR)
    y = torch.tensor([1, 2])
    with torch.autocast("cpu", torch.bfloat16):
        images = G(torch.randn(2, 128), y)
        output = D(images, y)
    assert images.dtype == output.logits.dtype == output.class_logits.dtype == torch.float32


@pytest.mark.parametrize(
    ("config", "model", "setting"),
    [
        (ResNetGeneratorConfig(), ModelConfig(resolution=48), "generator.multipliers"),
        (ResNetGeneratorConfig(multipliers=(1, 1)), CIFAR, "generator.multipliers"),
        (ResNetDiscriminatorConfig(), ModelConfig(resolution=48), "discriminator.multipliers"),
        (
            ResNetDiscriminatorConfig(downsampling_blocks=6),
            CIFAR,
            "discriminator.downsampling_blocks",
        ),
        (
            ResNetDiscriminatorConfig(conditioning=ConcatConfig(after_block=4)),
            CIFAR,
            "discriminator.conditioning.after_block",
        ),
        (
            ResNetDiscriminatorConfig(),
            ModelConfig(resolution=32, classes=0),
            "discriminator.conditioning.name",
        ),
    ],
)
def test_impossible_networks_are_refused_by_setting(config, model, setting):
    with pytest.raises(SettingError, match=f"^{setting}: ") as error, torch.device("meta"):
        config.build(model)
    assert "\n" not in str(error.value)
