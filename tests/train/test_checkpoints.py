"""A checkpoint is complete or not there, damage is noticed, and writing holds nothing up."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from qdmr_ray.errors import QdmrError
from qdmr_ray.storage import Location, open_location
from qdmr_ray.train.checkpoints import (
    COMPLETE_FILE,
    STATE_FILE,
    CheckpointState,
    CheckpointStore,
)

if TYPE_CHECKING:
    from faulty_store import FaultyStore


def said(iteration: int, **values: Any) -> CheckpointState:
    """What a checkpoint of a stage says about itself."""
    return CheckpointState(iteration=iteration, stage="base", digest="abc", **values)


def training_state(value: float = 1.0) -> dict[str, Any]:
    """What a stage gives: a module's and an optimizer's state, and plain values."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    nn.init.constant_(module[0].weight, value)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1, fused=True)
    module(torch.rand(5, 3)).sum().backward()
    optimizer.step()
    return {"iteration": 7, "module": module.state_dict(), "optimizer": optimizer.state_dict()}


def saved(
    store: CheckpointStore, *iterations: int, metrics: Callable[[int], float] | None = None
) -> None:
    for iteration in iterations:
        logged = {} if metrics is None else {"source/l1": metrics(iteration)}
        store.save(said(iteration, metrics=logged), training_state(float(iteration)))
    store.wait()


def names(folder: Location) -> list[int]:
    return [int(place.name.removeprefix("checkpoint_")) for place in folder.list()]


def newest_iteration(folder: Location) -> int | None:
    found = CheckpointStore(folder).newest()
    return None if found is None else found.state.iteration


@pytest.fixture
def folder(tmp_path: Path) -> Location:
    return open_location(tmp_path / "checkpoints")


def test_what_is_saved_comes_back(folder: Location) -> None:
    content = training_state()
    store = CheckpointStore(folder)
    state = said(12, metrics={"source/l1": 0.5})
    store.save(state, content)
    store.wait()
    found = CheckpointStore(folder).newest()
    assert found is not None
    assert found.name == "checkpoint_000000012"
    assert found.state.model_copy(update={"files": {}}) == state
    loaded = found.load()
    assert loaded["iteration"] == 7
    torch.testing.assert_close(loaded["module"], content["module"], rtol=0, atol=0)
    torch.testing.assert_close(loaded["optimizer"], content["optimizer"], rtol=0, atol=0)
    # Modules tell by it which version of them wrote their state.
    assert loaded["module"]._metadata == content["module"]._metadata
    assert CheckpointStore(folder).named(found.name).data == found.data
    record = json.loads(folder.join(found.name, COMPLETE_FILE).read_bytes())
    assert (record["format"], [*record["files"]]) == (2, [STATE_FILE])


def test_a_checkpoint_with_random_states_still_loads(folder: Location) -> None:
    """As runs wrote it when each worker's random generators were kept."""
    saved(CheckpointStore(folder), 10)
    place = folder.join("checkpoint_000000010")
    random_state = b"of a worker"
    place.join("rank_00000.pt").write_bytes_atomic(random_state)
    record = json.loads(place.join(COMPLETE_FILE).read_bytes())
    record |= {"format": 1, "world_size": 1, "metrics": {"source/l1": None}}
    digest = hashlib.sha256(random_state).hexdigest()
    record["files"]["rank_00000.pt"] = {"bytes": len(random_state), "sha256": digest}
    place.join(COMPLETE_FILE).write_bytes_atomic(json.dumps(record).encode())
    found = CheckpointStore(folder).newest()
    assert found is not None
    assert math.isnan(found.state.metrics["source/l1"])
    assert torch.equal(found.load()["module"]["0.bias"], training_state(10.0)["module"]["0.bias"])


def test_nothing_there_is_no_checkpoint(folder: Location) -> None:
    assert CheckpointStore(folder).newest() is None


def test_training_may_go_on_while_its_state_is_written(folder: Location) -> None:
    held = threading.Event()
    state = {"weight": torch.zeros(1000), "list": [torch.zeros(3)]}
    store = CheckpointStore(folder)
    store.save(said(1), state, before_complete=lambda: held.wait(10) and None)
    state["weight"] += 1
    state["list"][0] += 1
    held.set()
    store.wait()
    found = store.newest()
    assert found is not None
    assert found.load()["weight"].sum() == found.load()["list"][0].sum() == 0


def test_memory_is_used_again_without_mixing_up_checkpoints(folder: Location) -> None:
    store = CheckpointStore(folder, keep=2)
    saved(store, 10, 20)
    for iteration in (10, 20):
        found = store.named(f"checkpoint_{iteration:09d}")
        assert torch.equal(
            found.load()["module"]["0.bias"], training_state(iteration)["module"]["0.bias"]
        )
        assert torch.equal(
            found.load()["module"]["0.weight"], training_state(iteration)["module"]["0.weight"]
        )


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def without_the_state(file: Path) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | {"files": {}}))


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (STATE_FILE, cut, r"state\.pt: has \d+ bytes, not \d+"),
        (STATE_FILE, flip, r"state\.pt: differs from its checksum"),
        (STATE_FILE, Path.unlink, r"state\.pt: is missing"),
        (COMPLETE_FILE, cut, r"complete\.json: is not JSON"),
        (COMPLETE_FILE, lambda file: file.write_text("[]"), r"complete\.json: holds a list"),
        (COMPLETE_FILE, lambda file: file.write_text("{}"), r"complete\.json: iteration: "),
        (COMPLETE_FILE, without_the_state, r"state\.pt: is missing in complete\.json"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_with_one_line(
    folder: Location,
    caplog: pytest.LogCaptureFixture,
    name: str,
    damage: Callable[[Path], Any],
    message: str,
) -> None:
    saved(CheckpointStore(folder, keep=2), 10, 20)
    path = folder.join("checkpoint_000000020", name).local_path
    assert path is not None
    damage(path)
    with caplog.at_level(logging.WARNING):
        assert newest_iteration(folder) == 10
    (line,) = [record.getMessage() for record in caplog.records]
    assert str(path.parent) in line
    assert "\n" not in line
    assert re.search(message, line), line
    with pytest.raises(QdmrError, match=message):
        CheckpointStore(folder).named("checkpoint_000000020")


def test_half_written_checkpoints_neither_count_nor_stay(folder: Location) -> None:
    saved(CheckpointStore(folder, keep=5), 10, 20)
    folder.join("checkpoint_000000020", COMPLETE_FILE).delete()
    folder.join("checkpoint_000000015", STATE_FILE).write_bytes_atomic(b"begun")
    assert newest_iteration(folder) == 10
    saved(CheckpointStore(folder, keep=5), 25)
    assert names(folder) == [10, 25]


def test_damaged_checkpoints_do_not_push_out_good_ones(folder: Location) -> None:
    """After going back from a damaged one, the next to be written is older than it."""
    saved(CheckpointStore(folder, keep=2), 10, 20, 30)
    flip(Path(folder.join("checkpoint_000000030", STATE_FILE).path))
    store = CheckpointStore(folder, keep=1)
    assert store.newest().state.iteration == 20  # type: ignore[union-attr]
    saved(store, 25)
    assert names(folder) == [25]
    assert newest_iteration(folder) == 25


def test_the_newest_are_kept(folder: Location) -> None:
    saved(CheckpointStore(folder, keep=2), 10, 20, 30, 40)
    assert names(folder) == [30, 40]


@pytest.mark.parametrize(("mode", "best"), [("min", 20), ("max", 10)])
def test_the_best_is_kept_too_also_after_a_restart(folder: Location, mode: Any, best: int) -> None:
    values = {10: 3.0, 20: 1.0, 30: float("nan"), 40: 2.0, 50: 2.0}

    def store() -> CheckpointStore:
        return CheckpointStore(folder, keep=1, best_metric="source/l1", best_mode=mode)

    saved(store(), 10, 20, 30, metrics=values.__getitem__)
    assert names(folder) == [best, 30]
    saved(store(), 40, 50, metrics=values.__getitem__)
    assert names(folder) == [best, 50]


def test_a_failed_write_is_told_at_the_next_save_or_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where a folder should be")
    store = CheckpointStore(open_location(tmp_path / "checkpoints"))
    store.save(said(1), training_state())
    with pytest.raises(QdmrError, match="checkpoints"):
        store.save(said(1), training_state())
    store.save(said(1), training_state())
    with pytest.raises(QdmrError, match="checkpoints"):
        store.wait()
    store.wait()


def test_a_slow_store_does_not_hold_training_up(faulty_store: FaultyStore) -> None:
    from faulty_store import Fault

    folder = open_location(f"s3://{faulty_store.bucket}/checkpoints")
    store = CheckpointStore(folder, keep=2)
    faulty_store.fail(Fault(delay=0.5), method="PUT")
    start = time.monotonic()
    store.save(said(10), training_state())
    assert time.monotonic() - start < 0.4
    store.wait()
    assert time.monotonic() - start > 0.9
    assert newest_iteration(folder) == 10


def test_checkpoints_in_a_store_that_fails_for_a_while(faulty_store: FaultyStore) -> None:
    from faulty_store import slow_down

    folder = open_location(f"s3://{faulty_store.bucket}/run/base/checkpoints")
    store = CheckpointStore(folder, keep=2)
    faulty_store.fail(slow_down(), times=3, method="PUT")
    faulty_store.fail(slow_down(), times=2, method="GET")
    saved(store, 10, 20, 30)
    assert names(folder) == [20, 30]
    assert newest_iteration(folder) == 30
    key = "run/base/checkpoints/checkpoint_000000030/state.pt"
    faulty_store.put(key, faulty_store.stored()[key][:-1])
    assert newest_iteration(folder) == 20


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_state_comes_back(folder: Location) -> None:
    device = torch.device("cuda")
    state = {"weight": torch.rand(1000, 100, device=device)}
    expected = state["weight"].cpu()
    store = CheckpointStore(folder)
    store.save(said(1), state)
    state["weight"].zero_()
    store.wait()
    found = CheckpointStore(folder).newest()
    assert found is not None
    assert torch.equal(found.load()["weight"], expected)
