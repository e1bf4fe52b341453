"""Which form of a function each layer computes (`trainer.models.rewrites` has the forms; all start as the plain one).

The tables come from timings of forward and backward pass, batches of 8 and 16, on one core of an AMD EPYC with AVX-512
and oneDNN 3.12 (PyTorch 2.14.1); docs/speed.md. On a GPU nothing was measured, so the plain forms are used until
`speed.autotune` times them.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

MATRIX = " by matrix"


class Rewritable(Protocol):
    """A convolution that knows its function in several forms."""

    form: Any
    """The form that it computes in, one of `forms`."""
    by_matrix: bool
    """Whether it is a matrix product over gathered patches. "transposed" does not have it."""

    @property
    def weight(self) -> Tensor: ...

    @property
    def forms(self) -> tuple[str, ...]:
        """How it can be computed together with the resampling next to it; "plain" alone where there is none."""
        ...

    def __call__(self, x: Tensor, /) -> Tensor: ...


class Placed(NamedTuple):
    """A 3x3 convolution and its place. Networks give them: `placed_convolutions(resolution) -> list[Placed]`."""

    name: str
    """Of the layer in its network, as in the state's names."""
    layer: Rewritable
    side: int
    """Height and width of the map that goes in."""

    @property
    def resampling(self) -> tuple[str, ...]:
        """How the layer can be computed together with the resampling next to it; "plain" alone where there is none."""
        return self.layer.forms

    @property
    def alternatives(self) -> tuple[str, ...]:
        """Every form: the above, and those of them that are convolutions once more as a matrix product."""
        return (*self.resampling, *(form + MATRIX for form in self.resampling if form != "transposed"))


def placed_convolutions(network: nn.Module, resolution: int) -> list[Placed]:
    """The 3x3 convolutions that the network offers for other forms, from first to last.

    `resolution`: height and width of the images that the network was built for. A network that offers none has no method
    `placed_convolutions`.
    """
    offered = getattr(network, "placed_convolutions", None)
    return [] if offered is None else cast(list[Placed], offered(resolution))


def fixed_form(item: Placed, device: torch.device) -> str:
    """The measured choice, the same in fp32 and bf16."""
    if device.type == "cuda":
        return "plain"
    # Where the map that comes out has 4 x 4 positions, weights cost more than arithmetic.
    if "merged" in item.resampling:
        return "merged" + (MATRIX if item.side <= 8 else "")
    if "phases" not in item.resampling:
        return "plain" + (MATRIX if item.side <= 4 else "")
    if item.side < 8:
        return "phases" + MATRIX
    return "transposed" if item.side < 32 else "phases"


def set_form(item: Placed, form: str) -> None:
    """Let a layer compute in `form`, one of its alternatives."""
    if form not in item.alternatives:
        raise ValueError(f"{item.name}: has no form {form!r}, only {', '.join(item.alternatives)}")
    item.layer.form = form.removesuffix(MATRIX)
    item.layer.by_matrix = form.endswith(MATRIX)


def shortcuts(network: nn.Module) -> Iterator[Rewritable]:
    """The 1x1 convolutions next to a resampling. In their last form they work at the lower resolution."""
    for module in network.modules():
        if hasattr(type(module), "forms"):
            layer = cast(Rewritable, module)
            if len(layer.forms) > 1 and layer.weight.shape[-1] == 1:
                yield layer


def set_fused(network: nn.Module, *, spectral_norm: bool, conditional_norm: bool, low_resolution: bool) -> None:
    """Put the other choices into the layers of `network`: a layer with `fuses` names the choice that `fused` follows."""
    choices = {"spectral_norm": spectral_norm, "conditional_norm": conditional_norm}
    layers: list[Any] = [layer for layer in network.modules() if hasattr(layer, "fuses")]
    for layer in layers:
        layer.fused = choices[layer.fuses]
    for shortcut in shortcuts(network):
        shortcut.form = shortcut.forms[-1] if low_resolution else "plain"
