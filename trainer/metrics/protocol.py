"""What a measure is. The evaluation, the command and the report know of measures nothing but this page.

A measure is one class in one file, and its name in the list of `trainer.metrics.measures`. It says what it needs, adds up
what it sees in the one pass over all samples, may work by itself before and after, and reports measurements.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import reduce
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor

from data_pipeline.manifest.format import Manifest
from data_pipeline.reading.stream import DataConfig
from trainer.foundation.errors import SettingError
from trainer.metrics.features import FeatureNetwork
from trainer.metrics.health import Warned
from trainer.metrics.judge import Judge
from trainer.metrics.records import Measurement
from trainer.metrics.reference import Reference
from trainer.metrics.samples import Samples
from trainer.processes.launch import Launch
from trainer.trained.real import manifest_of


@dataclass(frozen=True)
class Plan:
    """What is measured, and how. Its text is part of every record's `settings_digest`."""

    measures: tuple[str, ...]
    samples: int = 10_000
    splits: int = 10
    seed: int = 0
    pairs: int = 100
    class_samples: int = 5_000
    queries: int = 200

    def __post_init__(self) -> None:
        for name in ("samples", "splits", "pairs", "class_samples", "queries"):
            least = 1 if name == "splits" else 2
            if getattr(self, name) < least:
                raise SettingError(f"--{name.replace('_', '-')}: is {getattr(self, name)}; give at least {least}")
        if self.splits > self.samples:
            raise SettingError(f"--splits: is {self.splits}, more than the {self.samples} samples; give fewer")


@dataclass(frozen=True)
class Needs:
    """What a measure takes. What no measure needs is not computed."""

    samples: bool = False
    """`Seen.samples`."""
    features: bool = False
    """`Seen.features`: by the network of --features."""
    logits: bool = False
    """`Seen.logits`: by the network of --features."""
    right: bool = False
    """`Seen.right`: by the judge of --classifier."""
    judged: bool = False
    """`Seen.judged`: features by the judge."""
    network: bool = False
    """`Setting.network`, for a separate pass of the measure."""
    reference: bool = False
    """`Setting.reference`: features of all real images by the network."""
    judge: bool = False
    """`Setting.judge`, for a separate pass of the measure."""
    judged_reference: bool = False
    """`Setting.judged`: features of all real images by the judge, where they are at no cost or --real asks for them."""
    classes: bool = False
    """The generator's classes are those of the real images."""
    labels: bool = False
    """The training's classes are those of the real images, whether or not the generator knows them."""
    images: bool = True
    """The samples are images, as large as the real ones; False: any samples."""

    def __or__(self, other: "Needs") -> "Needs":
        """What both need together."""
        return Needs(**{field.name: getattr(self, field.name) or getattr(other, field.name) for field in fields(Needs)})

    @property
    def any_network(self) -> bool:
        """Whether the network of --features is opened."""
        return self.features or self.logits or self.network or self.reference

    @property
    def any_judge(self) -> bool:
        """Whether the judge of --classifier is opened."""
        return self.right or self.judged or self.judge or self.judged_reference

    @property
    def the_pass(self) -> bool:
        """Whether the samples are made once for all."""
        return self.samples or self.features or self.logits or self.right or self.judged


@dataclass(frozen=True)
class Setting:
    """Where measures work: everything about one evaluation of one checkpoint."""

    plan: Plan
    launch: Launch
    samples: Samples
    """The generator's keyed samples."""
    data: DataConfig
    """The real images."""
    cache: Path
    network: FeatureNetwork | None = None
    judge: Judge | None = None
    reference: Reference | None = None
    """In the main process alone, as the next one."""
    judged: Reference | None = None
    validation: DataConfig | None = None
    """Real images that choose what a measure must choose, where --validation gives them."""
    trained_on: DataConfig | None = None
    """What the run reads as `data`; None: the same as `data`."""

    @property
    def manifest(self) -> Manifest:
        """Of the real images."""
        return manifest_of(self.data)

    def of_network(self) -> dict[str, Any]:
        """For a record: which features."""
        assert self.network is not None
        return {"features": self.network.description, "features_digest": self.network.digest}


@dataclass(frozen=True)
class Seen:
    """Up to 50 samples of the one pass, in the order of their numbers. What is not needed is [n, 0]; all on the CPU."""

    numbers: range
    conditions: Tensor
    """[n, ...]: labels int64 [n] for a generator of classes."""
    samples: Tensor
    """Images as uint8 [n, c, h, w], vectors as float32 [n, D]."""
    features: Tensor
    """float32 [n, F]."""
    logits: Tensor
    """float32 [n, O]."""
    right: Tensor
    """[n, 1]: 1 where the judge gives the sample its class, else 0."""
    judged: Tensor
    """float32 [n, F]: the judge's features."""
    own: Tensor
    """float64 [n, columns]: what the measure's `compute` gave."""


class Measure:
    """One measure of one generator. Every process has one; only the main process adds and reports.

    The order of calls: `compute` and `add` for every chunk of the one pass, then `work`, `result`, `pictures`, `table`,
    `warning`.
    """

    name: ClassVar[str]
    """On the command line."""
    meaning: ClassVar[str]
    """For --help."""
    needs: ClassVar[Needs] = Needs()
    titles: ClassVar[Mapping[str, str]] = {}
    """For the report: the title of each measurement that it makes, by the measurement's name."""
    outcomes: ClassVar[frozenset[str]] = frozenset()
    """Details of its measurements that are results, not settings: they may differ between values that can be compared."""
    column: ClassVar[str] = ""
    """For the report: the head of the column of values `per_class`, where there are any."""
    alarm: ClassVar[str] = ""
    """The name of the warning that it can give; a curve `health/NAME` shows where it was given."""
    in_all: ClassVar[bool] = True
    """Whether `--measures all` takes it."""
    usual_samples: ClassVar[int] = 10_000
    """Samples of the one pass, if --samples does not say it. The largest number of all measures counts."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    @property
    def columns(self) -> int:
        """How many values `compute` gives for a sample; 0: it is not called."""
        return 0

    def compute(self, samples: Tensor, conditions: Tensor) -> Tensor:
        """Values [n, columns] of samples [n, ...], in the process that made them; they come back as `Seen.own`."""
        raise NotImplementedError

    def add(self, seen: Seen) -> None:
        """The next samples of the one pass. Also called with what other measures need."""

    def work(self) -> None:
        """The measure's separate passes, after the common one. All processes call it at the same time."""

    def result(self) -> list[Measurement]:
        """What was measured. In the main process."""
        return []

    def pictures(self) -> dict[str, Image.Image]:
        """Pictures by name. In the main process."""
        return {}

    def table(self, iteration: int) -> str:
        """Its result as it is printed; empty: a line in the common table."""
        return ""

    def warning(self, iteration: int, earlier: Sequence[Mapping[str, Any]]) -> Warned | None:
        """What is unusual in the light of the run's earlier records."""
        return None

    @classmethod
    def note(cls, details: Mapping[str, Any]) -> str:
        """A few words of small print that only this measure has, from a measurement's details or a record."""
        return ""


def union(needs: Sequence[Needs]) -> Needs:
    """What several measures need together; `images` if any of them needs images."""
    return reduce(Needs.__or__, needs, Needs(images=False))
