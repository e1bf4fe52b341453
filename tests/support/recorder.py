"""Writes down the whole training state of many small runs, tensor by tensor, and compares two such records.

    recorder.py record OUT [--checkout DIR] [--only WORD] [--processes 1,2,3] [--shards DIR]
    recorder.py compare BEFORE AFTER [--only WORD] [--names MAP]

A refactoring that changes no number makes the same record. `record` trains a narrow form of every configuration in
DIR/configs for a few iterations, on 1, 2 and 3 processes, in fp32 and bf16, with and without the rewrites of `speed`,
and variants that no configuration has. The code of DIR is what runs. Of the first and the last checkpoint of each run
it keeps type, shape and sha256 of every tensor, read from the files themselves.

OUT has one JSON object a line: first where it was made, then a run each, written as soon as the run is done. Bits
depend on the processor and on PyTorch: make both records on one machine. `--only quick` is one process, fp32, every
configuration and every variant. The images are made once and kept in `--shards` (default: beside OUT); both records
must use the same. What the runs print is in OUT.log.
"""

import argparse
import gc
import hashlib
import importlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

# A program: its own folder is on the path, and `tests` need not be, since the code comes from another checkout.
from recorder_runs import CLASSES, COUNTS, ITERATIONS, Cell, all_cells, chosen

Runs = dict[str, dict[str, Any]]

PLACES = {
    "train": ("trainer.training.loop", "trainer.loop"),
    "load_config": ("trainer.config",),
    "Launch": ("trainer.processes.launch", "trainer.launch"),
    "start_processes": ("trainer.processes.launch", "trainer.launch"),
}
"""The modules in which a name of the program may lie; the first that has it counts."""

# The images -------------------------------------------------------------------------------------------------------


def make_shards(folder: Path, checkout: Path) -> None:
    """Shards of noise round a level of each class, and small classifiers of them; what is there stays."""
    for side, channels in ((32, 1), (32, 3), (64, 3), (128, 3)):
        output = folder / f"{side}x{channels}"
        if not (output / "manifest.json").exists():
            with tempfile.TemporaryDirectory() as pictures:
                draw_pictures(Path(pictures), side, channels)
                words = ["--size", side, "--encoding", "png" if side == 32 else "jpeg"]
                words += ["--samples-per-shard", 20, "--jobs", 1, *(["--grey"] if channels == 1 else [])]
                command(checkout, "data_pipeline.make_shards", "folder", pictures, output, *words)
    for name, images, seed in (("judge", "32x1", 0), ("other", "32x1", 1), ("judge", "128x3", 0)):
        file, used = folder / f"{name}-{images}.safetensors", folder / images
        if not file.exists():
            words = ["--out", file, "--epochs", 100, "--seed", seed, "--width", 4]
            command(checkout, "trainer.train_classifier", used, used, *words)


def draw_pictures(folder: Path, side: int, channels: int) -> None:
    """12 pictures of each class as PNG files, in one folder for each class."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(side + channels)
    for number in range(12 * CLASSES):
        kind = number % CLASSES
        pixels = (50 + 45 * kind + random.normal(0, 25, (side, side, channels))).clip(0, 255).astype(np.uint8)
        place = folder / f"class{kind}"
        place.mkdir(exist_ok=True)
        Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels).save(place / f"{number:03}.png")


def command(checkout: Path, module: str, *words: object) -> None:
    """Run one of the program's commands; its failure is ours."""
    subprocess.run([sys.executable, "-m", module, *map(str, words)], env=environment(checkout), check=True)


def environment(checkout: Path) -> dict[str, str]:
    """What every process is started with: the code of `checkout`, one thread."""
    words = {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    return {**os.environ, **words, "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}


# Recording --------------------------------------------------------------------------------------------------------


def record(given: argparse.Namespace) -> int:
    """Train all chosen runs, one process group for each number of processes."""
    began, out, checkout = time.monotonic(), given.out.resolve(), given.checkout.resolve()
    shards = (given.shards or out.parent / "recorder-shards").resolve()
    counts = {int(word) for word in given.processes.split(",")}
    make_shards(shards, checkout)
    cells = [cell for cell in all_cells(checkout) if cell.processes in counts and chosen(cell.name, given.only)]
    append(out, about(checkout, shards), new=True)
    log_of(out).unlink(missing_ok=True)
    for zero in (False, True):
        for count in COUNTS:
            left = [c.name for c in cells if c.processes == count and c.strategy.startswith("zero") == zero]
            while left:  # again if a failure has torn the group apart
                run_group(left, count, checkout, shards, out)
                rest = [name for name in left if name not in read(out)[1]]
                if rest == left:
                    append(out, {"run": left[0], "error": f"the processes ended, see {log_of(out).name}"})
                    rest = left[1:]
                left = rest
    runs = read(out)[1]
    failed = {name: last_line(run["error"]) for name, run in runs.items() if "error" in run}
    for text in dict.fromkeys(failed.values()):
        names = [name for name in failed if failed[name] == text]
        print(f"{names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}: {text}")
    tensors = sum(len(run.get("tensors", ())) for run in runs.values())
    print(f"{len(runs)} runs, {tensors} tensors, {len(failed)} errors, {time.monotonic() - began:.0f} s")
    return 1 if failed or not runs else 0


def run_group(names: list[str], count: int, checkout: Path, shards: Path, out: Path) -> None:
    """Start `count` processes that train `names` one after another, and wait for them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    words = [sys.executable, str(Path(__file__).resolve()), "work", str(checkout), str(out)]
    with tempfile.TemporaryDirectory() as scratch, log_of(out).open("a") as printed:
        Path(scratch, "names.json").write_text(json.dumps(names))
        Path(scratch, "shards").symlink_to(shards)
        processes = []
        for rank in range(count):
            env = {**environment(checkout), **group, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            processes.append(subprocess.Popen(words, cwd=scratch, env=env, stdout=printed, stderr=subprocess.STDOUT))
        try:
            for process in processes:
                process.wait()
        finally:
            for process in processes:
                process.kill()


def work(given: argparse.Namespace) -> int:
    """One process of a group, in the group's folder: train every run; rank 0 writes down."""
    # An editable installation would lend modules that the checkout lacks.
    sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(finder).lower()]
    import torch
    import torch.distributed as dist

    rank, world, cpu = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), torch.device("cpu")
    launch_of = found("Launch")
    start = launch_of(rank, world, rank, cpu, "fp32", "ddp" if world > 1 else "single")
    found("start_processes")(start, timedelta(minutes=2))
    control: Any = dist.new_group(timeout=timedelta(minutes=10)) if world > 1 else None
    cells = {cell.name: cell for cell in all_cells(given.checkout)}
    for name in json.loads(Path("names.json").read_text()):
        cell, began = cells[name], time.monotonic()
        print(f"---- {name}", flush=True)
        result = train_cell(cell, launch_of(rank, world, rank, cpu, cell.precision, cell.strategy), given.checkout)
        errors = [result.get("error", "")] * world
        if world > 1:
            dist.all_gather_object(errors, errors[0], group=control)
        if rank == 0:
            result = {"error": "\n".join(filter(None, dict.fromkeys(errors)))} if any(errors) else result
            append(given.out, {"run": name, "seconds": round(time.monotonic() - began, 2), **result})
            for folder in ("run", "base"):
                shutil.rmtree(folder, ignore_errors=True)
        gc.collect()
        if len({last_line(error) for error in errors}) > 1:
            os._exit(1)  # not the same failure everywhere: the group cannot be relied on any more
    return 0


def check_code(checkout: Path) -> None:
    """See that every module of the program that was imported so far is that of `checkout`."""
    for name, module in sys.modules.items():
        if name.partition(".")[0] in ("trainer", "data_pipeline"):
            file = getattr(module, "__file__", None)
            assert file is None or Path(file).is_relative_to(checkout), f"{name} is {file}"


def train_cell(cell: Cell, launch: Any, checkout: Path) -> dict[str, Any]:
    """Train one run; returns what is recorded of it: its tensors (in the main process) or its error."""
    path = checkout / "configs" / f"{cell.subject.partition('+')[0]}.yaml"
    try:
        for phase in [cell.before, {}] if cell.before else [{}]:
            words = [f"--{name}={json.dumps(value)}" for name, value in {**cell.settings, **phase}.items()]
            found("train")(found("load_config")(str(path), words), launch)
        check_code(checkout)
        return {"tensors": tensors_of(Path("run"))} if launch.rank == 0 else {}
    except (Exception, SystemExit):
        return {"error": traceback.format_exc()}


def found(name: str) -> Any:
    """A name of the program, wherever it lies now."""
    for place in PLACES[name]:
        try:
            return getattr(importlib.import_module(place), name)
        except ModuleNotFoundError as error:
            if not place.startswith(str(error.name)):
                raise
    raise ImportError(f"{name} is in none of {', '.join(PLACES[name])}: add its module to PLACES")


def tensors_of(run: Path) -> dict[str, str]:
    """`ITERATION/NAME` -> "TYPE SHAPE SHA256" of the first and the last checkpoint, out of its safetensors files."""
    commits = {int(path.parent.name.split("-")[1]): path.parent for path in run.glob("checkpoints/*/manifest.json")}
    assert max(commits, default=0) == ITERATIONS, f"the run's checkpoints are those of {sorted(commits)}"
    tensors = {}
    for iteration in (min(commits), ITERATIONS):
        commit = commits[iteration]
        for file in sorted(commit.glob("*.safetensors")):
            data = file.read_bytes()
            body = 8 + int.from_bytes(data[:8], "little")
            for name, entry in json.loads(data[8:body]).items():
                if name != "__metadata__":
                    begin, end = entry["data_offsets"]
                    digest = hashlib.sha256(data[body + begin : body + end]).hexdigest()
                    shape = "x".join(map(str, entry["shape"])) or "scalar"
                    tensors[f"{iteration}/{name}"] = f"{entry['dtype']} {shape} {digest}"
    return tensors


def about(checkout: Path, shards: Path) -> dict[str, Any]:
    """Where a record was made; records of different makings need not agree."""
    git = subprocess.run(["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    files = [*sorted(shards.glob("*/manifest.json")), *sorted(shards.glob("*.safetensors"))]
    cpu = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    kinds = re.findall(r"(?:model name|flags)\s*: (.*)", cpu)
    return {
        "commit": git.stdout.strip(),
        "torch": version("torch"),
        "cpu": [kinds[0], hashlib.sha256(kinds[-1].encode()).hexdigest()],
        "images": {str(file.relative_to(shards)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files},
    }


def log_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.log")


def append(path: Path, line: dict[str, Any], *, new: bool = False) -> None:
    with path.open("w" if new else "a") as file:
        file.write(json.dumps(line, sort_keys=True) + "\n")


def read(path: Path) -> tuple[dict[str, Any], Runs]:
    """Where a record was made, and its runs."""
    head, *lines = [json.loads(line) for line in path.read_text().splitlines()]
    return head, {line["run"]: line for line in lines if "run" in line}


# Comparing --------------------------------------------------------------------------------------------------------


def compare(given: argparse.Namespace) -> int:
    """Print what differs between two records; 0: nothing, 1: something, or a run is missing."""
    (head, before), (other, after) = read(given.before), read(given.after)
    names: dict[str, str] = json.loads(given.names.read_text()) if given.names else {}
    for key in ("torch", "cpu", "images"):
        if head[key] != other[key]:
            print(f"warning: {key} differs: {head[key]} and {other[key]}")
    compared = differing = missing = tensors = 0
    for run in sorted(run for run in before.keys() | after.keys() if chosen(run, given.only)):
        old, new = before.get(run, {}).get("tensors"), after.get(run, {}).get("tensors")
        if old is None or new is None:
            missing += old is not None
            print(f"{run}: {what_is_missing(run, before, after)}")
            continue
        compared += 1
        expected = {renamed(name, names): value for name, value in old.items()}
        tensors += len(expected)
        for name in sorted(expected.keys() | new.keys()):
            if expected.get(name) != new.get(name):
                differing += 1
                print(f"{run}: {name}: {verdict(expected.get(name), new.get(name))}")
    if missing:
        print(f"{missing} runs missing")
    print(f"{compared} runs, {tensors} tensors compared, {differing} differ")
    return 1 if differing or missing or not compared else 0


def what_is_missing(run: str, before: Runs, after: Runs) -> str:
    if run not in before:
        return "new"
    if run not in after:
        return "missing"
    side, runs = ("before", before) if "error" in before[run] else ("after", after)
    return f"failed {side}: {last_line(runs[run]['error'])}"


def last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]


def renamed(name: str, names: dict[str, str]) -> str:
    """A tensor's later name; `names` maps regular expressions for whole names, without the iteration, to new ones."""
    iteration, _, rest = name.partition("/")
    for old, new in names.items():
        if match := re.fullmatch(old, rest):
            return f"{iteration}/{match.expand(new)}"
    return name


def verdict(old: str | None, new: str | None) -> str:
    """How two entries differ that are not the same."""
    if old is None or new is None:
        return "new" if old is None else "missing"
    (kind, shape, _), (kind_now, shape_now, _) = old.split(), new.split()
    if (kind, shape) != (kind_now, shape_now):
        return f"{kind} {shape} is now {kind_now} {shape_now}"
    return "other bytes"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True, metavar="record | compare")
    verb = verbs.add_parser("record")
    verb.add_argument("out", type=Path)
    verb.add_argument("--checkout", type=Path, default=own_checkout(), help="whose code runs")
    verb.add_argument("--only", default="", help="runs whose name has this word in it, or `quick`")
    verb.add_argument("--processes", default="1,2,3", help="counts of processes")
    verb.add_argument("--shards", type=Path, help="folder of the images")
    verb.set_defaults(do=record)
    verb = verbs.add_parser("compare")
    verb.add_argument("before", type=Path)
    verb.add_argument("after", type=Path)
    verb.add_argument("--only", default="", help="runs whose name has this word in it, or `quick`")
    verb.add_argument("--names", type=Path, help="JSON: names of tensors before (regular expressions) -> after")
    verb.set_defaults(do=compare)
    verb = verbs.add_parser("work")  # started by `record`
    verb.add_argument("checkout", type=Path)
    verb.add_argument("out", type=Path)
    verb.set_defaults(do=work)
    given = parser.parse_args(arguments)
    return int(given.do(given))


def own_checkout() -> Path:
    """The checkout that this file stands in, or the current folder."""
    folders = Path(__file__).resolve().parents
    return next((folder for folder in folders if (folder / "trainer" / "main.py").exists()), Path.cwd())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
