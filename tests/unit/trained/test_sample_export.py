"""The verbs sample and export, on a run whose checkpoint is made here."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from pydantic import TypeAdapter

from trainer import export, sample
from trainer.checkpoint.commits import CheckpointStore
from trainer.config import as_tree, load_config
from trainer.foundation.errors import CheckpointError, SettingError
from trainer.methods.protocol import ClassNames
from trainer.methods.sampling import ClassConditions, LatentSampler
from trainer.models import ModelConfig
from trainer.models.conditioning import ConditionalBatchNorm2d
from trainer.models.resnet import ResNetGeneratorConfig
from trainer.trained.exports import describe_latent_sampler
from trainer.trained.pretrained import Generator, open_generator
from trainer.trained.sampling import evaluating

ZERO, ONE = torch.tensor(0), torch.tensor(1)
NAMES = ("tabby, tabby cat", "lifeboat", "crane", "crane", "Ankle boot")


def scatter_classes(module):
    """Gains and biases that differ between the classes: at their initial 1 and 0, all classes look alike."""
    for layer in module.modules():
        if isinstance(layer, ConditionalBatchNorm2d):
            torch.nn.init.normal_(layer.gain, 1.0)
            torch.nn.init.normal_(layer.bias)


@pytest.fixture
def run(tiny, tmp_path):
    """A run of 3 classes with weights, their average, and running statistics that are not the initial ones."""
    config = load_config(str(tiny()))
    torch.manual_seed(0)
    modules = {prefix: config.generator.build(config.model) for prefix in ("generator", "ema")}
    for module in modules.values():
        scatter_classes(module)
        for _ in range(20):
            module(torch.randn(8, 8), torch.randint(3, (8,)))
    tensors = {f"{p}/{k}": v for p, module in modules.items() for k, v in module.state_dict().items()}
    CheckpointStore(config.run.dir).save(7, tensors, {"settings": as_tree(config)})
    return config.run.dir


@pytest.fixture
def named():
    model = ModelConfig(resolution=32, classes=5, latent_dim=4)
    module = ResNetGeneratorConfig(channels=2).build(model).eval()
    scatter_classes(module)
    ids = tuple(f"n{i:08d}" for i in range(5))
    sampler = LatentSampler({"generator": module}, model, ClassConditions(5, NAMES, ids))
    described = describe_latent_sampler(model, ResNetGeneratorConfig(channels=2))
    return Generator(sampler, described, ClassNames(NAMES, ids), {"iteration": 1})


def pixels(path):
    return np.asarray(Image.open(path))


def test_export_round_trip(run, tmp_path, capsys):
    out = str(tmp_path / "export")
    assert export.main([run, out]) == 0
    assert "moving average of the weights of iteration 7" in " ".join(capsys.readouterr().out.split())
    of_run, exported = open_generator(run), Generator.from_pretrained(out)
    assert exported.training == of_run.training
    assert exported.training["moving_average"]
    assert exported.classes == of_run.classes
    assert len(exported.classes.names) == 3
    assert not any(p.requires_grad for p in exported.sampler.networks["generator"].parameters())
    z, y = torch.randn(4, 8), torch.tensor([0, 1, 2, 0])
    assert torch.equal(exported.make(z, y), of_run.make(z, y))
    assert export.main([run, str(tmp_path / "plain"), "--weights", "plain"]) == 0
    plain = Generator.from_pretrained(str(tmp_path / "plain"))
    assert not torch.equal(plain.make(z, y), exported.make(z, y))


def test_an_export_of_version_1_is_written_as_ever(named, tmp_path):
    """Byte for byte, since other programs read it; exports that were written before are read."""
    named.save_pretrained(str(tmp_path))
    assert json.loads((tmp_path / "config.json").read_text()) == {
        "format": "menagerie-generator",
        "version": 1,
        "model": {
            "resolution": 32,
            "image_channels": 3,
            "classes": 5,
            "latent_dim": 4,
            "latent_distribution": "normal",
        },
        "generator": TypeAdapter(ResNetGeneratorConfig).dump_python(ResNetGeneratorConfig(channels=2), mode="json"),
        "class_names": list(NAMES),
        "class_ids": [f"n{i:08d}" for i in range(5)],
        "training": {"iteration": 1},
    }
    text = (tmp_path / "config.json").read_text()
    head = ["format", "version", "model", "generator", "class_names", "class_ids", "training"]
    assert list(json.loads(text)) == head
    assert text.startswith(
        '{\n  "format": "menagerie-generator",\n  "version": 1,\n  "model": {\n    "resolution": 32,\n'
    )
    weights = safetensors.torch.load((tmp_path / "model.safetensors").read_bytes())
    assert set(weights) == set(named.sampler.networks["generator"].state_dict())
    again = Generator.from_pretrained(str(tmp_path))
    assert torch.equal(again.sample(["tabby"], seed=1), named.sample(["tabby"], seed=1))
    described = json.loads(text) | {"version": 3}
    (tmp_path / "config.json").write_text(json.dumps(described))
    with pytest.raises(CheckpointError, match="its format is menagerie-generator 3"):
        Generator.from_pretrained(str(tmp_path))


def test_an_export_says_what_is_wrong_with_it(run, tmp_path):
    out = tmp_path / "export"
    export.main([run, str(out)])
    with pytest.raises(SettingError, match=r"^RUN: .* is an export already"):
        export.main([str(out), str(tmp_path / "again")])
    with pytest.raises(CheckpointError, match="is no exported generator"):
        Generator.from_pretrained(str(tmp_path))
    described = json.loads((out / "config.json").read_text())
    described["generator"]["channels"] = 4
    (out / "config.json").write_text(json.dumps(described))
    with pytest.raises(CheckpointError, match="size mismatch"):
        Generator.from_pretrained(str(out))


def test_classes_by_name_part_identifier_and_number(named):
    for name, label in (
        ("lifeboat", 1),
        ("LIFEBOAT ", 1),
        ("tabby", 0),
        ("tabby, tabby cat", 0),
        ("n00000002", 2),
        ("4", 4),
        (3, 3),
        ("ankle boot", 4),
    ):
        assert int(named.sampler.conditions.parse(str(name))) == label
    for name, message in (
        ("lifebot", "did you mean 'lifeboat'"),
        ("crane", "names the classes 2 and 3; give the number"),
        ("5", "no class 5; give a number from 0 to 4"),
        ("-1", "no class -1"),
    ):
        with pytest.raises(SettingError, match=message):
            named.sampler.conditions.parse(name)


def test_conditions_of_classes(named):
    conditions = named.sampler.conditions
    assert conditions.evenly(2).tolist() == [0, 2]
    assert conditions.evenly(9).tolist() == [0, 1, 2, 3, 4]
    assert conditions.in_turn(range(3, 9)).tolist() == [3, 4, 0, 1, 2, 3]
    assert conditions.caption(ZERO) == "tabby"
    mixed = conditions.mix(ZERO, torch.tensor(4), torch.tensor([0.0, 0.25, 1.0]))
    assert mixed.tolist() == [[1, 0, 0, 0, 0], [0.75, 0, 0, 0, 0.25], [0, 0, 0, 0, 1]]
    assert conditions.caption(mixed[1]) == "75% tabby, 25% Ankle boot"
    none = ClassConditions(0, NAMES)
    assert (none.evenly(10).tolist(), none.in_turn(range(2)).tolist(), none.caption(ZERO)) == ([0], [0, 0], "")
    assert ClassConditions(3, NAMES).names == ()


def test_evaluation_mode_is_left_as_it_was(named):
    network = named.sampler.networks["generator"]
    network.train()
    network.norm.eval()
    before = [layer.training for layer in network.modules()]
    with evaluating(named.sampler, batch_statistics=True):
        assert not network.training
        assert network.norm.training
        assert not network.norm.update_statistics
    assert [layer.training for layer in network.modules()] == before
    assert network.norm.update_statistics
    with pytest.raises(KeyError), evaluating(named.sampler):
        raise KeyError
    assert [layer.training for layer in network.modules()] == before


def test_samples_depend_on_seed_class_and_number_alone(named):
    several = named.sample(["lifeboat", "tabby"], count=3, seed=5)
    assert several.shape == (6, 3, 32, 32)
    torch.testing.assert_close(named.sample([0], count=2, seed=5), several[3:5])
    assert not torch.equal(named.sample([0], count=2, seed=6), several[3:5])
    assert not torch.equal(named.latents(ZERO, 2, seed=5), named.latents(ONE, 2, seed=5))


def test_class_names_come_from_the_checkpoint_where_it_has_them(tiny, tmp_path):
    """The shards may be out of reach where one samples."""
    config = load_config(str(tiny(data={"shards": str(tmp_path / "nowhere")})))
    state = config.generator.build(config.model).state_dict()
    tensors = {f"generator/{name}": value for name, value in state.items()}
    info = {"settings": as_tree(config), "class_names": ["a", "b", "c"], "class_ids": ["n1", "n2", "n3"]}
    CheckpointStore(config.run.dir).save(1, tensors, info)
    generator = open_generator(config.run.dir)
    conditions = generator.sampler.conditions
    assert (int(conditions.parse("b")), int(conditions.parse("n3")), conditions.caption(ZERO)) == (1, 2, "a")
    CheckpointStore(config.run.dir).save(2, tensors, {"settings": as_tree(config)})
    conditions = open_generator(config.run.dir).sampler.conditions
    assert (int(conditions.parse("2")), conditions.caption(ZERO)) == (2, "class 0")
    with pytest.raises(SettingError, match="no class names are known; give the number"):
        conditions.parse("b")


def test_truncation(named):
    free, bound = named.latents(ONE, 200, seed=0), named.latents(ONE, 200, seed=0, truncation=0.5)
    assert free.abs().max() > 2
    assert bound.abs().max() <= 0.5
    assert bound.std().item() == pytest.approx(0.28, abs=0.03)  # of N(0, 1) within +-0.5
    assert torch.equal(named.latents(ONE, 200, seed=0, truncation=0.5), bound)


def test_batch_statistics_normalise_with_the_batch_and_leave_no_trace(named):
    module = named.sampler.networks["generator"]
    before = {name: value.clone() for name, value in module.state_dict().items()}
    z, y = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 4, 0])
    of_the_batch = named.make(z, y, batch_statistics=True)
    assert not torch.equal(of_the_batch, named.make(z, y))
    torch.testing.assert_close(of_the_batch, module.train()(z, y).detach())
    module.eval().load_state_dict(before)
    named.make(z, y, batch_statistics=True)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert not any(layer.training for layer in module.modules())


def test_sample_writes_a_grid_and_single_images(run, tmp_path):
    out = tmp_path / "pictures"
    assert sample.main([run, "--classes", "2, 0", "--count", "3", "--seed", "4", "--out", str(out)]) == 0
    singles = sorted((out / "grid").iterdir())
    assert len(singles) == 6
    generator = open_generator(run)
    want = (generator.sample([2, 0], 3, seed=4) * 127.5 + 127.5).clamp(0, 255).to(torch.uint8)
    np.testing.assert_array_equal(np.stack([pixels(path) for path in singles]), want[:, 0].numpy())
    assert (out / "grid.png").exists()
    told = json.loads((out / "grid.json").read_text())
    assert told["seed"] == 4
    assert told["training"]["iteration"] == 7


def test_morph_goes_from_one_class_to_the_other_at_fixed_latents(run, tmp_path):
    out = tmp_path / "pictures"
    generator = open_generator(run)
    first, last = (generator.sampler.conditions.caption(torch.tensor(k)) for k in (0, 2))
    arguments = [run, "--morph", f"{first} -> {last}", "--count", "2", "--steps", "3", "--out", str(out)]
    assert sample.main(arguments) == 0
    (folder,) = (path for path in out.iterdir() if path.is_dir())
    made = np.stack([pixels(path) for path in sorted(folder.iterdir())]).reshape(2, 3, 32, 32)
    z = generator.latents(ZERO, 2, seed=0)
    middle = torch.tensor([[0.5, 0.0, 0.5]]).expand(2, 3)
    for column, labels in ((0, torch.tensor([0, 0])), (1, middle), (2, torch.tensor([2, 2]))):
        want = (generator.make(z, labels) * 127.5 + 127.5).clamp(0, 255)
        assert np.abs(made[:, column].astype(float) - want[:, 0].numpy()).max() <= 1.01
    assert not np.array_equal(made[:, 0], made[:, 2])


def test_interpolation_begins_and_ends_at_latents_of_the_class(run, tmp_path):
    out = tmp_path / "pictures"
    arguments = [run, "--classes", "1", "--interpolate", "--count", "2", "--steps", "4", "--out", str(out)]
    assert sample.main(arguments) == 0
    made = np.stack([pixels(path) for path in sorted((out / "interpolation").iterdir())]).reshape(2, 4, 32, 32)
    generator = open_generator(run)
    z = generator.latents(ONE, 4, seed=0)
    want = (generator.make(z, torch.full((4,), 1)) * 127.5 + 127.5).clamp(0, 255)[:, 0].numpy()
    ends = made[:, [0, -1]].reshape(4, 32, 32).astype(float)
    assert np.abs(ends - want).max() <= 1.01


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--classes", "9"], r"^--classes: there is no class 9"),
        (["--morph", "0"], r"^--morph: is '0'; give two classes"),
        (["--morph", "0 -> x"], r"^--morph: .*'x'"),
        (["--morph", "0 -> 1", "--interpolate"], r"^--morph: does not go together"),
        (["--classes", ","], r"^--classes: names no class; name some"),
        (
            ["--truncation", "0"],
            r"^--truncation: is 0, and this generator's latents are bounded by it; give more than 0",
        ),
        (["--mix"], r"^--mix: this generator's method has no sheets; leave the option out"),
        (["--mix", "--interpolate"], r"^--interpolate: does not go together with --sheet or --mix"),
        (["--morph", "0 -> 1", "--classes", "2"], r"^--classes: does not go together with --morph"),
    ],
)
def test_wrong_options_are_one_sentence_and_write_nothing(run, tmp_path, arguments, message):
    with pytest.raises(SettingError, match=message):
        sample.main([run, "--out", str(tmp_path / "pictures"), *arguments])
    assert not (tmp_path / "pictures").exists()


def test_numbers_out_of_their_range_are_refused_where_they_are_read(run, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        sample.main([run, "--out", str(tmp_path / "pictures"), "--count", "0"])
    assert ended.value.code == 2
    assert "argument --count: is 0; give" in capsys.readouterr().err
    assert not (tmp_path / "pictures").exists()


def test_an_export_in_the_runs_own_folder_hides_no_checkpoint(run: Path) -> None:
    run = Path(str(run))
    assert export.main([str(run), str(run)]) == 0
    assert Generator.from_pretrained(str(run)).training["iteration"] > 0  # who asks for an export gets it
    (run / "model.safetensors").write_bytes(b"")
    assert open_generator(str(run)).training["iteration"] > 0
    assert export.main([str(run), str(run / "again")]) == 0
