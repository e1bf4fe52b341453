"""Every shipped configuration: the sizes of its networks, and what it may differ in."""

from pathlib import Path

import pytest
import torch
import yaml

from trainer.config import load_config

CONFIGS = Path(__file__).resolve().parents[3] / "configs"

# Parameters of G and D. The official code's are exact: ImageNet 128 (G, projection, concat) and CIFAR-10. The others are
# what the same layers count with other widths, classes or heads.
SIZES = {
    "imagenet128_projection": (41_996_931, 30_041_857),
    "imagenet128_projection_finetune": (41_996_931, 30_041_857),
    "imagenet128_projection_850k": (41_996_931, 30_041_857),
    "imagenet128_concat": (41_996_931, 30_538_625),
    "imagenet128_acgan": (41_996_931, 30_042_857),
    "imagenet128_acgan_split": (11_465_731, 2_525_579),
    "imagenet64_projection": (17_974_915, 11_165_441),
    "dogs_cats128_projection": (10_606_339, 8_574_977),
    "cifar10_projection": (4_304_387, 1_055_104),
    "cifar100_projection": (4_580_867, 1_066_624),
    "cifar10_acgan": (1_593_891, 1_663_883),
    "imagenet128_superresolution": (5_330_825, 29_390_340),
    "imagenet128_superresolution_concat": (5_330_825, 29_401_557),
    "emoji64_superresolution": None,
    "horse2zebra256_cyclegan": (11_378_179, 2_764_737),  # the official code's; each of the two
    "facades256_cyclegan": (11_378_179, 2_764_737),
    "maps256_cyclegan": (11_378_179, 2_764_737),
    "monet2photo256_cyclegan": (11_378_179, 2_764_737),
    "horse2zebra128_cyclegan_lua": None,
    "emoji64_cyclegan": None,
    "mnist28_cgan": (2_413_984, 1_224_351),
    "fashion28_cgan": (2_413_984, 1_224_351),
    "mnist28_sgan": (694_568, 1_538_770),
    "cifar10_sgan": (4_933_382, 1_406_804),
    "svhn_sgan": (4_933_382, 626_580),
    "fashion32_sgan": None,
    "celebahq1024_pggan": (23_079_115, 23_087_249),
    "lsun256_pggan": (23_044_309, 23_052_353),
    "cifar10_pggan": (1_296_908, 1_298_689),
    "fashion32_pggan": None,
    "ffhq1024_stylegan": (26_219_627, 23_087_249),
    "ffhq1024_stylegan_a": (23_079_115, 23_087_249),
    "lsun256_stylegan": (26_086_229, 23_052_353),
    "fashion32_stylegan": None,
    "emoji64_stylegan": None,
    "mirflickr25k_tagging": (8_744_700, 10_120_901),
    "emoji_tagging": None,
    "fashion32_projection": None,
    "fashion32_projection_finetune": None,
    "fashion32_concat": None,
    "fashion32_acgan": None,
}


def parameters(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_sizes_and_fit(path):
    config = load_config(str(path))
    with torch.device("meta"):
        method = config.objective.build(config.problem())
        if config.generator is None:  # the networks are the method's
            sizes = tuple(sum(parameters(method.build(name)) for name in names) for names in method.players.values())
        else:
            sizes = (
                parameters(config.generator.build(config.model)),
                parameters(config.discriminator.build(config.model)),
            )
    assert path.stem in SIZES, "a new configuration: give its sizes here"
    if SIZES[path.stem]:
        assert sizes == SIZES[path.stem]


@pytest.mark.parametrize("kind", ["concat", "acgan"])
def test_fashion_configurations_differ_in_the_conditioning_alone(kind):
    """So that a comparison of them compares the conditionings."""
    trees = [yaml.safe_load((CONFIGS / f"fashion32_{name}.yaml").read_text()) for name in ("projection", kind)]
    for tree in trees:
        tree.pop("checkpoint", None)  # which commits are kept
        del tree["run"]["dir"], tree["discriminator"]["conditioning"], tree["objective"]["name"]
    assert trees[0] == trees[1]


@pytest.mark.parametrize("name", ["imagenet128_projection", "fashion32_projection"])
def test_a_fine_tuning_configuration_adds_the_stage_to_its_base(name):
    """Nothing else differs, so that with and without the loss can be compared; and the base keeps the commit it starts from."""
    base, tuned = (yaml.safe_load((CONFIGS / f"{stem}.yaml").read_text()) for stem in (name, f"{name}_finetune"))
    stage = tuned.pop("classifier_loss")
    source, _, iteration = tuned["run"]["initialize_from"].partition("@")
    assert source == base["run"]["dir"]
    assert int(iteration) == stage["begin"] == base["schedule"]["stages"][0]["until"]
    assert stage["until"] == tuned["run"]["iterations"] == base["run"]["iterations"]
    assert int(iteration) % base.pop("checkpoint")["keep_every"] == 0
    assert int(iteration) % base["run"]["checkpoint_every"] == 0
    for tree in (base, tuned):
        del tree["run"]
    assert base == tuned
