"""Of two packings into one folder the second is refused; what stands there is never mixed."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty_store import FaultyStore
from hostile.limits import files_below, outcome, refused
from PIL import Image

from qdmr_ray.data.format.verify import verify
from qdmr_ray.data.packing import resume
from qdmr_ray.data.packing.pack import PackSettings, pack
from qdmr_ray.errors import QdmrError
from qdmr_ray.photographs.decode import write_png
from qdmr_ray.storage import Location, open_location
from qdmr_ray.storage.claims import Claim, Claims

SETTINGS = PackSettings(target_images="real", shard_records=1)
HOLDER = b'{"owner": "process 7 on another-machine"}'


def photographs(root: Path, seed: int) -> Path:
    random = np.random.default_rng(seed)
    (root / "real").mkdir(parents=True)
    for i in range(3):
        pixels = random.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        write_png(root / "real" / f"{i}.png", pixels)
    return root


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return photographs(tmp_path / "source", 0)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def undisturbed(source: Path, tmp_path: Path) -> dict[str, bytes]:
    return packed(source, tmp_path / "undisturbed")


def packed(source: Path, out: Path) -> dict[str, bytes]:
    pack(source, str(out), settings=SETTINGS)
    return files_below(out)


def claims_of(folder: Location | Path) -> Location:
    place = open_location(folder) if isinstance(folder, Path) else folder
    return place.join("unfinished", "claims")


def acquired(folder: Location) -> Claim:
    claim = Claims(folder, traceless=True).acquire(lambda: False, print)
    assert claim is not None
    return claim


# Each shard that was written is said, and the next begins when the test allows it.
SCRIPT = """
import sys
from pathlib import Path
import qdmr_ray.data.packing.pack as packing
from qdmr_ray.errors import QdmrError
write = packing.write_and_note
def write_and_wait(folder, may_write, job):
    found = write(folder, may_write, job)
    print(job.name, flush=True)
    sys.stdin.readline()
    return found
packing.write_and_note = write_and_wait
try:
    settings = packing.PackSettings(target_images="real", shard_records=1)
    packing.pack(Path(sys.argv[1]), sys.argv[2], settings=settings)
except QdmrError as error:
    sys.exit(str(error))
"""


def start(source: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(source), str(out)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(command, text=True, **pipes)


def first_shard(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.slow
def test_of_two_processes_one_is_refused_by_name(source: Path, out: Path, tmp_path: Path) -> None:
    other = photographs(tmp_path / "other", 1)
    processes = [start(source, out), start(other, out)]
    try:
        # One of them says its first shard, the other one ends.
        lines = [first_shard(process) for process in processes]
        holder = lines.index("target-000000")
        refused_one, at_work = processes[1 - holder], processes[holder]
        _, said = refused_one.communicate(timeout=60)
        owner = f"process {at_work.pid} on {socket.gethostname()}"
        assert refused_one.returncode == 1
        assert said.startswith(f"{out}: {owner} is packing into this folder; let it finish, or")
        assert len(said.splitlines()) == 1
        # Here, too, before anything is written.
        before = files_below(out)
        refused(lambda: packed(other, out), match=rf"^{out}: {owner} is packing .* --out")
        assert files_below(out) == before
        _, said = at_work.communicate("\n" * 9, timeout=60)
        assert (at_work.returncode, said) == (0, "")
        expected = packed([source, other][holder], tmp_path / "undisturbed")
        assert files_below(out) == expected
        assert not (out / "unfinished").exists()
        assert verify(str(out)) == ()
        # And now the folder is free.
        packed(other, out)
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.slow
def test_after_a_kill_the_next_one_goes_on_at_once(
    source: Path, out: Path, undisturbed: dict[str, bytes]
) -> None:
    process = start(source, out)
    try:
        assert first_shard(process) == "target-000000"
    finally:
        process.kill()
        process.communicate()
    (shard,) = out.glob("*.parquet")
    written = shard.stat().st_mtime_ns
    assert (out / "unfinished" / "claims" / "000001.json").exists()
    # Far less than the patience with a silent process.
    assert outcome(lambda: packed(source, out)).value == undisturbed
    assert shard.stat().st_mtime_ns == written
    assert not (out / "unfinished").exists()


def test_a_holder_on_another_machine_is_known_by_its_signs_of_life(
    source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QDMR_PATIENCE_CLAIM_STALE", "0.4")
    folder, over = claims_of(out), threading.Event()
    folder.join("000001.json").write_bytes_atomic(HOLDER)

    def beat() -> None:
        count = 0
        while not over.wait(0.05):
            count += 1
            sign = f'{{"state": "working", "count": {count}, "time": 5}}'
            folder.join("000001.beat").write_bytes_atomic(sign.encode())

    holder = threading.Thread(target=beat)
    holder.start()
    try:
        with pytest.raises(QdmrError, match=rf"^{out}: process 7 on another-machine is packing"):
            packed(source, out)
    finally:
        over.set()
        holder.join()


LEFT = {
    "a silent one": {"000001.json": HOLDER, "000001.beat": b'{"state": "working", "time": 5}'},
    "one without a sign": {"000001.json": HOLDER},
    "one that ended": {"000001.json": HOLDER, "000001.beat": b'{"state": "released"}'},
    "several": {"000001.json": HOLDER, "000002.json": HOLDER, "000002.beat": b"{}"},
    "a sign without a claim": {"000001.beat": b'{"state": "working", "time": 5}'},
    "half a file": {"000001.json": b'{"own', "000001.beat": b"\xff", ".tmp-a-000002.json": b""},
    "a name that a terminal would obey": {"000001.json": b'{"owner": "\\u001b[31mx"}'},
}


@pytest.mark.parametrize("files", LEFT.values(), ids=LEFT.keys())
def test_what_a_holder_left_is_taken_over_and_cleared(
    source: Path,
    out: Path,
    undisturbed: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    files: dict[str, bytes],
) -> None:
    monkeypatch.setenv("QDMR_PATIENCE_CLAIM_STALE", "0.1")
    for name, content in files.items():
        claims_of(out).join(name).write_bytes_atomic(content)
    assert packed(source, out) == undisturbed
    assert not (out / "unfinished").exists()
    assert all(line.isprintable() for line in capsys.readouterr().out.splitlines())


@pytest.mark.parametrize("before", [True, False], ids=["dataset there", "new folder"])
@pytest.mark.parametrize("at", ["first shard", "last shard"])
def test_who_lost_the_claim_writes_no_manifest_and_deletes_nothing(
    source: Path,
    out: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: bool,
    at: str,
) -> None:
    if before:
        packed(photographs(tmp_path / "other", 1), out)
    old = files_below(out)
    write, theirs = resume.write_shard, "target-000000-0123456789abcdef.parquet"

    def write_and_lose(job: resume.ShardJob, *rest: Any) -> object:
        found = write(job, *rest)
        if at == "first shard" or job.number == 2:
            claims_of(out).join("000002.json").create(HOLDER)
            (out / theirs).write_bytes(b"theirs")
        if at == "first shard":
            raise QdmrError("the disk is full")
        return found

    monkeypatch.setattr(resume, "write_shard", write_and_lose)
    # Over a dataset there is nothing to clear after an error.
    cleared = at == "last shard" or not before
    refused(lambda: packed(source, out), match="took over" if cleared else "the disk is full")
    left = files_below(out)
    assert old.items() <= left.items()
    assert left[theirs] == b"theirs"
    assert left["unfinished/claims/000002.json"] == HOLDER
    assert ("manifest.json" in left) == before


FOREIGN = [
    "notes.txt",
    "thesis.parquet",
    "source.arrow",
    "target-000000.parquet",
    "target-000000-0123.parquet",
    "unfinished/notes.txt",
    "unfinished/target.arrow",
    "unfinished/folder/target-000000.arrow",
    "unfinished/claims/mine.json",
    "unfinished/claims/0000012345.json",
]


@pytest.mark.parametrize("ends", ["well", "badly"])
@pytest.mark.parametrize("name", FOREIGN)
def test_somebody_else_s_file_in_the_folder_stays(
    source: Path, out: Path, undisturbed: dict[str, bytes], name: str, ends: str
) -> None:
    (out / name).parent.mkdir(parents=True)
    (out / name).write_bytes(b"mine")
    if ends == "well":
        assert packed(source, out) == undisturbed | {name: b"mine"}
    else:
        break_first(source)
        refused(lambda: packed(source, out), match=r"0\.jpg: unreadable image")
        assert files_below(out) == {name: b"mine"}


def break_first(source: Path) -> None:
    """Breaks a photograph in a way that only decoding shows: it becomes half of a JPEG."""
    first = source / "real" / "0.png"
    broken = first.with_suffix(".jpg")
    Image.open(first).save(broken)
    first.unlink()
    os.truncate(broken, broken.stat().st_size * 3 // 4)


def test_a_packing_that_fails_at_once_leaves_no_folder(source: Path, out: Path) -> None:
    break_first(source)
    refused(lambda: packed(source, out), match=r"0\.jpg: unreadable image")
    assert not out.exists()


UNWRITABLE: dict[str, Callable[[Path], object]] = {
    "a file": lambda out: out.write_bytes(b"mine"),
    "a link to itself": lambda out: out.symlink_to("out"),
    "below a file": lambda out: out.symlink_to("source/real/0.png/x"),
}


@pytest.mark.parametrize("spoil", UNWRITABLE.values(), ids=UNWRITABLE.keys())
def test_a_place_for_no_folder_is_refused(
    source: Path, out: Path, spoil: Callable[[Path], object]
) -> None:
    spoil(out)
    before = out.lstat().st_ino
    refused(lambda: packed(source, out), match=rf"^{out}\b.*(check the path|cannot be)")
    assert out.lstat().st_ino == before


def test_a_folder_in_a_store_is_claimed_likewise(
    source: Path, undisturbed: dict[str, bytes], faulty_store: FaultyStore
) -> None:
    uri = f"s3://{faulty_store.bucket}/packed"
    with acquired(claims_of(open_location(uri))):
        here = f"process {os.getpid()} on {socket.gethostname()}"
        with pytest.raises(QdmrError, match=rf"^{uri}: {here} is packing into this folder"):
            pack(source, uri, settings=SETTINGS)
        assert all("/unfinished/claims/" in key for key in faulty_store.stored())
    pack(source, uri, settings=SETTINGS)
    stored = {key.removeprefix("packed/"): data for key, data in faulty_store.stored().items()}
    assert stored == undisturbed


def test_a_claim_that_was_taken_over_clears_nothing(tmp_path: Path) -> None:
    folder = open_location(tmp_path / "claims")
    with acquired(folder):
        folder.join("000002.json").create(HOLDER)
        before = files_below(tmp_path)
    assert files_below(tmp_path) == before
