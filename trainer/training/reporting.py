"""What the loop reports, and from which numbers: curves, grids of samples, the class accuracy."""

import math
import time

import torch

from data_pipeline.reading.stream import Stream
from trainer.config import Config
from trainer.foundation import keys
from trainer.foundation.errors import NonFinite
from trainer.foundation.pixels import to_uint8
from trainer.methods.protocol import ClassNames, Sampler
from trainer.methods.schedule import learning_rate_factor
from trainer.metrics.accuracy import GeneratedAccuracy
from trainer.metrics.health import Warned
from trainer.metrics.inline import InlineHealth
from trainer.processes.launch import Launch, held_description, sum_over_processes
from trainer.telemetry.board import Telemetry
from trainer.trained.real import bind_data
from trainer.trained.runs import Recipe, sampler_of
from trainer.trained.sampling import samples_of
from trainer.training.iteration import Scalars

GRID_ROWS, GRID_COLUMNS = 10, 10
CURVE_NAMES = {
    "discriminator/loss": "loss/discriminator",
    "generator/loss": "loss/generator",
    "discriminator/real_score": "score/real",
    "discriminator/fake_score": "score/fake",
}


class Reporter:
    """Collects scalars on the device and fetches them once per `run.log_every` iterations.

    Every process has one, since the means are taken over all replicas; only the main process has `telemetry`.
    """

    def __init__(
        self,
        config: Config,
        launch: Launch,
        stream: Stream,
        telemetry: Telemetry | None,
        accuracy: GeneratedAccuracy | None = None,
    ) -> None:
        self.config, self.launch, self.stream, self.telemetry = config, launch, stream, telemetry
        self.accuracy = accuracy
        self.health: InlineHealth | None = None
        batch = config.batch
        self.real_images = config.schedule.discriminator_steps * batch.replicas * batch.real_per_replica
        self._restart()

    def watch(self, generator: torch.nn.Module, discriminator: torch.nn.Module) -> None:
        """From now on report these players' health: score gap, gradients, singular values, collapse."""
        if self.telemetry:
            config, networks = self.config, {"generator": generator, "discriminator": discriminator}
            self.health = InlineHealth(
                networks,
                self.stream.manifest.class_names,
                config.data,
                seed=config.run.seed,
                pairs=config.evaluation.ms_ssim_pairs,
            )

    def opening(self, start: int) -> str:
        """The first line of the log."""
        config, manifest = self.config, self.stream.manifest
        begin = f"going on from iteration {start:,}" if start else "starting at iteration 0"
        return (
            f"{config.run.dir}: {begin} of {config.run.iterations:,}; "
            f"{held_description(self.launch, config.batch.replicas)}; "
            f"{manifest.samples:,} images of {len(manifest.class_names)} classes"
        )

    def add(self, scalars: Scalars) -> None:
        """One iteration's scalars, still on the device."""
        for name, value in scalars.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1  # a stage's scalars begin and end with it
        self._count += 1

    def log(self, iteration: int, more: dict[str, float], note: str = "") -> None:
        """Means over replicas and over the iterations since the last call; raises if one is not finite.

        `more` are further scalars of this moment, `note` stands at the end of the status line.
        """
        if not self._count:
            return
        config = self.config
        names = sorted(self._sums)
        sums = sum_over_processes(self.launch, torch.stack([self._sums[name] for name in names])).tolist()
        values = {
            CURVE_NAMES.get(name, name): value / self._counts[name] for name, value in zip(names, sums, strict=True)
        }
        for name, value in values.items():
            if not math.isfinite(value):
                raise NonFinite(
                    f"{name}: is {value} in the {self._count} iterations before {iteration}: the training has diverged. "
                    f"The checkpoints in {config.run.dir} are from before; look at the curves in TensorBoard, and start "
                    "another run with a lower optimizer.*.learning_rate, or let it go back with run.rollbacks"
                )
        seconds = max(time.monotonic() - self._began, 1e-9)
        factor = learning_rate_factor(config.schedule, iteration - 1)
        values |= {
            "learning_rate/generator": config.optimizer.generator.learning_rate * factor,
            "learning_rate/discriminator": config.optimizer.discriminator.learning_rate * factor,
            "speed/images_per_second": self._count * self.real_images / seconds,
            "speed/seconds_per_iteration": seconds / self._count,
            "speed/data_wait_share": (self.stream.wait_seconds - self._waited) / seconds,
            "progress/real_images": float(iteration * self.real_images),
        }
        if self.telemetry:
            data = {f"data/{name}": value for name, value in self.stream.statistics().items()}
            health, warned = self.health.at_log(values) if self.health else ({}, [])
            self.telemetry.scalars(iteration, values | health | data | more)
            self.telemetry.status(iteration, values, note + "".join(f" | {warning.line()}" for warning in warned))
            self._warn(iteration, warned)
        self._restart()

    def _sampler(self, module: torch.nn.Module) -> Sampler:
        names = ClassNames(self.stream.manifest.class_names)
        return bind_data(sampler_of(Recipe.of(self.config), {"generator": module}, names), self.config.data)

    def grid(self, iteration: int, module: torch.nn.Module) -> None:
        """A grid from fixed latents, one row per condition (of up to ten, evenly chosen), in evaluation mode."""
        sampler = self._sampler(module)
        chosen = sampler.conditions.evenly(GRID_ROWS)
        if self.telemetry is None or sampler.output != "image" or not len(chosen):
            return
        latents = sampler.draw(keys.generator(self.config.run.seed, "grid"), len(chosen) * GRID_COLUMNS)
        images = to_uint8(samples_of(sampler, latents, chosen.repeat_interleave(GRID_COLUMNS, 0)))
        names = [sampler.conditions.caption(condition) for condition in chosen]
        self.telemetry.grid(iteration, images.view(len(chosen), GRID_COLUMNS, *images.shape[1:]), names)

    def evaluate(self, iteration: int, module: torch.nn.Module) -> dict[str, float]:
        """The light measurements inside a run, in the main process: class accuracy and the watch for collapse."""
        if self.telemetry is None:
            return {}
        scores: dict[str, float] = {}
        sampler = self._sampler(module)
        if self.accuracy is not None:
            value = self.accuracy.measure(sampler, self.config.run.seed, self.config.evaluation.samples)
            self.telemetry.scalars(iteration, {"quality/class_accuracy": value})
            self.telemetry.say(f"iteration {iteration:,}: class accuracy of generated images {value:.1%}")
            scores["class_accuracy"] = value
        if self.health is not None and self.config.evaluation.ms_ssim_pairs:
            found, warned = self.health.at_evaluation(sampler)
            self.telemetry.scalars(iteration, found)
            note = "".join(f" | {warning.line()}" for warning in warned)
            if found:
                self.telemetry.say(
                    f"iteration {iteration:,}: MS-SSIM within classes {found['health/ms_ssim/mean']:.2f}{note}"
                )
            self._warn(iteration, warned)
        return scores

    def _warn(self, iteration: int, warned: list[Warned]) -> None:
        for warning in warned if self.telemetry else ():
            assert self.telemetry is not None
            self.telemetry.text(f"warnings/{warning.name}", warning.text, iteration)

    def _restart(self) -> None:
        self._sums: Scalars = {}
        self._counts: dict[str, int] = {}
        self._count = 0
        self._began = time.monotonic()
        self._waited = self.stream.wait_seconds
