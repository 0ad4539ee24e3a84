"""The files of a sweep's folder, which are up to date after every trial and at the sweep's end."""

import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from qdmr_ray.errors import QdmrError, reason
from qdmr_ray.evaluate.sweep_file import (
    BEST_FILE,
    FAILED,
    FINISHED,
    RUNNING,
    STOPPED,
    SWEEP_FILE,
    SweepFile,
)
from qdmr_ray.models.layout import TENSORBOARD_FOLDER
from qdmr_ray.patience import PROGRESS_LINE
from qdmr_ray.storage import Location
from qdmr_ray.sweeps.optuna_study import STUDY_FILE, importances
from qdmr_ray.sweeps.results import best_experiment, summary, unseen_metrics, write_hparams
from qdmr_ray.sweeps.trials import Trials

# While a sweep runs, its report takes at most this share of a CPU.
_REPORT_SHARE = 0.1
# A reader locks Optuna's database for milliseconds.
_LOCKED_SECONDS = 1.0

Say = Callable[[str], None]
Report = Callable[[Location], Any]


class SweepFiles:
    """Keeps the files of a sweep's folder up to date: whoever looks at a sweep that runs, or that
    was killed, finds it as it was after its last trial. ``report`` writes the page; a thread calls
    it, and finds the importances of parameters, both of which may take long. ``check`` raises
    QdmrError where another process has taken the sweep over.

    Files that can't be written while the sweep runs are named in a line, once; at its end that is
    an error.
    """

    def __init__(self, trials: Trials, report: Report, check: Callable[[], None], say: Say) -> None:
        self._trials, self._report, self._check, self._say = trials, report, check, say
        self._importances: dict[str, float] = {}
        # An earlier start of the sweep has written those of the trials that had ended by then.
        written = {place.name for place in trials.sweep.join(TENSORBOARD_FOLDER).list()}
        self._has_hparams = {
            n for n in written if n in trials.records and trials.records[n].has_ended
        }
        self._told = False
        self._changed, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="sweep-report")
        self._thread.start()

    def update(self) -> None:
        """Writes the files as the trials are now, and has the report made."""
        self._tried(lambda: self._write(self._summary(RUNNING)))
        self._changed.set()

    def finish(self) -> SweepFile:
        """Evaluates the best trials, the baseline and the repeats, writes the files of a sweep that
        has ended, and returns the content of ``sweep.json``. Raises QdmrError if a file can't be
        written, or an evaluation fails."""
        self.close()
        self._find_importances()
        results = self._summary(FINISHED)
        # The files are written before the evaluations, one of which may fail.
        self._write(results)
        try:
            if results.best is not None:
                test = unseen_metrics(self._trials, results, self._say)
                now = {"seconds": round(self._trials.seconds(), 1), "updated": time.time()}
                results = results.model_copy(update={"test": test, **now})
                results.write(self._trials.sweep.join(SWEEP_FILE))
        finally:
            # Without its figures, where an evaluation fails or is interrupted.
            self._report(self._trials.sweep)
        return results

    def give_up(self, cause: BaseException) -> None:
        """Writes the files of a sweep that ends because of ``cause``: its user, or an error. Where
        that fails too, the cause is what the user has to hear of."""
        self.close()
        state, error = STOPPED, None
        if isinstance(cause, Exception):
            state, error = FAILED, reason(cause)
        with suppress(QdmrError):
            self._find_importances()
            self._write(self._summary(state, error))
            self._report(self._trials.sweep)

    def close(self) -> None:
        """Ends the thread, after the report that it makes now."""
        self._over.set()
        self._changed.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._changed.wait()
            self._changed.clear()
            began = time.monotonic()
            if self._over.is_set():
                return
            self._tried(self._find_importances)
            self._tried(lambda: self._report(self._trials.sweep))
            seconds = time.monotonic() - began
            if self._over.wait(max(PROGRESS_LINE.seconds, seconds / _REPORT_SHARE)):
                return

    def _tried(self, write: Callable[[], Any]) -> None:
        try:
            write()
        except Exception as error:
            if not self._told:
                self._told = True
                self._say(f"{self._trials.sweep.uri}: not up to date ({reason(error)})")

    def _find_importances(self) -> None:
        if self._trials.plan.settings.space:
            self._importances = importances(self._trials.study.study)

    def _summary(self, state: str, error: str | None = None) -> SweepFile:
        found = summary(self._trials, state, error)
        return found.model_copy(update={"importances": self._importances})

    def _write(self, results: SweepFile) -> None:
        """Writes all files but the report."""
        self._check()
        trials, sweep = self._trials, self._trials.sweep
        results.write(sweep.join(SWEEP_FILE))
        save_study(trials.study.file, sweep.join(STUDY_FILE))
        best = results.trial(results.best)
        if best is not None:
            text = best_experiment(trials, best)
            sweep.join(BEST_FILE).write_bytes_atomic(text.encode())
        for record in results.trials:
            if record.has_ended and record.id not in self._has_hparams:
                write_hparams(sweep, record)
                self._has_hparams.add(record.id)


def _refuse_locked(status: int, *_: int) -> None:
    """Ends a backup that has waited for a locked database, as it would again and again."""
    if status in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        raise sqlite3.OperationalError("database is locked")


def save_study(file: Path, place: Location) -> None:
    """Copies Optuna's database, which may be in use. On a disk the copy there is brought up to date
    in place: a running optuna-dashboard has it open. Raises QdmrError if it can't be written."""
    there = place.local_path
    with closing(sqlite3.connect(file)) as source:
        # A link may lead to a file that is somebody's.
        if there is not None and there.is_file() and not there.is_symlink():
            with (
                suppress(sqlite3.Error),
                closing(sqlite3.connect(there, timeout=_LOCKED_SECONDS)) as target,
            ):
                source.backup(target, progress=_refuse_locked)
                return
        # The first copy, one in a store or in place of what is no database, and on a disk without
        # SQLite's locks.
        with tempfile.TemporaryDirectory(prefix="qdmr-") as scratch:
            copy = Path(scratch, STUDY_FILE)
            with closing(sqlite3.connect(copy)) as target:
                source.backup(target)
            place.write_bytes_atomic(copy.read_bytes())
