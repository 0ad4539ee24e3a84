"""Pictures of a sweep's best trial beside those of its baseline, where both were evaluated."""

from __future__ import annotations

from functools import partial

import numpy as np

from qdmr_ray.evaluate.names import GROUND_TRUTH, INPUT
from qdmr_ray.evaluate.results import Evaluation, ImageValues, PhotographResult
from qdmr_ray.report.evaluation import last_stage, read_evaluation
from qdmr_ray.report.figures import primary_metric
from qdmr_ray.report.pictures import Photograph, embedded, lies_below, load_pictures
from qdmr_ray.report.run_folder import RunData
from qdmr_ray.report.sweep.data import Sweep, Trial
from qdmr_ray.report.sweep.figures import reference

BASELINE, BEST = "baseline", "best"
ROLE_LABELS = {BASELINE: "Baseline", BEST: "Best"}


def compared_photographs(sweep: Sweep) -> tuple[Evaluation | None, list[Photograph], int]:
    """Returns one evaluation in which baseline and best are stages (``None`` where neither trial
    was evaluated), the photographs that fit on the page, and the amplification of their difference
    maps. Each trial is shown by its last stage."""
    own = reference(sweep)
    roles = {BASELINE: own, BEST: sweep.best}
    if own is sweep.best:
        del roles[BASELINE]
    found = [(role, _evaluated(sweep, trial)) for role, trial in roles.items() if trial]
    runs = {role: run for role, run in found if run is not None}
    if not runs:
        return None, [], 1
    merged = _merged(runs)
    load = partial(_pictures, runs, sweep.problems)
    return merged, *embedded(merged, primary_metric(merged), load)


def _evaluated(sweep: Sweep, trial: Trial) -> RunData | None:
    """Returns the trial's folder with its evaluation; ``None`` without one."""
    folder = sweep.place.join(trial.run)
    if not trial.run or not lies_below(folder, sweep.place, trial.run):
        return None
    evaluation = read_evaluation(folder, list(trial.stages), sweep.problems)
    if evaluation is None or not evaluation.stages:
        return None
    return RunData(
        place=folder, config={}, config_text="", evaluation=evaluation, problems=sweep.problems
    )


def _shown(role: str, run: RunData) -> tuple[Evaluation, dict[str, str]]:
    """Returns the trial's evaluation, and the names of its pictures by those on the page."""
    assert run.evaluation is not None
    stage = last_stage(run.evaluation) or INPUT
    return run.evaluation, {INPUT: INPUT, role: stage, GROUND_TRUTH: GROUND_TRUTH}


def _merged(runs: dict[str, RunData]) -> Evaluation:
    means: ImageValues = {}
    images: dict[str, ImageValues] = {}
    for role, run in runs.items():
        evaluation, kinds = _shown(role, run)
        means |= {
            key: evaluation.means[kind] for key, kind in kinds.items() if kind != GROUND_TRUTH
        }
        for image in evaluation.per_image:
            row = images.setdefault(image.name, {})
            row |= {key: image.values[kind] for key, kind in kinds.items() if kind in image.values}
    return Evaluation(
        images=len(images),
        input=means.pop(INPUT),
        stages=means,
        per_image=tuple(PhotographResult.of(n, row) for n, row in images.items()),
    )


def _pictures(runs: dict[str, RunData], problems: list[str], name: str) -> dict[str, np.ndarray]:
    """Returns input, baseline, best and ground truth of one photograph, as far as they exist."""
    pictures: dict[str, np.ndarray] = {}
    for role, run in runs.items():
        evaluation, kinds = _shown(role, run)
        if name in {image.name for image in evaluation.per_image}:
            loaded = load_pictures(run, name)
            pictures |= {key: loaded[kind] for key, kind in kinds.items() if kind in loaded}
    if len({picture.shape for picture in pictures.values()}) > 1:
        problems.append(f"{name}: the pictures of baseline and best differ in size: not shown")
        return {}
    order = [kind for kind in (INPUT, *runs, GROUND_TRUTH) if kind in pictures]
    # With only an input or a ground truth there is nothing to compare.
    return {kind: pictures[kind] for kind in order} if set(runs) & set(pictures) else {}
