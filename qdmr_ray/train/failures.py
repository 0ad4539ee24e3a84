"""Decides which errors end a run at once, and words the one line that the user sees. A lost worker
may come back: Ray Train restarts the workers from the newest checkpoint, up to
``scaling.max_failures`` times. Broken data, a full disk or a bug would only fail again."""

import time
from typing import Any

import ray
import ray.train
import torch
from ray.exceptions import RayActorError

from qdmr_ray.errors import QdmrError
from qdmr_ray.ray_compat import ControllerCallback, DefaultFailurePolicy, WorkerGroupCallback
from qdmr_ray.train.logging.prometheus import PreemptionCounter
from qdmr_ray.train.preemption import Stopped

# Bugs raise these. RuntimeError and OSError are missing: a rank raises one if its peer has died.
_BUGS = (TypeError, ValueError, LookupError, AttributeError, NameError, AssertionError)
_HOPELESS = (*_BUGS, ArithmeticError, QdmrError, torch.OutOfMemoryError)


class EndAtOnce(ray.train.UserCallback):
    """Ends a run whose worker failed for a reason that a restart doesn't mend. Ray Train retries
    whatever a worker raises, but an error in a callback ends the run, and with it the other ranks,
    which may be waiting for the one that failed.

    Stops for machines that are taken away are counted here, for Prometheus: a worker's own count
    would be lost with its machine before Prometheus reads it.
    """

    def __init__(self, run: str, stage: str) -> None:
        self._run, self._stage = run, stage
        # It is made where it is used: metrics don't travel between processes.
        self._preemptions: PreemptionCounter | None = None

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Ray Train's controller calls this as soon as a worker has failed."""
        for error in worker_exceptions.values():
            cause = root_cause(error)
            if isinstance(cause, _HOPELESS):
                raise cause
        if any(_is_preemption(error) for error in worker_exceptions.values()):
            self._preemptions = self._preemptions or PreemptionCounter(self._run, self._stage)
            self._preemptions.add()


class LostWhileStarting(DefaultFailurePolicy):
    """Counts a worker that is lost just before it begins among the failures of workers. Ray Train
    (2.60) watches the workers before and after it tells them what to run, and takes a loss in
    between for a failure of its own, which ends the run."""

    def make_decision(self, training_failed_error: Any) -> Any:
        """Decides, in the controller, whether the workers start again."""
        error = training_failed_error
        cause = getattr(error, "controller_failure", None)
        if isinstance(error, ray.train.ControllerError) and isinstance(cause, RayActorError):
            error = ray.train.WorkerGroupError(str(cause), {0: cause})
        return super().make_decision(error)


class Supervision(ControllerCallback, WorkerGroupCallback):
    """Watches worker groups come and go, in Ray Train's controller.

    - It tells ``board`` which actor controls the training, so that the driver can end it.
    - It ends a run whose workers have found no room for ``patience`` seconds on end. Ray Train
      counts failed starts over the whole run instead, which would end a long run on machines that
      come and go although each of them was replaced.
    - It ends the workers of a group that fails just before it begins: Ray Train forgets them, and
      they would occupy the places of their successors.
    """

    def __init__(self, board: Any, patience: float) -> None:
        self._board, self._patience = board, patience
        self._waiting_since: float | None = None
        self._starting: Any = None

    def after_controller_start(self, train_run_context: Any) -> None:
        """Ray Train calls this once, at the beginning."""
        self._board.introduce.remote(ray.get_runtime_context().current_actor)

    def on_controller_start_worker_group(self, **_: Any) -> None:
        """Ray Train calls this before each attempt to start the workers."""
        if self._waiting_since is None:
            self._waiting_since = time.monotonic()

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Ray Train calls this when the workers exist."""
        self._waiting_since, self._starting = None, worker_group

    def after_worker_group_training_start(self, worker_group: Any) -> None:
        """Ray Train calls this when the workers have their task, and from here on ends them."""
        self._starting = None

    def before_controller_execute_failure_decision(self, failure_decision: Any) -> None:
        """Ray Train calls this after each failed start, and after a failure of the workers. Raises
        QdmrError if the workers have waited for too long."""
        forgotten, self._starting = self._starting, None
        if forgotten is not None and forgotten.has_started():
            forgotten.shutdown()
        since = self._waiting_since
        if since is not None and time.monotonic() - since >= self._patience:
            raise QdmrError(
                f"the cluster had no room for its workers for all of scaling.node_wait="
                f"{self._patience:g} s; bring nodes back and run the same command to go on, or "
                "set scaling.min_workers to go on with fewer"
            )


def training_error(stage: str, error: BaseException) -> QdmrError:
    """Returns one line with the first cause: a worker's own error where there is one."""
    failures = getattr(error, "worker_failures", {})
    causes = [root_cause(failure) for failure in failures.values()] or [root_cause(error)]
    cause = next((c for c in causes if isinstance(c, QdmrError)), causes[0])
    text = " ".join(str(cause).split())
    kind = "" if isinstance(cause, QdmrError) else f"{type(cause).__name__}: "
    return QdmrError(f"stage {stage} failed: {kind}{text}")


def root_cause(error: BaseException) -> BaseException:
    """Returns the error that Ray has wrapped in errors of its own."""
    return _chain(error)[-1]


def _is_preemption(error: BaseException) -> bool:
    """Returns whether a worker's machine was taken away, with a notice or without."""
    lost = [e for e in _chain(error) if isinstance(e, RayActorError) and e.preempted]
    return any(not isinstance(e, Stopped) for e in lost)


def _chain(error: BaseException) -> list[BaseException]:
    """Returns an error, the one that it wraps, and so on."""
    chain = [error]
    while True:
        inner = getattr(error, "cause", None) or getattr(error, "_base_exc", None)
        inner = inner or getattr(error, "controller_failure", None) or error.__cause__
        if not isinstance(inner, BaseException) or inner is error:
            return chain
        chain.append(inner)
        error = inner
