"""The game from images to tags: sizes, losses and gradients in an independent form, words by votes, and refusals."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from data_pipeline.errors import DataError
from data_pipeline.make_shards.vectors import write_vectors
from data_pipeline.manifest.format import load_manifest
from tests.support.games import losses, problem
from trainer.foundation.errors import SettingError
from trainer.foundation.keys import Keys
from trainer.methods.protocol import ClassNames, Shards
from trainer.methods.schedule import BatchConfig, ScheduleConfig
from trainer.methods.tagging import TaggingConfig, TaggingMethod
from trainer.models import ModelConfig

Array = npt.NDArray[np.float64]
TINY: dict[str, Any] = {
    "features": 5,
    "word_length": 3,
    "noise_units": 4,
    "image_units": 6,
    "discriminator_word_units": 4,
    "discriminator_image_units": 5,
    "joint_units": 6,
    "joint_pieces": 3,
    "dropout": 0.0,
    "generator_range": 0.9,
    "discriminator_range": 0.9,
}
MODEL = ModelConfig(classes=4, latent_dim=2)


def method_of(model: ModelConfig = MODEL, **settings: Any) -> TaggingMethod:
    batch = BatchConfig(real_per_replica=7, generated_per_replica=9)
    given = problem(
        model, generator=None, discriminator=None, batch=batch, schedule=ScheduleConfig(discriminator_steps=2)
    )
    return TaggingConfig(**{"words": "nowhere", **TINY, **settings}).build(given)


def test_the_papers_networks_have_the_papers_sizes() -> None:
    """Section 4.2: 100 -> 500, 4096 -> 2000, both -> 200; 200 -> 500, 4096 -> 1200, both -> maxout 1000 x 3 -> 1."""
    method = TaggingConfig(words="nowhere").build(
        problem(ModelConfig(classes=9, latent_dim=100), generator=None, discriminator=None)
    )
    sizes = {
        name: sum(p.numel() for p in method.build(name).parameters())
        for name in ("generator", "discriminator", "words")
    }
    assert sizes == {"generator": 8_744_700, "discriminator": 10_120_901, "words": 0}


class Plain:
    """A linear layer in NumPy that notes its gradients."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        self.weight, self.bias = (value.detach().numpy() for value in (layer.weight, layer.bias))
        self.weight_gradient, self.bias_gradient = np.zeros_like(self.weight), np.zeros_like(self.bias)

    def forward(self, x: Array) -> Array:
        return x @ self.weight.T + self.bias

    def backward(self, x: Array, gradient: Array) -> Array:
        self.weight_gradient += gradient.T @ x
        self.bias_gradient += gradient.sum(0)
        return gradient @ self.weight


class PlainGenerator:
    def __init__(self, network: Any) -> None:
        self.layers = {name: Plain(getattr(network, name)) for name in ("noise", "image", "word")}

    def run(self, z: Array, f: Array) -> tuple[Array, Any]:
        a, b = self.layers["noise"].forward(z), self.layers["image"].forward(f)
        h = np.concatenate([np.maximum(a, 0), np.maximum(b, 0)], 1)
        return self.layers["word"].forward(h), (z, f, a, b, h)

    def back(self, seen: Any, gradient: Array) -> None:
        z, f, a, b, h = seen
        below = self.layers["word"].backward(h, gradient)
        self.layers["noise"].backward(z, below[:, : a.shape[1]] * (a > 0))
        self.layers["image"].backward(f, below[:, a.shape[1] :] * (b > 0))


class PlainDiscriminator:
    def __init__(self, network: Any) -> None:
        self.layers = {name: Plain(getattr(network, name)) for name in ("word", "image", "logit")}
        self.layers["joint.linear"] = Plain(network.joint.linear)
        self.pieces = network.joint.pieces

    def run(self, w: Array, f: Array) -> tuple[Array, Any]:
        a, b = self.layers["word"].forward(w), self.layers["image"].forward(f)
        h = np.concatenate([np.maximum(a, 0), np.maximum(b, 0)], 1)
        every = self.layers["joint.linear"].forward(h).reshape(len(w), -1, self.pieces)
        m = every.max(2)
        return self.layers["logit"].forward(m)[:, 0], (w, f, a, b, h, every, m)

    def back(self, seen: Any, gradient: Array) -> Array:
        w, f, a, b, h, every, m = seen
        below = self.layers["logit"].backward(m, gradient[:, None])
        chosen = np.zeros_like(every)
        np.put_along_axis(chosen, every.argmax(2)[..., None], below[..., None], 2)
        below = self.layers["joint.linear"].backward(h, chosen.reshape(len(w), -1))
        self.layers["image"].backward(f, below[:, a.shape[1] :] * (b > 0))
        return self.layers["word"].backward(w, below[:, : a.shape[1]] * (a > 0))


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def gradients_equal(network: torch.nn.Module, plain: dict[str, Plain]) -> None:
    for name, layer in plain.items():
        linear: Any = network.get_submodule(name)
        np.testing.assert_allclose(linear.weight.grad.numpy(), layer.weight_gradient, atol=1e-10)
        np.testing.assert_allclose(linear.bias.grad.numpy(), layer.bias_gradient, atol=1e-10)
        assert np.abs(layer.weight_gradient).max() > 1e-6


@pytest.mark.parametrize("additions", [False, True])
@pytest.mark.parametrize("player", ["generator", "discriminator"])
def test_losses_and_gradients_against_numpy(player: str, additions: bool) -> None:
    """`additions`: what the paper does not have, mismatched pairs and normalised features."""
    method = method_of(mismatched=additions, normalised_features=additions)
    torch.manual_seed(0)
    method.vectors = torch.randn(4, 3, dtype=torch.float64)
    networks = {name: method.build(name).double() for name in ("generator", "words", "discriminator")}
    draw = {
        "latents": torch.randn(8, 2, dtype=torch.float64),
        "features": torch.randn(8, 5, dtype=torch.float64),
        "labels": torch.tensor([0, 1, 2, 3, 3, 2, 1, 0]),
    }
    z, f = draw["latents"].numpy(), draw["features"].numpy()
    if additions:
        f = (f - f.mean(1, keepdims=True)) / np.sqrt(f.var(1, keepdims=True) + 1e-5)
    G, D = PlainGenerator(networks["generator"]), PlainDiscriminator(networks["discriminator"])
    words, seen_words = G.run(z, f)
    fake, seen_fake = D.run(words, f)
    real_words = method.vectors.numpy()[draw["labels"].numpy()]
    real, seen_real = D.run(real_words, f)
    wrong, seen_wrong = D.run(real_words, np.roll(f, 1, 0))
    found = losses(method, player, networks, draw)
    found["loss"].backward()
    if player == "generator":
        expected = np.log1p(np.exp(-fake)).mean()
        G.back(seen_words, D.back(seen_fake, -sigmoid(-fake) / 8))
        gradients_equal(networks["generator"], G.layers)
    else:
        made = np.concatenate([fake, wrong]) if additions else fake
        expected = np.log1p(np.exp(-real)).mean() + np.log1p(np.exp(made)).mean()
        D.back(seen_real, -sigmoid(-real) / 8)
        D.back(seen_fake, sigmoid(fake) / len(made))
        if additions:
            D.back(seen_wrong, sigmoid(wrong) / len(made))
        gradients_equal(networks["discriminator"], D.layers)
        assert all(parameter.grad is None for parameter in networks["generator"].parameters())
    assert abs(found["loss"].item() - expected) < 1e-10
    assert found["fake_score"].item() == pytest.approx(fake.mean(), abs=1e-12)


def test_every_turn_reads_as_many_samples_as_it_makes() -> None:
    method = method_of()
    turns = method.turns(0)
    assert [(turn.player, turn.number, turn.reads["data"], turn.made) for turn in turns] == [
        ("generator", 0, 9, 9),
        ("discriminator", 1, 7, 7),
        ("discriminator", 2, 7, 7),
    ]
    real = {"data": {"vector": torch.randn(7, 5), "class": torch.arange(7) % 4}}
    draws = [method.draw(turn, Keys(0, 0, turn.number, 0), real) for turn in turns[1:]]
    assert torch.equal(draws[0]["features"], real["data"]["vector"])
    assert draws[0]["latents"].shape == (7, 2)
    assert not torch.equal(draws[0]["latents"], draws[1]["latents"])


def test_words_are_chosen_by_the_votes_of_many_vectors() -> None:
    method = method_of(ModelConfig(classes=5, latent_dim=2), nearest=2)
    method.vectors = torch.tensor([[1.0, 0, 0], [0.9, 0.1, 0], [0, 1, 0], [0, 0, 1], [0, -1, 0]])
    networks = {name: method.build(name) for name in ("generator", "words")}
    sampler: Any = method.sampler(networks, ClassNames(("a", "b", "c", "d", "e")))
    vectors = torch.tensor([[5.0, 0.1, 0], [3, 0.0, 0], [0, 0.1, 7]])
    scores = sampler.scores(vectors)
    assert scores.dtype == torch.float64
    # Two vectors vote for a and b, the third for d and c; of equal votes the nearer word is first.
    assert scores.argsort(descending=True).tolist() == [0, 1, 3, 2, 4]
    assert scores.floor().tolist() == [2, 2, 1, 1, 0]


def shards(folder: Path, **arguments: Any) -> Shards:
    vectors = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
    names = ("cat", "dog", "red", "sky")
    write_vectors(folder, vectors, **({"classes": np.arange(12) % 4, "class_names": names} | arguments))
    return Shards(str(folder), load_manifest(str(folder)))


def test_the_vocabulary_is_read_from_the_file(tmp_path: Path) -> None:
    (tmp_path / "words").write_text("sky 0 0 4\ncat 3 0 4\ndog 1 0 0\nred 0 1 0\n")
    method = method_of(words=str(tmp_path / "words"))
    method.check({"data": shards(tmp_path / "data")})
    table: Any = method.build("words")
    expected = np.array([[0.6, 0, 0.8], [1, 0, 0], [0, 1, 0], [0, 0, 1]]) * 3**0.5
    np.testing.assert_allclose(table(torch.arange(4)).numpy(), expected, rtol=1e-6)
    # Where a checkpoint brings its own, nothing is read.
    assert not method_of(words=str(tmp_path / "gone")).build("words").vectors.any()


@pytest.mark.parametrize(
    ("settings", "data", "words", "message"),
    [
        (
            {},
            {},
            "cat 1 0 0\ndog 1 0 0\n",
            r"^objective\.words: .* has no vector of the tag 'red' \(2 of 4 tags lack one\)",
        ),
        ({}, {}, "bird 1 0 0\n", r"^objective\.words: .* has no vector of the tag 'cat' \(4 of 4"),
        ({}, {}, None, r"^objective\.words: .* does not exist"),
        ({}, {"classes": None, "class_names": ()}, "", r"^data\.shards: the vectors in .* have no tags"),
        (
            {"features": 6},
            {},
            "",
            r"^objective\.features: is 6, but the shards in .* have 5 numbers in a vector; set it to 5",
        ),
        (
            {"word_length": 2},
            {},
            "cat 1 0 0\ndog 1 0 0\nred 1 0 0\nsky 1 0 0\n",
            r"^objective\.word_length: is 2, .*have 3",
        ),
        (
            {"network": "efficientnet_lite0"},
            {"notice": {"features_digest": "of another"}},
            "",
            r"^objective\.network: EfficientNet-Lite0 has other weights than the network that made",
        ),
    ],
)
def test_data_that_do_not_fit_are_refused(
    settings: dict[str, Any], data: dict[str, Any], words: str | None, message: str, tmp_path: Path
) -> None:
    if words is not None:
        (tmp_path / "words").write_text(words)
    method = method_of(words=str(tmp_path / "words"), **settings)
    with pytest.raises((SettingError, DataError), match=message):
        method.check({"data": shards(tmp_path / "data", **data)})


def test_images_are_refused(tmp_path: Path, tiny_shards: Path) -> None:
    with pytest.raises(DataError, match=r"^data\.shards: holds images, where vectors are needed"):
        method_of().check({"data": Shards(str(tiny_shards), load_manifest(str(tiny_shards)))})


def test_settings_that_do_not_fit_are_refused() -> None:
    config = TaggingConfig(words="nowhere")
    fits = problem(ModelConfig(classes=4), generator=None, discriminator=None)
    config.check(fits)
    with pytest.raises(ValueError, match=r"^generator: means nothing to tagging"):
        config.check(problem(ModelConfig(classes=4), discriminator=None))
    with pytest.raises(ValueError, match=r"^model\.classes: is 0; set it to the number of tags"):
        config.check(replace(fits, model=ModelConfig(classes=0)))


def test_what_cannot_be_sampled_says_so(tmp_path: Path) -> None:
    method = method_of()
    networks = {name: method.build(name) for name in ("generator", "words")}
    sampler: Any = method.sampler(networks)
    picture, source = torch.zeros(3, 8, 8), torch.Generator()
    assert sampler.conditions.evenly(3).shape == (0, 5)
    with pytest.raises(SettingError, match=r"--source"):
        sampler.conditions.in_turn(range(2))
    with pytest.raises(SettingError, match=r"'cat' names no image"):
        sampler.conditions.parse("cat")
    with pytest.raises(SettingError, match=r"^classes: the names of the tags are not known"):
        sampler.describe(picture, source)
    sampler.names = ("a", "b", "c", "d")
    with pytest.raises(SettingError, match=r"^objective\.network: is not set"):
        sampler.describe(picture, source)

    def features(numbers: range) -> dict[str, dict[str, Tensor]]:
        return {"data": {"vector": torch.ones(len(numbers), 5)}}

    sampler.conditions.bind(features)
    assert sampler.conditions.evenly(3).shape == (3, 5)
