"""Evaluations as they lie in the folders of runs and sweeps, with the values of single images.

    evaluations = [*read_evaluations(open_location("runs/a")), *read_evaluations(…)]

``compare`` makes a table of them.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from qdmr_ray.errors import QdmrError, SettingsError
from qdmr_ray.evaluate.results import Evaluation
from qdmr_ray.evaluate.sweep_file import FINISHED, SWEEP_FILE, SweepFile
from qdmr_ray.models.layout import EVALUATION_FILE
from qdmr_ray.storage import Location
from qdmr_ray.storage.names import check_name


@dataclass(frozen=True, kw_only=True)
class StoredEvaluation:
    """The evaluation in the file ``source``; ``images[image][stage][metric]`` are its values,
    without those that are null. Evaluations of one ``group``, such as the seeds of a sweep's
    variant, make one row; without it an evaluation stands for itself. ``missing`` names the trials
    of a sweep of variants that have none."""

    name: str
    source: str
    evaluation: Evaluation
    images: dict[str, dict[str, dict[str, float]]]
    group: str = ""
    missing: tuple[str, ...] = ()


def read_evaluations(place: Location) -> list[StoredEvaluation]:
    """Reads the evaluations of a sweep's finished trials, a group for each variant or setting, or
    else the one that ``read_evaluation`` finds; raises QdmrError where there is none."""
    file = place.join(SWEEP_FILE)
    if place.name.endswith(".json") or not file.exists():
        return [read_evaluation(place)]
    content = SweepFile.read(file)
    evaluations, missing = list[StoredEvaluation](), list[str]()
    for trial in content.trials:
        try:
            check_name(trial.id)
        except SettingsError as error:
            raise QdmrError(f"{file.uri}: a trial's id: {error}") from None
        run = place.join(trial.run)
        name = trial.name or f"{place.name}/{trial.number:04}"
        if trial.state == FINISHED and run.join(EVALUATION_FILE).exists():
            group = f"{place.uri}/{trial.number}"
            evaluations.append(replace(read_evaluation(run), name=name, group=group))
        elif not content.space:
            # A search evaluates its best trials alone.
            missing.append(f"{name} (seed {trial.seed}, {trial.state})")
    if not evaluations:
        raise QdmrError(f"{place.uri}: no trial of this sweep is evaluated; run qdmr sweep again")
    return [replace(evaluation, missing=tuple(missing)) for evaluation in evaluations]


def read_evaluation(place: Location) -> StoredEvaluation:
    """Reads the evaluation of a run folder, of a folder given as ``--out``, or in the file itself;
    raises QdmrError where there is none, or it holds no values of single images."""
    file = place if place.name.endswith(".json") else place.join(EVALUATION_FILE)
    if not file.exists():
        raise QdmrError(f"{file.uri}: there is no evaluation; run qdmr evaluate first")
    evaluation = Evaluation.read(file)
    images = {
        row.name: {
            name: {m: v for m, v in row.values.get(name, {}).items() if v is not None}
            for name in evaluation.means
        }
        for row in evaluation.per_image
    }
    if len(images) < len(evaluation.per_image):
        raise QdmrError(f"{file.uri}: two images have one name, so they can't be paired")
    folder = file.path.rsplit("/", 2)
    return StoredEvaluation(
        name=folder[-2] if len(folder) > 1 else file.uri,
        source=file.uri,
        evaluation=evaluation,
        images=images,
    )


def named_apart(evaluations: Sequence[StoredEvaluation]) -> list[StoredEvaluation]:
    """Renames evaluations whose folders have one name to their whole path; raises SettingsError
    where the same file is named twice."""
    for source, count in Counter(evaluation.source for evaluation in evaluations).items():
        if count > 1:
            raise SettingsError(f"{source} is named twice: name each evaluation once")
    rows = {(evaluation.name, evaluation.group or evaluation.source) for evaluation in evaluations}
    names = Counter(name for name, _ in rows)

    def apart(evaluation: StoredEvaluation) -> str:
        if names[evaluation.name] == 1:
            return evaluation.name
        return evaluation.group or evaluation.source.removesuffix(f"/{EVALUATION_FILE}")

    return [replace(evaluation, name=apart(evaluation)) for evaluation in evaluations]


def with_both_lenses(evaluation: StoredEvaluation, metrics: Sequence[str]) -> StoredEvaluation:
    """Adds those of the ``metrics`` that only an evaluation of both lenses has."""
    gap = evaluation.evaluation.gap
    if gap is None:
        return evaluation
    images = {image: dict(by_name) for image, by_name in evaluation.images.items()}
    for row in gap.per_image:
        for name, values in row.metrics.items():
            wanted = {m: v for m, v in values.items() if m in metrics and v is not None}
            if name in images.get(row.name, {}):
                images[row.name][name] = {**images[row.name][name], **wanted}
    return replace(evaluation, images=images)
