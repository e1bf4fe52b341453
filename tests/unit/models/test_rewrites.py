"""Every rewrite against the plain form, in float64, for the networks of every shipped configuration at small width."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from tests.support.games import draw_of, losses
from trainer.config import load_config
from trainer.models import replica_passes, rewrites
from trainer.models.rewrites import expand
from trainer.models.traits import draws_inside
from trainer.processes.launch import read_launch
from trainer.speed.apply import apply_speed
from trainer.speed.settings import PLAIN, SpeedConfig

CONFIGS = sorted((Path(__file__).resolve().parents[3] / "configs").glob("*.yaml"))
LAUNCH = read_launch()
REWRITES = {
    "merged pooling": {"convolutions": "merged"},
    "transposed": {"convolutions": "transposed"},
    "phases": {"convolutions": "phases"},
    "matrix products": {"convolutions": "matrix"},
    "shortcuts": {"low_resolution_shortcuts": True},
    "spectral norm": {"fused_spectral_norm": True},
    "conditional norm": {"fused_conditional_norm": True},
    "recomputed blocks": {"recompute_blocks": True},
    "the defaults": None,
}
# Networks whose layers are the same at small width are tested once.
ONCE = {"imagenet128_projection_850k", "imagenet128_acgan", "dogs_cats128_projection", "cifar100_projection"}
ONCE |= {"fashion32_acgan", "fashion32_concat"}
BATCH, REPLICAS = 2, 2


def has_rewrites(path):
    """Whether the configuration's networks are those that know several forms."""
    tree = yaml.safe_load(path.read_text())
    return path.stem not in ONCE and tree.get("generator", {}).get("name") in ("resnet", "dcgan")


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def close(found, plain, scale, what, bound=1e-12):
    """Largest difference, against the largest number among those of its kind (`scale`)."""
    error = float((found - plain).abs().max())
    assert error <= bound * scale, f"{what}: {error / scale:.1e} of {scale:.1e}"


def step(G, D, method, draws):
    """Losses, images, gradients of both players' steps over two replicas, and what the passes moved."""
    out = {}
    with replica_passes(G, D) as start_replica:
        total = 0
        for replica, batch in enumerate(draws):
            start_replica(replica)
            torch.manual_seed(replica)
            found = losses(method, "discriminator", {"generator": G, "discriminator": D}, batch)
            total = total + found["loss"]
            out |= {f"{replica} {name}": value.detach() for name, value in found.items()}
    total.backward()
    out |= {f"D gradient {name}": p.grad for name, p in D.named_parameters()}
    D.requires_grad_(False)
    with replica_passes(G, D) as start_replica:
        total = 0
        for replica, batch in enumerate(draws):
            start_replica(replica)
            torch.manual_seed(replica)
            out[f"images {replica}"] = G(batch["latents"], batch["labels"]).detach()
            total = total + losses(method, "generator", {"generator": G, "discriminator": D}, batch)["loss"]
    total.backward()
    D.requires_grad_(True)
    out |= {f"G gradient {name}": p.grad for name, p in G.named_parameters()}
    out |= {f"moved {name}": b.clone() for net in (G, D) for name, b in net.named_buffers()}
    return out


def small(path):
    config = load_config(str(path))
    model = replace(config.model, latent_dim=3 + config.model.classes, classes=min(config.model.classes, 6))
    if config.generator.name == "resnet":
        generator, discriminator = replace(config.generator, channels=2), replace(config.discriminator, channels=2)
    else:
        widths = config.generator.widths or (0,) * (5 if model.resolution == 128 else 4)
        generator = replace(config.generator, widths=tuple(4 for _ in widths))
        discriminator = replace(config.discriminator, widths=(4,) * 6)
    torch.manual_seed(0)
    G, D = generator.build(model).double(), discriminator.build(model).double()
    draws = [
        draw_of(
            double(BATCH, model.latent_dim),
            torch.randint(model.classes, (BATCH,)),
            double(BATCH, model.image_channels, model.resolution, model.resolution),
            torch.randint(model.classes, (BATCH,)),
        )
        for _ in range(REPLICAS)
    ]
    for norm in G.modules():  # off their initial 1 and 0
        for name, table in norm.named_parameters(recurse=False):
            if name in ("gain", "bias"):
                table.data.add_(torch.randn_like(table), alpha=0.3)
    return config, G, D, draws


@pytest.mark.parametrize("path", [p for p in CONFIGS if has_rewrites(p)], ids=lambda path: path.stem)
def test_a_step_is_the_plain_one(path):
    config, G, D, draws = small(path)
    method = config.objective.build(config.problem())

    def result(speed):
        g, d = copy.deepcopy(G), copy.deepcopy(D)
        apply_speed(speed, {"generator": g, "discriminator": d}, config.model.resolution, LAUNCH)
        if speed.channels_last:
            g, d = g.to(memory_format=torch.channels_last), d.to(memory_format=torch.channels_last)
        return step(g, d, method, draws)

    # Dropout is drawn in the order of memory, so that its networks have but one layout (and speed refuses the other).
    reference = replace(PLAIN, channels_last=draws_inside(D))
    plain = result(reference)
    kinds = ("D gradient", "G gradient", "images", "moved")
    scales = {kind: max(float(v.abs().max()) for k, v in plain.items() if k.startswith(kind)) for kind in kinds}
    for name, settings in REWRITES.items():
        if settings == {"recompute_blocks": True} and not hasattr(G, "recompute"):
            continue
        found = result(SpeedConfig() if settings is None else replace(reference, **settings))
        assert found.keys() == plain.keys()
        for what, value in found.items():
            scale = float(plain[what].abs().max())
            # A bias in front of a batch norm has a true gradient of 0, which is only rounding: measured by its kind.
            kind = next((kind for kind in kinds if what.startswith(kind)), None)
            if kind and what.endswith("bias"):
                scale = scales[kind]
            close(value, plain[what], scale, f"{name}: {what}", 1e-12)


@pytest.mark.parametrize("kind", ["pool", "transposed", "phases"])
def test_the_first_caller_may_be_in_any_context(kind):
    """The matrices are kept, so none may be a shape alone (dry runs) or an inference tensor (sampling)."""
    weight = double(2, 3, 3, 3)
    for context in (torch.device("meta"), torch.inference_mode()):
        rewrites._matrix.cache_clear()
        with context:
            expand(weight, kind)
        expand(weight.clone().requires_grad_(True), kind).sum().backward()
