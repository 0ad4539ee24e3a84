"""The page of a hyper-parameter sweep or an ablation, put together from its ``sweep.json``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from qdmr_ray.report.document import located, render, write_page
from qdmr_ray.report.sweep import charts, comparisons, figures, parameters, tables, trials
from qdmr_ray.report.sweep.data import FAILED, STATE_LABELS, Objective, Sweep, Trial
from qdmr_ray.report.sweep.folder import BEST_FILE, read_sweep
from qdmr_ray.report.sweep.parameters import Slice
from qdmr_ray.report.sweep.pictures import BASELINE, ROLE_LABELS, compared_photographs
from qdmr_ray.report.viewer import viewer_content
from qdmr_ray.storage import Location


@dataclass(frozen=True, kw_only=True)
class ObjectiveSection:
    """The charts of one objective; an SVG is empty where there is nothing to draw."""

    objective: Objective
    history: str
    curves: str
    slices: list[Slice]
    variants: str


@dataclass(frozen=True, kw_only=True)
class FrontSection:
    """The first objective against another."""

    title: str
    svg: str


@dataclass(frozen=True, kw_only=True)
class StateKey:
    """A state in the legend: its sign and its name."""

    key: str
    label: str
    path: str


def sweep_page(sweep: Location | Path | str, out: Location | Path | str | None = None) -> str:
    """Writes the report of a sweep to ``out`` (``SWEEP/report.html``); gives its path or ``s3://…``.

    ``sweep`` is a folder with ``sweep.json``, here or in a store. Pictures are shown of those
    trials whose folders hold an evaluation.

    Raises:
        QdmrError: ``sweep.json`` cannot be read, or the page cannot be written.
    """
    place = located(sweep)
    return write_page(_render(read_sweep(place)), place, out)


def _render(sweep: Sweep) -> str:
    evaluation, photographs, amplification = compared_photographs(sweep)
    compared = viewer_content(evaluation, photographs, amplification, ROLE_LABELS)
    # At first the slider is between baseline and best, not between input and best.
    compared["viewer"]["left"] = BASELINE
    return render(
        "sweep.html.j2",
        styles=["report.css", "sweep.css"],
        scripts=["report.js", "sweep.js"],
        sweep=sweep,
        headline=figures.headline(sweep),
        facts=figures.facts(sweep),
        tiles=figures.tiles(sweep),
        unseen=tables.unseen_table(sweep),
        unseen_caption=tables.unseen_caption(sweep),
        seeds=tables.seed_table(sweep),
        evaluation=evaluation,
        sections=[_objective_section(sweep, index) for index in range(len(sweep.objectives))],
        signs=_state_keys(sweep.searched, lambda trial: trial.has_value or trial.state == FAILED),
        valued=_state_keys(sweep.searched, lambda trial: trial.has_value),
        lines=_state_keys(sweep.searched, lambda trial: bool(trial.history)),
        ring=charts.BEST_RING,
        square=charts.BASELINE_RING,
        parallel=parameters.draw_parallel(sweep),
        shades=range(parameters.SHADES),
        without_value=sum(None in trial.values for trial in sweep.searched),
        importances=comparisons.draw_importances(sweep),
        variants=tables.variant_table(sweep),
        fronts=_fronts(sweep),
        front_table=trials.trial_table(sweep, sweep.front),
        space=tables.space_table(sweep),
        trials=trials.trial_table(sweep, sweep.trials),
        best_file=BEST_FILE,
        best_link=f"data:text/yaml;charset=utf-8,{quote(sweep.best_text)}",
        charts=[],
        **compared,
    )


def _objective_section(sweep: Sweep, index: int) -> ObjectiveSection:
    return ObjectiveSection(
        objective=sweep.objectives[index],
        history=charts.draw_history(sweep, index),
        curves=charts.draw_learning_curves(sweep, index),
        slices=parameters.draw_slices(sweep, index),
        variants=comparisons.draw_variants(sweep, index) if sweep.is_ablation else "",
    )


def _fronts(sweep: Sweep) -> list[FrontSection]:
    """The first objective with each of the others; none where no trial has both values."""
    first, *others = [objective.style.label for objective in sweep.objectives]
    drawn = [
        FrontSection(title=f"{first} and {name}", svg=comparisons.draw_front(sweep, 0, index))
        for index, name in enumerate(others, start=1)
    ]
    return [section for section in drawn if section.svg]


def _state_keys(trials: Sequence[Trial], is_drawn: Callable[[Trial], bool]) -> list[StateKey]:
    """The legend of the states that occur among the trials that are drawn."""
    drawn = {charts.state_class(trial.state) for trial in trials if is_drawn(trial)}
    return [
        StateKey(key=state, label=STATE_LABELS[state], path=path)
        for state, path in charts.SHAPES.items()
        if state in drawn
    ]
