"""A worker of an evaluation, which restores one photograph with every model and measures it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch

from qdmr_ray.config import EvaluationSettings
from qdmr_ray.data.format.reader import Record, RecordReader
from qdmr_ray.errors import reason
from qdmr_ray.evaluate.codebook.usage import TARGET
from qdmr_ray.evaluate.gap.measure import Choices, TwoLenses
from qdmr_ray.evaluate.gap.pairs import SourceLens
from qdmr_ray.evaluate.metrics.metric import Metric, json_value, measured
from qdmr_ray.evaluate.names import COMPARISON, GROUND_TRUTH, INPUT, TEST_SET
from qdmr_ray.evaluate.results import Judged
from qdmr_ray.evaluate.sheets import comparison_sheet
from qdmr_ray.models.files import load_model
from qdmr_ray.photographs.decode import encode_png
from qdmr_ray.restore.device import is_device_error
from qdmr_ray.restore.restoration import restore
from qdmr_ray.storage import open_location


@dataclass(frozen=True, kw_only=True)
class EvaluationTask:
    """The arguments of every restoring actor: the test set, the models by name, where to write.
    Paths are absolute, since an actor's working directory is Ray's own. ``source_lens`` has the
    same photographs through the source lens, if the settings name them. ``sharing`` actors share
    the CPUs of a node."""

    data: str
    endpoint: str | None
    models: dict[str, str]
    out: str
    settings: EvaluationSettings
    metrics: tuple[Metric, ...] = ()
    source_lens: SourceLens | None = None
    gpu: bool = False
    sharing: int = 1


class Restorer:
    """Restores and measures test photographs; its networks are loaded once.

    A call takes ``{"index", "name"}`` and returns these with ``judged``, a :class:`Judged` as JSON,
    and ``failure``, the reason where the photograph could not be read, restored, measured or
    written; one of the two is empty. It raises the error of a GPU that can't be used any more.
    """

    def __init__(self, task: EvaluationTask) -> None:
        self.task = task
        # Ray gives one thread to an actor that asks for less than a CPU.
        torch.set_num_threads(max(1, int(_cpus() // task.sharing)))
        self.reader = RecordReader(task.data, endpoint=task.endpoint)
        device = "cuda" if task.gpu else "cpu"
        places = {n: open_location(uri, endpoint=task.endpoint) for n, uri in task.models.items()}
        self.models = {name: load_model(place) for name, place in places.items()}
        networks = [model.network.to(device) for model in self.models.values()]
        # ``restore`` computes in the weights' own type.
        dtypes = {str(next(network.parameters()).dtype) for network in networks}
        self.out = open_location(task.out, endpoint=task.endpoint)
        self.metrics = [(metric.info, metric.open(device)) for metric in task.metrics]
        self.two_lenses: TwoLenses | None = None
        if task.source_lens is not None:
            self.two_lenses = TwoLenses(
                task.source_lens,
                self.models,
                self.metrics,
                task.settings,
                endpoint=task.endpoint,
                device=device,
            )
        self.environment = {
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name() if task.gpu else "CPU",
            "dtype": ", ".join(sorted(dtype.removeprefix("torch.") for dtype in dtypes)),
        }

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            record = self.reader.read(TEST_SET, int(row["index"]))
            judged = self._judge(record, int(row["index"]), str(row["name"]))
        except Exception as error:  # one broken photograph must not end the evaluation
            if is_device_error(error):
                raise
            return {**row, "judged": "", "failure": reason(error)}
        return {**row, "judged": judged.to_json(indent=None), "failure": ""}

    def _judge(self, record: Record, index: int, name: str) -> Judged:
        """Measures the input and the stages. The pictures are written below ``name`` first, since
        they are useful whatever can be measured."""
        images, choices = {INPUT: record.image}, Choices()
        for stage, model in self.models.items():
            codes = choices.of(stage, TARGET, model) if self.two_lenses else None
            images[stage] = restore(record.image, model, codes=codes)
        compared = dict(images)
        if record.ground_truth is not None:
            images[GROUND_TRUTH] = record.ground_truth
        self._write(name, images)
        values, left_out = measured(self.metrics, compared, record.ground_truth)
        gap = None
        if self.two_lenses is not None:
            gap, pictures = self.two_lenses.measure(index, name, record, compared, choices)
            self._write(name, pictures)
        if self.task.settings.sheets:
            self._write(name, {COMPARISON: comparison_sheet(name, images, values)})
        return Judged(
            index=index,
            name=name,
            values={
                stage: {metric: json_value(value) for metric, value in row.items()}
                for stage, row in values.items()
                if row
            },
            left_out=left_out,
            environment=self.environment,
            gap=gap,
        )

    def _write(self, name: str, pictures: Mapping[str, np.ndarray]) -> None:
        for picture, image in pictures.items():
            self.out.join(name, f"{picture}.png").write_bytes_atomic(encode_png(image))


def _cpus() -> float:
    """Returns the CPUs of this node: as Ray counts them where the node is a container or one of
    several on a machine, else the machine's."""
    cpus = float(os.cpu_count() or 1)
    if not ray.is_initialized():
        return cpus
    here = ray.get_runtime_context().get_node_id()
    node = next((n["Resources"].get("CPU", 0.0) for n in ray.nodes() if n["NodeID"] == here), 0.0)
    return min(cpus, node or cpus)
