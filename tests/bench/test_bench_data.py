"""``qdmr bench data`` on a small dataset: the figures are there and belong together."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest
import ray

from qdmr_ray.bench.data import DataBench, bench_data
from qdmr_ray.cli import main as cli
from qdmr_ray.storage import open_location


@pytest.mark.ray
def test_it_measures_a_dataset_through_a_training_worker(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "bench.json"
    command = ["bench", "data", "--data", str(tiny_dataset), "--crop", "32", "--batch", "2"]
    command += ["--seconds", "0.5", "--loaders", "1", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", ["qdmr", *command])
    interrupted = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        ray.shutdown()
    assert not ended.value.code
    assert signal.getsignal(signal.SIGINT) is interrupted
    found = json.loads(out.read_text())
    assert found["image_size"] == [64, 96]
    assert (found["workers"], found["crop"], found["batch_size"]) == (1, 32, 2)
    assert found["pairs_per_second"] > 0
    assert found["torch_loader_pairs_per_second"] > 0
    assert 0 < found["first_batch_seconds"] < 60
    megabytes = found["pairs_per_second"] * 2 * 3 * 32 * 32 / 1e6
    assert found["megabytes_per_second"] == pytest.approx(megabytes)


@pytest.mark.ray
def test_it_measures_a_dataset_in_a_store_without_a_plain_loader_which_would_hang(
    tiny_dataset: Path, s3_endpoint: str
) -> None:
    packed = open_location("s3://lens/packed", endpoint=s3_endpoint)
    for file in tiny_dataset.iterdir():
        packed.join(file.name).write_bytes_atomic(file.read_bytes())
    sizes = {"crop": 32, "batch_size": 2, "loader_workers": 1, "cache_bytes": 0}
    try:
        found = bench_data(DataBench(data=packed.uri, seconds=0.5, warm_up=0.0, **sizes))
    finally:
        ray.shutdown()
    assert found["pairs_per_second"] > 0
    assert "torch_loader_pairs_per_second" not in found
