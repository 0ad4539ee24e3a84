"""Which errors end a run at once, and the one line that the user sees.

Losing a worker may pass: Ray Train starts the workers again from the newest checkpoint, up to
``scaling.max_failures`` times. Broken data, a full disk or a bug would only fail again.
"""

from __future__ import annotations

import math
import os
from typing import Any

import ray.train
import torch

from qdmr_ray.errors import QdmrError

# Ray Train gives up on starting its workers after so many seconds, which it calls a failure of
# its controller, and then tries again.
_START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
_START_SECONDS = 60.0

# What a bug raises. RuntimeError and OSError are not among them: so a rank fails whose peer died.
_HOPELESS = (
    QdmrError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    NameError,
    AssertionError,
    ArithmeticError,
    torch.OutOfMemoryError,
)


class EndAtOnce(ray.train.UserCallback):
    """Ends a run whose worker failed for a reason that starting again doesn't mend.

    Ray Train knows no such errors: it retries whatever a worker raises. But an error in a callback
    ends the run, and with it the other ranks, which may be waiting for the one that failed.
    """

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called by Ray Train's controller as soon as a worker has failed."""
        for error in worker_exceptions.values():
            cause = root_cause(error)
            if isinstance(cause, _HOPELESS):
                raise cause


def attempts_within(seconds: float) -> int:
    """How often Ray Train may fail to start its workers in ``seconds``, for FailureConfig."""
    each = float(os.environ.get(_START_TIMEOUT, _START_SECONDS))
    # The first attempt is not a repetition.
    return max(0, math.ceil(seconds / each) - 1)


def training_error(stage: str, error: BaseException) -> QdmrError:
    """One line with the first cause: a worker's own error where there is one."""
    if any(type(e).__name__ == "WorkerGroupStartupTimeoutError" for e in _chain(error)):
        return QdmrError(
            f"stage {stage} stopped: the cluster had no room for its workers for all of "
            "scaling.node_wait; bring nodes back and run the same command to go on, or set "
            "scaling.min_workers to go on with fewer"
        )
    failures = getattr(error, "worker_failures", {})
    causes = [root_cause(failure) for failure in failures.values()] or [root_cause(error)]
    cause = next((c for c in causes if isinstance(c, QdmrError)), causes[0])
    text = " ".join(str(cause).split())
    kind = "" if isinstance(cause, QdmrError) else f"{type(cause).__name__}: "
    return QdmrError(f"stage {stage} failed: {kind}{text}")


def root_cause(error: BaseException) -> BaseException:
    """What Ray wrapped in errors of its own."""
    return _chain(error)[-1]


def _chain(error: BaseException) -> list[BaseException]:
    """An error, what it wraps, and so on."""
    chain = [error]
    while True:
        inner = getattr(error, "cause", None) or getattr(error, "_base_exc", None)
        inner = inner or getattr(error, "controller_failure", None) or error.__cause__
        if not isinstance(inner, BaseException) or inner is error:
            return chain
        chain.append(inner)
        error = inner
