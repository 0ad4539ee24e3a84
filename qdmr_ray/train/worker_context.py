"""The host of a training worker: a process that trains by itself, or a worker of Ray Train. The
loop asks its host for rank, device and whether it has to go, and reports its position. A sweep's
trial with a single worker trains in its own process, which spares the start of a worker group."""

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.data import DataIterator

from qdmr_ray.config import Experiment
from qdmr_ray.data.streaming.crops import CropRequest, DataSettings
from qdmr_ray.data.streaming.feed import new_pace
from qdmr_ray.patience import EXPORT
from qdmr_ray.ray_compat import draining_nodes
from qdmr_ray.storage import open_location
from qdmr_ray.train.batches import feed_of

# Called with a stage's name, its iteration and the metrics logged there.
Watch = Callable[[str, int, Mapping[str, float]], None]


class Host:
    """This process alone, on a machine whose CPUs ``local_world_size`` such processes share.
    ``watch`` is called in this process, with every line of the log."""

    def __init__(self, *, gpu: bool, local_world_size: int = 1, watch: Watch | None = None) -> None:
        self.rank, self.world_size = 0, 1
        self.local_world_size = local_world_size
        # Ray shows a process only the GPUs that it was given.
        self.device = torch.device("cuda", 0) if gpu else torch.device("cpu")
        self._watch = watch
        self._pace: Any = None

    def is_fed(self, data: DataSettings) -> bool:
        """Returns whether crops come from other processes. Where this one trains on a CPU and reads
        from a disk, they would take more of the same CPUs."""
        return (
            self.device.type == "cuda" or open_location(data.path, endpoint=data.s3_endpoint).is_s3
        )

    def shard(
        self, experiment: Experiment, stage: str, start: int, request: CropRequest
    ) -> DataIterator:
        """Returns this worker's blocks of the crops ``request`` of a stage that goes on at
        iteration ``start``; all ranks call it at the same time."""
        self._pace = new_pace()
        feed = feed_of(experiment, stage, request, self._pace)
        here = ray.get_runtime_context().get_node_id()
        return feed.split(feed.rounds(start), self.world_size, [here])[0]

    def reached(self, iteration: int) -> None:
        """Lets the loading of crops go on: what came before ``iteration`` is used up."""
        if self._pace is not None:
            self._pace.reach.remote(self.rank, self.world_size, iteration)

    def logged(self, stage: str, iteration: int, metrics: Mapping[str, float]) -> None:
        """Takes a line of the log, on rank 0."""
        if self._watch is not None:
            self._watch(stage, iteration, metrics)

    def report(self, metrics: Mapping[str, Any]) -> None:
        """Takes the metrics of a checkpoint; every rank calls it at the same iterations."""

    def is_leaving(self) -> bool:
        """Returns whether a worker's machine is about to be taken away; a collective call."""
        return ray.get_runtime_context().get_node_id() in draining_nodes()

    def linger(self) -> None:
        """Lets metrics that explain an end get out; every rank calls it before it raises."""


class RayTrainHost(Host):
    """A worker of Ray Train; ``board`` takes the iterations that have been reached, and the log if
    somebody watches it."""

    def __init__(self, board: Any, *, is_watched: bool) -> None:
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.local_world_size = context.get_local_world_size()
        self.device = ray.train.torch.get_device()
        self._pace = board
        self._board = board if is_watched else None

    def is_fed(self, data: DataSettings) -> bool:
        """Returns true: the workers of a stage share a feed."""
        return True

    def shard(
        self, experiment: Experiment, stage: str, start: int, request: CropRequest
    ) -> DataIterator:
        """Returns what Ray Train has for this rank."""
        shard: DataIterator | None = ray.train.get_dataset_shard(stage)
        assert shard is not None
        return shard

    def logged(self, stage: str, iteration: int, metrics: Mapping[str, float]) -> None:
        """Passes the line on to the board."""
        if self._board is not None:
            self._board.log.remote(stage, iteration, dict(metrics))

    def report(self, metrics: Mapping[str, Any]) -> None:
        """Reports to Ray Train while training goes on."""
        in_background = ray.train.CheckpointUploadMode.ASYNC
        ray.train.report(dict(metrics), checkpoint_upload_mode=in_background)

    def is_leaving(self) -> bool:
        """Asks Ray Train, whose answer all ranks wait for."""
        return ray.train.get_preemption_info() is not None

    def linger(self) -> None:
        """Waits for the next export: Ray Train kills all ranks as soon as one has failed."""
        time.sleep(EXPORT.seconds)


def node_cpus() -> float:
    """Returns the CPUs that Ray counts on this process's node."""
    here = ray.get_runtime_context().get_node_id()
    return next((n["Resources"].get("CPU", 0.0) for n in ray.nodes() if n["NodeID"] == here), 0.0)


def threads_for(host: Host) -> int:
    """Returns a worker's default number of PyTorch threads: its share of the CPUs of the machine,
    or of the node where that is a container or one of several nodes of a machine."""
    cpus = float(os.cpu_count() or 1)
    return max(1, int(min(cpus, node_cpus() or cpus)) // host.local_world_size)
