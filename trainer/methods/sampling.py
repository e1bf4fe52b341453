"""Samplers and conditions that methods share: class labels as conditions, and a network G(latents, conditions).

A method whose samples are G(z, y) gives a `LatentSampler`. Other methods write their own sampler. What a sampler
and its conditions can do beyond the protocol, they say with the small protocols at the end.

Shapes: n samples, K classes, Z entries of a latent vector.
"""

import difflib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.foundation.errors import SettingError
from trainer.methods.protocol import Conditions, Sampler, Tensors
from trainer.models.config import ModelConfig
from trainer.models.layers import at_least_float32


@dataclass(frozen=True)
class ClassConditions:
    """Classes by number. A condition is a label, int64 []; a mixture of classes is its weights, float32 [K]."""

    classes: int
    """0: the samples have no condition, and the only label is 0."""
    names: tuple[str, ...] = ()
    """One per class; empty where they are not known. Names of another number of classes are left out."""
    ids: tuple[str, ...] = ()
    """The classes' identifiers in the data, for example WordNet ids; left out in the same way."""

    def __post_init__(self) -> None:
        for field in ("names", "ids"):
            given = tuple(getattr(self, field))
            object.__setattr__(self, field, given if len(given) == self.classes else ())

    @property
    def count(self) -> int:
        """How many labels there are; at least 1."""
        return max(self.classes, 1)

    def parse(self, text: str) -> Tensor:
        """The label of the class called `text`: its name, a comma-separated part of it, its identifier, or its number.

        A name that is a number is a name first. Raises `SettingError` with the closest name.
        """
        asked = text.strip().casefold()
        spoken = [[entry.casefold(), *_parts(entry)] for entry in self.names]
        for found in (
            [i for i, entry in enumerate(self.ids) if entry.casefold() == asked],
            [i for i, names in enumerate(spoken) if names[0] == asked],
            [i for i, names in enumerate(spoken) if asked in names],
        ):
            if len(found) == 1:
                return torch.tensor(found[0])
            if found:
                raise SettingError(
                    f"classes: {text!r} names the classes {' and '.join(map(str, found))}; give the number"
                )
        number = _number(text)
        if number is not None and 0 <= number < self.count:
            return torch.tensor(number)
        if number is not None:
            raise SettingError(f"classes: there is no class {number}; give a number from 0 to {self.count - 1}")
        if not self.names:
            raise SettingError(f"classes: {text!r} cannot be looked up, no class names are known; give the number")
        close = difflib.get_close_matches(asked, [n for names in spoken for n in names], 1, 0.5)
        advice = f"did you mean {close[0]!r}?" if close else f"the first are {', '.join(self.names[:5])}"
        raise SettingError(f"classes: there is no class {text!r}; {advice}")

    def evenly(self, count: int) -> Tensor:
        """At most `count` labels, evenly spread and ascending: int64 [min(count, K)]."""
        rows = min(count, self.count)
        return torch.tensor([row * self.count // rows for row in range(rows)])

    def in_turn(self, numbers: range) -> Tensor:
        """The classes in turn: sample n has the label n mod K. int64 [len(numbers)]."""
        return torch.arange(numbers.start, numbers.stop, numbers.step) % self.count

    def caption(self, condition: Tensor) -> str:
        """The first part of the class's name, or its number; of a mixture every class with its share."""
        if self.classes == 0:
            return ""
        if condition.dim():
            shares = [(label, float(share)) for label, share in enumerate(condition) if share > 0]
            return ", ".join(f"{share:.0%} {self._name(label)}" for label, share in shares)
        return self._name(int(condition))

    def mix(self, first: Tensor, last: Tensor, shares: Tensor) -> Tensor:
        """Class weights [n, K] on the way from the class `first` to the class `last`, on the device of `shares`.

        Args:
            first, last: labels, int64 [].
            shares: [n], 0 at the class `first`, 1 at the class `last`.
        """
        ends = F.one_hot(torch.stack([first, last]).to(shares.device), self.count).float()
        share = shares[:, None]
        return (1 - share) * ends[0] + share * ends[1]

    def _name(self, label: int) -> str:
        return self.names[label].split(",")[0] if self.names else f"class {label}"


@dataclass
class LatentSampler:
    """Samples of a network G(latents [n, Z], conditions [n, ...]) whose latents are those of the section `model`.

    With `ClassConditions`, and with a network that the section `generator` alone describes, its exports are of version 1.
    Another network needs its own sampler, or a subclass.
    """

    networks: Mapping[str, nn.Module]
    """One network, called `generator`."""
    model: ModelConfig
    conditions: Conditions
    output: str = "image"
    truncation: float | None = None
    """Entries of N(0, 1) beyond it are drawn again (Brock et al. 2019); a uniform distribution is scaled by it about its
    centre."""

    def draw(self, source: torch.Generator, count: int) -> Tensor:
        """Latents [count, Z] on the CPU. One at a time, the first n of more are the same."""
        z = self.model.latents(source, count)
        if self.truncation is None:
            return z
        if self.model.latent_distribution != "normal":
            centre = 0.5 if self.model.latent_distribution == "unit_uniform" else 0.0
            return centre + (z - centre) * self.truncation
        while (beyond := z.abs() > self.truncation).any():
            z = torch.where(beyond, torch.randn(z.shape, generator=source), z)
        return z

    def sample(self, latents: Tensor, conditions: Tensor) -> Tensor:
        """G(latents, conditions), at least float32."""
        return at_least_float32(self.networks["generator"](latents, conditions))

    def truncated(self, bound: float) -> "LatentSampler":
        """The same network with less varied latents."""
        if bound <= 0:
            raise SettingError(
                f"--truncation: is {bound:g}, and this generator's latents are bounded by it; give more than 0"
            )
        return replace(self, truncation=bound)


@runtime_checkable
class Mixing(Protocol):
    """Conditions between which there are others, as a morph shows them."""

    def mix(self, first: Tensor, last: Tensor, shares: Tensor) -> Tensor:
        """Conditions [n, ...] on the way from `first` [...] to `last` [...]; `shares` [n] go from 0 to 1."""
        ...


@runtime_checkable
class Truncating(Protocol):
    """A sampler that can give less varied and more typical samples."""

    def truncated(self, bound: float) -> Sampler:
        """The sampler with this bound; what it bounds is the method's. Raises `SettingError` for an impossible one."""
        ...


@runtime_checkable
class Interpolating(Protocol):
    """A sampler with its own way from one latent vector to another. Those of other samplers are straight."""

    def between(self, first: Tensor, last: Tensor, shares: Tensor) -> Tensor:
        """Latents [n, s, ...] on the ways from `first` [n, ...] to `last` [n, ...]; `shares` [s] go from 0 to 1."""
        ...


def between(sampler: Sampler, first: Tensor, last: Tensor, shares: Tensor) -> Tensor | None:
    """Latents [n, s, ...] on the ways from `first` [n, ...] to `last` [n, ...]; `shares` [s] go from 0 to 1.

    None for a sampler whose latents are no vectors.
    """
    if not first.numel() or not first.is_floating_point():
        return None
    if isinstance(sampler, Interpolating):
        return sampler.between(first, last, shares)
    share = shares.view(1, -1, *[1] * (first.dim() - 1))
    return (1 - share) * first[:, None] + share * last[:, None]


class Sheet(NamedTuple):
    """An arrangement of images that shows what a method can do."""

    rows: Sequence[str]
    """The rows' captions."""
    columns: Sequence[str]
    """What the columns are."""
    sampler: Sampler
    """Of the cells. It need not draw: its latents come with the sheet."""
    latents: Tensor
    """[rows * columns, ...]."""
    conditions: Tensor
    """[rows * columns, ...]."""


@runtime_checkable
class Sheets(Protocol):
    """A sampler with sheets."""

    sheets: Mapping[str, str]
    """Their names, and what each shows."""

    def sheet(self, name: str, latents: Tensor, conditions: Tensor, steps: int) -> Sheet:
        """The sheet of this name, of latents [k, count, ...] for k conditions [k, ...]; `steps` from one end to another.

        Raises `SettingError` for too few latents.
        """
        ...


@runtime_checkable
class Growing(Protocol):
    """A sampler whose networks grow. What they have grown to becomes part of every record of a measurement."""

    @property
    def grown(self) -> Mapping[str, float]:
        """The form of the networks, as in `Turn.form`: {"resolution": 16, "fade": 0.5}."""
        ...


@runtime_checkable
class FromData(Protocol):
    """Conditions that are made of real samples, for example images to translate.

    In an export, which has no data, they are not bound; `evenly` is empty then.
    """

    def bind(self, real: Callable[[range], Mapping[str, Tensors]]) -> None:
        """From now on `evenly` and `in_turn` may ask `real` for samples by number: the fields of each source, on the CPU.

        The numbers may be beyond the last sample; the order then begins again.
        """
        ...


def number_of(condition: Tensor) -> int:
    """A number that is part of the keys of a condition's samples: an integer itself, of any other condition a hash."""
    if condition.dim() == 0 and not condition.is_floating_point():
        return int(condition)
    values = condition.detach().cpu().contiguous()
    text = f"{values.dtype}{tuple(values.shape)}".encode() + values.numpy().tobytes()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def _parts(name: str) -> list[str]:
    return [part.strip().casefold() for part in name.split(",")]


def _number(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None
