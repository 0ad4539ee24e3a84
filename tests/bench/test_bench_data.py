"""``qdmr bench data`` on a small dataset: the figures are there and belong together."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest
import ray

from qdmr_ray.cli import main as cli


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
