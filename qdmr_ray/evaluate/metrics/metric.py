"""Defines a metric: its labels, the settings that ask for it, and its measurement.

    class Sharpness(Metric):
        info = MetricInfo(name="sharpness", label="Sharpness", better=1, needs_truth=False)

        @classmethod
        def from_settings(cls, experiment: Experiment) -> Sharpness | None:
            return cls() if experiment.evaluation.sharpness else None

        def open(self, device: str) -> Measure:
            return lambda image, truth: float(np.diff(image, axis=1).std())

A new metric is such a class in a file of its own and a line in ``registry.METRICS``. Tables, pages,
sheets, statistics and the command line take all they show of it from ``info``.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from qdmr_ray.errors import QdmrError, reason

if TYPE_CHECKING:
    from qdmr_ray.config import Experiment

FULL_SCALE = 255.0
# ITU-R BT.601 as MATLAB's rgb2ycbcr computes it: weights for RGB in [0, 1], giving Y in [16, 235].
BT601_WEIGHTS = (65.481, 128.553, 24.966)
BT601_OFFSET = 16.0

# Takes the image and the ground truth, uint8 (H, W, 3) RGB each; the second is None where the
# metric doesn't need it. Raises QdmrError where the metric is not defined for the image.
Measure = Callable[[np.ndarray, np.ndarray | None], float]


@dataclass(frozen=True, kw_only=True)
class MetricInfo:
    """The labels of a metric and the format of its values.

    ``better`` is 1 where higher is better, -1 where lower is, 0 where it isn't known. A metric that
    compares with a file, such as a network's weights, has a ``reference``: the key under which
    ``evaluation.json`` names the file, whose content ``reference_label`` describes.
    """

    name: str
    label: str
    unit: str = ""
    better: int = 0
    digits: int = 4
    needs_truth: bool = True
    reference: str = ""
    reference_label: str = ""

    def text(self, value: float | None, *, signed: bool = False) -> str:
        """Formats the value with the metric's digits and a typographic minus; ``n/a`` for none."""
        return self.plain(value, signed=signed).replace("-", "−").replace("inf", "∞")

    def plain(self, value: float | None, *, signed: bool = False) -> str:
        """Formats the value as ``text`` does, in ASCII, for LaTeX and programs."""
        if value is None or math.isnan(value):
            return "n/a"
        return f"{value:{'+' if signed and math.isfinite(value) else ''}.{self.digits}f}"

    @property
    def direction(self) -> str:
        """``higher is better`` or ``lower is better``; empty where it isn't known."""
        return {1: "higher is better", -1: "lower is better", 0: ""}[self.better]

    @property
    def full_label(self) -> str:
        """The label with its unit: ``PSNR dB``."""
        return f"{self.label} {self.unit}".rstrip()


class Metric(ABC):
    """A metric with the settings of one evaluation. Instances travel to the workers (pickled)."""

    info: ClassVar[MetricInfo]
    # Name and SHA-256 of the file that this metric compares with; empty without one.
    reference: str = ""

    @classmethod
    @abstractmethod
    def from_settings(cls, experiment: Experiment) -> Self | None:
        """Builds the metric as the settings want it, None where they leave it off; raises QdmrError
        where a file that it needs is missing or unreadable."""

    @abstractmethod
    def open(self, device: str) -> Measure:
        """Returns the function that measures on a worker; loads networks, once, onto ``device``."""


@dataclass(frozen=True, kw_only=True)
class PairMetric(Metric):
    """A metric that every evaluation of pairs computes, without a network or a file, on the part of
    the images that ``evaluation.border`` and ``luma`` select."""

    compute: ClassVar[Callable[..., float]]
    border: int
    luma: bool

    @classmethod
    def from_settings(cls, experiment: Experiment) -> Self:
        settings = experiment.evaluation
        return cls(border=settings.border, luma=settings.luma)

    def open(self, device: str) -> Measure:
        """Measures on the CPU, whatever the ``device``."""
        return partial(self.compute, border=self.border, luma=self.luma)


def measured(
    metrics: Sequence[tuple[MetricInfo, Measure]],
    images: Mapping[str, np.ndarray],
    truth: np.ndarray | None,
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Returns the values of ``images`` by image and metric, and the reasons of metrics that are not
    defined for one of them: means must be over the same images, so that such a metric is left out
    for all. Without ``truth``, metrics that compare with it are left out silently."""
    values: dict[str, dict[str, float]] = {name: {} for name in images}
    left_out: dict[str, str] = {}
    for metric, measure in metrics:
        if truth is None and metric.needs_truth:
            continue
        try:
            found = {name: measure(image, truth) for name, image in images.items()}
        except QdmrError as error:
            left_out[metric.name] = reason(error)
            continue
        for name, value in found.items():
            values[name][metric.name] = value
    return values, left_out


def file_digest(path: Path) -> str:
    """Returns ``NAME, sha256 …`` of a metric's file; raises QdmrError where it can't be read."""
    try:
        return f"{path.name}, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}"
    except OSError as error:
        raise QdmrError(f"{path}: cannot be read ({error.strerror})") from error


def json_value(value: float) -> float | None:
    """Returns the value as JSON holds it: None (null) where it is not finite. A stored PSNR of null
    thus means that the two images were identical; means leave such a pair out. A metric that was
    not computed has no key at all."""
    return value if math.isfinite(value) else None


def check_pixels(image: np.ndarray, border: int) -> None:
    """Raises QdmrError for an image that is not uint8 ``(H, W, 3)``, and for a negative border."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise QdmrError(
            f"metrics take uint8 images of shape (H, W, 3); this one is {image.dtype} "
            f"{tuple(image.shape)}: convert it first"
        )
    if border < 0:
        raise QdmrError(f"border must be at least 0; it is {border}")


def comparable(
    a: np.ndarray, b: np.ndarray, *, border: int, luma: bool, smallest: int
) -> tuple[np.ndarray, np.ndarray]:
    """Crops both images to the border: uint8 ``(H, W, 3)``, or their Y as float64 ``(H, W, 1)``.
    Raises QdmrError for a wrong type or shape, shapes that differ, a negative border, or less than
    ``smallest`` x ``smallest`` pixels inside it."""
    for image in (a, b):
        check_pixels(image, border)
    if a.shape != b.shape:
        raise QdmrError(
            f"metrics need two images of one size; these are {a.shape[1]}x{a.shape[0]} and "
            f"{b.shape[1]}x{b.shape[0]}: pair each image with its own ground truth"
        )
    height, width = a.shape[0] - 2 * border, a.shape[1] - 2 * border
    if min(height, width) < smallest:
        raise QdmrError(
            f"an image of {a.shape[1]}x{a.shape[0]} has less than {smallest}x{smallest} pixels "
            f"inside border={border}: leave it out or make the border smaller"
        )
    first, second = (image[border : border + height, border : border + width] for image in (a, b))
    return (_luma(first), _luma(second)) if luma else (first, second)


def _luma(image: np.ndarray) -> np.ndarray:
    """Returns BT.601's Y, float64 ``(H, W, 1)``, not rounded."""
    weighted = image / FULL_SCALE * np.array(BT601_WEIGHTS)
    return np.asarray(weighted.sum(axis=2, keepdims=True) + BT601_OFFSET)
