"""Logged metrics as Ray metrics, for Prometheus and the Ray dashboard."""

import math
from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge

# Logged metrics of one kind (loss terms by domain, phases by name) become one Ray metric, with the
# rest of the name as its tag ``figure``, so that a dashboard needs no list of them.
_PREFIX = "qdmr"
_TAGS = ("run", "stage", "figure")
_KINDS = {
    "time": "step_phase_seconds",
    "codebook": "codebook",
    "validation": "validation",
    "learning_rate": "learning_rate",
    "gradient_norm": "gradient_norm",
}
_ALONE = (
    *("data_wait_fraction", "samples_per_second", "memory_bytes", "broken_records", "iteration"),
    *("iterations_planned", "workers", "model_flops_utilization"),
)
_LOSS = "loss"


class Gauges:
    """Ray metrics of one stage, each with the tags ``run``, ``stage`` and ``figure``. Gauges:
    ``qdmr_loss``, ``qdmr_step_phase_seconds``, ``qdmr_codebook``, ``qdmr_validation``,
    ``qdmr_learning_rate``, ``qdmr_gradient_norm``, and ``qdmr_`` with the name of each metric that
    is of no kind. Counter: ``qdmr_non_finite``."""

    def __init__(self, run: str, stage: str) -> None:
        self._tags = {"run": run, "stage": stage}
        self._gauges: dict[str, Gauge] = {}
        self._non_finite = Counter(
            f"{_PREFIX}_non_finite", "logged metrics that were not finite", tag_keys=_TAGS
        )

    def set(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Shows the newest metrics."""
        for name, value in {**metrics, "iteration": float(iteration)}.items():
            metric, figure = gauge_of(name)
            if math.isfinite(value):
                self._gauge(metric).set(value, {**self._tags, "figure": figure})
            else:
                # A gauge that is not finite draws nothing, so the counter shows it.
                self.not_finite(name)

    def not_finite(self, name: str) -> None:
        """Counts a metric that ends the training before it is logged."""
        metric, figure = gauge_of(name)
        self._non_finite.inc(1, {**self._tags, "figure": figure or metric})

    def _gauge(self, metric: str) -> Gauge:
        if metric not in self._gauges:
            description = f"{metric.replace('_', ' ')} of a training stage"
            self._gauges[metric] = Gauge(f"{_PREFIX}_{metric}", description, tag_keys=_TAGS)
        return self._gauges[metric]


class PreemptionCounter:
    """``qdmr_preemptions``, tagged ``run`` and ``stage``, counts workers' machines taken away."""

    def __init__(self, run: str, stage: str) -> None:
        self._tags = {"run": run, "stage": stage}
        self._counter = Counter(
            f"{_PREFIX}_preemptions", "stops for a machine that is taken away", tag_keys=_TAGS[:2]
        )

    def add(self) -> None:
        """Counts one more."""
        self._counter.inc(1, self._tags)


def gauge_of(name: str) -> tuple[str, str]:
    """Returns a logged metric's Ray metric (without prefix), and its tag."""
    if name in _ALONE:
        return name, ""
    kind, _, rest = name.partition("/")
    if kind in _KINDS and rest:
        return _KINDS[kind], rest
    return _LOSS, name


class TrialGauge:
    """``qdmr_trials``: a sweep's trials by state, with the tags ``sweep`` and ``state``."""

    def __init__(self, sweep: str) -> None:
        self._sweep = sweep
        self._gauge = Gauge(
            f"{_PREFIX}_trials", "trials of a sweep by state", tag_keys=("sweep", "state")
        )
        self._states: set[str] = set()

    def set(self, counts: Mapping[str, int]) -> None:
        """Shows how many trials are in each state."""
        # A state that no trial is in any more goes back to 0.
        self._states |= set(counts)
        for state in self._states:
            self._gauge.set(counts.get(state, 0), {"sweep": self._sweep, "state": state})
