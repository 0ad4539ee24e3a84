"""Zones of a photograph by their distance from the optical axis, and PSNR in each.

    psnr_by_zone(restored, ground_truth)        # {"centre": 31.2, "middle": 30.1, "corner": 27.9}

A lens is best on its axis and worst in the corners, and a mean over the whole field hides where a
method helps. The height of a pixel in the field is its distance from the photograph's middle
divided by the distance of the corners: 0 in the middle, 1 in the corners, so that photographs of
any size have the same zones. Simulated photographs show the whole field, so their middle is the
optical axis; a photograph that was cropped off-centre doesn't have these zones.
"""

import math
from collections.abc import Sequence

import numpy as np

from qdmr_ray.evaluate.metrics.metric import FULL_SCALE, comparable

CENTRE, MIDDLE, CORNER = ZONES = ("centre", "middle", "corner")
# A zone ends where the height in the field reaches its edge: thirds of the way to the corners. In a
# photograph of 3:2 the three zones hold 19, 51 and 30 % of the pixels.
ZONE_EDGES = (1 / 3, 2 / 3)


def field_height(height: int, width: int) -> np.ndarray:
    """Returns each pixel's height in the field, float64 (H, W): 0 in the middle of the photograph,
    below 1 at the centres of its corner pixels."""
    y = (np.arange(height) + 0.5) - height / 2
    x = (np.arange(width) + 0.5) - width / 2
    return np.hypot(y[:, None], x[None, :]) / (math.hypot(height, width) / 2)


def field_zones(height: int, width: int, edges: Sequence[float] = ZONE_EDGES) -> np.ndarray:
    """Returns the number of each pixel's zone, int64 (H, W), from 0 around the middle to
    ``len(edges)`` in the corners; a pixel at an edge belongs to the outer zone."""
    return np.digitize(field_height(height, width), edges)


def psnr_by_zone(
    a: np.ndarray, b: np.ndarray, *, border: int = 0, luma: bool = False
) -> dict[str, float]:
    """Returns the PSNR in dB of each of ``ZONES``, from one mean squared error over all values in
    the zone; a zone without a pixel is left out.

    Arguments, errors and the infinity for identical pixels are those of ``metrics.psnr.psnr``;
    pixels in the ``border`` are in no zone.
    """
    first, second = comparable(a, b, border=border, luma=luma, smallest=1)
    squares = np.square(np.subtract(first, second, dtype=np.float64)).mean(axis=2).ravel()
    inside = slice(border, -border or None)
    zones = field_zones(*a.shape[:2])[inside, inside].ravel()
    pixels = np.bincount(zones, minlength=len(ZONES))
    sums = np.bincount(zones, weights=squares, minlength=len(ZONES))
    return {
        zone: 10.0 * math.log10(FULL_SCALE**2 * count / error) if error else math.inf
        for zone, count, error in zip(ZONES, pixels.tolist(), sums.tolist(), strict=True)
        if count
    }
