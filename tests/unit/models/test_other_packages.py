"""Networks from another package: nothing here knows their names, and neither an edit nor an isinstance is needed."""

import pytest
import torch

from trainer.checkpoint.commits import CheckpointStore
from trainer.config import as_yaml, load_config
from trainer.costs.dry_run import describe
from trainer.foundation.errors import SettingError
from trainer.processes.launch import read_launch
from trainer.trained.pretrained import open_generator
from trainer.training.loop import train

NETWORKS = '''
import torch
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from torch import nn
from trainer.models import DiscriminatorOutput

@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Painter:
    width: int = 4
    def build(self, model):
        return PainterNetwork(self.width, model)

class PainterNetwork(nn.Module):
    """It says nothing of itself, and has noise."""
    def __init__(self, width, model):
        super().__init__()
        self.shape = (model.image_channels, model.resolution, model.resolution)
        pixels = model.image_channels * model.resolution**2
        self.layers = nn.Sequential(nn.Linear(model.latent_dim, width), nn.ReLU(), nn.Linear(width, pixels), nn.Tanh())
    def forward(self, latents, labels):
        noise = torch.randn_like(latents) if self.training else 0
        return self.layers(latents + noise).view(-1, *self.shape)

@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Judge:
    def build(self, model):
        return JudgeNetwork(model)

class JudgeNetwork(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.linear = nn.Linear(model.image_channels * model.resolution**2, 1)
    def forward(self, images, labels):
        return DiscriminatorOutput(self.linear(images.flatten(1)).squeeze(1))
'''


@pytest.fixture
def experiment(tmp_path, monkeypatch, tiny):
    """The path of an experiment with the networks of `my_lab`."""
    (tmp_path / "my_lab.py").write_text(NETWORKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tiny(generator={"name": "my_lab:Painter", "width": 5}, discriminator={"name": "my_lab:Judge"})
    # The fixture's networks have settings that these lack.
    path.write_text(
        path.read_text().replace("  channels: 8\n", "").replace("  conditioning:\n    name: projection\n", "")
    )
    return path


def test_they_train_resume_and_are_sampled(experiment, tmp_path):
    states = []
    for run, stops in (("straight", [4]), ("stopped", [2, 4])):
        for iterations in stops:
            words = ["--run.dir", str(tmp_path / run), "--run.iterations", str(iterations)]
            assert train(load_config(str(experiment), words), read_launch())
        restored = CheckpointStore(str(tmp_path / run)).restore()
        assert restored.commit.info["settings"]["generator"] == {"name": "my_lab:Painter", "width": 5}
        states.append(restored.tensors)
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    generator = open_generator(str(tmp_path / "straight"))
    generator.save_pretrained(str(tmp_path / "export"))
    exported = open_generator(str(tmp_path / "export"))
    assert torch.equal(generator.sample([0, 2]), exported.sample([0, 2]))


def test_their_settings_are_printed_checked_and_loaded_again(experiment, tmp_path):
    config = load_config(str(experiment), ["--generator.width", "7"])
    (tmp_path / "again.yaml").write_text(as_yaml(config))
    assert load_config(str(tmp_path / "again.yaml")) == config
    assert "generator: 8,255" in describe(config, read_launch())
    with pytest.raises(SettingError, match=r"^generator\.widht: unknown setting .*; did you mean generator\.width\?"):
        load_config(str(experiment), ["--generator.widht", "7"])
    with pytest.raises(SettingError, match=r"^objective\.passes: joint"):  # the discriminator does not say that it may
        load_config(str(experiment), ["--objective.passes", "joint"])
