"""`python -m trainer.report RUN [RUN ...] [--out report.html]`: one self-contained HTML page about one run or several.

Curves, grids, interpolations, morphs, neighbours, all measures with their small print, and runs side by side. The page
loads nothing from anywhere, so it can be mailed or kept.
"""

import argparse
import sys
from pathlib import Path

from trainer.foundation.commands import run_command
from trainer.foundation.errors import SettingError
from trainer.report.data import read_run
from trainer.report.page import render


def main(arguments: list[str]) -> int:
    """Write the page; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="runs' folders, paths or URLs")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="the page (default: report.html)")
    options = parser.parse_args(arguments)
    runs = [read_run(url) for url in options.runs]
    names = [run.name for run in runs]
    for run in runs:
        if names.count(run.name) > 1:  # runs/a/x and runs/b/x
            run.name = "/".join(run.url.rstrip("/").split("/")[-2:])
    page = render(runs)
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(page)
    except OSError as error:
        raise SettingError(f"--out: cannot write {options.out} ({error.strerror}); give another path") from None
    print(
        f"{options.out}: {len(runs)} run{'s' if len(runs) > 1 else ''}, {len(page) / 1e6:.1f} MB, opens in any browser"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
