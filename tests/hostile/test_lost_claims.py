"""A holder whose signs of life were blocked writes and deletes nothing beside its replacement."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hostile.limits import files_below, outcome, refused

from qdmr_ray.errors import QdmrError
from qdmr_ray.models.stage_store import StageStore
from qdmr_ray.storage import Location, open_location
from qdmr_ray.storage.claims import Claim, Claims
from qdmr_ray.train.checkpoints import CheckpointState, CheckpointStore

QUICK = {"beat": 0.05, "stale": 0.3}
DAY = 86400.0
LOST = r"claims: .* took over, since this process gave no sign of life for 0\.3 s"


def acquired(folder: Location) -> Claim:
    claim = Claims(folder, **QUICK).acquire(lambda: False, lambda _: None)
    assert claim is not None
    return claim


def blocked(folder: Location) -> Claim:
    """A claim whose holder lives, and whose signs of life don't arrive."""
    claim = acquired(folder)
    claim._over.set()
    claim._thread.join()
    claim._over = threading.Event()
    sign = folder.join(f"{claim.number:06}.beat")
    # A machine elsewhere, whose processes can't be looked up.
    sign.write_bytes_atomic(b'{"state": "working", "count": 1, "time": 5}')
    return claim


def save(store: CheckpointStore, iteration: int) -> None:
    state = CheckpointState(iteration=iteration, stage="uda", digest="d")
    store.save(state, {"weight": torch.full((3,), float(iteration))})
    store.wait()


def test_a_lost_claim_is_noticed_by_the_next_check_and_the_next_beat(tmp_path: Path) -> None:
    folder = open_location(tmp_path / "claims")
    lost = blocked(folder)
    lost.check()
    with acquired(folder) as held:
        held.check()
        refused(lost.check, match=LOST)
        lost._thread = threading.Thread(target=lost._run, daemon=True)
        lost._thread.start()
        lost._thread.join(timeout=5)
        assert not lost._thread.is_alive()
        assert b'"time": 5' in folder.join("000001.beat").read_bytes()
    with lost:
        pass
    # What the lost one says at its end frees nothing.
    with acquired(folder) as next_one:
        lost._show("released")
        next_one.check()


@pytest.mark.parametrize("when", ["before", "while it writes"])
def test_a_lost_claim_s_checkpoint_neither_counts_nor_deletes(tmp_path: Path, when: str) -> None:
    folder = open_location(tmp_path / "claims")
    lost = blocked(folder)
    ours = CheckpointStore(open_location(tmp_path / "checkpoints"), check=lost.check)
    save(ours, 10)
    with acquired(folder) as held:
        theirs = CheckpointStore(open_location(tmp_path / "checkpoints"), check=held.check)
        save(theirs, 20)
        before = files_below(tmp_path / "checkpoints")
        if when == "before":
            # Not in a forked process, which would lack the store's thread.
            with pytest.raises(QdmrError, match=LOST):
                save(ours, 15)
            assert files_below(tmp_path / "checkpoints") == before
        else:
            # The first check, before the state is written, is passed.
            checks = iter([lambda: None])
            ours._check = lambda: next(checks, lost.check)()
            with pytest.raises(QdmrError, match=LOST):
                save(ours, 30)
        newest = theirs.newest()
        assert newest is not None
        assert newest.state.iteration == 20


SCRIPT = """
import sys
from pathlib import Path
import torch
from qdmr_ray.errors import QdmrError
from qdmr_ray.storage import open_location
from qdmr_ray.storage.claims import Claims
from qdmr_ray.train.checkpoints import CheckpointState, CheckpointStore
root = Path(sys.argv[1])
claim = Claims(open_location(root / "claims"), beat=0.1, stale=1).acquire(lambda: False, print)
store = CheckpointStore(open_location(root / "checkpoints"), check=claim.check)
for iteration in range(1, 10000):
    try:
        state = CheckpointState(iteration=iteration, stage="uda", digest="d")
        store.save(state, {"a": torch.zeros(9)})
        store.wait()
    except QdmrError as error:
        print(error)
        sys.exit(3)
    (root / "begun").touch()
"""


@pytest.mark.slow
def test_a_suspended_process_leaves_its_replacement_s_checkpoints_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        _until(lambda: (tmp_path / "begun").exists())
        os.kill(process.pid, signal.SIGSTOP)
        claims = Claims(open_location(tmp_path / "claims"), beat=0.1, stale=1)
        claim = claims.acquire(lambda: False, lambda _: None)
        assert claim is not None
        with claim:
            folder = open_location(tmp_path / "checkpoints")
            store = CheckpointStore(folder, keep=3, check=claim.check)
            save(store, 20000)
            os.kill(process.pid, signal.SIGCONT)
            said, _ = process.communicate(timeout=60)
            # It may have been stopped between a check and a write, which then fails otherwise.
            assert (process.returncode, "checkpoints" in said or "took over" in said) == (3, True)
            newest = store.newest()
            assert newest is not None
            assert newest.state.iteration == 20000
    finally:
        process.kill()
        process.wait()


def _until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


CLOCKS = {
    "an hour ahead": 3600.0,
    "a year ahead": 365 * DAY,
    "an hour behind": -3600.0,
    "a year behind": -365 * DAY,
    "at 1970": -time.time(),
}


@pytest.mark.parametrize("behind", CLOCKS.values(), ids=CLOCKS.keys())
@pytest.mark.parametrize("alive", [True, False], ids=["alive", "silent"])
def test_prune_compares_no_clocks_of_two_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behind: float, alive: bool
) -> None:
    monkeypatch.setenv("QDMR_PATIENCE_CLAIM_STALE", "0.4")
    store = StageStore(open_location(tmp_path))
    place = store.place("uda", "e" * 64)
    entry = {"stage": "uda", "digest": "e" * 64, "settings": {}}
    place.join("entry.json").write_bytes_atomic(json.dumps(entry).encode())
    place.join("claims", "000001.json").write_bytes_atomic(b'{"owner": "x"}')
    over = threading.Event()

    def beat() -> None:
        count = 0
        while count == 0 or (alive and not over.wait(0.05)):
            count += 1
            sign = {"state": "working", "count": count, "time": time.time() + behind}
            place.join("claims", "000001.beat").write_bytes_atomic(json.dumps(sign).encode())

    trainer = threading.Thread(target=beat)
    trainer.start()
    try:
        if not alive:
            trainer.join()
        _until(lambda: (tmp_path / place.name / "claims" / "000001.beat").exists())
        for days, unfinished in ((30.0, True), (0.0, False)):
            found = store.prunable(unused_days=days, unfinished=unfinished)
            assert [one.stage for one in found] == ([] if alive else ["uda"])
    finally:
        over.set()
        trainer.join()


DAMAGED = {
    "empty": b"",
    "no JSON": b"{",
    "a list": b"[1]",
    "a number": b"7",
    "deep": b"[" * 20000,
    "no Unicode": b"\xff\xfe",
    "process without a number": b'{"process": {"pid": null}}',
    "process a text": b'{"process": "x", "time": "now"}',
    "time a text": b'{"owner": "\\u001b[31m", "time": "now"}',
    "null": b"null",
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
@pytest.mark.parametrize("file", ["000001.json", "000001.beat", "entry.json", "uses/a.json"])
def test_damaged_files_of_a_store_end_nothing(tmp_path: Path, file: str, content: bytes) -> None:
    store = StageStore(open_location(tmp_path))
    place = store.place("uda", "e" * 64)
    files = {
        "claims/000001.json": b'{"owner": "x"}',
        "claims/000001.beat": b'{"state": "working", "time": 5}',
        "entry.json": json.dumps({"stage": "uda", "digest": "e" * 64}).encode(),
        "uses/a.json": b'{"run": "a", "time": 5}',
    }
    name = file if file in files else f"claims/{file}"
    for one, text in (files | {name: content}).items():
        place.join(*one.split("/")).write_bytes_atomic(text)
    entries = outcome(lambda: [entry.stage for entry in store.entries()])
    if file == "entry.json":
        told = r"entry\.json: is damaged \(.+\); delete its folder"
        assert re.search(told, entries.error or "")
    else:
        assert entries.value == ["uda"]
    said: list[str] = []
    claim = Claims(place.join("claims"), beat=9, stale=0.05).acquire(lambda: False, said.append)
    assert claim is not None
    with claim:
        assert claim.number == 2
    assert all(line.isprintable() for line in said)


def test_the_millionth_claim_holds(tmp_path: Path) -> None:
    folder = open_location(tmp_path)
    folder.join("999999.json").write_bytes_atomic(b"{}")
    with acquired(folder) as first:
        assert first.number == 1_000_000
        assert outcome(lambda: Claims(folder).holder()["time"] > 5).value  # type: ignore[index]
        first.check()
