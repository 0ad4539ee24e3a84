"""What ``evaluation.json`` holds, from the figures of every photograph."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qdmr_ray.config import code_version
from qdmr_ray.evaluate.metrics.metric import json_value
from qdmr_ray.evaluate.metrics.registry import METRICS
from qdmr_ray.evaluate.statistics import summary
from qdmr_ray.evaluate.worker import INPUT


def summarize(
    rows: Sequence[Mapping[str, Any]],
    stages: Sequence[str],
    *,
    failed: Sequence[Mapping[str, str]] = (),
    provenance: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What ``evaluation.json`` holds: means over the images, and each image's own figures.

    A metric's means are over the same images for the input and every stage, as ``compare`` has it:
    those that it could be measured on, with a finite figure each (identical images have an infinite
    PSNR, which is null in ``per_image``). ``left_out`` names the others, ``statistics`` how many
    counted.
    """
    columns = _columns(rows, [INPUT, *stages])
    known = dict(provenance or {})
    evaluation = {
        "images": len(rows),
        INPUT: _means(columns[INPUT]),
        "stages": {stage: _means(columns[stage]) for stage in stages},
        "statistics": {
            name: {metric: summary(values) for metric, values in columns[name].items()}
            for name in columns
        },
        "failed": [dict(failure) for failure in failed],
        "left_out": [left_out for row in rows for left_out in _left_out(row)],
        "provenance": known,
        "environment": {"qdmr_ray": code_version(), **_environment(rows)},
    }
    references = (metric.info.reference for metric in METRICS.values())
    evaluation |= {key: known[key] for key in references if known.get(key)}
    evaluation["per_image"] = [
        {
            "name": row["name"],
            **{
                name: {metric: json_value(value) for metric, value in figures.items()}
                for name, figures in row["figures"].items()
            },
        }
        for row in rows
    ]
    return evaluation


def _means(columns: Mapping[str, Sequence[float]]) -> dict[str, float | None]:
    return {
        metric: json_value(float(np.mean(values))) if len(values) else None
        for metric, values in columns.items()
    }


def _columns(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> dict[str, dict[str, list[float]]]:
    """``columns[name][metric]``: the figures over the images where all of ``names`` have one."""
    metrics = dict.fromkeys(m for row in rows for f in row["figures"].values() for m in f)
    columns: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for metric in metrics:
        usable = [
            row["figures"]
            for row in rows
            if all(
                math.isfinite(row["figures"].get(name, {}).get(metric, math.nan)) for name in names
            )
        ]
        for name in names:
            columns[name][metric] = [figures[name][metric] for figures in usable]
    return columns


def _environment(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What the photographs were computed with: more than one value where an evaluation went on
    elsewhere, or on unlike nodes."""
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        for name, value in row.get("environment", {}).items():
            found.setdefault(name, {})[value] = None
    return {name: ", ".join(sorted(values)) for name, values in found.items()}


def _left_out(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """``{"name", "metric", "reason"}`` of each metric that this photograph doesn't count for."""
    reasons = dict(row.get("left_out", {}))
    for name, figures in row["figures"].items():
        for metric, figure in figures.items():
            if not math.isfinite(figure):
                reasons[metric] = f"{name} and ground truth are identical, {metric} is infinite"
    return [
        {"name": row["name"], "metric": metric, "reason": reason}
        for metric, reason in reasons.items()
    ]
