"""The tables of a sweep's report: metrics on unseen images, seeds, variants, search space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qdmr_ray.evaluate.metrics.metric import MetricInfo
from qdmr_ray.evaluate.metrics.registry import metric_info
from qdmr_ray.evaluate.names import INPUT, label
from qdmr_ray.report.figures import (
    Cell,
    ColumnGroup,
    Row,
    Table,
    change,
    verdict,
)
from qdmr_ray.report.sweep.data import MISSING, Repeats, Spread, Sweep, Trial, setting_text, spread
from qdmr_ray.report.sweep.figures import counted, reference

NOTHING = "–"


@dataclass(frozen=True, kw_only=True)
class SeedRow:
    """A trial's values of one objective over its seeds; a text per seed, in the table's order."""

    name: str
    spread: str
    count: int
    values: list[str]


@dataclass(frozen=True, kw_only=True)
class SeedTable:
    """Trials that were repeated with other seeds."""

    seeds: list[str]
    rows: list[SeedRow]


@dataclass(frozen=True, kw_only=True)
class SpaceRow:
    """A parameter: its searched values, its condition, its baseline and its best value."""

    name: str
    values: str
    when: str
    baseline: str
    best: str


def unseen_table(sweep: Sweep) -> Table | None:
    """Returns the metrics on images that the search never saw: the input, the baseline, the best,
    others; means over a trial's seeds, where there are several. Gains are against the baseline."""
    unseen = sweep.content.test
    if unseen is None:
        return None
    trials = [trial for trial in sweep.searched if _unseen_figures(sweep, trial)]
    if not sweep.is_ablation:
        trials.sort(key=lambda t: (t is not sweep.baseline, t is not sweep.best, t.number))
    metrics = list(
        dict.fromkeys([*unseen.input, *(m for row in unseen.trials.values() for m in row)])
    )
    if not metrics or not (trials or unseen.input):
        return None
    own = reference(sweep)
    styles = [(name, metric_info(name)) for name in metrics]
    columns = []
    for name, style in styles:
        seeds = [_unseen_values(sweep, trial, name) for trial in trials]
        notes = [f"{len(values)} seeds" if len(values) > 1 else "" for values in seeds]
        place = trials.index(own) if own in trials else None
        columns.append(_column(style, [spread(values) for values in seeds], place, notes))
    cells = [list(row) for row in zip(*columns, strict=True)]
    rows = [Row(name=called(sweep, t), cells=row) for t, row in zip(trials, cells, strict=True)]
    if unseen.input:
        known = [Cell(text=style.text(unseen.input.get(name))) for name, style in styles]
        rows.insert(0, Row(name=label(INPUT), cells=known))
    groups = [ColumnGroup(style=style, columns=[style.label]) for _, style in styles]
    return Table(groups=groups, rows=rows)


def unseen_caption(sweep: Sweep) -> str:
    """Returns the caption of the table of unseen images."""
    count = sweep.content.test.images if sweep.content.test else 0
    own = reference(sweep)
    gains = f"the change from {own.name or 'the baseline'} in small print, " if own else ""
    return f"Means over {counted(count, 'image')}; {gains}the best figure in bold."


def seed_table(sweep: Sweep) -> SeedTable | None:
    """Returns a row per repeated trial and objective; an ablation's seeds are with its variants."""
    if sweep.is_ablation:
        return None
    seeds = list(dict.fromkeys(seed for repeats in sweep.repeats for seed in repeats.seeds))
    rows = [
        _seed_row(sweep, repeats, index, seeds)
        for repeats in sweep.repeats
        for index in range(len(sweep.objectives))
    ]
    return SeedTable(seeds=seeds, rows=rows) if rows else None


def variant_table(sweep: Sweep) -> Table | None:
    """Returns a row per variant of an ablation: mean ± std over its seeds, and its change from the
    first; ``None`` without variants."""
    if not sweep.is_ablation or not sweep.searched:
        return None
    columns = []
    for index, objective in enumerate(sweep.objectives):
        notes = [
            _seeds_text(objective.style, [value for _, value in sweep.seeded(trial, index)])
            for trial in sweep.searched
        ]
        spreads = [sweep.spread(trial, index) for trial in sweep.searched]
        columns.append(_column(objective.style, spreads, 0, notes))
    cells = [list(row) for row in zip(*columns, strict=True)]
    return Table(
        groups=[ColumnGroup(style=o.style, columns=[o.style.label]) for o in sweep.objectives],
        rows=[Row(name=t.label, cells=row) for t, row in zip(sweep.searched, cells, strict=True)],
    )


def space_table(sweep: Sweep) -> list[SpaceRow]:
    """Returns the search space, in the file's order."""
    return [
        SpaceRow(
            name=name,
            values=_searched_values(spec),
            when=_condition(spec.get("when")),
            baseline=_taken(sweep.baseline, name),
            best=_taken(sweep.best, name),
        )
        for name, spec in sweep.space.items()
    ]


def called(sweep: Sweep, trial: Trial) -> str:
    """Returns ``Best: trial 0003``."""
    if sweep.is_ablation:
        return trial.label
    roles = [("Baseline", sweep.baseline), ("Best", sweep.best)]
    head = " and ".join(name for name, known in roles if known is trial).capitalize()
    return f"{head}: {trial.title}" if head else trial.title[:1].upper() + trial.title[1:]


def _unseen_figures(sweep: Sweep, trial: Trial) -> list[dict[str, float | None]]:
    """Returns the metrics on unseen images of the trial and its repeats with other seeds."""
    known = sweep.content.test.trials if sweep.content.test else {}
    return [known[seeded.id] for seeded in sweep.with_number(trial.number) if seeded.id in known]


def _unseen_values(sweep: Sweep, trial: Trial, metric: str) -> list[float]:
    rows = _unseen_figures(sweep, trial)
    return [value for row in rows if (value := row.get(metric)) is not None]


def _column(
    style: MetricInfo, spreads: Sequence[Spread], own: int | None, notes: Sequence[str]
) -> list[Cell]:
    """Returns a cell per row, with its change from row ``own`` and with the best marked."""
    known = [row.mean * style.better for row in spreads if row.mean is not None]
    cells = []
    for place, (row, note) in enumerate(zip(spreads, notes, strict=True)):
        gain = None if own is None or own == place else change(spreads[own].mean, row.mean)
        best = row.mean is not None and len(set(known)) > 1
        cells.append(
            Cell(
                text=row.text(style),
                gain=None if gain is None else style.text(gain, signed=True),
                verdict=verdict(style, gain),
                best=best and (row.mean or 0.0) * style.better == max(known),
                spread=(note,) if note else (),
            )
        )
    return cells


def _seed_row(sweep: Sweep, repeats: Repeats, index: int, seeds: list[str]) -> SeedRow:
    objective = sweep.objectives[index]
    by_seed = dict(zip(repeats.seeds, repeats.values, strict=False))
    trial = next((trial for trial in sweep.trials if trial.id == repeats.of), None)
    name = called(sweep, trial) if trial else f"Trial {repeats.of}"
    known = [value[index] for value in repeats.values if value[index] is not None]
    return SeedRow(
        name=name if len(sweep.objectives) == 1 else f"{name}, {objective.label}",
        spread=Spread(repeats.mean[index], repeats.std[index], len(known)).text(objective.style),
        count=len(known),
        values=[
            objective.style.text(by_seed[seed][index]) if seed in by_seed else NOTHING
            for seed in seeds
        ],
    )


def _seeds_text(style: MetricInfo, values: list[float]) -> str:
    """Returns ``3 seeds: 26.65, 26.62, 26.66``, or an empty text without values."""
    if not values:
        return ""
    seeds = f"{len(values)} seed{'s' * (len(values) != 1)}"
    return f"{seeds}: {', '.join(map(style.text, values))}" if len(values) > 1 else seeds


def _searched_values(spec: dict[str, Any]) -> str:
    if isinstance(spec.get("choice"), list):
        return ", ".join(map(setting_text, spec["choice"]))
    ends = spec.get("float", spec.get("int"))
    if not isinstance(ends, list):
        return setting_text(spec)
    remarks = [
        *(["whole numbers"] if "int" in spec else []),
        *(["log"] if spec.get("log") else []),
        *([f"step {setting_text(spec['step'])}"] if spec.get("step") else []),
    ]
    return ", ".join([" … ".join(map(setting_text, ends)), *remarks])


def _condition(when: Any) -> str:
    """Returns a text such as ``feature_gan is 0.01 or 0.1``."""
    if not isinstance(when, dict):
        return ""
    return " and ".join(
        f"{name} is {' or '.join(map(setting_text, known if isinstance(known, list) else [known]))}"
        for name, known in when.items()
    )


def _taken(trial: Trial | None, name: str) -> str:
    if trial is None:
        return NOTHING
    value = trial.settings.get(name, MISSING)
    return NOTHING if value is MISSING else setting_text(value)
