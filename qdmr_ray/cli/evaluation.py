"""What ``qdmr evaluate`` and ``qdmr demo`` say below their table."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.table import Table

from qdmr_ray.cli.output import print_table, say

if TYPE_CHECKING:
    from qdmr_ray.evaluate.results import Evaluation


def print_evaluation(evaluation: Evaluation) -> None:
    """A row of means for the input and each stage, then what a reader must know about them."""
    from qdmr_ray.evaluate.metrics.registry import PRIMARY, metric_info

    primary = metric_info(PRIMARY)
    headings = (metric_info(name).label for name in evaluation.input)
    table = Table("", *headings, f"{primary.label} gain")
    before = evaluation.input.get(PRIMARY)
    for name, values in evaluation.means.items():
        after = values.get(PRIMARY)
        gain = f"{after - before:+.{primary.digits}f} {primary.unit}" if after and before else ""
        cells = ["-" if value is None else f"{value:.4g}" for value in values.values()]
        table.add_row(name, *cells, gain if name in evaluation.stages else "")
    print_table(table)
    say(f"means over {evaluation.images} test images")
    for note in evaluation_notes(evaluation):
        say(note)
    for failure in evaluation.failed:
        print(f"qdmr: {failure.name}: {failure.reason}", file=sys.stderr)


def evaluation_notes(evaluation: Evaluation) -> list[str]:
    """A line per metric that some photographs don't count for, and per file that a metric compares
    with: without these, nobody can say whether two tables are comparable."""
    from qdmr_ray.evaluate.metrics.registry import METRICS, metric_info

    notes = []
    for metric in dict.fromkeys(row.metric for row in evaluation.left_out):
        rows = [row for row in evaluation.left_out if row.metric == metric]
        count, first = evaluation.images - len(rows), rows[0]
        notes.append(
            f"{metric_info(metric).label}: over {count} of them; {first.name}: {first.reason}"
            + (f" (and {len(rows) - 1} more)" if len(rows) > 1 else "")
        )
    for info in (metric.info for metric in METRICS.values()):
        if file := evaluation.reference(info.name):
            notes.append(f"{info.label} with {file}")
    return notes
