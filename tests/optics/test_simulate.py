"""The simulator: blur over the field and camera."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from qdmr_ray.errors import QdmrError
from qdmr_ray.optics.camera import (
    CameraSettings,
    add_glare,
    develop,
    expose,
    srgb_to_linear,
    tone_curve,
)
from qdmr_ray.optics.lens import Lens, load_lens
from qdmr_ray.optics.psf import PSFGrid
from qdmr_ray.optics.simulate import blur, simulate_image

QUIET = CameraSettings(full_well=1e12, read_noise=0.0)


def point_grid(rows: int = 2, columns: int = 2, k: int = 5) -> PSFGrid:
    """A perfect lens."""
    psf = np.zeros((rows, columns, 3, k, k))
    psf[..., k // 2, k // 2] = 1
    return PSFGrid(psf)


def random_grid(rows: int = 3, columns: int = 4, k: int = 5) -> PSFGrid:
    """PSFs without any symmetry, different at every place and in every channel."""
    psf = np.random.default_rng(0).random((rows, columns, 3, k, k))
    return PSFGrid(psf / psf.sum(axis=(3, 4), keepdims=True))


def texture(height: int = 96, width: int = 144, seed: int = 0) -> np.ndarray:
    """uint8 (H, W, 3) blobs of all sizes, as in a photograph."""
    random = np.random.default_rng(seed)
    small = [random.integers(0, 256, (height // n, width // n, 3), np.uint8) for n in (4, 8, 16)]
    layers = [Image.fromarray(s).resize((width, height), Image.Resampling.BICUBIC) for s in small]
    return np.mean([np.asarray(layer, np.float32) for layer in layers], axis=0).astype(np.uint8)


def test_a_point_at_a_grid_position_becomes_its_psf() -> None:
    grid = random_grid()
    # Rows at 0, 10, 20 and columns at 0, 10, 20, 30 of a 21 × 31 frame.
    light = np.zeros((21, 31, 3), np.float32)
    light[10, 20] = (1.0, 0.5, 0.25)
    result = blur(light, grid)
    for channel, value in enumerate((1.0, 0.5, 0.25)):
        expected = value * grid.psf[1, 2, channel]
        np.testing.assert_allclose(result[8:13, 18:23, channel], expected, atol=1e-6)
    assert result.sum() == pytest.approx(1.75, rel=1e-5)


def test_a_point_between_positions_mixes_their_psfs() -> None:
    grid = random_grid()
    light = np.zeros((21, 31, 3), np.float32)
    light[5, 13, 1] = 1
    expected = sum(
        down * across * grid.psf[row, column, 1]
        for row, down in ((0, 0.5), (1, 0.5))
        for column, across in ((1, 0.7), (2, 0.3))
    )
    np.testing.assert_allclose(blur(light, grid)[3:8, 11:16, 1], expected, atol=1e-6)


@pytest.mark.parametrize("size", [(21, 31), (40, 57), (5, 5)])
def test_blur_keeps_an_even_field_even_up_to_the_edges(size: tuple[int, int]) -> None:
    light = np.full((*size, 3), 0.4, np.float32)
    smooth = blur(light, random_grid(1, 1))
    np.testing.assert_allclose(smooth, 0.4, atol=1e-6)


def test_blur_keeps_the_light_of_a_picture() -> None:
    light = np.zeros((40, 60, 3), np.float32)
    light[8:-8, 8:-8] = np.random.default_rng(1).random((24, 44, 3))
    np.testing.assert_allclose(
        blur(light, random_grid()).sum(axis=(0, 1)), light.sum(axis=(0, 1)), rtol=1e-4
    )


def test_edges_continue_as_their_reflection() -> None:
    light = np.random.default_rng(2).random((20, 30, 3)).astype(np.float32)
    grid = random_grid(1, 1, k=7)
    padded = np.pad(light, ((9, 9), (9, 9), (0, 0)), "reflect")
    np.testing.assert_allclose(blur(light, grid), blur(padded, grid)[9:-9, 9:-9], atol=1e-5)


def test_a_perfect_lens_and_camera_change_nothing() -> None:
    image = texture()
    result = simulate_image(image, Lens("perfect", point_grid(), QUIET), seed=0, name="a")
    # Full well, clipping and float32 may move a value that lies between two levels.
    assert np.abs(result.astype(int) - image).max() <= 1
    assert result.dtype == np.uint8


def test_transfer_curve_is_srgb_and_goes_back() -> None:
    levels = np.arange(256, dtype=np.uint8)
    linear = srgb_to_linear(levels)
    # IEC 61966-2-1: level 128 is 21.6 % of white.
    assert linear[128] == pytest.approx(0.2158605, abs=1e-6)
    np.testing.assert_allclose(tone_curve(linear, None) * 255, levels, atol=1e-3)
    np.testing.assert_allclose(tone_curve(np.array([0.25]), 2.0), [0.5])


def test_glare_lifts_the_shadows_and_keeps_the_mean() -> None:
    light = np.zeros((10, 10, 3), np.float32)
    light[:5] = (0.8, 0.4, 0.2)
    hazy = add_glare(light, 0.1)
    np.testing.assert_allclose(hazy.mean(axis=(0, 1)), light.mean(axis=(0, 1)), rtol=1e-5)
    np.testing.assert_allclose(hazy[9, 9], (0.04, 0.02, 0.01), rtol=1e-5)


def test_noise_is_shot_noise_and_read_noise() -> None:
    camera = CameraSettings(full_well=1000.0, read_noise=5.0, sensor_response=(0.5, 1.0, 0.25))
    raw = expose(np.full((300, 300, 3), 0.6), camera, np.random.default_rng(0))
    for channel, response in enumerate(camera.sensor_response):
        electrons = 0.6 * response * 1000
        assert raw[..., channel].mean() * 1000 == pytest.approx(electrons, rel=0.01)
        variance = np.float64(raw[..., channel]).var() * 1000**2
        assert variance == pytest.approx(electrons + 25, rel=0.03)


def test_white_balance_tints_and_clips() -> None:
    raw = np.full((4, 4, 3), (0.25, 0.5, 0.3), np.float32)
    neutral = develop(raw, CameraSettings())
    assert np.ptp(neutral) <= 1
    warm = develop(raw, CameraSettings(white_balance=(2.4, 1.0, 1.4)))
    assert warm[0, 0, 0] > neutral[0, 0, 0]
    assert warm[0, 0, 1] == neutral[0, 0, 1]
    assert warm[0, 0, 2] < neutral[0, 0, 2]
    assert develop(raw, CameraSettings(white_balance=(5.0, 1.0, 1.0)))[0, 0, 0] == 255


def test_sharpening_overshoots_an_edge_and_denoising_softens_it() -> None:
    raw = np.full((9, 20, 3), 0.1, np.float32)
    raw[:, 10:] = 0.3
    plain = develop(raw, CameraSettings()).astype(int)
    sharp = develop(raw, CameraSettings(sharpen=0.5)).astype(int)
    soft = develop(raw, CameraSettings(denoise=1.0)).astype(int)
    assert sharp[4, 10, 1] > plain[4, 10, 1]
    assert sharp[4, 9, 1] < plain[4, 9, 1]
    assert soft[4, 10, 1] < plain[4, 10, 1]
    for changed in (sharp, soft):
        np.testing.assert_array_equal(changed[4, [0, 19]], plain[4, [0, 19]])


def test_noise_follows_seed_and_name_only() -> None:
    lens = load_lens("manufactured")
    image = texture()
    first = simulate_image(image, lens, seed=1, name="a.png")
    simulate_image(image, lens, seed=1, name="between.png")
    np.testing.assert_array_equal(first, simulate_image(image, lens, seed=1, name="a.png"))
    assert (first != simulate_image(image, lens, seed=2, name="a.png")).any()
    assert (first != simulate_image(image, lens, seed=1, name="b.png")).any()


@pytest.mark.parametrize("name", ["prescription", "manufactured"])
def test_the_ground_truth_stays_aligned(name: str) -> None:
    lens = load_lens(name)
    clean = srgb_to_linear(texture(192, 288))
    soft = blur(clean, lens.grid)[..., 1].astype(np.float64)
    green = clean[..., 1].astype(np.float64)

    def error(dy: int, dx: int) -> float:
        moved = np.roll(green, (dy, dx), (0, 1))
        return float(((moved - soft)[16:-16, 16:-16] ** 2).mean())

    for axis in ((1, 0), (0, 1)):
        before, here, after = error(-axis[0], -axis[1]), error(0, 0), error(*axis)
        # The minimum of the parabola through the three is the shift in pixels.
        shift = 0.5 * (before - after) / (before - 2 * here + after)
        assert abs(shift) < 0.1


def test_the_manufactured_lens_is_worse_and_has_a_colour_cast() -> None:
    image = texture(192, 288)
    errors, casts = {}, {}
    for name in ("prescription", "manufactured"):
        result = simulate_image(image, load_lens(name), seed=0, name="a").astype(float)
        errors[name] = ((result - image) ** 2).mean()
        means = (result - image).mean(axis=(0, 1))
        casts[name] = means[0] - means[2]
    assert errors["manufactured"] > errors["prescription"]
    assert abs(casts["prescription"]) < 1.5
    assert casts["manufactured"] > 5


def test_too_small_an_image_is_refused_by_name() -> None:
    lens = replace(load_lens("prescription"), name="mine")
    with pytest.raises(QdmrError, match=r"tiny\.png: the image is 30x96, .* lens mine"):
        simulate_image(texture(96, 144)[:, :30], lens, seed=0, name="tiny.png")
