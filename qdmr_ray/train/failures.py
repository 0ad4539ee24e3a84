"""Which errors end a run at once, and the one line that the user sees.

Losing a worker may pass: Ray Train starts the workers again from the newest checkpoint, up to
``scaling.max_failures`` times. Broken data, a full disk or a bug would only fail again.
"""

from __future__ import annotations

from typing import Any

import ray.train
import torch

from qdmr_ray.errors import QdmrError

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


def training_error(stage: str, error: BaseException) -> QdmrError:
    """One line with the first cause: a worker's own error where there is one."""
    failures = getattr(error, "worker_failures", {})
    causes = [root_cause(failure) for failure in failures.values()] or [root_cause(error)]
    cause = next((c for c in causes if isinstance(c, QdmrError)), causes[0])
    text = " ".join(str(cause).split())
    kind = "" if isinstance(cause, QdmrError) else f"{type(cause).__name__}: "
    return QdmrError(f"stage {stage} failed: {kind}{text}")


def root_cause(error: BaseException) -> BaseException:
    """What Ray wrapped in errors of its own."""
    while True:
        inner = getattr(error, "cause", None) or getattr(error, "_base_exc", None)
        inner = inner or getattr(error, "controller_failure", None) or error.__cause__
        if not isinstance(inner, BaseException) or inner is error:
            return error
        error = inner
