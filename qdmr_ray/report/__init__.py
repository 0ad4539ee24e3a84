"""Reports in one HTML file each: of a run, of an evaluation alone, or of a sweep.

from qdmr_ray.report import build_report
build_report("runs/demo")     # writes runs/demo/report.html
build_report("s3://bucket/sweeps/lens")
"""

from pathlib import Path

from qdmr_ray.report.document import REPORT_FILE
from qdmr_ray.report.page import run_page
from qdmr_ray.report.run_folder import read_run
from qdmr_ray.report.sweep.folder import is_sweep, read_sweep
from qdmr_ray.report.sweep.page import sweep_page
from qdmr_ray.storage import Location, open_location, write_file_atomic

__all__ = ["build_report"]


def build_report(folder: Location | Path | str, out: Location | Path | str | None = None) -> str:
    """Writes the report of what ``folder`` holds to ``out`` (``FOLDER/report.html``), here or in a
    store; returns its path or ``s3://…``. A folder with ``sweep.json`` is a sweep's, whose report
    shows pictures of the trials that were evaluated; any other is a run's, or has an evaluation
    alone. Anything else may be missing: the page then names it, and the command that makes it.
    Nothing outside the folder is read, whatever its settings or links name. Raises QdmrError if the
    folder holds none of them, or the page cannot be written."""
    place = _located(folder)
    target = place.join(REPORT_FILE) if out is None else _located(out)
    read = place.enclosed()
    page = sweep_page(read_sweep(read)) if is_sweep(read) else run_page(read_run(read))
    if target.local_path is None:
        target.write_bytes_atomic(page.encode())
    else:
        # A misspelt folder should raise an error, not be made.
        write_file_atomic(target.local_path, page.encode())
    return target.uri


def _located(place: Location | Path | str) -> Location:
    return place if isinstance(place, Location) else open_location(place)
