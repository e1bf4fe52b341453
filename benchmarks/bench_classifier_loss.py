"""What the classifier's loss costs: the CPU time of an iteration without it and of its own passes, in turn, in one process.

`make bench-classifier-loss`. One line each: `SHARE <what>: <share of an iteration's CPU time> [min..max of rounds]`. The
ImageNet configuration runs with 1/32 of its batch, in its own proportions (real 2, generated 4), on one thread.
"""

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

from trainer.classifiers import build_classifier  # noqa: E402
from trainer.config import load_config  # noqa: E402
from trainer.costs.timed import random_fields  # noqa: E402
from trainer.foundation.keys import Keys  # noqa: E402
from trainer.methods.protocol import Turn  # noqa: E402
from trainer.processes.launch import Launch, keep_freed_memory  # noqa: E402
from trainer.training.iteration import run_iteration  # noqa: E402
from trainer.training.state import State  # noqa: E402

SMALLER = ["--batch.replicas", "1", "--batch.real_per_replica", "2", "--batch.generated_per_replica", "4"]
PARTIES = {"fashion32": [], "imagenet128": SMALLER}


def share(name: str, precision: str, rounds: int) -> Sequence[float]:
    """In each of `rounds`: CPU time of the classifier's passes (forward, and back to the images) over that of an iteration with
    them. The difference of two whole iterations would drown a share of some per cent in their noise."""
    config = load_config(str(ROOT / "configs" / f"{name}_projection_finetune.yaml"), PARTIES[name])
    assert config.classifier_loss is not None
    device = torch.device("cpu")
    kind = "bf16" if precision == "bf16" else "fp32"
    launch = Launch(rank=0, world_size=1, local_rank=0, device=device, precision=kind, strategy="single")
    method = config.objective.build(config.problem())
    state = State(config, method, launch)
    classifier = build_classifier(config.classifier_loss.classifier)

    def draws(turn: Turn) -> list[dict[str, torch.Tensor]]:
        """Random images in place of real ones: the same work."""
        fields = random_fields(turn, config.model, device)
        replicas = range(config.batch.replicas)
        return [dict(method.draw(turn, Keys(0, 0, turn.number, replica), fields)) for replica in replicas]

    def iteration() -> float:
        begun = time.process_time()
        run_iteration(
            method,
            state.players,
            method.turns(0),
            draws,
            state.memory,
            launch=launch,
            replicas=config.batch.replicas,
            rate_factor=1e-6,
            seed_layers=lambda turn, replica: None,
        )
        return time.process_time() - begun

    def passes() -> float:
        model, count = config.model, config.batch.generated_per_replica
        images = torch.rand(count, model.image_channels, model.resolution, model.resolution, requires_grad=True)
        labels = torch.arange(count) % model.classes
        begun = time.process_time()
        for _ in range(config.batch.replicas):
            with launch.autocast():
                loss = F.cross_entropy(classifier(images), labels)
            torch.autograd.grad(loss, images)
        return time.process_time() - begun

    iteration(), passes()  # warm-up
    found = []
    for _ in range(rounds):
        own, rest = passes(), iteration()
        found.append(own / (own + rest))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=("fp32", "bf16"))
    parser.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    for name, classifier in (("fashion32", "small classifier"), ("imagenet128", "EfficientNet-Lite0")):
        for precision in options.precisions:
            rounds = options.rounds * (5 if name == "fashion32" else 1)
            found = share(name, precision, rounds)
            print(
                f"SHARE {classifier}, {name} {precision}: {median(found):.3f} [{min(found):.3f}..{max(found):.3f}]",
                flush=True,
            )


if __name__ == "__main__":
    main()
