"""Compares this package's metrics with golden values; ``verify.folder`` compares the rest."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qdmr_ray.evaluate.metrics.niqe import niqe
from qdmr_ray.evaluate.metrics.pristine import PristineModel
from qdmr_ray.evaluate.metrics.psnr import psnr
from qdmr_ray.evaluate.metrics.ssim import ssim
from qdmr_ray.nets.lpips import LPIPS, build_lpips
from qdmr_ray.verify.golden import (
    Comparison,
    Golden,
    golden_array,
    golden_image,
    relative_difference,
    worst,
)

METRIC_TOLERANCES = {"psnr": 1e-6, "ssim": 1e-6, "psnr_crop4_y": 1e-4, "ssim_crop4_y": 1e-4}
LPIPS_TOLERANCE = 1e-5
# Grey values that fall on .5 may be rounded either way.
NIQE_TOLERANCE = 3e-3
# The photograph "chelsea" has no grey values that fall on .5.
NIQE_TOLERANCES = {"chelsea/niqe": 1e-5}
GOLDEN_PHOTOGRAPHS = ("coffee", "astronaut", "chelsea")


def verify_metrics(golden: Golden) -> list[Comparison]:
    """Compares PSNR and SSIM on photographs, and LPIPS-VGG with weights of the recipe."""
    comparisons = []
    for name in GOLDEN_PHOTOGRAPHS:
        sharp, blurred = _golden_photographs(name)
        for metric, allowed in METRIC_TOLERANCES.items():
            compute = psnr if metric.startswith("psnr") else ssim
            options: Any = {"border": 4, "luma": True} if metric.endswith("crop4_y") else {}
            value = float(compute(sharp, blurred, **options))
            difference = relative_difference(value, golden.metrics[name][metric])
            comparisons.append(Comparison(f"{name}/{metric}", difference, allowed))
    seed = golden.recipe["seed"]
    distances = golden_lpips()(golden_image(seed, 2, 64, 64), golden_image(seed + 1, 2, 64, 64))
    pairs = zip(distances.tolist(), golden.metrics["lpips_vgg"], strict=True)
    difference = worst(relative_difference(found, wanted) for found, wanted in pairs)
    return [*comparisons, Comparison("lpips_vgg", difference, LPIPS_TOLERANCE)]


def verify_niqe(golden: Golden, pristine: PristineModel) -> list[Comparison]:
    """Compares NIQE, sharp and blurred; ``pristine`` is the model behind the golden values."""
    comparisons = []
    for name in GOLDEN_PHOTOGRAPHS:
        for metric, image in zip(("niqe", "niqe_blurred"), _golden_photographs(name), strict=True):
            figure = f"{name}/{metric}"
            difference = relative_difference(niqe(image, pristine), golden.metrics[name][metric])
            allowed = NIQE_TOLERANCES.get(figure, NIQE_TOLERANCE)
            comparisons.append(Comparison(figure, difference, allowed))
    return comparisons


def golden_lpips() -> LPIPS:
    """Builds LPIPS-VGG in float64, its backbone filled by the recipe under torchvision's keys."""
    import torchvision

    with torch.device("meta"):
        layers = torchvision.models.vgg16(weights=None).features
    state = {
        f"features.{key}": torch.from_numpy(golden_array(f"features.{key}", tuple(value.shape)))
        for key, value in layers.state_dict().items()
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vgg16.pth"
        torch.save(state, path)
        return build_lpips("vgg", path).double()


def _golden_photographs(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns scikit-image's photograph and its golden blur, uint8 (H, W, 3)."""
    import skimage.data

    a = getattr(skimage.data, name)()
    wide = a.astype(np.int64)
    total = wide + np.roll(wide, 1, 0) + np.roll(wide, 1, 1) + np.roll(wide, 3, 1)
    return a, (total // 4).astype(np.uint8)
