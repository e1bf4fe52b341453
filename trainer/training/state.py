"""What a run has learned: the players and the moving average. Built from the seed, or taken from the newest commit."""

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

from data_pipeline.manifest.format import ClassInfo, Manifest
from trainer.checkpoint.commits import CheckpointStore, Commit, Restored
from trainer.checkpoint.resume import Change, check_data, check_settings
from trainer.checkpoint.saver import Saver
from trainer.config import Config, as_tree, config_from_tree
from trainer.foundation import keys
from trainer.foundation.errors import CheckpointError, SettingError, TrainerError
from trainer.methods.terms import guidance
from trainer.models import build_discriminator, build_generator
from trainer.models.synchronised import synchronise_norms
from trainer.players.ema import Ema
from trainer.players.player import Player
from trainer.processes.launch import Launch, share_failure, share_from_main, share_object
from trainer.speed.apply import apply_speed

logger = logging.getLogger("menagerie")

ROLLBACKS = "run/rollbacks"
HARMLESS = (
    *(f"run.{name}" for name in ("dir", "iterations", "dry_run", "resume", "allow_changed", "heartbeat_every")),
    "run.deterministic",
    *(f"run.{name}" for name in ("initialize_from", "initialize_optimizer", "rollbacks")),
    *(f"run.{kind}_every" for kind in ("checkpoint", "log", "sample", "evaluate")),
    *(f"data.{name}" for name in ("shards", "cache_dir", "cache_bytes", "decode_threads", "prefetch_batches")),
    *(f"data.{name}" for name in ("fetch_deadline", "fetch_request_timeout")),
    "checkpoint",
    "evaluation",
    "speed",
    *(f"classifier_loss.{name}.weights" for name in ("classifier", "independent")),
)
"""Settings that do not change what is computed. The shards themselves are compared by their fingerprint."""


class State:
    """The players and, where there is one, the generator's moving average."""

    def __init__(self, config: Config, launch: Launch) -> None:
        seed, rates = config.run.seed, config.optimizer
        torch.manual_seed(keys.key(seed, "initial generator"))
        generator = build_generator(config.generator, config.model)
        torch.manual_seed(keys.key(seed, "initial discriminator"))
        discriminator = build_discriminator(config.discriminator, config.model)
        if config.batch.synchronised_norm:
            synchronise_norms(generator, discriminator)
        networks = {"generator": generator, "discriminator": discriminator}
        apply_speed(config.speed, networks, config.model.resolution, launch)
        player = partial(Player, launch=launch, replicas=config.batch.replicas, deterministic=config.run.deterministic)
        player = partial(player, speed=config.speed)
        self.generator = player("generator", generator, rates.generator)
        self.discriminator = player("discriminator", discriminator, rates.discriminator)
        self.ema = Ema(self.generator.module, config.ema) if config.ema.decay else None
        self.rollbacks = 0
        """How often the run has gone back after numbers that were not finite; the draws depend on it."""
        self.marks: dict[str, Tensor] = {}
        """What the fine-tuning stage has to remember (trainer/training/finetuning.py), by name."""

    @property
    def sampled(self) -> torch.nn.Module:
        """The generator that is looked at: the moving average where there is one."""
        return self.ema.module if self.ema else self.generator.module

    def tensors(self) -> dict[str, Tensor]:
        """The full logical state, by name. Every process calls it, since a strategy may have to gather."""
        average = self.ema.state() if self.ema else {}
        return {
            **self.generator.state(),
            **self.discriminator.state(),
            **{f"ema/{name}": value.cpu().contiguous() for name, value in average.items()},
            **({ROLLBACKS: torch.tensor(self.rollbacks)} if self.rollbacks else {}),
            **self.marks,
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `tensors` gave; raises `CheckpointError` by name if it does not fit."""
        self.generator.load(tensors)
        self.discriminator.load(tensors)
        self.rollbacks = int(tensors.get(ROLLBACKS, 0))
        self.marks = {name: value for name, value in tensors.items() if name.startswith(guidance.PREFIX)}
        if self.ema:
            average = {name.removeprefix("ema/"): value for name, value in tensors.items() if name.startswith("ema/")}
            if not average:
                raise CheckpointError("ema.decay: the checkpoint holds no moving average; set ema.decay to 0")
            self.ema.load(average)


class Keeper:
    """The run's checkpoints: taken up at the start, saved off the critical path. Only the main process writes."""

    def __init__(self, config: Config, launch: Launch, before_write: Callable[[], None] | None = None) -> None:
        """`before_write` is called, in the saver's thread, ahead of every checkpoint."""
        self.config, self.launch = config, launch
        self.before_write = before_write or (lambda: None)
        self.store = CheckpointStore(config.run.dir, config.checkpoint) if launch.is_main else None
        self.saver: Saver | None = None
        self.failure: TrainerError | None = None
        self.fingerprint: str | None = None
        """Of the shards that the commit was made with; None where the run starts."""
        self.classes: tuple[ClassInfo, ...] = ()
        self.real_images_per_iteration = (
            config.schedule.discriminator_steps * config.batch.replicas * config.batch.real_per_replica
        )

    def resume(self, state: State) -> int:
        """Become the run's writer and put the newest commit into every process; returns the iteration, 0 if none.

        Raises `CheckpointError` or `SettingError`; nothing has been touched then.
        """
        restored, error = None, None
        if self.store is not None:
            try:
                restored = self._take_up(self.store)
            except TrainerError as found:
                error = found
        share_failure(self.launch, error)
        iteration = share_object(self.launch, restored.commit.iteration if restored else 0)
        if share_object(self.launch, restored is None):
            tensors: dict[str, Tensor] | None = state.tensors()  # every process: a strategy may have to gather
        else:
            tensors = restored.tensors if restored else None
        state.load(share_from_main(self.launch, tensors if self.launch.is_main else None))
        return iteration

    def _take_up(self, store: CheckpointStore) -> Restored | None:
        """In the main process: judge the newest commit, become the writer, read it, start the saver."""
        for commit in store.commits()[:1]:
            self._judge(commit)  # before a start that is refused could fence off one that is at work
        store.acquire()
        restored = store.restore(set_aside=True)
        if restored is not None:
            for change in self._judge(restored.commit):
                logger.warning("changed since the checkpoint of iteration %d: %s", restored.commit.iteration, change)
            self.fingerprint = restored.commit.info.get("data_fingerprint")
        durable = restored.commit.iteration if restored else None
        self.saver = Saver(store, durable_iteration=durable, before=self.before_write)
        return restored or self._initial()

    def _initial(self) -> Restored | None:
        """What `run.initialize_from` names: another run's commit, with or without Adam's moments."""
        run = self.config.run
        if run.initialize_from is None:
            return None
        folder, at, number = run.initialize_from.rpartition("@")
        if at and not number.isdigit():
            raise SettingError(
                f"run.initialize_from: is {run.initialize_from!r}; after @ stands the number of an iteration, as in RUN@400000"
            )
        source = CheckpointStore(folder if at else number)
        held = [commit.iteration for commit in source.commits()]
        if at and held and int(number) not in held:
            raise CheckpointError(
                f"run.initialize_from: {folder} holds no checkpoint of iteration {number}, only of "
                f"{', '.join(map(str, sorted(held)))}; give one of these (checkpoint.keep_every says which ones a run keeps)"
            )
        restored = source.restore(int(number) if at else None)
        if restored is None:
            raise CheckpointError(
                f"run.initialize_from: {run.initialize_from} holds no checkpoint; give another run's folder"
            )
        guidance.check_first_iteration(self.config.classifier_loss, restored.commit.iteration, run.initialize_from)
        for name in [name for name in restored.tensors if name.startswith(guidance.PREFIX)]:
            del restored.tensors[name]  # the stage is this run's own
        if not run.initialize_optimizer:
            for name, tensor in restored.tensors.items():
                if name.partition("/")[0].endswith(".adam"):
                    tensor.zero_()
        moments = "with" if run.initialize_optimizer else "without"
        logger.warning(
            "starting from iteration %d of %s, %s Adam's moments",
            restored.commit.iteration,
            run.initialize_from,
            moments,
        )
        return restored

    def _judge(self, commit: Commit) -> list[Change]:
        """The settings that changed since a commit; raises if the run may not go on from it with those at hand."""
        if self.config.run.resume == "never":
            raise CheckpointError(
                f"run.resume: is 'never', but {self.config.run.dir} holds a checkpoint of iteration "
                f"{commit.iteration}; set run.resume to 'auto' to go on, or choose another run.dir"
            )
        before, after = commit.info.get("settings", {}), as_tree(self.config)
        with suppress(SettingError):  # settings that did not exist then have their defaults
            before = as_tree(config_from_tree(before))
        return check_settings(before, after, harmless=HARMLESS, allowed=self.config.run.allow_changed)

    def check_data(self, manifest: Manifest) -> None:
        """Refuse shards other than those of the commit; from here on every commit tells fingerprint and classes."""
        check_data(self.fingerprint, manifest.fingerprint, self.config.data.shards)
        self.fingerprint, self.classes = manifest.fingerprint, manifest.classes

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

    def save(self, state: State, iteration: int, scores: dict[str, float], *, final: bool) -> None:
        """Save the state of `iteration`, in the background, or at once and durably if it is the `final` one.

        `scores`: what was measured at this iteration, for `checkpoint.keep_best`.
        """
        tensors = state.tensors()
        if self.saver is not None:
            info = self._info(iteration) | ({"scores": scores} if scores else {})
            (self.saver.finish if final else self.saver.save)(iteration, tensors, info)

    def end(self, reason: str, iteration: int) -> None:
        """Note that this start ended in good order."""
        if self.store is not None:
            self.store.release(reason, iteration)

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

    def _info(self, iteration: int) -> dict[str, Any]:
        return {
            "real_images": iteration * self.real_images_per_iteration,
            "strategy": self.launch.strategy,
            "precision": self.launch.precision,
            "world_size": self.launch.world_size,
            "data_fingerprint": self.fingerprint,
            "class_names": [entry.name for entry in self.classes],
            "class_ids": [entry.id for entry in self.classes],
            "settings": as_tree(self.config),
        }
