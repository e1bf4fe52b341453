"""The fine-tuning stage inside a run: the classifier's term, what is measured meanwhile, when it is stopped.

Everything is a function of (settings, seed, iteration, state): what the stage has to remember, its first measurement and
the iteration at which the stop rule switched it off, are tensors of the state, and so of every checkpoint.
"""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from data_pipeline.manifest.format import Manifest
from trainer.classifiers import Classifier, build_classifier, check_class_map
from trainer.config import Config
from trainer.foundation.errors import SettingError
from trainer.methods.protocol import Sampler, Turn
from trainer.methods.terms.guidance import (
    DIGEST,
    REFERENCE,
    STOPPED_AT,
    ClassifierLossConfig,
    ClassifierTerm,
    check_digest,
    only_the_guiding_is_pleased,
)
from trainer.methods.terms.term import Term
from trainer.metrics.watched import Watched, measure
from trainer.processes.launch import Launch, share_object
from trainer.telemetry.board import Telemetry
from trainer.training.state import State

logger = logging.getLogger("menagerie")


class ClassifierStage:
    """The stage of one run; without `classifier_loss` in the settings it has no term and watches nothing.

    Raises `SettingError` where classifier and data do not fit.
    """

    def __init__(self, config: Config, manifest: Manifest, launch: Launch) -> None:
        self.config, self.launch = config, launch
        self.terms: tuple[Term, ...] = ()
        """What the method takes into its loss."""
        self.settings: ClassifierLossConfig | None = config.classifier_loss
        if self.settings is None:
            return
        name = "classifier_loss.classifier"
        self.guiding = build_classifier(self.settings.classifier, launch.device, name)
        self.guiding_map = _to(check_class_map(self.guiding, manifest, name), launch)
        self.terms = (ClassifierTerm(self.settings, self.guiding, self.guiding_map),)
        self.independent: Classifier | None = None
        self.independent_map: Tensor | None = None
        if self.settings.independent is not None:
            name = "classifier_loss.independent"
            self.independent = build_classifier(self.settings.independent, launch.device, name)
            self.independent_map = _to(check_class_map(self.independent, manifest, name), launch)
            if self.independent.digest == self.guiding.digest:
                raise SettingError(
                    f"{name}: has the weights of the guiding classifier, and would judge its own work; give another "
                    "classifier, or leave it out"
                )
        elif launch.is_main:
            logger.warning(
                "classifier_loss.independent: is not set, so nothing tells whether the images please more than the "
                "guiding classifier"
            )

    def resume(self, state: State) -> None:
        """Raise `CheckpointError` if the state comes from a stage with another classifier."""
        if self.settings is not None:
            check_digest(state.marks, self.guiding)

    def applied(self, turns: Sequence[Turn], state: State) -> list[Turn]:
        """The turns, without the classifier's term once the stop rule has switched it off."""
        off = [term.name for term in self.terms] if STOPPED_AT in state.marks else []
        return [turn.without(*off) for turn in turns]

    def watch(self, iteration: int, state: State, sampler: Sampler, telemetry: Telemetry | None, *, new: bool) -> None:
        """Where one is due: measure, apply the stop rule, tell. Every process calls it, before the state is saved.

        `new`: whether the iteration has not been reached before (at the run's start all this stands in the checkpoint).
        The main process measures, so the figures do not depend on the number of processes.
        """
        settings, marks = self.settings, state.marks
        if settings is None or not settings.begin <= iteration <= settings.until:
            return
        first = REFERENCE not in marks
        at_end = iteration in (settings.until, self.config.run.iterations)
        due = (iteration - settings.begin) % settings.watch_every == 0 or at_end
        if not (first or (new and due)):
            return
        found = share_object(self.launch, self._measure(sampler) if self.launch.is_main else None)
        assert found is not None
        if first:
            marks[DIGEST] = torch.tensor(list(bytes.fromhex(self.guiding.digest)), dtype=torch.uint8)
            independent = -1.0 if found.independent_accuracy is None else found.independent_accuracy
            figures = [found.ms_ssim, found.guiding_accuracy, independent]
            marks[REFERENCE] = torch.tensor(figures, dtype=torch.float64)
        reference = marks[REFERENCE].tolist()
        reason = None if STOPPED_AT in marks else self._stop(settings, found.ms_ssim, reference[0])
        if reason:
            marks[STOPPED_AT] = torch.tensor(iteration)
        if telemetry:
            self._tell(telemetry, iteration, found, reference, reason)

    def _measure(self, sampler: Sampler) -> Watched:
        assert self.settings is not None
        return measure(
            sampler,
            self.config.run.seed,
            self.settings.watch_samples,
            (self.guiding, self.guiding_map),
            (self.independent, self.independent_map) if self.independent else None,
            self.launch.device,
        )

    @staticmethod
    def _stop(settings: ClassifierLossConfig, ms_ssim: float, first: float) -> str | None:
        """Why the stop rule ends the stage here, if it does."""
        if settings.maximum_ms_ssim is not None and ms_ssim > settings.maximum_ms_ssim:
            return f"more than classifier_loss.maximum_ms_ssim = {settings.maximum_ms_ssim:g}"
        rise = settings.maximum_ms_ssim_rise
        if rise is not None and ms_ssim - first > rise:
            return (
                f"more than classifier_loss.maximum_ms_ssim_rise = {rise:g} above the {first:.3f} of the stage's start"
            )
        return None

    @staticmethod
    def _tell(telemetry: Telemetry, iteration: int, found: Watched, reference: list[float], reason: str | None) -> None:
        values = {
            "finetuning/guiding_accuracy": found.guiding_accuracy,
            "finetuning/guiding_loss": found.guiding_loss,
            "finetuning/ms_ssim": found.ms_ssim,
        }
        line = f"iteration {iteration:,}: generated images: accuracy by the guiding classifier {found.guiding_accuracy:.1%}"
        if found.independent_accuracy is not None:
            values["finetuning/independent_accuracy"] = found.independent_accuracy
            line += f", by the independent one {found.independent_accuracy:.1%}"
        telemetry.scalars(iteration, values)
        telemetry.say(f"{line}; MS-SSIM within classes {found.ms_ssim:.3f}")
        if found.independent_accuracy is not None:
            before, after = (reference[1], reference[2]), (found.guiding_accuracy, found.independent_accuracy)
            warning = only_the_guiding_is_pleased(before, after)
            if warning:
                telemetry.say(f"warning: {warning}")
        if reason:
            telemetry.say(
                f"warning: the classifier's loss is off from iteration {iteration:,} on: the MS-SSIM within classes is "
                f"{found.ms_ssim:.3f}, {reason}"
            )


def _to(chosen: Tensor | None, launch: Launch) -> Tensor | None:
    return None if chosen is None else chosen.to(launch.device)
