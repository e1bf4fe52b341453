"""The forms of convolutions, chosen by timing (`speed.autotune`)."""

import copy
import json
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import nn

from trainer.foundation.stores import Store
from trainer.models.forms import Placed, placed_convolutions, set_form
from trainer.processes.launch import Launch, share_object

logger = logging.getLogger("menagerie")

RECORD = "speed.json"
"""In the run's folder: what `speed.autotune` chose."""


class Tuned(NamedTuple):
    """A network whose layers are to be timed, and the images of one of its passes."""

    name: str
    network: nn.Module
    resolution: int
    batch: int


def choose_forms(run_dir: str, networks: Sequence[Tuned], launch: Launch) -> None:
    """Let every layer compute in the form that is fastest here, or that speed.json in `run_dir` remembers.

    The main process times and remembers; the others follow. A record is for one device, precision, version of
    PyTorch and of cuDNN; on another the layers are timed again, which is logged.
    """
    items = {
        f"{tuned.name}.{item.name}": (item, tuned.batch)
        for tuned in networks
        for item in placed_convolutions(tuned.network, tuned.resolution)
    }
    forms: dict[str, str] | None = None
    if launch.is_main:
        store, here = Store(run_dir), describe_device(launch)
        record: dict[str, Any] = {}
        with suppress(FileNotFoundError, ValueError):
            found = json.loads(store.get(RECORD))
            record = found if isinstance(found, dict) else {}
        forms = record.get(here)
        if not isinstance(forms, dict) or forms.keys() != items.keys():
            if record:
                logger.warning("%s holds no timings for %s: timing again; the last bits may change", RECORD, here)
            forms = {name: fastest_form(item, batch, launch) for name, (item, batch) in items.items()}
            try:
                store.put(RECORD, json.dumps(record | {here: forms}, indent=1).encode())
            except OSError as error:
                logger.warning("%s cannot be written (%s): the next start times again", RECORD, error)
        logger.info("speed.autotune: %s", ", ".join(f"{name} {form}" for name, form in forms.items()))
    for name, form in (share_object(launch, forms) or {}).items():
        set_form(items[name][0], form)


def fastest_form(item: Placed, batch: int, launch: Launch, repeats: int = 3) -> str:
    """The form whose forward and backward pass take the least time, the plain one unless another wins by 3%."""
    seconds = {}
    for form in item.alternatives:
        trial = item._replace(layer=copy.deepcopy(item.layer))
        set_form(trial, form)
        channels = trial.layer.weight.shape[1]
        x = torch.randn(batch, channels, item.side, item.side, device=launch.device)
        x = x.contiguous(memory_format=torch.channels_last)
        times = []
        for _ in range(repeats + 1):
            began = _now(launch)
            with launch.autocast():
                y = trial.layer(x.requires_grad_(True))
            y.backward(torch.ones_like(y))  # type: ignore[no-untyped-call]
            times.append(_now(launch) - began)
        seconds[form] = min(times[1:])
    best = min(seconds, key=lambda form: seconds[form])
    return best if seconds[best] < 0.97 * seconds["plain"] else "plain"


def _now(launch: Launch) -> float:
    if launch.device.type == "cuda":
        torch.cuda.synchronize(launch.device)
        return time.perf_counter()
    return time.process_time()


def describe_device(launch: Launch) -> str:
    """What timings are good for: device, precision, threads, versions of PyTorch and of cuDNN."""
    device = "cpu"
    if launch.device.type == "cuda":
        name, cudnn = torch.cuda.get_device_name(launch.device), torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        device = f"{name}, cuDNN {cudnn}"
    return f"{device}, {launch.precision}, {torch.get_num_threads()} threads, torch {torch.__version__}"
