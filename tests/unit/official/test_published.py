"""Published pickles: read without executing anything, refused by name, and the same function as the official layers."""

import json
import os
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from trainer import convert, sample
from trainer.foundation.errors import SettingError
from trainer.models.config import ModelConfig
from trainer.models.growing import Stage
from trainer.models.pggan import PGGANGeneratorConfig
from trainer.models.stylegan import StyleGANGeneratorConfig
from trainer.official.pickled import PickleError, read_pickle
from trainer.official.published import published_generator
from trainer.trained.pretrained import Generator

Arrays = dict[str, np.ndarray[Any, Any]]
RANDOM = np.random.default_rng(0)


@pytest.fixture
def official(monkeypatch: pytest.MonkeyPatch) -> type:
    """A class that pickles as the official one; it is gone when pickles are read."""
    module = types.ModuleType("dnnlib.tflib.network")

    class Network:
        def __setstate__(self, state: object) -> None:
            raise AssertionError("the official class was used")

    Network.__module__, Network.__qualname__ = "dnnlib.tflib.network", "Network"
    module.Network = Network  # type: ignore[attr-defined]
    for name in ("dnnlib", "dnnlib.tflib"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "dnnlib.tflib.network", module)
    return Network


def network(official: type, variables: Arrays, components: dict[str, Any] | None = None, **arguments: Any) -> Any:
    found = official.__new__(official)
    found.__dict__ = {
        "version": 3,
        "name": "Gs",
        "static_kwargs": arguments,
        "components": components or {},
        "build_module_src": "import os; os.environ['MENAGERIE_EXECUTED'] = 'yes'; raise SystemExit('executed')",
        "build_func_name": "G_style",
        "variables": list(variables.items()),
    }
    return found


def drawn(*shape: int) -> np.ndarray[Any, Any]:
    return RANDOM.normal(size=shape).astype(np.float32)


def stylegan_arrays(side: int, classes: int = 0) -> tuple[Arrays, Arrays, Arrays]:
    """Of G, its mapping and its synthesis: 3 channels, 2 in the largest level, z and w of 5."""
    mapping: Arrays = {"LabelConcat/weight": drawn(classes, 5)} if classes else {}
    mapping |= {"Dense0/weight": drawn(10 if classes else 5, 5), "Dense0/bias": drawn(5)}
    mapping |= {"Dense1/weight": drawn(5, 5), "Dense1/bias": drawn(5)}
    synthesis: Arrays = {"lod": np.zeros((), np.float32), "4x4/Const/const": drawn(1, 3, 4, 4)}
    levels = [2**k for k in range(2, side.bit_length())]
    of = {level: 2 if level == side else 3 for level in levels}
    layers = [("4x4/Const", 0, of[4], 4), ("4x4/Conv", of[4], of[4], 4)]
    for level in levels[1:]:
        layers += [(f"{level}x{level}/Conv0_up", of[level // 2], of[level], level)]
        layers += [(f"{level}x{level}/Conv1", of[level], of[level], level)]
    for number, (name, inputs, outputs, level) in enumerate(layers):
        synthesis |= {f"{name}/weight": drawn(3, 3, inputs, outputs)} if inputs else {}
        synthesis |= {f"{name}/Noise/weight": drawn(outputs), f"{name}/bias": drawn(outputs)}
        synthesis |= {f"{name}/StyleMod/weight": drawn(5, 2 * outputs), f"{name}/StyleMod/bias": drawn(2 * outputs)}
        synthesis[f"noise{number}"] = drawn(1, 1, level, level)
    for lod, level in enumerate(reversed(levels)):
        synthesis |= {f"ToRGB_lod{lod}/weight": drawn(1, 1, of[level], 2), f"ToRGB_lod{lod}/bias": drawn(2)}
    return {"dlatent_avg": drawn(5)}, mapping, synthesis


def pggan_arrays(side: int, fused: bool) -> Arrays:
    """3 channels, 2 in the largest level, z of 5."""
    levels = [2**k for k in range(2, side.bit_length())]
    of = {level: 2 if level == side else 3 for level in levels}
    found = {"lod": np.zeros((), np.float32), "4x4/Dense/weight": drawn(5, of[4] * 16), "4x4/Dense/bias": drawn(of[4])}
    found |= {"4x4/Conv/weight": drawn(3, 3, of[4], of[4]), "4x4/Conv/bias": drawn(of[4])}
    for level in levels[1:]:
        i, o = of[level // 2], of[level]
        first = {"Conv0_up": drawn(3, 3, o, i)} if fused else {"Conv0": drawn(3, 3, i, o)}
        for name, weight in (first | {"Conv1": drawn(3, 3, o, o)}).items():
            found |= {f"{level}x{level}/{name}/weight": weight, f"{level}x{level}/{name}/bias": drawn(o)}
    for lod, level in enumerate(reversed(levels)):
        found |= {f"ToRGB_lod{lod}/weight": drawn(1, 1, of[level], 2), f"ToRGB_lod{lod}/bias": drawn(2)}
    return found


def write(path: Path, content: Any, protocol: int = 4) -> str:
    path.write_bytes(pickle.dumps(content, protocol))
    return str(path)


def stylegan_pickle(official: type, path: Path, side: int = 8, classes: int = 0, protocol: int = 4) -> str:
    own, mapping, synthesis = stylegan_arrays(side, classes)
    parts = {"mapping": network(official, mapping), "synthesis": network(official, synthesis, fused_scale="auto")}
    generator = network(official, own, parts, resolution=side)
    return write(path, (network(official, {}), network(official, {}), generator), protocol)


def fused_up(x: torch.Tensor, kernel: np.ndarray[Any, Any]) -> torch.Tensor:
    """The official fused layer: [h, w, in, out] padded, four shifts summed, a transposed convolution of stride 2."""
    w = F.pad(torch.from_numpy(kernel).permute(2, 3, 0, 1), [1, 1, 1, 1])
    w = w[:, :, 1:, 1:] + w[:, :, :-1, 1:] + w[:, :, 1:, :-1] + w[:, :, :-1, :-1]
    return F.conv_transpose2d(x, w, stride=2, padding=1)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("classes", [0, 3])
def test_a_stylegan_pickle_becomes_an_export_and_nothing_is_executed(
    official: type, tmp_path: Path, protocol: int, classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stylegan_pickle(official, tmp_path / "stylegan.pkl", classes=classes, protocol=protocol)
    for name in ("dnnlib", "dnnlib.tflib", "dnnlib.tflib.network"):
        monkeypatch.delitem(sys.modules, name)
    assert convert.main([path, str(tmp_path / "export")]) == 0
    assert "MENAGERIE_EXECUTED" not in os.environ
    told = json.loads((tmp_path / "export/config.json").read_text())
    assert told["training"]["converted_from"]["licence"].startswith("CC BY-NC 4.0")
    assert len(told["training"]["converted_from"]["sha256"]) == 64
    generator = Generator.from_pretrained(str(tmp_path / "export"))
    assert generator.sample([0], count=2, truncation=0.7).shape == (2, 2, 8, 8)
    assert sample.main([str(tmp_path / "export"), "--mix", "--count", "2", "--out", str(tmp_path / "out")]) == 0


def test_the_converted_arrays_are_the_official_ones(official: type, tmp_path: Path) -> None:
    """128 px, where the official code fuses: the block is the transposed convolution with the stored kernel."""
    path = stylegan_pickle(official, tmp_path / "s.pkl", side=128)
    found = published_generator(path, read_pickle(path))
    g = StyleGANGeneratorConfig(fmap_base=128, fmap_max=3, mapping_layers=2, mapping_width=5)
    network_ = g.build(found.model)
    network_.load_state_dict(found.state)
    arrays = read_pickle(path).networks[-1].arrays
    x = torch.randn(2, 3, 64, 64)
    own = network_.blocks["128"].conv1(x)
    torch.testing.assert_close(own, fused_up(x, arrays["128x128/Conv0_up/weight"] * np.float32((2 / 27) ** 0.5)))
    plain = F.conv2d(
        F.interpolate(x[:, :, :32, :32], scale_factor=2),
        torch.from_numpy(arrays["64x64/Conv0_up/weight"]).permute(3, 2, 0, 1) * (2 / 27) ** 0.5,
        padding=1,
    )
    torch.testing.assert_close(network_.blocks["64"].conv1(x[:, :, :32, :32]), plain)
    z = torch.randn(3, 5)
    w = z / (z.square().mean(1, keepdim=True) + 1e-8).sqrt()
    for number in range(2):
        w = w @ torch.from_numpy(arrays[f"Dense{number}/weight"]) * (0.01 * (2 / 5) ** 0.5)
        w = F.leaky_relu(w + 0.01 * torch.from_numpy(arrays[f"Dense{number}/bias"]), 0.2)
    torch.testing.assert_close(network_.mapping(z, torch.zeros(3, dtype=torch.int64)), w)
    torch.testing.assert_close(network_.w_average.value, torch.from_numpy(arrays["dlatent_avg"]))
    assert network_.reached(None) == Stage(128)


@pytest.mark.parametrize("fused", [False, True])
def test_a_pggan_pickle(official: type, tmp_path: Path, fused: bool) -> None:
    arrays = pggan_arrays(16, fused)
    path = write(tmp_path / "p.pkl", network(official, arrays, label_size=0))
    found = published_generator(path, read_pickle(path))
    model = ModelConfig(resolution=16, image_channels=2, classes=0, latent_dim=5)
    assert found.model == model
    g = PGGANGeneratorConfig(fmap_base=16, fmap_max=3).build(model)
    g.load_state_dict(found.state)
    x = torch.randn(2, 3, 8, 8)
    if fused:  # there [h, w, out, in]
        expected = fused_up(x, arrays["16x16/Conv0_up/weight"].transpose(0, 1, 3, 2) * np.float32((2 / 27) ** 0.5))
    else:
        weight = torch.from_numpy(arrays["16x16/Conv0/weight"]).permute(3, 2, 0, 1) * (2 / 27) ** 0.5
        expected = F.conv2d(F.interpolate(x, scale_factor=2), weight, padding=1)
        arrays["16x16/Conv0_up/bias"] = arrays["16x16/Conv0/bias"]
    expected = expected + torch.from_numpy(arrays["16x16/Conv0_up/bias"])[:, None, None]
    torch.testing.assert_close(g.blocks["16"].conv1(x), expected)
    z = torch.randn(1, 5)
    h = g.dense(z).view(3, 4, 4) / g.dense.scale
    torch.testing.assert_close(h[1, 2, 3], (z @ torch.from_numpy(arrays["4x4/Dense/weight"]))[0, 16 + 2 * 4 + 3])
    assert convert.main([path, str(tmp_path / "export")]) == 0
    assert Generator.from_pretrained(str(tmp_path / "export")).sample([0]).shape == (1, 2, 16, 16)


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.called = (function, arguments)

    def __reduce__(self) -> Any:
        return self.called


def hostile(folder: Path) -> dict[str, tuple[Any, str]]:
    mark = str(folder / "executed")
    return {
        "system": (Calls(os.system, f"touch {mark}"), r"holds (posix|nt)\.system"),
        "eval": (Calls(eval, f"open({mark!r}, 'w')"), r"holds (builtins|__builtin__)\.eval"),
        "getattr": (Calls(getattr, "x", "upper"), r"holds (builtins|__builtin__)\.getattr"),
        "loader": (Calls(np.load, mark, None, True), r"holds numpy(\.lib\S*)?\.load"),
        "object": (Path(mark), r"holds pathlib\S*\.\w*Path"),
        "in an array": (np.array([Calls(os.system, f"touch {mark}")], dtype=object), r"holds (posix|nt)\.system"),
    }


@pytest.mark.parametrize("name", hostile(Path("/")))
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_hostile_pickles_are_refused_by_name(official: type, tmp_path: Path, name: str, protocol: int) -> None:
    content, message = hostile(tmp_path)[name]
    bad = network(official, {"4x4/Dense/weight": content})
    for number, whole in enumerate((content, [content], bad, (bad, bad, bad))):
        path = write(tmp_path / f"{number}.pkl", whole, protocol)
        with pytest.raises(PickleError, match=rf"^\S+{number}\.pkl: {message}, .*; nothing of it was executed; give"):
            convert.main([path, str(tmp_path / "export")])
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "export").exists()


def test_what_is_no_published_network_is_refused(official: type, tmp_path: Path) -> None:
    old = official.__new__(official)
    old.__dict__ = {"param_values": [drawn(3)]}
    own, mapping, synthesis = stylegan_arrays(8)
    parts = {"mapping": network(official, mapping), "synthesis": network(official, synthesis)}
    lacking = {name: array for name, array in synthesis.items() if name != "8x8/Conv1/bias"}
    for number, (content, message) in enumerate(
        [
            ({"a": 1}, r"holds no networks alone"),
            ((), r"holds no networks alone"),
            (old, r"holds a network of the first official code \(Theano\); give a pickle of the TensorFlow code"),
            (
                network(official, {"x": np.array([None])}),
                r"the variable x is an array of objects",
            ),
            (
                network(official, {"x": drawn(2)}),
                r"its last network, Gs, is no generator of progressive growing or StyleGAN",
            ),
            (network(official, own | {"8x8/y": drawn(1)}, parts), r"holds 8x8/y, which this generator does not have"),
            (
                network(official, own, parts | {"synthesis": network(official, lacking)}),
                r"lacks 8x8/Conv1/bias, which this generator needs",
            ),
        ]
    ):
        path = write(tmp_path / f"{number}.pkl", content)
        with pytest.raises(PickleError, match=rf"^\S+{number}\.pkl: {message}"):
            convert.main([path, str(tmp_path / "export")])
    (tmp_path / "cut.pkl").write_bytes(Path(stylegan_pickle(official, tmp_path / "s.pkl")).read_bytes()[:300])
    with pytest.raises(PickleError, match=r"cut\.pkl: is no pickle that can be read"):
        read_pickle(str(tmp_path / "cut.pkl"))
    with pytest.raises(PickleError, match=r"none\.pkl: cannot be read \(No such file"):
        read_pickle(str(tmp_path / "none.pkl"))
    with pytest.raises(SettingError, match=r"^SNAPSHOT: a pickle is converted alone"):
        convert.main([str(tmp_path / "s.pkl"), str(tmp_path / "out"), "--iteration", "3"])
    assert not (tmp_path / "export").exists()
