"""A process of Ray Tune in which trials run, one after the other. Tune's own function trainables
end a trial by raising in it at its next report, and don't wait until its process has finished. Here
a stopped trial leaves in good order: its claims are released, and the workers that it started are
gone before Tune goes on."""

import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

from ray import tune

from qdmr_ray.sweeps.trial import Tell, TrialContext, TrialReport, failed_report
from qdmr_ray.train.preemption import Preempted

Body = Callable[[Mapping[str, Any], TrialContext, Tell], TrialReport]
# A stopped trial may take so long to end its workers and to finish writing a checkpoint.
_LEAVE_SECONDS = 90.0


class StopTrial(BaseException):
    """Raised in a trial that Tune stops, at its next report; no ``except Exception`` catches it."""


class TrialActor(tune.Trainable):
    """Runs ``body`` in a thread that waits, at each report, for Tune to let it go on."""

    def setup(  # type: ignore[override]
        self, config: dict[str, Any], context: TrialContext, body: Body
    ) -> None:
        """Prepares the first trial of this process."""
        self._context, self._body = context, body
        self._begin(config)

    def step(self) -> dict[str, Any]:
        """Returns the trial's next report as Tune's result."""
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._go_on.release()
        report = self._reports.get()
        if isinstance(report, Preempted):
            # Tune begins the trial again, in a process on another node, and counts no failure.
            raise report
        return report.for_tune(self._context.plan.settings.modes[0])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Ends one trial and prepares the next in the same process; False where that failed."""
        if not self._end():
            return False
        self._begin(new_config)
        return True

    def cleanup(self) -> None:
        """Ends the trial; Tune ends the process afterwards."""
        self._end()

    def _begin(self, config: Mapping[str, Any]) -> None:
        self._reports: queue.Queue[TrialReport | Preempted] = queue.Queue()
        self._go_on = threading.Semaphore(0)
        self._stopping = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(dict(config),), daemon=True, name="trial"
        )

    def _run(self, config: Mapping[str, Any]) -> None:
        try:
            self._reports.put(self._body(config, self._context, self._tell))
        except StopTrial:
            pass
        except Preempted as notice:
            self._reports.put(notice)
        except BaseException as failure:
            # If this raised, Tune would begin the trial again, and it would fail again.
            self._reports.put(failed_report(failure))

    def _tell(self, report: TrialReport) -> None:
        if not self._stopping.is_set():
            self._reports.put(report)
            self._go_on.acquire()
        if self._stopping.is_set():
            raise StopTrial

    def _end(self) -> bool:
        self._stopping.set()
        self._go_on.release()
        if self._thread.ident is not None:
            self._thread.join(_LEAVE_SECONDS)
        return not self._thread.is_alive()
