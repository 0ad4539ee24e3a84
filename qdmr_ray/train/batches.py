"""A stage's batches: its crops, from the stage's feed or cut here, as tensors on its device."""

from collections.abc import Callable, Generator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import ray.exceptions

from qdmr_ray.config import Experiment
from qdmr_ray.data.streaming.crops import CropRequest
from qdmr_ray.data.streaming.feed import Feed
from qdmr_ray.data.streaming.plan import Portion
from qdmr_ray.data.streaming.stream import BlockSize, FedStream, InProcessStream, block_size
from qdmr_ray.stages import STAGES, Share, Stage, share_of
from qdmr_ray.train.prefetch import on_device

if TYPE_CHECKING:
    from qdmr_ray.train.worker_context import Host

# The suffix of the columns that count broken records.
_SKIPPED = "_skipped"
# The sets of a dataset, in the order in which the crops of a position are drawn.
_SETS = ("source", "target")
Stream = TypeVar("Stream", bound=InProcessStream)
Batches = Generator[dict[str, Any], None, None]


def sets_of(*stages: str) -> tuple[str, ...]:
    """Returns the sets of the dataset that the stages read."""
    domains = {domain for stage in stages for domain in STAGES[stage].domains}
    return tuple(name for name in _SETS if name in domains)


def share_of_rank(
    experiment: Experiment, stage: str, *, rank: int = 0, world_size: int | None = None
) -> Share:
    """Returns a worker's share of the batch, which all workers share however many are left of the
    ``scaling.workers`` that there are when ``world_size`` is not given."""
    settings, workers = experiment.stage(stage), experiment.scaling.workers
    return share_of(
        settings.batch_size * workers,
        micro_batch=settings.batch_size // settings.accumulate,
        rank=rank,
        world_size=workers if world_size is None else world_size,
    )


def crop_stream(
    kind: type[Stream],
    experiment: Experiment,
    stage: str,
    *,
    share: Share | None = None,
    start: int = 0,
    **options: Any,
) -> Stream:
    """Returns the crops of a stage's iterations from ``start`` on, for the worker of ``share`` or
    the first one. Raises SettingsError if the dataset lacks a set, or a crop is larger than an
    image."""
    settings, share = experiment.stage(stage), share or share_of_rank(experiment, stage)
    return kind(
        experiment.data,
        batch_size=share.count,
        first=share.first,
        total=share.total,
        crop=settings.crop,
        same_place=settings.same_place_crops,
        sets=sets_of(stage),
        fields=STAGES[stage].domains,
        seed=experiment.seed,
        start_iteration=start,
        end_iteration=settings.iterations,
        **options,
    )


def feed_of(experiment: Experiment, stage: str, request: CropRequest, pace: Any) -> Feed:
    """Returns the feed of the crops ``request`` of a stage, for any number of workers."""
    return Feed(
        name=f"{experiment.name}-{stage}",
        request=request,
        portions=partial(_portions, experiment, stage),
        size=_block_size(experiment, stage),
        end=experiment.stage(stage).iterations,
        pace=pace,
    )


def _portions(experiment: Experiment, stage: str, world_size: int) -> list[Portion]:
    shares = (
        share_of_rank(experiment, stage, rank=rank, world_size=world_size)
        for rank in range(world_size)
    )
    return [Portion(share.first, share.count, share.total) for share in shares]


def _block_size(experiment: Experiment, stage: str) -> BlockSize:
    """Returns the size of blocks, whose worker and number of workers must not matter."""
    return block_size(
        experiment.data,
        batch_size=share_of_rank(experiment, stage).count,
        crop=experiment.stage(stage).crop,
        fields=len(STAGES[stage].domains),
    )


def batches_of(
    stage: Stage, experiment: Experiment, host: "Host", hurry: Callable[[], None]
) -> Batches:
    """Yields this worker's batches from ``stage.iteration`` to the end, with images on the device
    of ``host``. ``hurry`` is called when Ray no longer loads for its node. Closing the generator
    frees loaders."""

    def loaded(kind: type[InProcessStream], **options: Any) -> Batches:
        share = cast(Share, stage.share)
        stream = crop_stream(
            kind, experiment, stage.name, share=share, start=stage.iteration, **options
        )
        batches = on_device(iter(stream), stage.domains, host.device, stage.compute.memory_format)
        try:
            yield from batches
        finally:
            stream.close()
            batches.close()

    first = stage.iteration + _block_size(experiment, stage.name).block
    if first >= stage.settings.iterations or not host.is_fed(experiment.data):
        # What is left could be cut here while a feed starts.
        yield from loaded(InProcessStream)
        return
    connect = partial(host.shard, experiment, stage.name, stage.iteration)
    try:
        yield from loaded(FedStream, connect=connect, reached=host.reached)
    except ray.exceptions.TaskUnschedulableError:
        # Ray starts no more tasks on a node that is about to go. Until all ranks stop, this one
        # loads the same batches by itself.
        hurry()
        yield from loaded(InProcessStream)


def skipped_records(batch: dict[str, Any]) -> int:
    """Returns how many broken records were passed over for this batch."""
    return sum(int(values.sum()) for name, values in batch.items() if name.endswith(_SKIPPED))
