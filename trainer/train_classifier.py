"""`python -m trainer.train_classifier TRAIN_SHARDS TEST_SHARDS --out FILE`: the judge for small data sets."""

import argparse
import sys
from pathlib import Path

from trainer.classifiers.training import save_classifier, train_classifier
from trainer.foundation.commands import run_command
from trainer.foundation.errors import SettingError, TrainerError
from trainer.foundation.log import to_stdout
from trainer.foundation.options import number, whole
from trainer.foundation.outputs import check_output


def main(arguments: list[str]) -> int:
    """Train, measure on the test shards, write the weights."""
    parser = argparse.ArgumentParser(prog="python -m trainer.train_classifier", description=__doc__)
    parser.add_argument("train_shards", help="shards of the real training images")
    parser.add_argument("test_shards", help="shards of the real test images, for the accuracy that is printed and kept")
    parser.add_argument("--out", required=True, type=Path, help="where to write the weights (safetensors)")
    parser.add_argument("--epochs", type=whole(1), default=3)
    parser.add_argument("--seed", type=whole(), default=0)
    parser.add_argument(
        "--width", type=whole(1), default=16, help="channels of the first layer; the others are 2 and 4 times that"
    )
    parser.add_argument(
        "--minimum", type=number(0.0, 1.0), default=0.0, help="least test accuracy; below it nothing is written"
    )
    options = parser.parse_args(arguments)
    check_output(options.out.parent, "--out")
    if options.out.is_dir():
        raise SettingError(f"--out: {options.out} is a folder; give the file to write")
    model, info = train_classifier(
        options.train_shards, options.test_shards, epochs=options.epochs, seed=options.seed, width=options.width
    )
    to_stdout(f"accuracy of the classifier on {options.test_shards}: {info.test_accuracy:.2%}")
    if info.test_accuracy < options.minimum:
        raise TrainerError(
            f"--minimum: the classifier reached {info.test_accuracy:.2%} on real test images, less than "
            f"{options.minimum:.0%}; raise --epochs"
        )
    save_classifier(options.out, model, info)
    print(f"written: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
