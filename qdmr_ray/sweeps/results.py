"""The results of a sweep: the content of ``sweep.json``, the best settings as an experiment,
TensorBoard's hparams, and the metrics of the best trials on photographs unseen in the search."""

import json
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import mean, stdev

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from qdmr_ray.config import code_version, dump_experiment, experiment_of_run
from qdmr_ray.errors import QdmrError
from qdmr_ray.evaluate import sweep_file
from qdmr_ray.evaluate.evaluate import evaluate_run
from qdmr_ray.evaluate.results import Evaluation
from qdmr_ray.evaluate.sweep_file import Repeats, SweepFile, TrialRecord, UnseenMetrics
from qdmr_ray.models.files import read_description
from qdmr_ray.models.layout import CONFIG_FILE, FINAL_FOLDER, TENSORBOARD_FOLDER
from qdmr_ray.stages import STAGES
from qdmr_ray.storage import Location
from qdmr_ray.sweeps.trials import Trials

HPARAMS_FILE = "events.out.tfevents.hparams"
# Evaluations that run at the same time: each loads its trial's networks while another one judges.
_EVALUATIONS = 2

Say = Callable[[str], None]


def summary(trials: Trials, state: str, error: str | None = None) -> SweepFile:
    """Returns the state of all trials, without importances and metrics on unseen photographs."""
    settings, stopping = trials.plan.settings, trials.plan.settings.stopping
    records = [trials.records[name] for name in sorted(trials.records)]
    front = trials.front()
    judged_by = zip(settings.metrics, settings.modes, strict=True)
    return SweepFile(
        name=settings.name,
        state=state,
        error=error,
        updated=time.time(),
        planned=trials.planned,
        code_version=code_version(),
        metrics=[sweep_file.Objective(name=name, mode=mode) for name, mode in judged_by],
        sampler=settings.sampler if settings.space else "variants",
        stopping=sweep_file.Stopping.model_validate(asdict(stopping)) if stopping else None,
        space=settings.space,
        trials=records,
        best=front[0] if front else None,
        front=front,
        baseline=trials.baseline,
        repeats=_repeats(records),
        stages_trained=_stages_trained(records),
        seconds=round(trials.seconds(), 1),
    )


def _stages_trained(records: list[TrialRecord]) -> dict[str, int]:
    """Returns how many stages the sweep has trained, by name; a shared stage counts once."""
    trained = {(stage, record.stages[stage]) for record in records for stage in record.trained}
    names = dict.fromkeys(stage for record in records for stage in record.stages)
    return {name: sum(stage == name for stage, _ in trained) for name in names}


def _repeats(records: list[TrialRecord]) -> list[Repeats]:
    rows = []
    for first in (record for record in records if not record.is_repeat):
        again = [r for r in records if r.number == first.number and r.state == sweep_file.FINISHED]
        if len(again) < 2:
            continue
        values = [record.values for record in again]
        columns = zip(*(row or [] for row in values), strict=True)
        known = [[value for value in column if value is not None] for column in columns]
        means = [mean(column) if column else None for column in known]
        stds = [stdev(column) if len(column) > 1 else None for column in known]
        seeds, names = [record.seed for record in again], [record.id for record in again]
        rows.append(
            Repeats(of=first.id, seeds=seeds, trials=names, values=values, mean=means, std=stds)
        )
    return rows


def best_experiment(trials: Trials, record: TrialRecord) -> str:
    """Returns the best trial's settings as an experiment that can be trained as it is."""
    sweep, plan = trials.plan.settings.name, trials.plan
    experiment = plan.experiment(record.settings, name=f"{sweep}-best", seed=record.seed)
    values = zip(plan.settings.metrics, record.values or [], strict=False)
    found = ", ".join(f"{metric} {value}" for metric, value in values)
    return f"# Trial {record.id} of the sweep {sweep}: {found}\n{dump_experiment(experiment)}"


def unseen_metrics(trials: Trials, results: SweepFile, say: Say) -> UnseenMetrics | None:
    """Evaluates the front, the baseline and the repeats, or else every variant, on test photographs
    that the search never saw, a few trials side by side; returns None where none of their stages
    restores photographs."""
    others = [name for row in results.repeats for name in row.trials]
    if trials.plan.settings.variants:
        others = list(trials.records)
    wanted: list[tuple[str, str, Location]] = []
    for name in dict.fromkeys([*results.front, trials.baseline, *others]):
        record = trials.records.get(name or "")
        if record is None or record.state != sweep_file.FINISHED:
            continue
        run = trials.sweep.join(record.run)
        if (stage := _restoring_stage(run)) is not None:
            wanted.append((record.id, stage, run))
    if not wanted:
        return None
    say(f"final metrics of {len(wanted)} trials")
    found = _evaluated([run for _, _, run in wanted], say)
    means = {name: e.stages[stage] for (name, stage, _), e in zip(wanted, found, strict=True)}
    return UnseenMetrics(images=found[0].images, input=found[0].input, trials=means)


def _evaluated(runs: Sequence[Location], say: Say) -> list[Evaluation]:
    """Evaluates runs, in parallel; an error, or Ctrl-C, ends those under way after their next
    photograph."""
    stopping = threading.Event()

    def go_on(*_: int) -> None:
        if stopping.is_set():
            raise QdmrError("another trial's evaluation has ended this one")

    with ThreadPoolExecutor(_EVALUATIONS, thread_name_prefix="evaluation") as pool:
        evaluate = partial(evaluate_run, codebook=False, progress=go_on, say=say)
        tasks = [pool.submit(evaluate, run) for run in runs]
        try:
            return [task.result() for task in tasks]
        except BaseException:
            stopping.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _restoring_stage(run: Location) -> str | None:
    """Returns a run's last trained stage that restores photographs, None without it or the
    folder."""
    config = run.join(CONFIG_FILE)
    if not config.exists():
        return None
    experiment = experiment_of_run(config.read_bytes().decode(), config.uri)
    stages = [stage for stage in experiment.run if STAGES[stage].restores]
    done = [s for s in stages if read_description(run.join(s, FINAL_FOLDER)) is not None]
    return done[-1] if done else None


def write_hparams(sweep: Location, record: TrialRecord) -> None:
    """Writes a trial's row of TensorBoard's HPARAMS page, if it has metrics."""
    metrics = {f"hparam/{name}": v for name, v in record.metrics.items() if v is not None}
    if not metrics:
        return
    settings = {
        name: value if isinstance(value, bool | int | float | str) else json.dumps(value)
        for name, value in {**record.settings, "seed": record.seed}.items()
    }
    with tempfile.TemporaryDirectory(prefix="qdmr-") as scratch:
        # SummaryWriter.add_hparams would write a second file.
        with SummaryWriter(scratch) as writer:
            for part in hparams(settings, metrics):
                writer.file_writer.add_summary(part)
            for name, value in metrics.items():
                writer.add_scalar(name, value)
        (file,) = Path(scratch).iterdir()
        # The name stays the same, so that a sweep that is started again replaces the file.
        place = sweep.join(TENSORBOARD_FOLDER, record.id, HPARAMS_FILE)
        place.write_bytes_atomic(file.read_bytes())
