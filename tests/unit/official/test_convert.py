"""Official snapshots, made here from random numbers under the official names, and what becomes of them."""

import numpy as np
import pytest
import torch

from tests.support import reference
from tests.support.official_arrays import CLASSES, FORMS, LATENT, official_discriminator, official_generator
from trainer import convert
from trainer.checkpoint.commits import CheckpointStore
from trainer.config import config_from_tree
from trainer.foundation.errors import SettingError
from trainer.official.snapshots import SnapshotError
from trainer.trained.pretrained import open_generator


def save(path, arrays):
    np.savez(path, **arrays)
    return str(path)


def double(arrays):
    return {name: array.astype(np.float64) for name, array in arrays.items() if array.dtype.kind == "f"}


def converted_discriminator(run):
    restored = CheckpointStore(run).restore()
    config = config_from_tree(restored.commit.info["settings"])
    module = config.discriminator.build(config.model)
    prefix = "discriminator/"
    module.load_state_dict({k.removeprefix(prefix): v for k, v in restored.tensors.items() if k.startswith(prefix)})
    return module.double()


@pytest.mark.parametrize("resolution", FORMS)
def test_a_converted_generator_equals_the_reference(resolution, tmp_path):
    arrays = official_generator(resolution)
    run = str(tmp_path / "run")
    assert convert.main([save(tmp_path / "ResNetGenerator_1000.npz", arrays), run]) == 0
    generator = open_generator(run)
    assert generator.training["iteration"] == 1000
    model = generator.sampler.model
    assert (model.resolution, model.classes, model.latent_dim) == (
        resolution,
        CLASSES,
        LATENT,
    )
    module = generator.sampler.networks["generator"].double()
    z, y = np.random.default_rng(1).normal(size=(4, LATENT)), np.array([0, 4, 2, 2])
    blocks = len(FORMS[resolution][0]) - 1
    for train in (False, True):
        want, moved = reference.generator(double(arrays), z, y, train, blocks)
        got = module.train(train)(torch.from_numpy(z), torch.from_numpy(y))
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-9, atol=1e-11)
    state = module.state_dict()
    np.testing.assert_allclose(state["blocks.0.norm1.norm.running_mean"], moved["block2/b1/avg_mean"], rtol=1e-9)
    last = f"b{blocks + 2}/avg_var"
    np.testing.assert_allclose(state["norm.running_var"], moved[last], rtol=1e-9)


@pytest.mark.parametrize("resolution", FORMS)
@pytest.mark.parametrize("kind", ["projection", "concat", "none"])
def test_a_converted_discriminator_equals_the_reference(resolution, kind, tmp_path):
    arrays = official_discriminator(resolution, kind=kind)
    run = str(tmp_path / "run")
    files = [save(tmp_path / "D_5.npz", arrays)]
    if resolution == 32:  # with its generator; alone at the other resolutions
        files.append(save(tmp_path / "G_5.npz", official_generator(resolution, conditional=kind != "none")))
    assert convert.main([*files, run]) == 0
    module = converted_discriminator(run)
    x, y = np.random.default_rng(1).normal(size=(2, 3, resolution, resolution)), np.array([0, 4])
    _, widths, halvings, _, _ = FORMS[resolution]
    want, moved = reference.discriminator(double(arrays), x, y, len(widths), halvings)
    for train in (False, True):
        got = module.train(train)(torch.from_numpy(x), torch.from_numpy(y)).logits
        np.testing.assert_allclose(got.detach().numpy(), want, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(module.linear.u, moved[f"l{len(widths) + 1}/u"], rtol=1e-9)
    np.testing.assert_allclose(module.blocks[0].shortcut.u, moved["block1/c_sc/u"], rtol=1e-9)
    got.sum().backward()
    direction = {"block2/c2/W": np.random.default_rng(2).normal(size=arrays["block2/c2/W"].shape)}
    # `got` was computed with u as converted, which is what the reference starts from.
    slope = reference.slope(
        lambda a: reference.discriminator(a, x, y, len(widths), halvings)[0].sum(), double(arrays), direction
    )
    gradient = module.blocks[1].conv2.weight.grad.numpy()
    assert (gradient * direction["block2/c2/W"]).sum() == pytest.approx(slope, rel=1e-8)


def trainer_snapshot():
    """What `extensions.snapshot()` writes: both networks, both optimizers, and the trainer's own state."""
    rng, whole = np.random.default_rng(3), {}
    for name, arrays in (("opt_gen", official_generator(32)), ("opt_dis", official_discriminator(32))):
        whole |= {f"updater/model:{name}/{key}": array for key, array in arrays.items()}
        moving = ("/u", "/avg_mean", "/avg_var", "/N")
        for key, array in arrays.items():
            if not key.endswith(moving):
                for moment in ("m", "v"):
                    values = rng.normal(size=array.shape).astype(np.float32)
                    whole[f"updater/optimizer:{name}/{key}/{moment}"] = values
        whole[f"updater/optimizer:{name}/t"] = np.array(300 if name == "opt_gen" else 1500)
        whole[f"updater/optimizer:{name}/epoch"] = np.array(2)
    whole["updater/iteration"] = np.array(300)
    whole["updater/iterator:main/current_position"] = np.array(17)
    whole["extensions/LogReport/_log"] = np.array("[]")
    whole["_snapshot_elapsed_time"] = np.array(1.0)
    return whole


def test_a_whole_trainer_snapshot_can_be_trained_on(tmp_path):
    whole = trainer_snapshot()
    run = str(tmp_path / "run")
    assert convert.main([save(tmp_path / "snapshot.npz", whole), run]) == 0
    restored = CheckpointStore(run).restore()
    assert restored.commit.iteration == 300
    tensors = restored.tensors
    assert tensors["generator.adam/step"] == 300
    assert tensors["discriminator.adam/step"] == 1500
    for ours, theirs in (
        ("generator.adam/exp_avg/linear.weight", "updater/optimizer:opt_gen/l1/W/m"),
        ("discriminator.adam/exp_avg_sq/conditioning.embedding.weight", "updater/optimizer:opt_dis/l_y/W/v"),
    ):
        np.testing.assert_array_equal(tensors[ours].numpy(), whole[theirs])
    # Exactly the tensors that a player of this configuration keeps.
    from trainer.players.player import Player, check_names
    from trainer.processes.launch import read_launch

    config = config_from_tree(restored.commit.info["settings"])
    player = Player(
        "discriminator",
        {"discriminator": config.discriminator.build(config.model)},
        config.optimizer.discriminator,
        read_launch(),
    )
    check_names(player.state(), {k: v for k, v in tensors.items() if k.startswith("discriminator")}, "test")
    assert (config.run.iterations, config.schedule.stages[0].until) == (50_000, 50_000)


def removed(arrays, name):
    return {key: array for key, array in arrays.items() if key != name}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda a: removed(a, "block3/b2/gammas/W"), "block3/b2/gammas/W"),
        (lambda a: removed(a, "l1/W"), "l1/W"),
        (lambda a: removed(a, "block2/c1/W"), "block2/c1/W"),
        (lambda a: removed(a, "c5/b"), "c5/b"),
        (lambda a: a | {"block3/extra/W": np.zeros(3, np.float32)}, "block3/extra/W"),
        (lambda a: a | {"block3/c1/b": np.zeros(9, np.float32)}, "block3/c1/b"),
        (lambda a: a | {"block3/c1/b": np.zeros(1, np.int64)}, "block3/c1/b"),
    ],
)
def test_unknown_missing_and_misshapen_arrays_are_refused_by_name(change, named, tmp_path):
    path = save(tmp_path / "g.npz", change(official_generator(32)))
    with pytest.raises(SnapshotError, match=named):
        convert.main([path, str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_missing_u_and_missing_moments_are_refused_by_name(tmp_path):
    generator = save(tmp_path / "g.npz", official_generator(32))
    discriminator = save(tmp_path / "d.npz", removed(official_discriminator(32), "block1/c1/u"))
    with pytest.raises(SnapshotError, match="lacks block1/c1/u"):
        convert.main([generator, discriminator, str(tmp_path / "run")])
    whole = save(tmp_path / "w.npz", removed(trainer_snapshot(), "updater/optimizer:opt_dis/l5/W/v"))
    with pytest.raises(SnapshotError, match="lacks Adam's l5/W/v"):
        convert.main([whole, str(tmp_path / "run")])


def test_files_that_are_no_snapshots_of_one_run_are_refused(tmp_path):
    generator = save(tmp_path / "g_10.npz", official_generator(32))
    other = save(tmp_path / "d_20.npz", official_discriminator(32))
    (tmp_path / "text.npz").write_text("no")
    run = str(tmp_path / "run")
    for files, message in (
        ([generator, other], "is of iteration 20, the file before it of 10"),
        ([generator, generator], "holds a second generator"),
        ([str(tmp_path / "text.npz")], "is no .npz snapshot"),
        ([str(tmp_path / "none.npz")], "there is no such file"),
        ([save(tmp_path / "x.npz", {"a/b": np.zeros(2)})], "holds a/b, which belongs to neither network"),
    ):
        with pytest.raises(SnapshotError, match=message):
            convert.main([*files, run])
    unconditional = save(tmp_path / "d.npz", official_discriminator(32, kind="none"))
    with pytest.raises(SnapshotError, match=r"its model.classes is 0, that of .* is 5"):
        convert.main([generator, unconditional, run])
    assert convert.main([generator, run]) == 0
    with pytest.raises(SettingError, match=r"^RUN: .* holds checkpoints already"):
        convert.main([generator, run])


def test_a_given_configuration_must_fit(tmp_path, tiny):
    generator = save(tmp_path / "g_10.npz", official_generator(32))
    with pytest.raises(SnapshotError, match="l1/W is float32"):
        convert.main([generator, str(tmp_path / "run"), "--config", str(tiny())])
