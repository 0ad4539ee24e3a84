"""Judging a run on its test set: every photograph restored and measured, spread by Ray Data.

evaluation = evaluate_run(open_location("runs/demo"))
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray.data
import torch

from qdmr_ray.artifacts import LoadedModel, load_model, read_description
from qdmr_ray.config import EvaluationSettings, Experiment, experiment_of_run
from qdmr_ray.data.images import encode_png
from qdmr_ray.data.records import RecordReader
from qdmr_ray.errors import QdmrError
from qdmr_ray.evaluate.metrics import json_figure, psnr, ssim
from qdmr_ray.evaluate.restore import restore
from qdmr_ray.nets.lpips import LPIPS, build_lpips
from qdmr_ray.storage import Location, open_location
from qdmr_ray.train.cluster import ensure_ray

EVALUATION_FILE = "evaluation.json"
PICTURES_FOLDER = "evaluation"
TEST_SET = "test"
INPUT = "input"
GROUND_TRUTH = "ground_truth"
# Ray keeps a CPU for this part of a restoring actor; it mostly waits for its own threads.
ACTOR_CPUS = 0.5

Figures = dict[str, float]


@dataclass(frozen=True)
class EvaluationTask:
    """What every restoring actor is given: the test set, the models by name, and where to write."""

    data: str
    endpoint: str | None
    models: dict[str, str]
    out: str
    settings: EvaluationSettings
    alexnet: str | None
    gpu: bool


class Restorer:
    """Restores and measures test photographs; its networks are loaded once."""

    def __init__(self, task: EvaluationTask) -> None:
        self.task = task
        self.reader = RecordReader(task.data, endpoint=task.endpoint)
        device = "cuda" if task.gpu else "cpu"
        self.models = {
            name: _on(load_model(open_location(uri, endpoint=task.endpoint)), device)
            for name, uri in task.models.items()
        }
        self.out = open_location(task.out, endpoint=task.endpoint)
        self.lpips: LPIPS | None = None
        if task.settings.lpips:
            self.lpips = build_lpips("alex", Path(task.alexnet) if task.alexnet else None)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        record = self.reader.read(TEST_SET, int(row["index"]))
        images = {INPUT: record.image}
        images |= {name: restore(record.image, model) for name, model in self.models.items()}
        figures: dict[str, Figures] = {}
        if record.ground_truth is not None:
            figures = {n: self._measure(i, record.ground_truth) for n, i in images.items()}
            images[GROUND_TRUTH] = record.ground_truth
        for name, image in images.items():
            self.out.join(record.name, f"{name}.png").write_bytes_atomic(encode_png(image))
        return {"index": row["index"], "name": record.name, "figures": json.dumps(figures)}

    def _measure(self, image: np.ndarray, truth: np.ndarray) -> Figures:
        border, luma = self.task.settings.border, self.task.settings.luma
        figures = {
            "psnr": psnr(image, truth, border=border, luma=luma),
            "ssim": ssim(image, truth, border=border, luma=luma),
        }
        if self.lpips is not None:
            pair = (_tensor(image), _tensor(truth))
            with torch.inference_mode():
                figures["lpips"] = self.lpips(*pair).item()
        return figures


def _on(model: LoadedModel, device: str) -> LoadedModel:
    model.network.to(device)
    return model


def _tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).unsqueeze(0).float() / 255


def evaluate_run(
    run: Location,
    *,
    data: str | None = None,
    out: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Restores the test set with every trained stage of a run (or with one ``final`` folder).

    Writes ``evaluation.json`` and the pictures into the run, or into ``out``; gives what the file
    holds. A single model's stage is named by its folder. Ray is started or joined when it is
    needed.

    Raises:
        QdmrError: nothing trained there, no test set, or a damaged file.
    """
    experiment, models = _models_of(run)
    settings = experiment.evaluation if experiment else EvaluationSettings()
    path = data or (experiment.data.path if experiment else None)
    if not path:
        raise QdmrError(f"{run.uri}: name the packed dataset with --data")
    endpoint = experiment.data.s3_endpoint if experiment else None
    reader = RecordReader(path, endpoint=endpoint)
    count = reader.count(TEST_SET)
    place = open_location(out, endpoint=endpoint) if out else run
    ensure_ray()
    alexnet = experiment.weights.alexnet if experiment else None
    task = EvaluationTask(
        data=path,
        endpoint=endpoint,
        models={name: location.uri for name, location in models.items()},
        out=place.join(PICTURES_FOLDER).uri,
        settings=settings,
        alexnet=alexnet,
        gpu=ray.cluster_resources().get("GPU", 0) >= 1,
    )
    rows = _restore_all(task, count, progress)
    evaluation = summarize(rows, list(models))
    text = json.dumps(evaluation, indent=1)
    place.join(EVALUATION_FILE).write_bytes_atomic(text.encode())
    return evaluation


def _models_of(run: Location) -> tuple[Experiment | None, dict[str, Location]]:
    """The run's experiment and restoring stages by name, or the one model in a folder."""
    if read_description(run) is not None:
        _check_restores(run)
        folder = run.path.rstrip("/").rsplit("/", 2)
        return None, {folder[-2] if run.name == "final" else run.name: run}
    config = run.join("config.yaml")
    if not config.exists():
        raise QdmrError(f"{run.uri}: neither a run folder nor a trained model")
    experiment = experiment_of_run(config.read_bytes().decode(), config.uri)
    finals = {name: run.join(name, "final") for name in experiment.run if name != "vqgan"}
    trained = {name: f for name, f in finals.items() if read_description(f) is not None}
    if not trained:
        raise QdmrError(f"{run.uri}: no restoring stage is trained yet; run qdmr train first")
    return experiment, trained


def _check_restores(model: Location) -> None:
    description = read_description(model)
    if description is not None and description["kind"] == "vqgan":
        raise QdmrError(
            f"{model.uri}: is a VQGAN, which restores nothing; name a base or uda model"
        )


def _restore_all(
    task: EvaluationTask, count: int, progress: Callable[[int, int], None] | None
) -> list[dict[str, Any]]:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    workers = min(task.settings.workers, count)
    dataset = ray.data.from_items(
        [{"index": index} for index in range(count)], override_num_blocks=count
    ).map(
        Restorer,  # type: ignore[arg-type]
        fn_constructor_args=(task,),
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=ACTOR_CPUS,
        num_gpus=1 if task.gpu else 0,
    )
    rows = []
    for row in dataset.iter_rows():
        rows.append({**row, "figures": json.loads(row["figures"])})
        if progress is not None:
            progress(len(rows), count)
    return sorted(rows, key=lambda row: row["index"])


def summarize(rows: Sequence[Mapping[str, Any]], stages: Sequence[str]) -> dict[str, Any]:
    """What ``evaluation.json`` holds: means over the images, and each image's own figures.

    A figure that is not finite (identical images have an infinite PSNR) is null.
    """
    measured = [row for row in rows if row["figures"]]
    return {
        "images": len(rows),
        INPUT: _means(measured, INPUT),
        "stages": {stage: _means(measured, stage) for stage in stages},
        "per_image": [
            {
                "name": row["name"],
                **{
                    name: {metric: json_figure(value) for metric, value in figures.items()}
                    for name, figures in row["figures"].items()
                },
            }
            for row in rows
        ],
    }


def _means(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, float | None]:
    metrics = rows[0]["figures"][name] if rows else {}
    return {
        metric: json_figure(float(np.mean([row["figures"][name][metric] for row in rows])))
        for metric in metrics
    }
