"""Part a: one training step, against float64, against itself, against the clock."""

import os
import time
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.gpu_check.bench import Bench, Operations, launch_of, paper, seconds_of, worst
from benchmarks.gpu_check.runner import Check
from trainer.checkpoint.commits import state_hash
from trainer.costs.counted import count, turns_of
from trainer.foundation.arithmetic import Arithmetic, set_arithmetic
from trainer.models.layers import Convolution, SpectralConv2d
from trainer.processes.launch import Precision, Strategy, start_processes, stop_processes
from trainer.speed.settings import PLAIN, SpeedConfig
from trainer.training.draws import Draws, Source

CPU = torch.device("cpu")


def ceilings(check: Check) -> None:
    """What the card does at best: matrices, memory, the networks' convolutions in both layouts."""
    side = 128 if check.small else 8192
    kinds = (("bf16", torch.bfloat16, False), ("tf32", torch.float32, True), ("fp32", torch.float32, False))
    found = []
    for name, dtype, tf32 in kinds:
        set_arithmetic(Arithmetic(tf32=tf32))
        a = torch.randn(side, side, device=check.device, dtype=dtype)
        found.append(f"matmul {name} {_rate(check, lambda a=a: a @ a, 2 * side**3) / 1e12:.2f} TFLOP/s")
    size = 2**20 if check.small else 2**30
    a = torch.empty(size, dtype=torch.uint8, device=check.device)
    b = torch.empty_like(a)
    found.append(f"copy {_rate(check, lambda: b.copy_(a), 2 * size) / 1e12:.3f} TB/s")
    check.say("ceilings", "FIGURE", "; ".join(found))
    set_arithmetic()
    shapes = [(64, 64, 128, 32), (128, 128, 64, 32), (512, 512, 16, 32), (1024, 1024, 8, 32), (1024, 1024, 4, 128)]
    shapes += [(3, 64, 128, 32), (64, 3, 128, 32)]
    layouts = ((torch.bfloat16, torch.channels_last), (torch.float32, torch.channels_last))
    for given, made, width, batch in [(8, 8, 8, 2)] if check.small else shapes:
        for dtype, layout in (*layouts, (torch.float32, torch.contiguous_format)):
            x = torch.randn(batch, given, width, width, device=check.device, dtype=dtype).contiguous(
                memory_format=layout
            )
            w = torch.randn(made, given, 3, 3, device=check.device, dtype=dtype).contiguous(memory_format=layout)
            work = 2 * 9 * given * made * width * width * batch
            rates = _convolution_rates(check, x.requires_grad_(True), w.requires_grad_(True), work)
            name = f"{given}->{made} at {width}, {batch} images, {str(dtype)[6:]}, {str(layout)[6:]}"
            check.detail(f"convolution {name}: {rates} TFLOP/s forward, both ways")


def _convolution_rates(check: Check, x: torch.Tensor, w: torch.Tensor, work: float) -> str:
    gradient = torch.randn_like(F.conv2d(x, w, padding=1))
    forward = _rate(check, lambda: F.conv2d(x, w, padding=1), work)
    both = _rate(check, lambda: torch.autograd.grad(F.conv2d(x, w, padding=1), (x, w), gradient), 3 * work)
    return f"{forward / 1e12:.2f}, {both / 1e12:.2f}"


def _rate(check: Check, function: Callable[[], object], work: float, repeats: int = 10) -> float:
    for _ in range(3):
        function()
    check.wait()
    began = time.perf_counter()
    for _ in range(repeats):
        function()
    check.wait()
    return work * repeats / (time.perf_counter() - began)


def correctness(check: Check) -> None:
    """Two iterations in float64 here, in every form, against the plain form on the CPU: all of the state."""
    config = paper(True)

    def trained(device: torch.device, speed: SpeedConfig) -> dict[str, torch.Tensor]:
        bench = Bench(config, launch_of(device), speed, double=True, epsilon=1e-2)
        for _ in range(2):
            bench.iterate()
        return bench.state()

    expected = trained(CPU, PLAIN)
    forms = {"plain": PLAIN, "defaults": SpeedConfig(), "recompute": SpeedConfig(recompute_blocks=True)}
    forms |= {name: SpeedConfig(convolutions=name) for name in ("merged", "transposed", "phases", "matrix")}
    for name, speed in forms.items():
        difference, tensor = worst(trained(check.device, speed), expected)
        check.judge(f"float64 {name}", difference < 1e-9, f"{difference:.1e} from the CPU ({tensor})")


def gradients(check: Check) -> None:
    """Every precision's gradients of one iteration against float64's on the same device."""
    config = paper(True)

    def of(precision: Precision, double: bool, tf32: bool) -> dict[str, torch.Tensor]:
        set_arithmetic(Arithmetic(tf32=tf32))
        bench = Bench(config, launch_of(check.device, precision), double=double)
        bench.iterate()
        return {
            name: torch.cat(
                [p.grad.double().flatten().cpu() for _, p in player.named_parameters() if p.grad is not None]
            )
            for name, player in bench.players.items()
        }

    expected = of("fp32", True, False)
    cases: list[tuple[str, Precision, bool, float]] = [("fp32", "fp32", False, 5e-3), ("bf16", "bf16", False, 0.4)]
    if check.device.type == "cuda":
        cases += [("tf32", "fp32", True, 1e-1)]
    for name, precision, tf32, bound in cases:
        found = of(precision, False, tf32)
        far = {k: float((found[k] - v).norm() / v.norm()) for k, v in expected.items()}
        check.judge(f"gradients {name}", max(far.values()) < bound, ", ".join(f"{k} {v:.1e}" for k, v in far.items()))


def waits(check: Check) -> None:
    """Host waits and operations of an iteration with its draws, and how long the draws and the copies take."""
    config = paper(check.small)
    bench = Bench(config, launch_of(check.device, "bf16"))
    source = Source("data", _batches(config), config.batch.dequantize, horizontal_flip=False)
    held = range(config.batch.replicas)

    def loop() -> None:
        bench.iterate(Draws(bench.method, {"data": source}, 0, 0, 0, held, check.device).of)

    for _ in range(2):
        loop()
    check.wait()
    with Operations() as counted:
        loop()
    check.say(
        "operations", "FIGURE", f"{counted.count:,} an iteration, {config.batch.replicas} replicas, draws included"
    )
    if check.device.type == "cuda":
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            loop()
            torch.cuda.set_sync_debug_mode("default")
        where = sorted({f"{w.filename.split('/')[-1]}:{w.lineno}" for w in found if "synchroniz" in str(w.message)})
        check.judge("host waits", not where, f"{len(where)} places {', '.join(where[:6])}")
        _profile(check, loop)
    repeats = 2 if check.small else 5
    whole, bare = seconds_of(check, loop, repeats), seconds_of(check, bench.iterate, repeats)
    check.say("draws", "FIGURE", f"{whole:.4f} s an iteration with draws and copies, {bare:.4f} s without")


def _batches(config: Any) -> Any:
    batch, model = config.batch, config.model
    shape = (batch.replicas, batch.real_per_replica)
    fields = {
        "image": torch.zeros(*shape, model.resolution, model.resolution, model.image_channels, dtype=torch.uint8),
        "class": torch.zeros(*shape, dtype=torch.int64),
    }

    def forever() -> Iterator[SimpleNamespace]:
        while True:
            yield SimpleNamespace(fields=fields, positions=torch.zeros(*shape, dtype=torch.int64))

    return forever()


def _profile(check: Check, function: Callable[[], None]) -> None:
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profile:
        began = time.perf_counter()
        function()
        check.wait()
        wall = time.perf_counter() - began
    kernels = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    busy = sum(event.device_time for event in kernels) * 1e-6
    check.detail(profile.key_averages().table(sort_by="device_time_total", row_limit=40))
    peak = torch.cuda.max_memory_allocated(check.device) / 2**30
    check.say(
        "kernels",
        "FIGURE",
        f"{len(kernels):,} kernels, GPU busy {busy:.3f} s of {wall:.3f} s (profiled), {peak:.1f} GiB",
    )


def speed(check: Check) -> None:
    """Seconds of an iteration of the paper's batch in every form and precision."""
    config = paper(check.small)
    work = config.batch.replicas * count(config, PLAIN, torch.device("cuda")).iteration(turns_of(config))
    cases: list[tuple[str, Precision, Arithmetic, SpeedConfig]] = [
        ("bf16", "bf16", Arithmetic(), SpeedConfig()),
        ("bf16 plain", "bf16", Arithmetic(), PLAIN),
        ("bf16 nchw", "bf16", Arithmetic(), SpeedConfig(channels_last=False)),
        ("bf16 cudnn timing", "bf16", Arithmetic(benchmark=True), SpeedConfig()),
        *((f"bf16 {form}", "bf16", Arithmetic(), SpeedConfig(convolutions=form)) for form in ("merged", "phases")),
        ("fp32", "fp32", Arithmetic(), SpeedConfig()),
        ("fp32 nchw", "fp32", Arithmetic(), SpeedConfig(channels_last=False)),
        ("tf32", "fp32", Arithmetic(tf32=True), SpeedConfig()),
        ("fp16", "fp16", Arithmetic(), SpeedConfig()),
    ]
    for name, precision, arithmetic, settings in cases[:2] if check.small else cases:
        set_arithmetic(arithmetic)
        if check.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(check.device)
        bench = Bench(config, launch_of(check.device, precision), settings)
        images = config.batch.replicas * sum(sum(turn.reads.values()) for turn in bench.turns)
        took = seconds_of(check, bench.iterate, 2 if check.small else 5)
        memory = (
            f", {torch.cuda.max_memory_allocated(check.device) / 2**30:.1f} GiB" if check.device.type == "cuda" else ""
        )
        rate = f"{work / took / 1e12:.3f} TFLOP/s of the plain form's operations"
        check.say(f"speed {name}", "FIGURE", f"{took:.4f} s, {images / took:,.0f} real images/s, {rate}{memory}")
        del bench


def determinism(check: Check) -> None:
    """The same iterations twice, the second time through a state and new players: the same bits?"""
    config = paper(check.small)
    precisions: tuple[Precision, ...] = ("bf16",) if check.small else ("bf16", "fp32")
    for precision in precisions:
        for fixed in (True, False):
            set_arithmetic()
            torch.backends.cudnn.deterministic = fixed
            hashes, took = zip(
                *(_three_iterations(check, config, precision, again) for again in (False, True)), strict=True
            )
            same = hashes[0] == hashes[1]
            name = f"bits {precision}" + ("" if fixed else ", cuDNN as it likes")
            verdict = ("PASS" if same else "FAIL") if fixed else "FIGURE"
            equal = "equal" if same else "DIFFERENT"
            check.say(name, verdict, f"{equal} after a resume, {min(took):.4f} s an iteration")  # type: ignore[arg-type]
    if check.device.type == "cuda":
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            torch.use_deterministic_algorithms(True, warn_only=True)
            Bench(paper(True), launch_of(check.device, "bf16")).iterate()
            torch.use_deterministic_algorithms(False)
        bad = sorted({str(w.message)[:90] for w in found if "determinis" in str(w.message)})
        check.judge("operations without a fixed order", not bad, "; ".join(bad) or "none")


def _three_iterations(check: Check, config: Any, precision: Precision, resumed: bool) -> tuple[str, float]:
    bench, times = Bench(config, launch_of(check.device, precision)), []
    for number in range(3):
        began = time.perf_counter()
        bench.iterate()
        check.wait()
        times.append(time.perf_counter() - began)
        if resumed and number == 0:
            state = bench.state()
            bench = Bench(config, launch_of(check.device, precision), seed=5)
            bench.load(state)
    return state_hash(bench.state()), min(times)


def strategies(check: Check) -> None:
    """DDP and ZeRO with one process: what ZeRO's engine computes in, and the difference from the single form."""
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed wants it
    config = paper(True)
    reference = Bench(config, launch_of(check.device, "bf16"))
    reference.iterate()
    expected, names = reference.state(), ["ddp"] if check.small else ["ddp", "zero1", "zero2"]
    start_processes(launch_of(check.device, "bf16", "zero1"))
    try:
        for name in names:
            strategy: Strategy = name  # type: ignore[assignment]
            bench = Bench(config, launch_of(check.device, "bf16", strategy))
            seen = _watched(bench)
            bench.iterate()
            far, tensor = worst(bench.state(), expected)
            computes = f"computes in {'+'.join(sorted(seen))}"
            good = seen == {"bfloat16"} and far < 0.05
            check.judge(f"strategy {name}", good, f"{computes}, {far:.1e} from one process ({tensor})")
    finally:
        stop_processes()


def _watched(bench: Bench) -> set[str]:
    """What the convolutions of all players compute in from now on."""
    seen: set[str] = set()

    def note(module: Any, given: Any, result: torch.Tensor) -> None:
        seen.add(str(result.dtype).removeprefix("torch."))

    for player in bench.players.values():
        for module in (m for network in player.modules.values() for m in network.modules()):
            if isinstance(module, SpectralConv2d | Convolution):
                module.register_forward_hook(note)
    return seen
