"""Methods that the commands have never heard of: vectors from a dial, and images from images. No command is edited for them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

from trainer import evaluate, export, sample
from trainer.checkpoint.commits import CheckpointStore
from trainer.config import as_tree, load_config
from trainer.foundation.errors import SettingError
from trainer.methods.protocol import ClassNames, Tensors
from trainer.methods.sampling import number_of
from trainer.metrics import measures
from trainer.metrics.protocol import Measure, Needs, Seen
from trainer.metrics.records import Measurement, read_records
from trainer.report import __main__ as report
from trainer.trained import runs
from trainer.trained.pretrained import Generator, open_generator
from trainer.trained.real import real_chunks


class Dials:
    """Conditions: a number from 0 to 1."""

    def parse(self, text: str) -> Tensor:
        try:
            return torch.tensor(float(text))
        except ValueError:
            raise SettingError(f"classes: {text!r} is no number") from None

    def evenly(self, count: int) -> Tensor:
        return torch.linspace(0, 1, min(count, 4))

    def in_turn(self, numbers: range) -> Tensor:
        return torch.tensor([number % 4 / 3 for number in numbers])

    def caption(self, condition: Tensor) -> str:
        return f"dial {float(condition):.2f}"


class VectorSampler:
    """Vectors [n, 3] of two networks."""

    output = "vector"

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        self.networks, self.conditions = networks, Dials()

    def draw(self, source: torch.Generator, count: int) -> Tensor:
        return torch.randn(count, 2, generator=source)

    def sample(self, latents: Tensor, conditions: Tensor) -> Tensor:
        assert not any(network.training for network in self.networks.values())
        return self.networks["head"](self.networks["body"](latents) * conditions[:, None])


class Writer:
    """A method whose shown player has two networks."""

    players: Mapping[str, tuple[str, ...]] = {"reader": ("eye",), "writer": ("body", "head")}
    shown = "writer"

    def build(self, network: str) -> nn.Module:
        return nn.Linear(2, 5) if network == "body" else nn.Linear(5, 3)

    def sampler(self, networks: Mapping[str, nn.Module], classes: ClassNames = ClassNames()) -> VectorSampler:  # noqa: B008
        return VectorSampler(networks)


class Pictures:
    """Conditions: real images."""

    real: Callable[[range], Mapping[str, Tensors]] | None = None

    def bind(self, real: Callable[[range], Mapping[str, Tensors]]) -> None:
        self.real = real

    def parse(self, text: str) -> Tensor:
        raise SettingError(f"classes: {text!r} is no picture")

    def evenly(self, count: int) -> Tensor:
        return self.in_turn(range(count)) if self.real else torch.empty(0, 1, 32, 32)

    def in_turn(self, numbers: range) -> Tensor:
        assert self.real is not None
        return self.real(numbers)["data"]["image"]

    def caption(self, condition: Tensor) -> str:
        return ""


class NegativeSampler:
    """The condition's negative; no latents."""

    output = "image"

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        self.networks, self.conditions = networks, Pictures()

    def draw(self, source: torch.Generator, count: int) -> Tensor:
        return torch.empty(count, 0)

    def sample(self, latents: Tensor, conditions: Tensor) -> Tensor:
        return -self.networks["a_to_b"](conditions)


class Translator:
    """A method of one network."""

    players: Mapping[str, tuple[str, ...]] = {"there": ("a_to_b",)}
    shown = "there"

    def build(self, network: str) -> nn.Module:
        return nn.Conv2d(1, 1, 1, bias=False)

    def sampler(self, networks: Mapping[str, nn.Module], classes: ClassNames = ClassNames()) -> NegativeSampler:  # noqa: B008
        return NegativeSampler(networks)


class Spread(Measure):
    """The mean length of the samples."""

    name, meaning = "spread", "how long the vectors are"
    needs = Needs(samples=True, images=False)
    titles = {"spread": "mean length of a vector"}  # noqa: RUF012

    lengths: tuple[Tensor, ...] = ()

    def add(self, seen: Seen) -> None:
        self.lengths = (*self.lengths, seen.samples.norm(dim=1))

    def result(self) -> list[Measurement]:
        lengths = torch.cat(self.lengths)
        return [Measurement("spread", float(lengths.mean()), {"samples": len(lengths)})]


def save(run: str, method: Writer | Translator, tiny: Callable[..., Path]) -> dict[str, nn.Module]:
    """A commit of the method's player, with a moving average; returns the averaged networks."""
    config = load_config(str(tiny()))
    player, names = method.shown, method.players[method.shown]
    tensors, average = {}, {}
    for root in (player, "ema"):
        torch.manual_seed(len(root))
        for name in names:
            average[name] = method.build(name)
            for key, value in average[name].state_dict().items():
                tensors[f"{root}/{name}/{key}" if len(names) > 1 else f"{root}/{key}"] = value
    CheckpointStore(config.run.dir).save(7, tensors, {"settings": as_tree(config)})
    return average


@pytest.fixture
def writer(tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, VectorSampler]:
    """A run of the vector method, and the sampler of its averaged networks."""
    monkeypatch.setattr(runs, "method_of", lambda recipe: Writer())
    run = str(tmp_path / "run")
    average = save(run, Writer(), tiny)
    return run, VectorSampler({name: network.eval() for name, network in average.items()})


@pytest.fixture
def translator(tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run of the image-to-image method."""
    monkeypatch.setattr(runs, "method_of", lambda recipe: Translator())
    save(str(tmp_path / "run"), Translator(), tiny)
    return str(tmp_path / "run")


def test_vectors_are_sampled(
    writer: tuple[str, VectorSampler], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, sampler = writer
    out = tmp_path / "out"
    assert sample.main([run, "--conditions", "0.25, 1", "--count", "3", "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    made = np.load(out / "samples.npy")
    assert made.shape == (6, 3)
    assert lines[0] == f"dial 0.25: {' '.join(f'{value:.4g}' for value in made[0])}"
    assert lines[-1] == f"{out / 'samples.npy'}: 6 samples of 3 values"
    assert json.loads((out / "samples.json").read_text())["classes"] == "0.25, 1"
    generator = open_generator(run)
    again = generator.sample(["1"], count=2)
    torch.testing.assert_close(again, torch.from_numpy(made[3:5]))  # of the seed, the condition and the number alone
    z = generator.latents(torch.tensor(1.0), 2, 0)
    with torch.no_grad():
        assert torch.equal(again, sampler.sample(z, torch.ones(2)))
    assert sample.main([run, "--interpolate", "--count", "1", "--steps", "4", "--out", str(out)]) == 0
    assert np.load(out / "interpolation.npy").shape == (4 * 4, 3)
    capsys.readouterr()
    for words, sentence in (
        (["--conditions", "high"], r"^--classes: 'high' is no number"),
        (["--truncation", "0.5"], r"^--truncation: this generator's latents cannot be bounded"),
        (["--morph", "0 -> 1"], r"^--morph: this generator's conditions cannot be mixed"),
    ):
        with pytest.raises(SettingError, match=sentence):
            sample.main([run, *words])


def test_several_networks_are_exported(writer: tuple[str, VectorSampler], tmp_path: Path) -> None:
    run, _ = writer
    out = tmp_path / "export"
    assert export.main([run, str(out)]) == 0
    described = json.loads((out / "config.json").read_text())
    assert (described["format"], described["version"]) == ("menagerie-generator", 2)
    assert described["networks"] == ["body", "head"]
    assert described["objective"]["name"] == "adversarial"
    assert set(described["problem"]) == {"model", "batch", "schedule", "generator", "discriminator"}
    weights = safetensors.torch.load((out / "model.safetensors").read_bytes())
    assert set(weights) == {"body/weight", "body/bias", "head/weight", "head/bias"}
    exported = Generator.from_pretrained(str(out))
    assert torch.equal(exported.sample(["0.5"], 4, seed=3), open_generator(run).sample(["0.5"], 4, seed=3))
    exported.save_pretrained(str(tmp_path / "again"))
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()
    assert sample.main([str(out), "--out", str(tmp_path / "samples")]) == 0
    assert np.load(tmp_path / "samples" / "samples.npy").shape == (4 * 8, 3)


def test_vectors_are_measured_by_a_measure_of_ones_own(
    writer: tuple[str, VectorSampler], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = writer
    monkeypatch.setattr(measures, "MEASURES", [*measures.MEASURES, Spread])
    assert evaluate.main([run, "--measures", "spread", "--samples", "70"]) == 0
    (record,) = read_records(run)
    assert (record["measure"], record["samples"], record["iteration"]) == ("spread", 70, 7)
    assert "spread" in capsys.readouterr().out
    page = Path(run) / "report.html"
    assert report.main([run, "--out", str(page)]) == 0
    assert "mean length of a vector" in page.read_text()
    with pytest.raises(
        SettingError, match=r"^--measures: is looks at images, and this generator's samples are of the kind"
    ):
        evaluate.main([run, "--measures", "spread,is"])
    with pytest.raises(SystemExit):
        evaluate.main(["--help"])
    assert "spread (how long the vectors are)" in " ".join(capsys.readouterr().out.split())


def test_images_are_made_of_the_runs_images(
    translator: str, judge_file: str, tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MENAGERIE_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    assert sample.main([translator, "--count", "1", "--out", str(out)]) == 0
    made = np.stack([np.asarray(Image.open(path)) for path in sorted((out / "grid").iterdir())])
    generator = open_generator(translator)
    weight = float(next(generator.sampler.networks["a_to_b"].parameters()))
    (first,) = real_chunks(load_config(str(tmp_path / "run.yaml")).data, 0, 1)
    want = -weight * (first.images[:10, 0].float() / 127.5 - 1)
    assert made.shape == (10, 32, 32)
    assert np.abs(made - (want * 127.5 + 127.5).clamp(0, 255).numpy()).max() <= 1.01
    words = [translator, "--features", judge_file, "--samples", "120", "--queries", "10", "--device", "cpu"]
    assert evaluate.main([*words, "--measures", "fid,neighbours,strips"]) == 0
    assert {record["measure"] for record in read_records(translator)} >= {"frechet_distance", "near_copies_pixels"}
    with pytest.raises(SettingError, match=r"^--measures: ms_ssim looks at classes, of which the generator has 0"):
        evaluate.main([*words, "--measures", "ms_ssim"])
    assert export.main([translator, str(tmp_path / "export")]) == 0
    with pytest.raises(SettingError, match=r"^--classes: names nothing"):
        sample.main([str(tmp_path / "export"), "--out", str(out)])
    with pytest.raises(SettingError, match=r"^--interpolate: this generator has no latent vectors"):
        sample.main([translator, "--interpolate", "--out", str(out)])


def test_the_number_of_a_condition() -> None:
    assert number_of(torch.tensor(3)) == 3
    one, other = number_of(torch.tensor([0.5, 0.25])), number_of(torch.tensor([0.25, 0.5]))
    assert one != other
    assert one == number_of(torch.tensor([0.5, 0.25]))
    assert 0 <= one < 2**63
