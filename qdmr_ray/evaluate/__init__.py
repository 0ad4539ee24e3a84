"""Judges restored photographs: metrics, evaluation over a test set, comparison of runs.

The package can also be called: ``from qdmr_ray import evaluate; evaluate("runs/demo")``.
"""

import sys
from importlib import import_module
from typing import Any

from qdmr_ray import CallablePackage

_HOMES = {
    **dict.fromkeys(("restore", "restore_tensor"), "qdmr_ray.restore.restoration"),
    "restore_files": "qdmr_ray.restore.files",
    "psnr": "qdmr_ray.evaluate.metrics.psnr",
    "ssim": "qdmr_ray.evaluate.metrics.ssim",
}


def __getattr__(name: str) -> Any:
    """Imports on first use, since ``qdmr bench restore`` runs where only PyTorch is installed."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


sys.modules[__name__].__class__ = CallablePackage
