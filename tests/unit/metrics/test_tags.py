"""The measure of words for images: its arithmetic against plain forms, and the controls."""

import numpy as np
import torch

from trainer.metrics.tags import Pictures, by_frequency, by_nearest, per_tag, values_of


def test_the_values_against_loops() -> None:
    random = np.random.default_rng(0)
    scores, tags = random.normal(size=(9, 14)), random.random((9, 14)) < 0.3
    tags[:, 3] = True  # every image has a tag
    found = values_of(scores, tags)
    sums = dict.fromkeys(found, 0.0)
    for row, true in zip(scores, tags, strict=True):
        ranked = sorted(range(14), key=lambda word: -row[word])
        hits = [bool(true[word]) for word in ranked]
        for k in (1, 5, 10):
            precision, recall = sum(hits[:k]) / k, sum(hits[:k]) / true.sum()
            sums[f"precision_at_{k}"] += precision
            sums[f"recall_at_{k}"] += recall
            sums[f"f1_at_{k}"] += 2 * precision * recall / (precision + recall) if sum(hits[:k]) else 0.0
        places = [place for place, hit in enumerate(hits) if hit]
        sums["mean_average_precision"] += sum((n + 1) / (place + 1) for n, place in enumerate(places)) / true.sum()
    for name, total in sums.items():
        np.testing.assert_allclose(found[name], total / 9, rtol=1e-12, err_msg=name)


def test_a_perfect_ranking_and_the_worst_one() -> None:
    tags = np.zeros((2, 8), dtype=bool)
    tags[0, 2], tags[1, [0, 7]] = True, True
    best = values_of(tags.astype(float), tags)
    assert best["mean_average_precision"] == 1
    assert (best["precision_at_1"], best["recall_at_5"]) == (1, 1)
    assert best["precision_at_5"] == (1 / 5 + 2 / 5) / 2
    worst = values_of(-tags.astype(float), tags)
    assert worst["recall_at_5"] == 0
    assert worst["mean_average_precision"] == (1 / 8 + (1 / 7 + 2 / 8) / 2) / 2


def test_equal_scores_are_ranked_by_the_vocabulary() -> None:
    tags = np.array([[False, True, False]])
    assert values_of(np.zeros((1, 3)), tags)["mean_average_precision"] == 1 / 2


def test_average_precision_by_tag_leaves_out_tags_that_no_image_has() -> None:
    tags = np.array([[True, False, False], [False, True, False]])
    scores = np.array([[1.0, 5.0, 9.0], [0.0, 4.0, 9.0]])
    assert per_tag(scores, tags) == (1 + 1 / 2) / 2


def test_the_controls() -> None:
    training = Pictures(
        torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, -1.0]]),
        np.array([[True, False, True, False], [False, False, False, True], [False, False, True, False]]),
    )
    assert by_frequency(training).tolist() == [1, 0, 2, 1]
    nearest = by_nearest(training, torch.tensor([[9.0, 1.0], [0.1, 0.3]]))
    # The tags of the nearest image first, the more frequent one ahead; then the others by frequency.
    assert np.argsort(-nearest, axis=1, kind="stable").tolist() == [[2, 0, 3, 1], [3, 2, 0, 1]]
