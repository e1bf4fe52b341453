"""`python -m trainer.export RUN OUT`: the generator of a run as config.json + model.safetensors.

`Generator.from_pretrained(OUT)` loads it again, in one call and without the run.
"""

import argparse
import sys

from trainer.foundation.commands import run_command
from trainer.foundation.errors import SettingError
from trainer.foundation.options import whole
from trainer.foundation.outputs import check_output
from trainer.trained.exports import CONFIG_FILE, WEIGHTS_FILE
from trainer.trained.pretrained import Generator, is_export, open_generator

__all__ = ["Generator", "main"]


def main(arguments: list[str]) -> int:
    """Write the export; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m trainer.export", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="the run's folder or URL")
    parser.add_argument("out", metavar="OUT", help="folder or URL to write")
    parser.add_argument("--iteration", type=whole(), help="which checkpoint (default: the newest)")
    parser.add_argument("--weights", choices=["average", "plain"], help="default: the average where there is one")
    options = parser.parse_args(arguments)
    if is_export(options.run):
        raise SettingError(f"RUN: {options.run} is an export already; give the folder of a run")
    average = None if options.weights is None else options.weights == "average"
    check_output(options.out, "OUT")
    generator = open_generator(options.run, options.iteration, average)
    generator.save_pretrained(options.out)
    kind = "moving average of the weights" if generator.training["moving_average"] else "weights"
    names = f"{len(generator.classes.names)} class names" if generator.classes.names else "class names unknown"
    print(
        f"{options.out}: {CONFIG_FILE} and {WEIGHTS_FILE} hold the {kind} of iteration "
        f"{generator.training['iteration']:,} ({names}); load them with Generator.from_pretrained({options.out!r})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
