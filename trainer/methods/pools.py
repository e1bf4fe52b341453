"""Pools of past images as memory, from which a discriminator learns (Shrivastava et al. 2017; Zhu et al. 2017, section 4).

The queries of a pool are numbered 0, 1, 2, ... While fewer than `size` images are stored, a query's image is stored and
given back. After that a fair coin decides: heads, the image goes to a random slot, and what that slot held is given back;
tails, the image is given back and nothing is stored (official util/image_pool.py).

Coins and slots are functions of (seed, domain, replica, query). So which query's image is in a slot can be computed; the
pixels, made by weights of the past, cannot. They are state.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.foundation import keys
from trainer.foundation.errors import CheckpointError

PASS, SWAP, FILL = 0, 1, 2
"""What becomes of a query's image: given back alone; stored, what was there is given back; stored and given back."""


@dataclass(frozen=True)
class PoolRule:
    """The rule of one pool: of one domain and replica of a run."""

    size: int
    seed: int
    domain: str
    replica: int

    def decide(self, query: int) -> tuple[int, int]:
        """What becomes of the image of this query, and its slot. The slot of `PASS` is not looked at."""
        if query < self.size:
            return FILL, query
        drawn = keys.key(self.seed, f"pool of {self.domain}", query, replica=self.replica)
        return (SWAP if drawn & 1 else PASS), (drawn >> 1) % self.size

    def held(self, queries: int) -> list[int]:
        """The query whose image each slot holds after so many queries, -1 for an empty slot."""
        slots = [-1] * self.size
        left = min(self.size, queries)
        for query in range(queries - 1, -1, -1):
            if not left:
                break
            what, slot = self.decide(query)
            if what != PASS and slots[slot] < 0:
                slots[slot], left = query, left - 1
        return slots

    def source(self, query: int) -> int:
        """The query whose image this query gives back."""
        what, slot = self.decide(query)
        return self.held(query)[slot] if what == SWAP else query

    def decisions(self, first: int, count: int) -> dict[str, Tensor]:
        """Of the queries first, first + 1, ...: `what`, `slot` and `query`, int64 [count] each, on the CPU."""
        decided = [self.decide(query) for query in range(first, first + count)]
        return {
            "what": torch.tensor([what for what, _ in decided]),
            "slot": torch.tensor([slot for _, slot in decided]),
            "query": torch.arange(first, first + count),
        }


def empty_pool(size: int, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """`images` float32 [size, C, H, W] and `queries` int64 [size]: which query filled each slot; -1: none yet."""
    return {"images": torch.zeros(size, *shape), "queries": torch.full((size,), -1)}


def query_pool(
    pool: Mapping[str, Tensor], images: Tensor, decisions: Mapping[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """What the pool gives back for images [n, C, H, W], one after another, and the pool after that.

    Nothing is an alias of what was given, and the host does not wait for the device.
    """
    stored, queries = pool["images"], pool["queries"]
    given = []
    for number, image in enumerate(images.detach().to(stored.dtype)):
        what, slot = decisions["what"][number], decisions["slot"][number : number + 1]
        there = stored.index_select(0, slot)[0]
        given.append(torch.where(what == SWAP, there, image))
        stored = stored.index_copy(0, slot, torch.where(what == PASS, there, image)[None])
        query = torch.where(what == PASS, queries.index_select(0, slot)[0], decisions["query"][number])
        queries = queries.index_copy(0, slot, query[None])
    return torch.stack(given), {"images": stored, "queries": queries}


def check_pool(rule: PoolRule, queries: int, found: Tensor) -> None:
    """Raise `CheckpointError` unless the slots hold what this rule puts there in so many queries.

    Args:
        found: int64 [size], the query that filled each slot.
    """
    for slot, (expected, query) in enumerate(zip(rule.held(queries), found.tolist(), strict=True)):
        if expected != query:
            raise CheckpointError(
                f"memory: slot {slot} of the pool of {rule.domain}, replica {rule.replica}, holds the image of query {query}, "
                f"and after {queries:,} queries with run.seed {rule.seed} it would hold that of query {expected}; resume "
                "with the run.seed and batch.real_per_replica that filled the pool"
            )
