"""Metrics, whole-image inference, evaluation over a test set and the report page."""

from qdmr_ray.evaluate.metrics import psnr, ssim
from qdmr_ray.evaluate.restore import restore, restore_files, restore_tensor

__all__ = ["psnr", "restore", "restore_files", "restore_tensor", "ssim"]
