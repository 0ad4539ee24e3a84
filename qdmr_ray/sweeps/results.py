"""What a sweep leaves: ``sweep.json``, the best settings as an experiment, Optuna's study,
TensorBoard's hparams, and the figures of the best trial on photographs that the search never saw.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from qdmr_ray.config import code_version, dump_experiment, experiment_of_run
from qdmr_ray.evaluate.evaluate import evaluate_run
from qdmr_ray.models.files import read_description
from qdmr_ray.models.layout import CONFIG_FILE, FINAL_FOLDER, TENSORBOARD_FOLDER
from qdmr_ray.stages import STAGES
from qdmr_ray.storage import Location
from qdmr_ray.sweeps.optuna_study import STUDY_FILE, importances
from qdmr_ray.sweeps.record import FINISHED, Record
from qdmr_ray.sweeps.trials import Book

SWEEP_FILE = "sweep.json"
BEST_FILE = "best.yaml"


def write_results(book: Book, say: Callable[[str], None]) -> dict[str, Any]:
    """Evaluates what deserves it and writes the sweep's files; gives what ``sweep.json`` holds.

    Raises:
        QdmrError: a file can't be written, or an evaluation fails.
    """
    front = book.front()
    results = summary(book, front)
    # What was found is kept, whatever the evaluations meet.
    _write_json(book.sweep.join(SWEEP_FILE), results)
    book.sweep.join(STUDY_FILE).write_bytes_atomic(book.study.file.read_bytes())
    if front:
        book.sweep.join(BEST_FILE).write_bytes_atomic(_best_experiment(book, front[0]).encode())
        results["test"] = _final_figures(book, results, say)
        results["seconds"] = round(book.seconds(), 1)
        _write_json(book.sweep.join(SWEEP_FILE), results)
    _write_hparams(book)
    return results


def summary(book: Book, front: list[str]) -> dict[str, Any]:
    """What the books say, as plain values."""
    settings = book.plan.settings
    records = [book.records[name] for name in sorted(book.records)]
    stopping = settings.stopping
    return {
        "name": settings.name,
        "code_version": code_version(),
        "metrics": [
            {"name": name, "mode": mode}
            for name, mode in zip(settings.metrics, settings.modes, strict=True)
        ],
        "sampler": settings.sampler if settings.space else "variants",
        "stopping": None
        if stopping is None
        else {"rule": stopping.rule, "grace": stopping.grace, "reduction": stopping.reduction},
        "space": book.plan.space.to_dict() if settings.space else {},
        "trials": [record.to_dict() for record in records],
        "best": front[0] if front else None,
        "front": front,
        "baseline": book.baseline,
        "repeats": _repeats(book, records),
        "test": None,
        "importances": importances(book.study.study) if settings.space else {},
        "stages_trained": _stages_trained(records),
        "seconds": round(book.seconds(), 1),
    }


def _stages_trained(records: list[Record]) -> dict[str, int]:
    """Stages that the sweep has trained, by name: each counts once, however many used it."""
    trained = {(stage, record.stages[stage]) for record in records for stage in record.trained}
    names = dict.fromkeys(stage for record in records for stage in record.stages)
    return {name: sum(stage == name for stage, _ in trained) for name in names}


def _repeats(book: Book, records: list[Record]) -> list[dict[str, Any]]:
    rows = []
    for first in (record for record in records if not record.is_repeat):
        again = [r for r in records if r.number == first.number and r.state == FINISHED]
        if len(again) < 2:
            continue
        columns = list(zip(*(record.values or [] for record in again), strict=True))
        known = [[value for value in column if value is not None] for column in columns]
        rows.append(
            {
                "of": first.id,
                "seeds": [record.seed for record in again],
                "trials": [record.id for record in again],
                "values": [record.values for record in again],
                "mean": [mean(column) if column else None for column in known],
                "std": [stdev(column) if len(column) > 1 else None for column in known],
            }
        )
    return rows


def _best_experiment(book: Book, name: str) -> str:
    """The best trial's settings as an experiment that can be trained as it is."""
    record = book.records[name]
    experiment = book.plan.experiment(
        record.settings, name=f"{book.plan.settings.name}-best", seed=record.seed
    )
    found = f"# Trial {name} of the sweep {book.plan.settings.name}: " + ", ".join(
        f"{metric} {value}"
        for metric, value in zip(book.plan.settings.metrics, record.values or [], strict=False)
    )
    return f"{found}\n{dump_experiment(experiment)}"


def _final_figures(
    book: Book, results: Mapping[str, Any], say: Callable[[str], None]
) -> dict[str, Any] | None:
    """Figures of best, baseline and repeats on the test photographs that the search never saw;
    None where no stage of theirs restores."""
    wanted = [
        *results["front"],
        book.baseline,
        *(t for r in results["repeats"] for t in r["trials"]),
    ]
    trials: dict[str, Any] = {}
    found: dict[str, Any] | None = None
    for name in dict.fromkeys(wanted):
        record = book.records.get(name or "")
        if record is None or record.state != FINISHED:
            continue
        run = book.sweep.join(*record.place.split("/"))
        stage = _restoring_stage(run)
        if stage is None:
            continue
        say(f"final figures of trial {record.id}")
        evaluation = evaluate_run(run, codebook=False)
        trials[record.id] = evaluation.stages[stage]
        found = {"images": evaluation.images, "input": evaluation.input, "trials": trials}
    return found


def _restoring_stage(run: Location) -> str | None:
    """The last stage of a run that restores photographs; None where its folder is gone, too."""
    config = run.join(CONFIG_FILE)
    if not config.exists():
        return None
    experiment = experiment_of_run(config.read_bytes().decode(), config.uri)
    stages = [stage for stage in experiment.run if STAGES[stage].restores]
    done = [s for s in stages if read_description(run.join(s, FINAL_FOLDER)) is not None]
    return done[-1] if done else None


def _write_hparams(book: Book) -> None:
    """A row of TensorBoard's HPARAMS page for each trial with figures."""
    for record in book.records.values():
        figures = {name: value for name, value in record.metrics.items() if value is not None}
        if not figures:
            continue
        with tempfile.TemporaryDirectory(prefix="qdmr-") as scratch:
            settings = {
                name: value if isinstance(value, bool | int | float | str) else json.dumps(value)
                for name, value in {**record.settings, "seed": record.seed}.items()
            }
            with SummaryWriter(scratch) as writer:
                writer.add_hparams(
                    settings, {f"hparam/{name}": v for name, v in figures.items()}, run_name="."
                )
            for file in Path(scratch).glob("events*"):
                # One file for each trial, replaced when the sweep is started again.
                place = book.sweep.join(
                    TENSORBOARD_FOLDER, record.id, "events.out.tfevents.hparams"
                )
                place.write_bytes_atomic(file.read_bytes())


def _write_json(place: Location, values: Any) -> None:
    place.write_bytes_atomic(json.dumps(values, indent=1).encode())
