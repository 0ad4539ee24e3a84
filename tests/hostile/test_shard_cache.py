"""The cache of shards owns only its copies, heals them from the store, and ends no run."""

import fcntl
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty_store import FaultyStore, delay, garble
from hostile.datasets import forge, packed_noise
from hostile.limits import files_below

from qdmr_ray.data.format import cache
from qdmr_ray.data.format.manifest import read_manifest
from qdmr_ray.data.format.reader import BrokenRecordError, Record, RecordReader
from qdmr_ray.errors import QdmrError
from qdmr_ray.storage import open_location

ROOM = 10**6


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    return packed_noise(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def put(store: FaultyStore, packed: Path, name: str = "packed") -> str:
    for file in packed.iterdir():
        store.put(f"{name}/{file.name}", file.read_bytes())
    return f"s3://{store.bucket}/{name}"


@pytest.fixture
def uri(packed: Path, faulty_store: FaultyStore) -> str:
    return put(faulty_store, packed)


def names(packed: Path) -> dict[str, str]:
    """The files' names by what they are."""
    found = read_manifest(open_location(packed)).set("test")
    return {"index": found.index.file, "shard": found.shards[0].file, "next": found.shards[1].file}


def open_reader(uri: str, folder: Path, **options: Any) -> RecordReader:
    return RecordReader(uri, cache_bytes=ROOM, cache_folder=folder, **options)


def records(reader: RecordReader) -> list[bytes]:
    def pixels(record: Record) -> bytes:
        assert record.ground_truth is not None
        return record.image.tobytes() + record.ground_truth.tobytes()

    return [pixels(reader.read("test", i)) for i in range(reader.count("test"))]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == cache.__name__]


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def fill(uri: str, packed: Path, folder: Path) -> RecordReader:
    """Reads everything until all files are copied."""
    reader = open_reader(uri, folder)
    expected = records(RecordReader(str(packed)))
    assert records(reader) == expected
    until(lambda: all(is_copied(packed, folder, name) for name in names(packed).values()))
    return reader


def is_copied(packed: Path, folder: Path, name: str) -> bool:
    copy, marker = folder / name, folder / f".tmp-{name}.lock"
    whole = copy.is_file() and copy.read_bytes() == (packed / name).read_bytes()
    return whole and len(marker.read_bytes()) == 64


def fetched(store: FaultyStore, name: str) -> int:
    """How often the whole file was asked for."""
    asked = [r for r in store.requests if r.path.endswith(name) and r.method == "GET"]
    return sum(request.range == "bytes=0-" for request in asked)


def flip(file: Path) -> None:
    """Changes every byte in place, as a bad disk does, so that a mapping of the file sees it."""
    data = bytes(byte ^ 1 for byte in file.read_bytes())
    with open(file, "r+b") as handle:
        handle.write(data)


def as_link_to_nothing(file: Path) -> None:
    file.unlink()
    file.symlink_to("nowhere")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "other bytes": flip,
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "cut off": lambda file: os.truncate(file, file.stat().st_size - 1),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"x"),
    "empty": lambda file: os.truncate(file, 0),
    "deleted": Path.unlink,
    "a link to nothing": as_link_to_nothing,
}
KINDS = ["index", "shard"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_copy_is_made_again(
    packed: Path,
    uri: str,
    folder: Path,
    faulty_store: FaultyStore,
    kind: str,
    damage: Callable[[Path], object],
) -> None:
    fill(uri, packed, folder)
    damage(folder / names(packed)[kind])
    faulty_store.heal()
    reader = open_reader(uri, folder)
    assert records(reader) == records(RecordReader(str(packed)))
    # Reading asks for the shard; the thread may need a moment.
    assert records(reader)
    until(lambda: is_copied(packed, folder, names(packed)[kind]))
    assert fetched(faulty_store, names(packed)[kind]) == 1
    faulty_store.heal()
    assert records(open_reader(uri, folder)) == records(RecordReader(str(packed)))
    assert faulty_store.count(path=r"parquet|arrow") == 0


def test_a_copy_that_is_damaged_again_and_again_is_read_from_the_store(
    packed: Path, uri: str, folder: Path, faulty_store: FaultyStore
) -> None:
    shard = names(packed)["shard"]
    reader = fill(uri, packed, folder)
    faulty_store.heal()
    expected = records(RecordReader(str(packed)))
    for _ in range(4):
        reader._checked["test", False][:] = False
        flip(folder / shard)
        assert records(reader) == expected
        assert records(reader) == expected
        until(lambda: reader._cache is not None and reader._cache._queue.empty())
    assert fetched(faulty_store, shard) <= 2


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_that_are_wrong_on_arrival_are_not_kept(
    packed: Path, uri: str, folder: Path, faulty_store: FaultyStore, kind: str
) -> None:
    name = names(packed)[kind]
    if kind == "shard":
        open_reader(uri, folder).index("test")
        faulty_store.heal()
        shards = read_manifest(open_location(packed)).set("test").shards
        kept = cache.ShardCache(open_location(uri), shards, folder, ROOM)
        faulty_store.fail(garble(), times=1, method="GET", path=name)
        kept.path(name)
        until(lambda: is_copied(packed, folder, name))
    else:
        faulty_store.fail(garble(), times=1, method="GET", path=name)
        open_reader(uri, folder).index("test")
        assert is_copied(packed, folder, name)
    assert fetched(faulty_store, name) == 2


@pytest.mark.parametrize("copied", [True, False], ids=["copied before", "not copied"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_store_is_blamed_only_for_its_own_bytes(
    packed: Path, uri: str, folder: Path, faulty_store: FaultyStore, kind: str, copied: bool
) -> None:
    name = names(packed)[kind]
    if copied:
        fill(uri, packed, folder)
        flip(folder / name)
    flip(packed / name)
    faulty_store.put(f"packed/{name}", (packed / name).read_bytes())
    with pytest.raises(QdmrError, match=rf"^{uri}/{name}: .*pack the dataset again") as caught:
        records(open_reader(uri, folder))
    assert str(caught.value).isprintable()
    assert isinstance(caught.value, BrokenRecordError) == (kind == "shard")


def as_folder(file: Path) -> None:
    file.mkdir()
    (file / "mine").write_text("mine")


FOREIGN: dict[str, Callable[[Path], object]] = {
    "a file": lambda file: file.write_bytes(b"mine"),
    "an empty file": Path.touch,
    "a folder": as_folder,
    "a pipe": os.mkfifo,
    "a link to a file": lambda file: file.symlink_to("../mine"),
    "a link to nothing": lambda file: file.symlink_to("../nothing"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN.keys())
def test_somebody_else_s_file_in_the_place_of_a_copy_stays(
    packed: Path,
    uri: str,
    folder: Path,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    make: Callable[[Path], object],
) -> None:
    (folder / "../mine").write_bytes(b"mine")
    place = folder / names(packed)[kind]
    make(place)
    inode, before = place.lstat().st_ino, files_below(folder)
    reader = open_reader(uri, folder)
    expected = records(RecordReader(str(packed)))
    assert records(reader) == expected
    # The shard is asked for first.
    until(lambda: is_copied(packed, folder, names(packed)["next"]))
    assert records(reader) == expected
    assert (folder / "../mine").read_bytes() == b"mine"
    assert not (folder / "../nothing").exists()
    assert place.lstat().st_ino == inode
    assert before.items() <= files_below(folder).items()
    (warning,) = warnings(caplog)
    assert warning.startswith(f"{place}: is no copy that qdmr made")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN.keys())
def test_whatever_stands_in_the_place_of_a_marker_the_data_is_read(
    packed: Path, uri: str, folder: Path, kind: str, make: Callable[[Path], object]
) -> None:
    (folder / "../mine").write_bytes(b"mine")
    make(folder / f".tmp-{names(packed)[kind]}.lock")
    reader = open_reader(uri, folder)
    for _ in range(2):
        assert records(reader) == records(RecordReader(str(packed)))
    assert (folder / "../mine").read_bytes() == b"mine"
    assert not (folder / "../nothing").exists()


def test_only_own_copies_make_room(packed: Path, uri: str, folder: Path) -> None:
    foreign = ["thesis.parquet", "source-000000-0123456789abcdef.parquet", ".tmp-x.parquet"]
    own = {f"old{i}.parquet": i for i in range(3)}
    for name in (*foreign, *own):
        (folder / name).write_bytes(bytes(ROOM))
    for name, age in own.items():
        (folder / f".tmp-{name}.lock").touch()
        os.utime(folder / name, (age, age))
    # What a process that was killed has left.
    (folder / ".tmp-killed.parquet.lock").touch()
    (folder / ".tmp-killed.parquet.part").write_bytes(b"half")
    with open(folder / ".tmp-old0.parquet.lock") as held:
        # Another process is making this copy.
        fcntl.flock(held, fcntl.LOCK_EX)
        fill(uri, packed, folder)
    left = {file.name for file in folder.iterdir() if not file.name.startswith(".tmp-test-")}
    copies = {"old0.parquet", ".tmp-old0.parquet.lock", *names(packed).values()}
    assert left == {*foreign, *copies}


def test_what_a_killed_process_leaves_is_replaced(packed: Path, uri: str, folder: Path) -> None:
    for name in names(packed).values():
        (folder / f".tmp-{name}.lock").touch()
        (folder / f".tmp-{name}.part").write_bytes(b"half")
    fill(uri, packed, folder)
    assert not list(folder.glob("*.part"))


def test_copies_of_an_earlier_version_are_taken_over(
    packed: Path, uri: str, folder: Path, faulty_store: FaultyStore
) -> None:
    for name in names(packed).values():
        (folder / f".tmp-{name}.lock").touch()
        (folder / name).write_bytes((packed / name).read_bytes())
    fill(uri, packed, folder)
    assert sum(fetched(faulty_store, name) for name in names(packed).values()) == 0


def renamed(packed: Path, name: str) -> Path:
    """The dataset with its first shard under another name."""
    (packed / names(packed)["shard"]).rename(packed / name)

    def change(values: dict[str, Any]) -> None:
        values["sets"]["test"]["shards"][0]["file"] = name

    return forge(packed, manifest=change)


def test_datasets_with_a_shard_of_one_name_get_their_own_pixels(
    packed: Path, uri: str, folder: Path, tmp_path: Path, faulty_store: FaultyStore
) -> None:
    fill(uri, packed, folder)
    other = packed_noise(tmp_path / "other", names=("x", "y", "z"))
    flip(other / names(other)["shard"])
    theirs = renamed(other, names(packed)["shard"])
    sizes = [(place / names(packed)["shard"]).stat().st_size for place in (packed, theirs)]
    assert sizes[0] == sizes[1]
    reader = open_reader(put(faulty_store, theirs, "other"), folder)
    # Its checksums are of other bytes than its shard's: read as it is, never from the first copy.
    with pytest.raises(BrokenRecordError, match=rf"^s3://{faulty_store.bucket}/other/"):
        reader.read("test", 0)
    assert records(open_reader(uri, folder)) == records(RecordReader(str(packed)))


def test_no_name_of_a_shard_makes_a_stranger_s_file_a_copy(
    packed: Path, folder: Path, faulty_store: FaultyStore
) -> None:
    (folder / "thesis.parquet").write_bytes(bytes(ROOM))
    forged = renamed(packed, ".tmp-thesis.parquet.lock")
    reader = open_reader(put(faulty_store, forged), folder)
    for _ in range(2):
        assert records(reader) == records(RecordReader(str(forged)))
    until(lambda: is_copied(forged, folder, names(forged)["next"]))
    assert not (folder / ".tmp-thesis.parquet.lock").exists()


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond a few bytes: the error of a full disk, but for its number."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def a_file(folder: Path) -> None:
    folder.rmdir()
    folder.write_bytes(b"mine")


def below_a_file(folder: Path) -> None:
    folder.rmdir()
    folder.symlink_to("images/a.png/cache")


def link_to_itself(folder: Path) -> None:
    folder.rmdir()
    folder.symlink_to("cache")


UNUSABLE = {"a file": a_file, "below a file": below_a_file, "a link to itself": link_to_itself}


@pytest.mark.parametrize("spoil", UNUSABLE.values(), ids=UNUSABLE.keys())
def test_without_a_folder_the_store_is_read_with_one_warning(
    packed: Path,
    uri: str,
    folder: Path,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[Path], None],
) -> None:
    spoil(folder)
    assert_read_with_one_warning(packed, uri, folder, caplog)


def test_on_a_full_disk_the_store_is_read_with_one_warning(
    packed: Path,
    uri: str,
    folder: Path,
    small_files: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert_read_with_one_warning(packed, uri, folder, caplog)
    assert all(not content for content in files_below(folder).values())


def test_on_a_nearly_full_disk_no_shard_is_copied(
    packed: Path,
    uri: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    usage = type(shutil.disk_usage(folder))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 96 * 10**7, 4 * 10**7))
    assert_read_with_one_warning(packed, uri, folder, caplog)
    assert not list(folder.glob("*.parquet"))


def test_a_large_disk_takes_copies_until_gigabytes_are_left(
    packed: Path, uri: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type(shutil.disk_usage(folder))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**13, 10**13 - 10**10, 10**10))
    assert records(open_reader(uri, folder)) == records(RecordReader(str(packed)))
    until(lambda: len(list(folder.glob("*.parquet"))) > 0)


def assert_read_with_one_warning(
    packed: Path, uri: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        reader = open_reader(uri, folder)
        for _ in range(2):
            assert records(reader) == records(RecordReader(str(packed)))
        until(lambda: len(warnings(caplog)) > 0)
        assert records(reader)
    (warning,) = warnings(caplog)
    assert warning.startswith(f"{folder}: no more copies are kept here (")
    assert "data.cache_folder" in warning
    assert warning.isprintable()


SCRIPT = """
import sys, time
from pathlib import Path
from qdmr_ray.data.format.reader import RecordReader
uri, folder = sys.argv[1:]
reader = RecordReader(uri, cache_bytes=10**6, cache_folder=Path(folder))
found = reader.manifest.set("test")
while not all((Path(folder) / shard.file).exists() for shard in found.shards):
    for i in range(found.images):
        reader.read("test", i)
    time.sleep(0.02)
"""


@pytest.mark.slow
def test_of_two_processes_that_fill_a_cache_one_is_killed(
    packed: Path, uri: str, folder: Path, faulty_store: FaultyStore
) -> None:
    shard = names(packed)["shard"]
    lock = folder / f".tmp-{shard}.lock"
    # Only whole files are late, so that the first process is still copying when it is killed.
    open_reader(uri, folder).index("test")
    reader = RecordReader(uri)
    found = reader.manifest.set("test")
    kept = cache.ShardCache(open_location(uri), found.shards, folder, ROOM)
    faulty_store.fail(delay(60), times=1, method="GET", path=shard)
    script = f"""
from pathlib import Path
from qdmr_ray.data.format.cache import ShardCache
from qdmr_ray.data.format.manifest import read_manifest
from qdmr_ray.storage import open_location
place = open_location({uri!r})
shards = read_manifest(place).set("test").shards
ShardCache(place, shards, Path({str(folder)!r}), {ROOM}).fetch(shards[0])
"""
    first = subprocess.Popen([sys.executable, "-c", script])
    second = None
    try:
        until(lock.exists)
        second = subprocess.Popen([sys.executable, "-c", SCRIPT, uri, str(folder)])
        # The second goes on reading, and waits for the first with its copy alone.
        asked = f"/{faulty_store.bucket}/packed/{shard}"
        until(lambda: any(r.path == asked for r in faulty_store.requests))
        assert kept.path(shard) is None
        first.send_signal(signal.SIGKILL)
        assert second.wait(60) == 0
        assert all(is_copied(packed, folder, name) for name in names(packed).values())
        assert not list(folder.glob("*.part"))
        np.testing.assert_array_equal(
            open_reader(uri, folder).read("test", 0).image,
            RecordReader(str(packed)).read("test", 0).image,
        )
    finally:
        for process in (first, second):
            if process is not None:
                process.kill()
                process.wait()
