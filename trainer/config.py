"""The experiment's configuration: the components' own settings, composed, loaded, printed and saved."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from data_pipeline.reading.stream import DataConfig
from trainer.checkpoint.commits import CheckpointConfig
from trainer.foundation.errors import SettingError
from trainer.foundation.settings import apply_overrides, describe, read_yaml, validate
from trainer.methods import ObjectiveConfig
from trainer.methods.problem import Problem, differentiates_twice, resets_optimizers
from trainer.methods.schedule import BatchConfig, ScheduleConfig
from trainer.methods.terms.guidance import ClassifierLossConfig, check_classifier_loss
from trainer.methods.terms.term import Term
from trainer.models import DiscriminatorConfig, GeneratorConfig, ModelConfig
from trainer.players.ema import EmaConfig
from trainer.players.optimizers import OptimizersConfig
from trainer.processes.launch import Launch
from trainer.speed.settings import SpeedConfig

STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RunConfig:
    """The run: where it lives, how long it is, how often it does what."""

    dir: str
    """Folder of the run: config.yaml, checkpoints/, tensorboard/, samples/, metrics.jsonl, log.txt."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Together with the settings and the data it determines the whole training."""
    iterations: Annotated[int, Field(ge=1)] = 450_000
    """Generator updates in the run."""
    dry_run: bool = False
    """Print the resolved settings, sizes, batch arithmetic, stages and costs, and exit; needs no data and no GPU."""
    resume: Literal["auto", "never"] = "auto"
    """`auto`: resume from the newest checkpoint in `run.dir`; `never`: refuse a folder that holds one."""
    initialize_from: str | None = None
    """Another run's folder, `RUN` or `RUN@ITERATION`: a run without a checkpoint of its own starts from that run's newest
    (or given) checkpoint, at its iteration."""
    initialize_optimizer: bool = True
    """Whether `initialize_from` takes Adam's moments as well; false: they start at 0."""
    allow_changed: tuple[str, ...] = ()
    """Settings that may differ from those that the run's checkpoints were made with, though they change the science."""
    rollbacks: Annotated[int, Field(ge=0)] = 0
    """How often a run whose numbers become NaN or infinite may go back to its last checkpoint and continue with other draws
    (the same ones would end the same way); 0: it stops."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 10_000
    """Iterations between two checkpoints (one is also written at the end and when the run is asked to stop)."""
    log_every: Annotated[int, Field(ge=1)] = 100
    """Iterations between two status lines and points in TensorBoard."""
    sample_every: Annotated[int, Field(ge=0)] = 5_000
    """Iterations between two grids of samples; 0: none."""
    evaluate_every: Annotated[int, Field(ge=0)] = 0
    """Iterations between two measurements inside the run; 0: none. Needs `evaluation.classifier` (class accuracy) or
    `evaluation.ms_ssim_pairs` (collapse); all other measures are taken beside the run, by `python -m trainer.evaluate`."""
    heartbeat_every: Annotated[int, Field(ge=0)] = 1_000
    """Iterations between two checks that all processes hold the same parameters, bit for bit; 0: none."""
    deterministic: bool = False
    """Sum the gradients over replicas in a fixed order, so that the weights are the same bits on any number of processes (on
    the CPU, one thread each). For tests and audits: it costs `batch.replicas` times the traffic."""
    tf32: bool = False
    """Let a GPU multiply fp32 matrices and convolutions with TF32's 10-bit mantissa."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvaluationConfig:
    """Measurements inside the run."""

    classifier: str | None = None
    """Weights written by `python -m trainer.train_classifier`, which judge the class of generated images."""
    samples: Annotated[int, Field(ge=1)] = 1_000
    """Generated images for one measurement, the classes in turn."""
    ms_ssim_pairs: Annotated[int, Field(ge=0)] = 0
    """Pairs of images per class whose MS-SSIM is watched for collapse at each `run.evaluate_every`, of up to 20 classes; 0:
    none."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Config:
    """One complete experiment."""

    run: RunConfig
    data: DataConfig
    batch: BatchConfig
    model: ModelConfig
    objective: ObjectiveConfig
    generator: GeneratorConfig | None = None
    discriminator: DiscriminatorConfig | None = None
    classifier_loss: ClassifierLossConfig | None = None
    sources: dict[str, DataConfig] = Field(default_factory=dict)
    """Further sources that the method reads, by name; `data` is the first."""
    optimizer: OptimizersConfig = OptimizersConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    ema: EmaConfig = EmaConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    speed: SpeedConfig = SpeedConfig()

    def __post_init__(self) -> None:
        last = self.schedule.stages[-1].until
        if last < self.run.iterations:
            raise ValueError(
                f"schedule.stages: the last stage ends at {last}, before run.iterations = {self.run.iterations}; "
                f"add a stage, or set run.iterations to at most {last}"
            )
        self.objective.check(self.problem())
        check_classifier_loss(
            self.classifier_loss,
            classes=self.model.classes,
            iterations=self.run.iterations,
            initialize_from=self.run.initialize_from,
        )
        if self.batch.synchronised_norm and self.run.deterministic:
            raise ValueError(
                "batch.synchronised_norm: is true with run.deterministic, but its statistics run over all images of a process "
                "at once; set one of the two to false"
            )
        if self.speed.bf16_gradients and self.run.deterministic:
            raise ValueError(
                "speed.bf16_gradients: is true with run.deterministic, which sums the gradients of single replicas in fp32; "
                "set one of the two to false"
            )
        if self.batch.synchronised_norm and differentiates_twice(self.objective):
            raise ValueError(
                "batch.synchronised_norm: is true with objective.penalty, whose draws and second derivatives belong to single "
                "replicas; set batch.synchronised_norm to false, or objective.penalty.name to none"
            )
        if self.run.evaluate_every and self.evaluation.classifier is None and not self.evaluation.ms_ssim_pairs:
            raise ValueError(
                "evaluation.classifier: is not set, but run.evaluate_every asks for measurements; give the weights that "
                "`python -m trainer.train_classifier` wrote, or evaluation.ms_ssim_pairs, or set run.evaluate_every to 0"
            )

    def problem(self, terms: Sequence[Term] = ()) -> Problem:
        """What the method is built for; `terms` are loss terms from outside it."""
        return Problem(self.model, self.batch, self.schedule, self.generator, self.discriminator, terms)

    @property
    def all_sources(self) -> dict[str, DataConfig]:
        """The settings of every source, by name."""
        return {"data": self.data, **self.sources}

    def source(self, name: str) -> DataConfig:
        """The settings of a source. Raises `SettingError` if there is no such section."""
        if name == "data":
            return self.data
        if name not in self.sources:
            raise SettingError(f"{section_of(name)}: is missing, but {self.objective.name} reads it; give its shards")
        return self.sources[name]


def section_of(source: str) -> str:
    """The section that a source's settings are in."""
    return source if source == "data" else f"sources.{source}"


def check_launch(config: Config, launch: Launch) -> None:
    """Raise `SettingError` for settings that this launch cannot keep."""
    if config.run.deterministic and launch.strategy in ("zero1", "zero2"):
        raise SettingError(
            f"run.deterministic: is true, but the launch asks for {launch.strategy}, which sums the gradients itself; launch "
            "with cluster/launch/ddp.yaml or cpu.yaml"
        )
    if differentiates_twice(config.objective) and launch.strategy in ("zero1", "zero2"):
        raise SettingError(
            f"objective.penalty: is on, but the launch asks for {launch.strategy}, where DeepSpeed cannot reduce the gradients "
            "of a loss that differentiates twice; launch with cluster/launch/ddp.yaml, or set objective.penalty.name to none"
        )
    if resets_optimizers(config.objective) and launch.strategy in ("zero1", "zero2"):
        raise SettingError(
            f"objective.name: {config.objective.name} lets optimizers start anew, which {launch.strategy} cannot; "
            "launch with cluster/launch/ddp.yaml"
        )
    if config.run.deterministic and launch.precision == "fp16":
        raise SettingError(
            "run.deterministic: is true, but fp16 scales the losses by their history; launch with fp32 or bf16"
        )


def load_config(path: str, overrides: Sequence[str] = ()) -> Config:
    """The experiment of the YAML at `path` with `--section.key value` overrides; raises `SettingError`."""
    tree, origins = read_yaml(path)
    apply_overrides(tree, origins, overrides)
    return validate(Config, tree, origins)


def config_from_tree(tree: dict[str, Any]) -> Config:
    """The configuration that `as_tree` turned into plain values; raises `SettingError`."""
    return validate(Config, tree, {})


def as_tree(config: Config) -> dict[str, Any]:
    """The resolved settings as plain values, every default written out."""
    tree: dict[str, Any] = TypeAdapter(Config).dump_python(config, mode="json")
    return tree


def as_yaml(config: Config) -> str:
    """The resolved settings as YAML; `load_config` of it gives the same configuration."""
    return yaml.safe_dump(as_tree(config), sort_keys=False, allow_unicode=True)


def help_text() -> str:
    """All settings, one a line: name, type, default, meaning."""
    lines = [f"  --{s.name} ({s.kind}; {s.default})\n      {s.help}".rstrip() for s in describe(Config)]
    return "Settings (in the YAML, or on the command line as --section.key value):\n" + "\n".join(dict.fromkeys(lines))
