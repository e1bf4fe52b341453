"""CycleGAN (Zhu et al. 2017): two generators between the images of two sources that are not paired, two discriminators.

The source `data` is domain a, the source `b` is domain b. `a_to_b` and `b_to_a` are one player, as in the official PyTorch
code; `discriminator_a` judges images of a, `discriminator_b` those of b. (There "D_A" judges b.)

Shapes: n images of one replica.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass as plain_dataclass
from dataclasses import field, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from trainer.foundation.errors import SettingError
from trainer.foundation.keys import Keys
from trainer.methods.pools import PoolRule, check_pool, empty_pool, query_pool
from trainer.methods.problem import Problem
from trainer.methods.protocol import NO_NAMES, ClassNames, Conditions, Networks, Shards, Tensors, Turn
from trainer.methods.sampling import PictureConditions, resized
from trainer.models import ModelConfig, check_signature
from trainer.models.layers import at_least_float32

GENERATORS, DISCRIMINATORS = "generators", "discriminators"
SOURCES = {"a": "data", "b": "b"}
"""The source of each domain."""
A_TO_B, B_TO_A, JUDGE_A, JUDGE_B = "a_to_b", "b_to_a", "discriminator_a", "discriminator_b"
_JOINT = ((GENERATORS, (A_TO_B, B_TO_A)), (DISCRIMINATORS, (JUDGE_B, JUDGE_A)))
_ALTERNATING = (
    (GENERATORS, (A_TO_B,)),
    (DISCRIMINATORS, (JUDGE_B,)),
    (GENERATORS, (B_TO_A,)),
    (DISCRIMINATORS, (JUDGE_A,)),
)
_WAYS = {A_TO_B: ("a", "b"), B_TO_A: ("b", "a")}


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class CycleGANConfig:
    """Settings of the game; the defaults are the official PyTorch code's. `schedule.discriminator_steps`,
    `schedule.generator_first` and `batch.generated_per_replica` are not looked at."""

    second_derivatives: ClassVar[bool] = False

    name: Literal["cyclegan"] = "cyclegan"
    cycle_a: Annotated[float, Field(ge=0)] = 10.0
    """Weight of |b_to_a(a_to_b(a)) - a|, the mean over pixels (lambda in Eq. 3)."""
    cycle_b: Annotated[float, Field(ge=0)] = 10.0
    """Weight of |a_to_b(b_to_a(b)) - b|."""
    identity: Annotated[float, Field(ge=0)] = 0.5
    """Weight of |a_to_b(b) - b| and |b_to_a(a) - a|, times `cycle_b` and `cycle_a`. The paper has it for paintings and
    photographs alone, the official code everywhere; 0: off."""
    pool: Annotated[int, Field(ge=0)] = 50
    """Past images of each domain and replica that the discriminators also see; 0: they see the newest alone."""
    discriminator_weight: Annotated[float, Field(gt=0)] = 0.5
    """Of the discriminators' losses: 0.5 in the PyTorch code, 1 in the Lua code."""
    order: Literal["joint", "alternating"] = "joint"
    """`joint`: both generators in one update, then both discriminators (PyTorch). `alternating`: a_to_b, discriminator_b,
    b_to_a, discriminator_a, each with an update (Lua)."""
    load_size: Annotated[int, Field(ge=4)] | None = None
    """Real images are resized to this side in training, then cut to `model.resolution` at a random place; null: they are only
    cut, where they are larger. The papers: 286, then 256."""

    def check(self, problem: Problem) -> None:
        """Raise ValueError, beginning with the setting, where the networks or the sizes do not fit."""
        check_signature("generator", problem.generator, "image", self.name)
        check_signature("discriminator", problem.discriminator, "image", self.name)
        if problem.model.classes:
            raise ValueError(f"model.classes: is {problem.model.classes}, but {self.name} has no classes; set it to 0")
        if self.load_size is not None and self.load_size < problem.model.resolution:
            raise ValueError(
                f"objective.load_size: is {self.load_size}, less than the {problem.model.resolution} px of model.resolution "
                "that are cut out; set it to that or more"
            )
        if problem.terms:
            raise ValueError(
                f"classifier_loss: is a section, but {self.name} has no classes to be guided to; leave it out"
            )

    def build(self, problem: Problem) -> "CycleGAN":
        """The game."""
        return CycleGAN(self, problem)


class CycleGAN:
    """Least squares, cycle and identity. An iteration reads its images once; every turn of it sees the same.

    So memory has the iteration's images: real ones, and those that the generators made before they moved. The
    discriminators learn from these, through the pools.
    """

    players: Mapping[str, Sequence[str]] = {GENERATORS: (A_TO_B, B_TO_A), DISCRIMINATORS: (JUDGE_A, JUDGE_B)}
    shown = GENERATORS
    changes: Sequence[int] = ()
    draws = False

    def __init__(self, config: CycleGANConfig, problem: Problem) -> None:
        self.config, self.problem = config, problem
        self.count = problem.batch.real_per_replica
        self.order = _JOINT if config.order == "joint" else _ALTERNATING

    def build(self, network: str) -> nn.Module:
        """The network of this name."""
        assert self.problem.generator is not None and self.problem.discriminator is not None  # noqa: PT018
        if network in _WAYS:
            return self.problem.generator.build(self.problem.model)
        return self.problem.discriminator.build(self.problem.model)

    def check(self, sources: Mapping[str, Shards]) -> None:
        """Raise `SettingError` unless both sources have images of a size and kind that the networks take."""
        model = self.problem.model
        for source in SOURCES.values():
            url, manifest = sources[source]
            section = source if source == "data" else f"sources.{source}"
            if manifest.channels != model.image_channels:
                raise SettingError(
                    f"model.image_channels: is {model.image_channels}, but the shards of {section} in {url} hold images with "
                    f"{manifest.channels}; both domains need that many: make the shards again, with or without --grey"
                )
            if self.config.load_size is None and manifest.resolution < model.resolution:
                raise SettingError(
                    f"model.resolution: is {model.resolution}, but the shards of {section} in {url} hold images of "
                    f"{manifest.resolution} px; set it to at most {manifest.resolution}, or set objective.load_size"
                )

    def turns(self, iteration: int) -> list[Turn]:
        """The turns of `order`; the first one reads."""
        n, config = self.count, self.config
        terms = {"cycle_a": config.cycle_a, "cycle_b": config.cycle_b}
        terms |= {"identity_a": config.cycle_a * config.identity, "identity_b": config.cycle_b * config.identity}
        on = {name: weight for name, weight in terms.items() if weight}
        return [
            Turn(
                player,
                number,
                reads=dict.fromkeys(SOURCES.values(), n) if number == 0 else {},
                made=n,
                terms=on if player == GENERATORS else {},
            )
            for number, (player, _) in enumerate(self.order)
        ]

    def draw(self, turn: Turn, keys: Keys, real: Mapping[str, Tensors]) -> dict[str, Tensor]:
        """In the first turn `real_a`, `real_b` [n, C, H, W]; in a discriminators' turn what the pools do with the fakes."""
        if turn.number == 0:
            return {
                f"real_{domain}": self._cut(real[source]["image"], keys.generator(f"cut of {domain}"))
                for domain, source in SOURCES.items()
            }
        if turn.player == GENERATORS or not self.config.pool:
            return {}
        decided = {}
        for network in self.order[turn.number][1]:
            rule = self._rule(network[-1], keys.seed, keys.replica)
            for name, value in rule.decisions(keys.iteration * self.count, self.count).items():
                decided[f"{name}_{network[-1]}"] = value
        return decided

    def _cut(self, images: Tensor, source: torch.Generator) -> Tensor:
        """Resized to `load_size`, and of each image a random square part of the networks' size."""
        side, load = self.problem.model.resolution, self.config.load_size or images.shape[-1]
        images = resized(images, load)
        places = torch.randint(load - side + 1, (len(images), 2), generator=source).tolist()
        return torch.stack([image[:, y : y + side, x : x + side] for image, (y, x) in zip(images, places, strict=True)])

    def _rule(self, domain: str, seed: int, replica: int) -> PoolRule:
        return PoolRule(self.config.pool, seed, domain, replica)

    def ahead(self, turn: Turn, networks: Networks, draw: Tensors) -> dict[str, Tensor]:
        """Nothing: the generators' turn leaves its images in memory."""
        return {}

    def loss(self, turn: Turn, networks: Networks, draw: Tensors, memory: Tensors) -> tuple[dict[str, Tensor], Tensors]:
        """The loss of those networks of the mover whose turn it is."""
        movers = self.order[turn.number][1]
        if turn.player == GENERATORS:
            return self._of_generators(turn, networks, {**memory, **draw}, movers)
        return self._of_discriminators(networks, draw, dict(memory), movers)

    def _of_generators(
        self, turn: Turn, networks: Networks, known: dict[str, Tensor], movers: Sequence[str]
    ) -> tuple[dict[str, Tensor], Tensors]:
        """E (D_b(G(a)) - 1)^2 + |F(G(a)) - a| + |G(b) - b|, and the same from b to a (Eq. 1 to 3, section 5.2)."""
        resting = [networks[name] for name in _WAYS if name not in movers]
        real = {domain: known[f"real_{domain}"] for domain in SOURCES}
        parts: dict[str, Tensor] = {}
        with constant(*resting):
            fake = {there: networks[name](real[here]) for name, (here, there) in _WAYS.items()}
            again = {here: networks[_other(name)](fake[there]) for name, (here, there) in _WAYS.items()}
            for name in movers:
                there = _WAYS[name][1]
                parts[f"adversarial_{there}"] = squares(networks[f"discriminator_{there}"](fake[there]), 1.0)
            for domain in SOURCES:
                if f"cycle_{domain}" in turn.terms:
                    parts[f"cycle_{domain}"] = (again[domain] - real[domain]).abs().mean()
            for name in movers:
                there = _WAYS[name][1]
                if f"identity_{there}" in turn.terms:
                    parts[f"identity_{there}"] = (networks[name](real[there]) - real[there]).abs().mean()
        loss = torch.stack([turn.terms.get(name, 1.0) * value for name, value in parts.items()]).sum()
        for name in movers:
            there = _WAYS[name][1]
            known[f"fake_{there}"] = fake[there].detach()
        remembered = {name: value for name, value in known.items() if name in self._names}
        return {"loss": loss, **{name: value.detach() for name, value in parts.items()}}, remembered

    def _of_discriminators(
        self, networks: Networks, draw: Tensors, memory: dict[str, Tensor], movers: Sequence[str]
    ) -> tuple[dict[str, Tensor], Tensors]:
        """E (D(x) - 1)^2 + E D(G(.))^2 of each that moves, times `discriminator_weight`."""
        losses: list[Tensor] = []
        found: dict[str, Tensor] = {}
        for network in movers:
            domain = network[-1]
            real, fake = memory[f"real_{domain}"], memory[f"fake_{domain}"]
            if self.config.pool:
                pool = {name: memory[f"pool_{name}_{domain}"] for name in ("images", "queries")}
                decided = {name: draw[f"{name}_{domain}"] for name in ("what", "slot", "query")}
                fake, pool = query_pool(pool, fake, decided)
                memory |= {f"pool_{name}_{domain}": value for name, value in pool.items()}
            of_real, of_fake = networks[network](real), networks[network](fake)
            losses.append(self.config.discriminator_weight * (squares(of_real, 1.0) + squares(of_fake, 0.0)))
            found |= {
                f"adversarial_{domain}": losses[-1].detach(),
                f"real_score_{domain}": of_real.detach().mean(),
                f"fake_score_{domain}": of_fake.detach().mean(),
            }
        return {"loss": torch.stack(losses).sum(), **found}, memory

    @property
    def _names(self) -> set[str]:
        kinds = ("real", "fake", *(("pool_images", "pool_queries") if self.config.pool else ()))
        return {f"{kind}_{domain}" for kind in kinds for domain in SOURCES}

    def memory(self, replica: int) -> dict[str, Tensor]:
        """The iteration's images `real_a`, `fake_a`, ... [n, C, H, W], and both pools."""
        model = self.problem.model
        shape = (model.image_channels, model.resolution, model.resolution)
        found = {f"{kind}_{domain}": torch.zeros(self.count, *shape) for kind in ("real", "fake") for domain in SOURCES}
        if self.config.pool:
            for domain in SOURCES:
                found |= {f"pool_{name}_{domain}": value for name, value in empty_pool(self.config.pool, shape).items()}
        return found

    def check_memory(self, seed: int, iteration: int, replica: int, memory: Tensors) -> None:
        """Raise `CheckpointError` unless each slot of the pools was filled by the query that the keys say."""
        for domain in SOURCES if self.config.pool else ():
            rule = self._rule(domain, seed, replica)
            check_pool(rule, iteration * self.count, memory[f"pool_queries_{domain}"])

    def sampler(self, networks: Mapping[str, nn.Module], classes: ClassNames = NO_NAMES) -> "TranslationSampler":
        """Images of one domain as images of the other."""
        return TranslationSampler(networks, self.problem.model)


@plain_dataclass
class TranslationSampler:
    """Images of the source `data` as images of the source `b`, or the other way round. Nothing is drawn."""

    networks: Mapping[str, nn.Module]
    model: ModelConfig
    direction: str = A_TO_B
    output: str = "image"
    directions: tuple[str, ...] = (A_TO_B, B_TO_A)
    conditions: Conditions = field(init=False)
    channels: int = field(init=False)

    def __post_init__(self) -> None:
        self.conditions = self._pictures = PictureConditions(self.model, SOURCES[_WAYS[self.direction][0]])
        self.channels = self.model.image_channels

    def towards(self, direction: str) -> "TranslationSampler":
        """The same networks, with images of this direction's domain."""
        other = replace(self, direction=direction)
        if self._pictures.real is not None:
            other._pictures.bind(self._pictures.real)
        return other

    def draw(self, source: torch.Generator, count: int) -> Tensor:
        """Nothing: [count, 0]."""
        return torch.empty(count, 0)

    def sample(self, latents: Tensor, conditions: Tensor) -> Tensor:
        """The images [n, C, H, W], translated."""
        return at_least_float32(self.networks[self.direction](conditions))

    def remake(self, picture: Tensor, source: torch.Generator) -> Tensor:
        """A picture [C, H, W], translated. Where a side is no multiple of 4, its edge is mirrored for the networks alone."""
        height, width = picture.shape[-2:]
        if min(height, width) < 8:
            raise SettingError(f"{width}x{height} px, too small for this generator; give pictures of 8 pixels or more")
        padded = F.pad(picture[None], (0, -width % 4, 0, -height % 4), mode="reflect")
        return self.sample(torch.empty(1, 0), padded)[0, :, :height, :width]

    def partners(self, numbers: range) -> Tensor:
        """The images of the other domain with these numbers: true partners where the sources are pairs, in one order."""
        other = self.towards(_other(self.direction))
        return other._pictures.in_turn(numbers)

    def labels(self, numbers: range) -> Tensor:
        """The classes of the images of domain a."""
        return self._pictures.field("class", numbers, SOURCES["a"])

    def baselines(self, conditions: Tensor, side: int | None = None) -> dict[str, Tensor]:
        """The images as they are."""
        return {"identity": conditions if side is None else resized(conditions, side)}

    def there_and_back(self, conditions: Tensor, noise: Tensor) -> Tensor:
        """The images, translated, with noise, and translated back."""
        made = self.sample(noise, conditions) + noise
        return at_least_float32(self.networks[_other(self.direction)](made.clamp(-1, 1)))

    def strips(self, count: int) -> tuple[Tensor, list[str]]:
        """Rows of both domains: the image, translated, translated back, and through the generator that should leave it."""
        rows, names = [], []
        device = next(self.networks[A_TO_B].parameters()).device
        for way, (here, there) in _WAYS.items():
            images = self.towards(way).conditions.evenly(count // 2).to(device)
            made = self.networks[way](images)
            back = _other(way)
            columns = [images, made, self.networks[back](made), self.networks[back](images)]
            rows.append(torch.stack([at_least_float32(column) for column in columns], 1))
            names += [f"{here}, in {there}, back, same"] * len(images)
        return torch.cat(rows), names


def squares(scores: Tensor, wanted: float) -> Tensor:
    """E (scores - wanted)^2: least squares (Mao et al. 2017)."""
    return (scores - wanted).square().mean()


def _other(name: str) -> str:
    return B_TO_A if name == A_TO_B else A_TO_B


@contextmanager
def constant(*networks: Any) -> Iterator[None]:
    """Gradients pass through these networks of the mover, and do not reach their parameters."""
    parameters = [parameter for network in networks for parameter in network.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
