"""Named tensors into networks that are used and no longer trained."""

from collections.abc import Mapping

from torch import Tensor, nn


def below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix/`, under the rest of their names."""
    start = f"{prefix}/"
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


def put_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """The network has these weights, is in evaluation mode and takes no gradients. Raises `RuntimeError` by name."""
    network.load_state_dict(dict(weights))
    network.eval().requires_grad_(False)
