"""How the training step is computed, not what: every setting here leaves the experiment as it is, up to rounding.

The plain forms are the reference. Parameters, checkpoints, hashes and initial weights do not know of these settings, so
a checkpoint moves freely between them; the bits that follow it then differ as after any other order of summation.
"""

import copy
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from trainer.errors import SettingError
from trainer.launch import Launch, share_object
from trainer.models.dcgan import ActivationNoise
from trainer.models.forms import (
    MATRIX,
    Placed,
    fixed_form,
    placed_convolutions,
    set_form,
    set_fused,
)
from trainer.models.layers import SpectralLayer, kept_kernels, normalised_in_groups
from trainer.models.replicas import replica_passes
from trainer.models.resnet import ResNetGenerator
from trainer.objectives import Generator, RealAndLatents
from trainer.stores import Store

if TYPE_CHECKING:
    from trainer.config import Config

logger = logging.getLogger("menagerie")

RECORD = "speed.json"
"""In the run's folder: what `speed.autotune` chose."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class SpeedConfig:
    """Exact rewrites of the training step; the defaults are what pays. README, "Speed"."""

    convolutions: Literal["plain", "merged", "transposed", "phases", "matrix", "measured"] = "measured"
    """3x3 convolutions of the residual blocks. `plain`: one after the other with the resampling beside them. `merged`: the
    discriminator's with the mean of 2x2 squares after them, as one 4x4 convolution of stride 2. `transposed`, `phases`: the
    generator's with the upsampling before them, as a transposed convolution or as four 2x2 convolutions of the small map.
    `matrix`: as matrix products. `measured`: all of these, each layer as was fastest in our timings (on a GPU: plain)."""
    low_resolution_shortcuts: bool = True
    """1x1 convolutions of the shortcuts at the lower resolution."""
    fused_spectral_norm: bool = True
    """Sigma, division and backward pass of spectral norm without copies of the weights."""
    fused_conditional_norm: bool = True
    """Conditional batch norm: gain and bias in the activations' precision, and in one go."""
    grouped_generation: bool = True
    """The generated images of all discriminator steps of an iteration in one pass of the generator, which does not change
    meanwhile; batch norm takes each step's images alone."""
    kept_kernels: bool = True
    """Without `grouped_generation`: keep the generator's enlarged kernels over the discriminator steps."""
    channels_last: bool = True
    """Channels innermost in memory (under ZeRO the weights lie in flat partitions, in their own order)."""
    fused_adam: bool = True
    """Adam in one kernel."""
    recompute_blocks: bool = False
    """Gradient checkpointing: the backward pass computes the generator's residual blocks again instead of keeping what is
    inside them. Less memory, about a third more work in the generator's step, the same numbers."""
    autotune: bool = False
    """Time all forms of `convolutions` at start, layer by layer, and take the fastest; the choice is kept in the run's folder
    (speed.json), so that the run goes on with the same kernels. It stands above `convolutions`."""
    cudnn_benchmark: bool = False
    """GPU: let cuDNN choose its algorithms by timing. Its choice, and so the last bits, may differ from start to start."""
    compile: Literal["none", "blocks", "graphs"] = "none"
    """GPU: torch.compile of every residual block (`blocks`), also as CUDA graphs (`graphs`). Never run on a GPU by us."""
    bf16_gradients: bool = False
    """DDP: send gradients in bfloat16, half the traffic, rounded to 8 bits before they are added up."""


PLAIN = SpeedConfig(
    convolutions="plain",
    low_resolution_shortcuts=False,
    fused_spectral_norm=False,
    fused_conditional_norm=False,
    grouped_generation=False,
    kept_kernels=False,
    channels_last=False,
    fused_adam=False,
)
"""Every rewrite off: the reference."""


def apply_speed(
    speed: SpeedConfig, generator: nn.Module, discriminator: nn.Module, resolution: int, launch: Launch
) -> None:
    """Put the settings into both networks, which were built for `resolution`. Raises `SettingError`."""
    check_speed(speed, launch)
    for network in (generator, discriminator):
        if not speed.channels_last and draws_inside(network):
            raise SettingError(
                "speed.channels_last: is false, but this network has dropout or noise, which is drawn in the order of memory: "
                "it would be another training; set it to true"
            )
        set_fused(
            network,
            spectral_norm=speed.fused_spectral_norm,
            conditional_norm=speed.fused_conditional_norm,
            low_resolution=speed.low_resolution_shortcuts,
        )
    for network in (generator, discriminator):
        for item in placed_convolutions(network, resolution):
            set_form(item, _chosen(speed, item, launch.device))
    if isinstance(generator, ResNetGenerator):
        generator.recompute = speed.recompute_blocks
    elif speed.recompute_blocks:
        raise SettingError(
            "speed.recompute_blocks: is true, but this generator has no residual blocks; set it to false"
        )
    if launch.device.type == "cuda":
        torch.backends.cudnn.benchmark = speed.cudnn_benchmark
    if speed.compile != "none":
        compile_blocks(speed, generator, discriminator)


def _chosen(speed: SpeedConfig, item: Placed, device: torch.device) -> str:
    if speed.convolutions == "measured":
        return fixed_form(item, device)
    if speed.convolutions == "matrix":
        return "plain" + MATRIX
    return speed.convolutions if speed.convolutions in item.resampling else "plain"


def check_speed(speed: SpeedConfig, launch: Launch) -> None:
    """Raise `SettingError` for settings that this launch cannot keep."""
    if speed.compile != "none" and launch.device.type != "cuda":
        raise SettingError(
            f"speed.compile: is {speed.compile!r}, which is for GPUs, and this process has none (on a CPU compiling takes "
            "longer than it gains); set it to none"
        )
    if speed.compile == "graphs" and launch.strategy != "single":
        raise SettingError(
            f"speed.compile: is 'graphs', which records the kernels of one process, and the launch asks for "
            f"{launch.strategy}; set it to blocks"
        )
    if speed.bf16_gradients and launch.strategy in ("zero1", "zero2"):
        raise SettingError(
            f"speed.bf16_gradients: is true, but under {launch.strategy} DeepSpeed sends the gradients; set it to false"
        )


def compile_blocks(speed: SpeedConfig, *networks: nn.Module, backend: str = "inductor") -> None:
    """Compile every residual block in place; names of parameters stay. The penalties' second derivatives are refused by
    `trainer.config`, since compiled code has none."""
    mode = "reduce-overhead" if speed.compile == "graphs" else None
    for network in networks:
        for block in getattr(network, "blocks", ()):
            block.compile(backend=backend, mode=mode if backend == "inductor" else None, dynamic=False)


# Generated images for all discriminator steps ---------------------------------------------------------------------


def draws_inside(network: nn.Module) -> bool:
    """Whether passes of the network draw from torch's default generator."""
    return any(
        (isinstance(layer, nn.Dropout) and layer.p > 0) or (isinstance(layer, ActivationNoise) and layer.std > 0)
        for layer in network.modules()
    )


def can_group(generator: nn.Module) -> bool:
    """Whether several passes of the generator can be one: no layer draws, and none but batch norm has a state."""
    other_norms = nn.modules.batchnorm._NormBase  # which know nothing of groups
    stateful = any(isinstance(layer, SpectralLayer | other_norms) for layer in generator.modules())
    return not stateful and not draws_inside(generator)


Draws = Sequence[RealAndLatents]
"""Of one discriminator step: one element for each replica at hand."""


@torch.no_grad()
def generate_ahead(
    generator: nn.Module, steps: Sequence[Draws], held: Sequence[int], launch: Launch
) -> list[list[Generator]]:
    """The generated images of all discriminator steps, one pass of the generator for each replica.

    `steps[k][r]` are the draws of step k for the replica `held[r]`. Images and running statistics are those of one pass
    for each step, in their order. Returns what stands for the generator in each step, for each replica.
    """
    made: list[list[Generator]] = [[] for _ in steps]
    with replica_passes(generator) as start_replica, normalised_in_groups(generator, len(steps)):
        for row, replica in enumerate(held):
            start_replica(replica)
            batches = [step[row] for step in steps]
            latents = torch.cat([batch.latents for batch in batches])
            with launch.autocast():
                images = generator(latents, torch.cat([batch.labels for batch in batches]))
            for of_step, batch, part in zip(made, batches, images.chunk(len(steps)), strict=True):
                of_step.append(_stand_in(generator, batch, part))
    return made


def _stand_in(generator: nn.Module, batch: RealAndLatents, images: Tensor) -> Generator:
    def generated(latents: Tensor, labels: Tensor) -> Tensor:
        if latents is batch.latents and labels is batch.labels:
            return images
        other: Tensor = generator(latents, labels)
        return other

    return generated


@contextmanager
def images_ahead(
    speed: SpeedConfig, generator: nn.Module, draws: Iterable[Draws], held: Sequence[int], launch: Launch
) -> Iterator[Iterable[tuple[Draws, Sequence[Generator]]]]:
    """Open while the discriminator's steps run, in which the generator stays as it is.

    Yields each step's draws, with what stands for the generator in it: images made ahead, or the generator itself.
    """
    if speed.grouped_generation and can_group(generator):
        steps = list(draws)
        if len(steps) > 1:
            yield zip(steps, generate_ahead(generator, steps, held, launch), strict=True)
            return
        draws = steps
    with kept_kernels(generator) if speed.kept_kernels else nullcontext():
        yield ((batches, [generator] * len(held)) for batches in draws)


# Choosing by timing -----------------------------------------------------------------------------------------------


def choose_forms(config: "Config", generator: nn.Module, discriminator: nn.Module, launch: Launch) -> None:
    """With `speed.autotune`, let every layer compute in the form that is fastest here, or that speed.json remembers.

    The main process times and remembers; the others follow. A record is for one device, precision and version of
    PyTorch; on another the layers are timed again, which is told.
    """
    if not config.speed.autotune:
        return
    items = {}
    for name, network, batch in (
        ("generator", generator, config.batch.generated_per_replica),
        ("discriminator", discriminator, config.batch.real_per_replica),
    ):
        for item in placed_convolutions(network, config.model.resolution):
            items[f"{name}.{item.name}"] = (item, batch)
    forms: dict[str, str] | None = None
    if launch.is_main:
        store, here = Store(config.run.dir), describe_device(launch)
        try:
            record = json.loads(store.get(RECORD))
        except FileNotFoundError:
            record = {}
        forms = record.get(here)
        if forms is None or forms.keys() != items.keys():
            if record:
                logger.warning("%s holds no timings for %s: timing again; the last bits may change", RECORD, here)
            forms = {name: fastest_form(item, batch, launch) for name, (item, batch) in items.items()}
            store.put(RECORD, json.dumps(record | {here: forms}, indent=1).encode())
        logger.info("speed.autotune: %s", ", ".join(f"{name} {form}" for name, form in forms.items()))
    for name, form in (share_object(launch, forms) or {}).items():
        set_form(items[name][0], form)


def fastest_form(item: Placed, batch: int, launch: Launch, repeats: int = 3) -> str:
    """The form whose forward and backward pass take the least time, the plain one unless another wins by 3%."""
    seconds = {}
    for form in item.alternatives:
        trial = item._replace(layer=copy.deepcopy(item.layer))
        set_form(trial, form)
        channels = trial.layer.weight.shape[1]
        x = torch.randn(batch, channels, item.side, item.side, device=launch.device)
        x = x.contiguous(memory_format=torch.channels_last)
        times = []
        for _ in range(repeats + 1):
            began = _now(launch)
            with launch.autocast():
                y = trial.layer(x.requires_grad_(True))
            y.backward(torch.ones_like(y))
            times.append(_now(launch) - began)
        seconds[form] = min(times[1:])
    best = min(seconds, key=lambda form: seconds[form])
    return best if seconds[best] < 0.97 * seconds["plain"] else "plain"


def _now(launch: Launch) -> float:
    if launch.device.type == "cuda":
        torch.cuda.synchronize(launch.device)
        return time.perf_counter()
    return time.process_time()


def describe_device(launch: Launch) -> str:
    """What timings are good for: device, precision, threads, version of PyTorch."""
    device = "cpu"
    if launch.device.type == "cuda":
        device = torch.cuda.get_device_name(launch.device)
    return f"{device}, {launch.precision}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def describe_host(speed: SpeedConfig, launch: Launch) -> str:
    """The line at the start of a run: what of the machine and the environment decides about its speed."""
    changed = [
        f"{field.name} {getattr(speed, field.name)}"
        for field in fields(SpeedConfig)
        if getattr(speed, field.name) != getattr(SpeedConfig(), field.name)
    ]
    settings = f"speed: {', '.join(changed) or 'the defaults'}"
    if launch.device.type == "cuda":
        return f"{torch.cuda.get_device_name(launch.device)}; torch {torch.__version__}; {settings}"
    threads, policy = torch.get_num_threads(), os.environ.get("OMP_WAIT_POLICY", "").lower()
    waiting = f"waiting {policy or 'as OpenMP pleases'}"
    if threads > 1 and policy != "passive":
        waiting += (
            " (where others use the machine too, spinning threads are up to ten times slower: OMP_WAIT_POLICY=passive)"
        )
    return f"CPU: threads {threads}, {waiting}; freed memory kept; torch {torch.__version__}; {settings}"
