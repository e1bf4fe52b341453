"""The plan of the house in figures: rooms, floors, arrows, circles, and how many files one iteration walks through.

    python -m tests.support.import_graph [--checkout DIR] [--arrows] [--walk]

A room is a package of trainer/ or data_pipeline/, or a module that stands directly in one of them. An arrow is a pair of
rooms of which the first imports the second; imports for the type checker alone do not count. A circle is a set of rooms
that all reach each other. Arrows upwards: the fewest whose removal leaves no circle. Floors: the longest way down, rooms
of a circle counted as one.

--walk runs a tiny projection GAN of the checkout for three iterations, and lists the files of the project that the second
one enters in the main thread: from `run_iteration` to the first gradient and to the last one (generator and discriminator,
with their optimizers between), and in the whole turn of the loop.
"""

import argparse
import ast
import gzip
import json
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

PACKAGES = ("trainer", "data_pipeline")
Arrows = Mapping[str, set[str]]


class Plan(NamedTuple):
    """What the imports say."""

    files: dict[str, int]
    """Lines of every module."""
    arrows: dict[str, set[str]]
    """From each room to those that it imports."""


class Walk(NamedTuple):
    """Files in the order in which one iteration enters them."""

    first: list[str]
    """From `run_iteration` to the first gradient."""
    iteration: list[str]
    """To the last one."""
    turn: list[str]
    """To the last one, from the end of the iteration before."""


def read_plan(checkout: Path) -> Plan:
    """The rooms of a checkout and their arrows."""
    paths = [path for package in PACKAGES for path in sorted((checkout / package).rglob("*.py"))]
    modules = {_module(path.relative_to(checkout)): path for path in paths}
    files = {str(path.relative_to(checkout)): len(path.read_text().splitlines()) for path in paths}
    rooms = {module: room_of(path.relative_to(checkout)) for module, path in modules.items()}
    arrows: dict[str, set[str]] = {room: set() for room in rooms.values() if room not in PACKAGES}
    for module, path in modules.items():
        for imported in imports_of(path, module):
            # `from package import name`: a module of that name, or something that the package itself holds.
            target = imported if imported in rooms else imported.rpartition(".")[0]
            if target in rooms and not {rooms[target], rooms[module]} & {*PACKAGES} and rooms[target] != rooms[module]:
                arrows[rooms[module]].add(rooms[target])
    return Plan(files, arrows)


def room_of(path: Path) -> str:
    """The room of a module's path: its first folder below the package, or itself."""
    return "/".join(path.with_suffix("").parts[:2]).removesuffix("/__init__")


def imports_of(path: Path, module: str) -> Iterator[str]:
    """Every name that a module imports when it runs, as deep as it is written."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in _running(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: -(node.level - 1) or None]) if node.level else ""
            base = ".".join(filter(None, (base, node.module)))
            yield from (f"{base}.{alias.name}" for alias in node.names)


def circles(arrows: Arrows) -> list[list[str]]:
    """Sets of rooms that reach each other, each sorted."""
    reach = {room: _reached(room, arrows) for room in arrows}
    groups = {tuple(sorted({room} | {r for r in reach[room] if room in reach[r]})) for room in arrows}
    return sorted([*group] for group in groups if len(group) > 1)


def upward(circle: list[str], arrows: Arrows) -> int:
    """The fewest arrows inside a circle whose removal opens it: over all orders of its rooms, by dynamic programming."""
    bits = {room: 1 << number for number, room in enumerate(circle)}
    least = {0: 0}
    for placed in range(1, 1 << len(circle)):  # the rooms that stand below
        least[placed] = min(
            least[placed ^ bits[room]] + sum(bool(bits.get(other, 0) & ~placed) for other in arrows[room])
            for room in circle
            if placed & bits[room]
        )
    return least[(1 << len(circle)) - 1]


def floors(arrows: Arrows) -> dict[str, int]:
    """The floor of every room, 1 for those that import none; a circle is on one."""
    group = {room: room for room in arrows} | {room: circle[0] for circle in circles(arrows) for room in circle}
    below: dict[str, set[str]] = {group[room]: set() for room in arrows}
    for room, targets in arrows.items():
        below[group[room]] |= {group[target] for target in targets} - {group[room]}
    known: dict[str, int] = {}

    def floor(room: str) -> int:
        if room not in known:
            known[room] = 1 + max((floor(other) for other in below[room]), default=0)
        return known[room]

    return {room: floor(group[room]) for room in arrows}


def walk(checkout: Path) -> Walk:
    """Run a tiny training of the checkout and watch its second iteration."""
    with tempfile.TemporaryDirectory() as folder:
        experiment = _experiment(checkout, Path(folder))
        environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-c", _WATCHED, str(checkout), str(experiment), f"{folder}/walk.json"]
        done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
        return Walk(**json.loads(Path(folder, "walk.json").read_text()))


# Runs in a process of its own, with the checkout's code. Only Python's own calls are seen, in the main thread.
_WATCHED = """if True:
    import json, runpy, sys
    root, experiment, out = sys.argv[1:]
    entered = {"iteration": {}, "turn": {}}  # an iteration, and the turn of the loop that it belongs to
    found = {}
    number = 0

    def watch(frame, event, _):
        global number
        code = frame.f_code
        ours = code.co_filename.startswith((f"{root}/trainer/", f"{root}/data_pipeline/")) and code.co_name != "<module>"
        if ours and code.co_name == "run_iteration" and event in ("call", "return"):
            number += event == "call"
            if event == "return" and number == 1:
                entered["turn"].clear()
            if event == "return" and number == 2:
                sys.setprofile(None)
                with open(out, "w") as file:
                    json.dump(found, file)
            if event == "call" and number == 2:
                entered["iteration"].clear()
        if event != "call":
            return
        if ours:
            for files in entered.values():
                files[code.co_filename.removeprefix(root).lstrip("/")] = None
        elif number == 2 and code.co_name == "backward" and "/torch/" in code.co_filename:
            found.setdefault("first", list(entered["iteration"]))
            found["iteration"], found["turn"] = list(entered["iteration"]), list(entered["turn"])

    sys.argv = [f"{root}/trainer/main.py", experiment]
    sys.setprofile(watch)
    runpy.run_path(sys.argv[0], run_name="__main__")
"""

_EXPERIMENT = """
run: {{dir: {folder}/run, seed: 3, iterations: 3, checkpoint_every: 100, log_every: 100, sample_every: 0, heartbeat_every: 0}}
data: {{shards: {folder}/shards}}
batch: {{replicas: 2, real_per_replica: 2, generated_per_replica: 2}}
model: {{resolution: 32, image_channels: 1, classes: 10, latent_dim: 8}}
generator: {{name: resnet, channels: 4}}
discriminator: {{name: resnet, channels: 4, conditioning: {{name: projection}}}}
objective: {{name: adversarial}}
schedule: {{discriminator_steps: 1, stages: [{{until: 1000000}}]}}
ema: {{decay: 0.9}}
"""


def _experiment(checkout: Path, folder: Path) -> Path:
    """Shards of 64 grey images, made by the checkout's own command, and a projection GAN of a few thousand weights."""
    for kind, shape in (("images-idx3", (64, 28, 28)), ("labels-idx1", (64,))):
        header = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
        count = 64 if kind.startswith("labels") else 64 * 28 * 28
        values = bytes((7 * n) % 251 for n in range(count)) if count > 64 else bytes(n % 10 for n in range(count))
        (folder / f"train-{kind}-ubyte.gz").write_bytes(gzip.compress(header + values))
    command = [sys.executable, "-m", "data_pipeline.make_shards", "idx", str(folder), f"{folder}/shards"]
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    subprocess.run(command, cwd=checkout, env=environment, check=True, capture_output=True)
    path = folder / "experiment.yaml"
    path.write_text(_EXPERIMENT.format(folder=folder))
    return path


def _running(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those below `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _running(child)


def _module(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def _reached(room: str, arrows: Arrows) -> set[str]:
    found: set[str] = set()
    left = [room]
    while left:
        new = arrows[left.pop()] - found
        found |= new
        left += new
    return found


def report(plan: Plan) -> Iterator[str]:
    """The figures, a line each."""
    found, floor = circles(plan.arrows), floors(plan.arrows)
    flat = {p: sum(path.count("/") == 1 and path.startswith(p) for path in plan.files) - 1 for p in PACKAGES}
    yield f"files: {len(plan.files)}, {sum(plan.files.values()):,} lines; the longest has {max(plan.files.values())}"
    yield f"files in the flat folder: {', '.join(f'{count} in {package}/' for package, count in flat.items())}"
    yield f"rooms: {len(plan.arrows)}"
    yield f"floors: {max(floor.values())}"
    yield f"arrows: {sum(map(len, plan.arrows.values()))}"
    yield f"arrows upwards: {sum(upward(circle, plan.arrows) for circle in found)}"
    yield f"circles: {len(found)}" + "".join(f"; {' - '.join(circle)}" for circle in found)


def main() -> None:
    """Print the figures of a checkout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, default=Path())
    parser.add_argument("--arrows", action="store_true", help="also every room with its floor and what it imports")
    parser.add_argument("--walk", action="store_true", help="also the files that one iteration walks through")
    options = parser.parse_args()
    checkout = options.checkout.resolve()
    plan = read_plan(checkout)
    print("\n".join(report(plan)))
    if options.arrows:
        floor = floors(plan.arrows)
        for room in sorted(plan.arrows, key=lambda room: (-floor[room], room)):
            print(f"  {floor[room]:2} {room}: {', '.join(sorted(plan.arrows[room]))}")
    if options.walk:
        found = walk(checkout)
        names = ("run_iteration to the first gradient", "run_iteration to the last gradient", "the loop's whole turn")
        for what, files in zip(names, found, strict=True):
            print(f"walk, {what}: {len(files)} files, {sum(plan.files[file] for file in files):,} lines")
        print("\n".join(f"  {plan.files[file]:4} {file}" for file in found.iteration))


if __name__ == "__main__":
    main()
