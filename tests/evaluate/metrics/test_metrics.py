"""PSNR and SSIM against the golden figures, torchmetrics and cases known by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from qdmr_ray.errors import QdmrError
from qdmr_ray.evaluate.metrics.metric import json_value
from qdmr_ray.evaluate.metrics.psnr import psnr
from qdmr_ray.evaluate.metrics.ssim import ssim

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "metrics.json").read_text())
PHOTOGRAPHS = ("coffee", "astronaut", "chelsea")
# golden/README.md: the Y figures were made in float32.
TOLERANCES = {"psnr": 1e-6, "ssim": 1e-6, "psnr_crop4_y": 1e-4, "ssim_crop4_y": 1e-4}


def noise(seed: int, height: int = 40, width: int = 56) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_agrees_with_the_golden_figures(name: str) -> None:
    a = getattr(skimage.data, name)()
    wide = a.astype(np.int64)
    shifted = [np.roll(wide, shift, axis) for shift, axis in ((1, 0), (1, 1), (3, 1))]
    b = ((wide + sum(shifted)) // 4).astype(np.uint8)

    found = {
        "psnr": psnr(a, b),
        "ssim": ssim(a, b),
        "psnr_crop4_y": psnr(a, b, border=4, luma=True),
        "ssim_crop4_y": ssim(a, b, border=4, luma=True),
    }

    for key, value in found.items():
        assert value == pytest.approx(GOLDEN[name][key], rel=TOLERANCES[key]), key


def test_ssim_agrees_with_torchmetrics_inside_the_window() -> None:
    a, b = noise(0), noise(1)
    tensors = [torch.from_numpy(x).permute(2, 0, 1).double().unsqueeze(0) for x in (a, b)]
    _, full = structural_similarity_index_measure(
        *tensors, sigma=1.5, data_range=255.0, return_full_image=True
    )

    assert ssim(a, b) == pytest.approx(float(full[..., 5:-5, 5:-5].mean()), rel=1e-9)


def test_psnr_of_one_level_everywhere() -> None:
    a = np.full((12, 12, 3), 100, dtype=np.uint8)

    assert psnr(a, a + 1) == pytest.approx(20 * math.log10(255))


def test_border_is_left_out() -> None:
    a = noise(2)
    b = a.copy()
    b[:3], b[-3:], b[:, :3], b[:, -3:] = 0, 0, 0, 0

    assert psnr(a, b, border=3) == math.inf
    assert psnr(a, b, border=2) < math.inf
    assert ssim(a, b, border=3) == pytest.approx(1.0)


def test_identical_images_are_infinite_and_stored_as_null() -> None:
    a = noise(3)

    assert psnr(a, a) == math.inf
    assert ssim(a, a) == pytest.approx(1.0, abs=1e-12)
    assert json.dumps({"psnr": json_value(psnr(a, a))}) == '{"psnr": null}'
    assert json_value(31.5) == 31.5


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_refuses_what_cannot_be_compared(metric) -> None:
    with pytest.raises(QdmrError, match="56x40 and 40x56"):
        metric(noise(0), noise(0, 56, 40))
    with pytest.raises(QdmrError, match="float64"):
        metric(noise(0) / 255, noise(0))
    with pytest.raises(QdmrError, match=r"\(40, 56\)"):
        metric(noise(0)[..., 0], noise(0)[..., 0])
    with pytest.raises(QdmrError, match="border=20"):
        metric(noise(0), noise(1), border=20)
    with pytest.raises(QdmrError, match="border must be at least 0"):
        metric(noise(0), noise(1), border=-1)


def test_ssim_needs_room_for_its_window() -> None:
    assert ssim(noise(0, 11, 11), noise(1, 11, 11)) < 0.5
    with pytest.raises(QdmrError, match="11x11"):
        ssim(noise(0, 10, 40), noise(1, 10, 40))
