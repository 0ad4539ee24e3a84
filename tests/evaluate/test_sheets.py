"""Comparison sheets: where details are cut, what the error map says, and what stands where."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qdmr_ray.errors import QdmrError
from qdmr_ray.evaluate.sheets import (
    COLUMN,
    ERROR_GAIN,
    FRAMES,
    GAP,
    LEAST_ZOOM,
    MARGIN,
    absolute_error,
    choose_regions,
    comparison_sheet,
    error_colours,
    interest,
    metric_caption,
    region_size,
)


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def find(sheet: np.ndarray, part: np.ndarray) -> list[tuple[int, int]]:
    """Every (top, left) at which ``part`` stands in ``sheet``."""
    starts = np.argwhere((sheet == part[0, 0]).all(axis=2))
    height, width = part.shape[:2]
    return [
        (int(top), int(left))
        for top, left in starts
        if np.array_equal(sheet[top : top + height, left : left + width], part)
    ]


def test_details_are_where_the_input_is_worst() -> None:
    truth = np.zeros((90, 120, 3), np.uint8)
    image = truth.copy()
    image[60:64, 100:104] = 200
    image[10:12, 20:22] = 200
    size = region_size(90, 120)
    assert size == (30, 40)
    corners = choose_regions(interest(image, truth), size)
    for (top, left), (row, column) in zip(corners, [(60, 100), (10, 20)], strict=True):
        assert top <= row <= top + size[0] - 2
        assert left <= column <= left + size[1] - 2
    assert corners == choose_regions(interest(image, truth), size)


def test_details_without_ground_truth_are_where_contrast_is() -> None:
    image = np.full((90, 120, 3), 90, np.uint8)
    image[:30, 80:] += photograph(30, 40) // 4
    (top, left), _ = choose_regions(interest(image, None), (30, 40))
    # The patch's own edge, one pixel outside, counts as well.
    assert top == 0
    assert left in (79, 80)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 50), (7, 7), (64, 96), (301, 1000)])
def test_two_details_never_overlap(height: int, width: int) -> None:
    size = region_size(height, width)
    corners = choose_regions(np.random.default_rng(1).random((height, width)), size)
    assert len(corners) == (1 if height * width == 1 else 2)
    for top, left in corners:
        assert 0 <= top <= height - size[0]
        assert 0 <= left <= width - size[1]
    if len(corners) == 2:
        (a, b), (c, d) = corners
        assert abs(a - c) >= size[0] or abs(b - d) >= size[1]


def test_error_colours_rise_in_lightness_and_saturate_at_the_stated_gain() -> None:
    colours = error_colours(np.linspace(0, 255 / ERROR_GAIN, 256)[None])[0].astype(int)
    luma = colours @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(luma) >= -0.5).all()
    assert luma[0] < 15
    assert luma[-1] > 235
    # One hue: red is never less than green, green never less than blue.
    assert (np.diff(colours, axis=1) <= 1).all()
    most = error_colours(np.array([[255.0, 255 / ERROR_GAIN]]))[0]
    assert np.array_equal(most[0], most[1])


def test_absolute_error_is_the_mean_over_channels() -> None:
    first = np.full((1, 1, 3), (10, 20, 250), np.uint8)
    second = np.full((1, 1, 3), (20, 20, 230), np.uint8)
    assert absolute_error(first, second)[0, 0] == 10.0


def test_captions() -> None:
    assert metric_caption({"psnr": 27.534, "ssim": 0.84123}) == "PSNR 27.53 dB   SSIM 0.8412"
    assert metric_caption({"psnr": math.inf, "niqe": 4.5}) == "identical   NIQE 4.500"
    assert metric_caption({}) == ""


def test_a_large_photograph_keeps_its_pixels_in_the_details() -> None:
    truth = photograph(600, 900)
    image = truth.copy()
    image[300:330, 500:530] = 255 - image[300:330, 500:530]
    sheet = comparison_sheet("large", {"input": image, "uda": truth, "ground_truth": truth}, {})
    assert sheet.shape[1] == 2 * MARGIN + 3 * COLUMN + 2 * GAP
    (top, left), _ = choose_regions(interest(image, truth), (96, 128))
    for column, shown in enumerate((image, truth, truth)):
        # Without the frame's two pixels at each edge.
        part = shown[top + 1 : top + 95, left + 1 : left + 127]
        enlarged = part.repeat(LEAST_ZOOM, axis=0).repeat(LEAST_ZOOM, axis=1)
        places = find(sheet, enlarged)
        assert MARGIN + column * (COLUMN + GAP) + LEAST_ZOOM in [x for _, x in places]


def test_frames_mark_the_details() -> None:
    flat = np.full((64, 96, 3), 128, np.uint8)
    sheet = comparison_sheet("flat", {"input": flat, "uda": flat}, {})
    for colour in FRAMES:
        found = (sheet == colour).all(axis=2)
        # In both overviews and around both details.
        assert found[:, : sheet.shape[1] // 2].sum() > 500
        assert found[:, sheet.shape[1] // 2 :].sum() > 500


@pytest.mark.parametrize("size", [(1, 1), (5, 900), (900, 5), (64, 96), (97, 41)])
def test_any_size_makes_a_sheet(size: tuple[int, int]) -> None:
    images = {"input": photograph(*size), "base": photograph(*size, seed=1)}
    without = comparison_sheet("any", images, {"input": {"niqe": 5.0}})
    assert without.dtype == np.uint8
    with_truth = comparison_sheet("any", {**images, "ground_truth": photograph(*size)}, {})
    assert with_truth.shape[1] == without.shape[1] + COLUMN + GAP
    assert max(without.shape[0], with_truth.shape[0]) < 2400


def test_pictures_of_two_sizes_are_refused() -> None:
    with pytest.raises(QdmrError, match="lake: its pictures differ in size"):
        comparison_sheet("lake", {"input": photograph(8, 8), "uda": photograph(8, 9)}, {})
