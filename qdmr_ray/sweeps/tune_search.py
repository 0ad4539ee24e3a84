"""The search algorithm that Ray Tune asks for trials: it passes on those of :class:`Trials`."""

from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

from qdmr_ray.evaluate.sweep_file import RUNNING
from qdmr_ray.sweeps.trial import REPORT, VALUE, TrialReport
from qdmr_ray.sweeps.trials import Trials
from qdmr_ray.train.logging.prometheus import TrialGauge

_LOST = (
    "its process was lost scaling.max_failures + 1 times, perhaps for want of memory; see Ray's "
    "logs"
)


class TrialSearch(Searcher):
    """Hands the sweep's trials to Ray Tune, and Tune's reports to the sweep's trials. ``ended``
    is called after each trial. ``failure`` is an error of this class, if any, which Tune would only
    log."""

    def __init__(
        self,
        trials: Trials,
        progress: Callable[[int, int], None] | None,
        ended: Callable[[], None],
    ) -> None:
        super().__init__(metric=VALUE, mode="max")
        self._trials, self._progress, self._ended = trials, progress, ended
        # Maps Tune's trial ids to the sweep's.
        self._names: dict[str, str] = {}
        self._gauge = TrialGauge(trials.plan.settings.name)
        self.failure: BaseException | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A sweep resumes from its trials' records, not from Tune's snapshots.
        return {}

    def suggest(self, trial_id: str) -> Any:
        """Returns the next trial as Tune's config, or ``FINISHED`` when none is left."""
        record = None if self.failure else self._guarded(self._trials.next)
        if record is None:
            return Searcher.FINISHED
        self._names[trial_id] = record.id
        self._show()
        return {"id": record.id, "settings": record.settings, "seed": record.seed}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Notes a report of a trial that goes on."""
        self._note(self._names[trial_id], result)
        # Prometheus forgets a value that is not shown again.
        self._gauge.set(self._trials.counts())

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Notes the end of a trial: by itself, by the scheduler, or by too many lost processes."""
        name = self._names[trial_id]
        # Only this method receives the report that made the scheduler stop a trial.
        report = self._note(name, result or {})
        last = report if report is not None and report.is_last else None
        self._guarded(self._trials.ended, name, last, _LOST if error else None)
        self._guarded(self._ended)
        self._show()

    def save(self, checkpoint_path: str) -> None:
        """Does nothing: the trials' records are on storage."""

    def restore(self, checkpoint_path: str) -> None:
        """Does nothing: the trials' records are on storage."""

    def _note(self, name: str, result: dict[str, Any]) -> TrialReport | None:
        report: TrialReport | None = result.get(REPORT)
        if report is not None:
            self._guarded(self._trials.progressed, name, report)
        return report

    def _show(self) -> None:
        counts = self._trials.counts()
        self._gauge.set(counts)
        if self._progress is not None:
            ended = sum(counts.values()) - counts.get(RUNNING, 0)
            self._progress(ended, self._trials.total)

    def _guarded(self, call: Callable[..., Any], *arguments: Any) -> Any:
        # An error in Tune's loop would be one of many lines in a log.
        try:
            return call(*arguments)
        except Exception as error:
            self.failure = self.failure or error
            return None
