"""What ``qdmr evaluate`` and ``qdmr demo`` say below their table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def evaluation_notes(evaluation: Mapping[str, Any]) -> list[str]:
    """A line per metric that some photographs don't count for, and per file that one compares with:
    without them, two tables can't be told to be comparable."""
    notes = []
    left_out = evaluation.get("left_out", [])
    for metric in dict.fromkeys(row["metric"] for row in left_out):
        rows = [row for row in left_out if row["metric"] == metric]
        count, first = evaluation["images"] - len(rows), rows[0]
        notes.append(
            f"{metric.upper()}: over {count} of them; {first['name']}: {first['reason']}"
            + (f" (and {len(rows) - 1} more)" if len(rows) > 1 else "")
        )
    for metric, key in (("NIQE", "niqe_parameters"), ("LPIPS", "lpips_weights")):
        if evaluation.get(key):
            notes.append(f"{metric} with {evaluation[key]}")
    return notes
