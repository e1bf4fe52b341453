"""Words for images: precision, recall and F1 of the k best words, and mean average precision, next to two controls.

Of each image of --real 100 vectors are drawn; they vote for the words nearest to them (Mirza & Osindero 2014, section
4.2). The controls need no network: the most frequent tags of the training images, the same for every image; and the tags of
the nearest training image by the cosine of the features. A model that is not better than both has learned nothing.

Shapes: N images, F features, V words of the vocabulary.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data_pipeline.reading.stream import DataConfig
from trainer.foundation.errors import SettingError
from trainer.methods.sampling import Scoring
from trainer.metrics.protocol import Measure, Needs, Setting
from trainer.metrics.records import Measurement
from trainer.metrics.samples import in_order
from trainer.trained.real import manifest_of, real_vectors

DRAWS = 100
AT = (1, 5, 10)
CONTROLS = {"frequent": "the most frequent tags", "nearest": "the nearest training image's tags"}

Scores = npt.NDArray[np.float64]
Truth = npt.NDArray[np.bool_]


class Pictures(NamedTuple):
    """Images with all their tags."""

    features: Tensor
    """float32 [N, F]."""
    tags: Truth
    """[N, V]."""


def pictures_of(data: DataConfig) -> Pictures:
    """The images of shards in which an image comes once for each tag. Samples of equal features are one image."""
    vectors, labels = real_vectors(data)
    _, first, image = np.unique(vectors.numpy(), axis=0, return_index=True, return_inverse=True)
    tags = np.zeros((len(first), len(manifest_of(data).classes)), dtype=np.bool_)
    tags[image.ravel(), labels.numpy()] = True
    return Pictures(vectors[torch.from_numpy(first)], tags)


def values_of(scores: Scores, tags: Truth) -> dict[str, float]:
    """Of rankings [N, V] (a larger score is a better word; of equal ones the first in the vocabulary) and the true tags
    [N, V]: means over images of P@k, R@k, F1@k and of the average precision over the whole ranking."""
    order = np.argsort(-scores, axis=1, kind="stable")
    hits = np.take_along_axis(tags, order, 1)
    found, true = hits.cumsum(1), tags.sum(1)
    values: dict[str, float] = {}
    for k in AT:
        right = found[:, min(k, hits.shape[1]) - 1]
        values |= {
            f"precision_at_{k}": float((right / k).mean()),
            f"recall_at_{k}": float((right / true).mean()),
            f"f1_at_{k}": float((2 * right / (k + true)).mean()),
        }
    precision = found / np.arange(1, hits.shape[1] + 1)
    values["mean_average_precision"] = float(((precision * hits).sum(1) / true).mean())
    return values


def per_tag(scores: Scores, tags: Truth) -> float:
    """The mean over tags, of those that an image has, of the average precision with which the score ranks the images."""
    there = tags.any(0)
    return values_of(scores[:, there].T, tags[:, there].T)["mean_average_precision"]


def by_frequency(training: Pictures) -> Scores:
    """The control that is the same for every image: how many training images have a tag, [V]."""
    counts: Scores = training.tags.sum(0).astype(np.float64)
    return counts


def by_nearest(training: Pictures, features: Tensor) -> Scores:
    """[N, V]: the tags of the nearest training image first; by their frequency in themselves, then the other tags."""
    ours, theirs = (torch.nn.functional.normalize(x.double(), dim=1) for x in (features, training.features))
    nearest = (ours @ theirs.t()).argmax(1).numpy()
    frequency = by_frequency(training)
    scores: Scores = training.tags[nearest] + frequency / (frequency.max() + 1)
    return scores


class Tags(Measure):
    """Of all images of --real."""

    name, meaning = "tags", "words for images: P@k, R@k, F1@k and mAP next to two controls"
    needs = Needs(images=False)
    titles: ClassVar[dict[str, str]] = {
        "tags_mean_average_precision": "mAP of tags",
        **{f"tags_precision_at_{k}": f"P@{k} of tags" for k in AT},
    }
    outcomes = frozenset({"values", "per_tag", *CONTROLS, *(f"{name}_per_tag" for name in CONTROLS)})
    in_all = False

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        if not isinstance(setting.samples.sampler, Scoring):
            raise SettingError("--measures: tags looks at words, and this generator makes none; leave it out")
        self._sampler: Scoring = setting.samples.sampler
        self._training = setting.trained_on or setting.data
        training, test = manifest_of(self._training), setting.manifest
        if training.fingerprint == test.fingerprint:
            raise SettingError(
                "--real: tags are measured on images that the run has not seen; give the shards of the split test"
            )
        if training.class_names != test.class_names:
            raise SettingError(
                f"--real: the tags of {setting.data.shards} are not the vocabulary of {self._training.shards}; make both "
                "with the same options"
            )
        self._test = pictures_of(setting.data)
        self._rows: list[Scores] = []
        self._found: list[Measurement] = []

    def work(self) -> None:
        images, words = self._test.tags.shape
        samples = self.setting.samples
        for row in in_order(
            self.setting.launch,
            images,
            (words,),
            lambda n: self._sampler.scores(samples.first_of_condition(self._test.features[n], DRAWS)),
        ):
            self._rows.append(row.numpy())

    def result(self) -> list[Measurement]:
        tags = self._test.tags
        training = pictures_of(self._training)
        frequent = np.broadcast_to(by_frequency(training), tags.shape)
        scores = {
            "values": np.stack(self._rows),
            "frequent": frequent,
            "nearest": by_nearest(training, self._test.features),
        }
        values = {name: values_of(found, tags) for name, found in scores.items()}
        details: dict[str, Any] = {
            "images": len(tags),
            "words": tags.shape[1],
            "draws": DRAWS,
            "training_images": len(training.tags),
            **values,
            "per_tag": per_tag(scores["values"], tags),
            "nearest_per_tag": per_tag(scores["nearest"], tags),
        }
        own = values["values"]
        names = ["mean_average_precision", *(f"precision_at_{k}" for k in AT)]
        self._found = [Measurement(f"tags_{name}", own[name], details, "%", "higher") for name in names]
        return self._found

    def table(self, iteration: int) -> str:
        details = self._found[0].details
        head = ["P@1", "P@5", "P@10", "R@5", "R@10", "F1@5", "F1@10", "mAP"]
        keys = [
            *(f"precision_at_{k}" for k in AT),
            *(f"{what}_at_{k}" for what in ("recall", "f1") for k in AT[1:]),
            "mean_average_precision",
        ]
        rows = {"values": "this model", **CONTROLS}
        lines = [
            f"{details['images']} images, {details['words']} words, at iteration {iteration:,}",
            f"  {'':34}" + "".join(f"{name:>8}" for name in head),
            *(f"  {title:34}" + "".join(f"{details[name][key]:8.1%}" for key in keys) for name, title in rows.items()),
        ]
        return "\n".join(lines)

    @classmethod
    def note(cls, details: Mapping[str, Any]) -> str:
        if "draws" not in details:
            return ""
        return f"{details['words']} words, {details['draws']} vectors an image"
