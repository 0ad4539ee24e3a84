"""Judges restored photographs: metrics, evaluation over a test set, comparison of runs.

The package can also be called: ``from qdmr_ray import evaluate; evaluate("runs/demo")``.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from qdmr_ray import CallablePackage

if TYPE_CHECKING:
    from qdmr_ray.evaluate.metrics.psnr import psnr
    from qdmr_ray.evaluate.metrics.ssim import ssim
    from qdmr_ray.restore.restoration import restore, restore_files, restore_tensor

__all__ = ["psnr", "restore", "restore_files", "restore_tensor", "ssim"]

_MODULES = {
    "psnr": "qdmr_ray.evaluate.metrics.psnr",
    "ssim": "qdmr_ray.evaluate.metrics.ssim",
}
_RESTORATION = "qdmr_ray.restore.restoration"


def __getattr__(name: str) -> Any:
    """Imports on first use, since ``qdmr bench restore`` runs where only PyTorch is installed."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_MODULES.get(name, _RESTORATION)), name)


sys.modules[__name__].__class__ = CallablePackage
