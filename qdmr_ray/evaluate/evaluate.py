"""Evaluates a run on its test set, on all workers of a cluster (``pool``).

    evaluation = evaluate_run(open_location("runs/demo"))

Results are written as they come (``evaluation/results.jsonl``): an evaluation that was killed goes
on where it stopped when it is started again with the same models, data and settings. One process
at a time evaluates into a folder.
"""

import hashlib
import json
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

import ray

from qdmr_ray.config import (
    EvaluationSettings,
    Experiment,
    code_version,
    experiment_from_dict,
    experiment_of_run,
)
from qdmr_ray.data.format.reader import RecordReader
from qdmr_ray.errors import QdmrError, SettingsError
from qdmr_ray.evaluate.codebook.compute import renew_view
from qdmr_ray.evaluate.gap.pairs import find_source_lens
from qdmr_ray.evaluate.gap.summary import summarize_gap
from qdmr_ray.evaluate.journal import RESULTS_FILE, ResultsFile
from qdmr_ray.evaluate.metrics.metric import Metric
from qdmr_ray.evaluate.metrics.registry import metrics_for
from qdmr_ray.evaluate.names import COMPARISON, GROUND_TRUTH, INPUT, TEST_SET
from qdmr_ray.evaluate.pool import RETRIES, Pool, Spread, spread_over
from qdmr_ray.evaluate.results import Evaluation, FailedPhotograph, Judged, Provenance
from qdmr_ray.evaluate.split import seen_photographs, was_trained_on
from qdmr_ray.evaluate.statistics import summarize
from qdmr_ray.evaluate.worker import EvaluationTask, Restorer
from qdmr_ray.models.files import read_description
from qdmr_ray.models.layout import (
    CONFIG_FILE,
    EVALUATION_CLAIMS,
    EVALUATION_FILE,
    EVALUATION_FOLDER,
    FINAL_FOLDER,
)
from qdmr_ray.nets.registry import module_of
from qdmr_ray.parsing import apply_override
from qdmr_ray.ray_cluster import ensure_ray
from qdmr_ray.stages import STAGES
from qdmr_ray.storage import Location, open_location
from qdmr_ray.storage.claims import Claim, Claims
from qdmr_ray.storage.names import check_name, unique_names

# Settings that an evaluation may replace; all others have determined the trained models.
OWN_SETTINGS = ("evaluation.", "weights.", "data.s3_endpoint")
# Names of an evaluation's results and pictures that no model's can have.
OTHER_RESULTS = (INPUT, GROUND_TRUTH, COMPARISON, "name")
# Listings of a store that run at the same time.
_LISTERS = 16

Progress = Callable[[int, int], None]


def evaluate_run(
    run: Location,
    *,
    data: str | None = None,
    out: str | None = None,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
    codebook: bool = True,
    codebook_progress: Progress | None = None,
    say: Callable[[str], None] = print,
) -> Evaluation:
    """Restores the test set with every trained stage of a run (or with one ``final`` folder).

    It writes ``evaluation.json`` and the pictures into the run, or into ``out``. A photograph that
    fails is listed under ``failed`` with its reason, and the others are judged. A single model's
    stage is named by its folder. Ray is started or joined when it is needed. Where the run has a
    VQGAN and its own dataset was evaluated, the view of its codebook is written too, unless
    ``codebook`` is False. ``overrides`` are ``evaluation.…=value`` and ``weights.…=value``, which
    replace the run's settings; ``progress`` is called with (photographs done, in all),
    ``codebook_progress`` likewise with crops. ``say`` receives a line while it isn't known whether
    another process still evaluates into the same folder.

    Raises QdmrError where nothing is trained there, for no test set, for a damaged file, where
    another process evaluates into the folder, and where no worker has a GPU that works;
    SettingsError for a setting that is unknown, out of range or no evaluation's.
    """
    trained_with, models = _models_of(run)
    descriptions = {name: read_description(place) or {} for name, place in models.items()}
    experiment = _overridden(trained_with or experiment_from_dict({}), overrides)
    path = data or experiment.data.path
    if not path:
        raise QdmrError(f"{run.uri}: name the packed dataset with --data")
    endpoint = experiment.data.s3_endpoint
    packed = open_location(path, endpoint=endpoint)
    reader = RecordReader(path, endpoint=endpoint)
    named = [reader.index(TEST_SET)[i].name for i in range(reader.count(TEST_SET))]
    settings = experiment.evaluation
    own = data is None or packed.uri == open_location(experiment.data.path or path).uri
    validates = settings.validation_share > 0 or bool(settings.validation_names)
    seen: list[int] = []
    if validates:
        # A dataset that has moved is known by its content.
        is_own = own or was_trained_on(run, trained_with, descriptions, reader)
        seen = seen_photographs(experiment, reader, reader if is_own else None)
    names = unique_names(named, [RESULTS_FILE])
    judged = {i: name for i, name in enumerate(names) if i not in set(seen)}
    metrics = metrics_for(experiment)
    place = open_location(out, endpoint=endpoint) if out else run
    pictures = place.join(EVALUATION_FOLDER)
    test_set = reader.manifest.set(TEST_SET)
    source_lens = None
    if settings.source_lens is not None:
        source_lens = find_source_lens(settings.source_lens, run, models, reader, judged, endpoint)
    also = source_lens.digests if source_lens else {}
    provenance = _provenance(test_set.content, descriptions, settings, metrics, seen, also)
    task = EvaluationTask(
        data=packed.uri,
        endpoint=endpoint,
        models={name: location.uri for name, location in models.items()},
        out=pictures.uri,
        settings=settings,
        metrics=tuple(metrics),
        source_lens=source_lens,
    )
    modules = [m for d in descriptions.values() if (m := module_of(d["architecture"]))]
    truth, sheet = [GROUND_TRUTH] * test_set.paired, [COMPARISON] * settings.sheets
    lenses = source_lens.pictures if source_lens else ()
    wanted = {f"{kind}.png" for kind in (INPUT, *models, *truth, *sheet, *lenses)}
    with _claimed(place, say) as claim:
        results = ResultsFile(pictures.join(RESULTS_FILE), provenance.digest)
        # A row of another name has its pictures elsewhere.
        kept = {i: row.name for i, row in results.rows.items() if judged.get(i) == row.name}
        results.keep(_complete(pictures, kept, wanted))
        failed = _judge_missing(task, judged, results, modules, claim, progress)
        rows = [results.rows[index] for index in sorted(results.rows)]
        evaluation = summarize(rows, list(models), failed=failed, provenance=provenance)
        if source_lens is not None:
            gap = summarize_gap(rows, list(models))
            evaluation = evaluation.model_copy(update={"gap": gap})
        claim.check()
        evaluation.write(place.join(EVALUATION_FILE))
        if codebook and own:
            renew_view(run, place, codebook_progress)
    return evaluation


def _claimed(place: Location, say: Callable[[str], None]) -> Claim:
    """Returns the claim on the evaluation in ``place``; raises QdmrError where another process
    holds it, whose rows would stand among this one's."""

    def refuse(owner: str) -> None:
        raise QdmrError(
            f"{place.uri}: {owner} is evaluating into this folder; let it finish, or name another "
            "folder with --out"
        )

    claims = Claims(place.join(EVALUATION_CLAIMS))
    claim = claims.acquire(lambda: False, lambda whom: say(f"{place.uri}: {whom}"), refuse)
    assert claim is not None
    return claim


def _models_of(run: Location) -> tuple[Experiment | None, dict[str, Location]]:
    """Returns the run's experiment and restoring stages by name, or the one model in a folder."""
    description = read_description(run)
    if description is not None:
        if description["architecture"] == "vqgan":
            raise QdmrError(
                f"{run.uri}: is a VQGAN, which restores nothing; name a base or uda model"
            )
        folder = run.path.rstrip("/").rsplit("/", 2)
        return None, {_model_name(run, folder[-2] if run.name == FINAL_FOLDER else run.name): run}
    config = run.join(CONFIG_FILE)
    if not config.exists():
        raise QdmrError(f"{run.uri}: neither a run folder nor a trained model")
    experiment = experiment_of_run(config.read_bytes().decode(), config.uri)
    finals = {
        name: run.join(name, FINAL_FOLDER) for name in experiment.run if STAGES[name].restores
    }
    trained = {name: f for name, f in finals.items() if read_description(f) is not None}
    if not trained:
        raise QdmrError(f"{run.uri}: no restoring stage is trained yet; run qdmr train first")
    return experiment, trained


def _model_name(run: Location, name: str) -> str:
    """Returns ``name``, by which the results of the model at ``run`` are called; raises QdmrError
    where they can't be."""
    try:
        if name.casefold() in OTHER_RESULTS:
            raise SettingsError(f"{name!r} is the name of other results")
        # Of its pictures in a photograph's folder.
        check_name(f"{name}.png")
        return name
    except SettingsError as error:
        raise QdmrError(
            f"{run.uri}: the model's results would be called by this folder, and {error}: give the "
            "folder another name"
        ) from None


def _overridden(experiment: Experiment, overrides: Sequence[str]) -> Experiment:
    values = experiment.to_dict()
    for override in overrides:
        if not override.startswith(OWN_SETTINGS):
            raise SettingsError(
                f"--set {override}: an evaluation takes only settings of evaluation and weights"
            )
        apply_override(values, override)
    return experiment_from_dict(values, source="qdmr evaluate") if overrides else experiment


def _provenance(
    test_set: str,
    models: Mapping[str, Mapping[str, Any]],
    settings: EvaluationSettings,
    metrics: Sequence[Metric],
    seen: Sequence[int],
    also: Mapping[str, str],
) -> Provenance:
    """Returns what determines the values; ``also`` names by digest what only an evaluation through
    both lenses depends on."""
    found: dict[str, Any] = {
        "test_set": test_set,
        "models": {name: description["weights_sha256"] for name, description in models.items()},
        "border": settings.border,
        "luma": settings.luma,
        "metrics": [metric.info.name for metric in metrics],
        **{metric.info.reference: metric.reference for metric in metrics if metric.reference},
        "code_version": code_version(),
        "validation_images": list(seen),
        **also,
    }
    text = json.dumps(found, sort_keys=True)
    return Provenance(**found, digest=hashlib.sha256(text.encode()).hexdigest())


def _complete(pictures: Location, names: Mapping[int, str], wanted: set[str]) -> set[int]:
    """Returns the photographs whose pictures all still exist."""
    with ThreadPoolExecutor(_LISTERS) as pool:
        found = pool.map(lambda name: pictures.join(name).file_sizes().keys(), names.values())
        return {index for index, files in zip(names, found, strict=True) if wanted <= files}


def _judge_missing(
    task: EvaluationTask,
    names: Mapping[int, str],
    results: ResultsFile,
    modules: Sequence[str],
    claim: Claim,
    progress: Progress | None,
) -> list[FailedPhotograph]:
    """Adds the photographs that ``results`` lacks; returns those that fail, in the set's order.
    ``modules`` are the user's, which define networks."""
    missing = [{"index": i, "name": n} for i, n in names.items() if i not in results.rows]
    reasons: dict[int, str] = {}
    if missing:
        ensure_ray(modules)
        spread = spread_over(ray.nodes(), task.settings.workers, len(missing))
        task = replace(task, gpu=spread.gpus > 0, sharing=spread.sharing)
        # Closed when an error leaves the loop, too, whose traceback would keep the actors.
        try:
            # Closed when an error leaves the loop, too, whose traceback would keep the actors.
            with closing(_judged(task, missing, spread)) as found:
                for row in found:
                    if row["failure"]:
                        reasons[row["index"]] = row["failure"]
                    else:
                        claim.check()
                        results.add(Judged.parse(row["judged"], row["name"]))
                    if progress is not None:
                        progress(len(results.rows) + len(reasons), len(names))
        finally:
            # In a store the newest rows are not written yet, also where an error ends this.
            claim.check()
            results.flush()
    lost = (
        f"its worker was lost {RETRIES + 1} times, perhaps for want of memory; evaluate it "
        "on a machine with more, or cut it into pieces"
    )
    return [
        FailedPhotograph(name=name, reason=reasons.get(index, lost))
        for index, name in names.items()
        if index not in results.rows
    ]


def _judged(
    task: EvaluationTask, rows: Sequence[dict[str, Any]], spread: Spread
) -> Generator[dict[str, Any]]:
    return Pool(partial(Restorer, task), rows, spread).results()
