"""Reading the official Chainer snapshots of the projection paper (.npz): which arrays they hold, and for which networks.

Three kinds are known: a generator alone and a discriminator alone (`snapshot_object`), and the whole trainer
(`snapshot`), which has both networks and their Adam moments below "updater/".
"""

import re
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.foundation.errors import TrainerError
from trainer.models.resnet import DISCRIMINATOR_FORMS, GENERATOR_FORMS
from trainer.official.names import OfficialNetwork, official_counters, official_names


class SnapshotError(TrainerError):
    """A snapshot lacks an array, has one too many, or is none."""


# What a whole-trainer snapshot holds beside the networks and optimizers; nothing of it is needed.
_IGNORED = ("updater/iterator:", "extensions/", "extension_triggers/", "stop_trigger/", "_snapshot_elapsed_time")
_ITERATION = "updater/iteration"
# Network, arrays that tell it (two, so that a missing one can be named), name of its optimizer in train.py.
_KINDS = (
    ("generator", ("l1/W", "block2/b1/avg_mean"), "opt_gen"),
    ("discriminator", ("block1/c1/W", "block1/c1/u"), "opt_dis"),
)


@dataclass
class Snapshot:
    """The arrays of one network, by official name, and where they come from."""

    where: str
    arrays: dict[str, np.ndarray]
    moments: dict[str, np.ndarray] = field(default_factory=dict)
    """Adam's arrays, named "l1/W/m", "l1/W/v" and "t"; empty in a snapshot of the network alone."""


@dataclass
class Snapshots:
    """What the given files hold together."""

    generator: Snapshot | None = None
    discriminator: Snapshot | None = None
    iteration: int | None = None


def read_snapshots(paths: Iterable[str]) -> Snapshots:
    """Read and sort out the files; raises SnapshotError, naming the array, where one is not understood."""
    found = Snapshots()
    for path in paths:
        names = _load(path)
        for kind, marks, optimizer in _KINDS:
            prefixes = {
                name.removesuffix(mark) for name in names for mark in marks if name == mark or name.endswith(f"/{mark}")
            }
            if not prefixes:
                continue
            if len(prefixes) > 1 or getattr(found, kind) is not None:
                raise SnapshotError(f"{path}: holds a second {kind}; give the files of one {kind} alone")
            setattr(found, kind, _take(path, names, prefixes.pop(), f"updater/optimizer:{optimizer}/"))
        iteration = names.pop(_ITERATION, None)
        number = re.search(r"_(\d+)\.npz$", Path(path).name)
        if iteration is not None or number:
            value = int(iteration) if iteration is not None else int(number[1]) if number else 0
            if found.iteration not in (None, value):
                raise SnapshotError(
                    f"{path}: is of iteration {value}, the file before it of {found.iteration}; give files of one moment"
                )
            found.iteration = value
        left = sorted(name for name in names if not name.startswith(_IGNORED))
        if left:
            raise SnapshotError(
                f"{path}: holds {left[0]}, which belongs to neither network; give snapshots of the official code"
            )
    return found


def _load(path: str) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files if not name.startswith(_IGNORED)}
    except FileNotFoundError:
        raise SnapshotError(f"{path}: there is no such file; give an .npz snapshot") from None
    except (OSError, ValueError, zipfile.BadZipFile, AttributeError, EOFError) as error:
        raise SnapshotError(
            f"{path}: is no .npz snapshot ({' '.join(str(error).split())}); give another file"
        ) from None


def _take(where: str, names: dict[str, np.ndarray], prefix: str, optimizer: str) -> Snapshot:
    """Take the arrays below `prefix` and of the optimizer out of `names`."""
    arrays = {name: names.pop(name) for name in list(names) if name.startswith(prefix)}
    moments = {name: names.pop(name) for name in list(names) if name.startswith(optimizer)}
    return Snapshot(
        where,
        {name.removeprefix(prefix): array for name, array in arrays.items()},
        {name.removeprefix(optimizer): array for name, array in moments.items()},
    )


def network_state(module: OfficialNetwork, snapshot: Snapshot) -> dict[str, Tensor]:
    """The module's state dict from the official arrays; every array must be known, present and of the right shape."""
    names, state = official_names(module), module.state_dict()
    unknown = sorted(snapshot.arrays.keys() - names.keys() - official_counters(module))
    if unknown:
        raise SnapshotError(f"{snapshot.where}: holds {unknown[0]}, which this network does not have{_more(unknown)}")
    missing = sorted(names.keys() - snapshot.arrays.keys())
    if missing:
        raise SnapshotError(f"{snapshot.where}: lacks {missing[0]}, which this network needs{_more(missing)}")
    return {
        ours: _tensor(snapshot.where, theirs, snapshot.arrays[theirs], state[ours]) for theirs, ours in names.items()
    }


def adam_state(module: OfficialNetwork, snapshot: Snapshot) -> dict[str, Tensor]:
    """Adam's step and moments ("step", "exp_avg/<parameter>", "exp_avg_sq/<parameter>"); zeros where there are none."""
    parameters = dict(module.named_parameters())
    theirs_of = {ours: theirs for theirs, ours in official_names(module).items()}
    left = dict(snapshot.moments)
    if not left:
        empty = {
            f"{m}/{name}": torch.zeros_like(p) for m in ("exp_avg", "exp_avg_sq") for name, p in parameters.items()
        }
        return {"step": torch.tensor(0), **{name: value.detach() for name, value in empty.items()}}
    moments: dict[str, Tensor] = {}
    for ours, parameter in parameters.items():
        for mine, letter in (("exp_avg", "m"), ("exp_avg_sq", "v")):
            theirs = f"{theirs_of[ours]}/{letter}"
            if theirs not in left:
                raise SnapshotError(
                    f"{snapshot.where}: lacks Adam's {theirs}; its optimizer is not that of this network"
                )
            moments[f"{mine}/{ours}"] = _tensor(snapshot.where, theirs, left.pop(theirs), parameter)
    if "t" not in left:
        raise SnapshotError(f"{snapshot.where}: lacks Adam's step count t")
    step = int(left.pop("t"))
    unknown = sorted(name for name in left if name != "epoch" and not name.endswith("/t"))
    if unknown:
        raise SnapshotError(f"{snapshot.where}: holds {unknown[0]} of an optimizer, which Adam does not have")
    return {"step": torch.tensor(step), **moments}


def _tensor(where: str, name: str, array: np.ndarray, like: Tensor) -> Tensor:
    if name.endswith("/u") and array.ndim == 2 and array.shape[0] == 1:
        array = array[0]  # a row there, a vector here
    if array.shape != tuple(like.shape) or array.dtype.kind != "f":
        raise SnapshotError(
            f"{where}: {name} is {array.dtype} {list(array.shape)}, this network has {list(like.shape)}; "
            "give the configuration of the network that was saved"
        )
    return torch.from_numpy(np.ascontiguousarray(array)).to(like.dtype, copy=True)


def _more(names: list[str]) -> str:
    return f" (nor {len(names) - 1} more, such as {names[-1]})" if len(names) > 1 else ""


def network_settings(snapshots: Snapshots) -> dict[str, Any]:
    """The sections `model`, `generator` and `discriminator` that fit the arrays' shapes.

    The settings of a network whose snapshot was not given are the official ones of the resolution.
    """
    model: dict[str, Any] = {}
    generator: dict[str, Any] = {"name": "resnet"}
    discriminator: dict[str, Any] = {"name": "resnet"}
    if snapshots.discriminator is not None:
        model, discriminator = _discriminator_settings(snapshots.discriminator)
    if snapshots.generator is not None:
        of_discriminator = model
        model, generator = _generator_settings(snapshots.generator)
        for name, value in of_discriminator.items():
            if snapshots.discriminator is not None and name != "resolution" and model[name] != value:
                raise SnapshotError(
                    f"{snapshots.discriminator.where}: its model.{name} is {value}, that of "
                    f"{snapshots.generator.where} is {model[name]}; give two networks that were trained together"
                )
    if snapshots.discriminator is None:
        discriminator["conditioning"] = {"name": "projection" if model["classes"] else "none"}
        if model["resolution"] not in DISCRIMINATOR_FORMS:
            discriminator |= {"multipliers": [1, 2], "downsampling_blocks": 1}
    return {"model": model, "generator": generator, "discriminator": discriminator}


def _generator_settings(snapshot: Snapshot) -> tuple[dict[str, Any], dict[str, Any]]:
    arrays = snapshot.arrays
    if "l1/W" not in arrays:
        raise SnapshotError(f"{snapshot.where}: lacks l1/W, the generator's first layer")
    blocks = _count(snapshot, first=2)
    widths = [arrays["l1/W"].shape[0] // 16] + [arrays[f"block{n}/c2/W"].shape[0] for n in range(2, blocks + 2)]
    resolution = 4 * 2**blocks
    gammas = arrays.get("block2/b1/gammas/W")
    tail = arrays.get(f"l{blocks + 2}/W", arrays.get(f"c{blocks + 2}/W"))
    if tail is None:
        raise SnapshotError(f"{snapshot.where}: lacks l{blocks + 2}/W, the generator's last convolution")
    model = {
        "resolution": resolution,
        "image_channels": tail.shape[0],
        "classes": 0 if gammas is None else len(gammas),
        "latent_dim": arrays["l1/W"].shape[1],
    }
    return model, {"name": "resnet", **_widths(widths, GENERATOR_FORMS.get(resolution))}


def _discriminator_settings(snapshot: Snapshot) -> tuple[dict[str, Any], dict[str, Any]]:
    arrays, blocks = snapshot.arrays, _count(snapshot, first=1)
    widths = [arrays[f"block{n}/c2/W"].shape[0] for n in range(1, blocks + 1)]
    halvings = next((n for n in range(1, blocks) if f"block{n + 1}/c_sc/W" not in arrays), blocks)
    resolution = {len(form[0]): r for r, form in DISCRIMINATOR_FORMS.items()}.get(blocks, 4 * 2**halvings)
    conditioning: dict[str, Any] = {"name": "none"}
    if "l_y/W" in arrays:
        wider = [n for n in range(1, blocks) if arrays[f"block{n + 1}/c1/W"].shape[1] != widths[n - 1]]
        conditioning = {"name": "projection"}
        if wider:
            conditioning = {"name": "concat", "dimension": arrays["l_y/W"].shape[1], "after_block": wider[0]}
    form = DISCRIMINATOR_FORMS.get(resolution)
    model = {
        "resolution": resolution,
        "image_channels": arrays["block1/c1/W"].shape[1],
        "classes": len(arrays["l_y/W"]) if "l_y/W" in arrays else 0,
    }
    return model, {
        "name": "resnet",
        "conditioning": conditioning,
        **_widths(widths, form[0] if form else None, unit=widths[0]),
        "downsampling_blocks": halvings,
        "head_bias": f"l{blocks + 1}/b" in arrays,
    }


def _count(snapshot: Snapshot, first: int) -> int:
    """The number of consecutive residual blocks; each needs both its convolutions."""
    count = 0
    while f"block{first + count}/c1/W" in snapshot.arrays or f"block{first + count}/c2/W" in snapshot.arrays:
        for name in (f"block{first + count}/c1/W", f"block{first + count}/c2/W"):
            if name not in snapshot.arrays or snapshot.arrays[name].ndim != 4:
                raise SnapshotError(f"{snapshot.where}: lacks {name} (or it is no convolution's)")
        count += 1
    if count == 0:
        raise SnapshotError(f"{snapshot.where}: lacks block{first}/c1/W, the first convolution")
    return count


def _widths(widths: list[int], form: tuple[int, ...] | None, unit: int | None = None) -> dict[str, Any]:
    """`channels` and `multipliers`; none of the latter for an official form."""
    unit = unit or widths[-1]
    if all(width % unit == 0 for width in widths):
        multipliers = [width // unit for width in widths]
        return {"channels": unit} if tuple(multipliers) == form else {"channels": unit, "multipliers": multipliers}
    return {"channels": 1, "multipliers": widths}
