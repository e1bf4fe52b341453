"""What the launch gave this process: rank, device, precision, strategy. The experiment's YAML never mentions hardware."""

import ctypes
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.errors import NonFinite, TrainerError

Precision = Literal["fp32", "bf16"]
Strategy = Literal["single", "ddp"]
T = TypeVar("T")


@dataclass(frozen=True)
class Launch:
    """One process's view of the launch."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    precision: Precision
    strategy: Strategy

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0

    def autocast(self) -> torch.autocast:
        """The context in which networks run: bf16 autocast, or nothing."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def held_replicas(self, replicas: int) -> range:
        """The contiguous block of replicas that this process runs; the first processes hold one more if it is uneven.

        Raises `TrainerError` if there are more processes than replicas.
        """
        if self.world_size > replicas:
            raise TrainerError(
                f"batch.replicas: is {replicas}, but the launch started {self.world_size} processes, and "
                f"{self.world_size - replicas} of them would have nothing to do; launch at most {replicas} processes "
                f"or raise batch.replicas (which changes the experiment)"
            )
        base, extra = divmod(replicas, self.world_size)
        start = self.rank * base + min(self.rank, extra)
        return range(start, start + base + (self.rank < extra))


def read_launch() -> Launch:
    """Read the launch from the environment that `accelerate launch` (or torchrun) set; starts nothing."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    mixed = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if mixed not in ("no", "bf16"):
        raise TrainerError(
            f"mixed_precision (accelerate's YAML): is {mixed!r}, which is not supported yet; set it to 'no' or 'bf16'"
        )
    for variable, what in (("ACCELERATE_USE_DEEPSPEED", "DEEPSPEED"), ("ACCELERATE_USE_FSDP", "FSDP")):
        if os.environ.get(variable, "false").lower() == "true":
            raise TrainerError(
                f"distributed_type (accelerate's YAML): is {what}, which is not supported yet; "
                "use cluster/launch/ddp.yaml or cluster/launch/single.yaml"
            )
    use_cuda = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "false").lower() != "true"
    return Launch(
        rank=int(os.environ.get("RANK", "0")),
        world_size=world_size,
        local_rank=local_rank,
        device=torch.device("cuda", local_rank) if use_cuda else torch.device("cpu"),
        precision=cast(Precision, "fp32" if mixed == "no" else mixed),
        strategy="ddp" if world_size > 1 else "single",
    )


def keep_freed_memory() -> None:
    """Make glibc keep large freed blocks (CPU only): by default each large tensor is mapped, faulted in and unmapped.

    Numbers do not change. Measured for batch norm + ReLU at 8 x 64 x 128 x 128: 0.157 s with, 0.032 s without the faults.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mmap_max, trim_threshold, top_pad = -4, -1, -2  # glibc's malloc.h
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(top_pad, 64 << 20)


def start_processes(launch: Launch, timeout: timedelta = timedelta(minutes=10)) -> None:
    """Join the process group and check that it is what the launch announced."""
    if launch.device.type == "cuda":
        torch.cuda.set_device(launch.device)
    else:
        keep_freed_memory()
    if launch.world_size == 1:
        return
    dist.init_process_group("nccl" if launch.device.type == "cuda" else "gloo", timeout=timeout)
    if dist.get_world_size() != launch.world_size:
        raise TrainerError(
            f"WORLD_SIZE: the launcher announced {launch.world_size} processes, {dist.get_world_size()} came"
        )


def stop_processes(launch: Launch) -> None:
    """Leave the process group."""
    if launch.world_size > 1 and dist.is_initialized():
        dist.destroy_process_group()


def sum_over_processes(launch: Launch, values: Tensor) -> Tensor:
    """The sum of `values` over all processes, in place; the values themselves in a single process."""
    if launch.world_size > 1:
        dist.all_reduce(values)
    return values


def share_from_main(launch: Launch, tensors: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """The main process's tensors, on every process (each tensor sent by one broadcast); `None` elsewhere."""
    if launch.world_size == 1:
        assert tensors is not None
        return tensors
    table = [None if tensors is None else [(n, t.shape, t.dtype) for n, t in tensors.items()]]
    dist.broadcast_object_list(table, src=0, device=launch.device)
    assert table[0] is not None
    shared = {}
    for name, shape, dtype in table[0]:
        if tensors is None:
            tensor = torch.empty(shape, dtype=dtype, device=launch.device)
        else:
            tensor = tensors[name].to(launch.device).contiguous()
        dist.broadcast(tensor, src=0)
        shared[name] = tensor.cpu()
    return shared


def share_object(launch: Launch, value: T) -> T:
    """The main process's value, on every process."""
    if launch.world_size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=launch.device)
    return box[0]


def share_failure(launch: Launch, error: TrainerError | None) -> None:
    """Raise the main process's failure there and leave quietly elsewhere: nobody is left waiting, one process tells it.

    Numbers that are not finite are everybody's: the processes may go back together.
    """
    status, text = share_object(launch, (error.exit_status, str(error)) if error else (0, ""))
    finite = share_object(launch, not isinstance(error, NonFinite))
    if error is not None:
        raise error
    if not finite:
        raise NonFinite(text)
    if status:
        raise SystemExit(status)


def held_description(launch: Launch, replicas: int) -> str:
    """How the replicas are dealt, for people: "4 replicas on 3 processes (2 + 1 + 1), ddp, fp32, cpu"."""
    base, extra = divmod(replicas, launch.world_size)
    shares = " + ".join(str(base + (rank < extra)) for rank in range(min(launch.world_size, 8)))
    shares += " + ..." if launch.world_size > 8 else ""
    dealt = f" ({shares})" if launch.world_size > 1 else ""
    return (
        f"{_count(replicas, 'replica')} on {_count(launch.world_size, 'process', 'es')}{dealt}, "
        f"{launch.strategy}, {launch.precision}, {launch.device.type}"
    )


def _count(number: int, noun: str, plural: str = "s") -> str:
    return f"{number} {noun}{plural if number != 1 else ''}"
