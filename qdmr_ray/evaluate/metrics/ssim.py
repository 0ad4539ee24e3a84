"""PSNR and SSIM between two photographs, as METHOD.md "Inference and evaluation" defines them.

    from qdmr_ray.evaluate.metrics.ssim import psnr, ssim
    psnr(restored, ground_truth), ssim(restored, ground_truth, border=4, luma=True)

Everything is computed in float64. torchmetrics' SSIM gives the same figures (its full map without
the outer 5 pixels), but needs 20 times the time and 2 GB a megapixel, which rules out 2K images;
the tests compare against it.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from qdmr_ray.errors import QdmrError

DATA_RANGE = 255.0
# Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004.
SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
SSIM_C1 = (0.01 * DATA_RANGE) ** 2
SSIM_C2 = (0.03 * DATA_RANGE) ** 2
# ITU-R BT.601 as MATLAB's rgb2ycbcr computes it: weights for RGB in [0, 1], giving Y in [16, 235].
BT601_WEIGHTS = (65.481, 128.553, 24.966)
BT601_OFFSET = 16.0


def psnr(a: np.ndarray, b: np.ndarray, *, border: int = 0, luma: bool = False) -> float:
    """Peak signal-to-noise ratio in dB, from one mean squared error over pixels and channels.

    Args:
        a, b: the two images, uint8 ``(H, W, 3)`` RGB; their order doesn't matter.
        border: pixels left out at each edge.
        luma: compare the Y channel (BT.601, MATLAB's convention, not rounded) instead of RGB.

    Returns ``math.inf`` for identical images; ``json_figure`` says how that is stored.

    Raises:
        QdmrError: other types or shapes, shapes that differ, or nothing left inside the border.
    """
    first, second = _prepare(a, b, border=border, luma=luma, smallest=1)
    error = float((first - second).square().mean())
    return math.inf if error == 0.0 else 10.0 * math.log10(DATA_RANGE**2 / error)


def ssim(a: np.ndarray, b: np.ndarray, *, border: int = 0, luma: bool = False) -> float:
    """Structural similarity in [-1, 1], 1 for identical images: per channel, then their mean.

    The window is a Gaussian of 11 x 11 pixels (sigma 1.5), kept wholly inside the image. The
    arguments are those of ``psnr``.

    Raises:
        QdmrError: as ``psnr``, and where less than 11 x 11 pixels are left inside the border.
    """
    first, second = _prepare(a, b, border=border, luma=luma, smallest=SSIM_WINDOW)
    mean_a, mean_b = _blur(first), _blur(second)
    variance_a = _blur(first.square()) - mean_a.square()
    variance_b = _blur(second.square()) - mean_b.square()
    covariance = _blur(first * second) - mean_a * mean_b
    luminance = (2.0 * mean_a * mean_b + SSIM_C1) / (mean_a.square() + mean_b.square() + SSIM_C1)
    structure = (2.0 * covariance + SSIM_C2) / (variance_a + variance_b + SSIM_C2)
    return float((luminance * structure).mean())


def json_figure(value: float) -> float | None:
    """The figure as JSON holds it: ``None`` (null) where it is not finite, as JSON has no infinity.

    So a stored PSNR of null means that the two images were identical; means leave such a pair
    out. A metric that was not computed has no key at all.
    """
    return value if math.isfinite(value) else None


def _prepare(
    a: np.ndarray, b: np.ndarray, *, border: int, luma: bool, smallest: int
) -> tuple[Tensor, Tensor]:
    """Both images as float64 ``(C, H, W)`` in [0, 255], cropped, as Y where asked for."""
    for image in (a, b):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise QdmrError(
                f"metrics compare uint8 images of shape (H, W, 3); one is {image.dtype} "
                f"{tuple(image.shape)}: convert it first"
            )
    if a.shape != b.shape:
        raise QdmrError(
            f"metrics need two images of one size; these are {a.shape[1]}x{a.shape[0]} and "
            f"{b.shape[1]}x{b.shape[0]}: pair each image with its own ground truth"
        )
    if border < 0:
        raise QdmrError(f"border must be at least 0; it is {border}")
    height, width = a.shape[0] - 2 * border, a.shape[1] - 2 * border
    if min(height, width) < smallest:
        raise QdmrError(
            f"an image of {a.shape[1]}x{a.shape[0]} has less than {smallest}x{smallest} pixels "
            f"inside border={border}: leave it out or make the border smaller"
        )
    inside = slice(border, border + height), slice(border, border + width)
    return _channels(a[inside], luma=luma), _channels(b[inside], luma=luma)


def _channels(image: np.ndarray, *, luma: bool) -> Tensor:
    channels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).double()
    if not luma:
        return channels
    weights = torch.tensor(BT601_WEIGHTS, dtype=torch.float64).view(3, 1, 1)
    return (channels / DATA_RANGE * weights).sum(0, keepdim=True) + BT601_OFFSET


def _blur(image: Tensor) -> Tensor:
    """``(C, H, W)`` to ``(C, H - 10, W - 10)``: the Gaussian window, one axis after the other.

    Shifted sums: a float64 convolution on the CPU would first write out 121 copies of the image.
    """
    offsets = torch.arange(SSIM_WINDOW, dtype=torch.float64) - (SSIM_WINDOW - 1) / 2
    window = torch.exp(-offsets.square() / (2.0 * SSIM_SIGMA**2))
    taps = (window / window.sum()).tolist()
    for axis in (1, 2):
        length = image.shape[axis] - SSIM_WINDOW + 1
        blurred = torch.zeros_like(image.narrow(axis, 0, length))
        for shift, tap in enumerate(taps):
            blurred.add_(image.narrow(axis, shift, length), alpha=tap)
        image = blurred
    return image
