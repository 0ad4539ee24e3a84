"""A trial whose node is about to be taken away saves itself and goes on elsewhere."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
from draining import drain, two_nodes_of_one_cpu
from ray.cluster_utils import Cluster

from qdmr_ray.sweeps.plan import Plan
from qdmr_ray.sweeps.run import sweep_run

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
# Far longer than a trial takes to look for a notice (ASK_RAY of qdmr_ray.patience, a quarter of a
# second here).
ITERATIONS = 300
NEVER = 10**6
# What Tune makes of TrialActor.
TUNES_WRAPPER = "ResourceTrainable"


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head without CPUs and two nodes, each with room for one trial."""
    # Read by the trials, whose processes the nodes start.
    monkeypatch.setenv("QDMR_PATIENCE_ASK_RAY", "0.25")
    # Nodes are added in a thread, where Python takes no signal handlers.
    monkeypatch.setattr("ray._private.utils.set_sigterm_handler", lambda _: None)
    cluster = two_nodes_of_one_cpu()
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    # Joining would switch it on for the tests that follow in this process.
    monkeypatch.setenv("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def trial_places() -> dict[str, int]:
    """Returns the nodes (ids) on which trials run, and the trials' processes there."""
    if not ray.is_initialized():
        return {}
    return {
        actor["Address"]["NodeID"]: actor["Pid"]
        for actor in ray._private.state.actors().values()
        if actor["ActorClassName"].endswith(TUNES_WRAPPER) and actor["State"] == "ALIVE"
    }


def lines_of(sweep: Path) -> list[dict[str, float]]:
    files = list((sweep / "stages").rglob("metrics.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


class Notice(threading.Thread):
    """Drains the node of the first trial once that has logged something; notes where trials are."""

    def __init__(self, sweep: Path, address: str) -> None:
        super().__init__(daemon=True)
        self.sweep, self.address = sweep, address
        self.over = threading.Event()
        self.drained: str | None = None
        self.nodes: list[str] = []

    def run(self) -> None:
        while not self.over.wait(0.5):
            places = trial_places()
            self.nodes += [node for node in places if node not in self.nodes]
            if self.drained is None and places and len(lines_of(self.sweep)) >= 3:
                self.drained = self.nodes[0]
                drain(self.address, self.drained, places[self.drained])


@pytest.mark.long
def test_a_trial_leaves_a_node_that_is_drained(
    cluster: Cluster, plan_of: Callable[..., Plan], tmp_path: Path
) -> None:
    stage = {"iterations": ITERATIONS, "batch_size": 2, "crop": 16, "lpips": 0}
    plan = plan_of(
        trials=1,
        concurrent=1,
        metric="source_only/validation/psnr",
        space={"stages.source_only.gan": {"float": [0.001, 0.1], "log": True}},
        sections={
            "run": ["source_only"],
            "stages": {"source_only": stage},
            # A notice is no failure.
            "scaling": {"cpus_per_worker": 0.5, "threads": 1, "max_failures": 0},
            "logging": {
                "log_interval": 10,
                "picture_interval": NEVER,
                # So the only checkpoint on the way is the one that the notice asks for.
                "checkpoint_interval": NEVER,
                "validation_interval": ITERATIONS // 2,
            },
        },
    )
    sweep = tmp_path / "sweeps" / "sweep"
    notice = Notice(sweep, cluster.address)
    notice.start()
    results = sweep_run(plan, storage=str(sweep.parent), say=lambda _: None).to_dict()
    notice.over.set()
    notice.join()
    (trial,) = results["trials"]
    assert (trial["state"], trial["error"]) == ("finished", None)
    assert notice.nodes[0] == notice.drained
    assert len(notice.nodes) == 2
    # Saved where it was told, and trained on from there: each line once.
    iterations = [line["iteration"] for line in lines_of(sweep)]
    assert iterations == sorted(set(iterations))
    assert iterations[-1] == ITERATIONS
    assert [line["iteration"] for line in trial["history"]] == [ITERATIONS // 2, ITERATIONS]
