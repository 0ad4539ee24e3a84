"""Judging a stage's network on photographs of the real lens while it trains.

    validation = Validation(experiment, rank=0, world_size=1)
    validation.measure(stage.result())      # {0: {"psnr": 27.1, "ssim": 0.82}, ...} by photograph

Restoration and metrics are those of ``qdmr evaluate``, to rounding. A VQGAN restores nothing: it is
judged by how well it reconstructs the photographs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from qdmr_ray.config import Experiment
from qdmr_ray.data.format.reader import RecordReader
from qdmr_ray.errors import SettingsError
from qdmr_ray.evaluate.metrics.psnr import psnr
from qdmr_ray.evaluate.metrics.ssim import ssim
from qdmr_ray.evaluate.split import validation_indices
from qdmr_ray.evaluate.worker import TEST_SET
from qdmr_ray.models.files import LoadedModel
from qdmr_ray.nets import VQGAN
from qdmr_ray.restore.restoration import restore

# A validation logs these metrics.
VALIDATED = ("validation/psnr", "validation/ssim")
Metrics = dict[str, float]


def validation_names(experiment: Experiment) -> list[str]:
    """Returns the names of a run's validation photographs, without opening a shard.

    Raises:
        SettingsError: there are none, or they have no ground truth.
        QdmrError: the dataset can't be read.
    """
    return list(_chosen(experiment)[1].values())


class Validation:
    """This rank's part of the validation photographs: every ``world_size``-th one. Raises as
    :func:`validation_names`."""

    def __init__(self, experiment: Experiment, rank: int, world_size: int) -> None:
        self._reader, chosen = _chosen(experiment)
        self._indices = list(chosen)[rank::world_size]
        self._settings = experiment.evaluation

    def measure(self, network: nn.Module) -> dict[int, Metrics]:
        """Returns PSNR and SSIM of this rank's photographs; the network is left as it was."""
        model = LoadedModel(network, "", 0, "", "the network in training")  # type: ignore[arg-type]
        measured = {}
        for index in self._indices:
            record = self._reader.read(TEST_SET, index)
            truth = record.image if isinstance(network, VQGAN) else record.ground_truth
            assert truth is not None
            restored = restore(record.image, model)
            how: Any = {"border": self._settings.border, "luma": self._settings.luma}
            measured[index] = {
                "psnr": psnr(restored, truth, **how),
                "ssim": ssim(restored, truth, **how),
            }
        return measured


def mean_metrics(parts: Sequence[Mapping[int, Metrics]]) -> Metrics:
    """Returns the means over the photographs of all ranks, as logged: ``validation/psnr`` and so
    on. The values are added in the photographs' order, whatever the number of ranks."""
    by_index = {index: metrics for part in parts for index, metrics in part.items()}
    rows = [by_index[index] for index in sorted(by_index)]
    return {f"validation/{name}": float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _chosen(experiment: Experiment) -> tuple[RecordReader, dict[int, str]]:
    """Returns the dataset's reader, and the validation photographs' names by index."""
    data = experiment.data
    assert data.path is not None
    reader = RecordReader(data.path, endpoint=data.s3_endpoint)
    if not reader.manifest.set(TEST_SET).paired:
        raise SettingsError(
            "logging.validation_interval: the test set has no ground truth to validate against; "
            "leave it out, or pack test pairs"
        )
    table = reader.index(TEST_SET)
    names = [table[i].name for i in range(reader.count(TEST_SET))]
    chosen = validation_indices(experiment.evaluation, names)
    if not chosen:
        raise SettingsError(
            "logging.validation_interval is set and no test photograph is for validation: set "
            "evaluation.validation_share or evaluation.validation_names"
        )
    return reader, {i: names[i] for i in chosen}
