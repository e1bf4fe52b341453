"""What each measure costs: CPU seconds per 1,000 samples on one core, and the memory that it holds.

`make bench-evaluation`. CPU time, so that other work on the machine does not count; Inception has random weights.
"""

import io
import tempfile
import time
from collections.abc import Callable

import torch

from trainer.metrics.features import FeatureNetwork, open_features
from trainer.metrics.frechet import Moments, frechet_distance, frechet_distance_to_few
from trainer.metrics.inception_score import InceptionScore
from trainer.metrics.kid import kernel_distance
from trainer.metrics.ms_ssim import pairs_of
from trainer.metrics.precision_recall import precision_recall
from trainer.models import ModelConfig
from trainer.models.resnet import ResNetGeneratorConfig


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process, the second of two calls where the first is quick."""
    began = time.process_time()
    work()
    took = time.process_time() - began
    if took < 2.0:
        began = time.process_time()
        work()
        took = time.process_time() - began
    return took


def row(what: str, per_thousand: float, memory: str) -> None:
    """One line of the table."""
    print(f"| {what} | {per_thousand:.2f} | {memory} |", flush=True)


def inception() -> FeatureNetwork:
    """TF-Inception's shapes with random weights."""
    from unittest import mock

    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Extractor

    with mock.patch.object(Extractor, "load_state_dict"), mock.patch("torch.load", return_value={}):
        state = Extractor("inception", ["2048"], feature_extractor_weights_path="none").state_dict()
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with tempfile.NamedTemporaryFile(suffix=".pth") as file:
        file.write(buffer.getvalue())
        file.flush()
        return open_features(f"inception:{file.name}", 3)


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("| step | CPU s per 1,000 | memory held |\n|---|---|---|")
    chunk = torch.randint(0, 256, (50, 3, 128, 128), dtype=torch.uint8)
    with torch.no_grad():
        for name, config, model in (
            ("generator, fashion32 (ch 32, 32 px)", ResNetGeneratorConfig(channels=32), (32, 1, 10)),
            ("generator, imagenet128 (ch 64, 128 px)", ResNetGeneratorConfig(channels=64), (128, 3, 1000)),
        ):
            settings = ModelConfig(resolution=model[0], image_channels=model[1], classes=model[2])
            module = config.build(settings).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            latents, labels = torch.randn(50, 128), torch.arange(50) % model[2]
            took = seconds(lambda m=module, z=latents, y=labels: m(z, y))  # type: ignore[misc]
            row(name, took * 20, f"{sum(p.numel() for p in module.parameters()) * 4 / 1e6:.0f} MB of weights")
    for name, network in (
        ("EfficientNet-Lite0", open_features("efficientnet_lite0", 3)),
        ("TF-Inception", inception()),
    ):
        row(f"{name}, 128 px images", seconds(lambda n=network: n.both(chunk)) * 20, "50 images at a time")  # type: ignore[misc]
    features = torch.randn(2000, 2048)
    moments = Moments(2048)
    row("moments of 2048 features (FID)", seconds(lambda: moments.add(features)) / 2, "67 MB, any number of samples")
    gaussian = moments.gaussian()
    once = seconds(lambda: frechet_distance(gaussian, gaussian))
    print(f"| Fréchet distance, 2048 features, once | {once:.1f} s in all | 300 MB |")
    few = seconds(lambda: frechet_distance_to_few(gaussian, torch.randn(1300, 2048)))
    print(f"| ... of a class with 1,300 real images, once | {few:.1f} s in all | 190 MB |")
    score = InceptionScore(10**6, 1008, 10)
    row(
        "Inception Score, 1008 outputs",
        seconds(lambda: score.add(torch.randn(1000, 1008))),
        "81 KB, any number of samples",
    )
    kid = seconds(lambda: kernel_distance(features, features.flip(0)))
    print(
        f"| KID, 100 subsets of 1,000, 2048 features | {kid:.1f} s in all | features of up to 10,000 samples: 82 MB |"
    )
    pr = seconds(lambda: precision_recall(features, features.flip(0)))
    print(
        f"| precision and recall, 2,000 against 2,000 | {pr:.1f} s in all | 40 MB of distances beside 10,000 samples |"
    )
    for side, channels in ((32, 1), (128, 3)):
        images = torch.randint(0, 256, (200, channels, side, side), dtype=torch.uint8)
        took = seconds(lambda i=images: pairs_of(i, 100))  # type: ignore[misc]
        row(f"MS-SSIM, 1,000 pairs at {side} px", took * 10, "one class: 200 images")


if __name__ == "__main__":
    main()
