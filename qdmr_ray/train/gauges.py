"""The logged figures as Ray metrics, for Prometheus and the Ray dashboard."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ray.util.metrics import Gauge

# Figures whose names say a part (loss terms by domain, phases by name) become one metric with the
# part as its tag, so that a board needs no list of them.
_PREFIX = "qdmr"
_TAGS = ("run", "stage", "figure")
_KINDS = {
    "time": "step_phase_seconds",
    "codebook": "codebook",
    "validation": "validation",
    "learning_rate": "learning_rate",
    "gradient_norm": "gradient_norm",
}
_ALONE = ("data_wait_fraction", "samples_per_second", "memory_bytes", "broken_records", "iteration")
_LOSS = "loss"


class Gauges:
    """Gauges of one stage: ``qdmr_loss``, ``qdmr_step_phase_seconds``, ``qdmr_codebook``,
    ``qdmr_validation``, ``qdmr_learning_rate``, ``qdmr_gradient_norm`` and the figures without
    parts, each with the tags ``run``, ``stage`` and ``figure``."""

    def __init__(self, run: str, stage: str) -> None:
        self._tags = {"run": run, "stage": stage}
        self._gauges: dict[str, Gauge] = {}

    def set(self, iteration: int, figures: Mapping[str, float]) -> None:
        """Shows the newest figures."""
        for name, value in {**figures, "iteration": float(iteration)}.items():
            if math.isfinite(value):
                metric, figure = gauge_of(name)
                self._gauge(metric).set(value, {**self._tags, "figure": figure})

    def _gauge(self, metric: str) -> Gauge:
        if metric not in self._gauges:
            description = f"{metric.replace('_', ' ')} of a training stage"
            self._gauges[metric] = Gauge(f"{_PREFIX}_{metric}", description, tag_keys=_TAGS)
        return self._gauges[metric]


def gauge_of(name: str) -> tuple[str, str]:
    """The metric (without its prefix) that a logged figure belongs to, and its ``figure`` tag."""
    if name in _ALONE:
        return name, ""
    kind, _, rest = name.partition("/")
    if kind in _KINDS and rest:
        return _KINDS[kind], rest
    return _LOSS, name
