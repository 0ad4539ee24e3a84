"""What ``evaluation.json`` holds, from the figures of every photograph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qdmr_ray.evaluate.metrics import json_figure
from qdmr_ray.evaluate.restorer import INPUT
from qdmr_ray.evaluate.statistics import summary


def summarize(
    rows: Sequence[Mapping[str, Any]],
    stages: Sequence[str],
    *,
    failed: Sequence[Mapping[str, str]] = (),
    provenance: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What ``evaluation.json`` holds: means over the images, and each image's own figures.

    A figure that is not finite (identical images have an infinite PSNR) is null.
    """
    measured = [row for row in rows if row["figures"]]
    known = dict(provenance or {})
    evaluation = {
        "images": len(rows),
        INPUT: _means(measured, INPUT),
        "stages": {stage: _means(measured, stage) for stage in stages},
        "statistics": {stage: _statistics(measured, stage) for stage in (INPUT, *stages)},
        "failed": [dict(failure) for failure in failed],
        "provenance": known,
    }
    if known.get("niqe_parameters"):
        evaluation["niqe_parameters"] = known["niqe_parameters"]
    evaluation["per_image"] = [
        {
            "name": row["name"],
            **{
                name: {metric: json_figure(value) for metric, value in figures.items()}
                for name, figures in row["figures"].items()
            },
        }
        for row in rows
    ]
    return evaluation


def _means(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, float | None]:
    return {
        metric: json_figure(float(np.mean(values)))
        for metric, values in _columns(rows, name).items()
    }


def _statistics(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, dict[str, Any]]:
    return {metric: summary(values) for metric, values in _columns(rows, name).items()}


def _columns(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, list[float]]:
    """The figures of one stage by metric, over the images."""
    metrics = rows[0]["figures"][name] if rows else {}
    return {metric: [row["figures"][name][metric] for row in rows] for metric in metrics}
