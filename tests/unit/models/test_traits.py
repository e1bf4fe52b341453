"""What layers say of themselves, against what they do; and that a layer which says nothing is taken for the worst."""

import pytest
import torch
from torch import nn

from trainer.foundation.errors import SettingError
from trainer.models import ModelConfig, classifies, couples_samples, replica_passes, traits
from trainer.models.conditioning import AuxiliaryClassifierConfig, ConcatConfig, ProjectionConfig, UnconditionalConfig
from trainer.models.dcgan import ActivationNoise, DCGANDiscriminatorConfig, DCGANGeneratorConfig
from trainer.models.improved import (
    ImprovedConvDiscriminatorConfig,
    ImprovedConvGeneratorConfig,
    ImprovedMLPDiscriminatorConfig,
    ImprovedMLPGeneratorConfig,
)
from trainer.models.layers import Convolution
from trainer.models.maxout import MaxoutDiscriminatorConfig, MLPGeneratorConfig
from trainer.models.resnet import ResNetDiscriminatorConfig, ResNetGeneratorConfig
from trainer.models.stylegan import StyleGANGeneratorConfig
from trainer.models.synchronised import synchronise_norms
from trainer.models.traits import can_group, can_repeat, draws_inside, moves_state, silent_layers

MODEL = ModelConfig(resolution=32, image_channels=1, classes=3, latent_dim=8)
GENERATORS = {
    "resnet": ResNetGeneratorConfig(channels=2),
    "resnet, conditional last norm": ResNetGeneratorConfig(channels=2, final_norm="conditional"),
    "dcgan": DCGANGeneratorConfig(),
    "improved_mlp": ImprovedMLPGeneratorConfig(),
    "improved_conv": ImprovedConvGeneratorConfig(widths=(8, 6, 4)),
    "mlp": MLPGeneratorConfig(),
    "mlp without draws": MLPGeneratorConfig(dropout=0),
    "stylegan": StyleGANGeneratorConfig(fmap_base=32, fmap_max=4, mapping_layers=1, mapping_width=4),
}
DISCRIMINATORS = {
    "projection": ResNetDiscriminatorConfig(channels=2),
    "concat": ResNetDiscriminatorConfig(channels=2, conditioning=ConcatConfig(dimension=2)),
    "acgan": ResNetDiscriminatorConfig(channels=2, conditioning=AuxiliaryClassifierConfig()),
    "none": ResNetDiscriminatorConfig(channels=2, conditioning=UnconditionalConfig()),
    "dcgan": DCGANDiscriminatorConfig(activation_noise=0.1),
    "dcgan with noise alone": DCGANDiscriminatorConfig(dropout=0, activation_noise=0.1),
    "dcgan without draws": DCGANDiscriminatorConfig(dropout=0),
    "improved_mlp": ImprovedMLPDiscriminatorConfig(),
    "improved_conv": ImprovedConvDiscriminatorConfig(widths=(4, 6)),
    "improved_conv without draws": ImprovedConvDiscriminatorConfig(widths=(4, 6), dropout=0, input_dropout=0),
    "maxout": MaxoutDiscriminatorConfig(),
    "maxout without draws": MaxoutDiscriminatorConfig(dropout=0, input_dropout=0),
}


class SilentNoise(nn.Module):
    """A layer of somebody who has not read about traits."""

    def forward(self, x):
        return x + torch.randn_like(x)


class NoisyConvolution(Convolution):
    """It inherits what `Convolution` says, and does another thing."""

    def forward(self, x):
        return super().forward(x) + torch.randn(1)


def network_and_inputs(config):
    network = config.build(MODEL)
    labels = torch.tensor([0, 1, 2, 2])
    if config in GENERATORS.values():
        return network, lambda: (torch.randn(4, 8), labels)
    return network, lambda: (torch.randn(4, 1, 32, 32), labels)


def values(output):
    return output if isinstance(output, torch.Tensor) else output.logits


@pytest.mark.parametrize("config", [*GENERATORS.values(), *DISCRIMINATORS.values()], ids=[*GENERATORS, *DISCRIMINATORS])
def test_networks_do_what_their_layers_say(config):
    network, inputs = network_and_inputs(config)
    first, labels = inputs()
    before = torch.get_rng_state()
    state = {name: value.clone() for name, value in network.named_buffers()}
    with torch.no_grad():
        result = values(network(first, labels))
    assert silent_layers(network) == []
    assert draws_inside(network) is not torch.equal(torch.get_rng_state(), before)
    moved = not all(torch.equal(value, state[name]) for name, value in network.named_buffers())
    assert any(moves_state(layer) for layer in network.modules()) is moved
    # The same draws and state, another last sample: does anything become of the first ones?
    torch.set_rng_state(before)
    network.load_state_dict(network.state_dict() | state)
    other = first.clone()
    other[3] = inputs()[0][3]
    torch.set_rng_state(before)
    with torch.no_grad():
        changed = values(network(other, labels))[:3]
    coupled = not torch.allclose(changed, result[:3], rtol=1e-4, atol=1e-5)
    assert any(traits.couples_samples(layer) for layer in network.modules()) is coupled


@pytest.mark.parametrize("config", DISCRIMINATORS.values(), ids=DISCRIMINATORS)
def test_settings_say_what_the_discriminator_is(config):
    network, inputs = network_and_inputs(config)
    assert couples_samples(config) is any(traits.couples_samples(layer) for layer in network.modules())
    assert classifies(config) is (network(*inputs()).class_logits is not None)


def test_settings_that_say_nothing_are_taken_for_the_worst():
    nothing = object()
    assert not classifies(nothing)
    assert couples_samples(nothing)


DRAWING = [
    nn.Dropout(0.1),
    nn.Dropout1d(0.1),
    nn.Dropout2d(0.1),
    nn.Dropout3d(0.1),
    nn.AlphaDropout(0.1),
    nn.FeatureAlphaDropout(0.1),
    nn.RReLU(),
    nn.FractionalMaxPool2d(2, 2),
    nn.FractionalMaxPool3d(2, 2),
    nn.LSTM(2, 2, num_layers=2, dropout=0.1),
    nn.MultiheadAttention(2, 1, dropout=0.1),
    nn.TransformerEncoderLayer(2, 1, 2, dropout=0.1),
]
HARMLESS = [
    nn.Dropout2d(0.0),
    nn.Conv2d(1, 1, 1),
    nn.InstanceNorm2d(2, affine=True),
    nn.GroupNorm(1, 2),
    nn.LSTM(2, 2),
    nn.MultiheadAttention(2, 1),
    nn.Sequential(nn.Linear(2, 2), nn.PReLU()),
    nn.ModuleList([nn.Upsample(scale_factor=2)]),
    ActivationNoise(0.0),
]
UNGROUPED = [
    nn.BatchNorm1d(2),
    nn.BatchNorm2d(2, track_running_stats=False),
    nn.InstanceNorm2d(2, track_running_stats=True),
    nn.utils.spectral_norm(nn.Linear(2, 2)),
    nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2)),
]


@pytest.mark.parametrize("layer", DRAWING, ids=repr)
def test_torchs_layers_that_draw_are_known(layer):
    generator = ResNetGeneratorConfig(channels=2).build(MODEL)
    assert can_group(generator)
    generator.extra = layer
    assert draws_inside(generator)
    assert not can_group(generator)
    assert not can_repeat(generator)


@pytest.mark.parametrize("layer", HARMLESS, ids=repr)
def test_torchs_other_layers_are_grouped(layer):
    generator = ResNetGeneratorConfig(channels=2).build(MODEL)
    generator.extra = layer
    assert can_group(generator)
    assert can_repeat(generator)


@pytest.mark.parametrize("layer", UNGROUPED, ids=repr)
def test_torchs_layers_with_a_state_or_coupled_samples_are_not_grouped(layer):
    generator = ResNetGeneratorConfig(channels=2).build(MODEL)
    generator.extra = layer
    assert not can_group(generator)


def test_every_layer_of_torch_that_draws_is_in_the_table():
    """torch's source is searched: a new version with another drawing layer fails here."""
    import inspect

    random = ("F.dropout", "F.alpha_dropout", "F.feature_", "F.rrelu", "F.fractional_max", "torch.rand", "bernoulli")
    found = {
        name
        for name, kind in vars(nn).items()
        if isinstance(kind, type) and issubclass(kind, nn.Module) and "forward" in kind.__dict__
        if any(word in inspect.getsource(kind.forward) for word in random)
    }
    known = {type(layer).__name__ for layer in DRAWING} | {"Dropout2d", "Dropout3d"}
    assert {"Dropout", "Dropout2d", "RReLU", "FractionalMaxPool2d"} <= found <= known


@pytest.mark.parametrize("layer", [SilentNoise(), NoisyConvolution(1, 1, 1), nn.Sequential(SilentNoise())], ids=repr)
def test_a_layer_that_says_nothing_is_never_grouped(layer):
    generator = ResNetGeneratorConfig(channels=2).build(MODEL)
    generator.blocks[0].extra = layer
    assert draws_inside(generator)
    assert not can_group(generator)
    assert not can_repeat(generator)
    with pytest.raises(SettingError, match=r"^batch\.synchronised_norm: "):
        synchronise_norms(generator)
    for module in layer.modules():  # it speaks
        module.draws = module.couples_samples = False
    assert not draws_inside(generator)
    assert can_group(generator)


def test_another_forward_of_one_layer_is_another_layer():
    layer = Convolution(1, 1, 1)
    assert can_group(layer)
    layer.forward = lambda x: x + torch.randn(1)
    assert not can_group(layer)
    assert silent_layers(layer) == ["Convolution"]


class Average(nn.Module):
    """It remembers the mean of what it last saw, as a style average does."""

    draws = couples_samples = False

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.follows = True

    def forward(self, x):
        if self.training and self.follows:
            self.mean.copy_(x.mean().detach())
        return x


class ManagedAverage(Average):
    def begin_passes(self):
        pass

    def start_replica(self, number):
        self.follows = number == 0

    def end_passes(self):
        self.follows = True


def test_a_state_that_would_depend_on_the_number_of_processes_is_refused():
    for layer in (Average(), nn.BatchNorm1d(2), nn.utils.spectral_norm(nn.Linear(2, 2))):
        with pytest.raises(TypeError, match=r"its passes move its buffers"), replica_passes(nn.Sequential(layer)):
            pass
        with replica_passes(layer.eval()):  # where nothing moves
            pass
    constant = Average()
    constant.moves_state = False
    with replica_passes(constant):
        pass


def test_a_new_layer_with_a_state_follows_replica_0():
    for dealing in ([0, 1, 2], [0, 2], [0]):
        layer = ManagedAverage()
        with replica_passes(layer) as start_replica:
            for replica in dealing:
                start_replica(replica)
                layer(torch.tensor(float(replica + 5)))
        assert layer.mean == 5
        assert layer.follows
    assert not can_group(ManagedAverage())


def test_conditionings_name_what_they_need():
    for config in (ProjectionConfig(), ConcatConfig(), AuxiliaryClassifierConfig()):
        with pytest.raises(SettingError, match=rf"^discriminator\.conditioning\.name: {config.name} needs classes"):
            config.build(0, 4, 4)
    with pytest.raises(SettingError, match=r"^discriminator\.conditioning\.after_block: 4 has no block behind it"):
        ConcatConfig(after_block=4).build(3, 4, 4)
