"""`python -m trainer.evaluate RUN`: measures of a run's generator, with all that must be known to compare them.

One JSON record per measurement goes to RUN/measurements.jsonl, curves and pictures to the run's TensorBoard and to
RUN/evaluation/. `--follow` watches a run and evaluates every new checkpoint, so that training never waits. With
`accelerate launch -m trainer.evaluate ...` or torchrun the work is shared, and the values are the same.
Nothing is downloaded unless an address is given.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import torch

from data_pipeline.manifest.format import load_manifest
from data_pipeline.reading.stream import DataConfig
from trainer.checkpoint.commits import CheckpointStore
from trainer.checkpoint.format import Commit, code_version
from trainer.classifiers.identity import as_classes, check_classes
from trainer.foundation.arithmetic import hardware, precision_now
from trainer.foundation.commands import run_command
from trainer.foundation.errors import CheckpointError, SettingError
from trainer.foundation.log import to_stdout
from trainer.foundation.options import number, whole
from trainer.methods.protocol import NO_NAMES, ClassNames, Sampler
from trainer.methods.sampling import ClassConditions, Growing, directed
from trainer.metrics.evaluation import Evaluation, Outcome
from trainer.metrics.features import combined_digest, open_features
from trainer.metrics.judge import open_judge
from trainer.metrics.measures import all_names, chosen, names_and_meanings
from trainer.metrics.protocol import Measure, Plan, union
from trainer.metrics.publish import publish
from trainer.metrics.records import Measurement, read_records
from trainer.metrics.reference import default_cache
from trainer.metrics.samples import Samples
from trainer.metrics.table import measure_table
from trainer.processes.launch import (
    Launch,
    read_launch,
    share_object,
    start_processes,
    stop_processes,
    sum_over_processes,
)
from trainer.processes.watch import Watch, die_with_launcher
from trainer.trained.real import manifest_of
from trainer.trained.runs import Trained, load_trained

DEFAULT, DEFAULT_WITH_CLASSIFIER = "is,fid,ms_ssim", "accuracy"


def main(arguments: list[str]) -> int:
    """Measure, print, publish; returns the exit status."""
    options = _parser().parse_args(arguments)
    launch = read_launch(options.device)
    die_with_launcher()
    start_processes(launch, timeout=timedelta(hours=12))
    with Watch(launch):
        status = _follow(options, launch) if options.follow else _once(options, launch)
    stop_processes()
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="the run's folder, a path or URL")
    add("--iteration", type=whole(), help="which checkpoint (default: the newest)")
    add("--follow", action="store_true", help="evaluate every new checkpoint until the run is complete, or Ctrl-C")
    add(
        "--poll",
        type=number(most=1e9, above=True),
        default=30.0,
        metavar="SECONDS",
        help="how often --follow looks (default: 30)",
    )
    add(
        "--measures",
        help=f"names with commas, or all (default: {DEFAULT_WITH_CLASSIFIER} with --classifier, else {DEFAULT}): "
        + names_and_meanings(),
    )
    networks = (
        "inception:FILE_OR_URL, efficientnet_lite0, timm:MODEL:FILE, torchvision:MODEL:FILE, or a small one's FILE"
    )
    add("--features", metavar="NETWORK", help=f"{networks} (default: the classifier, else efficientnet_lite0)")
    add(
        "--classifier",
        metavar="NETWORK",
        help="what judges classes, named in the same way; its classes must be the data's",
    )
    add("--real", metavar="SHARDS", help="real images to compare with (default: those that the run was trained on)")
    add(
        "--validation",
        metavar="SHARDS",
        help="real images that choose what a measure must choose, such as parzen's bandwidth (default: some of --real)",
    )
    add(
        "--samples",
        type=whole(1),
        help="generated images, the classes in turn (default: 10000; 2000 for accuracy alone)",
    )
    add(
        "--sources",
        action="append",
        default=[],
        metavar="NAME=SHARDS",
        help="of a generator whose conditions are made of data: other shards than the run's, such as held-out ones; the main "
        "source is called data",
    )
    add("--direction", help="of a generator that has several, for example a_to_b (default: its first)")
    add("--splits", type=whole(1), default=10, help="of the Inception Score (default: 10)")
    add("--seed", type=whole(), default=0, help="of the latents (default: 0)")
    add("--pairs", type=whole(1), default=100, help="of images per class for MS-SSIM (default: 100)")
    add(
        "--class-samples", type=whole(1), default=5_000, help="generated images per class for intra_fid (default: 5000)"
    )
    add("--queries", type=whole(1), default=200, help="generated images whose neighbours are looked for (default: 200)")
    add("--weights", choices=["average", "plain"], help="default: the moving average if the run has one")
    add("--statistics", choices=["evaluation", "batch"], default="evaluation", help="what batch norm normalises with")
    add("--cache", type=Path, help="for features of real images (default: MENAGERIE_CACHE or ~/.cache/menagerie)")
    add("--device", help="cpu or cuda (default: cuda where there is one)")
    return parser


@dataclass
class _Context:
    """What stays the same from one checkpoint of a run to the next."""

    evaluation: Evaluation
    small_print: dict[str, Any]

    @property
    def digest(self) -> str:
        return str(self.small_print["settings_digest"])


def _once(options: argparse.Namespace, launch: Launch) -> int:
    trained = load_trained(options.run, options.iteration, _average(options))
    _measure(options, launch, trained, _context(options, launch, trained))
    return 0


def _follow(options: argparse.Namespace, launch: Launch) -> int:
    """New commits, oldest first, until the one of the run's last iteration is done."""
    if options.iteration is not None:
        raise SettingError("--iteration: does not go together with --follow, which takes every new checkpoint")
    context: _Context | None = None
    seen: set[str] = set()
    try:
        while True:
            todo, complete = share_object(
                launch, _next(options.run, context, seen) if launch.is_main else (None, False)
            )
            if todo is None:
                if complete:
                    return 0
                time.sleep(options.poll)
                continue
            seen.add(todo.state_sha256)
            trained = _try_to_load(options, launch, todo)
            if trained is None:
                continue
            context = context or _context(options, launch, trained)
            done = share_object(launch, launch.is_main and todo.state_sha256 in _done(options.run, context))
            if not done:
                _measure(options, launch, trained, context)
    except KeyboardInterrupt:
        if launch.is_main:
            print("stopped watching", flush=True)
        return 0


def _next(run: str, context: _Context | None, seen: set[str]) -> tuple[Commit | None, bool]:
    """The oldest commit that waits to be evaluated, and whether the run is complete."""
    commits = sorted(CheckpointStore(run).commits(), key=lambda commit: commit.iteration)
    done = seen | (_done(run, context) if context else set())
    complete = any(c.iteration >= c.info.get("settings", {}).get("run", {}).get("iterations", 2**63) for c in commits)
    return next((commit for commit in commits if commit.state_sha256 not in done), None), complete


def _done(run: str, context: _Context) -> set[str]:
    """The states that have been measured in this very way, also by an earlier --follow."""
    records = read_records(run)
    return {r["state_sha256"] for r in records if r.get("settings_digest") == context.digest and "state_sha256" in r}


def _try_to_load(options: argparse.Namespace, launch: Launch, commit: Commit) -> Trained | None:
    """None everywhere if any process finds the checkpoint gone: the run keeps only its last ones."""
    trained, reason = None, ""
    try:
        trained = load_trained(options.run, commit.iteration, _average(options))
    except (CheckpointError, FileNotFoundError) as error:
        reason = str(error)
    missing = sum_over_processes(launch, torch.tensor([float(trained is None)], device=launch.device))
    if float(missing):
        if launch.is_main:
            print(f"iteration {commit.iteration:,}: left out, its checkpoint is gone; {reason}", flush=True)
        return None
    return trained


def _context(options: argparse.Namespace, launch: Launch, trained: Trained) -> _Context:
    """The plan, the networks and the real images; raises SettingError where they do not go together."""
    config = trained.config
    names = _names(options)
    measures = chosen(names)
    samples = options.samples or max(measure.usual_samples for measure in measures)
    plan = Plan(names, samples, options.splits, options.seed, options.pairs, options.class_samples, options.queries)
    needs = union([measure.needs for measure in measures])
    data = _real_data(options.real, trained, needs.classes or needs.labels) if options.real else config.data
    _check_data(data, trained, measures, "--real" if options.real else "data.shards")
    validation = DataConfig(shards=options.validation) if options.validation else None
    if validation is not None:
        _check_data(validation, trained, measures, "--validation")
    channels = config.model.image_channels
    judge_network = (
        open_features(options.classifier, channels, launch.device, "--classifier") if options.classifier else None
    )
    network = judge_network
    if needs.any_network and (options.features or not judge_network):
        network = open_features(options.features or "efficientnet_lite0", channels, launch.device)
        if judge_network is not None and judge_network.identity == network.identity:
            network = judge_network
    judge = open_judge(judge_network, manifest_of(data)) if judge_network and needs.any_judge else None
    cache = options.cache or default_cache()
    evaluation = Evaluation(
        measures, plan, launch, data, network, judge, cache, bool(options.real), validation, config.data
    )
    small_print = {
        "seed": options.seed,
        "labels": f"the {'classes' if isinstance(trained.sampler().conditions, ClassConditions) else 'conditions'} in turn",
        "moving_average": trained.averaged,
        "batch_norm": "batch of 50" if options.statistics == "batch" else "running statistics",
        "precision": precision_now(launch.device),
        "hardware": hardware(launch.device),
        "code_version": code_version(),
    }
    networks = [n.identity if n else "" for n in (network, judge_network)]
    fingerprint = manifest_of(data).fingerprint
    about = [str(plan), *networks, fingerprint, str(trained.averaged), options.statistics, str(bool(options.real))]
    about += [str(options.direction), *sorted(options.sources)] if options.direction or options.sources else []
    if validation is not None:
        about.append(manifest_of(validation).fingerprint)
    return _Context(evaluation, small_print | {"settings_digest": combined_digest(*about)[:16]})


def _real_data(shards: str, trained: Trained, by_class: bool) -> DataConfig:
    """Other real images, of the generator's classes: these are matched by what they are called."""
    ours = as_classes(trained.info.get("class_names") or (), trained.info.get("class_ids") or ())
    chosen = trained.config.data.classes
    if not ours or (not by_class and chosen is None):
        return DataConfig(shards=shards, classes=chosen)
    theirs, cure = load_manifest(shards).classes, "give shards of the classes that the generator draws"
    places = check_classes(ours, theirs, "--real", shards, cure)
    if places != sorted(places):
        raise SettingError(f"--real: the classes of {shards} stand in another order than the generator's; {cure}")
    return DataConfig(shards=shards, classes=None if len(places) == len(theirs) else tuple(places))


def _names(options: argparse.Namespace) -> tuple[str, ...]:
    """The measures asked for."""
    text = options.measures or (DEFAULT_WITH_CLASSIFIER if options.classifier else DEFAULT)
    if text == "all":
        return all_names(bool(options.classifier))
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _check_data(data: DataConfig, trained: Trained, measures: Sequence[type[Measure]], setting: str) -> None:
    """Raise SettingError where a measure cannot compare the samples with the real images."""
    model, sampler, manifest = trained.config.model, trained.sampler(), manifest_of(data)
    of_images = [measure.name for measure in measures if measure.needs.images]
    if of_images and sampler.output != "image":
        raise SettingError(
            f"--measures: {of_images[0]} looks at images, and this generator's samples are of the kind {sampler.output!r}; "
            "leave it out"
        )
    geometry = (
        ()
        if not of_images
        else (
            ("px", model.resolution, manifest.resolution),
            ("channels", model.image_channels, manifest.channels),
        )
    )
    for what, ours, theirs in geometry:
        if ours != theirs:
            raise SettingError(
                f"{setting}: the images in {data.shards} have {theirs} {what}, the generator's have {ours}; give shards "
                "that were made with the settings of the training images"
            )
    labelled = [measure.name for measure in measures if measure.needs.labels]
    if labelled and model.classes != len(manifest.classes):
        raise SettingError(
            f"{setting}: {labelled[0]} takes images of the training's {model.classes} classes, those in {data.shards} have "
            f"{len(manifest.classes)}; give others"
        )
    asked = [measure.name for measure in measures if measure.needs.classes]
    conditions = sampler.conditions
    classes = conditions.classes if isinstance(conditions, ClassConditions) else 0
    if classes != len(manifest.classes) and asked:
        raise SettingError(
            f"--measures: {asked[0]} looks at classes, of which the generator has {classes} and the images in "
            f"{data.shards} {len(manifest.classes)}; leave it out"
        )


def _measure(options: argparse.Namespace, launch: Launch, trained: Trained, context: _Context) -> None:
    """Evaluate one generator; the main process prints and publishes."""
    sampler = _sampler(options, trained, context.evaluation.data)
    for network in sampler.networks.values():
        network.to(launch.device)
    outcome = context.evaluation.run(Samples(sampler, options.seed, options.statistics == "batch"))
    grown = {"grown": dict(sampler.grown)} if isinstance(sampler, Growing) else {}
    if launch.is_main:
        _report(options, launch, trained, _Context(context.evaluation, context.small_print | grown), outcome)


def _sampler(options: argparse.Namespace, trained: Trained, data: DataConfig) -> Sampler:
    """With the names of the real images' classes, where the generator has as many; from --sources, in --direction."""
    manifest = manifest_of(data)
    names = ClassNames(manifest.class_names, tuple(entry.id for entry in manifest.classes))
    known = names if len(manifest.classes) == trained.config.model.classes else NO_NAMES
    sampler = trained.sampler(known, _sources(options, trained))
    return sampler if options.direction is None else directed(sampler, options.direction)


def _sources(options: argparse.Namespace, trained: Trained) -> dict[str, DataConfig]:
    """The sources that --sources replaces. Raises SettingError."""
    found = {}
    for text in options.sources:
        name, equals, shards = text.partition("=")
        if not equals or name not in trained.config.all_sources:
            known = ", ".join(trained.config.all_sources)
            raise SettingError(f"--sources: is {text!r}; give NAME=SHARDS, with a source of the run ({known})")
        found[name] = DataConfig(shards=shards)
    return found


def _report(options: argparse.Namespace, launch: Launch, trained: Trained, context: _Context, outcome: Outcome) -> None:
    alarms = [measure for measure, _ in outcome.results if measure.alarm]
    earlier = read_records(options.run) if alarms else []
    warnings = {measure.alarm: measure.warning(trained.iteration, earlier) for measure in alarms}
    first = next(filter(None, warnings.values()), None)
    small_print = context.small_print | {
        "iteration": trained.iteration,
        "state_sha256": trained.state_sha256,
        "device": launch.device.type,
        "processes": launch.world_size,
        "seconds": outcome.seconds,
        "warning": f"{first.name}: {first.text}" if first else None,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    told = [*_tables(outcome, trained.iteration)]
    if first:
        told.append(f"WARNING {first.name}: {first.text}")
    for line in told:
        to_stdout(line)  # nobody need read it: the records are what remains
    publish(options.run, trained.iteration, outcome.measurements, outcome.pictures, small_print, warnings)
    for name in outcome.pictures:
        to_stdout(f"picture: {options.run}/evaluation/{trained.iteration:08d}/{name}.png")


def _tables(outcome: Outcome, iteration: int) -> Iterator[str]:
    """The measures' own tables, then the others in one."""
    rest: list[Measurement] = []
    for measure, found in outcome.results:
        table = measure.table(iteration)
        if table:
            yield table
        else:
            rest += found
    if rest:
        yield measure_table(rest, iteration)


def _average(options: argparse.Namespace) -> bool | None:
    return None if options.weights is None else bool(options.weights == "average")


if __name__ == "__main__":
    sys.exit(run_command(main))
