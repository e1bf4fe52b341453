"""The evaluation of one generator: one pass over its samples for all measures, then each measure's own work."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from data_pipeline.reading.stream import DataConfig
from trainer.foundation.errors import SettingError
from trainer.metrics.features import FeatureNetwork
from trainer.metrics.judge import Judge
from trainer.metrics.protocol import Measure, Needs, Plan, Seen, Setting, union
from trainer.metrics.records import Measurement
from trainer.metrics.reference import Reference, open_reference
from trainer.metrics.samples import Samples, in_order
from trainer.processes.launch import Launch
from trainer.trained.sampling import CHUNK, chunks_of


@dataclass
class Outcome:
    """What the main process has in the end; the others have empty ones."""

    results: list[tuple[Measure, list[Measurement]]] = field(default_factory=list)
    pictures: dict[str, Image.Image] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    """By stage."""

    @property
    def measurements(self) -> list[Measurement]:
        """Of all measures, in their order."""
        return [measurement for _, found in self.results for measurement in found]


@dataclass
class Evaluation:
    """Measures generators of one run. All processes call it alike; real images are looked at once."""

    measures: Sequence[type[Measure]]
    plan: Plan
    launch: Launch
    data: DataConfig
    """The real images."""
    network: FeatureNetwork | None
    judge: Judge | None
    cache: Path
    with_real: bool = True
    """Whether the judge's features of all real images may be computed for `Setting.judged` alone."""
    validation: DataConfig | None = None
    """Real images that choose what a measure must choose."""
    trained_on: DataConfig | None = None
    """What the run reads as `data`; None: the same as the real images."""

    def __post_init__(self) -> None:
        self.needs = union([measure.needs for measure in self.measures])
        if self.needs.any_network and self.network is None:
            raise SettingError(
                "--features: is needed for the measures that are asked for; efficientnet_lite0 is installed"
            )
        if self.needs.any_judge and self.judge is None:
            lacking = [measure.name for measure in self.measures if measure.needs.any_judge]
            raise SettingError(
                f"--classifier: is needed for {', '.join(lacking)}; give the file that `python -m trainer.train_classifier` "
                "wrote, or efficientnet_lite0 for ImageNet's classes"
            )
        self._references: tuple[Reference | None, Reference | None] | None = None

    def run(self, samples: Samples) -> Outcome:
        """Measure one generator."""
        out = Outcome()
        with _clock(out, "reference"):
            self._references = self._references or self._open_references()
        reference, judged = self._references
        setting = Setting(
            self.plan,
            self.launch,
            samples,
            self.data,
            self.cache,
            self.network,
            self.judge,
            reference,
            judged,
            self.validation,
            trained_on=self.trained_on,
        )
        measures = [measure(setting) for measure in self.measures]
        seeing = [measure for measure in measures if measure.needs.the_pass or measure.columns]
        names = [name for name in self.plan.measures if any(measure.name == name for measure in seeing)]
        if seeing:
            with _clock(out, "+".join(names)):
                one_pass(setting, measures, self.needs)
        for measure in measures:
            with _clock(out, "+".join(names) if measure in seeing else measure.name):
                measure.work()
                if self.launch.is_main:
                    out.results.append((measure, measure.result()))
                    out.pictures |= measure.pictures()
        return out

    def _open_references(self) -> tuple[Reference | None, Reference | None]:
        """Real features by the network and by the judge, from the cache or computed by all processes."""
        reference = judged = None
        if self.network and self.needs.reference:
            reference = open_reference(self.launch, self.data, self.network, self.cache)
        if self.judge and self.needs.judged_reference:
            if self.judge.network is self.network and self.needs.reference:
                judged = reference
            elif self.with_real:
                judged = open_reference(self.launch, self.data, self.judge.network, self.cache)
        return reference, judged


@contextmanager
def _clock(out: Outcome, stage: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    out.seconds[stage] = round(out.seconds.get(stage, 0.0) + time.monotonic() - began, 3)


def one_pass(setting: Setting, measures: Sequence[Measure], needs: Needs) -> None:
    """Make `plan.samples` samples once and show them to all measures, in the order of their numbers.

    The chunks are dealt to the processes; networks run where a chunk is made. Only the main process's measures see them.
    """
    samples, count = setting.samples, setting.plan.samples
    network = setting.network if needs.features or needs.logits else None
    judge = setting.judge if needs.right or needs.judged else None
    shared = judge is not None and judge.network is network
    shape = samples.chunk(0).shape[1:] if needs.samples else torch.Size([0])
    widths = {
        "samples": shape.numel(),
        "features": network.dimension if network and (needs.features or (shared and needs.judged)) else 0,
        "logits": network.outputs if network and needs.logits else 0,
        "right": 1 if judge and needs.right else 0,
        "judged": judge.network.dimension if judge and needs.judged and not shared else 0,
        **{f"own {number}": measure.columns for number, measure in enumerate(measures)},
    }

    kind = torch.uint8 if samples.sampler.output == "image" else torch.float32

    def work(chunk: int) -> Tensor:
        made, conditions = samples.chunk(chunk), samples.conditions(chunk)
        parts = {"samples": made.flatten(1)}
        if network:
            parts["features"], parts["logits"] = network.both(made)
        if judge and widths["right"]:
            parts["right"] = judge.right(made, conditions, [made.shape[-1]])
        if judge and widths["judged"]:
            parts["judged"] = judge.network.both(made)[0]
        for number, measure in enumerate(measures):
            if measure.columns:
                parts[f"own {number}"] = measure.compute(made, conditions)
        return torch.cat([parts[name].cpu().double() for name, width in widths.items() if width], 1)

    for chunk, whole in enumerate(in_order(setting.launch, chunks_of(count), (CHUNK, sum(widths.values())), work)):
        first = chunk * CHUNK
        rows = whole[: count - first]
        parts = dict(zip(widths, torch.split(rows, list(widths.values()), 1), strict=True))
        seen = Seen(
            numbers=range(first, first + len(rows)),
            conditions=samples.conditions(chunk)[: len(rows)],
            samples=parts["samples"].to(kind).view(len(rows), *shape),
            features=parts["features"].float(),
            logits=parts["logits"].float(),
            right=parts["right"],
            judged=(parts["features"] if shared else parts["judged"]).float(),
            own=parts["own 0"],
        )
        for number, measure in enumerate(measures):
            measure.add(replace(seen, own=parts[f"own {number}"]))
