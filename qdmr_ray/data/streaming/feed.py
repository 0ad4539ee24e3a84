"""One Ray Data execution that feeds all workers of a stage.

    feed = Feed(request, portions=…, size=block_size(settings, …), end=200_000, pace=new_pace())
    trainer = TorchTrainer(…, datasets={"uda": feed_from_the_newest_checkpoint},
                           dataset_config=FeedConfig(feed))
    shard = ray.train.get_dataset_shard("uda")  # in a worker

A round is a block of iterations. ``rounds`` lists them; each becomes a row for every worker; a task
cuts a row's crops and returns one block, whatever node it runs on; and block i goes to worker
i mod n, which ``streaming_split`` does where the order is preserved and all blocks have one row.
The worker compares the positions that it receives with those that it wants (``FedStream``).

Ray Data's own limits on memory are turned off: an execution that they hold back doesn't sleep (0.6
of a CPU for a training that waits for nothing, measured on 2 cores; 0.05 like this), and with many
workers on a small store it waits for ever, as blocks that are in use count. Rounds come at the pace
of the training instead, so that nothing in the execution ever has to wait for a consumer.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import ray.train
from ray.data import DataIterator, Dataset, Datasource, ReadTask
from ray.data.block import BlockMetadata
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from qdmr_ray.data.streaming.crops import CropRequest, cutter_of_process
from qdmr_ray.data.streaming.keepers import Keepers, keepers_of_cluster
from qdmr_ray.data.streaming.plan import Portion
from qdmr_ray.data.streaming.stream import ERROR, BlockSize
from qdmr_ray.errors import QdmrError
from qdmr_ray.storage import open_location

# A task that lists rounds ends after so many: Ray remembers each row of a task until it has ended.
_ROUNDS_OF_A_TASK = 100
_NODE_ID = "ray.io/node-id"
# How many times a cluster's object store Ray Data may believe that it may fill.
_NO_LIMIT = 1e6


class Pacing:
    """An actor with these methods holds the loading back to the pace of the training: it knows how
    far that has come."""

    def __init__(self) -> None:
        self._feed, self._iteration = 0, 0
        self._by_rank: dict[int, int] = {}
        self._changed = asyncio.Condition()

    async def begin(self, iteration: int) -> int:
        """Starts a feed from ``iteration`` on, and returns its number; earlier feeds end."""
        async with self._changed:
            self._feed, self._iteration = self._feed + 1, iteration
            self._by_rank.clear()
            self._changed.notify_all()
            return self._feed

    async def reach(self, rank: int, world_size: int, iteration: int) -> None:
        """Notes that a worker needs nothing before ``iteration`` any more. The training is where
        its slowest worker is."""
        self._by_rank[rank] = iteration
        slowest = min(self._by_rank.values())
        if len(self._by_rank) == world_size and slowest > self._iteration:
            async with self._changed:
                self._iteration = slowest
                self._changed.notify_all()

    async def wait(self, feed: int, iteration: int) -> bool:
        """Returns true when the training has reached ``iteration``, false where it is fed by
        another feed meanwhile."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._feed != feed or self._iteration >= iteration)
            return self._feed == feed


def new_pace() -> Any:
    """Starts an actor that does nothing but pacing, on this node."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Pacing).options(num_cpus=0, scheduling_strategy=here).remote()


@dataclass(frozen=True)
class Feed:
    """The crops of a stage's iterations before ``end``. ``portions`` maps a number of workers to
    what each of them takes of an iteration; ``pace`` is an actor with the methods of
    :class:`Pacing`."""

    name: str
    request: CropRequest
    portions: Callable[[int], Sequence[Portion]]
    size: BlockSize
    end: int
    pace: Any

    def rounds(self, start: int) -> Dataset:
        """Returns the rounds of a training that goes on at ``start``, one row each, and ends the
        feed of an earlier one. A worker cuts the first round by itself while the loading starts."""
        feed = ray.get(self.pace.begin.remote(start))
        rounds = _Rounds(self, feed, range(start + self.size.block, self.end, self.size.block))
        dataset = ray.data.read_datasource(
            rounds,
            override_num_blocks=max(1, rounds.tasks),
            concurrency=1,
            # This task runs on the driver's node, as the split's coordinator does: their loss would
            # be the driver's.
            num_cpus=0,
            label_selector={_NODE_ID: ray.get_runtime_context().get_node_id()},
        )
        dataset.set_name(self.name)
        context = dataset.context
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        # Every row is a block of its own.
        context.target_max_block_size = 1
        context.execution_options.preserve_order = True
        context.downstream_capacity_backpressure_ratio = None
        context.override_object_store_memory_limit_fraction = _NO_LIMIT
        return dataset

    def split(
        self, rounds: Dataset, world_size: int, node_ids: Sequence[str]
    ) -> list[DataIterator]:
        """Returns each worker's blocks. ``node_ids`` are the nodes of the workers, on which a
        dataset is read that lies on a disk."""
        settings = self.request.settings
        where = None
        if not open_location(settings.path, endpoint=settings.s3_endpoint).is_s3:
            where = {_NODE_ID: _one_of(node_ids)}
        portions = tuple(self.portions(world_size))
        blocks = rounds.map_batches(
            partial(_share_out, world_size=world_size),
            batch_size=None,
            num_cpus=0,
            compute=ray.data.TaskPoolStrategy(1),
        ).map_batches(
            partial(
                _cut_block,
                request=self.request,
                portions=portions,
                keepers=keepers_of_cluster(self.request),
            ),
            batch_size=None,
            num_cpus=settings.loader_cpus,
            compute=ray.data.TaskPoolStrategy(settings.loader_workers * world_size),
            label_selector=where,
        )
        # Hints on locality are not given, as they would change the order.
        split: list[DataIterator] = blocks.streaming_split(world_size, equal=False)
        return split


class FeedConfig(ray.train.DataConfig):
    """Makes Ray Train give each worker its blocks of a :class:`Feed`."""

    def __init__(self, feed: Feed) -> None:
        super().__init__()
        self._feed = feed

    def configure(
        self,
        datasets: dict[str, Dataset],
        world_size: int,
        worker_handles: Any,
        worker_node_ids: Any,
        **_: Any,
    ) -> list[dict[str, DataIterator]]:
        """Ray Train calls this once for each group of workers."""
        ((name, rounds),) = datasets.items()
        return [{name: shard} for shard in self._feed.split(rounds, world_size, worker_node_ids)]


class _Rounds(Datasource):
    """The first iteration of every round, at the pace of the training, and its end."""

    def __init__(self, feed: Feed, number: int, firsts: range) -> None:
        super().__init__()
        self._feed, self._number, self._firsts = feed, number, firsts
        self.tasks = -(-len(firsts) // _ROUNDS_OF_A_TASK)

    def get_name(self) -> str:
        return "Rounds"

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        pieces = range(0, len(self._firsts), _ROUNDS_OF_A_TASK)
        return [self._task(self._firsts[i : i + _ROUNDS_OF_A_TASK]) for i in pieces]

    def _task(self, firsts: range) -> ReadTask:
        feed, number = self._feed, self._number

        def read() -> Iterator[pa.Table]:
            for first in firsts:
                if not ray.get(feed.pace.wait.remote(number, first - feed.size.ahead)):
                    return
                end = min(first + feed.size.block, feed.end)
                yield pa.table({"first": [first], "end": [end]})

        rows = len(firsts)
        return ReadTask(read, BlockMetadata(rows, rows * 16, None, None))


def _share_out(round_: dict[str, np.ndarray], *, world_size: int) -> Iterator[Any]:
    """Yields a round's row for each worker."""
    for rank in range(world_size):
        yield {**round_, "rank": np.array([rank])}


def _cut_block(
    row: dict[str, np.ndarray],
    *,
    request: CropRequest,
    portions: Sequence[Portion],
    keepers: Keepers | None,
) -> dict[str, np.ndarray]:
    """Runs in a loading task: cuts the samples of one worker for the iterations of a round. The
    result is a single row, whose columns hold what ``Cutter.cut`` returns."""
    first, end, rank = (int(row[name][0]) for name in ("first", "end", "rank"))
    try:
        positions = portions[rank].positions(first, end)
        if keepers is None:
            columns = cutter_of_process(request).cut(positions)
        else:
            columns = keepers.cut(request, positions)
    except QdmrError as error:
        # The error travels as a block, since an exception would arrive through three of Ray's own.
        return {ERROR: np.array([str(error)])}
    return {name: column[None] for name, column in columns.items()}


def _one_of(node_ids: Sequence[str]) -> str:
    ids = sorted(set(node_ids))
    return ids[0] if len(ids) == 1 else f"in({','.join(ids)})"
