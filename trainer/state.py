"""What a run has learned: the players and the moving average. Built from the seed, or taken from the newest commit."""

import logging
from typing import Any

import torch
from torch import Tensor

from trainer import noise
from trainer.checkpoint import CheckpointStore
from trainer.config import Config, as_tree
from trainer.ema import Ema
from trainer.errors import CheckpointError
from trainer.launch import Launch, share_from_main, share_object
from trainer.models import build_discriminator, build_generator
from trainer.player import Player
from trainer.resume import check_data, check_settings
from trainer.saver import Saver

logger = logging.getLogger("menagerie")

HARMLESS = (
    *(f"run.{name}" for name in ("dir", "iterations", "dry_run", "resume", "allow_changed", "heartbeat_every")),
    *(f"run.{kind}_every" for kind in ("checkpoint", "log", "sample", "evaluate")),
    *(f"data.{name}" for name in ("shards", "cache_dir", "cache_bytes", "decode_threads", "prefetch_batches")),
    "checkpoint",
    "evaluation",
)
"""Settings that do not change what is computed. The shards themselves are compared by their fingerprint."""


class State:
    """The players and, where there is one, the generator's moving average."""

    def __init__(self, config: Config, launch: Launch) -> None:
        seed, rates = config.run.seed, config.optimizer
        torch.manual_seed(noise.key(seed, "initial generator"))
        self.generator = Player("generator", build_generator(config.generator, config.model), rates.generator, launch)
        torch.manual_seed(noise.key(seed, "initial discriminator"))
        module = build_discriminator(config.discriminator, config.model)
        self.discriminator = Player("discriminator", module, rates.discriminator, launch)
        self.ema = Ema(self.generator.module, config.ema) if config.ema.decay else None

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
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `tensors` gave; raises `CheckpointError` by name if it does not fit."""
        self.generator.load(tensors)
        self.discriminator.load(tensors)
        if self.ema:
            average = {name.removeprefix("ema/"): value for name, value in tensors.items() if name.startswith("ema/")}
            if not average:
                raise CheckpointError("ema.decay: the checkpoint holds no moving average; set ema.decay to 0")
            self.ema.load(average)


class Keeper:
    """The run's checkpoints: taken up at the start, saved off the critical path. Only the main process writes."""

    def __init__(self, config: Config, launch: Launch) -> None:
        self.config, self.launch = config, launch
        self.store = CheckpointStore(config.run.dir, config.checkpoint) if launch.is_main else None
        self.saver: Saver | None = None
        self.fingerprint: str | None = None
        """Of the shards that the commit was made with; None where the run starts."""
        self.real_images_per_iteration = (
            config.schedule.discriminator_steps * config.batch.replicas * config.batch.real_per_replica
        )

    def resume(self, state: State) -> int:
        """Become the run's writer and put the newest commit into every process; returns the iteration, 0 if none.

        Raises `CheckpointError` or `SettingError`; nothing has been touched then.
        """
        commit, tensors, changes = None, None, ""
        if self.store is not None:
            self.store.acquire()
            restored = self.store.restore(set_aside=True)
            if restored is not None:
                commit, tensors = restored.commit, restored.tensors
                if self.config.run.resume == "never":
                    raise CheckpointError(
                        f"run.resume: is 'never', but {self.config.run.dir} holds a checkpoint of iteration "
                        f"{commit.iteration}; set run.resume to 'auto' to go on, or choose another run.dir"
                    )
                changed = check_settings(
                    commit.info["settings"],
                    as_tree(self.config),
                    harmless=HARMLESS,
                    allowed=self.config.run.allow_changed,
                )
                changes = "; ".join(map(str, changed))
                self.fingerprint = commit.info.get("data_fingerprint")
            self.saver = Saver(self.store, durable_iteration=commit.iteration if commit else None)
        if changes:
            logger.warning("settings changed since the checkpoint: %s", changes)
        iteration = share_object(self.launch, commit.iteration if commit else 0)
        if self.launch.is_main and tensors is None:
            tensors = state.tensors()
        state.load(share_from_main(self.launch, tensors))
        return iteration

    def check_data(self, fingerprint: str) -> None:
        """Refuse shards other than those of the commit; from here on `fingerprint` is written into every manifest."""
        check_data(self.fingerprint, fingerprint, self.config.data.shards)
        self.fingerprint = fingerprint

    def due(self, scheduled: bool, iteration: int) -> bool:
        """Whether the main process wants to save now; raises, there, what must end the run."""
        if self.saver is None:
            return False
        self.saver.poll()
        return self.saver.due(scheduled, iteration)

    def save(self, state: State, iteration: int, *, final: bool) -> None:
        """Save the state of `iteration`, in the background, or at once and durably if it is the `final` one."""
        tensors = state.tensors()
        if self.saver is not None:
            (self.saver.finish if final else self.saver.save)(iteration, tensors, self._info(iteration))

    def end(self, reason: str, iteration: int) -> None:
        """Note that this start ended in good order."""
        if self.store is not None:
            self.store.release(reason, iteration)

    def status(self) -> dict[str, float]:
        """Figures for TensorBoard."""
        return self.saver.status().scalars() if self.saver else {}

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
            "settings": as_tree(self.config),
        }
