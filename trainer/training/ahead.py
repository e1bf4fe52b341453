"""What the other players' networks make for a turn: for all turns of a player in a row at once, or turn by turn.

While a player moves, the others stay as they are. So their passes for several of its turns can be one pass, in which
batch norm takes each turn's samples alone.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from trainer.methods.protocol import Method, Tensors, Turn
from trainer.models.layers import kept_kernels, normalised_in_groups
from trainer.models.replicas import replica_passes
from trainer.models.traits import can_group
from trainer.processes.launch import Launch
from trainer.speed.settings import SpeedConfig

Drawn = Sequence[Tensors]
"""A draw for each replica that this process holds."""


class Joined(Mapping[str, Tensor]):
    """Several draws as one, joined along the first dimension where they are looked at."""

    def __init__(self, draws: Sequence[Tensors]) -> None:
        self._draws = draws

    def __getitem__(self, name: str) -> Tensor:
        return torch.cat([draw[name] for draw in self._draws])

    def __iter__(self) -> Iterator[str]:
        return iter(self._draws[0])

    def __len__(self) -> int:
        return len(self._draws[0])


@torch.no_grad()
def make_ahead(
    method: Method,
    turns: Sequence[Turn],
    others: Mapping[str, nn.Module],
    drawn: Sequence[Drawn],
    held: Sequence[int],
    launch: Launch,
) -> list[list[dict[str, Tensor]]]:
    """Each turn's draws with what `others` make of them, one pass for each replica. `drawn[k][r]`: turn k, `held[r]`.

    Results and running statistics are those of one pass for each turn, in their order.
    """
    made: list[list[dict[str, Tensor]]] = [[] for _ in turns]
    with replica_passes(*others.values()) as start_replica, ExitStack() as stack:
        for network in others.values():
            stack.enter_context(normalised_in_groups(network, len(turns)))
        for row, replica in enumerate(held):
            start_replica(replica)
            draws = [of_turn[row] for of_turn in drawn]
            with launch.autocast():
                results = method.ahead(turns[0], others, Joined(draws))
            parts = {name: value.chunk(len(turns)) for name, value in results.items()}
            for number, (of_turn, draw) in enumerate(zip(made, draws, strict=True)):
                of_turn.append({**draw, **{name: chunks[number] for name, chunks in parts.items()}})
    return made


@contextmanager
def with_ahead(
    method: Method,
    turns: Sequence[Turn],
    others: Mapping[str, nn.Module],
    drawn: Iterable[Drawn],
    held: Sequence[int],
    launch: Launch,
    speed: SpeedConfig,
) -> Iterator[Iterable[tuple[Turn, Drawn, bool]]]:
    """Open while one player takes `turns` in a row, in which `others` stay as they are.

    Yields each turn with its draws, and whether what the others make is among them. Where it is not, it is made in the
    turn's own pass.
    """
    alike = all(turn.form == turns[0].form and turn.made == turns[0].made for turn in turns)
    if speed.grouped_generation and alike and len(turns) > 1 and all(can_group(network) for network in others.values()):
        made = make_ahead(method, turns, others, list(drawn), held, launch)
        yield ((turn, draws, True) for turn, draws in zip(turns, made, strict=True))
        return
    with ExitStack() as stack:
        for network in others.values() if speed.kept_kernels else ():
            stack.enter_context(kept_kernels(network))
        yield ((turn, draws, False) for turn, draws in zip(turns, drawn, strict=True))
