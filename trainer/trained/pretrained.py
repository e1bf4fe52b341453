"""A trained generator with all that its use takes: the sampler, class names, where it comes from.

In Python:

    generator = Generator.from_pretrained("exports/cats")        # a folder or URL that `python -m trainer.export` wrote
    images = generator.sample(["tabby", "lifeboat"], seed=1)     # [2, 3, 128, 128], in [-1, 1]
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from data_pipeline.errors import DataError
from data_pipeline.manifest.format import load_manifest
from trainer.checkpoint.names import committed
from trainer.foundation import keys
from trainer.foundation.errors import SettingError
from trainer.foundation.stores import Store
from trainer.methods.protocol import NO_NAMES, ClassNames, Sampler
from trainer.methods.sampling import ClassConditions, LatentSampler, Truncating, number_of
from trainer.trained.exports import (
    WEIGHTS_FILE,
    Described,
    describe_latent_sampler,
    describe_method,
    read_export,
    write_export,
)
from trainer.trained.sampling import CHUNK, device_of, samples_of

if TYPE_CHECKING:
    from trainer.trained.runs import Trained


@dataclass
class Generator:
    """A sampler whose networks are in evaluation mode, for use outside a training."""

    sampler: Sampler
    described: Described
    """How an export says it, see `trainer.trained.exports`."""
    classes: ClassNames = NO_NAMES
    """Names and identifiers of the classes; empty where they are not known."""
    training: dict[str, Any] = field(default_factory=dict)
    """Where the weights come from: iteration, moving average or not, sha256 of the checkpoint's state."""

    @classmethod
    def from_pretrained(cls, path: str, device: torch.device | str = "cpu") -> "Generator":
        """Load what `python -m trainer.export` wrote at `path`, a folder or an fsspec URL; raises CheckpointError."""
        sampler, described, classes, training = read_export(path)
        return cls(sampler, described, classes, training).to(device)

    def save_pretrained(self, path: str) -> None:
        """Write config.json and model.safetensors to `path`, a folder or an fsspec URL."""
        write_export(path, self.described, self.sampler.networks, self.classes, self.training)

    def to(self, device: torch.device | str) -> "Generator":
        """Move the networks; returns the generator itself."""
        for network in self.sampler.networks.values():
            network.to(device)
        return self

    @property
    def device(self) -> torch.device:
        return device_of(self.sampler)

    def truncated(self, bound: float) -> "Generator":
        """The same networks with less varied samples. Raises `SettingError` if its sampler has no truncation."""
        if not isinstance(self.sampler, Truncating):
            raise SettingError("--truncation: this generator's latents cannot be bounded; leave the option out")
        return replace(self, sampler=self.sampler.truncated(bound))

    def latents(self, condition: Tensor, count: int, seed: int, truncation: float | None = None) -> Tensor:
        """Latents [count, ...] of a condition: a function of the seed and the condition alone, the first n of more are the
        same.

        truncation: see the method's sampler. Raises `SettingError` if it has none.
        """
        sampler = self.sampler if truncation is None else self.truncated(truncation).sampler
        source = keys.generator(seed, "sample", replica=number_of(condition))
        return torch.cat([sampler.draw(source, 1) for _ in range(count)]).to(self.device)

    def make(
        self, latents: Tensor, conditions: Tensor, batch_size: int = CHUNK, batch_statistics: bool = False
    ) -> Tensor:
        """Samples [n, ...] for latents [n, ...] and conditions [n, ...], on the networks' device; images are in [-1, 1].

        batch_statistics: batch norm normalises with the current batch, not with the running statistics.
        """
        return samples_of(self.sampler, latents, conditions, batch_size, batch_statistics)

    def sample(
        self, classes: Sequence[str | int], count: int = 1, seed: int = 0, truncation: float | None = None
    ) -> Tensor:
        """`count` samples of each class (or of each condition that the method can read), one class after another.

        Images are [len(classes) * count, C, H, W] in [-1, 1]. Raises `SettingError` with the closest name.
        """
        chosen = torch.stack([self._condition(name) for name in classes])
        bounded = self if truncation is None else self.truncated(truncation)
        latents = torch.cat([bounded.latents(condition, count, seed) for condition in chosen])
        return bounded.make(latents, chosen.repeat_interleave(count, 0))

    def _condition(self, name: str | int) -> Tensor:
        """A whole number is a class's number, though there be a class of that name."""
        conditions = self.sampler.conditions
        if isinstance(name, int) and isinstance(conditions, ClassConditions):
            if not 0 <= name < conditions.count:
                raise SettingError(f"classes: there is no class {name}; give a number from 0 to {conditions.count - 1}")
            return torch.tensor(name)
        return conditions.parse(str(name))


def is_export(source: str) -> bool:
    """Whether the folder or URL holds an export alone, and no run's checkpoints."""
    return Store(source).exists(WEIGHTS_FILE) and not committed(source)


def open_generator(
    source: str, iteration: int | None = None, average: bool | None = None, device: torch.device | str = "cpu"
) -> Generator:
    """The generator of a run's folder (the newest or the given checkpoint) or of an exported folder, paths or URLs.

    A run that has checkpoints is a run, also where an export was written into its folder.

    average: the moving average or the plain weights of a run; None takes the average where there is one.
    """
    if is_export(source):
        if iteration is not None or average is not None:
            raise SettingError(f"RUN_OR_EXPORT: {source} is an export; a checkpoint can be chosen in a run alone")
        return Generator.from_pretrained(source, device)
    from trainer.trained.runs import load_trained  # an export is read without the trainer's configuration

    trained = load_trained(source, iteration, average)
    classes = _class_names(trained)
    sampler = trained.sampler(classes)
    training = {
        "iteration": trained.iteration,
        "moving_average": trained.averaged,
        "state_sha256": trained.state_sha256,
    }
    return Generator(sampler, _describe(trained, sampler), classes, training).to(device)


def _describe(trained: "Trained", sampler: Sampler) -> Described:
    """Version 1 where the sections `model` and `generator` are enough to build the sampler again, else version 2."""
    config = trained.config
    plain = type(sampler) is LatentSampler and type(sampler.conditions) is ClassConditions
    if plain and list(sampler.networks) == ["generator"] and config.generator is not None:
        return describe_latent_sampler(config.model, config.generator)
    from trainer.trained.runs import Recipe

    settings = Recipe.of(config).plain()
    return describe_method(settings.pop("objective"), settings, list(sampler.networks))


def _class_names(trained: "Trained") -> ClassNames:
    """From the checkpoint, else from the shards' manifest, where it can be reached; one per class of the model, or none."""
    info, config = trained.info, trained.config
    found = ClassNames(tuple(info.get("class_names") or ()), tuple(info.get("class_ids", ())))
    if not found.names:
        try:
            manifest = config.data.selected(load_manifest(config.data.shards))
        except DataError:
            return NO_NAMES
        found = ClassNames(manifest.class_names, tuple(entry.id for entry in manifest.classes))
    return found if len(found.names) == config.model.classes else NO_NAMES
