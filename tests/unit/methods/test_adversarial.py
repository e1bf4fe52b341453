"""The adversarial games: which passes they make, what they add up, what flows where, and their turns."""

import pytest
import torch
from torch import nn

from tests.support.games import draw_of, losses, method_of, problem
from trainer.foundation.errors import SettingError
from trainer.methods.adversarial import ACGANConfig, AdversarialConfig
from trainer.methods.schedule import BatchConfig, ScheduleConfig
from trainer.methods.terms.losses import LOSSES, classification
from trainer.methods.terms.penalty_terms import GradientPenaltyConfig, R1Config
from trainer.models import ModelConfig
from trainer.models.conditioning import AuxiliaryClassifierConfig, DiscriminatorOutput
from trainer.models.dcgan import DCGANDiscriminatorConfig
from trainer.models.resnet import ResNetDiscriminatorConfig


class Toy(nn.Module):
    """A discriminator without noise or state that notes its passes."""

    def __init__(self, class_logits):
        super().__init__()
        self.linear = nn.Linear(4, 1)
        self.classes = nn.Linear(4, 3) if class_logits else None
        self.calls = []

    def forward(self, images, labels):
        self.calls.append((images, labels))
        h = torch.tanh(images.flatten(1))
        return DiscriminatorOutput(self.linear(h).squeeze(1), self.classes(h) if self.classes else None)


def setting(class_logits=True):
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(2, 4))
    real = torch.randn(3, 1, 2, 2), torch.tensor([0, 1, 2])
    draw = draw_of(torch.randn(5, 2), torch.tensor([2, 2, 1, 0, 0]), *real)
    return (lambda z, y: (z @ weight).view(-1, 1, 2, 2)), weight, Toy(class_logits), draw


def discriminator_loss(config, G, D, draw, iteration=0):
    return losses(method_of(config), "discriminator", {"generator": G, "discriminator": D}, draw, iteration)


def generator_loss(config, G, D, draw):
    return losses(method_of(config), "generator", {"generator": G, "discriminator": D}, draw)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("passes", ["separate", "joint"])
def test_discriminator_loss(loss, passes):
    G, weight, D, draw = setting()
    out = discriminator_loss(AdversarialConfig(loss=loss, passes=passes), G, D, draw)
    sizes = [len(images) for images, _ in D.calls]
    assert sizes == ([3, 5] if passes == "separate" else [8])  # real first
    real, fake = (
        D(draw["real_images"], draw["real_labels"]).logits,
        D(G(draw["latents"], draw["labels"]), draw["labels"]).logits,
    )
    torch.testing.assert_close(out["loss"], LOSSES[loss].discriminator(real, fake))
    torch.testing.assert_close(out["real_score"], real.mean().detach())
    torch.testing.assert_close(out["fake_score"], fake.mean().detach())
    out["loss"].backward()
    assert weight.grad is None  # no graph into the generator
    assert not any(value.requires_grad for name, value in out.items() if name != "loss")


@pytest.mark.parametrize("loss", LOSSES)
def test_generator_loss(loss):
    G, weight, D, draw = setting()
    D.requires_grad_(False)
    out = generator_loss(AdversarialConfig(loss=loss), G, D, draw)
    fake = D(G(draw["latents"], draw["labels"]), draw["labels"]).logits
    torch.testing.assert_close(out["loss"], LOSSES[loss].generator(fake))
    out["loss"].backward()
    assert weight.grad.any()
    assert D.linear.weight.grad is None


@pytest.mark.parametrize("passes", ["separate", "joint"])
def test_labels_go_with_their_images(passes):
    G, _, D, draw = setting()
    discriminator_loss(AdversarialConfig(passes=passes), G, D, draw)
    images = torch.cat([images for images, _ in D.calls])
    labels = torch.cat([labels for _, labels in D.calls])
    assert torch.equal(labels, torch.cat([draw["real_labels"], draw["labels"]]))
    assert torch.equal(images[:3], draw["real_images"])


@pytest.mark.parametrize("classify_generated", [True, False])
@pytest.mark.parametrize("passes", ["separate", "joint"])
def test_acgan_adds_the_class_losses(classify_generated, passes):
    """D minimises -(L_S + L_C), G minimises L_S - L_C; L_C of generated images in D's loss is the paper's choice."""
    G, _, D, draw = setting()
    config = ACGANConfig(
        loss="non_saturating",
        passes=passes,
        discriminator_class_weight=0.5,
        generator_class_weight=2,
        classify_generated=classify_generated,
    )
    out = discriminator_loss(config, G, D, draw)
    real, fake = D(draw["real_images"], draw["real_labels"]), D(G(draw["latents"], draw["labels"]), draw["labels"])
    want = LOSSES["non_saturating"].discriminator(real.logits, fake.logits)
    want = want + 0.5 * classification(real.class_logits, draw["real_labels"])
    if classify_generated:
        want = want + 0.5 * classification(fake.class_logits, draw["labels"])
    torch.testing.assert_close(out["loss"], want)
    out = generator_loss(config, G, D, draw)
    want = LOSSES["non_saturating"].generator(fake.logits) + 2 * classification(fake.class_logits, draw["labels"])
    torch.testing.assert_close(out["loss"], want)
    assert 0 <= out["class_accuracy_fake"] <= 1


def test_acgan_needs_a_classifier():
    G, _, D, draw = setting(class_logits=False)
    with pytest.raises(SettingError, match=r"^objective\.name: "):
        discriminator_loss(ACGANConfig(), G, D, draw)


@pytest.mark.parametrize("passes", ["separate", "joint"])
def test_r1_reads_the_real_pass(passes):
    G, _, D, draw = setting()
    out = discriminator_loss(AdversarialConfig(passes=passes, penalty=R1Config(gamma=4)), G, D, draw)
    assert len(D.calls) == (2 if passes == "separate" else 1)
    x = draw["real_images"].clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(D(x, draw["real_labels"]).logits.sum(), x)
    torch.testing.assert_close(out["r1"], gradient.square().flatten(1).sum(1).mean() / 2)
    torch.testing.assert_close(out["loss"].detach(), out["adversarial"] + 4 * out["r1"])
    out["loss"].backward()
    assert not draw["real_images"].requires_grad


def test_gradient_penalty_and_drift_are_added_with_their_weights():
    G, _, D, draw = setting()
    penalty = GradientPenaltyConfig(weight=7, drift=0.5)
    out = discriminator_loss(AdversarialConfig(loss="wasserstein", penalty=penalty), G, D, draw)
    assert [len(images) for images, _ in D.calls] == [3, 5, 3]
    real = D(draw["real_images"], draw["real_labels"]).logits
    torch.testing.assert_close(out["drift"], real.square().mean().detach())
    torch.testing.assert_close(
        out["loss"].detach(), out["adversarial"] + 7 * out["gradient_penalty"] + 0.5 * out["drift"]
    )
    out["loss"].backward()
    assert D.linear.weight.grad.any()


def test_method_and_discriminator_must_fit():
    model, unconditional = ModelConfig(resolution=32, classes=3), ModelConfig(resolution=32, classes=0)
    projection, dcgan = ResNetDiscriminatorConfig(), DCGANDiscriminatorConfig()
    acgan = ResNetDiscriminatorConfig(conditioning=AuxiliaryClassifierConfig())
    AdversarialConfig().check(problem(model, discriminator=projection))
    ACGANConfig(passes="joint").check(problem(model, discriminator=acgan))
    ACGANConfig().check(problem(model, discriminator=dcgan))
    AdversarialConfig().check(problem(unconditional, discriminator=dcgan))
    for config, discriminator, asked, setting in [
        (ACGANConfig(), projection, model, "objective.name"),
        (ACGANConfig(), dcgan, unconditional, "objective.name"),
        (AdversarialConfig(), acgan, model, "objective.name"),
        (ACGANConfig(passes="joint"), dcgan, model, "objective.passes"),
        (AdversarialConfig(), None, model, "discriminator"),
    ]:
        with pytest.raises(ValueError, match=f"^{setting}: "):
            config.check(problem(asked, discriminator=discriminator))


def test_turns_are_the_official_updaters_order():
    sizes = BatchConfig(real_per_replica=4, generated_per_replica=6)
    method = method_of(batch=sizes, schedule=ScheduleConfig(discriminator_steps=2))
    turns = method.turns(7)
    assert [(turn.player, turn.number, dict(turn.reads), turn.made) for turn in turns] == [
        ("generator", 0, {}, 6),
        ("discriminator", 1, {"data": 4}, 4),
        ("discriminator", 2, {"data": 4}, 4),
    ]
    last = method_of(schedule=ScheduleConfig(discriminator_steps=2, generator_first=False)).turns(0)
    assert [turn.number for turn in last] == [1, 2, 0]  # the numbers, and so the draws, stay


def test_a_lazy_penalty_is_on_in_every_so_many_updates():
    """StyleGAN2's lazy regularisation: every 3rd update of the discriminator, with 3 times the weight."""
    config = AdversarialConfig(penalty=R1Config(gamma=4, every=3))
    method = method_of(config, schedule=ScheduleConfig(discriminator_steps=2))
    on = [dict(turn.terms) for t in range(3) for turn in method.turns(t) if turn.player == "discriminator"]
    assert on == [{"penalty": 3.0}, {}, {}, {"penalty": 3.0}, {}, {}]
    G, _, D, draw = setting()
    networks = {"generator": G, "discriminator": D}
    out = losses(method, "discriminator", networks, draw)
    torch.testing.assert_close(out["loss"].detach(), out["adversarial"] + 12 * out["r1"])
    assert "r1" not in losses(method, "discriminator", networks, draw, iteration=1)


def test_two_terms_of_one_name_are_refused():
    """The second would replace the first in silence."""
    (term,) = R1Config().build()
    with pytest.raises(ValueError, match=r"^terms: two have the same name, of penalty, penalty"):
        method_of(AdversarialConfig(penalty=R1Config()), terms=(term,))
