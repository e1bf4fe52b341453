"""The command line of trainer.checkpoint: `list`, `verify` and `hash` for a run's folder or URL."""

import argparse
import sys
from collections.abc import Sequence

from trainer.checkpoint import CheckpointStore
from trainer.commits import InvalidCommit, state_hash
from trainer.errors import TrainerError


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 if all is well, 3 if a checkpoint cannot be trusted or there is none, 2 for a wrong command."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer.checkpoint", description="Look at the checkpoints of a run."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, text in (
        ("list", "a table of all commits, without reading their files"),
        ("verify", "read every byte of every commit and say whether it is sound"),
        ("hash", "sha256 over the logical state of the newest sound commit"),
    ):
        command = verbs.add_parser(verb, help=text, description=text)
        command.add_argument("run", metavar="RUN", help="the run's folder or URL")
        command.add_argument("--iteration", type=int, metavar="N", help="only the checkpoint of this iteration")
    options = parser.parse_args(arguments)
    store = CheckpointStore(options.run)
    try:
        return {"list": _list, "verify": _verify, "hash": _hash}[options.verb](store, options.iteration)
    except TrainerError as error:
        print(error, file=sys.stderr)
        return error.exit_status


def _list(store: CheckpointStore, iteration: int | None) -> int:
    commits = [commit for commit in store.commits() if iteration in (None, commit.iteration)]
    for commit in commits:
        print(f"{commit.iteration:>10}  {commit.bytes / 2**20:>10.1f} MiB  {commit.created[:19]}  {commit.folder}")
    return 0 if commits else 3


def _verify(store: CheckpointStore, iteration: int | None) -> int:
    status = 3
    for commit in store.commits():
        if iteration not in (None, commit.iteration):
            continue
        try:
            store.verify(commit)
        except InvalidCommit as error:
            print(f"{commit.iteration:>10}  INVALID  {error}")
            return 3
        print(f"{commit.iteration:>10}  verified")
        status = 0
    return status


def _hash(store: CheckpointStore, iteration: int | None) -> int:
    restored = store.restore(iteration)
    if restored is None:
        print(f"{store.store.url}: there is no checkpoint.", file=sys.stderr)
        return 3
    print(state_hash(restored.tensors))
    print(f"iteration {restored.commit.iteration}", file=sys.stderr)
    return 0
