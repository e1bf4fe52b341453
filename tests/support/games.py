"""Small games for tests: a method built from its settings, and its losses for a draw that the test gives."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from trainer.methods.adversarial import AdversarialConfig
from trainer.methods.problem import MethodConfig, Problem
from trainer.methods.protocol import Method, Turn
from trainer.methods.schedule import BatchConfig, ScheduleConfig
from trainer.methods.terms.term import Term
from trainer.models import ModelConfig
from trainer.models.resnet import ResNetDiscriminatorConfig, ResNetGeneratorConfig

Draw = dict[str, Tensor]


def problem(model: ModelConfig | None = None, terms: tuple[Term, ...] = (), **settings: Any) -> Problem:
    """A problem with defaults for what the test does not care about."""
    settings.setdefault("generator", ResNetGeneratorConfig())
    settings.setdefault("discriminator", ResNetDiscriminatorConfig())
    settings.setdefault("batch", BatchConfig())
    settings.setdefault("schedule", ScheduleConfig())
    return Problem(model or ModelConfig(resolution=32, classes=3), terms=terms, **settings)


def method_of(config: MethodConfig | None = None, terms: tuple[Term, ...] = (), **settings: Any) -> Method:
    """The method of these settings; the hinge game without any."""
    return (config or AdversarialConfig()).build(problem(terms=terms, **settings))


def turn_of(method: Method, player: str, iteration: int = 0) -> Turn:
    """The player's first turn of an iteration."""
    return next(turn for turn in method.turns(iteration) if turn.player == player)


def losses(
    method: Method, player: str, networks: Mapping[str, Callable[..., Any]], draw: Draw, iteration: int = 0
) -> dict[str, Tensor]:
    """The named losses of the player's first turn, with what the others make of the draw before."""
    turn = turn_of(method, player, iteration)
    others = {name: network for name, network in networks.items() if name not in method.players[player]}
    with torch.no_grad():
        made = method.ahead(turn, others, draw)
    return method.loss(turn, networks, {**draw, **made}, {})[0]


def draw_of(
    latents: Tensor, labels: Tensor, real_images: Tensor | None = None, real_labels: Tensor | None = None
) -> Draw:
    """One replica's draw by the names of the adversarial game."""
    draw = {"latents": latents, "labels": labels}
    if real_images is not None and real_labels is not None:
        draw |= {"real_images": real_images, "real_labels": real_labels}
    return draw
