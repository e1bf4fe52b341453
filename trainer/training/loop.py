"""The only training loop."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass

import torch

from data_pipeline.manifest.format import load_manifest
from data_pipeline.reading.stream import Stream, open_stream
from trainer.config import Config, as_yaml, check_launch, section_of
from trainer.foundation.arithmetic import Arithmetic, set_arithmetic, slowness
from trainer.foundation.errors import NonFinite, SettingError
from trainer.foundation.log import run_log
from trainer.foundation.pixels import normalise
from trainer.foundation.stores import Store
from trainer.methods.places import batches_from, samples_before, sources_of
from trainer.methods.protocol import Method, Shards, StartsFromData, Tensors
from trainer.methods.schedule import learning_rate_factor
from trainer.metrics.accuracy import GeneratedAccuracy
from trainer.processes.launch import Launch, sum_over_processes
from trainer.processes.preemption import StopRequest, clear_marker, write_marker
from trainer.speed.apply import describe_host
from trainer.speed.autotune import Tuned, choose_forms
from trainer.telemetry.board import Telemetry
from trainer.telemetry.mirror import RunFolder
from trainer.training.draws import Draws, Source, anything_draws
from trainer.training.finetuning import ClassifierStage
from trainer.training.iteration import run_iteration
from trainer.training.keeper import Keeper
from trainer.training.reporting import Reporter
from trainer.training.selfcheck import check_start, check_state, heartbeat
from trainer.training.state import State

logger = logging.getLogger("menagerie")


def train(config: Config, launch: Launch) -> bool:
    """Train until `run.iterations`, or until asked to stop; returns whether the run is complete.

    The same call resumes from the newest checkpoint in `run.dir`. Everything random or read from data at an iteration is
    a function of (seed, iteration, ...), so nothing but the players' state and the iteration is ever restored.
    """
    with run_log(config.run.dir, launch.rank):
        attempt = _Attempt()
        while True:
            try:
                return _train(config, launch, attempt)
            except NonFinite as error:
                attempt.rollbacks += 1
                if attempt.rollbacks > config.run.rollbacks:
                    raise
                if launch.is_main:
                    left = f"{attempt.rollbacks} of {config.run.rollbacks}"
                    logger.warning("going back to the last checkpoint (%s): %s", left, error)


@dataclass
class _Attempt:
    rollbacks: int = 0
    """How often the run has gone back so far, as far as this process and the commit it took up know."""


def _train(config: Config, launch: Launch, attempt: _Attempt) -> bool:
    run, batch = config.run, config.batch
    # What can be refused is refused before anything is written.
    Store(run.dir, "run.dir")
    check_launch(config, launch)
    check_start(launch, config)
    set_arithmetic(Arithmetic(run.tf32, run.deterministic, config.speed.cudnn_benchmark))
    stage = ClassifierStage(config, _shards(config, "data").manifest, launch)
    method = config.objective.build(config.problem(stage.terms))
    method.check({name: _shards(config, name) for name in sources_of(method)})
    judge = None
    if config.evaluation.classifier:
        classes = _shards(config, "data").manifest.classes
        judge = GeneratedAccuracy(config.evaluation.classifier, config.model, launch.device, classes)
    with ExitStack() as stack:
        # State: a function of the seed, then replaced by the newest commit.
        stop = stack.enter_context(StopRequest(run.dir if launch.is_main else None))
        state = State(config, method, launch, first_samples(config, method))
        folder = stack.enter_context(RunFolder(run.dir)) if launch.is_main else None
        keeper = stack.enter_context(closing(Keeper(config, launch, before_write=folder.push if folder else None)))
        start, sources = _begin(config, method, launch, state, stage, keeper, stack)
        # From here on the run is ours: nothing has been written before.
        tune(config, state, method, launch)
        state.rollbacks = attempt.rollbacks = max(state.rollbacks, attempt.rollbacks)

        # Telemetry: the main process writes it.
        telemetry = stack.enter_context(Telemetry(folder.path, start, run.iterations)) if folder else None
        report = Reporter(config, launch, method, sources, telemetry, judge)
        report.watch(state.players)
        if telemetry and folder:
            telemetry.settings(as_yaml(config), start)
            telemetry.say(report.opening(start))
            telemetry.say(describe_host(config.speed, launch))
            if slow := slowness(launch.device, launch.precision, run.tf32):
                telemetry.say(slow)
            clear_marker(run.dir)

        seeded = anything_draws(method, (m for player in state.players.values() for m in player.modules.values()))
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
                report.grid(iteration, state)
            scores = {}
            if new and run.evaluate_every and (last or iteration % run.evaluate_every == 0):
                scores = report.evaluate(iteration, state)
            stage.watch(iteration, state, method.sampler(state.sampled), telemetry, new=new)
            if run.heartbeat_every and iteration % run.heartbeat_every == 0:
                heartbeat(launch, state.players, iteration)
            if last or stopping or saving:
                keeper.save(state, iteration, report.real_samples(iteration), scores, final=last or stopping)
            if last or stopping:
                reason = "complete" if last else stop.reason or "another process was asked"
                keeper.end(reason, iteration)
                if telemetry:
                    if stopping:
                        write_marker(run.dir, iteration=iteration, reason=reason)
                    resumes = "" if last else "; the same command resumes here"
                    telemetry.say(f"{run.dir}: stopped at iteration {iteration:,} ({reason}){resumes}")
                break

            # The method's turns.
            turns = stage.applied(method.turns(iteration), state)
            held = launch.held_replicas(batch.replicas)
            draws = Draws(method, sources, run.seed, iteration, state.rollbacks, held, launch.device, seeded)
            samples = batch.replicas * sum(sum(turn.reads.values()) for turn in turns)
            if state.ema and config.ema.taken == "before":
                state.ema.update(state.results, iteration, samples)
            scalars = run_iteration(
                method,
                state.players,
                turns,
                draws.of,
                state.memory,
                launch=launch,
                replicas=batch.replicas,
                rate_factor=learning_rate_factor(config.schedule, iteration),
                seed_layers=draws.seed_layers,
                synchronised=batch.synchronised_norm,
                speed=config.speed,
            )
            if state.ema and config.ema.taken == "after":
                state.ema.update(state.results, iteration, samples)
            report.add(scalars)
            if telemetry:
                telemetry.advance()
    return last


def _begin(
    config: Config,
    method: Method,
    launch: Launch,
    state: State,
    stage: ClassifierStage,
    keeper: Keeper,
    stack: ExitStack,
) -> tuple[int, dict[str, Source]]:
    """State and data as they are where the run resumes. What can be refused is refused before the run is taken over.

    A sample is found by its position, so the streams simply start where the run resumes; `stack` closes them.
    """
    while True:
        start = keeper.resume(state)
        stage.resume(state)
        with ExitStack() as opened:
            sources: dict[str, Source] = {}
            for name in sources_of(method):
                others = [source.stream for source in sources.values()]
                sources[name] = opened.enter_context(open_source(config, method, name, launch, start, others))
            keeper.check_data({name: source.stream.manifest for name, source in sources.items()})
            check_state(launch, keeper.fingerprints, state.players)
            if keeper.take_over():
                stack.enter_context(opened.pop_all())
                return start, sources


def _shards(config: Config, name: str) -> Shards:
    """What the source of this name reads. Raises `SettingError` or DataError for a setting that it cannot keep."""
    settings, section = config.source(name), section_of(name)
    whole = load_manifest(settings.shards, section)
    for entry in settings.classes or ():
        for number, info in enumerate(whole.classes):
            if isinstance(entry, int) and str(entry) in (info.name, info.id) and number != entry:
                raise SettingError(
                    f"{section}.classes: {entry} is the number of a class and the name of another one; put it in quotes for "
                    "the name, or give names alone"
                )
    manifest = settings.selected(whole)
    if settings.horizontal_flip and "image" not in manifest.fields:
        raise SettingError(f"{section}.horizontal_flip: is true, but the shards hold no images; set it to false")
    return Shards(settings.shards, manifest)


@contextmanager
def open_source(
    config: Config, method: Method, name: str, launch: Launch, start: int, others: Sequence[Stream] = ()
) -> Iterator[Source]:
    """A source whose stream is at the first batch of iteration `start`. `others`: the run's streams that are open."""
    settings, replicas = config.source(name), config.batch.replicas
    with open_stream(
        settings,
        name=name,
        seed=config.run.seed,
        replicas=replicas,
        held=launch.held_replicas(replicas),
        sizes=batches_from(method, name, start),
        first_position=samples_before(method, name, start),
        others=others,
    ) as stream:
        yield Source(name, stream, config.batch.dequantize, settings.horizontal_flip)


def first_samples(config: Config, method: Method) -> dict[str, Tensors] | None:
    """What a method that starts from data looks at: the first samples of each source; None for any other method.

    Every process reads them, also where the run resumes and the checkpoint replaces what comes of them: there are few.
    """
    if not isinstance(method, StartsFromData):
        return None
    found: dict[str, Tensors] = {}
    for name, count in method.first.items():
        samples, settings = min(count, _shards(config, name).manifest.samples), config.source(name)
        with open_stream(settings, name=name, seed=config.run.seed, replicas=1, held=[0], sizes=[samples]) as stream:
            fields = {field: value[0].clone() for field, value in next(stream).fields.items()}
        if "image" in fields:
            fields["image"] = normalise(fields["image"])
        found[name] = fields
    return found


def tune(config: Config, state: State, method: Method, launch: Launch) -> None:
    """With `speed.autotune`: choose every network's forms by timing, for the passes of the player's first turn."""
    if not config.speed.autotune:
        return
    sizes = {turn.player: max(turn.made, *turn.reads.values(), 1) for turn in reversed(method.turns(0))}
    networks = [
        Tuned(name, module, config.model.resolution, sizes.get(player.name, 1))
        for player in state.players.values()
        for name, module in player.modules.items()
    ]
    choose_forms(config.run.dir, networks, launch)


def _agree(launch: Launch, *flags: bool) -> tuple[bool, ...]:
    """Each flag as the same answer everywhere: whether any process raises it."""
    if launch.world_size == 1:
        return flags
    # In host memory, also on GPUs: so nobody waits for what the GPU still has to do.
    sums = sum_over_processes(launch, torch.tensor([float(flag) for flag in flags]))
    return tuple(total > 0 for total in sums.tolist())
