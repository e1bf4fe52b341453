"""What a layer says of itself. Whoever must know what a layer does asks here; nobody else lists classes of layers.

A module speaks for its `forward` alone; its children are asked as well. It speaks by attributes of the class or of the
instance, or by properties:

| attribute | true means |
|---|---|
| `draws` | a training pass draws from torch's default generator |
| `couples_samples` | in a training pass, what becomes of a sample depends on the other samples |
| `moves_state` | a training pass changes the module's buffers; if left out: true for a module with buffers |

Most classes of this package say `draws = couples_samples = False`. torch's own layers are known. Any other module that
does not say a thing is taken for the worst, so a new layer is slow at first, never wrong. A subclass with another
`forward` must speak again.

What a module offers, where it has it:

| attribute | meaning |
|---|---|
| `begin_passes`, `start_replica`, `end_passes` | the module is an `Effects`: replicas can share its passes |
| `update_statistics` | False: a training pass leaves the state as it is |
| `normalise` | the function that normalises; another may do it over all processes (synchronised.py) |
| `joined_passes` | n: a batch is n passes in one, as n equal groups of samples, one behind the other |
| `shared_buffers` | names of the buffers that are the same on every process, bit for bit (training/selfcheck.py) |
| `recompute` | of a network: True: the backward pass computes the blocks again (recomputation.py) |
| `placed_convolutions(resolution)` | of a network: its convolutions that have other forms (forms.py) |
| `takes_labels` | of a class of norms: it is called with the labels as well (conditioning.py) |
| `fuses`, `fused` | which setting of `speed` fuses the layer, and whether it is fused (forms.py) |
"""

from functools import cache
from typing import Any, Protocol

from torch import nn


class Effects(Protocol):
    """A module whose training pass changes its state, such that the number of replicas in a process does not matter."""

    def begin_passes(self) -> None:
        """`replica_passes` is open from now on."""
        ...

    def start_replica(self, number: int) -> None:
        """The next passes are those of this replica. Replica 0 is on the first process."""
        ...

    def end_passes(self) -> None:
        """`replica_passes` is closed, also after an error."""
        ...


def draws(layer: nn.Module) -> bool:
    """Whether the module's own `forward`, in training, draws from torch's default generator."""
    said = _said(layer, "draws")
    return said if said is not None else not _is_torchs(layer) or _torch_layer_draws(layer)


def couples_samples(layer: nn.Module) -> bool:
    """Whether in the module's own `forward`, in training, a sample's result depends on the other samples."""
    said = _said(layer, "couples_samples")
    return said if said is not None else not _is_torchs(layer) or isinstance(layer, nn.modules.batchnorm._BatchNorm)


def moves_state(layer: nn.Module) -> bool:
    """Whether the module's own `forward`, in training, changes its buffers. torch's layers with buffers do."""
    said = _said(layer, "moves_state")
    if said is not None:
        return said
    return _is_silent(layer) or hasattr(type(layer), "start_replica") or _has_buffers(layer)


def draws_inside(network: nn.Module) -> bool:
    """Whether training passes of the network draw from torch's default generator, or may do so."""
    return any(draws(layer) for layer in network.modules())


def can_group(network: nn.Module) -> bool:
    """Whether several training passes of the network can be one: no layer draws, and what couples samples or has a state
    can keep the passes apart."""
    return not any(
        draws(layer) or ((couples_samples(layer) or moves_state(layer)) and not hasattr(layer, "joined_passes"))
        for layer in network.modules()
    )


def can_repeat(module: nn.Module) -> bool:
    """Whether a training pass can be computed a second time: no layer draws, and what has a state can leave it."""
    return not any(
        draws(layer) or (moves_state(layer) and not hasattr(layer, "update_statistics")) for layer in module.modules()
    )


def silent_layers(network: nn.Module) -> list[str]:
    """The classes of modules in the network that do not say whether they draw, in alphabetical order."""
    return sorted({type(layer).__qualname__ for layer in network.modules() if _is_silent(layer)})


def _said(layer: nn.Module, name: str) -> bool | None:
    """What the module says under `name`; None where it says nothing of its own `forward`."""
    if name in layer.__dict__ or ("forward" not in layer.__dict__ and _class_says(_kind(layer), name)):
        return bool(getattr(layer, name))
    return None


@cache
def _class_says(kind: Any, name: str) -> bool:
    """Whether `name` was given by the class that has the `forward`, or by a subclass of it."""
    for base in kind.__mro__:
        if name in base.__dict__:
            return True
        if "forward" in base.__dict__:
            return False
    return False


def _is_silent(layer: nn.Module) -> bool:
    return not _is_torchs(layer) and _said(layer, "draws") is None


def _is_torchs(layer: nn.Module) -> bool:
    """Whether `forward` is one of torch.nn's."""
    return "forward" not in layer.__dict__ and _class_is_torchs(_kind(layer))


@cache
def _class_is_torchs(kind: Any) -> bool:
    owner: type = next(base for base in kind.__mro__ if "forward" in base.__dict__)
    return owner.__module__.startswith("torch.nn.modules.")


def _kind(layer: nn.Module) -> Any:
    return type(layer)


def _has_buffers(layer: nn.Module) -> bool:
    return any(True for _ in layer.buffers(recurse=False))


def _torch_layer_draws(layer: nn.Module) -> bool:
    """torch's own layers that draw; the rest of torch.nn does not."""
    if isinstance(layer, nn.modules.dropout._DropoutNd):  # Dropout, Dropout1d to 3d, AlphaDropout, FeatureAlphaDropout
        return layer.p > 0
    if isinstance(layer, nn.RNNBase | nn.MultiheadAttention):
        return layer.dropout > 0
    return isinstance(layer, nn.RReLU | nn.FractionalMaxPool2d | nn.FractionalMaxPool3d)
