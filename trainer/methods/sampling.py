"""Samplers and conditions that methods share: class labels as conditions, and a network G(latents, conditions).

A method whose samples are G(z, y) gives a `LatentSampler`. Other methods write their own sampler. What a sampler
and its conditions can do beyond the protocol, they say with the small protocols at the end.

Shapes: n samples, K classes, Z entries of a latent vector.
"""

import difflib
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

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
class Classifying(Protocol):
    """A sampler that has a trained classifier as well."""

    described: Mapping[str, Any]
    """How the classifier is built again: `model` and `network`, each with its settings class as `name`."""

    @property
    def classifier(self) -> nn.Module:
        """`head(features(images))` are the class logits [n, K] of images [n, C, H, W] in [-1, 1]."""
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

        The numbers may be beyond the last sample; the order then begins again. A source is read where its fields are looked
        up.
        """
        ...


@runtime_checkable
class FromPictures(Protocol):
    """A sampler that makes a picture of a picture, of any size that its networks can take."""

    channels: int
    """Of the pictures: 1 or 3."""

    def remake(self, picture: Tensor, source: torch.Generator) -> Tensor:
        """Of a picture [C, H, W] in [-1, 1], on the networks' device, another one [C, H', W'], at least float32.

        `source` is for what has to be drawn. Raises `SettingError`, beginning with the size, for one that cannot
        be taken: "3x3 px, too small ...".
        """
        ...


@runtime_checkable
class Directed(Protocol):
    """A sampler that can work in several directions."""

    directions: tuple[str, ...]
    """Their names. The first is the sampler's own."""

    def towards(self, direction: str) -> Sampler:
        """The sampler of one of these directions."""
        ...


def directed(sampler: Sampler, direction: str) -> Sampler:
    """The sampler of a direction. Raises `SettingError`, beginning with --direction."""
    if not isinstance(sampler, Directed):
        raise SettingError("--direction: this generator has only one; leave the option out")
    if direction not in sampler.directions:
        raise SettingError(f"--direction: is {direction!r}; give {' or '.join(sampler.directions)}")
    return sampler.towards(direction)


@runtime_checkable
class Paired(Protocol):
    """A sampler of images from images, whose data may have the images that should come out."""

    def partners(self, numbers: range) -> Tensor:
        """What the samples with these numbers should be: images [n, C, H, W] in [-1, 1]. Raises `SettingError`."""
        ...

    def labels(self, numbers: range) -> Tensor:
        """The classes of these samples in the source `data`, int64 [n]."""
        ...

    def baselines(self, conditions: Tensor, side: int | None = None) -> Mapping[str, Tensor]:
        """Images that are made of conditions without learning, by name: at the samples' size, or at `side` px."""
        ...


@runtime_checkable
class ThereAndBack(Protocol):
    """A sampler whose networks can also return from its samples to the conditions."""

    def there_and_back(self, conditions: Tensor, noise: Tensor) -> Tensor:
        """What becomes of images [n, C, H, W], with noise of this shape on the samples between."""
        ...


@runtime_checkable
class Strips(Protocol):
    """A sampler that has more to show in a training's grid than samples by condition."""

    def strips(self, count: int) -> tuple[Tensor, list[str]]:
        """About `count` rows of images [rows, columns, C, H, W] in [-1, 1], and each row's caption."""
        ...


@dataclass
class PictureConditions:
    """Conditions that are images [C, H, W] in [-1, 1] of a source. They come from data alone."""

    model: ModelConfig
    source: str = "data"
    real: Callable[[range], Mapping[str, Tensors]] | None = None

    def bind(self, real: Callable[[range], Mapping[str, Tensors]]) -> None:
        """Take the images from `real`."""
        self.real = real

    def parse(self, text: str) -> Tensor:
        """Nothing can be named. Raises `SettingError`."""
        raise SettingError(
            f"classes: {text!r} names no image, and this generator makes images of images; give --source"
        )

    def evenly(self, count: int) -> Tensor:
        """The first `count` images; none without data."""
        side = self.model.resolution
        return self.in_turn(range(count)) if self.real else torch.empty(0, self.model.image_channels, side, side)

    def in_turn(self, numbers: range) -> Tensor:
        """The images with these numbers at the networks' size. Raises `SettingError` without data."""
        if self.real is None:
            raise SettingError(
                "classes: this generator makes images of images, of which an export has none; give --source"
            )
        return resized(self.real(numbers)[self.source]["image"], self.model.resolution)

    def field(self, name: str, numbers: range, source: str | None = None) -> Tensor:
        """A field of the samples with these numbers, of this source or another. Raises `SettingError` without data."""
        if self.real is None:
            raise SettingError("--source: an export has no images of its own; give some")
        return self.real(numbers)[source or self.source][name]

    def caption(self, condition: Tensor) -> str:
        """Nothing: the image is to be seen."""
        return ""


def resized(images: Tensor, side: int) -> Tensor:
    """Images [n, C, H, W] in [-1, 1] at `side` x `side`: bicubic, antialiased where they shrink."""
    if images.shape[-2:] == (side, side):
        return images
    return F.interpolate(images, (side, side), mode="bicubic", antialias=True).clamp(-1, 1)


@runtime_checkable
class Scoring(Protocol):
    """A sampler whose samples mean words of a vocabulary: the classes of the data."""

    def scores(self, samples: Tensor) -> Tensor:
        """Float64 [V]: how well each word fits, from samples [n, ...] of one condition; a larger one fits better."""
        ...


@runtime_checkable
class Describing(Protocol):
    """A sampler that says in words what it sees in a picture."""

    channels: int
    """Of the pictures: 1 or 3."""

    def describe(self, picture: Tensor, source: torch.Generator, words: int = 10) -> list[str]:
        """The best words for a picture [C, H, W] in [-1, 1], the best first. `source` is for what has to be drawn. Raises
        `SettingError`."""
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
