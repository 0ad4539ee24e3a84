"""The public functions: each does what the ``qdmr`` command of its name does. Import them from the
package itself: ``from qdmr_ray import load_experiment, train``. The modules that do the work are
imported when a function is called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, overload

from qdmr_ray.config import load_experiment
from qdmr_ray.errors import SettingsError
from qdmr_ray.storage import Location, open_location
from qdmr_ray.sweeps.plan import load_sweep

if TYPE_CHECKING:
    import numpy as np

    from qdmr_ray.config import Experiment
    from qdmr_ray.evaluate.compare import Comparison
    from qdmr_ray.evaluate.results import Evaluation
    from qdmr_ray.evaluate.sweep_file import SweepFile
    from qdmr_ray.restore.files import Report
    from qdmr_ray.restore.inputs import Failure
    from qdmr_ray.restore.restoration import Checkpoint, RestoreSettings
    from qdmr_ray.sweeps.plan import Plan

__all__ = ["compare", "evaluate", "load_experiment", "load_sweep", "restore", "sweep", "train"]

# A folder or file: a local path, an s3:// address, or a location that another function returned.
Place = str | PathLike[str] | Location
# Called with the number of finished items and the number of all.
Progress = Callable[[int, int], None]


def train(
    experiment: Experiment,
    *,
    storage: Place = "runs",
    stages: Sequence[str] | None = None,
    store: Place | None = None,
    say: Callable[[str], None] = print,
) -> Location:
    """Trains the stages of an experiment, and returns the run folder. A second call with the same
    name and ``storage`` resumes. Unless Ray runs already, this joins or starts it.

    Args:
        experiment: the result of :func:`load_experiment`.
        storage: the folder, local or ``s3://``, in which the run's folder lies.
        stages: names of stages to train, in order; all of ``experiment.run`` by default.
        store: a folder in which runs share trained stages: those that it holds are copied.
        say: receives each line of news.

    Raises QdmrError where data, weights or an earlier run of that name don't fit, or training
    failed.
    """
    from qdmr_ray.train.run import train_run

    shared = None if store is None else _text(store)
    return train_run(experiment, storage=_text(storage), stages=stages, store=shared, say=say)


def sweep(
    plan: Plan,
    *,
    storage: Place = "runs/sweeps",
    retry_failed: bool = False,
    say: Callable[[str], None] = print,
    progress: Progress | None = None,
    status: Callable[[str], None] | None = None,
) -> SweepFile:
    """Trains a sweep's trials and returns the content of ``sweep.json``, which is up to date after
    each trial, as its report is. A second call with the same name and ``storage`` resumes.

    Args:
        plan: the result of :func:`load_sweep`.
        storage: the folder, local or ``s3://``, in which the sweep's folder lies.
        retry_failed: whether failed trials begin again.
        say: receives each line of news.
        progress: is called with the number of ended trials and that of all known by now.
        status: receives a line every ten seconds that tells where the running trials are.

    Raises QdmrError where data or an earlier sweep of that name don't fit, or too many trials fail.
    """
    from qdmr_ray.report import build_report
    from qdmr_ray.sweeps.run import sweep_run

    return sweep_run(
        plan,
        storage=_text(storage),
        retry_failed=retry_failed,
        say=say,
        progress=progress,
        status=status,
        report=build_report,
    )


def evaluate(
    run: Place,
    *,
    data: Place | None = None,
    out: Place | None = None,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
    codebook_progress: Progress | None = None,
    say: Callable[[str], None] = print,
) -> Evaluation:
    """Restores and measures a test set with a run's stages; returns the content of
    ``evaluation.json``. A second call for the same models, data and settings goes on after an
    interruption.

    Args:
        run: a run folder, or the ``final`` folder of one stage.
        data: the packed dataset; the run's own by default.
        out: the folder that the evaluation is written to; the run's by default.
        overrides: settings such as ``"evaluation.lpips=true"`` in place of the run's.
        progress: is called with the number of finished photographs.
        codebook_progress: is called with the number of crops encoded for the codebook's view.
        say: receives each line of news.

    Raises QdmrError where nothing is trained there, there is no test set, a file is damaged, or
    another process evaluates into the folder; SettingsError for a setting that is unknown, out of
    range, or none of an evaluation's.
    """
    from qdmr_ray.evaluate.evaluate import evaluate_run

    return evaluate_run(
        _location(run),
        data=None if data is None else _text(data),
        out=None if out is None else _text(out),
        overrides=overrides,
        progress=progress,
        codebook_progress=codebook_progress,
        say=say,
    )


@overload
def restore(
    photographs: np.ndarray, checkpoint: Checkpoint, *, settings: RestoreSettings | None = None
) -> np.ndarray: ...


@overload
def restore(
    photographs: Sequence[str | PathLike[str]],
    checkpoint: Checkpoint,
    *,
    out: str | PathLike[str],
    settings: RestoreSettings | None = None,
    report: Report | None = None,
) -> list[Failure]: ...


def restore(
    photographs: np.ndarray | Sequence[str | PathLike[str]],
    checkpoint: Checkpoint,
    *,
    out: str | PathLike[str] | None = None,
    settings: RestoreSettings | None = None,
    report: Report | None = None,
) -> np.ndarray | list[Failure]:
    """Corrects one photograph in memory, or files into the folder ``out``.

    Args:
        photographs: an array ``(H, W, 3)`` of uint8 or uint16 RGB, for which the corrected array of
            the same type is returned; or files, folders and patterns such as ``"night/*.jpg"``, for
            which the list of failures is returned, empty if all went well.
        checkpoint: a stage's ``final`` folder, or the result of
            ``qdmr_ray.models.files.load_model`` for one, which is loaded once for many arrays.
        out: the folder that corrected files are written to, under their own names.
        settings: memory, precision and device.
        report: is told about each finished file.

    Raises QdmrError where the array has another type or shape, no photograph is found, or the
    checkpoint or ``out`` can't be used.
    """
    import numpy as np

    from qdmr_ray.restore.files import restore_files
    from qdmr_ray.restore.restoration import restore as restore_array

    if isinstance(photographs, np.ndarray):
        return restore_array(photographs, checkpoint, settings)
    if out is None:
        raise SettingsError("restore: name the folder for the corrected photographs with out=…")
    files = [Path(file) for file in photographs]
    return restore_files(files, checkpoint, Path(out), report, settings)


def compare(
    runs: Sequence[Place], *, metrics: Sequence[str] = (), reference: str = "input"
) -> Comparison:
    """Compares several evaluations of one test set: means, 95 % intervals, paired significance.

    Args:
        runs: run folders, folders that an evaluation was written to, ``evaluation.json`` files, or
            sweeps, whose variants are rows over their seeds.
        metrics: such as ``"psnr"``; all that every evaluation has by default. Of evaluations of
            both lenses also ``"psnr_source"``, ``"psnr_centre"``, ``"psnr_middle"`` and
            ``"psnr_corner"``.
        reference: the row that others are tested against: ``"input"``, ``"RUN/STAGE"``, or
            a sweep's ``"VARIANT"``.

    Raises QdmrError where an evaluation is missing, or they are of different test sets or settings;
    SettingsError for an unknown metric or reference.
    """
    from qdmr_ray.evaluate.compare import compare as tabulate
    from qdmr_ray.evaluate.stored import named_apart, read_evaluations

    stored = [evaluation for run in runs for evaluation in read_evaluations(_location(run))]
    return tabulate(named_apart(stored), metrics=metrics, reference=reference)


def _location(place: Place) -> Location:
    return place if isinstance(place, Location) else open_location(fspath(place))


def _text(place: Place) -> str:
    return place.uri if isinstance(place, Location) else fspath(place)
