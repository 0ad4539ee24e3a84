"""Radially averaged power spectra and their distance, against plain numpy."""

import math

import numpy as np
import pytest

from qdmr_ray.errors import QdmrError
from qdmr_ray.evaluate.spectrum import (
    BANDS,
    band_frequencies,
    radial_power,
    ratio_distance,
    spectrum_distance,
    spectrum_ratio,
)


def noise(height: int, width: int, spread: float = 20.0, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).normal(128, spread, (height, width, 3))
    return values.round().clip(0, 255).astype(np.uint8)


def plainly(image: np.ndarray) -> list[float]:
    """The formula of ``radial_power`` word by word, frequency by frequency."""
    height, width, _ = image.shape
    y = np.sin(np.pi * (np.arange(height) + 1) / (height + 1)) ** 2
    x = np.sin(np.pi * (np.arange(width) + 1) / (width + 1)) ** 2
    window = y[:, None] * x
    powers: list[list[float]] = [[] for _ in range(BANDS)]
    for c in range(3):
        channel = image[..., c].astype(float)
        transformed = np.fft.fft2(window * (channel - channel.mean()))
        for i, fy in enumerate(np.fft.fftfreq(height)):
            for j, fx in enumerate(np.fft.fftfreq(width)):
                radius = math.hypot(fy, fx)
                for b in range(BANDS):
                    if b / (2 * BANDS) < radius <= (b + 1) / (2 * BANDS):
                        powers[b].append(abs(transformed[i, j]) ** 2 / (window**2).sum())
    return [sum(p) / len(p) if p else math.nan for p in powers]


@pytest.mark.parametrize(("height", "width"), [(33, 40), (40, 33), (12, 17)])
def test_power_is_the_formulas(height: int, width: int) -> None:
    image = noise(height, width)
    np.testing.assert_allclose(radial_power(image), plainly(image), rtol=1e-9)


def test_white_noise_has_its_variance_in_every_band() -> None:
    power = radial_power(noise(256, 384))
    np.testing.assert_allclose(power, 20.0**2 + 1 / 12, rtol=0.1)


def test_a_wave_is_in_the_band_of_its_frequency() -> None:
    x = np.arange(128)
    wave = np.broadcast_to(128 + 50 * np.cos(2 * np.pi * 0.2 * x), (96, 128))
    power = radial_power(np.repeat(wave[..., None], 3, axis=2).astype(np.uint8))
    assert int(power.argmax()) == math.ceil(0.2 * 2 * BANDS) - 1
    assert band_frequencies()[int(power.argmax())] == pytest.approx(0.2, abs=0.25 / BANDS)


def test_distance_is_the_root_mean_square_in_decibels() -> None:
    a, b = noise(64, 64, 20.0), noise(64, 64, 5.0, seed=1)
    ratio = [
        10 * math.log10((p + 1 / 12) / (q + 1 / 12))
        for p, q in zip(plainly(a), plainly(b), strict=True)
    ]
    np.testing.assert_allclose(spectrum_ratio(radial_power(a), radial_power(b)), ratio, rtol=1e-9)
    expected = math.sqrt(sum(r * r for r in ratio) / BANDS)
    assert spectrum_distance(a, b) == pytest.approx(expected)
    # Four times the noise is 12 dB more, in every band.
    assert expected == pytest.approx(20 * math.log10(4), abs=1.0)
    assert spectrum_distance(b, a) == pytest.approx(expected)


def test_alike_images_have_no_distance_whatever_their_place() -> None:
    image = noise(48, 64)
    assert spectrum_distance(image, image) == 0.0
    assert spectrum_distance(image, image[::-1, ::-1]) == pytest.approx(0.0, abs=1e-9)


def test_blur_is_seen_at_high_frequencies() -> None:
    sharp = noise(128, 128)
    blurred = np.mean([np.roll(sharp, shift, axis=(0, 1)) for shift in (-1, 0, 1)], axis=0)
    ratio = spectrum_ratio(radial_power(blurred.astype(np.uint8)), radial_power(sharp))
    assert ratio[0] > -1 > -3 > ratio[-1]


def test_an_image_without_detail_counts_as_rounding_noise() -> None:
    flat = np.full((64, 64, 3), 100, dtype=np.uint8)
    assert spectrum_distance(flat, flat) == 0.0
    expected = 10 * math.log10((20.0**2 + 1 / 12) * 12)
    assert spectrum_distance(noise(64, 64), flat) == pytest.approx(expected, abs=1.0)


def test_bands_that_a_small_image_lacks_are_left_out() -> None:
    power = radial_power(noise(8, 8))
    assert np.isnan(power).any()
    known = spectrum_ratio(power, np.ones(BANDS))
    assert ratio_distance(known) == pytest.approx(math.sqrt(np.nanmean(known**2)))
    assert math.isnan(ratio_distance(np.full(BANDS, np.nan)))
    assert math.isnan(spectrum_distance(noise(1, 1), noise(1, 1)))


def test_other_arrays_are_refused() -> None:
    with pytest.raises(QdmrError, match="metrics take uint8 images"):
        radial_power(np.zeros((8, 8, 3)))
