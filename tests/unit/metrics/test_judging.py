"""Accuracy at resolutions, neighbours, collapse: planted cases give the verdicts that they deserve."""

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage import data as pictures
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from data_pipeline.manifest.format import ClassInfo, ImageField, Manifest
from data_pipeline.reading.stream import DataConfig
from trainer.classifiers import build_classifier, parse_classifier
from trainer.foundation.errors import SettingError
from trainer.metrics.features import ClassifierFeatures, InceptionFeatures, open_features
from trainer.metrics.health import CollapseWatch, HealthWatch, largest_singular_value, singular_values
from trainer.metrics.judge import ClassSums, Judge, shrink_and_enlarge
from trainer.metrics.ms_ssim import accuracy_against_ms_ssim, pairs_of
from trainer.metrics.neighbours import near_copies, nearest_pixels
from trainer.metrics.resolutions import discriminability, study_resolutions
from trainer.models import ModelConfig
from trainer.models.resnet import ResNetDiscriminatorConfig
from trainer.trained.real import images_of_class, real_chunks

PHOTOGRAPHS = {"astronaut": 512, "chelsea": 300, "coffee": 400, "rocket": 427}


def photograph(name: str, side: int) -> Tensor:
    """uint8 [1, 3, side, side]."""
    whole = torch.from_numpy(getattr(pictures, name)().copy()).permute(2, 0, 1)[None].float()
    edge = min(whole.shape[2:])
    return F.interpolate(whole[..., :edge, :edge], (side, side), mode="area").round().to(torch.uint8)


def test_resolutions_of_the_study() -> None:
    assert study_resolutions(128) == [16, 32, 64, 128]
    assert study_resolutions(32) == [8, 16, 32]
    flat = torch.full((1, 3, 32, 32), 0.25)
    assert torch.allclose(shrink_and_enlarge(flat, 8), flat, atol=1e-6)
    fine = torch.tensor([1.0, -1.0]).repeat(16).expand(1, 1, 32, 32)  # stripes of one pixel are gone at half the size
    assert shrink_and_enlarge(fine, 16).abs().max() < 0.2
    assert torch.equal(shrink_and_enlarge(fine, 32), fine)
    # Column means of a shrunk ramp, by hand: bilinear with antialiasing is a mean under a triangle.
    ramp = torch.arange(32.0).expand(1, 1, 32, 32)
    assert shrink_and_enlarge(ramp, 16)[0, 0, 9, 9] == pytest.approx(9.0, abs=0.3)


def test_accuracy_and_variance_are_summed_by_class() -> None:
    sums = ClassSums(2, 2, 1)
    labels = torch.tensor([0, 1, 1, 1])
    sums.add(
        labels,
        torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0], [1.0, 1.0]]),
        torch.tensor([[1.0], [2.0], [4.0], [9.0]]),
    )
    assert sums.accuracy.tolist() == [[1.0, 1.0], [pytest.approx(1 / 3), pytest.approx(2 / 3)]]
    assert math.isnan(float(sums.variance[0]))
    assert float(sums.variance[1]) == pytest.approx(13.0)  # of 2, 4, 9
    verdict = discriminability(sums.accuracy, [8, 32])
    assert verdict.accuracy == [pytest.approx(2 / 3), pytest.approx(5 / 6)]
    assert verdict.better_at_full == 0.5


def test_real_photographs_are_recognised_less_at_lower_resolutions() -> None:
    network = open_features("efficientnet_lite0", 3)
    assert isinstance(network, ClassifierFeatures)
    image = photograph("chelsea", 256)  # a cat: n02123045 tabby, n02123159 tiger cat, n02124075 Egyptian cat
    ids = network.classifier.class_ids
    assert ids is not None
    cats = [ids.index(key) for key in ("n02123045", "n02123159", "n02124075")]
    shares = []
    for resolution in (256, 64, 32, 16):
        small = shrink_and_enlarge(image.float() / 127.5 - 1, resolution)
        with torch.no_grad():
            shares.append(float(network.classifier(small).softmax(1)[0, cats].sum()))
    assert shares[0] > 0.5
    assert shares[-1] < 0.05
    assert shares == sorted(shares, reverse=True)
    features, logits = network.both(image)
    assert features.shape == (1, 1280)
    assert logits.shape == (1, 1000)
    grey, _ = open_features("efficientnet_lite0", 1).both(image[:, :1])
    assert grey.shape == (1, 1280)
    with pytest.raises(SettingError, match="--classifier: EfficientNet-Lite0 knows its classes by WordNet id"):
        Judge(network, Manifest(classes=(ClassInfo("cat", "cat", 3),), content=ImageField(32, 32, 3), shards=()))


def test_missing_weights_are_a_sentence_with_the_cure(tmp_path: Path) -> None:
    folder = tmp_path
    with pytest.raises(
        SettingError, match=r"--features inception: there is no file .*; save https://github.com/.*pass --features"
    ):
        open_features(f"inception:{folder}/none.pth", 3)
    with pytest.raises(SettingError, match=r"--features: inception needs its weights, which Menagerie does not bring"):
        open_features("inception:", 3)
    torch.save({"x": torch.zeros(1)}, folder / "wrong.pth")
    with pytest.raises(SettingError, match="does not fit TF-Inception"):
        open_features(f"inception:{folder}/wrong.pth", 3)
    torch.save({"x": torch.zeros(1)}, folder / "weights-2015-12-05-6726825d.pth")
    with pytest.raises(SettingError, match=r"has sha256 .*, its name promises 6726825d"):
        InceptionFeatures(f"{folder}/weights-2015-12-05-6726825d.pth", "cpu")
    with pytest.raises(SettingError, match=r"--classifier\S*: there is no file .*train_classifier"):
        build_classifier(parse_classifier(f"{folder}/none.safetensors"), "cpu", "--classifier")


def test_planted_copies_are_found(tiny_shards: object) -> None:
    data = DataConfig(shards=str(tiny_shards))
    chunks = list(real_chunks(data))
    images = torch.cat([chunk.images[: chunk.new] for chunk in chunks])
    ids = torch.cat([chunk.ids[: chunk.new] for chunk in chunks])
    assert sorted(ids.tolist()) == list(range(90))
    new = (60 + 120 * torch.rand(20, 1, 32, 32, generator=torch.Generator().manual_seed(1))).to(torch.uint8)
    planted = images[5:15].clone()
    queries = torch.cat([planted, new, images[:40]])
    own = torch.cat([torch.full((30,), -1), ids[:40]])
    found = nearest_pixels(queries, own, data, 3, wanted=[7])
    assert found.nearest.ids[:10, 0].tolist() == ids[5:15].tolist()
    assert found.nearest.distances[:10, 0].tolist() == [0.0] * 10
    assert (found.nearest.distances.diff(dim=1) >= 0).all()
    assert 7 in found.pictures
    # By hand, in float64.
    flat = queries.flatten(1).double() / 127.5 - 1
    exact = torch.cdist(flat, images.flatten(1).double() / 127.5 - 1)
    exact[torch.arange(30, 70), torch.arange(40)] = torch.inf
    assert torch.allclose(found.nearest.distances.double(), exact.sort(1).values[:, :3], atol=1e-4)
    verdict = near_copies(found.nearest.distances[:30, 0], found.nearest.distances[30:, 0])
    assert verdict.share == pytest.approx(10 / 30)
    clean = near_copies(found.nearest.distances[10:30, 0], found.nearest.distances[30:, 0])
    assert clean.share == 0.0
    assert clean.median_ratio > 1.0


def test_images_of_a_class_are_the_first_of_its_own_order(tiny_shards: object) -> None:
    data = DataConfig(shards=str(tiny_shards))
    some, more = images_of_class(data, 1, 7), images_of_class(data, 1, 500)
    assert torch.equal(some, more[:7])
    assert len(more) == 30
    level = more.float()[:, :, 2:-2, 2:-2].mean()
    assert 110 < float(level) < 130  # class 1 of the tiny data is noise round 120


def test_collapse_raises_the_alarm_and_health_does_not() -> None:
    source = torch.Generator().manual_seed(0)
    varied = (128 + 50 * torch.randn(200, 1, 32, 32, generator=source)).clamp(0, 255).to(torch.uint8)
    collapsed = varied[:1].expand(200, -1, -1, -1)
    healthy, alike = float(pairs_of(varied, 100).mean()), float(pairs_of(collapsed, 100).mean())
    assert alike == pytest.approx(1.0)
    assert healthy < 0.3
    names, real = ("cat", "dog", "ship"), torch.tensor([0.30, 0.25, 0.70])

    # One image per class, seen at the first look.
    warning = CollapseWatch(names, real).look(torch.tensor([0.3, alike, 0.7]))
    assert warning is not None
    assert warning.line() == "WARNING collapse: MS-SSIM of dog is near 1 (1.00): its images are alike"
    # A sharp turn upwards, far from 1.
    watch = CollapseWatch(names, real)
    for values in ([0.5, 0.5, 0.75], [0.35, 0.33, 0.72], [0.33, 0.30, 0.71]):  # early training: all alike, then better
        assert watch.look(torch.tensor(values)) is None
    turned = watch.look(torch.tensor([0.62, 0.31, 0.72]))
    assert turned is not None
    assert turned.text.startswith("MS-SSIM of cat has turned up sharply (0.62)")
    # A healthy run wavers, and a class whose real images are alike may be alike.
    watch = CollapseWatch(names, real)
    for step in range(30):
        wave = 0.05 * math.sin(step)
        assert watch.look(torch.tensor([0.33 + wave, 0.28 - wave, 0.80 + wave])) is None
    assert CollapseWatch(names).look(torch.tensor([0.2, 0.3, 0.99])) is not None  # without real images: near 1 at all


def test_health_scalars_and_warnings() -> None:
    torch.manual_seed(0)
    weight = torch.randn(12, 5, 3, 3)
    exact = float(torch.linalg.svdvals(weight.flatten(1))[0])
    assert largest_singular_value(weight) == pytest.approx(exact, rel=0.02)
    model = ModelConfig(resolution=32, image_channels=1, classes=3, latent_dim=8)
    module = ResNetDiscriminatorConfig(channels=8).build(model)
    sizes = singular_values(module)
    for name, value in sizes.items():
        matrix = module.get_parameter(f"{name}.weight").detach().flatten(1)
        assert value == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)), rel=0.1), name
    watch = HealthWatch({"discriminator": module})
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    values = watch.scalars(1.0, -1.0)
    assert all(torch.equal(buffer, before[name]) for name, buffer in module.named_buffers())
    assert values["health/score_gap"] == 2.0
    assert "health/gradient_norm/discriminator" not in values
    loss = module(torch.randn(4, 1, 32, 32), torch.tensor([0, 1, 2, 0])).logits.sum()
    loss.backward()
    norm = watch.scalars(1.0, -1.0)["health/gradient_norm/discriminator"]
    squares = sum(float(p.grad.square().sum()) for p in module.parameters() if p.grad is not None)
    assert norm == pytest.approx(math.sqrt(squares))
    quiet = {
        "health/score_gap": 2.0,
        "health/gradient_norm/generator": 0.5,
        "health/singular_value/generator/largest": 3.0,
    }
    for step in range(20):
        wave = 1 + 0.3 * math.sin(step)
        assert watch.warnings({name: value * wave for name, value in quiet.items()}) == []
    assert [w.name for w in watch.warnings({**quiet, "health/score_gap": 12.0})] == ["score_gap"]
    assert [w.name for w in watch.warnings({**quiet, "health/gradient_norm/generator": 30.0})] == ["gradient_norm"]
    (loud,) = watch.warnings({**quiet, "health/singular_value/generator/largest": 9.0})
    assert loud.name == "singular_value"
    assert loud.text.startswith("singular_value/generator/largest is 9, it was 3")


def test_inception_sees_what_tensorflow_saw(tmp_path: Path) -> None:
    """Random weights stand for the published ones, which are not in this repository."""
    torch.manual_seed(0)
    (tmp_path / "random.pth").write_bytes(_random_inception())
    network = open_features(f"inception:{tmp_path}/random.pth", 3)
    assert isinstance(network, InceptionFeatures)
    seen: list[Tensor] = []
    network.network.Conv2d_1a_3x3.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    image = torch.cat([photograph("coffee", 64), photograph("rocket", 64)])
    features, logits = network.both(image)
    assert features.shape == (2, 2048)
    assert logits.shape == (2, 1008)
    assert torch.allclose(logits, features @ network.network.fc.weight.T, atol=1e-4)  # without the bias
    # TensorFlow 1's bilinear resizing, by hand: pixel i of 299 lies at i * 64 / 299 of the source, no half-pixel shift.
    places = np.arange(299) * (64 / 299)
    low = places.astype(int)
    high, share = np.minimum(low + 1, 63), places - low
    pixels = image.numpy().astype(np.float64)
    rows = pixels[:, :, low] * (1 - share)[:, None] + pixels[:, :, high] * share[:, None]
    resized = rows[..., low] * (1 - share) + rows[..., high] * share
    assert np.abs(seen[0].numpy() - (resized - 128) / 128).max() < 1e-4
    assert not network.network.training
    again, _ = network.both(image[1:])  # batch norm uses its running statistics
    assert torch.allclose(again, features[1:], atol=1e-4)


def _random_inception() -> bytes:
    """A state dict of the right shapes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        patch.setattr(torch, "load", lambda *_args, **_more: {})
        network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path="none")
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    return buffer.getvalue()


def test_accuracy_against_ms_ssim() -> None:
    accuracy, alike = torch.tensor([0.9, 0.0, 0.5, 0.005]), torch.tensor([0.1, 0.4, 0.2, 0.3])
    found = accuracy_against_ms_ssim(accuracy, alike, 0.25)
    assert found.correlation == pytest.approx(float(np.corrcoef(accuracy, alike)[0, 1]), rel=1e-6)
    assert found.accurate_if_alike == 0.0
    assert found.accurate_if_varied == 1.0
    assert math.isnan(accuracy_against_ms_ssim(torch.ones(3), alike[:3], 0.25).correlation)
