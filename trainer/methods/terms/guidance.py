"""The loss of a frozen classifier on generated images, added to a generator's loss for a range of iterations.

The projection paper's last experiment (Miyato & Koyama 2018, arXiv v1, appendix B, "following PPGN"): generator loss =
adversarial + weight x L_C, where L_C is the cross-entropy of a classifier pretrained on ILSVRC2012. It makes images
easier to recognise, for that classifier at least, and less varied. The paper's weight is not known.
"""

from collections.abc import Mapping
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from trainer.checkpoint.names import parse_commit_name
from trainer.classifiers import Classifier, ClassifierConfig
from trainer.foundation.errors import CheckpointError, SettingError
from trainer.methods.terms.term import Seen, Term, Value

PREFIX = "classifier_loss/"
"""What the state's tensors of the stage are called."""
DIGEST, REFERENCE, STOPPED_AT = f"{PREFIX}digest", f"{PREFIX}reference", f"{PREFIX}stopped_at"


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class ClassifierLossConfig:
    """The fine-tuning stage: which classifier's loss is added to the generator's, when, and how much of it."""

    classifier: ClassifierConfig
    """The guiding classifier, whose loss is minimised."""
    independent: ClassifierConfig | None = None
    """Another classifier, which only watches: what pleases the guiding one alone, it will not like."""
    weight: Annotated[float, Field(ge=0.0)] = 1.0
    """Factor of the cross-entropy (in nats, mean over images). The paper's is not known. 0: the stage is watched, nothing
    is added."""
    begin: Annotated[int, Field(ge=0)] = 400_000
    """The first iteration with the loss."""
    until: Annotated[int, Field(ge=1)] = 450_000
    """The first iteration that is again without it."""
    ramp: Annotated[int, Field(ge=0)] = 0
    """The weight rises linearly from 0 over so many iterations; 0: it is constant."""
    maximum_ms_ssim: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Stop rule: the loss is switched off for good once the mean MS-SSIM of pairs of one class is above this."""
    maximum_ms_ssim_rise: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    """Stop rule: the same, once it is by more than this above its value at `begin`."""
    watch_every: Annotated[int, Field(ge=1)] = 1_000
    """Iterations, counted from `begin`, between two measurements of accuracies and diversity (and applications of the
    stop rule)."""
    watch_samples: Annotated[int, Field(ge=2)] = 1_000
    """Generated images of one measurement: pairs of the same class, the classes in turn."""

    def __post_init__(self) -> None:
        if self.until <= self.begin:
            raise ValueError(
                f"classifier_loss.until: is {self.until}, but the stage begins at classifier_loss.begin = {self.begin}; set "
                "it to a later iteration"
            )
        if self.ramp > self.until - self.begin:
            raise ValueError(
                f"classifier_loss.ramp: is {self.ramp}, but the stage has {self.until - self.begin} iterations; set it to at "
                "most that"
            )


class ClassifierTerm(Term):
    """weight x cross-entropy of the classifier on the generator's images, in the generator's turns of the stage."""

    draws = False  # the classifier is frozen
    means_over_samples = True
    name = "classifier"

    def __init__(self, config: ClassifierLossConfig, classifier: Classifier, logit_of: Tensor | None) -> None:
        """`logit_of` [classes]: the logit of each of the data's classes; None: class n is logit n."""
        self.config, self.classifier, self.logit_of = config, classifier, logit_of

    def weight(self, player: str, iteration: int, update: int) -> float | None:
        return (weight_at(self.config, iteration) or None) if player == "generator" else None

    def value(self, player: str, seen: Seen, weight: float) -> Value:
        """The classifier sees the very images that the discriminator sees. Logs cross-entropy, accuracy and weight."""
        logits = self.classifier(seen.fake_images)
        targets = seen.fake_labels if self.logit_of is None else self.logit_of[seen.fake_labels]
        cross_entropy = F.cross_entropy(logits, targets)
        logged = {
            "classifier_loss": cross_entropy.detach(),
            "classifier_accuracy": (logits.detach().argmax(1) == targets).float().mean(),
            "classifier_weight": torch.full((), weight, device=logits.device),
        }
        return Value(weight * cross_entropy, logged)


def weight_at(config: ClassifierLossConfig, iteration: int) -> float:
    """The weight in the update of `iteration` (counted from 0), the stop rule aside; 0 outside the stage.

    With a ramp of r iterations it is weight x (t - begin + 1) / r, and `weight` from begin + r - 1 on.
    """
    if not config.begin <= iteration < config.until:
        return 0.0
    if config.ramp == 0:
        return config.weight
    return config.weight * min(1.0, (iteration - config.begin + 1) / config.ramp)


def check_classifier_loss(
    config: ClassifierLossConfig | None, *, classes: int, iterations: int, initialize_from: str | None
) -> None:
    """Raise ValueError, beginning with the setting, where the stage does not fit the rest of the experiment."""
    if config is None:
        return
    if classes == 0:
        raise ValueError(
            "classifier_loss: needs a class for every generated image, but model.classes is 0; leave the section out, or "
            "set model.classes"
        )
    if config.begin >= iterations:
        raise ValueError(
            f"classifier_loss.begin: is {config.begin}, but the run ends at run.iterations = {iterations}, so that the loss "
            "would never be on; set it to an earlier iteration, or leave the section out"
        )
    if initialize_from is None:
        return
    source = parse_commit_name(initialize_from, "run.initialize_from")
    if source.iteration is not None:
        problem = first_iteration_problem(config, source.iteration, initialize_from)
        if problem:
            raise ValueError(problem)


def first_iteration_problem(config: ClassifierLossConfig | None, iteration: int, source: str) -> str | None:
    """What is wrong with starting a fine-tuning run from another run's commit of `iteration`, if anything is."""
    if config is None or iteration == config.begin:
        return None
    run = parse_commit_name(source, "run.initialize_from").run
    return (
        f"run.initialize_from: {source} is at iteration {iteration}, but the stage begins at classifier_loss.begin = "
        f"{config.begin}; give {run}@{config.begin}, or set classifier_loss.begin to {iteration}"
    )


def check_first_iteration(config: ClassifierLossConfig | None, iteration: int, source: str) -> None:
    """Raise `SettingError` unless a fine-tuning run that starts from another run's commit starts where its stage does."""
    problem = first_iteration_problem(config, iteration, source)
    if problem:
        raise SettingError(problem)


def check_digest(marks: Mapping[str, Tensor], classifier: Classifier) -> None:
    """Raise `CheckpointError` if the checkpoint's stage was begun with other weights of the classifier."""
    if DIGEST not in marks:
        return
    before = bytes(marks[DIGEST].tolist()).hex()
    if before != classifier.digest:
        raise CheckpointError(
            f"classifier_loss.classifier: {classifier.description} has the sha256 {classifier.digest[:12]}..., but the run's "
            f"checkpoints were made with {before[:12]}...; give the weights that the stage began with, or choose another "
            "run.dir"
        )


def only_the_guiding_is_pleased(
    before: tuple[float, float], after: tuple[float, float], least: float = 0.05
) -> str | None:
    """A warning where the guiding classifier's accuracy rose by at least `least`, and the independent's by less than a third
    of that. Each pair: accuracy by the guiding and by the independent classifier, 0..1."""
    guiding, independent = after[0] - before[0], after[1] - before[1]
    if guiding < least or 3 * independent >= guiding:
        return None
    return (
        f"only the guiding classifier is pleased: its accuracy on generated images went from {before[0]:.1%} to "
        f"{after[0]:.1%}, the independent classifier's from {before[1]:.1%} to {after[1]:.1%}; the images fit one network "
        "rather than their classes (lower classifier_loss.weight, or stop earlier)"
    )


def describe(config: ClassifierLossConfig | None) -> list[str]:
    """One line for the dry run; none without the stage."""
    if config is None:
        return []
    law = f"weight {config.weight:g}" + (f", rising over {config.ramp:,} iterations" if config.ramp else "")
    rules = [
        f"above {config.maximum_ms_ssim:g}" if config.maximum_ms_ssim is not None else "",
        f"{config.maximum_ms_ssim_rise:g} above its first value" if config.maximum_ms_ssim_rise is not None else "",
    ]
    stop = " or ".join(rule for rule in rules if rule)
    return [
        f"iterations {config.begin:,} to {config.until:,}: loss of the classifier {config.classifier.name}, {law}"
        + (f"; off once the MS-SSIM within classes is {stop}" if stop else "")
    ]
