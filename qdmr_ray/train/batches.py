"""A stage's batches: its crops, loaded with Ray Data or without, as tensors on its device."""

from collections.abc import Callable, Generator
from typing import Any, TypeVar, cast

import ray.exceptions
import torch

from qdmr_ray.config import Experiment
from qdmr_ray.data.streaming.stream import CropStream, InProcessStream
from qdmr_ray.stages import STAGES, Share, Stage
from qdmr_ray.train.prefetch import on_device

# The suffix of the columns that count broken records.
_SKIPPED = "_skipped"
# The sets of a dataset, in the order in which the crops of a position are drawn.
_SETS = ("source", "target")
Stream = TypeVar("Stream", bound=CropStream | InProcessStream)
Batches = Generator[dict[str, Any], None, None]


def sets_of(*stages: str) -> tuple[str, ...]:
    """Returns the sets of the dataset that the stages read."""
    domains = {domain for stage in stages for domain in STAGES[stage].domains}
    return tuple(name for name in _SETS if name in domains)


def crop_stream(
    kind: type[Stream],
    experiment: Experiment,
    stage: str,
    *,
    share: Share | None = None,
    start: int = 0,
    end: int = 0,
) -> Stream:
    """Returns the crops of a stage's iterations ``start`` .. ``end - 1``, or a worker's share.
    Raises SettingsError if the dataset lacks a set, or a crop is larger than an image."""
    settings = experiment.stage(stage)
    return kind(
        experiment.data,
        batch_size=share.count if share else settings.batch_size,
        first=share.first if share else 0,
        total=share.total if share else None,
        crop=settings.crop,
        same_place=settings.same_place_crops,
        sets=sets_of(stage),
        fields=STAGES[stage].domains,
        seed=experiment.seed,
        start_iteration=start,
        end_iteration=end,
    )


def batches_of(
    stage: Stage, experiment: Experiment, device: torch.device, hurry: Callable[[], None]
) -> Batches:
    """Yields this worker's batches from ``stage.iteration`` to the end, with images on
    ``device``. ``hurry`` is called when Ray no longer loads on this node. Closing the generator
    frees loaders."""

    def loaded(kind: type[CropStream] | type[InProcessStream]) -> Batches:
        share, end = cast(Share, stage.share), stage.settings.iterations
        stream = crop_stream(
            kind, experiment, stage.name, share=share, start=stage.iteration, end=end
        )
        batches = on_device(iter(stream), stage.domains, device)
        try:
            yield from batches
        finally:
            stream.close()
            batches.close()

    try:
        yield from loaded(CropStream)
    except ray.exceptions.TaskUnschedulableError:
        # Ray starts no more tasks on a node that is about to go. Until all ranks stop, this one
        # loads the same batches by itself.
        hurry()
        yield from loaded(InProcessStream)


def skipped_records(batch: dict[str, Any]) -> int:
    """Returns how many broken records were passed over for this batch."""
    return sum(int(values.sum()) for name, values in batch.items() if name.endswith(_SKIPPED))
