"""The tables of a sweep's report: metrics on unseen images, seeds, variants, search space."""

from collections.abc import Sequence
from typing import Any

from qdmr_ray.evaluate.metrics.metric import MetricInfo
from qdmr_ray.evaluate.metrics.registry import metric_info
from qdmr_ray.evaluate.names import INPUT, label
from qdmr_ray.evaluate.sweep_file import Repeats
from qdmr_ray.report.summary import Cell, Table, column_of, table_of
from qdmr_ray.report.sweep.data import Spread, Sweep, Trial, setting_text, spread
from qdmr_ray.report.sweep.summary import counted, reference

NOTHING = "–"


def unseen_table(sweep: Sweep) -> Table | None:
    """Returns the metrics on images that the search never saw: the input, the baseline, the best,
    others; means over a trial's seeds, where there are several. Gains are against the baseline."""
    unseen = sweep.content.test
    if unseen is None:
        return None
    judged = {trial.number for trial in sweep.trials if trial.id in unseen.trials}
    trials = [trial for trial in sweep.searched if trial.number in judged]
    if not sweep.is_ablation:
        trials.sort(key=lambda t: (t is not sweep.baseline, t is not sweep.best, t.number))
    rows = [unseen.input, *unseen.trials.values()]
    metrics = {name: metric_info(name) for row in rows for name in row}
    if not metrics or not (trials or unseen.input):
        return None
    own = reference(sweep)
    place = trials.index(own) if own in trials else None
    columns = []
    for name, style in metrics.items():
        known = [_unseen_values(sweep, trial, name) for trial in trials]
        notes = [f"{len(values)} seeds" if len(values) > 1 else "" for values in known]
        columns.append(_column(style, [spread(values) for values in known], place, notes))
    table = table_of([*metrics.values()], [called(sweep, trial) for trial in trials], columns)
    if unseen.input:
        cells = [Cell(text=style.text(unseen.input.get(n))) for n, style in metrics.items()]
        table.rows.insert(0, (label(INPUT), cells))
    return table


def unseen_caption(sweep: Sweep) -> str:
    """Returns the caption of the table of unseen images."""
    count = sweep.content.test.images if sweep.content.test else 0
    own = reference(sweep)
    gains = f"the change from {own.name or 'the baseline'} in small print, " if own else ""
    return f"Means over {counted(count, 'image')}; {gains}the best value in bold."


def seed_table(sweep: Sweep) -> dict[str, Any] | None:
    """Returns the ``seeds``, and of each repeated trial and objective a row with a text per seed;
    an ablation's seeds are with its variants."""
    if sweep.is_ablation or not sweep.repeats:
        return None
    seeds = list(dict.fromkeys(seed for repeats in sweep.repeats for seed in repeats.seeds))
    rows = [
        _seed_row(sweep, repeats, index, seeds)
        for repeats in sweep.repeats
        for index in range(len(sweep.objectives))
    ]
    return {"seeds": seeds, "rows": rows}


def variant_table(sweep: Sweep) -> Table | None:
    """Returns a row per variant of an ablation: mean ± std over its seeds, and its change from the
    first; ``None`` without variants."""
    if not sweep.is_ablation or not sweep.searched:
        return None
    columns = []
    for index, objective in enumerate(sweep.objectives):
        notes = [
            _seeds_text(objective, [value for _, value in sweep.seeded(trial, index)])
            for trial in sweep.searched
        ]
        spreads = [sweep.spread(trial, index) for trial in sweep.searched]
        columns.append(_column(objective, spreads, 0, notes))
    return table_of(sweep.objectives, [trial.label for trial in sweep.searched], columns)


def space_table(sweep: Sweep) -> list[dict[str, str]]:
    """Returns each parameter's searched values, its condition, its baseline and its best value, in
    the file's order."""
    return [
        {
            "name": name,
            "searched": _searched_values(spec),
            "when": _condition(spec.get("when")),
            "baseline": sweep.baseline.taken(name, NOTHING) if sweep.baseline else NOTHING,
            "best": sweep.best.taken(name, NOTHING) if sweep.best else NOTHING,
        }
        for name, spec in sweep.space.items()
    ]


def called(sweep: Sweep, trial: Trial) -> str:
    """Returns ``Best: trial 0003``."""
    if sweep.is_ablation:
        return trial.label
    roles = [("Baseline", sweep.baseline), ("Best", sweep.best)]
    head = " and ".join(name for name, known in roles if known is trial).capitalize()
    return f"{head}: {trial.title}" if head else trial.title[:1].upper() + trial.title[1:]


def _unseen_values(sweep: Sweep, trial: Trial, metric: str) -> list[float]:
    """Returns a metric on unseen images of the trial and its repeats with other seeds."""
    known = sweep.content.test.trials if sweep.content.test else {}
    repeats = [known.get(seeded.id, {}) for seeded in sweep.trials if seeded.number == trial.number]
    return [value for row in repeats if (value := row.get(metric)) is not None]


def _column(
    style: MetricInfo, spreads: Sequence[Spread], own: int | None, notes: Sequence[str]
) -> list[Cell]:
    means, texts = [row.mean for row in spreads], [row.text(style) for row in spreads]
    small = [(note,) if note else () for note in notes]
    return column_of(style, means, texts=texts, spreads=small, own=own)


def _seed_row(sweep: Sweep, repeats: Repeats, index: int, seeds: list[int]) -> dict[str, Any]:
    objective = sweep.objectives[index]
    by_seed = {s: row[index] for s, row in zip(repeats.seeds, repeats.values, strict=False) if row}
    trial = next((trial for trial in sweep.trials if trial.id == repeats.of), None)
    name = called(sweep, trial) if trial else f"Trial {repeats.of}"
    count = sum(row[index] is not None for row in repeats.values if row)
    spread = Spread(repeats.mean[index], repeats.std[index], count)
    return {
        "name": name if len(sweep.objectives) == 1 else f"{name}, {objective.full_label}",
        "spread": spread.text(objective),
        "count": count,
        "texts": [objective.text(by_seed[seed]) if seed in by_seed else NOTHING for seed in seeds],
    }


def _seeds_text(style: MetricInfo, values: list[float]) -> str:
    """Returns ``3 seeds: 26.65, 26.62, 26.66``, or an empty text without values."""
    seeds = counted(len(values), "seed") if values else ""
    return f"{seeds}: {', '.join(map(style.text, values))}" if len(values) > 1 else seeds


def _searched_values(spec: dict[str, Any]) -> str:
    if isinstance(spec.get("choice"), list):
        return ", ".join(map(setting_text, spec["choice"]))
    ends = spec.get("float", spec.get("int"))
    if not isinstance(ends, list):
        return setting_text(spec)
    remarks = [
        " … ".join(map(setting_text, ends)),
        "whole numbers" if "int" in spec else "",
        "log" if spec.get("log") else "",
        f"step {setting_text(spec['step'])}" if spec.get("step") else "",
    ]
    return ", ".join(filter(None, remarks))


def _condition(when: Any) -> str:
    """Returns a text such as ``feature_gan is 0.01 or 0.1``."""
    if not isinstance(when, dict):
        return ""
    return " and ".join(
        f"{name} is {' or '.join(map(setting_text, known if isinstance(known, list) else [known]))}"
        for name, known in when.items()
    )
