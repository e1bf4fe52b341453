"""Is the training well? Signs of collapse and of an unbalanced game, with a named warning for each.

- `collapse`: MS-SSIM of a class turns up sharply, or its images are all but the same. "Intra-class MS-SSIM ... increases
  sharply" is how the AC-GAN paper recognises collapse (Odena et al. 2017, section 4.2, figure 5).
- `score_gap`: the discriminator's scores of real and generated images are further apart than in the run so far.
- `singular_value`: the largest singular value of a layer has grown fast (the generator's first, in BigGAN's collapse; Brock
  et al. 2019, section 4).
- `gradient_norm`: a player's gradient is many times its usual size.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trainer.models.layers import normalise

TURN_UP = 0.25
"""A class is reported whose MS-SSIM lies so far above its lowest value so far (which early training, all alike, is not)."""
ALIKE = 0.6
"""... or that has gone this share of the way from the real images' MS-SSIM (or, if unknown, from 0) to 1."""
HISTORY = 20
GROWTH = {"score_gap": 4.0, "singular_value": 2.0, "gradient_norm": 20.0}
"""How many times the median of the last 20 values is too much."""
_POWER_STEPS = 8


class Warned(NamedTuple):
    """A warning: its name, and a sentence."""

    name: str
    text: str

    def line(self) -> str:
        """For a status line."""
        return f"WARNING {self.name}: {self.text}"


class CollapseWatch:
    """Follows MS-SSIM per class over iterations."""

    def __init__(self, class_names: Sequence[str], real: Tensor | None = None) -> None:
        self.class_names = class_names
        self.real = real
        """MS-SSIM of real images, [classes], where it is known."""
        self._lowest: Tensor | None = None

    def look(self, values: Tensor) -> Warned | None:
        """The next MS-SSIM values [classes], in the order of iterations; a warning if a class collapses."""
        values = values.double()
        floor = torch.zeros_like(values) if self.real is None else self.real.double().nan_to_num(0.0)
        alike = values >= floor + ALIKE * (1 - floor)
        turned = torch.zeros_like(alike)
        if self._lowest is not None:
            turned = values - torch.maximum(self._lowest, floor) >= TURN_UP
        self._lowest = values if self._lowest is None else torch.fmin(self._lowest, values)
        found = (alike | turned).nonzero().flatten().tolist()
        if not found:
            return None
        worst = max(found, key=lambda label: float(values[label]))
        more = f" and {len(found) - 1} more of {len(values)} classes" if len(found) > 1 else ""
        how = "has turned up sharply" if turned[worst] else "is near 1"
        return Warned(
            "collapse",
            f"MS-SSIM of {self.class_names[worst]}{more} {how} ({float(values[worst]):.2f}): its images are alike",
        )


def largest_singular_value(weight: Tensor) -> float:
    """Of a weight [O, ...] as a matrix [O, I], by power iteration from a fixed vector: a lower bound, close after 8 steps."""
    matrix = weight.detach().float().flatten(1)
    u = normalise(torch.ones(matrix.shape[0], device=matrix.device))
    for _ in range(_POWER_STEPS):
        v = normalise(matrix.t() @ u)
        u = normalise(matrix @ v)
    return float(u @ (matrix @ v))


def singular_values(module: nn.Module) -> dict[str, float]:
    """The largest one of each convolution's and linear layer's weight, by parameter name.

    Of the weights as they are stored: a spectrally normalised layer divides by this value, so its growth tells how far
    the weight drifts, not how steep the layer is.
    """
    weights = {name: p for name, p in module.named_parameters() if name.endswith("weight") and p.dim() in (2, 4)}
    return {
        name.removesuffix(".weight"): largest_singular_value(p) for name, p in weights.items() if min(p.shape[:2]) > 1
    }


def gradient_norm(module: nn.Module) -> float | None:
    """Euclidean norm over all parameters' last gradients; None where the strategy does not keep them."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    if not gradients:
        return None
    return float(torch.stack([torch.linalg.vector_norm(g.float()) for g in gradients]).norm())


class HealthWatch:
    """Scalars of the players at every report, and warnings where one of them grows far beyond its earlier values."""

    def __init__(self, players: Mapping[str, nn.Module]) -> None:
        self.players = players
        self._past: dict[str, deque[float]] = {}

    @torch.no_grad()
    def scalars(self, real_score: float | None = None, fake_score: float | None = None) -> dict[str, float]:
        """For TensorBoard, under `health/`; the scores are the discriminator's means over the last iterations."""
        values: dict[str, float] = {}
        if real_score is not None and fake_score is not None:
            values["health/score_gap"] = real_score - fake_score
        for player, module in self.players.items():
            norm = gradient_norm(module)
            if norm is not None:
                values[f"health/gradient_norm/{player}"] = norm
            sizes = singular_values(module)
            if sizes:
                values[f"health/singular_value/{player}/largest"] = max(sizes.values())
                *_, last = sizes
                first = next(iter(sizes))
                values[f"health/singular_value/{player}/first ({first})"] = sizes[first]
                values[f"health/singular_value/{player}/last ({last})"] = sizes[last]
        return values

    def warnings(self, values: Mapping[str, float]) -> list[Warned]:
        """What is unusual in the next values of `scalars`, compared with the (up to 20) before; needs 5 of them."""
        found = []
        for name, value in values.items():
            kind = name.split("/")[1]
            past = self._past.setdefault(name, deque(maxlen=HISTORY))
            usual = sorted(past)[len(past) // 2] if len(past) >= 5 else math.inf
            # Values near 0 (a gap, a gradient that has just begun) are no yardstick.
            usual = max(usual, 0.25 if kind == "score_gap" else 1e-3)
            if math.isfinite(usual) and value > GROWTH[kind] * usual:
                found.append(Warned(kind, f"{name.removeprefix('health/')} is {value:.3g}, it was {usual:.3g} before"))
            past.append(value)
        return found
