"""The objectives: which passes they make, what they add up, what flows where."""

import pytest
import torch
from torch import nn

from trainer.foundation.errors import SettingError
from trainer.methods import ACGANConfig, AdversarialConfig, Latents, RealAndLatents, build_objective, check_objective
from trainer.methods.adversarial import GradientPenaltyConfig, R1Config
from trainer.methods.terms.losses import LOSSES, classification
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
    batch = RealAndLatents(
        torch.randn(3, 1, 2, 2), torch.tensor([0, 1, 2]), torch.randn(5, 2), torch.tensor([2, 2, 1, 0, 0])
    )
    return (lambda z, y: (z @ weight).view(-1, 1, 2, 2)), weight, Toy(class_logits), batch


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("passes", ["separate", "joint"])
def test_discriminator_loss(loss, passes):
    G, weight, D, batch = setting()
    out = build_objective(AdversarialConfig(loss=loss, passes=passes)).discriminator_loss(G, D, batch)
    sizes = [len(images) for images, _ in D.calls]
    assert sizes == ([3, 5] if passes == "separate" else [8])  # real first
    real, fake = D(batch.real_images, batch.real_labels).logits, D(G(batch.latents, batch.labels), batch.labels).logits
    torch.testing.assert_close(out["loss"], LOSSES[loss].discriminator(real, fake))
    torch.testing.assert_close(out["real_score"], real.mean().detach())
    torch.testing.assert_close(out["fake_score"], fake.mean().detach())
    out["loss"].backward()
    assert weight.grad is None  # no graph into the generator
    assert not any(value.requires_grad for name, value in out.items() if name != "loss")


@pytest.mark.parametrize("loss", LOSSES)
def test_generator_loss(loss):
    G, weight, D, batch = setting()
    D.requires_grad_(False)
    out = build_objective(AdversarialConfig(loss=loss)).generator_loss(G, D, Latents(batch.latents, batch.labels))
    fake = D(G(batch.latents, batch.labels), batch.labels).logits
    torch.testing.assert_close(out["loss"], LOSSES[loss].generator(fake))
    out["loss"].backward()
    assert weight.grad.any()
    assert D.linear.weight.grad is None


@pytest.mark.parametrize("passes", ["separate", "joint"])
def test_labels_go_with_their_images(passes):
    G, _, D, batch = setting()
    build_objective(AdversarialConfig(passes=passes)).discriminator_loss(G, D, batch)
    images = torch.cat([images for images, _ in D.calls])
    labels = torch.cat([labels for _, labels in D.calls])
    assert torch.equal(labels, torch.cat([batch.real_labels, batch.labels]))
    assert torch.equal(images[:3], batch.real_images)


@pytest.mark.parametrize("classify_generated", [True, False])
@pytest.mark.parametrize("passes", ["separate", "joint"])
def test_acgan_adds_the_class_losses(classify_generated, passes):
    """D minimises -(L_S + L_C), G minimises L_S - L_C; L_C of generated images in D's loss is the paper's choice."""
    G, _, D, batch = setting()
    config = ACGANConfig(
        loss="non_saturating",
        passes=passes,
        discriminator_class_weight=0.5,
        generator_class_weight=2,
        classify_generated=classify_generated,
    )
    objective = build_objective(config)
    out = objective.discriminator_loss(G, D, batch)
    real, fake = D(batch.real_images, batch.real_labels), D(G(batch.latents, batch.labels), batch.labels)
    want = LOSSES["non_saturating"].discriminator(real.logits, fake.logits)
    want = want + 0.5 * classification(real.class_logits, batch.real_labels)
    if classify_generated:
        want = want + 0.5 * classification(fake.class_logits, batch.labels)
    torch.testing.assert_close(out["loss"], want)
    out = objective.generator_loss(G, D, Latents(batch.latents, batch.labels))
    want = LOSSES["non_saturating"].generator(fake.logits) + 2 * classification(fake.class_logits, batch.labels)
    torch.testing.assert_close(out["loss"], want)
    assert 0 <= out["class_accuracy_fake"] <= 1


def test_acgan_needs_a_classifier():
    G, _, D, batch = setting(class_logits=False)
    with pytest.raises(SettingError, match=r"^objective\.name: "):
        build_objective(ACGANConfig()).discriminator_loss(G, D, batch)


@pytest.mark.parametrize("passes", ["separate", "joint"])
def test_r1_reads_the_real_pass(passes):
    G, _, D, batch = setting()
    out = build_objective(AdversarialConfig(passes=passes, penalty=R1Config(gamma=4))).discriminator_loss(G, D, batch)
    assert len(D.calls) == (2 if passes == "separate" else 1)
    x = batch.real_images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(D(x, batch.real_labels).logits.sum(), x)
    torch.testing.assert_close(out["r1"], gradient.square().flatten(1).sum(1).mean() / 2)
    torch.testing.assert_close(out["loss"].detach(), out["adversarial"] + 4 * out["r1"])
    out["loss"].backward()
    assert not batch.real_images.requires_grad


def test_gradient_penalty_and_drift_are_added_with_their_weights():
    G, _, D, batch = setting()
    penalty = GradientPenaltyConfig(weight=7, drift=0.5)
    out = build_objective(AdversarialConfig(loss="wasserstein", penalty=penalty)).discriminator_loss(G, D, batch)
    assert [len(images) for images, _ in D.calls] == [3, 5, 3]
    real = D(batch.real_images, batch.real_labels).logits
    torch.testing.assert_close(out["drift"], real.square().mean().detach())
    torch.testing.assert_close(
        out["loss"].detach(), out["adversarial"] + 7 * out["gradient_penalty"] + 0.5 * out["drift"]
    )
    out["loss"].backward()
    assert D.linear.weight.grad.any()


def test_objective_and_discriminator_must_fit():
    model, unconditional = ModelConfig(resolution=32, classes=3), ModelConfig(resolution=32, classes=0)
    projection, dcgan = ResNetDiscriminatorConfig(), DCGANDiscriminatorConfig()
    acgan = ResNetDiscriminatorConfig(conditioning=AuxiliaryClassifierConfig())
    check_objective(AdversarialConfig(), projection, model)
    check_objective(ACGANConfig(passes="joint"), acgan, model)
    check_objective(ACGANConfig(), dcgan, model)
    check_objective(AdversarialConfig(), dcgan, unconditional)
    for objective, discriminator, asked, setting in [
        (ACGANConfig(), projection, model, "objective.name"),
        (ACGANConfig(), dcgan, unconditional, "objective.name"),
        (AdversarialConfig(), acgan, model, "objective.name"),
        (ACGANConfig(passes="joint"), dcgan, model, "objective.passes"),
    ]:
        with pytest.raises(ValueError, match=f"^{setting}: "):
            check_objective(objective, discriminator, asked)
