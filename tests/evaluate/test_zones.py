"""Zones of the field and the PSNR in each, against plain numpy."""

import math

import numpy as np
import pytest

from qdmr_ray.errors import QdmrError
from qdmr_ray.evaluate.metrics.psnr import psnr
from qdmr_ray.evaluate.zones import CENTRE, CORNER, MIDDLE, field_height, field_zones, psnr_by_zone


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("height", "width"), [(60, 90), (90, 60), (61, 61), (1, 200)])
def test_height_in_the_field_is_the_distance_from_the_middle(height: int, width: int) -> None:
    found = field_height(height, width)
    half = math.sqrt(height**2 + width**2) / 2
    for y in (0, height // 3, height - 1):
        for x in (0, width // 2, width - 1):
            expected = math.hypot(y + 0.5 - height / 2, x + 0.5 - width / 2) / half
            assert found[y, x] == pytest.approx(expected, abs=1e-12)
    assert 0 <= found.min() < found.max() < 1


def test_zones_are_thirds_of_the_way_to_the_corners() -> None:
    zones = field_zones(600, 900)
    shares = np.bincount(zones.ravel()) / zones.size
    # A circle of a third of the half diagonal has pi/9 * (1 + 2.25)/4 / 1.5 of 3:2.
    assert shares[0] == pytest.approx(math.pi / 9 * 3.25 / 4 / 1.5, abs=1e-3)
    assert shares.round(2).tolist() == [0.19, 0.51, 0.3]
    assert (zones == zones[::-1, ::-1]).all()
    assert field_zones(8, 8, edges=()).max() == 0


@pytest.mark.parametrize("luma", [False, True])
@pytest.mark.parametrize("border", [0, 7])
def test_psnr_of_a_zone_is_that_of_its_pixels(border: int, luma: bool) -> None:
    a, b = noise(64, 96), noise(64, 96, seed=1)
    found = psnr_by_zone(a, b, border=border, luma=luma)
    zones = field_zones(64, 96)
    inside = np.zeros((64, 96), dtype=bool)
    inside[border : 64 - border, border : 96 - border] = True
    weights = np.array([65.481, 128.553, 24.966]) / 255
    x, y = ((i @ weights)[..., None] if luma else i.astype(float) for i in (a, b))
    for number, zone in enumerate((CENTRE, MIDDLE, CORNER)):
        error = np.mean((x - y)[(zones == number) & inside] ** 2)
        assert found[zone] == pytest.approx(10 * math.log10(255**2 / error), abs=1e-9)


def test_the_zones_errors_add_up_to_the_photographs() -> None:
    a, b = noise(40, 70), noise(40, 70, seed=1)
    pixels = np.bincount(field_zones(40, 70).ravel())
    errors = [255**2 / 10 ** (value / 10) for value in psnr_by_zone(a, b).values()]
    whole = 10 * math.log10(255**2 * pixels.sum() / (pixels * errors).sum())
    assert whole == pytest.approx(psnr(a, b), abs=1e-9)


def test_a_zone_is_told_from_the_others() -> None:
    a = noise(64, 96)
    b = a.copy()
    b[:4, :4] ^= 1
    found = psnr_by_zone(a, b)
    assert found[CENTRE] == found[MIDDLE] == math.inf
    assert math.isfinite(found[CORNER])


def test_a_zone_without_pixels_is_left_out() -> None:
    # All four pixels lie half way to their corners.
    assert list(psnr_by_zone(noise(2, 2), noise(2, 2, seed=1))) == [MIDDLE]


def test_a_border_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(QdmrError, match="less than 1x1 pixels inside border=9"):
        psnr_by_zone(noise(16, 16), noise(16, 16), border=9)
