"""The time that a checkpoint of the full-size UDA stage takes: in the loop, to write, to resume.

python tests/benchmarks/checkpoint.py
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable

import torch

from qdmr_ray.nets import VQGAN, NetworkSettings
from qdmr_ray.stages import Components, UDASettings, build_stage
from qdmr_ray.storage import open_location
from qdmr_ray.train.checkpoints import CheckpointState, CheckpointStore

REPEATS = 3


def main() -> None:
    components = Components(trained={"vqgan": VQGAN(NetworkSettings())})
    stage = build_stage("uda", UDASettings(lpips=0), components).to("cpu")
    names = ("source", "ground_truth", "target")
    # Adam has its state after the first step.
    stage.step({name: torch.rand(1, 3, 64, 64) for name in names})
    with tempfile.TemporaryDirectory() as folder:
        store = CheckpointStore(open_location(folder))
        for repeat in range(1, REPEATS + 1):
            state = CheckpointState(iteration=repeat, stage="uda", digest="digest")
            content = stage.state_dict()
            _tell("blocks the loop", lambda s=state, c=content: store.save(s, c))
            _tell("written beside it", store.wait)
        found = _tell("read and verified", store.newest)
        assert found is not None
        _tell("loaded", lambda: stage.load_state_dict(found.load()))
        print(f"{'state.pt':20} {len(found.data) / 1e6:7.0f} MB")


def _tell(name: str, work: Callable[[], object]) -> object:
    start = time.perf_counter()
    result = work()
    print(f"{name:20} {(time.perf_counter() - start) * 1e3:7.0f} ms")
    return result


if __name__ == "__main__":
    main()
