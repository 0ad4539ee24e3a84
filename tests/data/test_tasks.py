"""Packing and simulating on several nodes give the same bytes, and run where the files are seen."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster

from qdmr_ray.data.format.shards import ShardJob
from qdmr_ray.data.format.verify import verify
from qdmr_ray.data.packing.folders import DatasetFolders, ImageFolder, check_folders
from qdmr_ray.data.packing.pack import PackSettings, pack
from qdmr_ray.data.packing.resume import claimed, write_and_note
from qdmr_ray.data.simulation import simulate_folder
from qdmr_ray.data.tasks import Sees, Tasks
from qdmr_ray.errors import QdmrError
from qdmr_ray.photographs.decode import write_png
from qdmr_ray.storage import Location, open_location

NODES = 4
NODE_VARIABLE = "QDMR_TEST_NODE"
SETTINGS = PackSettings(source_images="aberrated", source_ground_truth="clean", shard_records=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for name in ("aberrated", "clean"):
        (root / name).mkdir()
        for i in range(12):
            pixels = random.integers(0, 256, (64, 80, 3), dtype=np.uint8)
            write_png(root / name / f"{i}.png", pixels)
    return root


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "simulated" not in path.parts
    }


@pytest.fixture(scope="module")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """What this process writes without Ray."""
    out = tmp_path_factory.mktemp("alone")
    pack(folder, str(out / "packed"), settings=SETTINGS)
    simulate_folder(folder / "clean", ["prescription"], out / "simulation")
    return {name: files_of(out / name) for name in ("packed", "simulation")}


def test_without_ray_the_items_are_done_in_order() -> None:
    started: list[str] = []
    tasks = Tasks("counting", lambda: started.append("ray"))
    for is_large, count in ((False, 3), (True, 1)):
        found = tasks.results(lambda n: n * n, range(count), sees=Sees(), is_large=is_large)
        assert list(found) == [(n, n * n) for n in range(count)]
    # A single item isn't worth it.
    assert started == []
    assert len(list(tasks.results(abs, range(2), sees=Sees(), is_large=True))) == 2
    assert started == ["ray"]


def test_a_node_sees_the_same_files_and_the_claim(tmp_path: Path) -> None:
    files = [tmp_path / "in" / name for name in ("a.png", "b.png")]
    files[0].parent.mkdir()
    for file in files:
        file.write_bytes(b"x")
    with claimed(open_location(tmp_path / "out"), print) as claim:
        sees = Sees.of(files, (open_location(tmp_path / "out"), claim))
        assert sees.missing() is None
        assert not sees.anywhere
        # Another folder stands under the same path.
        os.utime(files[1], ns=(5, 5))
        assert sees.missing() == str(tmp_path / "in")
        files[1].unlink()
        assert sees.missing() == str(tmp_path / "in")
        out = Sees.of([], (open_location(tmp_path / "out"), claim))
        assert out.missing() is None
    assert out.missing() == str(tmp_path / "out")
    assert Sees.of([]).anywhere


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """A head without CPUs and four nodes of one CPU, of which each knows its number."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray._private.utils.set_sigterm_handler", lambda _: None)
        small = {"object_store_memory": 80_000_000}
        cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": False, **small},
        )
        for number in range(NODES):
            cluster.add_node(num_cpus=1, env_vars={NODE_VARIABLE: str(number)}, **small)
        cluster.wait_for_nodes()
        ray.init(cluster.address, log_to_driver=False)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.ray
def test_four_nodes_write_the_same_bytes_as_one_process(
    folder: Path, alone: dict[str, dict[str, bytes]], nodes: Cluster, tmp_path: Path
) -> None:
    said: list[str] = []
    calls: list[tuple[int, int]] = []
    pack(
        folder,
        str(tmp_path / "packed"),
        settings=SETTINGS,
        progress=lambda *call: calls.append(call),
        say=said.append,
    )
    assert files_of(tmp_path / "packed") == alone["packed"]
    assert calls[-1] == (24, 24)
    simulate_folder(folder / "clean", ["prescription"], tmp_path / "simulation", say=said.append)
    assert files_of(tmp_path / "simulation") == alone["simulation"]
    # All nodes see this machine's disk.
    assert said == []


def damaged(folder: Path) -> str:
    """Packs, cuts one shard short, changes a byte in another and takes a third away."""
    pack(folder, str(folder / "damaged"), settings=SETTINGS)
    shards = sorted((folder / "damaged").glob("*.parquet"))
    shards[1].write_bytes(shards[1].read_bytes()[:-30_000])
    bytes_of = bytearray(shards[2].read_bytes())
    bytes_of[20_000] ^= 1
    shards[2].write_bytes(bytes_of)
    shards[4].unlink()
    return str(folder / "damaged")


@pytest.mark.ray
def test_four_nodes_find_the_same_problems_as_one_process(
    folder: Path, nodes: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = damaged(folder)
    here = os.getpid()
    by_this_process: list[bool] = []
    reads = Location.read_bytes

    def noted(location: Location, *span: int) -> bytes:
        by_this_process.append(os.getpid() == here and location.path.endswith(".parquet"))
        return reads(location, *span)

    monkeypatch.setattr(Location, "read_bytes", noted)
    calls: list[tuple[int, int]] = []
    found = verify(uri, progress=lambda *call: calls.append(call))
    assert calls[-1] == (12, 12)
    assert not any(by_this_process)
    monkeypatch.setattr("qdmr_ray.data.tasks.ray_runs", lambda: False)
    assert found == verify(uri)
    assert len({problem.shard for problem in found}) == 3


@pytest.mark.ray
def test_relative_paths_mean_the_same_on_every_node(
    folder: Path,
    alone: dict[str, dict[str, bytes]],
    nodes: Cluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder.parent)
    pack(Path(folder.name), str(tmp_path / "packed"), settings=SETTINGS)
    assert files_of(tmp_path / "packed") == alone["packed"]
    (tmp_path / "bad").mkdir()
    monkeypatch.chdir(tmp_path)
    for i in range(4):
        write_png(tmp_path / "bad" / f"{i}.png", np.full((8, 8, 3), 5, np.uint8))
    settings = PackSettings(target_images="bad", shard_records=1)
    with pytest.raises(QdmrError, match=r"^bad/\d\.png: every pixel has the same value"):
        pack(Path(), str(tmp_path / "no"), settings=settings)


@pytest.mark.ray
def test_nodes_that_see_no_files_take_no_part(nodes: Cluster) -> None:
    def number() -> str:
        return os.environ.get(NODE_VARIABLE, "none")

    def where(_: int) -> str:
        time.sleep(0.3)
        return number()

    def used(*seeing: str) -> tuple[set[str], list[str]]:
        said: list[str] = []
        sees = Sees(folder="/photographs", holds=lambda: number() in seeing)
        results = Tasks("packing", say=said.append).results(where, range(24), sees=sees)
        places, found = zip(*results, strict=True)
        assert sorted(places) == list(range(24))
        return set(found), said

    assert used("0", "1", "2", "3") == ({"0", "1", "2", "3"}, [])
    advice = "; a folder that all nodes share, or s3://…, lets all take part"
    line = f"2 of 4 nodes don't see /photographs: packing on the other 2{advice}"
    assert used("1", "3") == ({"1", "3"}, [line])
    # The head, where this process runs, has no CPU.
    line = f"4 of 4 nodes don't see /photographs: packing in this process alone{advice}"
    assert used() == ({"none"}, [line])


@pytest.mark.ray
def test_what_is_too_large_for_every_node_runs_alone_on_the_largest(nodes: Cluster) -> None:
    """Ray would wait for ever for a node that has the memory."""

    def while_others_run(_: int) -> tuple[float, float]:
        start = time.time()
        time.sleep(0.2)
        return start, time.time()

    results = Tasks("packing").results(
        while_others_run, range(4), sees=Sees(), memory=lambda _: 10**15
    )
    times = sorted(time for _, time in results)
    assert all(end <= start for (_, end), (start, _) in pairwise(times))


@pytest.mark.ray
def test_a_task_on_another_node_writes_nothing_without_the_claim(
    nodes: Cluster, folder: Path, tmp_path: Path
) -> None:
    folders = DatasetFolders(target=ImageFolder(images=folder / "clean"))
    records = tuple(check_folders(folders)["target"])
    common = {"set_name": "target", "records": records, "root": folder, "base": Path.cwd()}
    jobs = [ShardJob(number=number, **common) for number in range(2)]
    out = open_location(tmp_path / "out")
    with claimed(out, print) as claim:
        out.join("unfinished", "claims", "000002.json").create(b'{"owner": "another one"}')
        write = partial(write_and_note, out, claim.check)
        with pytest.raises(QdmrError, match="another one took over"):
            list(Tasks("packing").results(write, jobs, sees=Sees()))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["unfinished"]


@pytest.mark.ray
def test_a_node_that_is_lost_is_done_without(nodes: Cluster) -> None:
    def work(item: int) -> int:
        time.sleep(0.5)
        return item

    results = Tasks("packing").results(work, range(24), sees=Sees())
    found = [next(results)]
    nodes.remove_node(next(iter(nodes.worker_nodes)))
    found += results
    assert sorted(found) == [(item, item) for item in range(24)]
