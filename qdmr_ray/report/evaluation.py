"""``evaluation.json`` as the report shows it; what is missing or of another kind is left out."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qdmr_ray.evaluate.names import INPUT

# Enough of a sha256 to tell files apart by eye.
DIGEST_SHOWN = 12
SHA256 = re.compile(r"\b[0-9a-f]{64}\b")

Figures = dict[str, float | None]


@dataclass(frozen=True, kw_only=True)
class ImageResult:
    """One held-out photograph: its figures by stage (``input`` among them)."""

    name: str
    figures: dict[str, Figures]


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """How a metric is spread over the photographs; ``interval`` is the mean's, at 95 %."""

    median: float | None
    interval: tuple[float, float] | None
    count: int | None


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A photograph that could not be evaluated, and why."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """``evaluation.json``; ``figures`` are means by stage, ``input`` first, and ``statistics`` has
    the same keys as far as the file knows them. ``niqe_parameters`` says what NIQE compared with,
    ``provenance`` what else determined the figures, and what they were computed with.
    """

    images: int
    figures: dict[str, Figures]
    per_image: list[ImageResult]
    statistics: dict[str, dict[str, Statistics]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    niqe_parameters: str = ""
    provenance: dict[str, str] = field(default_factory=dict)

    @property
    def stages(self) -> list[str]:
        """The stages that were evaluated, in the run's order."""
        return [stage for stage in self.figures if stage != INPUT]

    @property
    def metrics(self) -> list[str]:
        """Every metric that any stage has, in the file's order."""
        return list(dict.fromkeys(name for row in self.figures.values() for name in row))


def parse_evaluation(content: Mapping[str, Any], order: Sequence[str]) -> Evaluation | None:
    """The file's content, with the stages in ``order`` first; ``None`` where it has no figures."""
    stages = _mapping(content.get("stages"))
    ordered = [name for name in order if name in stages]
    ordered += [name for name in stages if name not in ordered]
    named = [(INPUT, content.get(INPUT)), *((name, stages[name]) for name in ordered)]
    figures = {name: _figures(row) for name, row in named if isinstance(row, dict)}
    rows = content.get("per_image")
    per_image = [
        ImageResult(
            name=str(row.get("name", f"image {index + 1}")),
            figures={name: _figures(row[name]) for name in figures if _has(row, name)},
        )
        for index, row in enumerate(rows if isinstance(rows, list) else [])
        if isinstance(row, dict)
    ]
    if not figures:
        return None
    images = content.get("images")
    statistics = _mapping(content.get("statistics"))
    return Evaluation(
        images=images if isinstance(images, int) else len(per_image),
        figures=figures,
        per_image=per_image,
        statistics={
            name: {
                metric: _statistics(known)
                for metric, known in _mapping(statistics[name]).items()
                if isinstance(known, dict)
            }
            for name in figures
            if name in statistics
        },
        failures=_failures(content.get("failed")),
        niqe_parameters=_niqe_parameters(content.get("niqe_parameters")),
        provenance=_flat(
            {**_mapping(content.get("provenance")), **_mapping(content.get("environment"))}
        ),
    )


def is_figure(value: Any) -> bool:
    """Whether a JSON value is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def finite(value: Any) -> float | None:
    """The number, ``None`` where it is none or not finite."""
    return float(value) if is_figure(value) and math.isfinite(value) else None


def _statistics(known: Mapping[str, Any]) -> Statistics:
    ends = known.get("ci95")
    low, high = map(finite, ends) if isinstance(ends, list) and len(ends) == 2 else (None, None)
    count = known.get("n")
    return Statistics(
        median=finite(known.get("median")),
        interval=None if low is None or high is None else (low, high),
        count=count if isinstance(count, int) else None,
    )


def _failures(rows: Any) -> list[Failure]:
    return [
        Failure(name=str(row.get("name", "?")), reason=str(row.get("reason", "no reason given")))
        for row in (rows if isinstance(rows, list) else [])
        if isinstance(row, dict)
    ]


def _niqe_parameters(known: Any) -> str:
    """``{"file", "sha256", "source"}`` or a name, in one line."""
    if not isinstance(known, dict):
        return "" if known is None else str(known)
    parts = [str(known[key]) for key in ("file", "source") if known.get(key)]
    digest = known.get("sha256")
    return ", ".join([*parts, *([f"sha256 {str(digest)[:DIGEST_SHOWN]}"] if digest else [])])


def _flat(values: Mapping[str, Any], head: str = "") -> dict[str, str]:
    """``{"models.uda": "5e8a…"}`` from nested objects; what is null is left out."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{head}{name}.")
        elif value is not None:
            text = value if isinstance(value, str) else json.dumps(value)
            flat[f"{head}{name}"] = SHA256.sub(lambda found: found[0][:DIGEST_SHOWN] + "…", text)
    return flat


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _has(row: Mapping[str, Any], name: str) -> bool:
    return isinstance(row.get(name), dict)


def _figures(row: Mapping[str, Any]) -> Figures:
    return {
        str(name): None if value is None or math.isnan(value) else float(value)
        for name, value in row.items()
        if value is None or is_figure(value)
    }
