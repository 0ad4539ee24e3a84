"""What the tests of whole sweeps share: running one, and looking at what it leaves."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray.util import placement_group_table

from qdmr_ray.sweeps.plan import Plan
from qdmr_ray.sweeps.run import sweep_run

SCALING = {"cpus_per_worker": 0.5, "threads": 1, "max_failures": 2}


def run(plan: Plan, folder: Path, **options: Any) -> dict[str, Any]:
    return sweep_run(plan, storage=str(folder), say=lambda _: None, **options).to_dict()


def trials_of(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {trial["id"]: trial for trial in results["trials"]}


# Ray Data keeps them as long as Ray runs.
RAYS_OWN = ("_StatsActor", "_AutoscalingCoordinatorActor", "ActorLocationTracker")


def left_behind() -> list[str]:
    """Actors and placement groups that are still there; the driver's own are none."""
    alive = [
        actor["ActorClassName"]
        for actor in ray._private.state.actors().values()
        if actor["State"] not in ("DEAD",) and actor["ActorClassName"] not in RAYS_OWN
    ]
    groups = [g["name"] for g in placement_group_table().values() if g["state"] != "REMOVED"]
    return alive + groups


def wait_until_nothing_is_left(seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while (rest := left_behind()) and time.monotonic() < end:
        time.sleep(0.5)
    assert rest == []


def trained_iterations(sweep: Path, stage: str) -> list[int]:
    """Iterations of every folder in which a stage was ever begun."""
    lines = [
        (f / "metrics.jsonl").read_text().splitlines()
        for f in sweep.glob(f"stages/{stage}-*/{stage}")
    ]
    return [json.loads(rows[-1])["iteration"] for rows in lines]
