"""The networks of "Conditional Generative Adversarial Nets" (Mirza & Osindero 2014, section 4.2): from images to tags.

Both see an image as a vector of features. The paper leaves out the initial weights and where dropout acts; both are as in
its predecessor (goodfeli/adversarial, mnist.yaml): uniform weights, and dropout on what a hidden layer is given.
Shapes: B batch, F features of an image, D numbers of a word vector, Z latent dimension, V words.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.models.layers import at_least_float32, full_precision
from trainer.models.maxout import Maxout


class WordTable(nn.Module):
    """The frozen vectors of the vocabulary: labels [B] -> word vectors [B, D]. It has no parameters."""

    draws = couples_samples = moves_state = False
    vectors: Tensor

    def __init__(self, vectors: Tensor) -> None:
        """`vectors`: float32 [V, D]."""
        super().__init__()
        self.register_buffer("vectors", vectors)

    def forward(self, labels: Tensor) -> Tensor:
        return self.vectors[labels]


class TagGenerator(nn.Module):
    """Noise -> ReLU units, features -> ReLU units, both -> one linear layer, which is the word vector."""

    draws = couples_samples = False

    def __init__(
        self,
        *,
        latent_dim: int,
        features: int,
        word_length: int,
        noise_units: int,
        image_units: int,
        dropout: float,
        weight_range: float,
        normalised: bool,
    ) -> None:
        super().__init__()
        self.noise = nn.Linear(latent_dim, noise_units)
        self.image = nn.Linear(features, image_units)
        self.word = nn.Linear(noise_units + image_units, word_length)
        self.dropout = nn.Dropout(dropout)
        self.normalised = normalised
        _draw_weights(self, weight_range)

    def forward(self, latents: Tensor, features: Tensor) -> Tensor:
        """Word vectors [B, D] of latents [B, Z] and features [B, F]."""
        h = torch.cat([F.relu(self.noise(latents)), F.relu(self.image(_features(features, self.normalised)))], 1)
        return at_least_float32(self.word(self.dropout(h)))


class TagDiscriminator(nn.Module):
    """Word vector -> ReLU units, features -> ReLU units, both -> maxout units -> a logit."""

    draws = couples_samples = False

    def __init__(
        self,
        *,
        features: int,
        word_length: int,
        word_units: int,
        image_units: int,
        joint_units: int,
        joint_pieces: int,
        dropout: float,
        weight_range: float,
        normalised: bool,
    ) -> None:
        super().__init__()
        self.word = nn.Linear(word_length, word_units)
        self.image = nn.Linear(features, image_units)
        self.joint = Maxout(word_units + image_units, joint_units, joint_pieces)
        self.logit = nn.Linear(joint_units, 1)
        self.dropout = nn.Dropout(dropout)
        self.normalised = normalised
        _draw_weights(self, weight_range)

    def forward(self, words: Tensor, features: Tensor) -> Tensor:
        """Logits [B], at least float32, of words [B, D] and features [B, F]."""
        h = torch.cat([F.relu(self.word(words)), F.relu(self.image(_features(features, self.normalised)))], 1)
        h = self.dropout(self.joint(self.dropout(h)))
        with full_precision(h.device):
            return F.linear(at_least_float32(h), self.logit.weight, self.logit.bias).squeeze(1)


def _features(features: Tensor, normalised: bool) -> Tensor:
    """As they are, or each image's shifted and scaled to mean 0 and variance 1."""
    return F.layer_norm(features, features.shape[1:]) if normalised else features


def _draw_weights(module: nn.Module, bound: float) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.uniform_(layer.weight, -bound, bound)
            nn.init.zeros_(layer.bias)
