"""`python -m trainer.convert SNAPSHOT.npz [SNAPSHOT.npz ...] RUN`: official Chainer snapshots become a run's checkpoint.

SNAPSHOT is a generator's, a discriminator's or a whole trainer's .npz of pfnet-research/sngan_projection; both networks'
files may be given together. RUN then can be sampled, evaluated and exported; with a discriminator it can be trained on.
The settings are read off the arrays' shapes, or taken from `--config`.

`python -m trainer.convert PUBLISHED.pkl EXPORT`: a published pickle of networks that grow becomes an export of its
generator. The pickle is not executed: names and arrays are read, anything else is refused.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from torch import Tensor

from trainer.checkpoint.commits import CheckpointStore
from trainer.config import Config, as_tree, as_yaml, config_from_tree, load_config
from trainer.foundation.commands import run_command
from trainer.foundation.errors import SettingError
from trainer.foundation.options import whole
from trainer.foundation.stores import Store
from trainer.methods.protocol import NO_NAMES
from trainer.methods.schedule import BatchConfig, ScheduleConfig
from trainer.official.names import official_network
from trainer.official.pickled import read_pickle
from trainer.official.published import LICENCE, published_generator
from trainer.official.snapshots import Snapshots, adam_state, network_settings, network_state, read_snapshots
from trainer.trained.exports import describe_method, write_export
from trainer.trained.runs import Recipe, method_of, shown_networks
from trainer.trained.weights import put_weights

# How the official configurations train at a resolution: replicas, real and generated images of each, first and last
# iteration of the decay.
OFFICIAL_TRAINING = {128: (4, 16, 32, 400_000, 450_000), 64: (1, 64, 64, 200_000, 250_000), 32: (1, 64, 128, 0, 50_000)}


def main(arguments: list[str]) -> int:
    """Write the run; returns the exit status. Nothing is written where an array is unknown or missing."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("snapshots", metavar="SNAPSHOT", nargs="+", help="official .npz file, or a published .pkl")
    parser.add_argument("run", metavar="RUN", help="folder or URL of the run to make; of a .pkl, of the export")
    parser.add_argument("--config", help="experiment to take the settings from (default: read off the arrays)")
    parser.add_argument(
        "--iteration", type=whole(), help="of the snapshot (default: from the file or its name, else 0)"
    )
    options = parser.parse_args(arguments)
    if options.snapshots[0].endswith(".pkl"):
        return _convert_pickle(options)
    snapshots = read_snapshots(options.snapshots)
    iteration = options.iteration if options.iteration is not None else snapshots.iteration or 0
    if options.config:
        config = load_config(options.config, ["--run.dir", options.run])
    else:
        config = _official_config(snapshots, options.run, iteration)
    tensors = _tensors(config, snapshots)

    store = CheckpointStore(options.run, config.checkpoint)
    if store.commits():
        raise SettingError(f"RUN: {options.run} holds checkpoints already; give another folder")
    store.acquire()
    store.save(iteration, tensors, {"settings": as_tree(config), "converted_from": list(options.snapshots)})
    store.release("converted", iteration)
    Store(options.run).put("config.yaml", as_yaml(config).encode())
    print(_told(options.run, snapshots, iteration))
    return 0


def _convert_pickle(options: argparse.Namespace) -> int:
    """Write the export of the generator in a published pickle."""
    if len(options.snapshots) > 1 or options.config or options.iteration is not None:
        raise SettingError("SNAPSHOT: a pickle is converted alone, and without options; give PUBLISHED.pkl EXPORT")
    (path,) = options.snapshots
    pickled = read_pickle(path)
    found = published_generator(path, pickled)
    recipe = Recipe(found.objective, found.model, BatchConfig(dequantize=False), ScheduleConfig())
    networks = shown_networks(method_of(recipe))
    for network in networks.values():
        try:
            put_weights(network, found.state)
        except RuntimeError as error:
            raise SettingError(f"{path}: does not fit its generator ({' '.join(str(error).split())[:300]})") from None
    settings = recipe.plain()
    described = describe_method(settings.pop("objective"), settings, list(networks))
    source = {"file": Path(path).name, "sha256": pickled.sha256, "licence": LICENCE}
    write_export(options.run, described, networks, NO_NAMES, {"converted_from": source})
    print(f"{options.run}: an export of the generator in {path} (sha256 {pickled.sha256[:12]}...); licence: {LICENCE}")
    return 0


def _tensors(config: Config, snapshots: Snapshots) -> dict[str, Tensor]:
    """The logical state, as far as the snapshots hold it."""
    tensors: dict[str, Tensor] = {}
    networks = (
        ("generator", snapshots.generator, config.generator),
        ("discriminator", snapshots.discriminator, config.discriminator),
    )
    for name, snapshot, settings in networks:
        if snapshot is None:
            continue
        if settings is None:
            raise SettingError(f"{name}: is missing in --config, and the snapshot holds one; give its settings")
        module = official_network(settings.build(config.model), name)
        try:
            tensors |= {f"{name}/{key}": value for key, value in network_state(module, snapshot).items()}
            tensors |= {f"{name}.adam/{key}": value for key, value in adam_state(module, snapshot).items()}
        except ValueError as error:
            raise SettingError(f"{name}: cannot be filled from a snapshot ({error}); change --config") from None
    return tensors


def _official_config(snapshots: Snapshots, run: str, iteration: int) -> Config:
    """The official recipe of the resolution, with the networks that the snapshots hold."""
    networks = network_settings(snapshots)
    resolution = networks["model"]["resolution"]
    replicas, real, generated, decay, end = OFFICIAL_TRAINING.get(resolution, OFFICIAL_TRAINING[128])
    if iteration > end:  # a longer run of the same recipe, such as the 850K one
        decay, end = iteration - (end - decay), iteration
    stages: list[dict[str, Any]] = [{"until": decay}] if decay else []
    tree = {
        "run": {"dir": run, "iterations": end},
        "data": {"shards": f"data/official{resolution}/train"},
        "batch": {
            "replicas": replicas,
            "real_per_replica": real,
            "generated_per_replica": generated,
            "dequantize": resolution != 32,  # the official CIFAR code adds no noise
        },
        **networks,
        "objective": {"name": "adversarial"},
        "schedule": {"stages": [*stages, {"until": end, "learning_rate": "linear_to_zero"}]},
    }
    return config_from_tree(tree)


def _told(run: str, snapshots: Snapshots, iteration: int) -> str:
    text = f"{run}: checkpoint of iteration {iteration:,} with"
    if snapshots.discriminator is None:
        return f"{text} the generator alone; it can be sampled, evaluated and exported, not trained on"
    if snapshots.generator is None:
        return f"{text} the discriminator alone; give the generator's file as well to sample or to train on"
    adam = "Adam's moments included" if snapshots.generator.moments else "Adam starts anew"
    return f"{text} generator and discriminator, {adam}; set data.shards in {run}/config.yaml to train on"


if __name__ == "__main__":
    sys.exit(run_command(main))
