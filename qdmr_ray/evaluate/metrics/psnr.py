"""PSNR between two photographs, as METHOD.md "Inference and evaluation" defines it.

psnr(restored, ground_truth), psnr(restored, ground_truth, border=4, luma=True)
"""

import math

import numpy as np

from qdmr_ray.evaluate.metrics.metric import FULL_SCALE, MetricInfo, PairMetric, comparable


def psnr(a: np.ndarray, b: np.ndarray, *, border: int = 0, luma: bool = False) -> float:
    """Returns the peak signal-to-noise ratio in dB, from one mean squared error over all values.

    Args:
        a, b: the two images, uint8 ``(H, W, 3)`` RGB; their order doesn't matter.
        border: pixels left out at each edge.
        luma: compare the Y channel (BT.601, MATLAB's convention, not rounded) instead of RGB.

    Returns ``math.inf`` for identical images, which ``metric.json_value`` stores as null. Raises
    QdmrError for a wrong type or shape, shapes that differ, or nothing left inside the border.
    """
    first, second = comparable(a, b, border=border, luma=luma, smallest=1)
    error = float(np.square(np.subtract(first, second, dtype=np.float64)).mean())
    return math.inf if error == 0.0 else 10.0 * math.log10(FULL_SCALE**2 / error)


class PSNR(PairMetric):
    """PSNR in every evaluation of pairs."""

    info = MetricInfo(name="psnr", label="PSNR", unit="dB", better=1, digits=2)
    compute = staticmethod(psnr)
