"""AC-GAN's class terms: L_C of Odena et al. 2017 (Eq. 3) for both players."""

from torch import Tensor

from trainer.foundation.errors import SettingError
from trainer.methods.terms.losses import classification
from trainer.methods.terms.term import Seen, Term, Value
from trainer.models.conditioning import DiscriminatorOutput


class ClassTerm(Term):
    """D minimises -(L_S + L_C), G minimises L_S - L_C; L_S is the adversarial part."""

    draws = False
    means_over_samples = True
    name = "class"

    def __init__(self, discriminator_weight: float, generator_weight: float, classify_generated: bool) -> None:
        """`classify_generated`: whether the discriminator's L_C has the term of generated images."""
        self.weights = {"discriminator": discriminator_weight, "generator": generator_weight}
        self.classify_generated = classify_generated

    def weight(self, player: str, iteration: int, update: int) -> float | None:
        return self.weights[player]

    def value(self, player: str, seen: Seen, weight: float) -> Value:
        fake_logits = _class_logits(seen.fake)
        of_fake = classification(fake_logits, seen.fake_labels)
        if seen.real is None or seen.real_labels is None:
            accuracy = _accuracy(fake_logits, seen.fake_labels)
            return Value(weight * of_fake, {"class_fake": of_fake, "class_accuracy_fake": accuracy})
        real_logits = _class_logits(seen.real)
        of_real = classification(real_logits, seen.real_labels)
        total = of_real + of_fake if self.classify_generated else of_real
        accuracy = _accuracy(real_logits, seen.real_labels)
        return Value(weight * total, {"class_real": of_real, "class_fake": of_fake, "class_accuracy_real": accuracy})


def _class_logits(output: DiscriminatorOutput) -> Tensor:
    if output.class_logits is None:
        raise SettingError(
            "objective.name: acgan needs a discriminator with class logits and this one has none; "
            "set discriminator.conditioning.name to acgan"
        )
    return output.class_logits


def _accuracy(class_logits: Tensor, labels: Tensor) -> Tensor:
    return (class_logits.argmax(1) == labels).to(class_logits.dtype).mean()
