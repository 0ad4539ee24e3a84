"""Broken records, a failing store and a small object store: no sample is lost, repeated or late."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from data_executions import wait_until
from faulty_store import FaultyStore, cut, delay, drop, slow_down
from fed import fed_streams, received
from local_ray import local_ray
from ray._private.internal_api import get_memory_info_reply, get_state_from_address

from qdmr_ray.data.format.index import set_index
from qdmr_ray.data.format.manifest import read_manifest
from qdmr_ray.data.packing.pack import PackSettings, pack
from qdmr_ray.data.streaming.stream import (
    Batch,
    DataSettings,
    InProcessStream,
    block_size,
)
from qdmr_ray.errors import QdmrError, SettingsError
from qdmr_ray.photographs.decode import write_png
from qdmr_ray.storage import open_location

CROP, SOURCES, TARGETS = 16, 6, 5
PACKING = PackSettings(
    source_images="aberrated",
    source_ground_truth="clean",
    target_images="real",
    shard_records=3,
)


ARGUMENTS: dict[str, Any] = {
    "batch_size": 4,
    "crop": CROP,
    "same_place": False,
    "sets": ("source", "target"),
    "seed": 3,
    "start_iteration": 0,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise of two sizes: a record that stands in for another may be smaller."""
    root = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for name, count in {"aberrated": SOURCES, "clean": SOURCES, "real": TARGETS}.items():
        (root / name).mkdir()
        for i in range(count):
            shape = (24 + 16 * (i % 2), 40, 3)
            write_png(root / name / f"{i}.png", random.integers(0, 256, shape, dtype=np.uint8))
    return root


@pytest.fixture
def packed(folder: Path, tmp_path: Path) -> Path:
    pack(folder, str(tmp_path / "packed"), settings=PACKING)
    return tmp_path / "packed"


def stream(kind: type, path: str, *, end: int = 12, **changes: Any) -> list[Batch]:
    """``changes`` are settings of the data; four samples a batch."""
    return list(kind(DataSettings(path=path, **changes), **ARGUMENTS, end_iteration=end))


def column(batches: list[Batch], name: str) -> np.ndarray:
    return np.concatenate([np.asarray(batch[name]) for batch in batches])


def flip_byte(folder: Path, set_name: str, record: int, *, ground_truth: bool = False) -> str:
    """Damages one record in its first row; gives the name of its shard."""
    entry = read_manifest(open_location(folder)).set(set_name)
    found = set_index(open_location(folder), entry)[record]
    offset = found.ground_truth_offset if ground_truth else found.image_offset
    assert offset >= 0
    file = folder / entry.shards[record // 3].file
    data = bytearray(file.read_bytes())
    data[offset + 3] ^= 16
    file.write_bytes(data)
    return file.name


def test_a_broken_record_stops_the_stream_by_shard_and_row(packed: Path) -> None:
    name = flip_byte(packed, "source", 4, ground_truth=True)
    with pytest.raises(QdmrError, match=rf"{name}: wrong checksum.*\(row 1, aberrated/4\.png\)"):
        stream(InProcessStream, str(packed))


def test_broken_records_are_passed_over_and_counted_when_a_setting_allows_it(
    packed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = stream(InProcessStream, str(packed))
    flip_byte(packed, "source", 4, ground_truth=True)
    flip_byte(packed, "source", 5)
    flip_byte(packed, "target", 0)
    with caplog.at_level(logging.WARNING):
        found = stream(InProcessStream, str(packed), skip_broken=True)
    for name, broken, instead in (("source", (4, 5), 0), ("target", (0,), 1)):
        planned, used = column(whole, f"{name}_index"), column(found, f"{name}_index")
        hit = np.isin(planned, broken)
        assert hit.any()
        np.testing.assert_array_equal(used[~hit], planned[~hit])
        assert (used[hit] == instead).all()
        skipped = column(found, f"{name}_skipped")
        expected = [max(broken) + 1 - p if p in broken else 0 for p in planned]
        assert skipped.tolist() == expected
        # What stands in is a pair, too: neither half is of the broken record.
        for field in ("source", "ground_truth") if name == "source" else ("target",):
            same = (column(whole, field) == column(found, field)).all(axis=(1, 2, 3))
            np.testing.assert_array_equal(same, ~hit)
    assert sorted(record.message.split("(")[1] for record in caplog.records) == [
        "row 0, real/0.png)",
        "row 1, aberrated/4.png)",
        "row 2, aberrated/5.png)",
    ]


def test_a_set_that_is_all_broken_ends_the_run_even_then(packed: Path) -> None:
    for record in range(TARGETS):
        flip_byte(packed, "target", record)
    with pytest.raises(QdmrError, match="wrong checksum"):
        stream(InProcessStream, str(packed), skip_broken=True)


def test_the_place_in_the_field_of_view_travels_with_the_crop(packed: Path) -> None:
    found = stream(InProcessStream, str(packed), end=400)
    place = column(found, "source_place")
    index = column(found, "source_index")
    assert place.shape == (1600, 2)
    heights = np.where(index % 2, 40, 24)
    corner = place * np.stack([heights, np.full_like(heights, 40)], axis=1) - CROP / 2
    np.testing.assert_allclose(corner, np.rint(corner), atol=1e-4)
    # Uniform over the image: every corner that there is, the first and last included.
    for odd, height in ((0, 24), (1, 40)):
        tops = np.rint(corner[index % 2 == odd, 0]).astype(int)
        assert set(tops) == set(range(height - CROP + 1))
    assert set(np.rint(corner[:, 1]).astype(int)) == set(range(40 - CROP + 1))


def test_the_bound_on_the_object_store_is_kept_or_refused() -> None:
    batch = 4 * 3 * 3 * 256 * 256

    def size(room: int) -> tuple[int, int]:
        settings = DataSettings(path="x", object_store_bytes=room)
        found = block_size(settings, batch_size=4, crop=256, fields=3)
        # The block in use, and those ahead of it.
        assert (found.block + found.ahead) * batch <= room
        return found.block, found.ahead

    assert size(400 * batch) == (32, 352)
    assert size(100 * batch) == (20, 80)
    assert size(5 * batch) == (1, 4)
    assert size(2 * batch) == (1, 1)
    with pytest.raises(SettingsError, match=r"object_store_bytes=4718591 is less than two batches"):
        size(2 * batch - 1)


@pytest.fixture(scope="module")
def small_store() -> Iterator[None]:
    """A Ray whose object store is ten times smaller than the crops of the test below."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in FaultyStore().environment.items():
            patch.setenv(name, value)
        patch.setenv("RAY_free_objects_period_milliseconds", "50")
        with local_ray(object_store=80 * 2**20):
            yield


@pytest.mark.ray
def test_a_dataset_ten_times_the_object_store_streams_within_the_bound(
    small_store: None, tmp_path: Path
) -> None:
    """The samples are 800 MB in all; nothing is spilled, and the bound is never passed."""
    crop, batch_size, bound = 512, 1, 24 * 2**20
    (tmp_path / "real").mkdir()
    random = np.random.default_rng(0)
    for i in range(3):
        pixels = random.integers(0, 256, (600, 700, 3), dtype=np.uint8)
        write_png(tmp_path / f"real/{i}.png", pixels)
    pack(tmp_path, str(tmp_path / "out"), settings=PackSettings(target_images="real"))
    image_bytes = 3 * crop * crop
    iterations = 10 * 80 * 2**20 // image_bytes
    (found,) = fed_streams(
        DataSettings(path=str(tmp_path / "out"), object_store_bytes=bound, batches_per_block=4),
        batch_size=batch_size,
        crop=crop,
        same_place=False,
        sets=("target",),
        seed=0,
        start_iteration=0,
        end_iteration=iterations,
    )
    wait_until(lambda: found.is_fed)
    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    most, count = 0, 0
    for batch in found:
        assert batch["target"].shape == (1, 3, crop, crop)
        count += 1
        if count % 25 == 0:
            used = get_memory_info_reply(state).store_stats
            assert used.spilled_bytes_total == 0
            most = max(most, used.object_store_bytes_used)
    assert count == iterations
    # The margin: rows that say what to cut, and the columns beside the images.
    assert 0 < most < bound + 2**20


@pytest.mark.ray
def test_a_failing_store_loses_and_repeats_nothing(
    small_store: None, folder: Path, packed: Path, faulty_store: FaultyStore
) -> None:
    uri = f"s3://{faulty_store.bucket}/packed"
    endpoint = faulty_store.endpoint
    pack(folder, uri, settings=PACKING, endpoint=endpoint)
    expected = stream(InProcessStream, str(packed), end=40)
    path = r"\.parquet"
    for fault, every in ((slow_down(), 5), (cut(), 7), (drop(), 11), (delay(0.2), 13)):
        faulty_store.fail(fault, every=every, method="GET", path=path)
    store = {"s3_endpoint": endpoint, "cache_bytes": 0}
    data = DataSettings(path=uri, **store, batches_per_block=4, loader_workers=1)
    (found,) = received(fed_streams(data, **ARGUMENTS, end_iteration=40))
    failed = [r for r in faulty_store.requests if r.method == "GET" and r.status != 206]
    assert len(failed) > 20
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(np.asarray(a[name]), np.asarray(b[name]))


def test_a_crop_costs_one_request_of_its_rows(folder: Path, faulty_store: FaultyStore) -> None:
    uri = f"s3://{faulty_store.bucket}/packed"
    pack(folder, uri, settings=PACKING, endpoint=faulty_store.endpoint)
    faulty_store.heal()
    stream(InProcessStream, uri, end=5, s3_endpoint=faulty_store.endpoint, cache_bytes=0)
    asked = [r for r in faulty_store.requests if r.path.endswith(".parquet")]
    assert len(asked) == 5 * 4 * 3
    # Nobody asks for a shard's size: the answer to a range says it.
    assert {request.method for request in asked} == {"GET"}
    assert None not in {request.range for request in asked}
