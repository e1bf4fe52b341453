"""What a run would do and cost, without data and without a GPU."""

import torch
from torch import nn

from trainer.config import Config, as_yaml
from trainer.methods import schedule
from trainer.methods.terms import guidance
from trainer.models import build_discriminator, build_generator
from trainer.processes.launch import Launch, held_description

MIB = 2**20


def describe(config: Config, launch: Launch) -> str:
    """The resolved settings, parameter counts, batch arithmetic, stages, memory and traffic estimates."""
    with torch.device("meta"):
        generator = build_generator(config.generator, config.model)
        discriminator = build_discriminator(config.discriminator, config.model)
    counts = {"generator": _parameters(generator), "discriminator": _parameters(discriminator)}
    sections = {
        "settings": as_yaml(config).rstrip(),
        "parameters": "\n".join(f"{name}: {count:,}" for name, count in counts.items()),
        "batch": "\n".join(_batch(config, launch)),
        "stages": "\n".join(
            [
                *schedule.describe(config.schedule, config.run.iterations, config.optimizer.generator.learning_rate),
                *guidance.describe(config.classifier_loss),
            ]
        ),
        "memory of one process, estimated": "\n".join(_memory(config, launch, generator, discriminator)),
        "traffic, estimated": "\n".join(_traffic(config, launch, counts)),
    }
    body = "\n\n".join(f"# {title}\n{text}" for title, text in sections.items())
    return f"{body}\n\ndry run: nothing was read or written"


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _batch(config: Config, launch: Launch) -> list[str]:
    batch, steps = config.batch, config.schedule.discriminator_steps
    real = batch.replicas * batch.real_per_replica
    return [
        held_description(launch, batch.replicas),
        f"one discriminator step: {batch.replicas} replicas x {batch.real_per_replica} = {real} real and {real} generated "
        "images",
        f"the generator's step: {batch.replicas} replicas x {batch.generated_per_replica} = "
        f"{batch.replicas * batch.generated_per_replica} generated images",
        f"one iteration: 1 generator step, then {steps} discriminator steps = {real * steps} real images",
        f"the run: {config.run.iterations:,} iterations = {config.run.iterations * real * steps:,} real images",
    ]


def _memory(config: Config, launch: Launch, generator: nn.Module, discriminator: nn.Module) -> list[str]:
    held = len(launch.held_replicas(config.batch.replicas))
    weights = _parameters(generator) + _parameters(discriminator)
    state = state_bytes(weights, launch.strategy, launch.world_size) / MIB
    width = 2 if launch.precision == "bf16" else 4
    model, generated = config.model, config.batch.generated_per_replica
    latents = (model.latent_dim,)
    images = (model.image_channels, model.resolution, model.resolution)
    inside = _activations(generator, generated, latents, recomputed=config.speed.recompute_blocks)
    generator_step = inside + _activations(discriminator, generated, images)
    discriminator_step = _activations(discriminator, 2 * config.batch.real_per_replica, images)
    step = max(generator_step, discriminator_step) * held * width / MIB
    return [
        f"weights, gradients and Adam's moments ({launch.strategy}, {launch.world_size} processes): {state:,.0f} MiB",
        f"activations kept for the backward pass: {step:,.0f} MiB ({held} replicas at once; the sum of all layers' outputs)",
    ]


def state_bytes(parameters: int, strategy: str, world_size: int) -> float:
    """Bytes of fp32 weights, gradients and Adam's two moments in each process, without buckets.

    DDP keeps 4 + 4 + 8 bytes per parameter. ZeRO divides the moments, and a copy of the weights that the optimizer works on, by
    the number of processes; ZeRO-2 the gradients as well.
    """
    whole, divided = {"zero1": (8, 12), "zero2": (4, 16)}.get(strategy, (16, 0))
    return parameters * (whole + divided / world_size)


def _activations(module: nn.Module, batch: int, shape: tuple[int, ...], recomputed: bool = False) -> int:
    """Elements of all leaf layers' outputs for a batch, counted on the meta device.

    `recomputed`: of residual blocks only their outputs, and the inside of the largest.
    """
    blocks: list[nn.Module] = list(getattr(module, "blocks", ())) if recomputed else []
    block_of = {layer: number for number, block in enumerate(blocks) for layer in block.modules()}
    inside = [0] * (len(blocks) + 1)  # the last: outside of all blocks

    def count(layer: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, torch.Tensor):
            inside[-1 if layer in blocks else block_of.get(layer, -1)] += output.numel()

    counted = [layer for layer in module.modules() if layer in blocks or not list(layer.children())]
    hooks = [layer.register_forward_hook(count) for layer in counted]
    with torch.device("meta"):
        labels = torch.zeros(batch, dtype=torch.int64)
        module(torch.zeros(batch, *shape), labels)
    for hook in hooks:
        hook.remove()
    return inside[-1] + max(inside[:-1], default=0)


def _traffic(config: Config, launch: Launch, counts: dict[str, int]) -> list[str]:
    steps, batch, model = config.schedule.discriminator_steps, config.batch, config.model
    reduced = 4 * (counts["generator"] + steps * counts["discriminator"]) / MIB
    share = 2 * (launch.world_size - 1) / launch.world_size
    pixels = steps * batch.replicas * batch.real_per_replica * model.resolution**2 * model.image_channels / MIB
    state = 12 * sum(counts.values()) / MIB
    return [
        f"gradients: {reduced * share:,.0f} MiB sent by each process per iteration (ring reduction of {reduced:,.0f} MiB)",
        f"decoded images: {pixels:,.1f} MiB per iteration over all processes",
        f"one checkpoint: {state:,.0f} MiB (fp32 weights and two moments)",
    ]
