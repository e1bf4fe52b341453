"""What is computed of real images, by all processes together."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from data_pipeline.reading.stream import DataConfig
from trainer.metrics.samples import in_order
from trainer.processes.launch import Launch
from trainer.trained.real import RealChunk, real_chunks
from trainer.trained.sampling import CHUNK


class RealRows(NamedTuple):
    """What was computed of up to 50 real images."""

    ids: Tensor
    """int64 [n]."""
    labels: Tensor
    """int64 [n]."""
    values: Tensor
    """float64 [n, columns]."""


def over_real_images(
    launch: Launch, data: DataConfig, chunks: int, columns: int, work: Callable[[RealChunk], Tensor]
) -> Iterator[RealRows]:
    """`work(chunk)` [50, columns] of the first `chunks` chunks, dealt to the processes in contiguous blocks.

    The main process gets the rows of new images, chunk by chunk; every process must exhaust the iterator.
    """
    share = -(-chunks // launch.world_size)
    own = real_chunks(data, min(launch.rank * share, chunks), min((launch.rank + 1) * share, chunks))

    def next_rows(_number: int) -> Tensor:
        rows = torch.full((CHUNK, 2 + columns), -1.0, dtype=torch.float64)
        chunk = next(own, None)
        if chunk is not None:
            rows[:, 0], rows[:, 1], rows[:, 2:] = chunk.ids, chunk.labels, work(chunk)
            rows[chunk.new :, 0] = -1
        return rows

    for rows in in_order(launch, share * launch.world_size, (CHUNK, 2 + columns), next_rows):
        new = rows[rows[:, 0] >= 0]
        yield RealRows(new[:, 0].long(), new[:, 1].long(), new[:, 2:])
