"""A trained generator with all that its use takes: settings, class names, where it comes from.

In Python:

    generator = Generator.from_pretrained("exports/cats")        # a folder or URL that `python -m trainer.export` wrote
    images = generator.sample(["tabby", "lifeboat"], seed=1)     # [2, 3, 128, 128], in [-1, 1]
"""

import contextlib
import difflib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from data_pipeline.errors import DataError
from data_pipeline.manifest.format import load_manifest
from data_pipeline.reading.selection import select_classes
from trainer.foundation import keys
from trainer.foundation.errors import CheckpointError, SettingError
from trainer.foundation.stores import Store
from trainer.models import GeneratorConfig, ModelConfig, build_generator
from trainer.models.layers import BatchNorm2d

if TYPE_CHECKING:
    from trainer.trained.runs import TrainedGenerator

FORMAT, VERSION = "menagerie-generator", 1
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


@dataclass
class Generator:
    """A generator in evaluation mode."""

    module: nn.Module
    model: ModelConfig
    config: GeneratorConfig
    class_names: tuple[str, ...] = ()
    """One per class; empty where they are not known."""
    class_ids: tuple[str, ...] = ()
    """The classes' identifiers in the data (WordNet ids for ImageNet); empty where they are not known."""
    training: dict[str, Any] = field(default_factory=dict)
    """Where the weights come from: iteration, moving average or not, sha256 of the checkpoint's state."""

    @classmethod
    def from_pretrained(cls, path: str, device: torch.device | str = "cpu") -> "Generator":
        """Load what `python -m trainer.export` wrote at `path`, a folder or an fsspec URL; raises CheckpointError."""
        store = Store(path)
        try:
            described = json.loads(store.get(CONFIG_FILE))
            weights = safetensors.torch.load(store.get(WEIGHTS_FILE))
            if described["format"] != FORMAT or described["version"] != VERSION:
                raise ValueError(f"its format is {described['format']} {described['version']}")
            model = TypeAdapter(ModelConfig).validate_python(described["model"])
            config: GeneratorConfig = TypeAdapter(GeneratorConfig).validate_python(described["generator"])
            module = build_generator(config, model)
            module.load_state_dict(weights)
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{path}: is no exported generator, {CONFIG_FILE} or {WEIGHTS_FILE} is missing ({error}); "
                "give a folder that `python -m trainer.export` wrote"
            ) from None
        except (ValueError, KeyError, TypeError, RuntimeError, ValidationError, safetensors.SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"{path}: cannot be read as an exported generator ({reason}); export it again"
            ) from None
        return cls(
            module.to(device).eval().requires_grad_(False),
            model,
            config,
            tuple(described["class_names"]),
            tuple(described["class_ids"]),
            described["training"],
        )

    def save_pretrained(self, path: str) -> None:
        """Write config.json and model.safetensors to `path`, a folder or an fsspec URL."""
        described = {
            "format": FORMAT,
            "version": VERSION,
            "model": TypeAdapter(ModelConfig).dump_python(self.model, mode="json"),
            "generator": TypeAdapter(GeneratorConfig).dump_python(self.config, mode="json"),
            "class_names": list(self.class_names),
            "class_ids": list(self.class_ids),
            "training": self.training,
        }
        state = {name: value.detach().cpu().contiguous() for name, value in self.module.state_dict().items()}
        store = Store(path)
        store.put(WEIGHTS_FILE, safetensors.torch.save(state, metadata={"format": "pt"}))
        store.put(CONFIG_FILE, (json.dumps(described, indent=2, ensure_ascii=False) + "\n").encode())

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def label(self, name: str | int) -> int:
        """The number of the class called `name`: its name, a comma-separated part of it, its identifier, or its number.

        Raises SettingError with the closest name.
        """
        number = _number(str(name))
        if number is not None and 0 <= number < max(self.model.classes, 1):
            return number
        if number is not None:
            raise SettingError(f"classes: there is no class {number}; give a number from 0 to {self.model.classes - 1}")
        asked = str(name).strip().casefold()
        spoken = [[entry.casefold(), *_parts(entry)] for entry in self.class_names]
        for found in (
            [i for i, entry in enumerate(self.class_ids) if entry.casefold() == asked],
            [i for i, names in enumerate(spoken) if names[0] == asked],
            [i for i, names in enumerate(spoken) if asked in names],
        ):
            if len(found) == 1:
                return found[0]
            if found:
                raise SettingError(
                    f"classes: {str(name)!r} names the classes {' and '.join(map(str, found))}; give the number"
                )
        if not self.class_names:
            raise SettingError(f"classes: {str(name)!r} cannot be looked up, no class names are known; give the number")
        close = difflib.get_close_matches(asked, [n for names in spoken for n in names], 1, 0.5)
        advice = f"did you mean {close[0]!r}?" if close else f"the first are {', '.join(self.class_names[:5])}"
        raise SettingError(f"classes: there is no class {str(name)!r}; {advice}")

    def name_of(self, label: int) -> str:
        """A short name for pictures and folders: the first part of the class's name, or its number."""
        return self.class_names[label].split(",")[0] if self.class_names else f"class {label}"

    def latents(self, label: int, count: int, seed: int, truncation: float | None = None) -> Tensor:
        """Latents [count, Z] of a class: a function of the seed and the label alone, the first n of more are the same.

        truncation: entries of N(0, 1) beyond it are drawn again (Brock et al. 2019); U(-1, 1) is scaled by it.
        """
        source = keys.generator(seed, "sample", replica=label)
        rows = []
        for _ in range(count):
            z = keys.draw_latents(source, 1, self.model.latent_dim, self.model.latent_distribution)
            if truncation is not None and self.model.latent_distribution == "uniform":
                z *= truncation
            elif truncation is not None:
                while (beyond := z.abs() > truncation).any():
                    z = torch.where(beyond, torch.randn(z.shape, generator=source), z)
            rows.append(z)
        return torch.cat(rows).to(self.device)

    @torch.no_grad()
    def images(self, latents: Tensor, labels: Tensor, batch_size: int = 50, batch_statistics: bool = False) -> Tensor:
        """Images [n, C, H, W] in [-1, 1] for latents [n, Z] and labels int64 [n] or class weights [n, K], on the CPU.

        batch_statistics: batch norm normalises with the batch at hand, not with the running statistics.
        """
        with self._statistics(batch_statistics):
            made = [
                self.module(z, y)
                for z, y in zip(torch.split(latents, batch_size), torch.split(labels, batch_size), strict=True)
            ]
        return torch.cat(made)

    def sample(
        self, classes: Sequence[str | int], count: int = 1, seed: int = 0, truncation: float | None = None
    ) -> Tensor:
        """`count` images of each class, one class after another: [len(classes) * count, C, H, W] in [-1, 1]."""
        labels = [self.label(name) for name in classes]
        latents = torch.cat([self.latents(label, count, seed, truncation) for label in labels])
        return self.images(latents, torch.tensor(labels, device=self.device).repeat_interleave(count))

    @contextlib.contextmanager
    def _statistics(self, of_the_batch: bool) -> Iterator[None]:
        norms = [layer for layer in self.module.modules() if isinstance(layer, BatchNorm2d)]
        for norm in norms if of_the_batch else ():
            norm.train()
            norm.update_statistics = False
        try:
            yield
        finally:
            for norm in norms if of_the_batch else ():
                norm.eval()
                norm.update_statistics = True


def open_generator(
    source: str, iteration: int | None = None, average: bool | None = None, device: torch.device | str = "cpu"
) -> Generator:
    """The generator of a run's folder (the newest or the given checkpoint) or of an exported folder, paths or URLs.

    average: the moving average or the plain weights of a run; None takes the average where there is one.
    """
    if Store(source).exists(WEIGHTS_FILE):
        if iteration is not None or average is not None:
            raise SettingError(f"RUN_OR_EXPORT: {source} is an export; a checkpoint can be chosen in a run alone")
        return Generator.from_pretrained(source, device)
    from trainer.trained.runs import load_generator  # an export is read without the trainer's configuration

    trained = load_generator(source, iteration, average)
    names, ids = _class_names(trained)
    known = len(names) == trained.config.model.classes
    return Generator(
        trained.module.to(device),
        trained.config.model,
        trained.config.generator,
        names if known else (),
        ids if known else (),
        {"iteration": trained.iteration, "moving_average": trained.averaged, "state_sha256": trained.state_sha256},
    )


def _class_names(trained: "TrainedGenerator") -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names and identifiers from the checkpoint, else from the shards' manifest, where it can be reached."""
    if trained.info.get("class_names"):
        return tuple(trained.info["class_names"]), tuple(trained.info.get("class_ids", ()))
    try:
        manifest = select_classes(load_manifest(trained.config.data.shards), trained.config.data.classes)
    except DataError:
        return (), ()
    return manifest.class_names, tuple(entry.id for entry in manifest.classes)


def _parts(name: str) -> list[str]:
    return [part.strip().casefold() for part in name.split(",")]


def _number(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None
