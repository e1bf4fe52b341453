"""The runs that recorder.py records: small forms of all configurations, variants of them, and on what they run."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Settings = dict[str, Any]
"""Settings by their dotted names, as `--section.key value` gives them."""

ITERATIONS = 3
CLASSES = 4
"""Of every set of images."""
COUNTS, PRECISIONS = (1, 2, 3), ("fp32", "bf16")
ZERO = {"fashion32_projection", "imagenet128_projection", "cifar10_acgan"}
ZERO |= {f"fashion32_projection+{name}" for name in ("adam", "synchronised", "ema_off", "resumed")}
"""What is also recorded with ZeRO-1 and ZeRO-2, on two processes (with penalties, DeepSpeed 0.19 fails)."""

PLAIN: Settings = {
    "speed.convolutions": "plain",
    "speed.low_resolution_shortcuts": False,
    "speed.fused_spectral_norm": False,
    "speed.fused_conditional_norm": False,
    "speed.grouped_generation": False,
    "speed.kept_kernels": False,
    "speed.channels_last": False,
    "speed.fused_adam": False,
}
"""Every rewrite off."""

BEFORE_STAGE: Settings = {
    "run.dir": "base",
    "run.iterations": 1,
    "run.initialize_from": None,
    "classifier_loss": None,
}
"""The run that the fine-tuning stage starts from."""

VARIANTS: dict[str, list[Any]] = yaml.safe_load("""
gradient_penalty: [fashion32_projection, {objective.penalty: {name: gradient, weight: 5.0, target: 2.0, drift: 0.01}}]
r1: [fashion32_projection, {objective.penalty: {name: r1, gamma: 2.0}}]
r1_acgan: [fashion32_acgan, {objective.penalty: {name: r1}}]
joint: [imagenet64_projection, {objective.passes: joint}]
joint_acgan: [fashion32_acgan, {objective.passes: joint}]
class_weights: [fashion32_acgan, {objective.classify_generated: false, objective.generator_class_weight: 0.3,
                                  objective.discriminator_class_weight: 0.7}]
non_saturating: [fashion32_projection, {objective.loss: non_saturating}]
minimax: [fashion32_projection, {objective.loss: minimax}]
least_squares: [fashion32_projection, {objective.loss: least_squares}]
wasserstein: [fashion32_projection, {objective.loss: wasserstein}]
generator_last: [cifar10_projection, {schedule.generator_first: false}]
more_steps: [cifar10_projection, {schedule.discriminator_steps: 5}]
synchronised: [fashion32_projection, {batch.synchronised_norm: true, schedule.discriminator_steps: 2}]
synchronised_dcgan: [cifar10_acgan, {batch.synchronised_norm: true}]
deterministic: [fashion32_projection, {run.deterministic: true}]
deterministic_dcgan: [cifar10_acgan, {run.deterministic: true}]
one_replica: [fashion32_projection, {batch.replicas: 1}]
ema: [cifar10_projection, {ema.decay: 0.9, ema.warm_up: false}]
ema_off: [fashion32_projection, {ema.decay: 0.0}]
selection: [fashion32_projection, {data.classes: [0, 3], model.classes: 2}]
split: [fashion32_projection, {data.classes: split 2 of 2, model.classes: 2}]
flip: [fashion32_projection, {data.horizontal_flip: true}]
window: [fashion32_projection, {data.shuffle_window: 16}]
dequantize_off: [fashion32_projection, {batch.dequantize: false}]
unconditional: [fashion32_projection, {model.classes: 0, discriminator.conditioning: {name: none}}]
uniform: [fashion32_projection, {model.latent_distribution: uniform, run.seed: 5}]
adam: [fashion32_projection, {optimizer.generator: {epsilon: 0.001, epsilon_placement: inside_correction, beta1: 0.5},
                              optimizer.discriminator: {learning_rate: 0.002, beta1: 0.3, beta2: 0.99}}]
ports: [fashion32_projection, {generator.final_norm: conditional, discriminator.hidden_channels: output,
                               discriminator.pooling: mean, discriminator.head_bias: true}]
class_over_latents: [cifar10_acgan, {generator.class_placement: overwrites_latents}]
nothing_drawn: [cifar10_acgan, {discriminator.dropout: 0.0, discriminator.activation_noise: 0.0}]
resumed: [fashion32_projection, {}]
fresh_moments: [fashion32_projection_finetune, {run.initialize_optimizer: false}]
ramp: [fashion32_projection_finetune, {classifier_loss.ramp: 2, classifier_loss.weight: 2.0}]
stage_ends: [fashion32_projection_finetune, {classifier_loss.until: 2}]
stopped: [fashion32_projection_finetune, {classifier_loss.maximum_ms_ssim: 0.000001}]
watched: [fashion32_projection, {run.evaluate_every: 1, run.sample_every: 1, evaluation.samples: 8,
                                 evaluation.ms_ssim_pairs: 2, evaluation.classifier: shards/judge-32x1.safetensors}]
merged: [cifar10_projection, {speed.convolutions: merged}]
transposed: [cifar10_projection, {speed.convolutions: transposed}]
phases: [cifar10_projection, {speed.convolutions: phases}]
matrix: [cifar10_projection, {speed.convolutions: matrix}]
recomputed: [cifar10_projection, {speed.recompute_blocks: true}]
kept_kernels: [cifar10_projection, {speed.grouped_generation: false}]
bf16_gradients: [fashion32_projection, {speed.bf16_gradients: true}]
""")
"""What no configuration has: a configuration and the settings that are changed."""
FIRST_PHASE: dict[str, Settings] = {"resumed": {"run.iterations": 1}}
"""Trained before the variant itself, in the same folder."""


@dataclass(frozen=True)
class Cell:
    """One run of the record."""

    subject: str
    """CONFIGURATION or CONFIGURATION+VARIANT."""
    processes: int
    strategy: str
    precision: str
    speed: str
    settings: Settings = field(repr=False)
    before: Settings | None = field(repr=False)
    """What differs in a run that comes first, if there is one."""

    @property
    def name(self) -> str:
        return f"{self.subject}/{self.strategy}-{self.processes}/{self.precision}/{self.speed}"


def chosen(name: str, word: str) -> bool:
    """Whether `--only WORD` takes the run of this name."""
    if word == "quick":  # in their small form these two configurations are like others
        return name.endswith("/single-1/fp32/default") and not name.startswith(
            ("cifar100", "imagenet128_projection_850k")
        )
    return word in name


def all_cells(checkout: Path) -> list[Cell]:
    """Every run, those of one process group behind one another."""
    subjects: dict[str, tuple[Settings, Settings | None]] = {}
    for path in sorted((checkout / "configs").glob("*.yaml")):
        tree = yaml.safe_load(path.read_text())
        if "generator" not in tree:  # a method with networks in `objective`: there is no small form of these
            continue
        settings = small_form(tree)
        subjects[path.stem] = (settings, BEFORE_STAGE if "classifier_loss.begin" in settings else None)
    for variant, (config, changed) in VARIANTS.items():
        if config in subjects:
            settings, before = subjects[config]
            subjects[f"{config}+{variant}"] = ({**settings, **changed}, FIRST_PHASE.get(variant, before))
    return [cell for count in COUNTS for cell in cells_on(count, subjects)] + list(zero_cells(subjects))


def cells_on(count: int, subjects: dict[str, tuple[Settings, Settings | None]]) -> Iterator[Cell]:
    """The runs on `count` processes: configurations with both speeds, variants with the plain one where it is quick."""
    for subject, (settings, before) in subjects.items():
        if settings["batch.replicas"] < count:
            continue
        for precision in PRECISIONS:
            for speed in ("default", "plain"):
                if speed == "default" or "+" not in subject or (count == 1 and precision == "fp32"):
                    values = {**plain_for(settings), **settings} if speed == "plain" else settings
                    strategy = "single" if count == 1 else "ddp"
                    yield Cell(subject, count, strategy, precision, speed, values, before)


def zero_cells(subjects: dict[str, tuple[Settings, Settings | None]]) -> Iterator[Cell]:
    for subject in (subject for subject in subjects if subject in ZERO):
        settings, before = subjects[subject]
        for strategy in ("zero1", "zero2"):
            for precision in PRECISIONS:
                yield Cell(subject, 2, strategy, precision, "default", settings, before)


def plain_for(settings: Settings) -> Settings:
    """Every rewrite off; where a layer draws, the memory's layout belongs to the experiment."""
    draws = settings.get("discriminator.dropout", 0) or settings.get("discriminator.activation_noise", 0)
    return {**PLAIN, "speed.channels_last": bool(draws)}


def small_form(tree: dict[str, Any]) -> Settings:
    """What is changed in a configuration so that it trains in a second: sizes and places, as little else as can be."""
    model, side = tree["model"], min(tree["model"]["resolution"], 128)
    images = f"{side}x{model.get('image_channels', 3)}"
    settings: Settings = {
        "run.dir": "run",
        "run.iterations": ITERATIONS,
        "run.checkpoint_every": 1,
        "run.log_every": 1,
        "run.sample_every": 0,
        "run.heartbeat_every": 1,
        "checkpoint.asynchronous": False,
        "data.shards": f"shards/{images}",
        "batch.replicas": 4,
        "batch.real_per_replica": 2,
        "batch.generated_per_replica": 3,
        "model.latent_dim": 16,
        "model.classes": CLASSES,
        "schedule.discriminator_steps": min(2, tree["schedule"].get("discriminator_steps", 1)),
        "schedule.stages": short_stages(tree["schedule"]["stages"]),
    }
    settings |= {f"sources.{name}.shards": f"shards/{images}" for name in tree.get("sources", {})}
    if not model.get("classes", 1):
        settings["model.classes"] = 0
    if side < model["resolution"]:
        settings["model.resolution"] = side
    if "load_size" in tree["objective"]:
        settings |= {"objective.load_size": side + side // 8, "objective.pool": 1}
    if "blocks" in tree["generator"]:
        settings["generator.blocks"] = 1
    asked = tree["data"].get("classes")
    if asked is not None:
        kept = "split 1 of 2" if isinstance(asked, str) else [1, 2, 3]
        settings |= {"data.classes": kept, "model.classes": 2 if isinstance(asked, str) else 3}
    if tree["generator"]["name"] == "dcgan":
        settings["generator.widths"] = (16, 12, 8, 8, 4) if side == 128 else (16, 12, 8, 4)
    else:
        settings["generator.channels"] = 8 if side == 32 else 4
    if tree["discriminator"]["name"] == "dcgan":
        settings["discriminator.widths"] = (4, 4, 8, 8, 12, 12)
        settings |= {f"discriminator.{key}": tree["discriminator"][key] for key in ("dropout", "activation_noise")}
    else:
        settings["discriminator.channels"] = 8 if side == 32 else 4
        if tree["discriminator"].get("conditioning", {}).get("name") == "concat":
            settings["discriminator.conditioning.dimension"] = 8
    if "classifier_loss" in tree:
        settings |= {"run.initialize_from": "base@1", "classifier_loss.begin": 1, "classifier_loss.until": ITERATIONS}
        settings |= {"classifier_loss.watch_every": 1, "classifier_loss.watch_samples": 40}
        for role, file in (("classifier", "judge"), ("independent", "other")):
            if role in tree["classifier_loss"]:
                weights = f"shards/{file}-{images}.safetensors"
                settings[f"classifier_loss.{role}"] = {"name": "small", "weights": weights}
    return settings


def short_stages(stages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same laws one after another, the last over the rest of the run."""
    ends = [*range(1, len(stages)), ITERATIONS + 1]
    return [{**stage, "until": end} for stage, end in zip(stages, ends, strict=True)]
