"""`python -m trainer.export RUN OUT`: the generator of a run as config.json + model.safetensors.

`Generator.from_pretrained(OUT)` loads it again, in one call and without the run. `--network classifier` writes the
classifier that the run has trained, if it has, as one file that judges generated images elsewhere.
"""

import argparse
import sys
from pathlib import Path

from trainer.classifiers.small import ClassifierInfo, save_classifier
from trainer.foundation.commands import run_command
from trainer.foundation.errors import SettingError
from trainer.foundation.options import whole
from trainer.foundation.outputs import check_output
from trainer.methods.sampling import Classifying
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
    parser.add_argument(
        "--network",
        choices=["sampler", "classifier"],
        default="sampler",
        help="classifier: the one that the training has, as a file OUT for --classifier and classifier_loss",
    )
    options = parser.parse_args(arguments)
    if is_export(options.run):
        raise SettingError(f"RUN: {options.run} is an export already; give the folder of a run")
    average = None if options.weights is None else options.weights == "average"
    if options.network == "classifier":
        return _export_classifier(options.run, Path(options.out), options.iteration, average)
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


def _export_classifier(run: str, out: Path, iteration: int | None, average: bool | None) -> int:
    """Write the file; returns the exit status."""
    check_output(out.parent, "OUT")
    if out.is_dir():
        raise SettingError(f"OUT: {out} is a folder; give the file to write, such as {out}/classifier.safetensors")
    generator = open_generator(run, iteration, average)
    sampler, classes = generator.sampler, generator.classes
    if not isinstance(sampler, Classifying):
        raise SettingError("--network: this run has trained no classifier; leave it out to export its sampler")
    if not classes.names:
        raise SettingError(
            f"RUN: the names of the classes of {run} are not known, and a classifier is told by them; put its shards back "
            "where data.shards says"
        )
    model = sampler.described["model"]
    info = ClassifierInfo(
        model["resolution"],
        model["image_channels"],
        classes.names,
        0,
        "",
        float("nan"),
        classes.ids,
        dict(sampler.described),
    )
    save_classifier(out, sampler.classifier, info)
    kind = "moving average of the weights" if generator.training["moving_average"] else "weights"
    print(
        f"{out}: holds the classifier of {len(classes.names)} classes, the {kind} of iteration "
        f"{generator.training['iteration']:,}; `python -m trainer.evaluate ... --classifier {out}` judges with it"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
