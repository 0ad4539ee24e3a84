"""The report of a run: figures, pictures to compare, curves and settings in one HTML file."""

from qdmr_ray.evaluate.report.page import build_report

__all__ = ["build_report"]
