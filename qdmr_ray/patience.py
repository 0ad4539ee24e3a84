"""Intervals and waits of the package, each of which an environment variable overrides.

    QDMR_PATIENCE_CLAIM_STALE=300 qdmr train experiment.yaml

The defaults suit a cluster. A slow shared disk may need longer ones, tests need shorter ones.
Training workers read the variables of their node or of their job (``qdmr submit --env``); those of
an embedded Ray read the command's. Ray has variables of its own:
``RAY_TRAIN_HEALTH_CHECK_INTERVAL_S`` (how often it looks at the workers),
``RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S`` (how long an attempt to start them waits for room) and
``RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S`` (how often it asks which nodes are drained).
"""

import math
import os
from contextlib import suppress
from dataclasses import dataclass

from qdmr_ray.errors import SettingsError


@dataclass(frozen=True)
class Wait:
    """A duration in seconds that the variable ``QDMR_PATIENCE_`` with this ``name`` overrides."""

    name: str
    default: float
    help: str

    @property
    def variable(self) -> str:
        """The environment variable."""
        return f"QDMR_PATIENCE_{self.name}"

    @property
    def seconds(self) -> float:
        """The duration in force; raises SettingsError if the variable holds no positive number."""
        text = os.environ.get(self.variable)
        if not text:
            return self.default
        with suppress(ValueError):
            if 0 < float(text) < math.inf:
                return float(text)
        raise SettingsError(
            f"{self.variable} is {text!r}: set it to a number of seconds above 0, or unset it"
        )


WAITS = (
    Wait("CLAIM_BEAT", 10.0, "how often a process that trains a shared stage shows it is alive"),
    Wait("CLAIM_STALE", 90.0, "without a sign of life for so long, another process takes over"),
    Wait("EXPORT", 10.0, "how long a worker that fails waits for its metrics to reach Prometheus"),
    Wait("REPORT", 2.0, "the shortest time between two checkpoints that Ray Train is told of"),
    Wait("WATCH", 0.5, "how often a command asks for the log's lines and position of its training"),
    Wait("PROGRESS_LINE", 10.0, "how often the position is printed where no person watches"),
    Wait("ASK_RAY", 10.0, "how often workers ask whether one of their nodes is to be taken away"),
    Wait("SAVE", 120.0, "how long Ctrl-C waits for a checkpoint before training ends without one"),
    Wait("RESIZE", 1800.0, "how long workers may train on until they have saved for a resize"),
    Wait("ABORT", 30.0, "how long a command waits for a training that it ends"),
)
CLAIM_BEAT, CLAIM_STALE, EXPORT, REPORT, WATCH, PROGRESS_LINE, ASK_RAY, SAVE, RESIZE, ABORT = WAITS
