"""Which checkpoints may go, and their removal once a newer one was read back from the store."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Literal, NamedTuple

from trainer.checkpoint.commits import REJECTED, CheckpointStore
from trainer.checkpoint.format import MANIFEST, Attempt, Commit, InvalidCommit

SCORES = "scores.json"

logger = logging.getLogger("menagerie.checkpoint")


class Cleaning(NamedTuple):
    """What a cleaning removed, or would remove: folders of checkpoints, and of attempts that never became one."""

    checkpoints: list[str]
    attempts: list[str]


def record_scores(checkpoints: CheckpointStore, iteration: int, scores: Mapping[str, float]) -> None:
    """Note metrics beside the newest commit of an iteration, if there is one, for `checkpoint.keep_best`."""
    for commit in checkpoints.commits():
        if commit.iteration == iteration:
            content = (json.dumps(dict(scores), indent=2) + "\n").encode()
            checkpoints.store.put(f"{commit.folder}/{SCORES}", content)
            return


def read_scores(checkpoints: CheckpointStore, commits: Sequence[Commit], metric: str) -> dict[str, float]:
    """The value of a metric by checkpoint folder: of `record_scores`, or else of `scores` in the manifest's info."""
    folders = checkpoints.folders()
    found: dict[str, float] = {}
    for commit in commits:
        scores = commit.info.get("scores")
        if SCORES in folders.get(commit.folder, {}):
            with suppress(ValueError, FileNotFoundError):
                scores = json.loads(checkpoints.store.get(f"{commit.folder}/{SCORES}"))
        value = scores.get(metric) if isinstance(scores, dict) else None
        if isinstance(value, int | float) and math.isfinite(value):
            found[commit.folder] = float(value)
    return found


def expendable(
    commits: Sequence[Commit],
    *,
    keep_last: int,
    keep_every: int = 0,
    scores: Mapping[str, float] | None = None,
    better: Literal["higher", "lower"] = "lower",
) -> list[Commit]:
    """The commits that no rule keeps, oldest first.

    Kept are the newest `keep_last` (at least one), those whose iteration is a multiple of `keep_every` (0: none) and
    the best by `scores`, which maps commit folders to a metric. Of several commits of one iteration only the newest
    counts, and a commit that a later writer has gone back behind keeps nothing: the run went on without it.
    """
    ordered = sorted(commits, key=lambda commit: commit.order, reverse=True)
    current: list[Commit] = []
    for commit in ordered:  # newest first: iterations must fall
        if not current or commit.iteration < current[-1].iteration:
            current.append(commit)
    kept = {commit.folder for commit in current[: max(keep_last, 1)]}
    if keep_every:
        kept |= {commit.folder for commit in current if commit.iteration % keep_every == 0}
    scored = [commit for commit in current if commit.folder in (scores or {})]
    if scores and scored:
        sign = 1.0 if better == "lower" else -1.0
        kept.add(min(scored, key=lambda commit: sign * scores[commit.folder]).folder)
    return [commit for commit in reversed(ordered) if commit.folder not in kept]


def clean(checkpoints: CheckpointStore, *, rejected: bool = False, dry_run: bool = False) -> Cleaning:
    """Remove what `checkpoints.config` does not keep, and what dead attempts left behind.

    Before anything is deleted the newest commit is read back from the store, every byte; if it is not sound, everything
    stays. Checkpoints that were set aside are kept, unless `rejected` asks for them too. Foreign files are not touched.
    """
    config = checkpoints.config
    folders = checkpoints.folders()
    aside = {folder for folder, files in folders.items() if REJECTED in files}
    sound = [commit for commit in checkpoints.commits() if commit.folder not in aside]
    if not sound:
        return Cleaning([], [])
    newest = sound[0]
    scores = read_scores(checkpoints, sound, config.keep_best) if config.keep_best else {}
    commits = [
        commit.folder
        for commit in expendable(
            sound, keep_last=config.keep_last, keep_every=config.keep_every, scores=scores, better=config.keep_best_is
        )
    ]
    if rejected:
        commits += sorted(aside)
    # Attempts of the newest commit's own writer come from this process or a dead one: a save is over before it cleans.
    # A fenced writer may still be at work on its own, but whatever it commits is older than `newest`.
    mine = checkpoints.writer
    attempts = [
        folder
        for folder, files in sorted(folders.items())
        if MANIFEST not in files
        and (attempt := Attempt.parse(folder)) is not None
        and (attempt.writer < newest.writer or (mine and attempt.writer == mine))
    ]
    cleaning = Cleaning(commits, attempts)
    if dry_run or not (commits or attempts):
        return cleaning
    checkpoints.reached("before read back")
    try:
        checkpoints.verify(newest)
    except InvalidCommit as error:
        logger.error(
            "checkpoint %s was committed but does not read back (%s): no older one is deleted",
            checkpoints.store.describe(newest.folder),
            error,
        )
        return Cleaning([], [])
    checkpoints.reached("before retention")
    for folder in [*commits, *attempts]:
        checkpoints.remove(folder)
    checkpoints.reached("after retention")
    return cleaning
