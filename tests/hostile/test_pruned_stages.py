"""``stages prune`` deletes no stage that another process trains or takes at that moment."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile.limits import files_below, refused

from qdmr_ray.models.files import DESCRIPTION_FILE, save_model
from qdmr_ray.models.stage_store import Entry, StageStore, copy_stage
from qdmr_ray.nets import VQGAN, NetworkSettings, SwinSettings
from qdmr_ray.storage import Location, open_location
from qdmr_ray.storage.claims import Claim, Claims

SMALL = NetworkSettings(
    widths=(4, 4),
    residual_blocks=1,
    codebook_size=4,
    code_dim=4,
    swin=SwinSettings(groups=1, blocks=1, heads=2, window=4),
)
DIGEST = "d" * 64
YEAR = 365 * 86400.0


def train(place: Location, _: object = None) -> None:
    torch.manual_seed(0)
    place.join("vqgan", "metrics.jsonl").write_bytes_atomic(b"")
    final = place.join("vqgan", "final")
    save_model(final, VQGAN(SMALL), kind="vqgan", step=3, digest=DIGEST)


def provide(store: StageStore) -> Location:
    return store.provide("vqgan", DIGEST, {}, train, lambda _: None)


def fail(*_: object) -> None:
    raise AssertionError("it is trained already")


@pytest.fixture(params=["disk", "store"])
def stages(request: pytest.FixtureRequest, tmp_path: Path) -> StageStore:
    if request.param == "disk":
        return StageStore(open_location(tmp_path / "stages"))
    faulty = request.getfixturevalue("faulty_store")
    request.getfixturevalue("monkeypatch").setenv("AWS_ENDPOINT_URL", faulty.endpoint)
    return StageStore(open_location(f"s3://{faulty.bucket}/stages"))


@pytest.fixture
def on_disk(tmp_path: Path) -> StageStore:
    return StageStore(open_location(tmp_path / "stages"))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Signs of life are quick, and no claim outlives its test."""
    monkeypatch.setenv("QDMR_PATIENCE_CLAIM_BEAT", "0.05")
    monkeypatch.setenv("QDMR_PATIENCE_CLAIM_STALE", "0.5")
    claims: list[Claim] = []
    begin = Claim.__init__

    def kept(claim: Claim, *arguments: Any) -> None:
        begin(claim, *arguments)
        claims.append(claim)

    monkeypatch.setattr(Claim, "__init__", kept)
    yield
    for claim in claims:
        claim._over.set()
        claim._thread.join()


def listed(store: StageStore) -> Entry:
    (entry,) = store.entries()
    return entry


def test_what_nobody_uses_is_deleted_with_its_claims(stages: StageStore) -> None:
    place = provide(stages)
    assert stages.remove(listed(stages)) is True
    assert not place.exists()
    assert list(stages.entries()) == []
    provide(stages)
    assert listed(stages).state == "finished"


def test_what_was_used_since_it_was_listed_is_kept(stages: StageStore) -> None:
    place = provide(stages)
    entry = listed(stages)
    time.sleep(1.1 if stages.root.is_s3 else 0.02)
    stages.note_use(place, "runs/a")
    assert stages.remove(entry) is False
    assert listed(stages).state == "finished"
    assert stages.provide("vqgan", DIGEST, {}, fail, lambda _: None) == place


@pytest.mark.parametrize("result", ["finished", "unfinished"])
def test_what_was_trained_since_it_was_listed_is_kept(on_disk: StageStore, result: str) -> None:
    place = on_disk.place("vqgan", DIGEST)
    text = json.dumps({"stage": "vqgan", "digest": DIGEST}).encode()
    place.join("entry.json").write_bytes_atomic(text)
    entry = listed(on_disk)
    assert entry.state == "unfinished"
    checkpoint = place.join("vqgan", "checkpoints", "1")
    if result == "finished":
        provide(on_disk)
    else:
        with pytest.raises(InterruptedError):
            on_disk.provide("vqgan", DIGEST, {}, lambda *_: interrupted(checkpoint), str)
    before = files_below(Path(place.join("vqgan").path))
    assert on_disk.remove(entry) is False
    assert files_below(Path(place.join("vqgan").path)) == before
    assert listed(on_disk).state == result


def interrupted(checkpoint: Location) -> None:
    checkpoint.write_bytes_atomic(b"state")
    raise InterruptedError


def test_what_another_command_has_deleted_is_not_made_again(on_disk: StageStore) -> None:
    place = provide(on_disk)
    entry = listed(on_disk)
    results: list[bool] = []
    both = [threading.Thread(target=lambda: results.append(on_disk.remove(entry))) for _ in "ab"]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert sorted(results) == [False, True]
    assert not place.exists()


def test_a_run_that_comes_meanwhile_trains_it_anew(
    on_disk: StageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    provide(on_disk)
    entry = listed(on_disk)
    delete, trained = Location.delete, []

    def comes() -> None:
        on_disk.note_use(entry.place, "runs/late")
        on_disk.provide("vqgan", DIGEST, {}, lambda *a: (trained.append(1), train(*a))[1], str)

    run = threading.Thread(target=comes)

    def slow(self: Location) -> None:
        if self.name == DESCRIPTION_FILE:
            run.start()
            time.sleep(0.3)
        delete(self)

    monkeypatch.setattr(Location, "delete", slow)
    assert on_disk.remove(entry) is True
    run.join()
    assert trained == [1]
    assert listed(on_disk).state == "finished"


@pytest.mark.parametrize("step", range(12))
def test_a_deletion_that_ends_early_leaves_all_or_no_result(
    on_disk: StageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    provide(on_disk)
    on_disk.note_use(listed(on_disk).place, "runs/a")
    entry = listed(on_disk)
    steps = iter(range(step))

    def ending(method: Any) -> Any:
        def call(self: Location, *arguments: Any) -> Any:
            # Signs of life come at any time.
            if not self.name.endswith(".beat") and next(steps, None) is None:
                raise InterruptedError
            return method(self, *arguments)

        return call

    with monkeypatch.context() as patch:
        for method in ("delete", "write_bytes_atomic", "create"):
            patch.setattr(Location, method, ending(getattr(Location, method)))
        try:
            assert on_disk.remove(entry) is True
        except InterruptedError:
            pass
        else:
            assert step > 5
            assert not entry.place.exists()
    found = list(on_disk.entries())
    # The first step takes the claim, the second hides the result, the third deletes it.
    assert all(one.state == "unfinished" for one in found) or step < 2
    # A run finds it whole, or trains it.
    trained: list[int] = []
    place = on_disk.provide(
        "vqgan", DIGEST, {}, lambda *a: (trained.append(1), train(*a))[1], lambda _: None
    )
    assert trained == [1] * (step > 2)
    copy_stage(place, open_location(tmp_path / "run"), "vqgan")
    assert listed(on_disk).state == "finished"


SCRIPT = """
import sys, time
from pathlib import Path
from qdmr_ray.models.stage_store import StageStore
from qdmr_ray.storage import open_location
def train(place, claim):
    place.join("vqgan", "checkpoints", "1").write_bytes_atomic(b"state")
    Path(sys.argv[3]).touch()
    time.sleep(600)
StageStore(open_location(sys.argv[1])).provide("vqgan", sys.argv[2], {}, train, print)
"""


@pytest.mark.slow
def test_what_another_process_trains_is_kept(on_disk: StageStore, tmp_path: Path) -> None:
    begun, root = tmp_path / "begun", on_disk.root.path
    trainer = subprocess.Popen([sys.executable, "-c", SCRIPT, root, DIGEST, str(begun)])
    try:
        limit = time.monotonic() + 120
        while not begun.exists():
            assert trainer.poll() is None
            assert time.monotonic() < limit
            time.sleep(0.05)
        assert on_disk.prunable(unused_days=0, unfinished=True) == []
        entry = listed(on_disk)
        assert entry.state == "training"
        assert on_disk.remove(entry) is False
        assert entry.place.join("vqgan", "checkpoints", "1").exists()
        trainer.kill()
        trainer.wait()
        # Of a process that has ended the claim is free at once.
        (chosen,) = on_disk.prunable(unused_days=0, unfinished=True)
        assert on_disk.remove(chosen) is True
        assert not entry.place.exists()
    finally:
        trainer.kill()
        trainer.wait()


def test_a_claim_of_the_same_number_is_another_s(on_disk: StageStore) -> None:
    """After a stage was deleted its claims begin with 1 again."""
    folder = on_disk.place("vqgan", DIGEST).join("claims")
    lost = Claims(folder, stale=0.2).acquire(lambda: False, lambda _: None)
    assert lost is not None
    lost._over.set()
    lost._thread.join()
    lost._over = threading.Event()
    # A machine elsewhere, which has gone silent.
    folder.join("000001.beat").write_bytes_atomic(b'{"state": "working"}')
    provide(on_disk)
    assert on_disk.remove(listed(on_disk)) is True
    held = Claims(folder).acquire(lambda: False, lambda _: None)
    assert held is not None
    assert held.number == lost.number
    with held:
        refused(lost.check, match="took over")
        lost._run()
        with lost:
            pass
        held.check()
        assert Claims(folder).is_held()


TIMES = ["0", "-1e308", "9e99", "NaN", '"now"', "null"]


@pytest.mark.parametrize("told", TIMES)
@pytest.mark.parametrize("age", [0.0, YEAR], ids=["new", "a year old"])
def test_the_time_that_a_machine_tells_counts_nothing(
    on_disk: StageStore, told: str, age: float
) -> None:
    place = provide(on_disk)
    place.join("uses", "a.json").write_bytes_atomic(b'{"run": "a", "time": %s}' % told.encode())
    for sign in Path(place.path).rglob("*.beat"):
        sign.write_text(f'{{"state": "working", "time": {told}, "process": null}}')
    for file in Path(place.path).rglob("*"):
        os.utime(file, (time.time() - age, time.time() - age))
    chosen = on_disk.prunable(unused_days=30, unfinished=False)
    assert len(chosen) == (1 if age else 0)


def test_where_no_store_is_none_is_made(tmp_path: Path) -> None:
    assert (
        StageStore(open_location(tmp_path / "typo")).prunable(unused_days=0, unfinished=True) == []
    )
    assert list(tmp_path.iterdir()) == []
