"""Shards that few nodes keep: the store is read once for all, and the samples stay the same."""

import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from data_executions import wait_until
from faulty_store import FaultyStore
from fed import fed_streams
from own_disks import nodes_with_disks
from ray.cluster_utils import Cluster

from qdmr_ray.data.format.manifest import Manifest, read_manifest
from qdmr_ray.data.format.placement import Placement
from qdmr_ray.data.format.reader import RecordReader
from qdmr_ray.data.packing.pack import PackSettings, pack
from qdmr_ray.data.streaming import keepers
from qdmr_ray.data.streaming.crops import CropRequest, Cutter
from qdmr_ray.data.streaming.stream import Batch, DataSettings, InProcessStream
from qdmr_ray.errors import QdmrError
from qdmr_ray.photographs.decode import write_png
from qdmr_ray.storage import open_location

PAIRS, TARGETS, CROP, WORKERS = 10, 7, 16, 2
PACKING = PackSettings(
    source_images="aberrated",
    source_ground_truth="clean",
    target_images="real",
    shard_records=1,
)
NAMES = ("127.0.1.1", "127.0.1.2", "127.0.1.3")
# Iterations that are cut before the training reaches them, and those of the whole training, which
# ends a test that waits for something in vain.
AHEAD, END = 32, 1000


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(0)
    for name, count in {"aberrated": PAIRS, "clean": PAIRS, "real": TARGETS}.items():
        (folder / name).mkdir()
        for i in range(count):
            pixels = random.integers(0, 256, (40, 56, 3), dtype=np.uint8)
            write_png(folder / f"{name}/{i}.png", pixels)
    pack(folder, str(folder / "packed"), settings=PACKING)
    return folder / "packed"


@pytest.fixture
def stored(packed: Path, faulty_store: FaultyStore) -> str:
    for file in packed.iterdir():
        faulty_store.put(f"packed/{file.name}", file.read_bytes())
    return f"s3://{faulty_store.bucket}/packed"


@pytest.fixture
def nodes(tmp_path: Path, faulty_store: FaultyStore) -> Iterator[Cluster]:
    with nodes_with_disks(tmp_path, NAMES, cpus=1) as cluster:
        yield cluster


ARGUMENTS: dict[str, Any] = {
    "batch_size": 4,
    "crop": CROP,
    "same_place": False,
    "sets": ("source", "target"),
    "seed": 3,
    "end_iteration": END,
}


def samples(data: DataSettings) -> Iterator[Batch]:
    return iter(InProcessStream(data, start_iteration=0, **ARGUMENTS))


def request_of(data: DataSettings) -> tuple[CropRequest, Manifest]:
    stream = InProcessStream(data, start_iteration=0, **ARGUMENTS)
    return stream.request, read_manifest(open_location(data.path))


def kept_by(manifest: Manifest, name: str) -> list[str]:
    placement = Placement(NAMES, 1, here=name)
    kept = placement.keeps(placement.keepers(manifest.shards, 10**9))
    return sorted(shard.file for shard, mine in zip(manifest.shards, kept, strict=True) if mine)


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(600)
def test_nodes_share_the_work_of_keeping_copies(
    nodes: Cluster, stored: str, packed: Path, faulty_store: FaultyStore, tmp_path: Path
) -> None:
    data = DataSettings(
        path=stored,
        cache_copies=1,
        loader_workers=1,
        batches_per_block=4,
        object_store_bytes=AHEAD * 4 * 3 * 3 * CROP**2,
    )
    manifest = read_manifest(open_location(stored))
    expected = samples(DataSettings(path=str(packed)))
    streams = fed_streams(data, workers=WORKERS, **ARGUMENTS)
    iterators = [iter(stream) for stream in streams]
    wait_until(lambda: all(stream.is_fed for stream in streams))

    def read(iterations: int) -> None:
        for _ in range(iterations):
            wanted, found = next(expected), [next(iterator) for iterator in iterators]
            for column, values in wanted.items():
                parts = np.concatenate([np.asarray(batch[column]) for batch in found])
                np.testing.assert_array_equal(parts, np.asarray(values))

    def asked(whole: bool = False) -> list[str]:
        """The shards of which the store was asked for anything, or from the first byte on."""
        requests = [r for r in faulty_store.requests if r.path.endswith(".parquet")]
        names = [Path(r.path).name for r in requests if not whole or r.range == "bytes=0-"]
        return sorted(names if whole else {*names})

    def copies(name: str) -> list[str]:
        return sorted(file.name for file in (tmp_path / name).rglob("*.parquet"))

    keepers_of_all = {name: kept_by(manifest, name) for name in NAMES}
    while {name: copies(name) for name in NAMES} != keepers_of_all:
        read(1)
        time.sleep(0.1)
    # One node has downloaded each shard, once.
    assert asked(whole=True) == sorted(shard.file for shard in manifest.shards)
    # What was cut ahead of the training comes first.
    read(2 * AHEAD)
    faulty_store.heal()
    read(2 * AHEAD)
    assert asked() == []
    dead = nodes.list_all_nodes()[2]
    (name,) = (n["NodeManagerAddress"] for n in ray.nodes() if n["NodeID"] == dead.node_id)
    nodes.remove_node(dead, allow_graceful=False)
    while asked() != keepers_of_all[name]:
        read(1)
    # Calls fail otherwise when Ray has noticed that the node is gone.
    wait_until(lambda: sum(node["Alive"] for node in ray.nodes()) == len(NAMES) - 1)
    time.sleep(2)
    # What nobody keeps any more is read by range, and the rest as before.
    read(3 * AHEAD)
    assert asked() == keepers_of_all[name]
    assert asked(whole=True) == []
    # Ray ends after those that wait for blocks.
    for stream in streams:
        stream.close()
    wait_until(lambda: not any(thread.name == "blocks" for thread in threading.enumerate()))


def test_a_keeper_cuts_the_same_samples(packed: Path) -> None:
    request, _ = request_of(DataSettings(path=str(packed)))
    positions = np.arange(12)
    whole = Cutter(request).cut(positions)
    found = keepers.Keeper(request, Placement(NAMES, 1)).cut({"source": positions[3:9]})
    assert isinstance(found, dict)
    assert found.keys() == {"source"}
    columns = {"source", "ground_truth", "source_index", "source_place", "source_skipped"}
    assert found["source"].keys() == columns
    for column in columns:
        np.testing.assert_array_equal(found["source"][column], whole[column][3:9])


def test_an_error_of_a_keeper_is_the_datasets_own_line(packed: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(packed, tmp_path / "damaged")
    request, manifest = request_of(DataSettings(path=str(damaged)))
    gone = manifest.set("target").shards[0].file
    (damaged / gone).unlink()
    found = keepers.Keeper(request, Placement(NAMES, 1)).cut({"target": np.arange(TARGETS)})
    assert isinstance(found, QdmrError)
    assert str(found).startswith(f"{damaged / gone}: is missing; pack the dataset again")
    packed_again = replace(request, digest="other")
    found = keepers.Keeper(packed_again, Placement(NAMES, 1)).cut({"target": np.arange(1)})
    assert isinstance(found, QdmrError)
    assert "was packed again" in str(found)


def node(number: int, **changes: Any) -> dict[str, Any]:
    """A node as Ray lists it."""
    address = f"10.0.0.{number}"
    found = {"NodeID": f"id{number}", "NodeManagerAddress": address, "Alive": True}
    return found | {"Resources": {"CPU": 4.0}} | changes


ONE_MACHINE = {"NodeManagerAddress": "10.0.0.1"}


@pytest.mark.parametrize(
    "alone",
    [
        [node(1)],
        [node(1), node(2, Alive=False)],
        [node(1), node(2, **ONE_MACHINE), node(3, **ONE_MACHINE)],
        # The head of many clusters is kept free of work.
        [node(1), node(2, Resources={})],
    ],
    ids=["one", "the other is dead", "one machine", "the other has no CPUs"],
)
def test_a_node_alone_reads_for_itself(
    packed: Path, monkeypatch: pytest.MonkeyPatch, alone: list[dict[str, Any]]
) -> None:
    request, _ = request_of(DataSettings(path=str(packed)))
    settings = replace(request.settings, path="s3://bucket/packed", cache_copies=1)
    monkeypatch.setattr(ray, "nodes", lambda: alone)
    assert keepers.keepers_of_cluster(replace(request, settings=settings)) is None


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({"path": "here"}, 3),
        ({"cache_bytes": 0}, 3),
        ({"cache_copies": 2}, 2),
        ({"cache_copies": 5}, 3),
    ],
)
def test_nodes_that_keep_everything_or_nothing_read_for_themselves(
    packed: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], count: int
) -> None:
    request, _ = request_of(DataSettings(path=str(packed)))
    base = replace(request.settings, path="s3://bucket/packed", cache_copies=1)
    monkeypatch.setattr(ray, "nodes", lambda: [node(number) for number in range(count)])
    found = keepers.keepers_of_cluster(replace(request, settings=replace(base, **settings)))
    assert found is None


def test_the_bytes_of_a_request_are_those_of_all_shards(packed: Path) -> None:
    request, manifest = request_of(DataSettings(path=str(packed)))
    assert request.bytes == sum(file.stat().st_size for file in packed.glob("*.parquet"))
    assert len(manifest.shards) == PAIRS + TARGETS


def test_a_node_copies_the_shards_that_it_keeps(
    stored: str, packed: Path, faulty_store: FaultyStore, tmp_path: Path
) -> None:
    manifest = read_manifest(open_location(packed))
    kept, folder = kept_by(manifest, NAMES[1]), tmp_path / "cache"
    placement = Placement(NAMES, 1, here=NAMES[1])
    options = {"cache_bytes": 10**9, "cache_folder": folder}
    reader = RecordReader(stored, placement=placement, **options)
    expected = RecordReader(str(packed))

    def read(reader: RecordReader) -> None:
        for name, entry in manifest.sets.items():
            for i in range(entry.images):
                image = expected.read(name, i).image
                np.testing.assert_array_equal(reader.read(name, i).image, image)

    def copies() -> list[str]:
        return sorted(file.name for file in folder.glob("*.parquet"))

    read(reader)
    wait_until(lambda: copies() == kept)
    # A process that makes no copies uses all that are there, whoever they were made for.
    faulty_store.heal()
    read(RecordReader(stored, fill_cache=False, **(options | {"cache_bytes": 1})))
    asked = {Path(r.path).name for r in faulty_store.requests if r.path.endswith(".parquet")}
    assert asked == {shard.file for shard in manifest.shards} - {*kept}
    assert copies() == kept
