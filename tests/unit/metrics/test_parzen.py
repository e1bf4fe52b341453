"""The Parzen-window log-likelihood: closed forms, an independent form, what it takes, and the fixtures on real digits."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from trainer import evaluate
from trainer.foundation.errors import SettingError
from trainer.metrics.measures import all_names, measurement_named
from trainer.metrics.parzen import BANDWIDTHS, log_likelihoods, parzen
from trainer.metrics.records import read_records
from trainer.report import __main__ as report

ROOT = Path(__file__).resolve().parents[3]


def reference(images, centres, sigma):
    """Point by point, the largest exponent taken out by hand."""
    values = []
    for x in images:
        exponents = [-sum((a - b) ** 2 for a, b in zip(x, mu, strict=True)) / (2 * sigma**2) for mu in centres]
        top = max(exponents)
        mean = sum(math.exp(e - top) for e in exponents) / len(exponents)
        values.append(top + math.log(mean) - len(x) * math.log(sigma * math.sqrt(2 * math.pi)))
    return values


def test_the_grid_is_the_protocols():
    expected = [0.1, 0.1292, 0.1668, 0.2154, 0.2783, 0.3594, 0.4642, 0.5995, 0.7743, 1.0]
    assert [round(value, 4) for value in BANDWIDTHS] == expected


def test_one_centre_is_a_gaussian():
    d = 784
    value = log_likelihoods(torch.full((1, d), 0.5), torch.zeros(1, d), (0.2,))
    assert float(value) == pytest.approx(-d * 0.25 / (2 * 0.04) - d * math.log(0.2 * math.sqrt(2 * math.pi)), rel=1e-12)


def test_against_an_independent_form():
    random = np.random.default_rng(0)
    images, centres = random.random((7, 12)), random.random((9, 12))
    found = log_likelihoods(torch.from_numpy(images), torch.from_numpy(centres), (0.05, 0.3, 1.0))
    for column, sigma in enumerate((0.05, 0.3, 1.0)):
        np.testing.assert_allclose(found[:, column].numpy(), reference(images, centres, sigma), rtol=1e-11)


def test_blocks_do_not_matter(monkeypatch):
    images, centres = torch.rand(11, 6), torch.rand(5, 6)
    whole = log_likelihoods(images, centres, (0.2,))
    monkeypatch.setattr("trainer.metrics.parzen._ROWS", 3)
    torch.testing.assert_close(log_likelihoods(images, centres, (0.2,)), whole, rtol=1e-14, atol=0)


def test_the_bandwidth_is_chosen_on_the_one_set_and_the_other_is_scored():
    random = torch.Generator().manual_seed(0)
    centres = torch.rand(40, 20, generator=random)
    choosing, scored = (centres + s * torch.randn(40, 20, generator=random) for s in (0.2, 0.5))
    found = parzen(centres, choosing, scored)
    means = log_likelihoods(choosing, centres, BANDWIDTHS).mean(0)
    assert found.bandwidth == BANDWIDTHS[int(means.argmax())] == pytest.approx(0.2154, abs=1e-4)
    values = log_likelihoods(scored, centres, (found.bandwidth,))
    assert found.mean == pytest.approx(float(values.mean()), rel=1e-12)
    assert found.standard_error == pytest.approx(float(values.std(correction=0)) / math.sqrt(40), rel=1e-12)
    assert not found.at_edge
    assert parzen(centres, centres, centres).at_edge


def test_the_record_and_the_report_carry_the_caution(run, tiny_shards, tmp_path, capsys):
    words = [str(run), "--measures", "parzen", "--samples", "60"]
    assert evaluate.main(words) == 0
    assert "no verdict on quality" in capsys.readouterr().out
    assert evaluate.main([*words, "--validation", str(tiny_shards)]) == 0
    first, second = read_records(str(run))
    assert first["measure"] == second["measure"] == measurement_named("parzen", "x") == "parzen_log_likelihood"
    assert (first["samples"], first["pixels"], first["scored_images"]) == (60, 1024, 68)
    assert first["bandwidth_chosen_on"] == "22 images of --real, not scored"
    assert (second["scored_images"], second["bandwidth_chosen_on"]) == (90, "90 images of --validation")
    assert first["settings_digest"] != second["settings_digest"]
    assert first["better"] == ""
    assert first["caution"].startswith("no verdict on quality")
    page = tmp_path / "report.html"
    assert report.main([str(run), "--out", str(page)]) == 0
    assert "no verdict on quality" in page.read_text()


def test_it_is_not_part_of_all():
    assert "parzen" not in all_names(True)


def test_validation_images_of_another_size_are_refused(run, tmp_path, tiny_shards):
    import shutil

    shutil.copytree(tiny_shards, tmp_path / "other")
    manifest = tmp_path / "other" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"resolution": 32', '"resolution": 16'))
    with pytest.raises(SettingError, match=r"^--validation: the images in .* have 16 px, the generator's have 32"):
        evaluate.main([str(run), "--measures", "parzen", "--validation", str(tmp_path / "other")])


@pytest.mark.slow
def test_the_fixtures_on_10000_real_digits():
    """What real digits, centres of clusters, the mean image and noise score. The digits: docs/cgan.md."""
    package = ROOT / "data" / "npm-digits" / "package"
    if not package.exists():
        pytest.skip(f"{package} is not there; docs/cgan.md has the command")
    from data_pipeline.make_shards.sources.npm_digits import read_package

    images, _ = read_package(package)
    order = np.random.default_rng(0).permutation(len(images))
    digits = torch.from_numpy(images[order]).flatten(1).double() / 255
    train, choosing, scored = digits[:6000], digits[6000:7000], digits[7000:]
    noise = torch.rand(2000, 784, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fixtures = {
        "6,000 real digits": (train, 0.1668, 232.4, 4.0),
        "1,000 real digits": (train[:1000], 0.2154, 128.2, 2.9),
        "200 k-means centres": (k_means(train, 200), 0.1668, 201.6, 3.8),
        "1,000 k-means centres": (k_means(train, 1000), 0.1668, 245.6, 3.6),
        "mean image": (train.mean(0, keepdim=True), 0.2783, -59.5, 1.8),
        "2,000 noise images": (noise, 0.5995, -632.1, 2.0),  # another draw of noise shifts all images alike
    }
    told = []
    for name, (centres, bandwidth, value, error) in fixtures.items():
        found = parzen(centres, choosing, scored)
        told.append(f"{name} {found.mean:.1f} +- {found.standard_error:.1f}")
        assert found.bandwidth == pytest.approx(bandwidth, abs=1e-4), name
        assert abs(found.mean - value) < 4 * error + 0.5, (name, found)
    print(f"PROOF evaluation-parzen: PASS {'; '.join(told)}")


def k_means(x, count, rounds=15):
    """Lloyd's algorithm from the first images."""
    centres = x[:count].clone()
    for _ in range(rounds):
        nearest = torch.cdist(x, centres).argmin(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, x)
        counts = torch.bincount(nearest, minlength=count)[:, None]
        centres = torch.where(counts > 0, sums / counts.clamp_min(1), centres)
    return centres
