"""Reports in one HTML file each: of a run, of an evaluation alone, or of a sweep.

from qdmr_ray.report import build_report
build_report("runs/demo")     # writes runs/demo/report.html
build_report("s3://bucket/sweeps/lens")
"""

from __future__ import annotations

from pathlib import Path

from qdmr_ray.report.document import located
from qdmr_ray.report.page import run_page
from qdmr_ray.report.sweep.folder import is_sweep
from qdmr_ray.report.sweep.page import sweep_page
from qdmr_ray.storage import Location

__all__ = ["build_report", "run_page", "sweep_page"]


def build_report(folder: Location | Path | str, out: Location | Path | str | None = None) -> str:
    """Writes the report of what ``folder`` holds; returns its path or ``s3://…``. A folder with
    ``sweep.json`` is a sweep's (``sweep_page``), any other a run's (``run_page``). Raises QdmrError
    if the folder holds neither, or the page cannot be written."""
    place = located(folder)
    return sweep_page(place, out) if is_sweep(place) else run_page(place, out)
