"""A sweep's command killed: what is done stays done."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sweeping import trained_iterations

from qdmr_ray.storage.claims import process_here

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200)]
TRIALS = 4


def sweep_process(file: Path, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "qdmr_ray.cli", "sweep", str(file), "--storage", str(folder)]
    return subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def descendants(pid: int) -> list[dict[str, Any]]:
    """Returns a process and all that it has started, as records that tell them from processes with
    the same ids that start later."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(folder.name)] = int(fields[1])
    found = [pid]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return [process for process in map(process_here, found) if process is not None]


def alive(processes: list[dict[str, Any]]) -> list[int]:
    return [p["pid"] for p in processes if process_here(p["pid"]) == p]


@pytest.mark.long
def test_a_killed_sweep_has_every_trial_once(
    write_sweep: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    # Processes that were just starting find out so soon that there is no Ray any more.
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "10")
    file = write_sweep(trials=TRIALS, stopping={"grace": 4, "reduction": 3}, concurrent=2)
    sweep = tmp_path / "runs" / "sweep"
    process = sweep_process(file, tmp_path / "runs")
    end = time.monotonic() + 240
    while not list(sweep.glob("trials/*/trial.json")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.05)
    # Somewhere between the first trial's beginning and the end of some more.
    time.sleep(random.Random(20261125).uniform(0, 2.5))
    family = descendants(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    end = time.monotonic() + 120
    while (rest := alive(family)) and time.monotonic() < end:
        time.sleep(0.2)
    assert rest == [], "left after the kill"
    # Its folder shows every ended trial, but for one that ended at the moment of the kill.
    records = [json.loads(file.read_text()) for file in sweep.glob("trials/*/trial.json")]
    shown = json.loads((sweep / "sweep.json").read_text())
    ended = {record["id"] for record in records if record["state"] != "running"}
    told = {trial["id"] for trial in shown["trials"] if trial["state"] != "running"}
    assert told <= ended
    assert len(ended - told) <= 1
    assert shown["state"] == "running"
    assert b"running; " in (sweep / "report.html").read_bytes()
    done = sweep_process(file, tmp_path / "runs")
    said = done.communicate(timeout=300)[0]
    assert done.returncode == 0, said
    results = json.loads((sweep / "sweep.json").read_text())
    assert [trial["id"] for trial in results["trials"]] == [f"{i:04}" for i in range(TRIALS)]
    assert {trial["state"] for trial in results["trials"]} <= {"finished", "stopped"}
    settings = {json.dumps(trial["settings"], sort_keys=True) for trial in results["trials"]}
    assert len(settings) == TRIALS
    assert trained_iterations(sweep, "vqgan") == [12] * results["stages_trained"]["vqgan"]
    assert (sweep / "report.html").stat().st_size > 10_000


@pytest.mark.long
def test_sigterm_ends_a_sweep_in_good_order(
    write_sweep: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("QDMR_PATIENCE_PROGRESS_LINE", "0.5")
    file = write_sweep(trials=TRIALS, concurrent=1, set={"stages.vqgan.iterations": 10_000})
    sweep = tmp_path / "runs" / "sweep"
    process = sweep_process(file, tmp_path / "runs")
    end = time.monotonic() + 240

    def logged() -> int:
        return sum(len(f.read_bytes()) for f in sweep.glob("stages/*/vqgan/metrics.jsonl"))

    # The position is told twice a second.
    while logged() < 40_000:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.05)
    family = descendants(process.pid)
    os.kill(process.pid, signal.SIGTERM)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 130, said
    assert said.splitlines()[-1] == "qdmr: interrupted; run the same command again to go on"
    assert "*** SIGTERM" not in said
    assert re.search(r"0 of 4 trials ended, \d+ s; 0000 vqgan \d+/10000", said), said
    assert json.loads((sweep / "sweep.json").read_text())["state"] == "stopped"
    assert b"stopped at " in (sweep / "report.html").read_bytes()
    end = time.monotonic() + 120
    while (rest := alive(family)) and time.monotonic() < end:
        time.sleep(0.2)
    assert rest == [], "left after SIGTERM"
