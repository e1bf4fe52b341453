"""`make bench-data`: the loader and make_shards beside their peers and limits, in images per CPU-second.

All parties read the same 128 px JPEGs, in interleaved rounds, each in a separate process with one worker. Peers are
installed in an environment of their own (build/bench-data/venv). Prints one line each: `RATIO <what>: <ours over
theirs> [min..max of rounds]`. A party that fails or takes too long is named with the reason and left out.

    python -m benchmarks.bench_data [--rounds 3] [--images 6144] [--only WORD] [--minutes 9.5]
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "bench-data"
PARTIES = Path(__file__).with_name("data_parties.py")
REQUIREMENTS = (
    *("torch==2.14.1", "torchvision==0.29.1", "webdataset==1.0.2", "mosaicml-streaming==0.13.0", "litdata==0.2.76"),
    *("torchdata==0.11.0", "spdl-core==0.8.0", "grain==0.2.18", "simplejpeg==1.9.0", "pillow==13.0.0", "psutil"),
    "scikit-image",
)
LOADERS = {
    "roofline": "decode roofline",
    "webdataset_usual": "webdataset usual float",
    "webdataset_uint8": "webdataset usual uint8",
    "webdataset_simplejpeg": "webdataset simplejpeg",
    "mosaic": "mosaicml-streaming simplejpeg",
    "litdata": "litdata simplejpeg",
    "dataloader": "torchdata files simplejpeg",
    "grain": "grain on our index simplejpeg",
    "spdl": "spdl on our index simplejpeg",
}
SELF_CONTAINED = ("webdataset_simplejpeg", "mosaic", "litdata", "dataloader")
_SECONDS = 90.0  # for one run of one party
OURS = ("ours", "ours_windowed", "shards_ours")
MAKERS = {"shards_plain": "make_shards over a plain PIL script", "shards_limit": "make_shards over its limit"}


def peers_python() -> Path:
    """The peers' interpreter; installs the environment when its requirements have changed."""
    venv, stamp = BUILD / "venv", BUILD / "requirements.txt"
    wanted = "\n".join(REQUIREMENTS)
    if not stamp.exists() or stamp.read_text() != wanted:
        uv = Path(sys.executable).with_name("uv")
        shutil.rmtree(venv, ignore_errors=True)
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, venv], check=True)
        subprocess.run([uv, "pip", "install", "--quiet", "--python", venv / "bin/python", *REQUIREMENTS], check=True)
        stamp.write_text(wanted)
    return venv / "bin" / "python"


def run(python: Path | str, *arguments: object) -> dict[str, float]:
    """One run in a fresh process. Raises RuntimeError."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    command = [str(python), str(PARTIES), *map(str, arguments)]
    # Files, not pipes: a peer's worker that outlives its parent would keep a pipe open, and its reader waiting.
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, start_new_session=True
        )
        try:
            process.wait(timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"{arguments[0]} was not done after {_SECONDS:g} s") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and the workers that it left behind
            process.wait()
        output.seek(0)
        errors.seek(0)
        if process.returncode:
            raise RuntimeError(f"{arguments[0]} failed:\n{errors.read()[-2000:]}")
        return dict(json.loads(output.read().strip().splitlines()[-1]))


def data(python: Path, images: int) -> Path:
    """The images in every party's format, made once."""
    folder = BUILD / f"data2-{images}"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "tars").mkdir(parents=True)
        code = "import sys; from pathlib import Path; from benchmarks import data_parties as d; folder = Path(sys.argv[1]); "
        for call in (f"d.photographs(folder, {images})", "d.prepare(folder)"):
            command = [python, "-c", code + call, str(folder)]
            subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        command = [
            sys.executable,
            "-m",
            "data_pipeline.make_shards",
            "shards",
            str(folder / "tars"),
            str(folder / "tars"),
        ]
        subprocess.run([*command, "--jobs", "1"], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        (folder / "complete").touch()
    return folder


def line(what: str, ratios: list[float]) -> str:
    return f"RATIO {what}: {statistics.median(ratios):.2f} [{min(ratios):.2f}..{max(ratios):.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=6144, help="per party and round; the data set has half as many")
    parser.add_argument("--minutes", type=float, default=9.5, help="no round is begun that would end later")
    parser.add_argument("--only", default="", help="only parties with this word in their names")
    given = parser.parse_args()
    began, longest = time.monotonic(), 0.0
    BUILD.mkdir(parents=True, exist_ok=True)
    python = peers_python()
    folder = data(python, given.images // 2)
    names = ["ours", "ours_windowed", *(name for name in LOADERS if given.only in name)]
    makers = ["shards_ours", *MAKERS]
    rounds: list[dict[str, dict[str, float]]] = []
    print(f"ready after {time.monotonic() - began:.0f} s", flush=True)
    for _ in range(given.rounds):
        start = time.monotonic()
        if rounds and start + longest - began > 60 * given.minutes:
            print(f"{len(rounds)} of {given.rounds} rounds: another would not end in {given.minutes:g} minutes")
            break
        rounds.append({})
        for name in list(names):
            try:
                rounds[-1][name] = run(sys.executable if name in OURS else python, name, folder, given.images)
            except RuntimeError as error:
                leave_out(error, name, names, rounds)
        for name in list(makers):
            if given.only in name:
                mine = name in OURS
                try:
                    with tempfile.TemporaryDirectory(dir=BUILD) as output:
                        rounds[-1][name] = run(sys.executable if mine else python, name, folder, output)
                except RuntimeError as error:
                    leave_out(error, name, makers, rounds)
        longest = max(longest, time.monotonic() - start)
    report(rounds)


def leave_out(error: RuntimeError, name: str, parties: list[str], rounds: list[dict[str, dict[str, float]]]) -> None:
    """A peer that fails is named and left out; ours must not fail."""
    if name in OURS:
        raise error
    print(f"left out: {error}", flush=True)
    parties.remove(name)
    for measured in rounds:
        measured.pop(name, None)


def report(rounds: list[dict[str, dict[str, float]]]) -> None:
    """The table, then the RATIO lines."""
    print(f"{'party':<24} {'img/CPU-s median':>16} {'range':>16} {'img/s wall':>11} {'memory MB':>10}")
    rates = {name: [r[name]["images"] / r[name]["cpu"] for r in rounds] for name in rounds[0]}
    for name, values in rates.items():
        wall = statistics.median(r[name]["images"] / r[name]["wall"] for r in rounds)
        memory = statistics.median(r[name].get("memory", float("nan")) for r in rounds) / 1e6
        spread = f"{min(values):.0f}..{max(values):.0f}"
        print(f"{name:<24} {statistics.median(values):>16.0f} {spread:>16} {wall:>11.0f} {memory:>10.0f}")
    for name, what in LOADERS.items():
        if name in rates:
            print(line(what, [a / b for a, b in zip(rates["ours"], rates[name], strict=True)]))
    if measured := [name for name in SELF_CONTAINED if name in rates]:
        best = max(measured, key=lambda name: statistics.median(rates[name]))
        print(
            line(f"best self-contained peer ({best})", [a / b for a, b in zip(rates["ours"], rates[best], strict=True)])
        )
    for name, what in MAKERS.items():
        if name in rates and "shards_ours" in rates:
            print(line(what, [a / b for a, b in zip(rates["shards_ours"], rates[name], strict=True)]))


if __name__ == "__main__":
    main()
