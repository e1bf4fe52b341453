"""`python -m benchmarks.bench_sources`: make_shards on the same photographs in every form, and the listing of many files.

Runs are interleaved, each in a separate process with one job; start-up is left out. Prints a table, and one line each:
`RATIO SOURCE over folder: <images per CPU-second> [min..max of rounds]`. Listing is measured on small images and
extrapolated to ImageNet's 1,281,167.

    python -m benchmarks.bench_sources [--rounds 3] [--images 2000] [--listed 50000]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.source_forms import dots, photographs, write_forms

ROOT = Path(__file__).resolve().parents[1]
IMAGENET = 1_281_167


def measured(what: str, source: str, place: Path) -> dict[str, Any]:
    """One run in a fresh process."""
    with tempfile.TemporaryDirectory() as output:
        command = [sys.executable, "-m", "benchmarks.source_forms", what, source, str(place), output]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def speed(folder: Path, images: int, rounds: int) -> None:
    """Images per CPU-second of each source, its peak memory, and whether all write the same."""
    forms = write_forms(folder, photographs(images))
    runs = [{source: measured("make", source, place) for source, place in forms.items()} for _ in range(rounds)]
    print(f"{'source':<12} {'img/CPU-s median':>16} {'range':>10} {'peak memory MB':>15}")
    rates = {source: [images / run[source]["cpu"] for run in runs] for source in forms}
    for source, values in rates.items():
        memory = max(run[source]["memory"] for run in runs) / 1e6
        spread = f"{min(values):.0f}..{max(values):.0f}"
        print(f"{source:<12} {statistics.median(values):>16.0f} {spread:>10} {memory:>15.0f}")
    for source, values in rates.items():
        ratios = [a / b for a, b in zip(values, rates["folder"], strict=True)]
        print(f"RATIO {source} over folder: {statistics.median(ratios):.2f} [{min(ratios):.2f}..{max(ratios):.2f}]")
    digests = {run[source]["digest"] for run in runs for source in forms}
    print(f"images and labels: {'the same' if len(digests) == 1 else 'DIFFERENT'} from all sources")


def listing(folder: Path, images: int, rounds: int) -> None:
    """CPU seconds and memory of the listing, above those of a listing of one hundredth of it."""
    forms, few = write_forms(folder / "many", dots(images)), write_forms(folder / "few", dots(images // 100))
    print(f"{'listing':<12} {'CPU-s':>7} {'memory MB':>10} {'ImageNet CPU-s':>15} {'ImageNet MB':>12}")
    for source in forms:
        large, small = ([measured("list", source, places[source]) for _ in range(rounds)] for places in (forms, few))
        seconds, memory = (
            (statistics.median(run[key] for run in large) - statistics.median(run[key] for run in small)) / 0.99
            for key in ("cpu", "memory")
        )
        scale = IMAGENET / images
        print(
            f"{source:<12} {seconds:>7.2f} {memory / 1e6:>10.0f} {seconds * scale:>15.0f} {memory * scale / 1e6:>12.0f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--listed", type=int, default=50_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        speed(Path(folder) / "photographs", given.images, given.rounds)
        listing(Path(folder), given.listed, given.rounds)


if __name__ == "__main__":
    main()
