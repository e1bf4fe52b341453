"""`python -m trainer.curves RUN FOLDER`: copies the event files of a run, or of all runs below a URL, for TensorBoard.

Event files are only ever appended to, so only their new ends are fetched, and written at the end of the same local file:
TensorBoard, which holds it open, sees it grow.
"""

import argparse
import sys
import time
from pathlib import Path

from trainer.foundation.commands import run_command
from trainer.foundation.errors import TrainerError
from trainer.foundation.options import number
from trainer.foundation.stores import Store


def copy_curves(store: Store, folder: Path) -> int:
    """Bring the copies in `folder` up to date; returns the bytes that were new. A file that shrank is fetched anew."""
    fetched = 0
    for path, size in sorted(store.find().items()):
        if "events.out.tfevents." not in path.rpartition("/")[2]:
            continue
        copy = folder / path
        there = copy.stat().st_size if copy.exists() else 0
        if there == size:
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        content = store.get(path)
        start = there if there < len(content) else 0
        with copy.open("ab" if start else "wb") as file:
            file.write(content[start:])
        fetched += len(content) - start
    return fetched


def main(arguments: list[str]) -> int:
    """Copy once, or for ever; what cannot be reached now is tried again at the next look."""
    parser = argparse.ArgumentParser(prog="python -m trainer.curves", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="the run's URL, or one of a folder with runs")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="the local copy")
    parser.add_argument("--every", type=number(most=1e9, above=True), metavar="SECONDS", help="keep looking, so often")
    options = parser.parse_args(arguments)
    store = Store(options.run)
    while True:
        try:
            copy_curves(store, options.folder)
        except OSError as error:
            if options.every is None:
                raise TrainerError(f"RUN: {options.run} cannot be read ({error})") from None
            print(f"{options.run} cannot be read now: {error}", file=sys.stderr, flush=True)
        if options.every is None:
            return 0
        time.sleep(options.every)


if __name__ == "__main__":
    sys.exit(run_command(main))
