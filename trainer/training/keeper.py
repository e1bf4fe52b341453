"""The run's checkpoints: taken up at the start, saved off the critical path."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from torch import Tensor

from data_pipeline.manifest.format import ClassInfo, Manifest
from trainer.checkpoint.commits import CheckpointStore, Restored
from trainer.checkpoint.format import Commit
from trainer.checkpoint.names import parse_commit_name
from trainer.checkpoint.resume import Change, check_data, check_settings
from trainer.checkpoint.saver import Saver
from trainer.classifiers.identity import as_classes, places_of
from trainer.config import Config, as_tree, config_from_tree, section_of
from trainer.foundation.arithmetic import hardware, hardware_changes
from trainer.foundation.errors import CheckpointError, SettingError, TrainerError
from trainer.methods.terms import guidance
from trainer.metrics.measures import measurement_named
from trainer.players.optimizers import is_optimizers
from trainer.processes.launch import Launch, share_failure, share_from_main, share_object
from trainer.training.state import State

logger = logging.getLogger("menagerie")

HARMLESS = (
    *(f"run.{name}" for name in ("dir", "iterations", "dry_run", "resume", "allow_changed", "heartbeat_every")),
    "run.deterministic",
    *(f"run.{name}" for name in ("initialize_from", "initialize_optimizer", "rollbacks")),
    *(f"run.{kind}_every" for kind in ("checkpoint", "log", "sample", "evaluate")),
    "checkpoint",
    "evaluation",
    "speed",
    *(f"classifier_loss.{name}.weights" for name in ("classifier", "independent")),
)
"""Settings that do not change what is computed."""
HARMLESS_OF_A_SOURCE = (
    *("shards", "cache_dir", "cache_bytes", "decode_threads", "prefetch_batches"),
    *("fetch_deadline", "fetch_request_timeout"),
)
"""Of every source. The shards themselves are compared by their fingerprint."""


def harmless(config: Config) -> tuple[str, ...]:
    """All settings of this experiment that do not change what is computed."""
    sections = [section_of(name) for name in ("data", *config.sources)]
    return (*HARMLESS, *(f"{section}.{name}" for section in sections for name in HARMLESS_OF_A_SOURCE))


class Keeper:
    """The run's checkpoints: taken up at the start, saved off the critical path. Only the main process writes."""

    def __init__(self, config: Config, launch: Launch, before_write: Callable[[], None] | None = None) -> None:
        """`before_write` is called, in the saver's thread, ahead of every checkpoint."""
        self.config, self.launch = config, launch
        self.before_write = before_write or (lambda: None)
        checkpoint = config.checkpoint
        if checkpoint.keep_best is not None:
            checkpoint = replace(checkpoint, keep_best=measurement_named(checkpoint.keep_best, "checkpoint.keep_best"))
        self.store = CheckpointStore(config.run.dir, checkpoint) if launch.is_main else None
        self.saver: Saver | None = None
        self._own: Restored | None = None
        """The run's newest commit, as `resume` found it."""
        self.failure: TrainerError | None = None
        self.fingerprints: dict[str, str] = {}
        """Of every source's shards that the commit was made with, by the source's name; none where the run starts."""
        self.classes: tuple[ClassInfo, ...] = ()
        self._initial_classes: tuple[ClassInfo, ...] = ()
        """Of the run that `run.initialize_from` names, where they are noted."""

    def resume(self, state: State) -> int:
        """Put the newest commit into every process; returns the iteration, 0 if none.

        Only looks: a run that is at work in the same folder notices nothing. Raises `CheckpointError` or `SettingError`
        on every process.
        """
        restored, error = None, None
        if self.store is not None:
            try:
                restored = self._look(self.store)
            except TrainerError as found:
                error = found
        share_failure(self.launch, error)
        iteration = share_object(self.launch, restored.commit.iteration if restored else 0)
        if share_object(self.launch, restored is None):
            tensors: dict[str, Tensor] | None = state.tensors()  # every process: a strategy may have to gather
        else:
            tensors = restored.tensors if restored else None
        state.load(share_from_main(self.launch, tensors if self.launch.is_main else None), iteration)
        return iteration

    def take_over(self) -> bool:
        """Become the run's writer: every older one is fenced off. Every process calls it, once nothing can be refused.

        False where a commit came between `resume` and now: then `resume` comes again, and this after it.
        """
        newest, error = True, None
        if self.store is not None:
            try:
                if self.store.lease is None:
                    self.store.acquire()
                newest = self.store.is_newest(self._own)
                if newest:
                    self._start_saver(self.store)
            except TrainerError as found:
                error = found
        share_failure(self.launch, error)
        return share_object(self.launch, newest)

    def _look(self, store: CheckpointStore) -> Restored | None:
        """In the main process: judge the newest commit, read it, judge it; or read what `run.initialize_from` names."""
        for commit in store.commits()[:1]:
            self._judge(commit)  # before all its bytes are read
        self._own = restored = store.restore()
        if restored is not None:
            for change in self._judge(restored.commit):
                logger.warning("changed since the checkpoint of iteration %d: %s", restored.commit.iteration, change)
            then, here = restored.commit.info.get("hardware", {}), hardware(self.launch.device)
            if changed := hardware_changes(then, here):
                logger.warning(
                    "the checkpoint of iteration %d was made elsewhere (%s): the run resumes, with other last bits",
                    restored.commit.iteration,
                    "; ".join(changed),
                )
            self.fingerprints = dict(restored.commit.info.get("source_fingerprints", {}))
            if restored.commit.info.get("data_fingerprint"):
                self.fingerprints["data"] = restored.commit.info["data_fingerprint"]
        return restored or self._initial()

    def _start_saver(self, store: CheckpointStore) -> None:
        durable = None
        if self._own is not None:
            for folder, reason in self._own.passed_over.items():
                store.set_aside(folder, reason)
            durable = self._own.commit.iteration
            self._own = self._own._replace(tensors={})  # the players have them
        self.saver = Saver(store, durable_iteration=durable, before=self.before_write)

    def _initial(self) -> Restored | None:
        """What `run.initialize_from` names: another run's commit, with or without Adam's moments."""
        run = self.config.run
        if run.initialize_from is None:
            return None
        name = parse_commit_name(run.initialize_from, "run.initialize_from")
        source = CheckpointStore(name.run)
        held = [commit.iteration for commit in source.commits()]
        if name.iteration is not None and held and name.iteration not in held:
            raise CheckpointError(
                f"run.initialize_from: {name.run} holds no checkpoint of iteration {name.iteration}, only of "
                f"{', '.join(map(str, sorted(held)))}; give one of these (checkpoint.keep_every says which ones a run keeps)"
            )
        restored = source.restore(name.iteration)
        if restored is None:
            raise CheckpointError(
                f"run.initialize_from: {run.initialize_from} holds no checkpoint; give another run's folder"
            )
        self._check_iterations(restored.commit.iteration, run.initialize_from)
        guidance.check_first_iteration(self.config.classifier_loss, restored.commit.iteration, run.initialize_from)
        info = restored.commit.info
        self._initial_classes = as_classes(info.get("class_names") or (), info.get("class_ids") or ())
        for tensor in [tensor for tensor in restored.tensors if tensor.startswith(guidance.PREFIX)]:
            del restored.tensors[tensor]  # the stage is this run's own
        if not run.initialize_optimizer:
            for tensor, value in restored.tensors.items():
                if is_optimizers(tensor):
                    value.zero_()
        moments = "with" if run.initialize_optimizer else "without"
        logger.warning(
            "starting from iteration %d of %s, %s Adam's moments",
            restored.commit.iteration,
            run.initialize_from,
            moments,
        )
        return restored

    def _check_iterations(self, done: int, where: str) -> None:
        wanted = self.config.run.iterations
        if wanted < done:
            raise SettingError(
                f"run.iterations: is {wanted}, but {where} holds a checkpoint of iteration {done}; give {done} or more to go "
                "on from there, or choose another run.dir to start anew"
            )

    def _judge(self, commit: Commit) -> list[Change]:
        """The settings that changed since a commit; raises if the run may not resume from it with the current ones."""
        if self.config.run.resume == "never":
            raise CheckpointError(
                f"run.resume: is 'never', but {self.config.run.dir} holds a checkpoint of iteration "
                f"{commit.iteration}; set run.resume to 'auto' to resume, or choose another run.dir"
            )
        self._check_iterations(commit.iteration, self.config.run.dir)
        before, after = commit.info.get("settings", {}), as_tree(self.config)
        with suppress(SettingError):  # settings that did not exist then have their defaults
            before = as_tree(config_from_tree(before))
        return check_settings(before, after, harmless=harmless(self.config), allowed=self.config.run.allow_changed)

    def check_data(self, manifests: Mapping[str, Manifest]) -> None:
        """Refuse shards other than those of the commit; from here on every commit tells fingerprints and classes."""
        error = None
        try:
            for name, manifest in manifests.items():
                shards, setting = self.config.source(name).shards, f"{section_of(name)}.shards"
                check_data(self.fingerprints.get(name), manifest.fingerprint, shards, setting)
            if "data" in manifests and "data.classes" not in self.config.run.allow_changed:
                _check_same_classes(self._initial_classes, manifests["data"].classes, self.config)
        except SettingError as found:  # the main process alone knows the commit
            error = found
        share_failure(self.launch, error)
        self.fingerprints = {name: manifest.fingerprint for name, manifest in manifests.items()}
        first = [manifests["data"]] if "data" in manifests else []
        self.classes = next((manifest.classes for manifest in [*first, *manifests.values()] if manifest.classes), ())

    def due(self, scheduled: bool, iteration: int) -> bool:
        """Whether the main process wants to save now. What must end the run is kept for `raise_failure`."""
        if self.saver is None:
            return False
        try:
            self.saver.poll()
        except TrainerError as error:
            self.failure = error
        return self.saver.due(scheduled, iteration)

    def raise_failure(self) -> None:
        """Every process calls it once one has `failure`: a lost lease, NaN in the state, a store that fails too long."""
        share_failure(self.launch, self.failure)

    def save(self, state: State, iteration: int, real_samples: int, scores: dict[str, float], *, final: bool) -> None:
        """Save the state of `iteration`, in the background, or at once and durably if it is the `final` one.

        `real_samples`: read so far by all replicas. `scores`: what was measured at this iteration, for
        `checkpoint.keep_best`.
        """
        tensors = state.tensors()
        if self.saver is not None:
            info = self._info(real_samples) | ({"scores": scores} if scores else {})
            (self.saver.finish if final else self.saver.save)(iteration, tensors, info)

    def end(self, reason: str, iteration: int) -> None:
        """Note that this start ended in good order."""
        if self.store is not None:
            try:
                self.store.release(reason, iteration)
            except Exception as error:  # all that was learned is saved
                logger.warning("%s: the end of this start could not be noted (%s)", self.config.run.dir, error)

    def status(self) -> dict[str, float]:
        """Figures for TensorBoard."""
        return self.saver.status().scalars() if self.saver else {}

    def note(self) -> str:
        """For the end of the status line."""
        return f" | {self.saver.status().note()}" if self.saver else ""

    def close(self) -> None:
        """End the background thread."""
        if self.saver is not None:
            self.saver.close()

    def _info(self, real_samples: int) -> dict[str, Any]:
        others = {name: fingerprint for name, fingerprint in self.fingerprints.items() if name != "data"}
        return {
            "real_images": real_samples,
            "strategy": self.launch.strategy,
            "precision": self.launch.precision,
            "world_size": self.launch.world_size,
            "hardware": hardware(self.launch.device),
            "data_fingerprint": self.fingerprints.get("data"),
            **({"source_fingerprints": others} if others else {}),
            "class_names": [entry.name for entry in self.classes],
            "class_ids": [entry.id for entry in self.classes],
            "settings": as_tree(self.config),
        }


def _check_same_classes(before: Sequence[ClassInfo], now: Sequence[ClassInfo], config: Config) -> None:
    """The embedding of class n is that of the class that the other run called n."""
    if before and places_of(now, before) != list(range(len(now))):
        other = next(
            (f"{old.name!r}, here {new.name!r}" for old, new in zip(before, now, strict=False) if old.name != new.name),
            f"{len(before)} classes, here {len(now)}",
        )
        raise SettingError(
            f"run.initialize_from: the classes of {config.run.initialize_from} are others, or stand in another order "
            f"(there {other}); give the same ones, or name data.classes in run.allow_changed if each class is to begin as "
            "the other run's of its number"
        )
