"""Inception Score (Salimans et al. 2016): exp of the mean KL divergence of p(y|x) from p(y), within each split.

The published one uses TF-Inception's 1008 outputs, 50,000 samples and 10 splits; with another classifier it is another
number. torch-fidelity's arithmetic without its shuffle, streamed: sums per split instead of 50,000 x 1008 probabilities.
"""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from trainer.metrics.protocol import Measure, Needs, Seen, Setting
from trainer.metrics.records import Measurement


class Score(NamedTuple):
    """Mean and (population) standard deviation over splits."""

    mean: float
    deviation: float


class InceptionScore:
    """Takes logits in the order of the samples; split i is [i * n // splits, (i + 1) * n // splits) of them."""

    def __init__(self, samples: int, classes: int, splits: int) -> None:
        self.bounds = [i * samples // splits for i in range(splits + 1)]
        self._probabilities = torch.zeros(splits, classes, dtype=torch.float64)
        self._negative_entropy = torch.zeros(splits, dtype=torch.float64)
        self._count = 0

    def add(self, logits: Tensor) -> None:
        """The next logits [n, classes]; those beyond the announced number of samples are left out."""
        for split in range(len(self.bounds) - 1):
            begin = max(self.bounds[split] - self._count, 0)
            end = max(self.bounds[split + 1] - self._count, 0)
            part = logits[begin:end].double()
            if len(part):
                log_p = part.log_softmax(1)
                self._probabilities[split] += log_p.exp().sum(0)
                self._negative_entropy[split] += (log_p.exp() * log_p).sum()
        self._count += len(logits)

    def score(self) -> Score:
        """Over all splits. Raises ValueError if samples are missing."""
        if self._count < self.bounds[-1]:
            raise ValueError(f"{self.bounds[-1]} samples were announced, {self._count} came")
        sizes = torch.tensor(self.bounds).diff().double()
        marginal = self._probabilities / sizes[:, None]
        entropy = torch.xlogy(marginal, marginal).sum(1)
        scores = (self._negative_entropy / sizes - entropy).exp()
        return Score(float(scores.mean()), float(scores.std(correction=0)))


class Inception(Measure):
    """The Inception Score of all samples."""

    name, meaning = "is", "Inception Score"
    needs = Needs(logits=True)
    titles: ClassVar[dict[str, str]] = {"inception_score": "Inception Score"}
    outcomes = frozenset({"deviation"})

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        assert setting.network is not None
        self._score = InceptionScore(setting.plan.samples, setting.network.outputs, setting.plan.splits)

    def add(self, seen: Seen) -> None:
        self._score.add(seen.logits)

    def result(self) -> list[Measurement]:
        mean, deviation = self._score.score()
        plan = self.setting.plan
        more = {"samples": plan.samples, "splits": plan.splits, "deviation": deviation, **self.setting.of_network()}
        return [Measurement("inception_score", mean, more, better="higher")]
