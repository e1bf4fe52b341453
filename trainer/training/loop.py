"""The only training loop."""

import itertools
import logging
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial

import torch

from data_pipeline.manifest.format import Manifest, load_manifest
from data_pipeline.reading.selection import select_classes
from data_pipeline.reading.stream import open_stream
from trainer.config import Config, as_yaml, check_launch
from trainer.foundation.errors import NonFinite, SettingError
from trainer.methods import build_objective
from trainer.methods.schedule import learning_rate_factor
from trainer.metrics.accuracy import GeneratedAccuracy
from trainer.processes.launch import Launch, set_arithmetic, sum_over_processes
from trainer.processes.preemption import StopRequest, clear_marker, write_marker
from trainer.speed.apply import describe_host
from trainer.speed.autotune import Tuned, choose_forms
from trainer.telemetry.board import Telemetry
from trainer.telemetry.mirror import RunFolder
from trainer.training.draws import discriminator_draws, generator_draws, seed_layers
from trainer.training.finetuning import ClassifierStage
from trainer.training.iteration import run_iteration
from trainer.training.reporting import Reporter
from trainer.training.selfcheck import check_start, check_state, heartbeat
from trainer.training.state import Keeper, State

logger = logging.getLogger("menagerie")


def train(config: Config, launch: Launch) -> bool:
    """Train until `run.iterations`, or until asked to stop; returns whether the run is complete.

    The same call goes on from the newest checkpoint in `run.dir`. Everything random or read from data at an iteration is
    a function of (seed, iteration, ...), so nothing but the players' state and the iteration is ever restored.
    """
    attempt = _Attempt()
    while True:
        try:
            return _train(config, launch, attempt)
        except NonFinite as error:
            attempt.rollbacks += 1
            if attempt.rollbacks > config.run.rollbacks:
                raise
            logger.warning(
                "going back to the last checkpoint (%d of %d): %s", attempt.rollbacks, config.run.rollbacks, error
            )


@dataclass
class _Attempt:
    rollbacks: int = 0
    """How often the run has gone back so far, as far as this process and the commit it took up know."""


def _train(config: Config, launch: Launch, attempt: _Attempt) -> bool:
    run, batch = config.run, config.batch
    # What can be refused is refused before anything is written.
    check_launch(config, launch)
    check_start(launch, config)
    set_arithmetic(tf32=run.tf32, deterministic=run.deterministic)
    manifest = select_classes(load_manifest(config.data.shards), config.data.classes)
    _check_shape(config, manifest)
    stage = ClassifierStage(config, build_objective(config.objective), manifest, launch)
    judge = None
    if config.evaluation.classifier:
        judge = GeneratedAccuracy(config.evaluation.classifier, config.model, launch.device)
    with ExitStack() as stack:
        # State: a function of the seed, then replaced by the newest commit.
        stop = stack.enter_context(StopRequest(run.dir if launch.is_main else None))
        state = State(config, launch)
        folder = stack.enter_context(RunFolder(run.dir)) if launch.is_main else None
        keeper = stack.enter_context(closing(Keeper(config, launch, before_write=folder.push if folder else None)))
        start = keeper.resume(state)
        stage.resume(state)
        if config.speed.autotune:
            sizes = (batch.generated_per_replica, batch.real_per_replica)
            networks = (state.generator.module, state.discriminator.module)
            resolution = config.model.resolution
            tuned = [
                Tuned(name, network, resolution, size)
                for name, network, size in zip(("generator", "discriminator"), networks, sizes, strict=True)
            ]
            choose_forms(run.dir, tuned, launch)
        state.rollbacks = attempt.rollbacks = max(state.rollbacks, attempt.rollbacks)

        # Data: a batch is found by its number, so the stream simply starts where the run goes on.
        stream = stack.enter_context(
            open_stream(
                config.data,
                seed=run.seed,
                replicas=batch.replicas,
                held=launch.held_replicas(batch.replicas),
                sizes=itertools.repeat(batch.real_per_replica),
                first_position=start * config.schedule.discriminator_steps * batch.real_per_replica,
                pin_memory=launch.device.type == "cuda",
            )
        )
        keeper.check_data(stream.manifest)
        check_state(launch, stream.manifest.fingerprint, (state.generator, state.discriminator))

        # Telemetry: the main process writes it.
        telemetry = stack.enter_context(Telemetry(folder.path, start, run.iterations)) if folder else None
        report = Reporter(config, launch, stream, telemetry, judge)
        report.watch(state.generator.module, state.discriminator.module)
        if telemetry and folder:
            (folder.path / "config.yaml").write_text(as_yaml(config))
            telemetry.text("settings", as_yaml(config), start)
            telemetry.say(report.opening(start))
            telemetry.say(describe_host(config.speed, launch))
            clear_marker(run.dir)

        for iteration in range(start, run.iterations + 1):
            # Status, samples, evaluation, checkpoint, stop: before the step, so that neither end is a special case.
            last = iteration == run.iterations
            new = iteration != start  # at `start` all of this was done before the checkpoint was written
            scheduled = new and iteration % run.checkpoint_every == 0
            saving = keeper.due(scheduled, iteration)
            stopping, saving, failed = _agree(launch, stop.requested(), saving, keeper.failure is not None)
            stopping = stopping and not last
            if failed:
                keeper.raise_failure()
            if new and (iteration % run.log_every == 0 or last or stopping):
                report.log(iteration, keeper.status(), keeper.note())
            if (new or start == 0) and (last or (run.sample_every and iteration % run.sample_every == 0)):
                report.grid(iteration, state.sampled)
            scores = {}
            if new and run.evaluate_every and (last or iteration % run.evaluate_every == 0):
                scores = report.evaluate(iteration, state.sampled)
            stage.watch(iteration, state, telemetry, new=new)
            if run.heartbeat_every and iteration % run.heartbeat_every == 0:
                heartbeat(launch, (state.generator, state.discriminator), iteration)
            if last or stopping or saving:
                keeper.save(state, iteration, scores, final=last or stopping)
            if last or stopping:
                reason = "complete" if last else stop.reason or "another process was asked"
                keeper.end(reason, iteration)
                if telemetry:
                    if stopping:
                        write_marker(run.dir, iteration=iteration, reason=reason)
                    go_on = "" if last else "; the same command goes on from here"
                    telemetry.say(f"{run.dir}: stopped at iteration {iteration:,} ({reason}){go_on}")
                return last

            # The generator's step, then the discriminator's steps.
            scalars = run_iteration(
                state.generator,
                state.discriminator,
                stage.objective(iteration, state),
                generator_draws(config, launch, iteration, state.rollbacks),
                discriminator_draws(config, launch, stream, iteration, state.rollbacks),
                launch=launch,
                replicas=batch.replicas,
                rate_factor=learning_rate_factor(config.schedule, iteration),
                seed_layers=partial(seed_layers, config, state.rollbacks, iteration),
                generator_first=config.schedule.generator_first,
                synchronised=batch.synchronised_norm,
                speed=config.speed,
            )
            if state.ema:
                state.ema.update(state.generator.module, iteration)
            report.add(scalars)
            if telemetry:
                telemetry.advance()
    raise AssertionError("unreachable")


def _check_shape(config: Config, manifest: Manifest) -> None:
    """Raise `SettingError` unless the model is made for these images."""
    model, classes = config.model, len(manifest.class_names)
    where = f"the shards in {config.data.shards} hold"
    for setting, asked, found in (
        ("model.resolution", model.resolution, manifest.resolution),
        ("model.image_channels", model.image_channels, manifest.channels),
    ):
        if asked != found:
            raise SettingError(f"{setting}: is {asked}, but {where} images with {found}; set it to {found}")
    if model.classes not in (0, classes):
        raise SettingError(
            f"model.classes: is {model.classes}, but {where} {classes} classes; set it to {classes}, or to 0 for no condition"
        )


def _agree(launch: Launch, *flags: bool) -> tuple[bool, ...]:
    """Each flag as the same answer everywhere: whether any process raises it."""
    if launch.world_size == 1:
        return flags
    sums = sum_over_processes(launch, torch.tensor([float(flag) for flag in flags], device=launch.device))
    return tuple(total > 0 for total in sums.tolist())
