"""Pictures of a sweep's best trial beside those of its baseline, where both were evaluated."""

from functools import partial

import numpy as np

from qdmr_ray.evaluate.names import GROUND_TRUTH, INPUT
from qdmr_ray.evaluate.results import Evaluation, ImageValues, PhotographResult
from qdmr_ray.report.evaluation import last_stage, read_evaluation
from qdmr_ray.report.pictures import Photograph, embedded, lies_below, load_pictures
from qdmr_ray.report.summary import primary_metric
from qdmr_ray.report.sweep.data import Sweep, Trial
from qdmr_ray.report.sweep.summary import reference
from qdmr_ray.storage import Location

# A trial's folder and its evaluation.
Run = tuple[Location, Evaluation]

BASELINE, BEST = "baseline", "best"
ROLE_LABELS = {BASELINE: "Baseline", BEST: "Best"}


def compared_photographs(sweep: Sweep) -> tuple[Evaluation | None, list[Photograph], int]:
    """Returns one evaluation in which baseline and best are stages (``None`` where neither trial
    was evaluated), the photographs that fit on the page, and the amplification of their difference
    maps. Each trial is shown by its last stage."""
    own = reference(sweep)
    runs = {BASELINE: None if own is sweep.best else _evaluated(sweep, own)}
    runs[BEST] = _evaluated(sweep, sweep.best)
    known = {role: run for role, run in runs.items() if run is not None}
    if not known:
        return None, [], 1
    merged = _merged(known)
    load = partial(_pictures, known, sweep.problems)
    return merged, *embedded(merged, primary_metric(merged), load)


def _evaluated(sweep: Sweep, trial: Trial | None) -> Run | None:
    """Returns the trial's folder and its evaluation; ``None`` without one."""
    folder = sweep.place.join(trial.run) if trial else sweep.place
    if trial is None or not lies_below(folder, sweep.place, trial.run):
        return None
    evaluation = read_evaluation(folder, list(trial.stages), sweep.problems)
    return (folder, evaluation) if evaluation and evaluation.stages else None


def _kinds(role: str, evaluation: Evaluation) -> dict[str, str]:
    """Returns the names of a trial's pictures by those on the page."""
    return {INPUT: INPUT, role: last_stage(evaluation) or INPUT, GROUND_TRUTH: GROUND_TRUTH}


def _merged(runs: dict[str, Run]) -> Evaluation:
    means: ImageValues = {}
    images: dict[str, ImageValues] = {}
    for role, (_, evaluation) in runs.items():
        kinds, known = _kinds(role, evaluation), evaluation.means
        means |= {key: known[kind] for key, kind in kinds.items() if kind in known}
        for image in evaluation.per_image:
            row = images.setdefault(image.name, {})
            row |= {key: image.values[kind] for key, kind in kinds.items() if kind in image.values}
    return Evaluation(
        images=len(images),
        input=means.pop(INPUT),
        stages=means,
        per_image=tuple(PhotographResult.of(n, row) for n, row in images.items()),
    )


def _pictures(runs: dict[str, Run], problems: list[str], name: str) -> dict[str, np.ndarray]:
    """Returns input, baseline, best and ground truth of one photograph, as far as they exist."""
    pictures: dict[str, np.ndarray] = {}
    for role, (folder, evaluation) in runs.items():
        if name in {image.name for image in evaluation.per_image}:
            loaded = load_pictures(folder, evaluation, problems, name)
            kinds = _kinds(role, evaluation).items()
            pictures |= {key: loaded[kind] for key, kind in kinds if kind in loaded}
    if len({picture.shape for picture in pictures.values()}) > 1:
        problems.append(f"{name}: the pictures of baseline and best differ in size: not shown")
        return {}
    order = [kind for kind in (INPUT, *runs, GROUND_TRUTH) if kind in pictures]
    # With only an input or a ground truth there is nothing to compare.
    return {kind: pictures[kind] for kind in order} if set(runs) & set(pictures) else {}
