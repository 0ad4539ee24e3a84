"""One holder at a time, on a disk and in a store; the dead are replaced, the living are not."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qdmr_ray.errors import QdmrError
from qdmr_ray.storage import Location, open_location
from qdmr_ray.storage.claims import Claim, Claims

if TYPE_CHECKING:
    from faulty_store import FaultyStore

QUICK = {"beat": 0.05, "stale": 0.4}


def never() -> bool:
    return False


@pytest.fixture(params=["disk", "store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    if request.param == "disk":
        return open_location(tmp_path / "claims")
    store: FaultyStore = request.getfixturevalue("faulty_store")
    request.getfixturevalue("monkeypatch").setenv("AWS_ENDPOINT_URL", store.endpoint)
    return open_location(f"s3://{store.bucket}/claims")


@pytest.fixture(autouse=True)
def _none_held_on(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A claim that a test keeps would go on showing signs of life, to a store that is gone."""
    claims: list[Claim] = []
    begin = Claim.__init__

    def kept(claim: Claim, *arguments: object) -> None:
        begin(claim, *arguments)
        claims.append(claim)

    monkeypatch.setattr(Claim, "__init__", kept)
    yield
    for claim in claims:
        claim._over.set()
        claim._thread.join()


def acquired(folder: Location, say: list[str] | None = None) -> Claim:
    heard = [] if say is None else say
    claim = Claims(folder, **QUICK).acquire(never, heard.append)
    assert claim is not None
    return claim


def test_a_file_is_made_once(folder: Location) -> None:
    assert folder.join("a.json").create(b"first")
    assert not folder.join("a.json").create(b"second")
    assert folder.join("a.json").read_bytes() == b"first"
    assert [place.name for place in folder.list()] == ["a.json"]


def test_only_one_of_many_makes_it(folder: Location) -> None:
    made: list[int] = []
    start = threading.Barrier(6)

    def run(number: int) -> None:
        start.wait()
        if folder.join("a.json").create(str(number).encode()):
            made.append(number)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert folder.join("a.json").read_bytes() == str(made[0]).encode()


def test_who_waits_gets_it_when_it_is_released(folder: Location) -> None:
    said: list[str] = []
    order: list[str] = []

    def wait() -> None:
        with acquired(folder, said):
            order.append("second")

    with acquired(folder):
        waiting = threading.Thread(target=wait)
        waiting.start()
        # Longer than it takes to look dead: signs of life are what keeps the claim.
        time.sleep(3 * QUICK["stale"])
        order.append("first")
    waiting.join(timeout=10)
    assert order == ["first", "second"]
    assert len(said) == 1
    assert "waiting for process" in said[0]


def test_a_holder_without_a_sign_of_life_is_replaced(folder: Location) -> None:
    folder.join("000001.json").create(json.dumps({"owner": "process 1 on gone"}).encode())
    folder.join("000001.beat").write_bytes_atomic(b'{"state": "working", "time": 5}')
    said: list[str] = []
    began = time.monotonic()
    with acquired(folder, said):
        assert time.monotonic() - began >= QUICK["stale"]
        holder = Claims(folder).holder()
        assert holder is not None
        assert holder["time"] > 5
    assert said == ["waiting for process 1 on gone"]
    assert Claims(folder).holder() is None


def test_a_claim_that_never_showed_life_is_replaced(folder: Location) -> None:
    folder.join("000007.json").create(b"half of a cla")
    with acquired(folder):
        assert folder.join("000008.json").exists()


def test_what_is_finished_meanwhile_needs_no_claim(folder: Location) -> None:
    done = threading.Event()
    with acquired(folder):
        threading.Timer(0.2, done.set).start()
        assert Claims(folder, **QUICK).acquire(done.is_set, lambda _: None) is None


def test_a_place_that_cannot_be_written_is_named(
    faulty_store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", faulty_store.endpoint)
    file = open_location("s3://no-such-bucket/claims").join("a.json")
    with pytest.raises(QdmrError, match=r"no-such-bucket/claims/a\.json: .* has no bucket"):
        file.create(b"x")


def test_a_holder_that_has_ended_is_replaced_at_once(folder: Location) -> None:
    claims = Claims(folder, beat=0.05, stale=60)
    script = (
        "import os, sys; from qdmr_ray.storage.claims import Claims; "
        "from qdmr_ray.storage import open_location; "
        f"Claims(open_location({folder.uri!r})).acquire(lambda: False, print); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9
    began = time.monotonic()
    claim = claims.acquire(lambda: False, lambda _: None)
    assert claim is not None
    assert time.monotonic() - began < 10
    with claim:
        pass


def test_a_process_elsewhere_is_waited_for(folder: Location) -> None:
    claim = Claims(folder, beat=60).acquire(lambda: False, lambda _: None)
    assert claim is not None
    sign = folder.join("000001.beat")
    text = json.loads(sign.read_bytes())
    # The same number of a process on a machine that was started another time.
    text["process"] |= {"boot": "elsewhere", "started": 1}
    sign.write_bytes_atomic(json.dumps(text).encode())
    waited = Claims(folder, **QUICK)
    began = time.monotonic()
    assert waited.acquire(lambda: False, lambda _: None) is not None
    assert time.monotonic() - began >= QUICK["stale"]


def test_where_nothing_can_be_written_a_claim_is_still_released(
    folder: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = Claims(folder, beat=60).acquire(lambda: False, lambda _: None)
    assert claim is not None

    def full(*_: object) -> None:
        raise QdmrError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Location, "write_bytes_atomic", full)
        with claim:
            pass
    began = time.monotonic()
    assert Claims(folder, stale=60).acquire(lambda: False, lambda _: None) is not None
    assert time.monotonic() - began < 10
