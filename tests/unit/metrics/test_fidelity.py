"""Values of pairs against the formulas, and the rows that stand next to a generator's."""

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.metrics.fidelity import pair_values


def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(0)
    small = random.integers(0, 256, (3, 9, 9, 3), dtype=np.uint8)
    first = [np.asarray(Image.fromarray(image).resize((64, 64), Image.Resampling.BICUBIC)) for image in small]
    made = torch.from_numpy(np.stack(first)).permute(0, 3, 1, 2)
    noise = torch.from_numpy(random.normal(0, 25, made.shape))
    return made, (made + noise).clamp(0, 255).to(torch.uint8)


def test_values_of_pairs_are_the_formulas() -> None:
    made, wanted = pairs()
    found = pair_values(made, wanted)
    a, b = made.double().numpy(), wanted.double().numpy()
    mse = ((a - b) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(found["l1"], np.abs(a - b).mean((1, 2, 3)) / 255, rtol=1e-12)
    np.testing.assert_allclose(found["psnr"], 20 * np.log10(255) - 10 * np.log10(mse), rtol=1e-12)
    for name in ("ssim", "ms_ssim"):
        assert ((found[name] > 0.1) & (found[name] < 1)).all(), name
    same = pair_values(made, made)
    assert same["l1"].tolist() == [0, 0, 0]
    assert same["psnr"].tolist() == [100, 100, 100]
    torch.testing.assert_close(torch.stack([same["ssim"], same["ms_ssim"]]), torch.ones(2, 3, dtype=torch.float64))


def test_ssim_of_a_constant_shift_is_its_luminance_term() -> None:
    """Without contrast the similarity is (2 mu nu + c1) / (mu^2 + nu^2 + c1), with c1 = (0.01 x 255)^2."""
    made, wanted = (
        torch.full((1, 3, 32, 32), 100, dtype=torch.uint8),
        torch.full((1, 3, 32, 32), 150, dtype=torch.uint8),
    )
    c1 = (0.01 * 255) ** 2
    expected = (2 * 100 * 150 + c1) / (100**2 + 150**2 + c1)
    assert pair_values(made, wanted)["ssim"].item() == pytest.approx(expected, rel=1e-5)
