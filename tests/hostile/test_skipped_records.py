"""``data.skip_broken`` passes over records whose bytes are wrong, and over nothing else."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from faulty_store import Fault, FaultyStore, answer, cut, drop, garble, slow_down
from hostile.limits import refused

from qdmr_ray.data.format.manifest import read_manifest
from qdmr_ray.data.format.reader import BrokenRecordError
from qdmr_ray.data.packing.pack import PackSettings, pack
from qdmr_ray.data.streaming.stream import Batch, DataSettings, InProcessStream
from qdmr_ray.errors import QdmrError
from qdmr_ray.photographs.decode import write_png
from qdmr_ray.storage import open_location, retry

RECORDS = 6


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    (tmp_path / "real").mkdir()
    for i in range(RECORDS):
        pixels = random.integers(0, 256, (24, 40, 3), dtype=np.uint8)
        write_png(tmp_path / "real" / f"{i}.png", pixels)
    settings = PackSettings(target_images="real", shard_records=2)
    pack(tmp_path, str(tmp_path / "packed"), settings=settings)
    return tmp_path / "packed"


@pytest.fixture
def stored(packed: Path, faulty_store: FaultyStore, monkeypatch: pytest.MonkeyPatch) -> str:
    """The dataset in a store, with which there is little patience."""
    monkeypatch.setattr(retry, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(retry, "FIRST_PAUSE_SECONDS", 0.01)
    for file in packed.iterdir():
        faulty_store.put(f"packed/{file.name}", file.read_bytes())
    return f"s3://{faulty_store.bucket}/packed"


def stream(path: str | Path) -> list[Batch]:
    found = InProcessStream(
        DataSettings(path=str(path), skip_broken=True, cache_bytes=0),
        batch_size=4,
        crop=16,
        same_place=False,
        sets=("target",),
        seed=3,
        start_iteration=0,
        end_iteration=6,
    )
    return list(found)


def shard(folder: Path) -> Path:
    """The one with the records 2 and 3."""
    return folder / read_manifest(open_location(folder)).set("target").shards[1].file


def samples(batches: list[Batch]) -> list[bytes]:
    return [np.asarray(batch[name]).tobytes() for batch in batches for name in sorted(batch)]


LASTING: dict[str, Fault] = {
    "too many requests": slow_down(),
    "an error of a gateway": answer(502),
    "an error of the store": answer(500, "InternalError", "We encountered an internal error."),
    "connections closed": drop(),
    "answers cut off": cut(),
    "answers cut off at once": cut(0),
    "rights taken away": answer(403, "AccessDenied", "Access Denied"),
    "credentials expired": answer(400, "ExpiredToken", "The provided token has expired."),
    "shard gone": answer(404, "NoSuchKey", "The specified key does not exist."),
    "bucket gone": answer(404, "NoSuchBucket", "The specified bucket does not exist"),
    "another region": answer(301, "PermanentRedirect", "Use the specified endpoint."),
    "a page of a proxy": Fault(status=200, document=b"<html>log in</html>"),
    "nothing": Fault(status=200),
}


@pytest.mark.parametrize("fault", LASTING.values(), ids=LASTING.keys())
def test_a_failing_store_ends_the_run_and_proves_nothing_about_records(
    packed: Path, stored: str, faulty_store: FaultyStore, fault: Fault
) -> None:
    faulty_store.fail(fault, method="GET", path=shard(packed).name)
    with pytest.raises(QdmrError, match=shard(packed).name) as caught:
        stream(stored)
    assert not isinstance(caught.value, BrokenRecordError)
    assert str(caught.value).isprintable()


PASSING = {
    "too many requests": slow_down(),
    "connections closed": drop(),
    "answers cut off": cut(),
    "bytes wrong on their way": garble(),
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING.keys())
def test_a_store_that_fails_now_and_then_changes_no_sample(
    packed: Path, stored: str, faulty_store: FaultyStore, fault: Fault
) -> None:
    expected = samples(stream(packed))
    # Once, since wrong bytes twice in a row are what proves a record broken.
    faulty_store.fail(fault, times=1, method="GET", path=shard(packed).name)
    assert samples(stream(stored)) == expected


def flip(data: bytes) -> bytes:
    """Damages both records of a shard."""
    return bytes(byte ^ 1 for byte in data)


WRONG: dict[str, Callable[[bytes], bytes]] = {
    "another byte": flip,
    "cut off": lambda data: data[:-1],
    "longer": lambda data: data + b"x",
    "empty": lambda data: b"",
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG.keys())
def test_what_is_proven_broken_is_passed_over_wherever_it_lies(
    packed: Path, stored: str, faulty_store: FaultyStore, change: Callable[[bytes], bytes]
) -> None:
    planned = np.concatenate([batch["target_index"] for batch in stream(packed)])
    bad = shard(packed)
    bad.write_bytes(change(bad.read_bytes()))
    faulty_store.put(f"packed/{bad.name}", bad.read_bytes())
    found = stream(packed)
    used = np.concatenate([batch["target_index"] for batch in found])
    assert set(planned) == set(range(RECORDS))
    np.testing.assert_array_equal(used, np.where(np.isin(planned, (2, 3)), 4, planned))
    assert samples(stream(stored)) == samples(found)


def as_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def as_link_to_nothing(file: Path) -> None:
    file.unlink()
    file.symlink_to("nowhere")


def as_link_to_itself(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


LOST = {
    "missing": Path.unlink,
    "a folder": as_folder,
    "a link to nothing": as_link_to_nothing,
    "a link to itself": as_link_to_itself,
}


@pytest.mark.parametrize("lose", LOST.values(), ids=LOST.keys())
def test_a_shard_that_is_not_there_ends_the_run(packed: Path, lose: Callable[[Path], None]) -> None:
    lose(shard(packed))
    refused(lambda: stream(packed), match=rf"{shard(packed).name}: .*\(row [01], real/[23]\.png\)")
