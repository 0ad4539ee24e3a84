"""NIQE, the quality of a photograph without its ground truth, as METHOD.md defines it.

    niqe(restored, load_pristine("niqe_pris_params.npz"))

NIQE is the distance of the statistics of an image's blocks from those of clean photographs, the
"pristine model": the authors' own, or one fitted with ``qdmr niqe-fit``. Lower is better, and only
values of one model compare. NumPy and SciPy compute it, in float64 after the grey values; 2
megapixels take about a third of a second on one core, and some 60 bytes a pixel. The "paper" is
Mittal, Soundararajan, Bovik, "Making a 'Completely Blind' Image Quality Analyzer", 2013.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage, special

from qdmr_ray.errors import QdmrError
from qdmr_ray.evaluate.metrics.metric import (
    Measure,
    Metric,
    MetricInfo,
    check_pixels,
    file_digest,
)
from qdmr_ray.evaluate.metrics.pristine import (
    FEATURES,
    GAUSSIAN_WINDOW,
    PristineModel,
    load_pristine,
)

if TYPE_CHECKING:
    from qdmr_ray.config import Experiment

# Side of the blocks at the first scale (section II-C of the paper).
BLOCK = 96
# A covariance needs two rows.
FEWEST_BLOCKS = 2
# The pristine model is fitted from blocks sharper than this share of their image's sharpest (the
# paper's T, section II-C).
SHARPNESS = 0.75
# Shape parameters of the generalised Gaussians, and functions of each.
SHAPES = 0.2 + 0.001 * np.arange(9801)
_GAMMA1, _GAMMA2, _GAMMA3 = (special.gamma(n / SHAPES) for n in (1, 2, 3))
_RATIOS = _GAMMA2**2 / (_GAMMA1 * _GAMMA3)
_SPREADS = np.sqrt(_GAMMA1 / _GAMMA3)
_MEANS = _GAMMA2 / _GAMMA1
# Shifts (rows, columns) to the neighbours with which pixels are multiplied.
_SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))
# cv2's weights for grey, blue first: the order of summation decides how halves are rounded.
_GREY_WEIGHTS = ((2, 0.114), (1, 0.587), (0, 0.299))
# MATLAB's bicubic kernel (Keys, a = -0.5), twice as wide against aliasing, at the distances
# 3.5, 2.5, 1.5, 0.5, … of a halved image's pixels from the old ones.
_HALVING_TAPS = np.array([-3, -9, 29, 111, 111, 29, -9, -3]) / 256
# In grey levels: a pixel that differs less from the mean around it differs by rounding alone.
_ROUNDING = 1e-9


def niqe(image: np.ndarray, model: PristineModel, border: int = 0) -> float:
    """Returns the distance of ``image``, uint8 ``(H, W, 3)`` RGB, from ``model``; lower is better.

    It leaves out ``border`` pixels at each edge and crops what is left to whole blocks of 96 x 96
    pixels from the top left. Distances are 0 or more, about 2 to 10 for photographs. Raises
    QdmrError for another type or shape, a negative border, less than two blocks inside it, or less
    than two of them that are not flat: the covariance takes two.
    """
    features, _ = block_features(image, model.window, border)
    if len(features) < FEWEST_BLOCKS:
        raise QdmrError(
            f"NIQE needs {FEWEST_BLOCKS} blocks of {BLOCK}x{BLOCK} pixels; an image of "
            f"{image.shape[1]}x{image.shape[0]} has {len(features)} inside border={border}: "
            f"leave it out, or use images of at least {BLOCK}x{2 * BLOCK}"
        )
    complete = _complete(features)
    if len(complete) < FEWEST_BLOCKS:
        raise QdmrError(
            f"NIQE needs {FEWEST_BLOCKS} blocks of {BLOCK}x{BLOCK} pixels that are not flat; an "
            f"image of {image.shape[1]}x{image.shape[0]} has {len(complete)}: leave it out"
        )
    difference = model.mean - np.nanmean(features, axis=0)
    covariance = (model.covariance + np.cov(complete, rowvar=False)) / 2
    squared = float(difference @ np.linalg.pinv(covariance) @ difference)
    # Rounding may make a distance of 0 negative.
    return math.sqrt(max(squared, 0.0))


@dataclass(frozen=True, kw_only=True)
class NIQE(Metric):
    """NIQE against the pristine model of ``evaluation.niqe``; it needs no ground truth. The model
    travels with the metric, so that workers need no file."""

    info = MetricInfo(
        name="niqe",
        label="NIQE",
        better=-1,
        digits=3,
        needs_truth=False,
        reference="niqe_parameters",
        reference_label="the pristine parameters",
    )
    model: PristineModel
    border: int
    reference: str

    @classmethod
    def from_settings(cls, experiment: Experiment) -> NIQE | None:
        """Returns None without ``evaluation.niqe``; raises QdmrError for no readable file."""
        settings = experiment.evaluation
        if settings.niqe is None:
            return None
        path = Path(settings.niqe).expanduser().resolve()
        if not path.is_file():
            raise QdmrError(
                f"evaluation.niqe={settings.niqe}: there is no file {path}; name the pristine "
                "parameters (.mat or .npz)"
            )
        model, named = load_pristine(path), file_digest(path)
        # A model without a source of its own is called by its path, which differs by machine.
        named = named if model.source == str(path) else f"{named}: {model.source}"
        return cls(model=model, border=settings.border, reference=named)

    def open(self, device: str) -> Measure:
        """Measures with NumPy, whatever the ``device``."""
        return lambda image, truth: niqe(image, self.model, border=self.border)


class PristineFit:
    """A running mean and covariance of clean images' sharp blocks; the images need not fit memory.

    A block counts whose mean local deviation is more than ``sharpness`` times the largest of its
    image (section II-C of the paper). ``images`` and ``blocks`` count what has gone in. Raises
    QdmrError for ``sharpness`` outside [0, 1).
    """

    def __init__(self, sharpness: float = SHARPNESS) -> None:
        if not 0 <= sharpness < 1:
            raise QdmrError(f"sharpness must be at least 0 and below 1; it is {sharpness}")
        self.sharpness, self.images, self.blocks = sharpness, 0, 0
        self._mean = np.zeros(FEATURES)
        self._scatter = np.zeros((FEATURES, FEATURES))

    def add(self, image: np.ndarray) -> int:
        """Takes in one image, uint8 ``(H, W, 3)`` RGB; returns how many of its blocks counted.
        Raises QdmrError for another type or shape, and for an image below 96 x 96 pixels."""
        features, sharpness = block_features(image)
        if not len(features):
            raise QdmrError(
                f"an image of {image.shape[1]}x{image.shape[0]} is smaller than {BLOCK}x{BLOCK} "
                "pixels, which NIQE looks at together: leave it out"
            )
        # Sharp blocks hardly ever lack a feature, but a single NaN would spoil the whole model.
        kept = _complete(features[sharpness > self.sharpness * sharpness.max()])
        self.images += 1
        if count := len(kept):
            # Chan, Golub, LeVeque, "Updating formulae … for computing sample variances", 1979.
            mean, total = kept.mean(axis=0), self.blocks + count
            shift, centred = mean - self._mean, kept - mean
            self._scatter += centred.T @ centred
            self._scatter += np.outer(shift, shift) * (self.blocks * count / total)
            self._mean += shift * (count / total)
            self.blocks = total
        return count

    def model(self, source: str = "own images") -> PristineModel:
        """Returns the model of all blocks so far; ``source`` describes the images in a few words.
        Raises QdmrError where the blocks are too few for a covariance of 36 features."""
        if self.blocks <= FEATURES:
            raise QdmrError(
                f"a pristine model needs more than {FEATURES} sharp blocks of {BLOCK}x{BLOCK} "
                f"pixels; {self.images} images gave {self.blocks}: give more or larger images"
            )
        covariance = self._scatter / (self.blocks - 1)
        return PristineModel(self._mean.copy(), covariance, GAUSSIAN_WINDOW, source)


def block_features(
    image: np.ndarray, window: np.ndarray = GAUSSIAN_WINDOW, border: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns features ``(N, 36)`` and sharpness ``(N,)`` of the N whole blocks inside ``border``.

    Blocks come row by row, features of scale 1 first. A block without negative or without positive
    values has features of NaN and the smallest shape, as in the authors' code. The sharpness is the
    mean local deviation in grey levels. ``image`` is uint8 ``(H, W, 3)`` RGB; QdmrError is raised
    for another type or shape, or a negative border.
    """
    check_pixels(image, border)
    rows, columns = ((side - 2 * border) // BLOCK for side in image.shape[:2])
    if rows < 1 or columns < 1:
        return np.empty((0, FEATURES)), np.empty(0)
    inside = image[border : border + rows * BLOCK, border : border + columns * BLOCK]
    grey = _grey(inside)
    first, sharpness = _scale_features(grey, BLOCK, window)
    second, _ = _scale_features(halve(grey), BLOCK // 2, window)
    return np.concatenate([first, second], axis=1), sharpness


def halve(image: np.ndarray) -> np.ndarray:
    """Halves ``(H, W)``, both even, as MATLAB's ``imresize(image, 0.5)``: bicubic, with
    antialiasing. Its weights are multiples of 1/256, so grey levels need no scaling to [0, 1] and
    back: the float64 result is exact."""
    for axis in (0, 1):
        padding = [(0, 0), (0, 0)]
        padding[axis] = (3, 3)
        lines = np.moveaxis(np.pad(image, padding, mode="symmetric"), axis, 0)
        length = image.shape[axis]
        halved = sum(tap * lines[i : i + length : 2] for i, tap in enumerate(_HALVING_TAPS))
        image = np.moveaxis(halved, 0, axis)
    return image


def _grey(image: np.ndarray) -> np.ndarray:
    """Returns whole grey levels, float64, computed in float32, which decides where halves go."""
    full_scale = np.float32(255)
    grey = np.zeros(image.shape[:2], dtype=np.float32)
    for channel, weight in _GREY_WEIGHTS:
        grey += image[..., channel].astype(np.float32) / full_scale * np.float32(weight)
    return np.rint(grey * full_scale).astype(np.float64)


def _scale_features(
    grey: np.ndarray, block: int, window: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns one scale's features ``(N, 18)`` of the blocks and mean local deviations ``(N,)``."""
    mean = ndimage.convolve(grey, window, mode="nearest")
    square = ndimage.convolve(grey * grey, window, mode="nearest")
    deviation = np.sqrt(np.abs(square - mean * mean))
    difference = grey - mean
    # The features depend on signs, which in a flat sky would be those of rounding errors.
    difference[np.abs(difference) < _ROUNDING] = 0.0
    strips = _strips(difference / (deviation + 1.0), block)
    features = np.concatenate([_strip_features(strip) for strip in strips])
    return features, _strips(deviation, block).mean(axis=(2, 3)).ravel()


def _strips(image: np.ndarray, block: int) -> np.ndarray:
    """Reshapes ``(H, W)`` to ``(rows, columns, block, block)``."""
    height, width = image.shape
    return image.reshape(height // block, block, width // block, block).swapaxes(1, 2)


def _strip_features(blocks: np.ndarray) -> np.ndarray:
    """Returns the features ``(columns, 18)`` of one row of blocks ``(columns, block, block)``."""
    shape, left, right = _fit_gaussian(blocks)
    features = [SHAPES[shape], (left + right) / 2]
    for shift in _SHIFTS:
        shape, left, right = _fit_gaussian(blocks * np.roll(blocks, shift, axis=(1, 2)))
        features += [SHAPES[shape], (right - left) * _MEANS[shape], left, right]
    return np.stack(features, axis=1)


def _fit_gaussian(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fits each block's asymmetric generalised Gaussian: index into ``SHAPES``, left, right spread.

    Lasmar, Stitou, Berthoumieu, "Multiscale skewed heavy tailed model for texture analysis", 2009.
    """
    flat = values.reshape(len(values), -1)
    negative, positive = np.minimum(flat, 0.0), np.maximum(flat, 0.0)
    left_sum = np.einsum("bp,bp->b", negative, negative)
    right_sum = np.einsum("bp,bp->b", positive, positive)
    magnitude = (positive.sum(axis=1) - negative.sum(axis=1)) / flat.shape[1]
    # A block without negative or positive values gives 0/0, and NaN is right for it.
    with np.errstate(divide="ignore", invalid="ignore"):
        left = np.sqrt(left_sum / np.count_nonzero(negative, axis=1))
        right = np.sqrt(right_sum / np.count_nonzero(positive, axis=1))
        balance = left / right
        ratio = magnitude**2 / ((left_sum + right_sum) / flat.shape[1])
        ratio *= (balance**3 + 1) * (balance + 1) / (balance**2 + 1) ** 2
    # argmin of NaN is 0.
    shape = np.argmin((_RATIOS - ratio[:, None]) ** 2, axis=1)
    return shape, left * _SPREADS[shape], right * _SPREADS[shape]


def _complete(features: np.ndarray) -> np.ndarray:
    """Returns the rows without NaN."""
    return features[~np.isnan(features).any(axis=1)]
