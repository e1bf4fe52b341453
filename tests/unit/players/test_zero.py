"""What DeepSpeed's engine computes in. A GPU answers one question of the engine otherwise than a CPU: it is answered here."""

import subprocess
import sys

from tests.support.checkout import ROOT, environment

ANSWERED = """
from dataclasses import replace
import torch
from trainer.models import ModelConfig
from trainer.models.resnet import ResNetDiscriminatorConfig
from trainer.players.optimizers import AdamConfig
from trainer.players.player import Player
from trainer.processes.launch import read_launch, start_processes, stop_processes

first = replace(read_launch("cpu"), strategy="zero1")
start_processes(first)
x, labels, found = torch.randn(4, 1, 32, 32), torch.randint(3, (4,)), set()
original = torch.is_autocast_enabled
for strategy, precision, answer in (("zero1", "bf16", "cuda"), ("zero2", "bf16", "cuda"), ("zero2", "bf16", "cpu"),
                                    ("zero2", "fp32", "cuda")):
    launch = replace(first, strategy=strategy, precision=precision)
    network = ResNetDiscriminatorConfig(channels=4).build(ModelConfig(resolution=32, image_channels=1, classes=3, latent_dim=4))
    player = Player("discriminator", {"discriminator": network}, AdamConfig(), launch)
    for name, module in network.named_modules():
        if name.endswith(("conv1", "conv2")):
            module.register_forward_hook(lambda module, given, result: found.add(str(result.dtype).removeprefix("torch.")))
    if answer == "cuda":  # without an argument it is CUDA's, which `torch.autocast("cuda")` has switched on
        torch.is_autocast_enabled = lambda *kind: original(*kind) if kind else original("cpu")
    said = []
    for called in (player.modules["discriminator"], player.networks["discriminator"]):
        found.clear()
        with launch.autocast():
            loss = called(x, labels)[0].sum()
        said.append("+".join(sorted(found)))
    player.step([loss], 1.0)
    torch.is_autocast_enabled = original
    kept = {str(value.dtype) for name, value in player.state().items() if "/step" not in name}
    print("found", strategy, precision, answer, *said, *kept)
stop_processes()
"""


def test_the_engine_computes_in_the_launchs_precision() -> None:
    """Bare network, then engine. Without `torch_autocast` the engine computes bf16 launches in fp32, on GPUs alone."""
    given = {**environment(), "LOCAL_RANK": "0"}
    done = subprocess.run(
        [sys.executable, "-c", ANSWERED], cwd=ROOT, env=given, capture_output=True, text=True, timeout=280
    )
    found = [line.removeprefix("found ") for line in done.stdout.splitlines() if line.startswith("found ")]
    assert found == [
        "zero1 bf16 cuda bfloat16 bfloat16 torch.float32",
        "zero2 bf16 cuda bfloat16 bfloat16 torch.float32",
        "zero2 bf16 cpu bfloat16 bfloat16 torch.float32",
        "zero2 fp32 cuda float32 float32 torch.float32",
    ], done.stdout + done.stderr
