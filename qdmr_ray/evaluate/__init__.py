"""Metrics, whole-image inference, evaluation over a test set and the report page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qdmr_ray.evaluate.metrics import psnr, ssim
    from qdmr_ray.evaluate.restoration import restore, restore_files, restore_tensor

__all__ = ["psnr", "restore", "restore_files", "restore_tensor", "ssim"]

_MODULES = {"psnr": "metrics", "ssim": "metrics"}


def __getattr__(name: str) -> Any:
    """Imported when asked for: ``qdmr bench restore`` runs where only PyTorch is installed."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'restoration')}"), name)
