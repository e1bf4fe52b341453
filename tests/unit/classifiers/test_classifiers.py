"""Frozen classifiers: right on photographs, differentiable, untouched, and clear about what does not fit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from data_pipeline.manifest.format import ClassInfo, ImageField, Manifest
from trainer.classifiers import (
    Classifier,
    EfficientNetLite0Config,
    SmallClassifierConfig,
    TimmClassifierConfig,
    TorchvisionClassifierConfig,
    build_classifier,
    check_class_map,
    parse_classifier,
)
from trainer.classifiers.classifier import resizing_matrix
from trainer.classifiers.small import ClassifierInfo, SmallClassifier, save_classifier
from trainer.foundation.errors import SettingError
from trainer.foundation.pixels import normalise

# What a person sees -> ids that are right for it. Photographs of scikit-image, all shipped with it.
PHOTOGRAPHS = {
    "chelsea": {"n02123045", "n02123159", "n02124075"},  # a cat: tabby, tiger cat, Egyptian cat
    "coffee": {"n07920052", "n07930864", "n03063599"},  # a cup of coffee: espresso, cup, coffee mug
    "camera": {"n04485082"},  # a man at a camera on its tripod
}


@pytest.fixture(scope="module")
def lite() -> Classifier:
    return build_classifier(EfficientNetLite0Config())


def photograph(name: str) -> Tensor:
    """Centre crop at 128 px, as make_shards writes it, as the loop sees it: [1, 3, 128, 128] in [-1, 1]."""
    import skimage.data

    pixels = np.asarray(getattr(skimage.data, name)())
    if pixels.ndim == 2:
        pixels = np.stack([pixels] * 3, -1)
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(pixels[top : top + side, left : left + side]).resize((128, 128), Image.Resampling.BILINEAR)
    return normalise(torch.from_numpy(np.array(square))[None])


def test_a_cat_is_a_cat(lite: Classifier) -> None:
    assert lite.class_ids is not None
    for name, right in PHOTOGRAPHS.items():
        probabilities = lite(photograph(name)).softmax(1)[0]
        assert lite.class_ids[int(probabilities.argmax())] in right, name
    assert lite.input_size == 224
    assert lite.class_names[281] == "tabby, tabby cat"
    assert len(lite.digest) == 64


def test_the_gradient_is_the_difference_quotient(lite: Classifier) -> None:
    """Along random directions and along the gradient itself, through resizing, normalisation and network, in float64."""
    network = build_classifier(EfficientNetLite0Config()).double()
    images = photograph("chelsea").double().requires_grad_(True)
    target = torch.tensor([285])

    def loss(at: Tensor) -> Tensor:
        return F.cross_entropy(network.network(network.preprocess(at))[1], target)

    (gradient,) = torch.autograd.grad(loss(images), images)
    assert gradient.shape == (1, 3, 128, 128)
    source = torch.Generator().manual_seed(0)
    for direction in (*(torch.randn(gradient.shape, generator=source) for _ in range(2)), gradient):
        unit = direction / direction.norm()
        step = 1e-6
        with torch.no_grad():
            quotient = (loss(images + step * unit) - loss(images - step * unit)) / (2 * step)
        assert float((gradient * unit).sum()) == pytest.approx(float(quotient), rel=1e-4, abs=1e-6)
    assert float(gradient.norm()) > 1e-3


def test_nothing_about_it_changes(lite: Classifier) -> None:
    before = {name: tensor.clone() for name, tensor in lite.state_dict().items()}
    lite.train()
    assert not any(module.training for module in lite.modules())
    images = torch.rand(2, 3, 40, 40).mul_(2).sub_(1).requires_grad_(True)
    features, logits = lite.both(images)
    (F.cross_entropy(logits, torch.tensor([1, 2])) + features.square().mean()).backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in lite.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in lite.state_dict().items())
    assert features.shape == (2, 1280)
    assert torch.equal(logits, lite(images))
    assert torch.equal(features, lite.features(images))


def test_bf16_where_autocast_allows_it(lite: Classifier) -> None:
    images = photograph("chelsea")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(lite.preprocess(images), lite.preprocess(images).float())
        logits = lite(images)
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, lite(images))
    assert int(logits.argmax()) in (281, 282, 285)


@pytest.mark.parametrize("resampling", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("size", "target"), [(128, 224), (256, 32), (32, 32), (33, 224)])
def test_resizing_is_pytorchs_antialiased_one(resampling: Any, size: int, target: int) -> None:
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    matrix = resizing_matrix(size, target, resampling)
    theirs = F.interpolate(images, size=(target, target), mode=resampling, antialias=True, align_corners=False)
    torch.testing.assert_close(matrix @ images @ matrix.T, theirs, atol=2e-5, rtol=1e-5)
    if target < size:  # antialiasing: every pixel of the source counts
        assert (matrix.abs().sum(0) > 0).all()


def small(folder: Path, classes: int = 3, name: str = "c.safetensors", channels: int = 1, **more: Any) -> str:
    torch.manual_seed(0)
    names = tuple(f"class {n}" for n in range(classes))
    info = ClassifierInfo(
        32, channels, **{"class_names": names, "width": 4, "fingerprint": "", "test_accuracy": 1.0, **more}
    )
    save_classifier(folder / name, SmallClassifier(channels, classes, 4), info)
    return str(folder / name)


def manifest(*entries: tuple[str, str], channels: int = 1) -> Manifest:
    return Manifest(tuple(ClassInfo(name, key, 1) for name, key in entries), ImageField(32, 32, channels), ())


def test_small_classifier_by_url(tmp_path: Path) -> None:
    path = small(tmp_path)
    images = torch.rand(2, 1, 32, 32)
    here, there = (build_classifier(SmallClassifierConfig(weights=url)) for url in (path, f"file://{path}"))
    assert torch.equal(here(images), there(images))
    assert here.digest == there.digest
    assert here.class_ids is None
    assert here(torch.rand(1, 1, 64, 48)).shape == (1, 3)


def test_timm_and_torchvision(tmp_path: Path) -> None:
    """Weights of ours in their networks: same logits as the library's own call, for grey images too."""
    import timm
    import torchvision

    torch.manual_seed(0)
    theirs = timm.create_model("resnet10t", pretrained=False).eval()
    save_file(theirs.state_dict(), tmp_path / "timm.safetensors")
    ours = build_classifier(parse_classifier(f"timm:resnet10t:{tmp_path}/timm.safetensors"))
    images = torch.rand(2, 3, ours.input_size, ours.input_size) * 2 - 1
    mean, deviation = (torch.tensor(theirs.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    torch.testing.assert_close(ours(images), theirs((images / 2 + 0.5 - mean) / deviation), atol=1e-4, rtol=1e-4)
    assert ours.class_ids is not None
    assert ours.class_ids[281] == "n02123045"
    assert ours(images[:, :1]).shape == (2, 1000)
    assert ours.features(images).shape == (2, 512)

    network = torchvision.models.shufflenet_v2_x0_5(weights=None, num_classes=2).eval()
    torch.save({"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "tv.pth")
    settings = {"model": "shufflenet_v2_x0_5", "weights": str(tmp_path / "tv.pth")}
    ours = build_classifier(TorchvisionClassifierConfig(**settings, class_ids=("n02123045", "n02123159")))
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(ours(images), network((images / 2 + 0.5 - mean) / deviation), atol=1e-4, rtol=1e-4)
    assert ours.features(images).shape == (2, 1024)
    data = manifest(("tiger", "n02123159"), ("tabby", "n02123045"))
    chosen = check_class_map(ours, data)
    assert chosen is not None
    assert chosen.tolist() == [1, 0]
    with pytest.raises(SettingError, match=r"^classifier\.weights: .*tv\.pth does not fit .*1000"):
        build_classifier(TorchvisionClassifierConfig(**settings))


def test_class_map_by_wordnet_id(lite: Classifier) -> None:
    data = manifest(("Egyptian", "n02124075"), ("tench", "n01440764"), channels=3)
    chosen = check_class_map(lite, data)
    assert chosen is not None
    assert chosen.tolist() == [285, 0]
    assert lite.class_ids is not None
    assert check_class_map(lite, manifest(*((key, key) for key in lite.class_ids), channels=3)) is None
    with pytest.raises(
        SettingError, match=r"^c\.x: EfficientNet-Lite0 knows .* by WordNet id, but 1 of .*'Bag'.*id '8'"
    ):
        check_class_map(lite, manifest(("tench", "n01440764"), ("Bag", "8")), "c.x")
    with pytest.raises(SettingError, match="has no class n99999999"):
        check_class_map(lite, manifest(("unheard of", "n99999999"), ("tench", "n01440764")))


def test_class_map_by_name(tmp_path: Path) -> None:
    three = build_classifier(SmallClassifierConfig(weights=small(tmp_path)))
    entries = [(f"class {n}", str(n)) for n in range(4)]
    assert check_class_map(three, manifest(*entries[:3])) is None
    turned = check_class_map(three, manifest(entries[2], entries[0], entries[1]))
    assert turned is not None
    assert turned.tolist() == [2, 0, 1]
    for data, message in (
        (manifest(*entries), "was trained for 3 classes, the data has 4"),
        (manifest(*entries[:2], ("other", "2")), "has no class 'other'"),
        (manifest(*entries[:3], channels=3), "takes images with 1 channels, the data's have 3"),
    ):
        with pytest.raises(SettingError, match=f"^classifier: .*{message}"):
            check_class_map(three, data)


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    junk = tmp_path / "junk.pth"
    junk.write_bytes(b"no weights at all")
    empty = tmp_path / "empty.safetensors"
    save_file({"a": torch.zeros(1)}, empty)
    for config, message in (
        (
            SmallClassifierConfig(weights=f"{tmp_path}/none"),
            r"c\.weights: there is no file .*none; make it with .*train_clas",
        ),
        (SmallClassifierConfig(weights=str(junk)), r"c\.weights: .*junk\.pth is not a file of weights"),
        (SmallClassifierConfig(weights=str(empty)), r"c\.weights: .* was not written by"),
        (
            TimmClassifierConfig(model="resnet50", weights="none"),
            r"c\.weights: there is no file none; save the weights",
        ),
        (
            TimmClassifierConfig(model="resnet5O", weights="none"),
            r"c\.model: timm has no model .*mean resnet50",
        ),
        (
            TorchvisionClassifierConfig(model="resnet50", weights="none"),
            r"c\.weights: there is no file none; save https://",
        ),
        (
            TorchvisionClassifierConfig(model="resnet5O", weights="x"),
            r"c\.model: torchvision has no model .* did you mean",
        ),
        (EfficientNetLite0Config(weights=str(empty)), r"c\.weights: .* does not fit EfficientNet-Lite0 \(Missing key"),
    ):
        with pytest.raises(SettingError, match=f"^{message}"):
            build_classifier(config, setting="c")


def test_command_line_form() -> None:
    assert parse_classifier("efficientnet_lite0") == EfficientNetLite0Config()
    assert parse_classifier("timm:resnet50:s3://b/w") == TimmClassifierConfig(model="resnet50", weights="s3://b/w")
    assert parse_classifier("s3://b/c.safetensors") == SmallClassifierConfig(weights="s3://b/c.safetensors")
    for text in ("timm:resnet50", "torchvision:", ""):
        with pytest.raises(SettingError, match=r"^--classifier: "):
            parse_classifier(text)


@pytest.mark.slow
def test_proof_photographs_through_the_trainers_preprocessing(
    lite: Classifier, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a person sees is what it says, at 128 px; the gradient reaches every pixel; no bit of it changes."""
    before = {name: tensor.clone() for name, tensor in lite.state_dict().items()}
    seen, right = {}, True
    for name, ids in PHOTOGRAPHS.items():
        images = photograph(name).requires_grad_(True)
        logits = lite(images)
        F.cross_entropy(logits, logits.argmax(1)).backward()
        assert images.grad is not None
        probability, label = (float(found) for found in logits.detach().softmax(1)[0].max(0))
        assert lite.class_ids is not None
        right &= lite.class_ids[int(label)] in ids and bool((images.grad != 0).all(1).float().mean() > 0.99)
        seen[name] = f"{lite.class_names[int(label)].partition(',')[0].replace(' ', '_')}({probability:.2f})"
    same = all(torch.equal(before[name], tensor) for name, tensor in lite.state_dict().items())
    with capsys.disabled():
        figures = " ".join(f"{name}={found}" for name, found in seen.items())
        print(
            f"\nPROOF finetune-photographs: {'PASS' if right and same else 'FAIL'} {figures} weights_unchanged={same}"
        )
    assert right
    assert same
