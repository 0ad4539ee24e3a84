"""What a sweep's folder holds, read for its report; ``sweep.json`` has to be there.

A part of it that is missing or of another kind is left out, since a report is wanted most for the
sweep that went wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from qdmr_ray.errors import QdmrError
from qdmr_ray.report.evaluation import Figures, finite, is_figure
from qdmr_ray.report.figures import METRICS, MetricStyle, metric_style
from qdmr_ray.report.run_folder import read_json
from qdmr_ray.report.sweep.data import (
    WAITING,
    Objective,
    PlainStyle,
    Repeats,
    Sweep,
    Trial,
    UnseenFigures,
    Values,
)
from qdmr_ray.storage import Location

SWEEP_FILE = "sweep.json"
BEST_FILE = "best.yaml"


def is_sweep(place: Location) -> bool:
    """Whether the folder is a sweep's."""
    return place.join(SWEEP_FILE).size() is not None


def read_sweep(place: Location) -> Sweep:
    """Reads the sweep in the folder ``place``.

    Raises:
        QdmrError: ``sweep.json`` is missing or broken, or it names no metric.
    """
    problems: list[str] = []
    content = read_json(place, SWEEP_FILE, dict, problems)
    if content is None:
        reason = problems[0] if problems else f"{SWEEP_FILE} is missing"
        raise QdmrError(f"{place.uri} holds no sweep that can be read: {reason}")
    objectives = _objectives(content.get("metrics"))
    if not objectives:
        raise QdmrError(f"{place.join(SWEEP_FILE).uri} names no metric under 'metrics': mend it")
    rows = [row for row in _list(content.get("trials")) if isinstance(row, dict)]
    trials = [_trial(row, index, len(objectives)) for index, row in enumerate(rows)]
    by_id = {trial.id: trial for trial in trials}
    seconds = finite(content.get("seconds"))
    return Sweep(
        place=place,
        name=str(content.get("name") or place.name),
        code_version=str(content.get("code_version") or ""),
        objectives=objectives,
        sampler=str(content.get("sampler") or ""),
        stopping=_mapping(content.get("stopping")),
        space={name: _mapping(spec) for name, spec in _mapping(content.get("space")).items()},
        trials=trials,
        best=by_id.get(str(content.get("best"))),
        front=[by_id[str(key)] for key in _list(content.get("front")) if str(key) in by_id],
        baseline=by_id.get(str(content.get("baseline"))),
        repeats=[
            _repeats(row, len(objectives))
            for row in _list(content.get("repeats"))
            if isinstance(row, dict)
        ],
        unseen=_unseen(content.get("test")),
        importances={
            name: share
            for name, value in _mapping(content.get("importances")).items()
            if (share := finite(value)) is not None
        },
        stages_trained={
            name: int(count)
            for name, count in _mapping(content.get("stages_trained")).items()
            if is_figure(count)
        },
        seconds=seconds,
        best_text=_best_text(place, problems),
        problems=problems,
    )


def _objectives(rows: Any) -> list[Objective]:
    named = [
        (str(row["name"]), -1 if row.get("mode") == "min" else 1)
        for row in _list(rows)
        if isinstance(row, dict) and row.get("name")
    ]
    styles = [_style(name, better) for name, better in named]
    labels = Counter(style.label for style in styles)
    return [
        Objective(
            name=name, style=style if labels[style.label] == 1 else replace(style, label=name)
        )
        for (name, _), style in zip(named, styles, strict=True)
    ]


def _style(name: str, better: int) -> MetricStyle:
    """By the last part of ``uda/validation/psnr``; an unknown metric goes by its full name."""
    last = name.rsplit("/", 1)[-1]
    if last.partition("_")[0] in METRICS:
        return replace(metric_style(last), better=better)
    return PlainStyle(label=name, better=better)


def _trial(row: Mapping[str, Any], index: int, objectives: int) -> Trial:
    number, seed, iterations = row.get("number"), row.get("seed"), finite(row.get("iterations"))
    history = [
        (int(step["iteration"]), _values(step.get("values"), objectives))
        for step in _list(row.get("history"))
        if isinstance(step, dict) and finite(step.get("iteration")) is not None
    ]
    return Trial(
        id=str(row.get("id", f"{index:04}")),
        number=number if isinstance(number, int) else index,
        name=str(row.get("name") or ""),
        seed=seed if isinstance(seed, int) else None,
        state=str(row.get("state") or WAITING),
        settings=_mapping(row.get("settings")),
        values=_values(row.get("values"), objectives),
        history=sorted(history, key=lambda step: step[0]),
        iterations=None if iterations is None else int(iterations),
        seconds=finite(row.get("seconds")),
        stages=list(_mapping(row.get("stages"))),
        trained=[str(name) for name in _list(row.get("trained"))],
        error=str(row.get("error") or ""),
        run=str(row.get("run") or ""),
    )


def _repeats(row: Mapping[str, Any], objectives: int) -> Repeats:
    return Repeats(
        of=str(row.get("of")),
        seeds=[str(seed) for seed in _list(row.get("seeds"))],
        values=[_values(values, objectives) for values in _list(row.get("values"))],
        mean=_values(row.get("mean"), objectives),
        std=_values(row.get("std"), objectives),
    )


def _unseen(content: Any) -> UnseenFigures | None:
    if not isinstance(content, dict):
        return None
    images = content.get("images")
    return UnseenFigures(
        images=images if isinstance(images, int) else 0,
        input=_figures(content.get("input")),
        trials={
            name: _figures(row)
            for name, row in _mapping(content.get("trials")).items()
            if isinstance(row, dict)
        },
    )


def _best_text(place: Location, problems: list[str]) -> str:
    file = place.join(BEST_FILE)
    try:
        return "" if file.size() is None else file.read_bytes().decode("utf-8", errors="replace")
    except QdmrError as error:
        problems.append(str(error))
        return ""


def _values(row: Any, count: int) -> Values:
    """``count`` values, ``None`` where one is missing or not finite."""
    known = _list(row)[:count]
    return [finite(value) for value in known] + [None] * (count - len(known))


def _figures(row: Any) -> Figures:
    return {
        name: finite(value)
        for name, value in _mapping(row).items()
        if value is None or is_figure(value)
    }


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
