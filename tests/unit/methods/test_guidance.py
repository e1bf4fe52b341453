"""The classifier's loss in the generator's: its formula, its weight, when it is on, and that the classifier stays as it is."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.support import games
from tests.support.games import Draw, draw_of
from trainer.classifiers import Classifier, SmallClassifierConfig
from trainer.classifiers.classifier import Preprocessing
from trainer.foundation.errors import CheckpointError, SettingError
from trainer.methods.terms.guidance import (
    DIGEST,
    ClassifierLossConfig,
    ClassifierTerm,
    check_classifier_loss,
    check_digest,
    check_first_iteration,
    describe,
    only_the_guiding_is_pleased,
    weight_at,
)
from trainer.methods.terms.term import Term
from trainer.models.conditioning import DiscriminatorOutput
from trainer.processes.launch import Launch

SMALL = SmallClassifierConfig(weights="somewhere")
CONFIG = ClassifierLossConfig(classifier=SMALL, begin=0)
Parts = tuple[nn.Linear, nn.Linear, Classifier]


class Net(nn.Module):
    """Features: the 8x8 image as a row; logits: a batch norm and a linear layer on it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(64)
        self.head = nn.Linear(64, 4)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.norm(images.flatten(1))
        return features, self.head(features)


@pytest.fixture
def parts() -> tuple[nn.Linear, nn.Linear, Classifier]:
    torch.manual_seed(0)
    generator, critic, net = nn.Linear(5, 64), nn.Linear(64, 1), Net()
    net.norm.running_mean += torch.randn(64)  # type: ignore[operator]
    classifier = Classifier(
        net, Preprocessing(8, 1), class_names="abcd", class_ids=None, digest="ab" * 32, description="a net"
    )
    return generator, critic, classifier


def losses(
    parts: Parts,
    weight: float | None,
    chosen: Tensor | None = None,
    player: str = "generator",
    draw: Draw | None = None,
) -> dict[str, Tensor]:
    """The losses of a player's turn in iteration 0, in which the stage is on."""
    generator, critic, classifier = parts
    terms: tuple[Term, ...] = ()
    if weight is not None:
        terms = (ClassifierTerm(replace(CONFIG, weight=weight), classifier, chosen),)
    source = torch.Generator().manual_seed(1)
    networks = {
        "generator": lambda z, y: generator(z).tanh().view(-1, 1, 8, 8),
        "discriminator": lambda x, y: DiscriminatorOutput(critic(x.flatten(1))[:, 0]),
    }
    draw = draw or draw_of(torch.randn(6, 5, generator=source), torch.tensor([0, 1, 2, 0, 1, 2]))
    return games.losses(games.method_of(terms=terms), player, networks, draw)


def test_the_formula(parts: Parts) -> None:
    """adversarial + weight x mean of -log p(class | image), with the data's classes among the classifier's."""
    generator, _, classifier = parts
    chosen = torch.tensor([3, 0, 1])
    plain, guided = losses(parts, None), losses(parts, 0.25, chosen)
    source = torch.Generator().manual_seed(1)
    images = generator(torch.randn(6, 5, generator=source)).tanh().view(-1, 1, 8, 8)
    probabilities = classifier(images).softmax(1)
    wanted = torch.tensor([3, 0, 1, 3, 0, 1])
    expected = -probabilities[torch.arange(6), wanted].log().mean()
    torch.testing.assert_close(guided["classifier_loss"], expected.detach())
    torch.testing.assert_close(guided["loss"], plain["loss"] + 0.25 * expected)
    torch.testing.assert_close(guided["adversarial"], plain["adversarial"])
    assert float(guided["classifier_accuracy"]) == pytest.approx(
        float((probabilities.argmax(1) == wanted).float().mean())
    )
    assert float(guided["classifier_weight"]) == 0.25
    assert all(not guided[name].requires_grad for name in guided if name != "loss")


def test_the_gradient_reaches_the_generator_and_nothing_else(parts: Parts) -> None:
    """Numerically: d loss / d one of G's weights, in float64; the classifier's bits are what they were."""
    generator, critic, classifier = (part.double() for part in parts)
    critic.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    chosen = torch.tensor([3, 0, 1])

    def loss() -> Tensor:
        z = torch.randn(6, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        # float64 throughout: the classifier's own preprocessing is fp32 and has its own test
        classifier.preprocess = lambda images: images  # type: ignore[method-assign]
        classifier.both = lambda images: classifier.network(images)  # type: ignore[method-assign]
        draw = draw_of(z, torch.tensor([0, 1, 2, 0, 1, 2]))
        return losses((generator, critic, classifier), 5.0, chosen, draw=draw)["loss"]

    loss().backward()
    assert generator.weight.grad is not None
    for place in ((0, 0), (17, 3), (63, 4)):
        with torch.no_grad():
            generator.weight[place] += 1e-5
            up = loss()
            generator.weight[place] -= 2e-5
            down = loss()
            generator.weight[place] += 1e-5
        assert float(generator.weight.grad[place]) == pytest.approx(float(up - down) / 2e-5, rel=1e-5)
    assert all(parameter.grad is None for parameter in classifier.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in classifier.state_dict().items())


def test_the_discriminators_loss_is_untouched(parts: Parts) -> None:
    source = torch.Generator().manual_seed(3)
    labels = torch.tensor([0, 1])
    images, latents = torch.randn(2, 1, 8, 8, generator=source), torch.randn(2, 5, generator=source)
    draw = draw_of(latents, labels, images, labels)
    results = [losses(parts, weight, None, "discriminator", draw) for weight in (None, 1.0)]
    assert results[0].keys() == results[1].keys()
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_weight_law() -> None:
    constant = ClassifierLossConfig(classifier=SMALL, weight=0.5, begin=10, until=20)
    assert [weight_at(constant, t) for t in (0, 9, 10, 19, 20, 10**6)] == [0.0, 0.0, 0.5, 0.5, 0.0, 0.0]
    ramp = ClassifierLossConfig(classifier=SMALL, weight=0.5, begin=10, until=20, ramp=4)
    assert [weight_at(ramp, t) for t in range(9, 16)] == [0.0, 0.125, 0.25, 0.375, 0.5, 0.5, 0.5]
    defaults = ClassifierLossConfig(classifier=SMALL)
    assert (defaults.begin, defaults.until) == (400_000, 450_000)


def test_what_does_not_fit_is_refused() -> None:
    config = ClassifierLossConfig(classifier=SMALL, begin=10, until=20)
    settings = {"classes": 3, "iterations": 20, "initialize_from": None}
    for change, message in (
        ({}, None),
        ({"initialize_from": "runs/base@10"}, None),
        ({"initialize_from": "runs/base"}, None),
        ({"classes": 0}, r"classifier_loss: needs a class for every generated image"),
        ({"iterations": 10}, r"classifier_loss\.begin: is 10, but the run ends at run\.iterations = 10"),
        (
            {"initialize_from": "s3://b/base@8"},
            r"run\.initialize_from: s3://b/base@8 is at iteration 8, but the stage begins at .* = 10; give s3://b/base@10, or",
        ),
    ):
        if message is None:
            check_classifier_loss(config, **{**settings, **change})  # type: ignore[arg-type]
        else:
            with pytest.raises(ValueError, match=f"^{message}"):
                check_classifier_loss(config, **{**settings, **change})  # type: ignore[arg-type]
    with pytest.raises(
        SettingError, match=r"^run\.initialize_from: runs/base is at iteration 11, .* give runs/base@10, or"
    ):
        check_first_iteration(config, 11, "runs/base")
    for bad, message in (({"until": 10}, r"classifier_loss\.until"), ({"ramp": 11}, r"classifier_loss\.ramp")):
        with pytest.raises(ValueError, match=message):
            ClassifierLossConfig(classifier=SMALL, **{"begin": 10, "until": 20, **bad})


def test_a_checkpoint_knows_its_classifier(parts: Parts) -> None:
    classifier = parts[2]
    check_digest({}, classifier)
    check_digest({DIGEST: torch.full((32,), 0xAB, dtype=torch.uint8)}, classifier)
    with pytest.raises(
        CheckpointError, match=r"^classifier_loss\.classifier: a net has the sha256 abababababab\.\.\., but"
    ):
        check_digest({DIGEST: torch.zeros(32, dtype=torch.uint8)}, classifier)


def test_the_warning() -> None:
    assert only_the_guiding_is_pleased((0.5, 0.5), (0.9, 0.55)) is not None
    assert "from 50.0% to 90.0%" in str(only_the_guiding_is_pleased((0.5, 0.5), (0.9, 0.45)))
    assert only_the_guiding_is_pleased((0.5, 0.5), (0.9, 0.7)) is None
    assert only_the_guiding_is_pleased((0.5, 0.5), (0.53, 0.4)) is None


def test_dry_run_line() -> None:
    assert describe(None) == []
    config = ClassifierLossConfig(classifier=SMALL, weight=0.1, ramp=1000, maximum_ms_ssim=0.3)
    assert describe(config) == [
        "iterations 400,000 to 450,000: loss of the classifier small, weight 0.1, rising over 1,000 iterations; off once the "
        "MS-SSIM within classes is above 0.3"
    ]


def test_cross_entropy_is_in_fp32_under_autocast(parts: Parts) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        guided = losses(parts, 1.0)
    assert guided["classifier_loss"].dtype == torch.float32
    launch = Launch(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), precision="bf16", strategy="single")
    with launch.autocast():
        assert torch.equal(losses(parts, 1.0)["classifier_loss"], guided["classifier_loss"])
    assert float(guided["classifier_loss"]) == pytest.approx(float(losses(parts, 1.0)["classifier_loss"]), rel=0.05)
