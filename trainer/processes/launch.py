"""What the launch gave this process: rank, device, precision, strategy. The experiment's YAML never mentions hardware."""

import ctypes
import hashlib
import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal, TypeVar, cast

import torch
import torch.distributed as dist
import yaml
from torch import Tensor

from trainer.foundation.errors import NonFinite, SettingError, TrainerError

Precision = Literal["fp32", "bf16", "fp16"]
Strategy = Literal["single", "ddp", "zero1", "zero2"]
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
        """The context in which networks run: bf16 or fp16 autocast, or nothing."""
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, dtype=dtype, enabled=self.precision != "fp32")

    def held_replicas(self, replicas: int) -> range:
        """The contiguous block of replicas that this process runs; the first processes hold one more if it is uneven.

        With more processes than replicas each replica is shared by equally many processes, one behind the other. Raises
        `TrainerError` if their number is no multiple of the replicas.
        """
        if self.world_size > replicas:
            if self.world_size % replicas:
                below, above = self.world_size // replicas * replicas, -(-self.world_size // replicas) * replicas
                raise TrainerError(
                    f"batch.replicas: is {replicas}, but the launch started {self.world_size} processes, which cannot share "
                    f"them evenly; launch {below} or {above} processes, or at most {replicas}"
                )
            shared = self.rank // self.parts(replicas)
            return range(shared, shared + 1)
        base, extra = divmod(replicas, self.world_size)
        start = self.rank * base + min(self.rank, extra)
        return range(start, start + base + (self.rank < extra))

    def parts(self, replicas: int) -> int:
        """Into how many equal parts a replica's batches are cut: the number of processes that share it. 1: it is whole."""
        return max(1, self.world_size // replicas)

    def part(self, replicas: int) -> int:
        """Which part of its replica's batches this process computes, from 0."""
        return self.rank % self.parts(replicas) if self.world_size > replicas else 0

    def owner(self, replica: int, replicas: int) -> int:
        """The rank of the process that runs a replica; of several that share it, the first."""
        if self.world_size > replicas:
            return replica * self.parts(replicas)
        base, extra = divmod(replicas, self.world_size)
        first = extra * (base + 1)  # the replicas of the processes that hold one more
        return replica // (base + 1) if replica < first else extra + (replica - first) // base


def read_launch(device: str | None = None) -> Launch:
    """Read the launch from the environment that `accelerate launch` (or torchrun) set; starts nothing.

    `device`: `cpu` or `cuda`; None: a GPU where one is seen and the launch does not say CPU. Raises `TrainerError`,
    beginning with the key of accelerate's YAML or with --device, for what is not supported.
    """
    environment = os.environ
    world_size = int(environment.get("WORLD_SIZE", "1"))
    local_rank = int(environment.get("LOCAL_RANK", "0"))
    if device not in (None, "cpu", "cuda"):
        raise SettingError(f"--device: is {device!r}; give cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise SettingError("--device: is 'cuda', but this process sees no GPU; give cpu, or leave it out")
    use_cuda = torch.cuda.is_available() and not _is_true("ACCELERATE_USE_CPU") if device is None else device == "cuda"
    mixed = environment.get("ACCELERATE_MIXED_PRECISION", "no")
    if mixed not in ("no", "bf16", "fp16"):
        raise TrainerError(f"mixed_precision (accelerate's YAML): is {mixed!r}; set it to 'no', 'bf16' or 'fp16'")
    if _is_true("ACCELERATE_USE_FSDP"):
        raise TrainerError(
            "distributed_type (accelerate's YAML): is FSDP, which shards the parameters themselves; these networks are small, "
            "and each is called from the other's step: use ddp.yaml, zero1.yaml or zero2.yaml of cluster/launch"
        )
    strategy: Strategy = "ddp" if world_size > 1 else "single"
    if _is_true("ACCELERATE_USE_DEEPSPEED"):
        strategy = _zero_stage()
        if mixed == "fp16":
            raise TrainerError(
                "mixed_precision (accelerate's YAML): is 'fp16' with DeepSpeed, whose scaling of the losses would have to be "
                "shared by two engines; set it to 'bf16', or use cluster/launch/ddp.yaml"
            )
    if mixed == "fp16" and not use_cuda:
        raise TrainerError(
            "mixed_precision (accelerate's YAML): is 'fp16', but there is no GPU; set it to 'no' or 'bf16'"
        )
    announced = _announced_processes()
    if announced is not None and announced != world_size:
        raise TrainerError(
            f"num_processes (accelerate's YAML): {announced} processes were asked for, but this one was started as one of "
            f"{world_size}; set distributed_type to MULTI_GPU (accelerate starts a single process for MULTI_CPU and for --cpu)"
        )
    if use_cuda:
        _check_card(local_rank, world_size)
    return Launch(
        rank=int(environment.get("RANK", "0")),
        world_size=world_size,
        local_rank=local_rank,
        device=torch.device("cuda", local_rank) if use_cuda else torch.device("cpu"),
        precision=cast(Precision, "fp32" if mixed == "no" else mixed),
        strategy=strategy,
    )


def _check_card(local_rank: int, world_size: int) -> None:
    """Raise `TrainerError` unless there is a GPU for this process: NCCL wants one for each (a MIG slice counts as one GPU,
    and a process sees no second one)."""
    seen = torch.cuda.device_count()
    if local_rank >= seen:
        raise TrainerError(
            f"num_processes (accelerate's YAML): this is process {local_rank} of its machine (from 0; {world_size} in all), "
            f"and it sees {seen} GPU{'s' if seen != 1 else ''}; start one process for each GPU, with "
            "cluster/launch/single_bf16.yaml on one, or train on the CPU with cluster/launch/cpu.yaml; where a batch system "
            "shows each process a GPU of its own, let every process see all of its machine's"
        )


def _is_true(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() == "true"


def _zero_stage() -> Strategy:
    """The strategy that accelerate's DeepSpeed keys ask for; refuses those that would change the experiment."""
    environment, where = os.environ, "deepspeed_config (accelerate's YAML)"
    if "ACCELERATE_DEEPSPEED_CONFIG_FILE" in environment:
        raise TrainerError(
            f"{where}: names a file of DeepSpeed's; give zero_stage alone, as cluster/launch/zero2.yaml does"
        )
    stage = environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    if stage not in ("1", "2"):
        raise TrainerError(
            f"{where}: zero_stage is {stage}; set it to 1 or 2 (stage 3 shards the parameters themselves, and each network is "
            "called from the other's step; stage 0 is cluster/launch/ddp.yaml)"
        )
    clipping = environment.get("ACCELERATE_GRADIENT_CLIPPING", "0.0")
    if clipping.lower() != "none" and float(clipping) != 0.0:
        raise TrainerError(
            f"{where}: gradient_clipping is {clipping}, but the experiment clips nothing; set it to 0.0 (this key belongs to "
            "the science, and the launch must not change that)"
        )
    for variable, key, allowed in (
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "gradient_accumulation_steps", ("1",)),
        ("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "offload_optimizer_device", ("none",)),
        ("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "offload_param_device", ("none",)),
    ):
        value = environment.get(variable, allowed[0])
        if value.lower() not in allowed:
            raise TrainerError(f"{where}: {key} is {value}, which is not supported; set it to {allowed[0]}")
    return "zero1" if stage == "1" else "zero2"


def _announced_processes() -> int | None:
    """How many processes whoever started this one had in mind, where that can be known."""
    if "WORLD_SIZE" in os.environ:
        return None  # a launcher's own figure; checked against who comes, in start_processes
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS")
    if tasks is not None and "SLURM_PROCID" in os.environ and int(tasks) > 1:
        return int(tasks)
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_text().split("\0")
    except OSError:
        return None
    if not any(Path(word).name in ("accelerate", "accelerate-launch") for word in words[:3]):
        return None
    for key in ("--num_processes", "--num-processes"):
        if key in words:
            return int(words[words.index(key) + 1])
    for key in ("--config_file", "--config-file"):
        if key in words:
            return _yaml_processes(words[words.index(key) + 1])
    return None


def _yaml_processes(path: str) -> int | None:
    try:
        return int(yaml.safe_load(Path(path).read_text()).get("num_processes", 1))
    except (OSError, AttributeError, ValueError, yaml.YAMLError):
        return None


def keep_freed_memory() -> None:
    """Make glibc keep large freed blocks (CPU only): by default each large tensor is mapped, faulted in and unmapped.

    Numbers do not change. Measured for batch norm + ReLU at 8 x 64 x 128 x 128: 0.157 s with, 0.032 s without the faults.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mmap_max, trim_threshold, top_pad = -4, -1, -2  # glibc's malloc.h
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)  # never; a figure would be an int, and so at most 2 GiB
        mallopt(top_pad, 64 << 20)


def start_processes(launch: Launch, timeout: timedelta = timedelta(minutes=10)) -> None:
    """Join the process group and check that it is what the launch announced."""
    if launch.device.type == "cuda":
        torch.cuda.set_device(launch.device)
    else:
        keep_freed_memory()
    # On GPUs what lies in host memory goes through gloo: NCCL would have the host wait for all that the GPU has to do.
    backend = "cpu:gloo,cuda:nccl" if launch.device.type == "cuda" else "gloo"
    if launch.world_size == 1:
        if launch.strategy != "single":  # DeepSpeed asks for a group even where there is nobody else
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
        return
    dist.init_process_group(backend, timeout=timeout)
    if dist.get_world_size() != launch.world_size:
        raise TrainerError(
            f"WORLD_SIZE: the launcher announced {launch.world_size} processes, {dist.get_world_size()} came"
        )
    if launch.device.type == "cuda":
        properties = torch.cuda.get_device_properties(launch.device)
        check_cards(launch, f"{socket.gethostname()}/{properties.uuid}")


def check_cards(launch: Launch, card: str) -> None:
    """Raise `TrainerError` on every process if two of them have the same GPU, which NCCL refuses less clearly."""
    cards = torch.zeros(launch.world_size, dtype=torch.int64)
    cards[launch.rank] = int.from_bytes(hashlib.blake2b(card.encode(), digest_size=8).digest(), "little") >> 1
    found = sum_over_processes(launch, cards).tolist()
    for rank, other in enumerate(found):
        if (first := found.index(other)) != rank:
            raise TrainerError(
                f"LOCAL_RANK: processes {first} and {rank} have the same GPU; start them with `accelerate launch` or torchrun, "
                "which number the processes of a machine, one for each of its GPUs"
            )


def stop_processes() -> None:
    """Leave the process group."""
    if dist.is_initialized():
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
        dist.broadcast(tensor.reshape(-1).view(torch.uint8), src=0)  # bytes: every type can be sent
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
    if (parts := launch.parts(replicas)) > 1:
        dealt = f" ({parts} share each replica)"
    return (
        f"{_count(replicas, 'replica')} on {_count(launch.world_size, 'process', 'es')}{dealt}, "
        f"{launch.strategy}, {launch.precision}, {launch.device.type}"
    )


def _count(number: int, noun: str, plural: str = "s") -> str:
    return f"{number} {noun}{plural if number != 1 else ''}"
