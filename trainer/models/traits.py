"""What a layer says of itself."""

from torch import nn

from trainer.models.dcgan import ActivationNoise


def draws_inside(network: nn.Module) -> bool:
    """Whether passes of the network draw from torch's default generator."""
    return any(
        (isinstance(layer, nn.Dropout) and layer.p > 0) or (isinstance(layer, ActivationNoise) and layer.std > 0)
        for layer in network.modules()
    )
