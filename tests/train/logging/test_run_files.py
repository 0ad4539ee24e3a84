"""What a stage writes down: nothing lost, nothing sent twice."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from qdmr_ray.storage import Location, open_location
from qdmr_ray.train.logging.run_files import RunFiles


def iterations(file: Path | Location) -> list[int]:
    lines = file.read_bytes().decode().splitlines()
    return [json.loads(line)["iteration"] for line in lines]


def test_lines_after_the_checkpoint_are_dropped_and_the_others_stay(tmp_path: Path) -> None:
    run = open_location(tmp_path)
    files = RunFiles(run, "uda", 0)
    for iteration in (1, 2, 3):
        files.log(iteration, {"source/l1": 1.0 / iteration, "source/gan": math.nan})
    files.close()
    file = tmp_path / "uda" / "metrics.jsonl"
    # Cut short by a crash.
    file.write_text(file.read_text() + '{"iteration": 4, "sou')
    again = RunFiles(run, "uda", 2)
    again.log(3, {"source/l1": 0.0})
    again.close()
    assert iterations(file) == [1, 2, 3]
    assert json.loads(file.read_text().splitlines()[0])["source/gan"] is None


def test_a_log_survives_a_kill_while_lines_are_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_location(tmp_path)
    files = RunFiles(run, "uda", 0)
    files.log(1, {"source/l1": 1.0})
    files.close()

    def killed(source: str, target: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        RunFiles(run, "uda", 1)
    assert iterations(tmp_path / "uda" / "metrics.jsonl") == [1]


def test_only_what_has_changed_is_copied_to_a_store(
    s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_location("s3://lens/run")
    files = RunFiles(run, "uda", 0)
    files.log(1, {"source/l1": 1.0})
    written: list[str] = []
    write = Location.write_bytes_atomic

    def counted(self: Location, data: bytes) -> None:
        written.append(self.name)
        write(self, data)

    monkeypatch.setattr(Location, "write_bytes_atomic", counted)
    files.publish()
    assert "metrics.jsonl" in written
    written.clear()
    files.publish()
    assert written == []
    files.log(2, {"source/l1": 0.5})
    files.publish()
    assert "metrics.jsonl" in written
    files.close()
    assert iterations(run.join("uda", "metrics.jsonl")) == [1, 2]
