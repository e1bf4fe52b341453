"""What a method is. The loop, the verbs and the measures know of a method nothing but this page.

Six words: a *method* is what a paper adds; a *player* is the networks that minimise one loss; a *turn* is one update of
one player; a *draw* is the named tensors of one replica for one turn; *memory* is named tensors that a method remembers,
one row per replica; a *sampler* is what a trained method gives.

Shapes: B samples of one replica.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from data_pipeline.manifest.format import Manifest
from trainer.foundation.keys import Keys

Tensors = Mapping[str, Tensor]
"""Tensors by name."""
Networks = Mapping[str, Callable[..., Any]]
"""Networks by name, as plain callables."""


@dataclass(frozen=True)
class Turn:
    """One update of one player. It is a function of the iteration alone."""

    player: str
    """Who moves."""
    number: int
    """The turn's number in its iteration. It is part of every key, so no two turns of an iteration share one."""
    reads: Mapping[str, int] = field(default_factory=dict)
    """Samples that each replica reads, by source. `data` is the source of the section `data`."""
    made: int = 0
    """Samples that each replica generates."""
    terms: Mapping[str, float] = field(default_factory=dict)
    """Weight of each loss term that is on, by the term's name."""
    form: Mapping[str, float] = field(default_factory=dict)
    """The networks' form where it changes, for example {"resolution": 64, "fade": 0.3}."""
    forgets: bool = False
    """Whether the mover's optimizer forgets its moments and step counts before this update."""
    rate: float = 1.0
    """Factor on the mover's learning rate, next to the schedule's."""

    def without(self, *terms: str) -> "Turn":
        """The same turn with these terms off."""
        return replace(self, terms={name: weight for name, weight in self.terms.items() if name not in terms})


class Segment(NamedTuple):
    """Iterations of a method whose turns change, between two changes."""

    begin: int
    """The first iteration."""
    end: int
    """The first iteration behind it."""
    described: Mapping[str, str]
    """What is constant in it, for people: texts by the head of their column."""


@runtime_checkable
class Segmented(Protocol):
    """A method that describes its segments: for the dry run, and for the plan, which prices each one."""

    def segments(self, iterations: int) -> Sequence[Segment]:
        """The segments of a run of so many iterations, in their order and without a gap."""
        ...


@runtime_checkable
class StartsFromData(Protocol):
    """A method some of whose initial values come from real samples, such as the scales of weight normalisation."""

    first: Mapping[str, int]
    """Real samples that it looks at, by source: the first ones of the run's order, without noise or mirroring."""

    def start(self, networks: Mapping[str, nn.Module], real: Mapping[str, Tensors]) -> None:
        """Give the fresh networks their values. torch's default generator is seeded. Once, at iteration 0."""
        ...


def results_of(method: "Method") -> tuple[str, ...]:
    """The players whose networks are the results: `shown`, and the players that the method names in `kept`, if it has it.

    All of them are averaged, given to the sampler and exported.
    """
    return (method.shown, *getattr(method, "kept", ()))


class Shards(NamedTuple):
    """What a source reads."""

    url: str
    """As the settings give it."""
    manifest: Manifest
    """With the classes that are used."""


class ClassNames(NamedTuple):
    """What is known of the data's classes. Both are empty where nothing is known."""

    names: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    """Identifiers in the data, for example WordNet ids."""


NO_NAMES = ClassNames()


class Conditions(Protocol):
    """What a sampler can be asked for. A condition is one row of a tensor [n, ...]."""

    def parse(self, text: str) -> Tensor:
        """The condition that a person names. Raises `SettingError` with the closest name."""
        ...

    def evenly(self, count: int) -> Tensor:
        """At most `count` conditions, evenly chosen: the rows of a grid."""
        ...

    def in_turn(self, numbers: range) -> Tensor:
        """The conditions of the samples with these numbers: what measures ask for."""
        ...

    def caption(self, condition: Tensor) -> str:
        """A short name for one condition, or "" where there is nothing to say."""
        ...


class Sampler(Protocol):
    """What a trained method gives. Sample n is a function of the keys, n and its condition."""

    networks: Mapping[str, nn.Module]
    """The networks that make the samples."""
    conditions: Conditions
    output: str
    """The kind of a sample: `image` [C, H, W] in [-1, 1], or `vector` [D]."""

    def draw(self, source: torch.Generator, count: int) -> Tensor:
        """Latents [count, ...] on the CPU from a keyed generator."""
        ...

    def sample(self, latents: Tensor, conditions: Tensor) -> Tensor:
        """Samples [n, ...], at least float32, for latents [n, ...] and conditions [n, ...]."""
        ...


class Method(Protocol):
    """What a paper adds. It sees callables and tensors: no optimizer, no device, no process group.

    Random draws inside a pass come from torch's default generator, which the loop seeds for each turn and replica,
    unless no layer draws and the method says `draws = False`.
    """

    players: Mapping[str, Sequence[str]]
    """The names of each player's networks. The order of the players is that of the state."""
    shown: str
    """The player of which a moving average is kept, and which is sampled."""
    changes: Sequence[int]
    """The iterations at which turns read other numbers of samples than before, ascending; most methods have none. So places
    in the sources are closed forms of the iteration."""

    def build(self, network: str) -> nn.Module:
        """The network of this name, with weights drawn from torch's default generator."""
        ...

    def check(self, sources: Mapping[str, Shards]) -> None:
        """Raise `SettingError` unless the method fits the data of its sources."""
        ...

    def turns(self, iteration: int) -> Sequence[Turn]:
        """The turns of an iteration, in their order."""
        ...

    def draw(self, turn: Turn, keys: Keys, real: Mapping[str, Tensors]) -> Tensors:
        """One replica's draw for a turn.

        Args:
            keys: of this turn and replica. Draw on the CPU; the loop moves the tensors to the device.
            real: the fields of the samples read from each source, on the device: `image` float32 [B, C, H, W] in
                [-1, 1], `vector` float32 [B, D], `class` int64 [B].
        """
        ...

    def ahead(self, turn: Turn, networks: Networks, draw: Tensors) -> Tensors:
        """What the other players' networks make for this turn, without a graph. It joins the draw.

        `networks` holds the networks of the players that do not move. As these stay as they are, the draws of several
        turns in a row may come as one, joined along the first dimension; results must keep the samples' order.
        """
        ...

    def loss(self, turn: Turn, networks: Networks, draw: Tensors, memory: Tensors) -> tuple[dict[str, Tensor], Tensors]:
        """One replica's loss, and what the replica remembers from now on.

        "loss" is a scalar that the mover minimises. Other entries are detached scalars to log. The mover's networks come
        as its strategy wants them, the others bare and frozen.
        """
        ...

    def memory(self, replica: int) -> Tensors:
        """What a replica remembers at the start. Every replica has the same names, shapes and types."""
        ...

    def sampler(self, networks: Mapping[str, nn.Module], classes: ClassNames = NO_NAMES) -> Sampler:
        """The sampler of the networks of `shown`, and of those that are `kept`."""
        ...


@runtime_checkable
class ChecksMemory(Protocol):
    """A method that can tell whether what it remembers is of this experiment."""

    def check_memory(self, seed: int, iteration: int, replica: int, memory: Tensors) -> None:
        """Raise `CheckpointError` unless a replica may remember this before `iteration` of a run with this seed."""
        ...
