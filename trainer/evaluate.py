"""`python -m trainer.evaluate RUN --classifier FILE`: class accuracy and diversity of a run's generated images."""

import argparse
import json
import sys
from datetime import UTC, datetime

from trainer.commands import run_command
from trainer.metrics.accuracy import GeneratedAccuracy
from trainer.runs import load_generator
from trainer.stores import Store


def main(arguments: list[str]) -> int:
    """Print a table and append one JSON record to RUN/measurements.jsonl."""
    parser = argparse.ArgumentParser(prog="python -m trainer.evaluate", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="the run's folder")
    parser.add_argument("--classifier", required=True, help="weights written by python -m trainer.train_classifier")
    parser.add_argument("--real", metavar="SHARDS", help="real images, to which the diversity is compared")
    parser.add_argument("--iteration", type=int, help="which checkpoint (default: the newest)")
    parser.add_argument("--samples", type=int, default=2_000, help="generated images, the classes in turn")
    parser.add_argument("--seed", type=int, default=0, help="of the latents")
    options = parser.parse_args(arguments)
    trained = load_generator(options.run, options.iteration)
    judge = GeneratedAccuracy(options.classifier, trained.config.model)
    generated = judge.judge(trained.module, options.seed, options.samples)
    accuracy, names = float(generated.accuracy.mean()), judge.info.class_names
    diversity = generated.diversity(judge.judge_real(options.real)) if options.real else None
    print(f"{options.samples:,} generated images at iteration {trained.iteration:,}: class accuracy")
    for label, name in enumerate(names):
        value = float(generated.accuracy[label])
        varied = "" if diversity is None else f"  diversity {float(diversity[label]):.2f}"
        print(f"  {name:16} {value:7.1%}{varied}  {'#' * round(40 * value)}")
    varied = "" if diversity is None else f"  diversity {float(diversity.mean()):.2f} (1: as diverse as {options.real})"
    print(f"  {'mean':16} {accuracy:7.1%}{varied}")
    print(f"  the classifier itself, on real test images: {judge.info.test_accuracy:.1%}")
    record = {
        "measure": "class_accuracy",
        "value": accuracy,
        "per_class": dict(zip(names, generated.accuracy.tolist(), strict=True)),
        "diversity": None if diversity is None else float(diversity.mean()),
        "samples": options.samples,
        "seed": options.seed,
        "iteration": trained.iteration,
        "moving_average": trained.averaged,
        "batch_norm": "running statistics",
        "classifier_test_accuracy": judge.info.test_accuracy,
        "classifier_trained_on": judge.info.fingerprint,
        "state_sha256": trained.state_sha256,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    store = Store(options.run)
    earlier = store.get("measurements.jsonl") if store.exists("measurements.jsonl") else b""
    store.put("measurements.jsonl", earlier + json.dumps(record).encode() + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
