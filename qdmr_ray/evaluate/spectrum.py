"""How far two photographs are apart in their power at each spatial frequency.

    spectrum_distance(s2t, target)              # dB; 0 for spectra that are alike

Blur lowers the power of high frequencies, noise raises it. PSNR punishes an image that is sharper
or noisier than another one at the same place of its edges; the spectrum tells in which direction
and at which detail two lenses differ.
"""

import math

import numpy as np

from qdmr_ray.evaluate.metrics.metric import MetricInfo, check_pixels

# Bands of equal width from 0 to 0.5 cycles per pixel, the finest detail along a row.
BANDS = 16
# Rounding to whole levels adds noise of this variance, in levels squared, whose power is alike at
# all frequencies. Added to both spectra, it keeps a band without power from counting for ever.
ROUNDING_VARIANCE = 1 / 12
SPECTRUM = MetricInfo(name="spectrum", label="Spectrum distance", unit="dB", better=-1, digits=2)


def band_frequencies() -> list[float]:
    """Returns the middle of each band in cycles per pixel."""
    return [(band + 0.5) * 0.5 / BANDS for band in range(BANDS)]


def radial_power(image: np.ndarray) -> np.ndarray:
    """Returns the mean power of an image in each band, float64 (BANDS,); NaN in a band in which a
    small image has no frequency.

    ``image`` is uint8 ``(H, W, 3)`` RGB. For each channel c, less its mean and times a Hann window
    w(y, x), F_c = FFT2(w · (c − mean c)). The power of a band is the mean of |F_c(f_y, f_x)|² /
    Σ w² over the three channels and all frequencies in it: band b holds those with b / (2 BANDS)
    < hypot(f_y, f_x) ≤ (b + 1) / (2 BANDS) cycles per pixel. Thus white noise of variance s² has
    the power s² in every band. Raises QdmrError for another type or shape.
    """
    check_pixels(image, border=0)
    height, width = image.shape[:2]
    # Symmetric windows without zeros at the edges: a small image would lose most of its pixels.
    window = np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1])
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    # The transform of real values leaves out the half that mirrors the other one.
    twice = np.full(radius.shape[1], 2.0)
    twice[0] = 1.0
    if width % 2 == 0:
        twice[-1] = 1.0
    band = np.ceil(radius * 2 * BANDS).astype(int) - 1
    known = (band >= 0) & (band < BANDS)
    weights = np.broadcast_to(twice, radius.shape)[known]
    count = np.bincount(band[known], weights=weights, minlength=BANDS)
    total = np.zeros(BANDS)
    for channel in np.moveaxis(image, 2, 0):
        transformed = np.fft.rfft2(window * (channel - channel.mean()))
        power = np.square(np.abs(transformed[known])) * weights
        total += np.bincount(band[known], weights=power, minlength=BANDS)
    with np.errstate(invalid="ignore"):
        return np.asarray(total / (image.shape[2] * np.square(window).sum()) / count)


def spectrum_ratio(power: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Returns by how many dB the ``power`` of each band exceeds that of ``reference``, float64
    (BANDS,): 10 log10((P + 1/12) / (P_ref + 1/12))."""
    return 10.0 * np.log10((power + ROUNDING_VARIANCE) / (reference + ROUNDING_VARIANCE))


def ratio_distance(ratio: np.ndarray) -> float:
    """Returns the root mean square of :func:`spectrum_ratio` over the bands that have a value, in
    dB; NaN without any."""
    known = ratio[np.isfinite(ratio)]
    return math.sqrt(np.square(known).mean()) if len(known) else math.nan


def spectrum_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Returns how far the spectra of two images, uint8 ``(H, W, 3)``, are apart, in dB: the root
    mean square over the bands of 10 log10((P_a + 1/12) / (P_b + 1/12)), P as
    :func:`radial_power` defines it. Neither the order nor a shift of the images matters."""
    return ratio_distance(spectrum_ratio(radial_power(a), radial_power(b)))
