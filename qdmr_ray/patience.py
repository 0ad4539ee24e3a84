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
from dataclasses import dataclass

from qdmr_ray.errors import SettingsError


@dataclass(frozen=True)
class Wait:
    """A duration in seconds that ``variable`` overrides."""

    variable: str
    default: float
    help: str

    @property
    def seconds(self) -> float:
        """The duration in force; raises SettingsError if the variable holds no positive number."""
        text = os.environ.get(self.variable)
        if not text:
            return self.default
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise SettingsError(
                f"{self.variable} is {text!r}: set it to a number of seconds above 0, or unset it"
            )
        return value


CLAIM_BEAT = Wait(
    "QDMR_PATIENCE_CLAIM_BEAT",
    10.0,
    "how often the process that trains a stage of a shared store shows that it is alive",
)
CLAIM_STALE = Wait(
    "QDMR_PATIENCE_CLAIM_STALE",
    90.0,
    "without a sign of life for so long, another process takes the stage over",
)
EXPORT = Wait(
    "QDMR_PATIENCE_EXPORT",
    10.0,
    "how long a worker that ends with an error waits for Ray to pass its metrics on to Prometheus",
)
REPORT = Wait(
    "QDMR_PATIENCE_REPORT",
    2.0,
    "the shortest time between two checkpoints that workers tell Ray Train of",
)
WATCH = Wait(
    "QDMR_PATIENCE_WATCH",
    0.5,
    "how often a command asks for the log's lines and the position of its training",
)
PROGRESS_LINE = Wait(
    "QDMR_PATIENCE_PROGRESS_LINE",
    10.0,
    "how often a training prints its position where no person watches",
)
ASK_RAY = Wait(
    "QDMR_PATIENCE_ASK_RAY",
    10.0,
    "how often the workers ask Ray whether one of their nodes is about to be taken away",
)
SAVE = Wait(
    "QDMR_PATIENCE_SAVE",
    120.0,
    "how long Ctrl-C waits for a checkpoint before the training is ended without one",
)
ABORT = Wait(
    "QDMR_PATIENCE_ABORT",
    30.0,
    "how long a command waits for a training that it ends",
)

WAITS = (CLAIM_BEAT, CLAIM_STALE, EXPORT, REPORT, WATCH, PROGRESS_LINE, ASK_RAY, SAVE, ABORT)
