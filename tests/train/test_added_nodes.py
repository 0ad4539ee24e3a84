"""A training that grows and shrinks with its cluster: no iteration is done twice."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from draining import drain
from ray.cluster_utils import Cluster
from ray.data._internal.cluster_autoscaler import get_or_create_autoscaling_coordinator
from test_lost_workers import STAGE, Misfortune, long_run
from tiny_training import bare_loop, metrics_of

from qdmr_ray.config import Experiment
from qdmr_ray.data.streaming.stream import InProcessStream
from qdmr_ray.stages import STAGES
from qdmr_ray.train import run as driver
from qdmr_ray.train.batches import crop_stream, share_of_rank
from qdmr_ray.train.loop import Task
from qdmr_ray.train.run import train_run

ITERATIONS = 600
# A step takes so long until the cluster has changed for the last time.
STEP_SECONDS = 0.1
HURRY = "hurry"
# The seed of the moments in which nodes come and go.
MOMENTS = 1
# One worker and its loading task fit on a node of three CPUs; two workers do not.
NODE = {"num_cpus": 3, "object_store_memory": 100_000_000}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head with room for one worker."""
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.3")
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.3")
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "6")
    monkeypatch.setenv("QDMR_PATIENCE_ASK_RAY", "0.25")
    # An embedded Ray of an earlier test switches it off.
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1")
    # Nodes are added in a thread, where Python takes no signal handlers.
    monkeypatch.setattr("ray._private.utils.set_sigterm_handler", lambda _: None)
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    ray.init(address=cluster.address)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def recording_task(notes: Path) -> type[Task]:
    """A task whose workers write down what each of their steps is given, into the folder ``notes``.

    Workers, which don't find this file, get it by value.
    """
    notes.mkdir()
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

    def arrived(values: dict[str, Any]) -> Task:
        stage = STAGES[values["stage"]]
        if b"RayTrainWorker" in Path("/proc/self/cmdline").read_bytes():
            step, file = stage.step, notes / str(os.getpid())

            def recorded(self: Any, batch: dict[str, Any]) -> Any:
                losses = step(self, batch)
                if not (notes / HURRY).exists():
                    time.sleep(STEP_SECONDS)
                line = {"iteration": self.iteration, "samples": samples(batch)}
                with file.open("a") as lines:
                    lines.write(json.dumps(line) + "\n")
                return losses

            stage.step = recorded  # type: ignore[method-assign]
        return Task(**values)

    class Recording(Task):
        def __reduce__(self) -> tuple[Any, ...]:
            return arrived, (vars(self),)

    return Recording


def samples(batch: dict[str, Any]) -> list[str]:
    """A digest of each sample's pixels."""
    pixels = [
        (images * 255).round().byte() if images.is_floating_point() else images
        for _, images in sorted(batch.items())
    ]
    return [
        hashlib.sha256(b"".join(p.numpy().tobytes() for p in sample)).hexdigest()
        for sample in zip(*pixels, strict=True)
    ]


def samples_by_iteration(notes: Path) -> dict[int, list[str]]:
    """What all workers together were given for each iteration, whenever it was."""
    found = defaultdict(list)
    for file in set(notes.iterdir()) - {notes / HURRY}:
        for line in map(json.loads, file.read_text().splitlines()):
            found[line["iteration"]].extend(line["samples"])
    return found


def planned_samples(experiment: Experiment) -> list[list[str]]:
    domains = STAGES[STAGE].domains
    share = share_of_rank(experiment, STAGE, world_size=1)
    stream = crop_stream(InProcessStream, experiment, STAGE, share=share)
    return [samples({name: batch[name] for name in domains}) for batch in stream]


def position(stage: Path) -> tuple[int, int]:
    """The newest iteration in the log, and the number of workers that did it."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        line = metrics_of(stage.parent, stage.name)[-1]
        return int(line["iteration"]), int(line["workers"])
    return 0, 0


def look_at_the_nodes() -> None:
    """Ray otherwise looks every 20 s which nodes there are."""
    ray.get(get_or_create_autoscaling_coordinator()._tick.remote())


def worker_by_node() -> dict[str, int]:
    """The process of the training worker on each node that has one."""
    return {
        actor["Address"]["NodeID"]: actor["Pid"]
        for actor in ray._private.state.actors().values()
        if (actor["ActorClassName"], actor["State"]) == ("RayTrainWorker", "ALIVE")
    }


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_run_that_grows_and_shrinks_does_no_iteration_twice(
    cluster: Cluster, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes, moment = tmp_path / "notes", random.Random(MOMENTS)
    monkeypatch.setattr(driver, "Task", recording_task(notes))
    added: list[Any] = []

    def once(workers: int, do: Callable[[], None]) -> Callable[[Path], bool]:
        """Does it so many iterations after there are so many workers."""
        until, due = moment.randint(3, 60), []

        def blow(stage: Path) -> bool:
            time.sleep(0.1)
            iteration, count = position(stage)
            if count == workers and not due:
                due.append(iteration + until)
            if not due or iteration < due[0]:
                return False
            do()
            return True

        return blow

    def add_a_node() -> None:
        added.append(cluster.add_node(**NODE))
        cluster.wait_for_nodes()
        look_at_the_nodes()

    def take_a_node() -> None:
        workers = worker_by_node()
        # The head stays.
        node = next(n for n in added if n.node_id in workers)
        drain(cluster.address, node.node_id, workers[node.node_id])
        while node.node_id in worker_by_node():
            time.sleep(0.1)
        cluster.remove_node(node)
        look_at_the_nodes()

    experiment = long_run(
        tiny_dataset,
        "run",
        # Without discriminators, whose float32 noise would grow over so many steps.
        gan=0,
        workers=2,
        min_workers=1,
        cpus_per_worker=2,
        # A resize is no failure.
        max_failures=0,
        resize_interval=1,
        iterations=ITERATIONS,
        # What isn't saved for the resize is done again.
        checkpoint_interval=10 * ITERATIONS,
    )
    run = tmp_path / "run"
    blows = (once(1, add_a_node), once(2, take_a_node), once(1, (notes / HURRY).touch))
    with Misfortune(run / STAGE, *blows) as misfortune:
        train_run(experiment, storage=str(tmp_path), say=lambda _: None)
    assert misfortune.left == []
    done, planned = samples_by_iteration(notes), planned_samples(experiment)
    twice = sum(len(done[i]) != len(batch) for i, batch in enumerate(planned, start=1))
    assert twice == 0, f"{twice} of {ITERATIONS} iterations were done twice"
    assert all(sorted(done[i]) == sorted(batch) for i, batch in enumerate(planned, start=1))
    lines = metrics_of(run, STAGE)
    assert [line["iteration"] for line in lines] == list(range(1, ITERATIONS + 1))
    assert [key for key, _ in itertools.groupby(line["workers"] for line in lines)] == [1, 2, 1]
    *expected, _ = bare_loop(experiment, STAGE, run, workers=2)
    for line, losses in zip(lines, expected, strict=True):
        assert line["source/l1"] == pytest.approx(losses["source/l1"], rel=1e-2)
