"""What the loop reports, and from which numbers: curves, grids of samples, the class accuracy."""

import math
import time
from collections.abc import Mapping

import torch

from data_pipeline.manifest.format import Manifest
from trainer.config import Config
from trainer.foundation import keys
from trainer.foundation.errors import NonFinite
from trainer.foundation.pixels import to_uint8
from trainer.methods.places import samples_before
from trainer.methods.protocol import ClassNames, Method, Sampler
from trainer.methods.sampling import Strips
from trainer.methods.schedule import learning_rate_factor
from trainer.metrics.accuracy import GeneratedAccuracy
from trainer.metrics.health import Warned
from trainer.metrics.inline import InlineHealth
from trainer.players.player import Player
from trainer.processes.launch import Launch, held_description, sum_over_processes
from trainer.telemetry.board import Telemetry
from trainer.trained.real import bind_data
from trainer.trained.sampling import evaluating, samples_of
from trainer.training.draws import Source
from trainer.training.iteration import Scalars
from trainer.training.state import State

GRID_ROWS, GRID_COLUMNS = 10, 10
CURVE_NAMES = {"discriminator/real_score": "score/real", "discriminator/fake_score": "score/fake"}


class Reporter:
    """Collects scalars on the device and fetches them once per `run.log_every` iterations.

    Every process has one, since the means are taken over all replicas; only the main process has `telemetry`.
    """

    def __init__(
        self,
        config: Config,
        launch: Launch,
        method: Method,
        sources: Mapping[str, Source],
        telemetry: Telemetry | None,
        accuracy: GeneratedAccuracy | None = None,
    ) -> None:
        self.config, self.launch, self.method, self.telemetry = config, launch, method, telemetry
        self.sources = sources
        self.accuracy = accuracy
        self.health: InlineHealth | None = None
        self._restart()

    @property
    def manifest(self) -> Manifest:
        """Of the main source."""
        return (self.sources.get("data") or next(iter(self.sources.values()))).stream.manifest

    def real_samples(self, iteration: int) -> int:
        """Samples that all replicas have read from all sources before `iteration`."""
        read = sum(samples_before(self.method, name, iteration) for name in self.sources)
        return self.config.batch.replicas * read

    def watch(self, players: Mapping[str, Player]) -> None:
        """From now on report these players' health: score gap, gradients, singular values, collapse."""
        if self.telemetry:
            config = self.config
            networks = {name: module for player in players.values() for name, module in player.modules.items()}
            self.health = InlineHealth(
                networks,
                self.manifest.class_names,
                config.data,
                seed=config.run.seed,
                pairs=config.evaluation.ms_ssim_pairs,
            )

    def opening(self, start: int) -> str:
        """The first line of the log."""
        config, manifest = self.config, self.manifest
        begin = f"resumes at iteration {start:,}" if start else "starts at iteration 0"
        return (
            f"{config.run.dir}: {begin} of {config.run.iterations:,}; "
            f"{held_description(self.launch, config.batch.replicas)}; "
            f"{_samples(manifest)}"
            + "".join(
                f"; {name}: {_samples(source.stream.manifest)}"
                for name, source in self.sources.items()
                if source.stream.manifest is not manifest
            )
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
        values = {_curve(name): value / self._counts[name] for name, value in zip(names, sums, strict=True)}
        for name, value in values.items():
            if not math.isfinite(value):
                raise NonFinite(
                    f"{name}: is {value} in the {self._count} iterations before {iteration}: the training has diverged. "
                    f"The checkpoints in {config.run.dir} are from before; look at the curves in TensorBoard, and start "
                    "another run with a lower optimizer.*.learning_rate, or let it go back with run.rollbacks"
                )
        seconds = max(time.monotonic() - self._began, 1e-9)
        factor = learning_rate_factor(config.schedule, iteration - 1)
        read = self.real_samples(iteration)
        rates = {turn.player: turn.rate for turn in reversed(self.method.turns(iteration - 1))}
        values |= {
            f"learning_rate/{player}": config.optimizer.of(player).learning_rate * factor * rates.get(player, 1.0)
            for player in self.method.players
        }
        values |= {
            "speed/images_per_second": (read - self.real_samples(iteration - self._count)) / seconds,
            "speed/seconds_per_iteration": seconds / self._count,
            "speed/data_wait_share": (self._wait_seconds() - self._waited) / seconds,
            "progress/real_images": float(read),
        }
        if self.telemetry:
            data = self._statistics()
            health, warned = self.health.at_log(values) if self.health else ({}, [])
            self.telemetry.scalars(iteration, values | health | data | more)
            self.telemetry.status(
                iteration,
                values,
                list(self.method.players),
                note + "".join(f" | {warning.line()}" for warning in warned),
            )
            self._warn(iteration, warned)
        self._restart()

    def _sampler(self, state: State) -> Sampler:
        classes = self.manifest.classes
        names = ClassNames(self.manifest.class_names, tuple(entry.id for entry in classes))
        return bind_data(self.method.sampler(state.sampled, names), self.config.all_sources)

    def grid(self, iteration: int, state: State) -> None:
        """A grid from fixed latents, one row per condition (of up to ten, evenly chosen), in evaluation mode.

        A sampler that has strips of its own to show has these instead.
        """
        sampler = self._sampler(state)
        if self.telemetry is not None and isinstance(sampler, Strips):
            with evaluating(sampler), torch.no_grad():
                strips, names = sampler.strips(GRID_ROWS)
            self.telemetry.grid(iteration, to_uint8(strips.flatten(0, 1)).view(strips.shape), names)
            return
        chosen = sampler.conditions.evenly(GRID_ROWS)
        if self.telemetry is None or sampler.output != "image" or not len(chosen):
            return
        latents = sampler.draw(keys.generator(self.config.run.seed, "grid"), len(chosen) * GRID_COLUMNS)
        images = to_uint8(samples_of(sampler, latents, chosen.repeat_interleave(GRID_COLUMNS, 0)))
        names = [sampler.conditions.caption(condition) for condition in chosen]
        self.telemetry.grid(iteration, images.view(len(chosen), GRID_COLUMNS, *images.shape[1:]), names)

    def evaluate(self, iteration: int, state: State) -> dict[str, float]:
        """The light measurements inside a run, in the main process: class accuracy and the watch for collapse."""
        if self.telemetry is None:
            return {}
        scores: dict[str, float] = {}
        sampler = self._sampler(state)
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

    def _wait_seconds(self) -> float:
        return sum(source.stream.wait_seconds for source in self.sources.values())

    def _statistics(self) -> dict[str, float]:
        """The sources' counters: `data/NAME` of the main one, `data/SOURCE/NAME` of others."""
        return {
            f"data/{name}" if source == "data" else f"data/{source}/{name}": value
            for source, of in self.sources.items()
            for name, value in of.stream.statistics().items()
        }

    def _restart(self) -> None:
        self._sums: Scalars = {}
        self._counts: dict[str, int] = {}
        self._count = 0
        self._began = time.monotonic()
        self._waited = self._wait_seconds()


def _curve(name: str) -> str:
    """The curve's name of a scalar PLAYER/NAME: a player's loss is loss/PLAYER."""
    player, _, last = name.partition("/")
    return f"loss/{player}" if last == "loss" else CURVE_NAMES.get(name, name)


def _samples(manifest: Manifest) -> str:
    """How many samples a source has; of few labelled ones also how many of each class."""
    if not manifest.labelled:
        return f"{manifest.samples:,} {manifest.fields[0]}s"
    counts = [entry.samples for entry in manifest.classes]
    each = f" ({', '.join(map(str, counts))})" if sum(counts) <= 100 * len(counts) <= 2000 else ""
    return f"{manifest.samples:,} {manifest.fields[0]}s of {len(counts)} classes{each}"
