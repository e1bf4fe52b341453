"""Places in the sources: how many samples each replica has read before an iteration, as a closed form of it."""

import itertools
from collections.abc import Iterator

from trainer.methods.protocol import Method


def sources_of(method: Method) -> list[str]:
    """The names of all sources that the method ever reads, sorted."""
    turns = [turn for iteration in (0, *method.changes) for turn in method.turns(iteration)]
    return sorted({source for turn in turns for source, samples in turn.reads.items() if samples})


def samples_read(method: Method, source: str, iteration: int) -> int:
    """Samples that each replica reads from the source in one iteration."""
    return sum(turn.reads.get(source, 0) for turn in method.turns(iteration))


def samples_before(method: Method, source: str, iteration: int) -> int:
    """Samples that each replica has read from the source before `iteration`: its place in the source."""
    edges = [0, *(change for change in method.changes if 0 < change < iteration), iteration]
    return sum(
        (end - begin) * samples_read(method, source, begin) for begin, end in itertools.pairwise(edges) if end > begin
    )


def batches_from(method: Method, source: str, iteration: int) -> Iterator[int]:
    """Samples of each batch that a replica reads from the source, from `iteration` on, without end."""
    for number in itertools.count(iteration):
        for turn in method.turns(number):
            if turn.reads.get(source, 0):
                yield turn.reads[source]
