"""What is compared between processes."""

import torch

from trainer.models import ModelConfig
from trainer.models.resnet import ResNetDiscriminatorConfig, ResNetGeneratorConfig
from trainer.players.optimizers import AdamConfig
from trainer.players.player import Player
from trainer.processes.launch import Launch
from trainer.training.selfcheck import shared_tensors

LAUNCH = Launch(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), precision="fp32", strategy="single")


def test_spectral_norms_vectors_are_compared_and_running_statistics_are_not() -> None:
    """u moves in every pass on every process: two models of GPU drift apart there first. Statistics follow replica 0."""
    model = ModelConfig(resolution=32, classes=3, latent_dim=4)
    for config in (ResNetDiscriminatorConfig(channels=2), ResNetGeneratorConfig(channels=2)):
        network = config.build(model)
        found = shared_tensors(Player("p", {"net": network}, AdamConfig(), LAUNCH))
        vectors = {f"net/{name}" for name, _ in network.named_buffers() if name.endswith(".u")}
        assert set(found) == {name for name, _ in network.named_parameters()} | vectors
        assert bool(vectors) == isinstance(config, ResNetDiscriminatorConfig)
