"""The table of a sweep's trials: state, values, settings and cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qdmr_ray.report.document import duration
from qdmr_ray.report.figures import Cell, sortable
from qdmr_ray.report.run_folder import is_number
from qdmr_ray.report.sweep.data import MISSING, STATE_LABELS, Sweep, Trial, setting_text
from qdmr_ray.report.sweep.tables import NOTHING


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of the table of trials; ``title`` is its full name."""

    label: str
    title: str = ""
    number: bool = True


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """A trial with its cells in the order of the columns; ``badges`` as in ``best``."""

    trial: Trial
    state: str
    state_rank: int
    badges: list[str]
    cells: list[Cell]


@dataclass(frozen=True, kw_only=True)
class TrialTable:
    """All trials: columns in named groups."""

    groups: list[tuple[str, list[Column]]]
    rows: list[TrialRow]


def trial_table(sweep: Sweep, trials: Sequence[Trial]) -> TrialTable:
    """Returns every given trial with its state, values, settings and cost."""
    names = list(dict.fromkeys([*sweep.space, *(n for trial in trials for n in trial.settings)]))
    ranks = {name: _ranks(trials, name) for name in names}
    rows = []
    for trial in trials:
        cells = [
            Cell(text=o.style.text(v) if v is not None else NOTHING, value=sortable(v))
            for o, v in zip(sweep.objectives, trial.values, strict=True)
        ]
        cells += [_setting_cell(trial, name, ranks[name]) for name in names]
        cells += _cost_cells(trial)
        order = list(STATE_LABELS)
        rows.append(
            TrialRow(
                trial=trial,
                state=STATE_LABELS.get(trial.state, trial.state),
                state_rank=order.index(trial.state) if trial.state in order else len(order),
                badges=_badges(sweep, trial),
                cells=cells,
            )
        )
    values = [Column(label=objective.label, title=objective.name) for objective in sweep.objectives]
    settings = [Column(label=sweep.short[name], title=name) for name in names]
    cost = [
        Column(label="Seed"),
        Column(label="Iterations"),
        Column(label="Time"),
        Column(label="Trained itself", number=False),
    ]
    groups = [("Value", values), ("Settings", settings), ("Training", cost)]
    return TrialTable(groups=[group for group in groups if group[1]], rows=rows)


def _ranks(trials: Sequence[Trial], name: str) -> dict[str, int]:
    """Returns sorting keys of texts among a setting's values; empty where all are numbers."""
    values = [trial.settings[name] for trial in trials if name in trial.settings]
    if all(map(is_number, values)):
        return {}
    return {text: rank for rank, text in enumerate(sorted(set(map(setting_text, values))))}


def _setting_cell(trial: Trial, name: str, ranks: dict[str, int]) -> Cell:
    value = trial.settings.get(name, MISSING)
    if value is MISSING:
        return Cell(text=NOTHING)
    text = setting_text(value)
    return Cell(text=text, value=str(ranks[text]) if ranks else repr(value))


def _cost_cells(trial: Trial) -> list[Cell]:
    seconds, trained = trial.seconds, ", ".join(trial.trained)
    return [
        Cell(text=NOTHING if trial.seed is None else str(trial.seed), value=_known(trial.seed)),
        Cell(
            text=NOTHING if trial.iterations is None else f"{trial.iterations:,}",
            value=_known(trial.iterations),
        ),
        Cell(text=NOTHING if seconds is None else duration(seconds), value=sortable(seconds)),
        Cell(text=trained or NOTHING, value=str(len(trial.trained))),
    ]


def _known(value: int | None) -> str:
    return "" if value is None else str(value)


def _badges(sweep: Sweep, trial: Trial) -> list[str]:
    roles = [("best", trial is sweep.best), ("baseline", trial is sweep.baseline)]
    roles.append(("front", len(sweep.objectives) > 1 and trial in sweep.front))
    return [name for name, applies in roles if applies]
