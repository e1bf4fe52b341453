"""The command line of trainer.checkpoint: `list`, `verify`, `hash` and `prune` for a run's folder or URL."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from contextlib import suppress

from trainer.checkpoint.commits import REJECTED, RUN_FILE, CheckpointConfig, CheckpointStore
from trainer.checkpoint.format import MANIFEST, Attempt, Commit, InvalidCommit, NewerFormat, state_hash
from trainer.checkpoint.retention import clean
from trainer.foundation.errors import CheckpointError, TrainerError
from trainer.foundation.options import whole

_COLUMNS = "{:>10}  {:>12}  {:<19}  {:>8}  {:>5}  {:<22}  {}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 if all is well, 3 if a checkpoint cannot be trusted or there is none, 2 for a wrong command."""
    options = _parser().parse_args(arguments)
    try:
        store = CheckpointStore(options.run)
        if options.verb == "prune":
            return _prune(options)
        verb = {"list": _list, "verify": _verify, "hash": _hash}[options.verb]
        return verb(store, options.iteration)
    except TrainerError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    except OSError as error:
        print(f"{options.run}: the store cannot be read: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.checkpoint", description="Look at the checkpoints of a run."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, text in (
        ("list", "a table of all that is in the folder, without reading the tensor files"),
        ("verify", "read every byte of every checkpoint and say whether it is sound"),
        ("hash", "sha256 over the logical state of the newest sound checkpoint"),
        ("prune", "delete old checkpoints; the newest one is read back and verified first"),
    ):
        command = verbs.add_parser(verb, help=text, description=text)
        command.add_argument("run", metavar="RUN", help="the run's folder or URL")
        if verb != "prune":
            command.add_argument("--iteration", type=whole(), metavar="N", help="only the checkpoint of this iteration")
            continue
        default = CheckpointConfig()
        command.add_argument("--keep_last", type=int, default=default.keep_last, metavar="K", help="newest that stay")
        command.add_argument("--keep_every", type=whole(), default=0, metavar="N", help="multiples of N stay as well")
        command.add_argument("--keep_best", metavar="METRIC", help="the best by this metric stays as well")
        command.add_argument("--keep_best_is", choices=("lower", "higher"), default=default.keep_best_is)
        command.add_argument("--rejected", action="store_true", help="also those that were set aside as damaged")
        command.add_argument("--dry_run", action="store_true", help="only say what would be deleted")
    return parser


def _list(store: CheckpointStore, iteration: int | None) -> int:
    return 0 if _table(store, iteration, read=False) is not None else 3


def _verify(store: CheckpointStore, iteration: int | None) -> int:
    return 0 if _table(store, iteration, read=True) else 3


def _table(store: CheckpointStore, iteration: int | None, *, read: bool) -> bool | None:
    """Print one line for every checkpoint and attempt; whether all checkpoints are sound, None if there is none."""
    folders = {
        folder: files
        for folder, files in store.folders().items()
        if (attempt := Attempt.parse(folder)) and iteration in (None, attempt.iteration)
    }
    current = {commit.folder: commit for commit in store.commits()}
    newest = next((folder for folder in current if REJECTED not in folders.get(folder, {})), None)
    rows: list[tuple[tuple[int, int], str]] = []
    sound: list[bool] = []
    for folder, files in folders.items():
        attempt = Attempt.parse(folder)
        assert attempt is not None
        commit = current.get(folder)
        if MANIFEST not in files:
            verdict = "no manifest: a save under way, or one that never ended"
        else:
            verdict = _verdict(store, folder, read)
            sound.append(verdict in ("committed", "verified"))
            if REJECTED in files:
                verdict += f"; set aside ({_reason(store, folder)})"
            if folder == newest:
                verdict += ", newest"
        rows.append(((attempt.writer, attempt.iteration), _row(attempt, commit, sum(files.values()), verdict)))
    print(_COLUMNS.format("iteration", "real images", "saved (UTC)", "MiB", "files", "written by", "verdict"))
    for _, row in sorted(rows, reverse=True):
        print(row)
    if iteration is None:
        _foreign(store, set(folders))
    if not sound:
        where = f" of iteration {iteration}" if iteration is not None else ""
        print(f"{store.store.url}: there is no checkpoint{where}.", file=sys.stderr)
        return None
    return all(sound)


def _row(attempt: Attempt, commit: Commit | None, size: int, verdict: str) -> str:
    info = commit.info if commit else {}
    saved, files = (commit.created[:19], str(len(commit.files))) if commit else ("-", "-")
    images = info.get("real_images")
    world = f"{info.get('strategy', '?')} x {info['world_size']}, " if "world_size" in info else ""
    written_by = f"{world}writer {attempt.writer}"
    count = f"{images:,}" if isinstance(images, int) else "-"
    return _COLUMNS.format(attempt.iteration, count, saved, f"{size / 2**20:.1f}", files, written_by, verdict)


def _verdict(store: CheckpointStore, folder: str, read: bool) -> str:
    try:
        commit = store.read_manifest(folder)
        if read:
            store.verify(commit)
        else:
            store.check_sizes(commit)
    except InvalidCommit as error:
        return f"INVALID: {error}"
    except NewerFormat as error:
        return f"NEWER: {error}"
    return "verified" if read else "committed"


def _reason(store: CheckpointStore, folder: str) -> str:
    with suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads(store.store.get(f"{folder}/{REJECTED}"))["reason"])
    return "no reason given"


def _foreign(store: CheckpointStore, known: set[str]) -> None:
    tops = {path.partition("/")[0] for path in store.store.find()}
    foreign = sorted(tops - known - {RUN_FILE, "writers"})
    if foreign:
        shown = ", ".join(foreign[:5]) + (", ..." if len(foreign) > 5 else "")
        print(f"not ours, left alone: {shown}")


def _hash(store: CheckpointStore, iteration: int | None) -> int:
    restored = store.restore(iteration)
    if restored is None:
        print(f"{store.store.url}: there is no checkpoint.", file=sys.stderr)
        return 3
    print(state_hash(restored.tensors))
    print(f"iteration {restored.commit.iteration}", file=sys.stderr)
    return 0


def _prune(options: argparse.Namespace) -> int:
    if options.keep_last < 1:
        print(f"--keep_last: is {options.keep_last}; at least 1 checkpoint stays.", file=sys.stderr)
        return 2
    config = dataclasses.replace(
        CheckpointConfig(),
        keep_last=options.keep_last,
        keep_every=options.keep_every,
        keep_best=options.keep_best,
        keep_best_is=options.keep_best_is,
    )
    store = CheckpointStore(options.run, config)
    if not store.commits():
        raise CheckpointError(f"{store.store.url}: there is no checkpoint.")
    cleaning = clean(store, rejected=options.rejected, dry_run=options.dry_run)
    verb = "would delete" if options.dry_run else "deleted"
    for folder in [*cleaning.checkpoints, *cleaning.attempts]:
        print(f"{verb} {folder}")
    print(f"{verb} {len(cleaning.checkpoints)} checkpoints and {len(cleaning.attempts)} unfinished attempts")
    return 0


if __name__ == "__main__":
    sys.exit(main())
