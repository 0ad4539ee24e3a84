"""The table of a sweep's trials: state, values, settings and cost."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from qdmr_ray.report.document import duration
from qdmr_ray.report.run_folder import is_number
from qdmr_ray.report.summary import Cell, sortable
from qdmr_ray.report.sweep.data import STATE_LABELS, Sweep, Trial, setting_text
from qdmr_ray.report.sweep.tables import NOTHING


class Column(NamedTuple):
    """A column of the table of trials; ``title`` is its full name."""

    label: str
    title: str = ""
    number: bool = True


def trial_table(sweep: Sweep, trials: Sequence[Trial]) -> dict[str, list[Any]]:
    """Returns every given trial with its state, badges and cells (values, settings and cost), and
    the ``groups`` of the cells' columns by name."""
    names = list(dict.fromkeys([*sweep.space, *(n for trial in trials for n in trial.settings)]))
    ranks = {name: _ranks(trials, name) for name in names}
    order = list(STATE_LABELS)
    rows = [
        {
            "trial": trial,
            "state": trial.state_label,
            "state_rank": order.index(trial.state) if trial.state in order else len(order),
            "badges": _badges(sweep, trial),
            "cells": [
                *(
                    _cell(value, objective.text(value))
                    for objective, value in zip(sweep.objectives, trial.values, strict=True)
                ),
                *(_setting_cell(trial, name, ranks[name]) for name in names),
                _cell(trial.seed, str(trial.seed)),
                _cell(trial.iterations, f"{trial.iterations:,}"),
                _cell(trial.seconds, duration(trial.seconds)),
                _cell(len(trial.trained), ", ".join(trial.trained) or NOTHING),
            ],
        }
        for trial in trials
    ]
    cost = [Column("Seed"), Column("Iterations"), Column("Time")]
    groups = [
        ("Value", [Column(objective.full_label, objective.name) for objective in sweep.objectives]),
        ("Settings", [Column(sweep.short[name], name) for name in names]),
        ("Training", [*cost, Column("Trained itself", number=False)]),
    ]
    return {"groups": [group for group in groups if group[1]], "rows": rows}


def _cell(value: float | None, text: str) -> Cell:
    return Cell(text=NOTHING if value is None else text, value=sortable(value))


def _ranks(trials: Sequence[Trial], name: str) -> dict[str, int]:
    """Returns sorting keys of texts among a setting's values; empty where all are numbers."""
    values = [trial.settings[name] for trial in trials if name in trial.settings]
    if all(map(is_number, values)):
        return {}
    return {text: rank for rank, text in enumerate(sorted(set(map(setting_text, values))))}


def _setting_cell(trial: Trial, name: str, ranks: dict[str, int]) -> Cell:
    if name not in trial.settings:
        return Cell(text=NOTHING)
    value, text = trial.settings[name], setting_text(trial.settings[name])
    return Cell(text=text, value=str(ranks[text]) if ranks else repr(value))


def _badges(sweep: Sweep, trial: Trial) -> list[str]:
    roles = {
        "best": trial is sweep.best,
        "baseline": trial is sweep.baseline,
        "front": len(sweep.objectives) > 1 and trial in sweep.front,
    }
    return [name for name, applies in roles.items() if applies]
