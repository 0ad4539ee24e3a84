"""A training whose nodes share the copies of its dataset."""

import threading
from pathlib import Path

import pytest
from data_executions import living_actors, wait_until
from faulty_store import FaultyStore
from own_disks import nodes_with_disks
from tiny_training import settings

from qdmr_ray.config import experiment_from_dict
from qdmr_ray.data.format.manifest import read_manifest
from qdmr_ray.storage import open_location
from qdmr_ray.train.run import train_run

STAGE, ITERATIONS = "source_only", 60


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(600)
def test_each_node_has_a_keeper_as_long_as_the_training_lasts(
    faulty_store: FaultyStore, tiny_dataset: Path, tmp_path: Path
) -> None:
    for file in tiny_dataset.iterdir():
        faulty_store.put(f"data/{file.name}", file.read_bytes())
    values = settings(tiny_dataset, run=[STAGE])
    values["data"] |= {"path": f"s3://{faulty_store.bucket}/data", "cache_copies": 1}
    values["stages"][STAGE] |= {"iterations": ITERATIONS}
    values["scaling"] |= {"workers": 2}
    counts, ended = set(), threading.Event()

    def count() -> None:
        while not ended.wait(0.2):
            counts.add(len(living_actors("Keeper")))

    with nodes_with_disks(tmp_path / "disks", ("127.0.1.1", "127.0.1.2"), cpus=3):
        counting = threading.Thread(target=count)
        counting.start()
        try:
            train_run(experiment_from_dict(values), storage=str(tmp_path), say=lambda _: None)
            wait_until(lambda: not living_actors("Keeper"))
        finally:
            ended.set()
            counting.join()
    assert max(counts) == 2
    whole = [r.path for r in faulty_store.requests if r.range == "bytes=0-"]
    shards = {shard.file for shard in read_manifest(open_location(tiny_dataset)).shards}
    copied = [name for path in whole if (name := Path(path).name) in shards]
    assert len(copied) == len({*copied})
    # Nothing lies on two disks.
    assert sorted(f.name for f in (tmp_path / "disks").rglob("*.parquet")) == sorted(copied)
