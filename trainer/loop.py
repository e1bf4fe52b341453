"""The only training loop."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from data_pipeline.stream import Stream, open_stream
from trainer import noise
from trainer.checkpoint import CheckpointStore, state_hash
from trainer.config import Config, as_tree, as_yaml
from trainer.ema import Ema
from trainer.errors import CheckpointError, SettingError, TrainerError
from trainer.images import flip_half, normalise, to_uint8
from trainer.iteration import Scalars, run_iteration
from trainer.launch import Launch, held_description, share_from_main, share_object, sum_over_processes
from trainer.metrics.accuracy import GeneratedAccuracy
from trainer.models import build_discriminator, build_generator
from trainer.objectives import Latents, RealAndLatents, build_objective
from trainer.player import Player
from trainer.preemption import StopRequest, clear_marker, write_marker
from trainer.schedule import learning_rate_factor
from trainer.telemetry import Telemetry

GRID_ROWS, GRID_COLUMNS = 10, 10


def train(config: Config, launch: Launch) -> bool:
    """Train until `run.iterations`, or until asked to stop; returns whether the run is complete.

    The same call goes on from the newest checkpoint in `run.dir`. Everything random or read from data at an iteration is
    a function of (seed, iteration, ...), so nothing but the players' state and the iteration is ever restored.
    """
    run, batch = config.run, config.batch
    folder = Path(run.dir)
    held = launch.held_replicas(batch.replicas)

    # Networks: initial weights are draws of their own, then the newest commit replaces them.
    torch.manual_seed(noise.key(run.seed, "initial generator"))
    generator_module = build_generator(config.generator, config.model)
    torch.manual_seed(noise.key(run.seed, "initial discriminator"))
    discriminator_module = build_discriminator(config.discriminator, config.model)
    generator = Player("generator", generator_module, config.optimizer.generator, launch)
    discriminator = Player("discriminator", discriminator_module, config.optimizer.discriminator, launch)
    ema = Ema(generator.module, config.ema) if config.ema.decay else None
    objective = build_objective(config.objective)

    with ExitStack() as stack:
        stop = stack.enter_context(StopRequest(run.dir if launch.is_main else None))
        store = CheckpointStore(run.dir, config.checkpoint) if launch.is_main else None
        start = _resume(config, launch, store, generator, discriminator, ema)

        # Data: batch number n is found by arithmetic, so the stream simply starts where the run goes on.
        stream = stack.enter_context(
            open_stream(
                config.data,
                seed=run.seed,
                replicas=batch.replicas,
                held=held,
                batch_size=batch.real_per_replica,
                first_batch=start * config.schedule.discriminator_steps,
                pin_memory=launch.device.type == "cuda",
            )
        )
        _check_data(config, stream)
        telemetry, accuracy = None, None
        if launch.is_main:
            telemetry = stack.enter_context(Telemetry(folder, start, run.iterations))
            (folder / "config.yaml").write_text(as_yaml(config))
            telemetry.text("settings", as_yaml(config), start)
            telemetry.say(_opening(config, launch, stream, start))
            if config.evaluation.classifier:
                accuracy = GeneratedAccuracy(config.evaluation.classifier, config.model, launch.device)
            clear_marker(run.dir)

        window = _Window(stream)
        for iteration in range(start, run.iterations + 1):
            # Status, samples, evaluation, checkpoint, stop: before the step, so that neither end is a special case.
            last = iteration == run.iterations
            stopping = _any(launch, stop.requested()) and not last
            due = iteration != start or start == 0
            if due and iteration and (iteration % run.log_every == 0 or last or stopping):
                _log(config, launch, telemetry, window, iteration)
            if telemetry and due and (last or (run.sample_every and iteration % run.sample_every == 0)):
                _grid(config, telemetry, ema.module if ema else generator.module, stream, iteration, launch)
            if telemetry and accuracy and due and iteration and (last or iteration % run.evaluate_every == 0):
                sampled = ema.module if ema else generator.module
                value = accuracy.measure(sampled, run.seed, config.evaluation.samples)
                telemetry.scalars(iteration, {"quality/class_accuracy": value})
                telemetry.say(f"iteration {iteration:,}: class accuracy of generated images {value:.1%}")
            if run.heartbeat_every and iteration % run.heartbeat_every == 0:
                _heartbeat(launch, generator, discriminator, iteration)
            if due and iteration and (iteration % run.checkpoint_every == 0 or last or stopping):
                _save(config, launch, store, generator, discriminator, ema, iteration)
            if stopping and telemetry:
                reason = stop.reason or "another process was asked"
                write_marker(run.dir, iteration=iteration, reason=reason)
                telemetry.say(f"stopped at iteration {iteration:,} ({reason}); the same command goes on from here")
            if last or stopping:
                return last

            # The generator's step, then the discriminator's steps.
            scalars = run_iteration(
                generator,
                discriminator,
                objective,
                [_latents(config, launch, iteration, 0, replica, batch.generated_per_replica) for replica in held],
                _discriminator_draws(config, launch, stream, iteration),
                launch=launch,
                replicas=batch.replicas,
                rate_factor=learning_rate_factor(config.schedule, iteration),
                seed_layers=lambda sub_step, replica, iteration=iteration: torch.manual_seed(  # type: ignore[misc]
                    noise.key(run.seed, "layers", iteration, sub_step, replica)
                ),
            )
            if ema:
                ema.update(generator.module, iteration)
            window.add(scalars)
            if telemetry:
                telemetry.advance()
    raise AssertionError("unreachable")


def _latents(config: Config, launch: Launch, iteration: int, sub_step: int, replica: int, count: int) -> Latents:
    model, seed = config.model, config.run.seed
    latents = noise.draw_latents(
        noise.generator(seed, "latents", iteration, sub_step, replica),
        count,
        model.latent_dim,
        model.latent_distribution,
    )
    labels = noise.draw_labels(noise.generator(seed, "labels", iteration, sub_step, replica), count, model.classes)
    return Latents(latents.to(launch.device), labels.to(launch.device))


def _discriminator_draws(
    config: Config, launch: Launch, stream: Stream, iteration: int
) -> Iterator[Sequence[RealAndLatents]]:
    """For each discriminator step the draws of this process's replicas: real images, labels, latents, labels."""
    seed = config.run.seed
    held = launch.held_replicas(config.batch.replicas)
    for sub_step in range(1, config.schedule.discriminator_steps + 1):
        images, labels, positions = next(stream)
        draws = []
        for row, replica in enumerate(held):
            dequantization = noise.generator(seed, "dequantization", iteration, sub_step, replica, launch.device)
            real = normalise(images[row].to(launch.device), dequantization if config.data.dequantize else None)
            if config.data.horizontal_flip:
                real = flip_half(real, positions[row], seed, replica)
            fake = _latents(config, launch, iteration, sub_step, replica, config.batch.real_per_replica)
            draws.append(RealAndLatents(real, labels[row].to(launch.device), fake.latents, fake.labels))
        yield draws


def _resume(
    config: Config,
    launch: Launch,
    store: CheckpointStore | None,
    generator: Player,
    discriminator: Player,
    ema: Ema | None,
) -> int:
    """Put the newest commit's state into the players of every process; returns the iteration to go on from, 0 if none."""
    restored = store.restore(set_aside=True) if store else None
    if restored is not None and config.run.resume == "never":
        raise CheckpointError(
            f"run.resume: is 'never', but {config.run.dir} holds a checkpoint of iteration {restored.commit.iteration}; "
            "set run.resume to 'auto' to go on, or choose another run.dir"
        )
    iteration = share_object(launch, restored.commit.iteration if restored else 0)
    tensors = None
    if restored:
        tensors = restored.tensors
    elif launch.is_main:
        tensors = {**generator.state(), **discriminator.state(), **_ema_state(ema)}
    shared = share_from_main(launch, tensors)
    generator.load(shared)
    discriminator.load(shared)
    if ema:
        ema.load({key.removeprefix("ema/"): value for key, value in shared.items() if key.startswith("ema/")})
    return iteration


def _save(
    config: Config,
    launch: Launch,
    store: CheckpointStore | None,
    generator: Player,
    discriminator: Player,
    ema: Ema | None,
    iteration: int,
) -> None:
    """Commit the logical state of `iteration`. Every process calls it, since a strategy may have to gather."""
    tensors = {**generator.state(), **discriminator.state(), **_ema_state(ema)}
    if store is None:
        return
    store.save(
        iteration,
        tensors,
        {
            "real_images": _real_images(config, iteration),
            "strategy": launch.strategy,
            "precision": launch.precision,
            "world_size": launch.world_size,
            "settings": as_tree(config),
        },
    )


def _ema_state(ema: Ema | None) -> dict[str, torch.Tensor]:
    return {f"ema/{key}": value.cpu() for key, value in ema.state().items()} if ema else {}


def _real_images(config: Config, iteration: int) -> int:
    return iteration * config.schedule.discriminator_steps * config.batch.replicas * config.batch.real_per_replica


def _check_data(config: Config, stream: Stream) -> None:
    manifest, model = stream.manifest, config.model
    for setting, asked, found in (
        ("model.resolution", model.resolution, manifest.resolution),
        ("model.image_channels", model.image_channels, manifest.channels),
    ):
        if asked != found:
            raise SettingError(
                f"{setting}: is {asked}, but the shards in {config.data.shards} hold {found}; set it to {found}"
            )
    if model.classes and model.classes != len(manifest.class_names):
        raise SettingError(
            f"model.classes: is {model.classes}, but the shards in {config.data.shards} have "
            f"{len(manifest.class_names)} classes; set it to {len(manifest.class_names)}, or to 0 for no condition"
        )


def _opening(config: Config, launch: Launch, stream: Stream, start: int) -> str:
    begin = f"going on from iteration {start:,}" if start else "starting at iteration 0"
    return (
        f"{config.run.dir}: {begin} of {config.run.iterations:,}; {held_description(launch, config.batch.replicas)}; "
        f"{stream.manifest.samples:,} images of {len(stream.manifest.class_names)} classes"
    )


def _any(launch: Launch, flag: bool) -> bool:
    """Whether any process raises the flag: all agree, at the same iteration."""
    if launch.world_size == 1:
        return flag
    return bool(sum_over_processes(launch, torch.tensor(float(flag), device=launch.device)) > 0)


class _Window:
    """Sums what is logged over the iterations since the last status line; nothing is fetched from the device before."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.restart()

    def restart(self) -> None:
        self.sums: Scalars = {}
        self.count = 0
        self.began = time.monotonic()
        self.waited = self.stream.wait_seconds

    def add(self, scalars: Scalars) -> None:
        for name, value in scalars.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.count += 1


CURVE_NAMES = {
    "discriminator/loss": "loss/discriminator",
    "generator/loss": "loss/generator",
    "discriminator/real_score": "score/real",
    "discriminator/fake_score": "score/fake",
}


def _log(config: Config, launch: Launch, telemetry: Telemetry | None, window: _Window, iteration: int) -> None:
    """Means over replicas and over the iterations since the last line; stops the run if a number is not finite."""
    if not window.count:
        return
    names = sorted(window.sums)
    sums = sum_over_processes(launch, torch.stack([window.sums[name] for name in names]))
    values = {
        CURVE_NAMES.get(name, name): value / window.count for name, value in zip(names, sums.tolist(), strict=True)
    }
    for name, value in values.items():
        if not math.isfinite(value):
            raise TrainerError(
                f"{name}: is {value} in the iterations up to {iteration}; the training has diverged. The checkpoints are "
                "from before; lower optimizer.*.learning_rate or look at the curves in TensorBoard"
            )
    seconds = max(time.monotonic() - window.began, 1e-9)
    factor = learning_rate_factor(config.schedule, iteration - 1)
    images = window.count * (_real_images(config, 1))
    values |= {
        "learning_rate/generator": config.optimizer.generator.learning_rate * factor,
        "learning_rate/discriminator": config.optimizer.discriminator.learning_rate * factor,
        "speed/images_per_second": images / seconds,
        "speed/seconds_per_iteration": seconds / window.count,
        "speed/data_wait_share": (window.stream.wait_seconds - window.waited) / seconds,
        "progress/real_images": float(_real_images(config, iteration)),
    }
    if telemetry:
        telemetry.scalars(iteration, values | {f"data/{k}": v for k, v in window.stream.statistics().items()})
        telemetry.status(iteration, values)
    window.restart()


def _grid(
    config: Config, telemetry: Telemetry, module: torch.nn.Module, stream: Stream, iteration: int, launch: Launch
) -> None:
    """A grid from fixed latents, one row per class (of up to ten, evenly chosen), in evaluation mode."""
    classes = config.model.classes
    rows = min(GRID_ROWS, max(classes, 1))
    chosen = [row * max(classes, 1) // rows for row in range(rows)]
    names = [stream.manifest.class_names[index] if classes else "" for index in chosen]
    source = noise.generator(config.run.seed, "grid")
    latents = noise.draw_latents(
        source, rows * GRID_COLUMNS, config.model.latent_dim, config.model.latent_distribution
    ).to(launch.device)
    labels = torch.tensor(chosen, device=launch.device).repeat_interleave(GRID_COLUMNS)
    was_training = module.training
    module.eval()
    with torch.no_grad():
        images = torch.cat([module(z, y) for z, y in zip(latents.split(50), labels.split(50), strict=True)])
    module.train(was_training)
    telemetry.grid(iteration, to_uint8(images).unflatten(0, (rows, GRID_COLUMNS)), names)


def _heartbeat(launch: Launch, generator: Player, discriminator: Player, iteration: int) -> None:
    """Stop, naming the tensors, if the processes do not hold the same parameters bit for bit."""
    if launch.world_size == 1:
        return
    for player in (generator, discriminator):
        mine = {name: state_hash({name: p.detach().cpu()}) for name, p in player.module.named_parameters()}
        main = share_object(launch, mine)
        differing = [name for name in mine if mine[name] != main[name]]
        if _any(launch, bool(differing)):
            where = f"here: {', '.join(differing[:5])}" if differing else "not in this process"
            raise TrainerError(
                f"heartbeat: at iteration {iteration} the processes' copies of the {player.name} differ from process 0's "
                f"(process {launch.rank}, {where}); start again from the last checkpoint with the same command"
            )
