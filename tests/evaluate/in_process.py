"""Evaluations without Ray, in the test's own process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import qdmr_ray.evaluate.evaluate as evaluate_module
from qdmr_ray.evaluate.pool import Spread
from qdmr_ray.evaluate.worker import EvaluationTask, Restorer


def judge_here(patch: pytest.MonkeyPatch) -> list[int]:
    """Makes evaluations judge here; returns the indexes that were judged, as they come."""
    judged: list[int] = []

    def judge(
        task: EvaluationTask, rows: list[dict[str, Any]], spread: Spread
    ) -> Iterator[dict[str, Any]]:
        worker = Restorer(task)
        for row in rows:
            judged.append(row["index"])
            yield worker(row)

    patch.setattr(evaluate_module, "_judged", judge)
    patch.setattr(evaluate_module, "ensure_ray", lambda _: None)
    patch.setattr(evaluate_module.ray, "nodes", list)
    return judged
