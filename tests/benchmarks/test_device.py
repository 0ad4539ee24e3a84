"""``device.sh`` in CI: all parts on the CPU at toy size, and what a part may do wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import device
import device_table
import pytest

REPOSITORY = Path(__file__).parents[2]
# What a machine for GPUs may lack: all dependencies but PyTorch, NumPy and pytest.
MISSING = ("ray", "pydantic", "pyarrow", "yaml", "typer", "rich", "scipy", "lpips", "torchvision")
MISSING += ("PIL", "orjson", "obstore", "boto3", "safetensors", "optuna", "imagecodecs", "tifffile")
STAGES = ("uda", "base", "vqgan")
# Of a lent machine's ten minutes, one is for what comes before and after.
MOST_SECONDS = 9 * 60
# Seconds that a part's program has here, more than any needs.
LIMIT = 300


def test_all_parts_end_in_time() -> None:
    # A part that overruns takes a moment more, until its processes are gone.
    assert sum(device.LIMITS.values()) + len(device.LIMITS) <= MOST_SECONDS


@pytest.mark.slow
def test_a_dry_run_measures_everything_with_pytorch_alone(tmp_path: Path) -> None:
    for name in MISSING:
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('no {name} here')")
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHON": sys.executable}
    environment |= {"OUT": str(tmp_path / "out"), "OMP_NUM_THREADS": "1"}
    command = ["bash", REPOSITORY / "tests/benchmarks/device.sh", "--dry-run"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / device.RESULTS).read_text())
    parts = results["parts"]
    assert parts.keys() == device.LIMITS.keys()
    for name, part in parts.items():
        assert part["status"] == "done", f"{name}: {part.get('output')}"
        refused = [row["refused"] for row in part["rows"] if "refused" in row]
        assert not refused, f"{name}: {refused}"
    for stage in STAGES:
        rows = parts[f"steps_{stage}"]["rows"]
        found = [(row["build"], row["backbones"]) for row in rows]
        builds = ("recorded", "plain", "bfloat16", "bfloat16, no kernels", "recorded, compiled")
        expected = [(build, terms) for build in builds for terms in (False, True)]
        expected.remove(("bfloat16, no kernels", True))
        assert found == expected
        assert all(row["seconds_per_step"] > 0 for row in rows)
        assert rows[1]["gflop_needed"] > rows[0]["gflop_needed"]
    exchanges = parts["exchange"]["rows"]
    assert [(r["stage"], r["gradients"]) for r in exchanges] == [
        (stage, gradients) for stage in STAGES for gradients in (None, "float32", "bfloat16")
    ]
    # One worker's mean is its own gradient, to the bit; in bfloat16 it is rounded.
    for row in exchanges:
        if row["gradients"] == "float32":
            assert row["relative_distance"] == 0
        elif row["gradients"] == "bfloat16":
            assert 0 < row["relative_distance"] < 0.1
    assert {(row["height"], row["dtype"]) for row in parts["restore"]["rows"]} == {
        (height, dtype) for height in (64, 96) for dtype in ("float32", "bfloat16")
    }
    assert [row["finite"] for row in parts["training"]["rows"]] == [True] * 3
    for row in parts["profile"]["rows"]:
        names = [one["name"] for one in row["operations"]]
        assert "aten::convolution_backward" in names
        assert row["milliseconds"] >= sum(one["milliseconds"] for one in row["operations"])
    outcomes = {row["outcome"] for row in parts["tests"]["rows"]}
    assert "passed" in outcomes
    assert "failed" not in outcomes
    table = "\n".join(device_table.document(results))
    for start in ("| uda | 1 | recorded | yes | ", "| vqgan | gloo, bfloat16 | ", "| 64 × 96 | "):
        assert start in table
    assert table.startswith("A dry run at toy size")


def program(folder: Path, text: str) -> Path:
    """A part's program, which gets the part's name and the file of its rows."""
    path = folder / "part.py"
    path.write_text(f"import sys, time, subprocess\nrows = open(sys.argv[2], 'w', 1)\n{text}")
    return path


def ended(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> Any:
    """What became of a part with such a program."""
    monkeypatch.setattr(device, "PROGRAM", program(folder, text))
    return device.run("any", LIMIT, dry_run=False)


def test_a_part_that_fails_keeps_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "print('{\"a\": 1}', file=rows)\nprint('{\"b\": {}', end='', file=rows)\n1 / 0"
    part = ended(tmp_path, monkeypatch, text)
    assert (part["status"], part["rows"]) == ("failed", [{"a": 1}])
    assert part["error"] == "ZeroDivisionError: division by zero"
    killed = "import os\nos.kill(os.getpid(), 9)"
    part = ended(tmp_path, monkeypatch, killed)
    assert (part["status"], part["error"]) == ("failed", "ended with -9")


def test_a_part_that_hangs_ends_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = """
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print('{"child": %d}' % child.pid, file=rows)
time.sleep(600)
"""

    class OutOfTime(subprocess.Popen):
        """Its time is over in the moment in which it has written its row."""

        def wait(self, timeout: float | None = None) -> int:
            if timeout != LIMIT:
                return super().wait(timeout)
            while not read(Path(self.args[3])).endswith(b"\n"):
                time.sleep(0.05)
            raise subprocess.TimeoutExpired(self.args, timeout)

    monkeypatch.setattr(subprocess, "Popen", OutOfTime)
    part = ended(tmp_path, monkeypatch, text)
    assert (part["status"], part["error"]) == ("overran", "took longer than its 300 s")
    child = Path("/proc", str(part["rows"][0]["child"]))
    deadline = time.monotonic() + 30
    while child.is_dir() and "\nState:\tZ" not in (child / "status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_who_ends_the_run_ends_its_part(tmp_path: Path) -> None:
    part = program(tmp_path, "open(sys.argv[0] + '.there', 'w').close()\ntime.sleep(600)")
    code = f"""
import sys
from pathlib import Path
import device
device.PROGRAM = Path({str(part)!r})
sys.argv = ["device.py", "--out", {str(tmp_path)!r}, "--parts", "machine"]
device.main()
"""
    environment = os.environ | {"PYTHONPATH": str(Path(device.__file__).parent)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment)
    try:
        deadline = time.monotonic() + 60
        while not part.with_name("part.py.there").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
    finally:
        process.kill()
    left = [p for p in Path("/proc").glob("[0-9]*/cmdline") if str(part).encode() in read(p)]
    assert not left


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_what_is_refused_becomes_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    # device.sh sets this path.
    for folder in ("bench", "stages"):
        monkeypatch.syspath_prepend(REPOSITORY / "tests" / folder)
    from device_parts import Scale, measured

    bench = Scale(device="cpu").bench("uda", "recorded")
    assert (bench.batch, bench.cuda_graph, bench.dtype) == (4, True, "bfloat16")

    def refuse() -> dict[str, Any]:
        raise RuntimeError("CUDA error: operation not permitted\nSearch for it")

    row = measured({"stage": "uda"}, refuse)
    refused = "RuntimeError: CUDA error: operation not permitted Search for it"
    assert row == {"stage": "uda", "refused": refused}


def test_tables_tell_what_went_wrong() -> None:
    step = {"stage": "uda", "batch": 4, "build": "plain", "backbones": False}
    figures = {"seconds_per_step": 0.4, "floor_seconds": 0.1, "ratio": 4.0, "start_seconds": 1.0}
    good = step | figures | {"peak_memory_bytes": 10**9}
    slower = good | {"backbones": True, "seconds_per_step": 0.6}
    faster = good | {"build": "recorded", "seconds_per_step": 0.05}
    part = {"status": "done", "seconds": 1.0, "limit": 2}
    results = {
        "dry_run": False,
        "date": "2026-11-28",
        "commit": None,
        "parts": {
            "steps_uda": part | {"rows": [good, slower, faster, step | {"refused": "no | yes"}]},
            "tests": part
            | {
                "status": "overran",
                "error": "took longer than its 2 s",
                "rows": [
                    {"test": "a.py::b", "outcome": "failed", "why": "assert 0"},
                    {"test": "a.py::c", "outcome": "passed"},
                ],
            },
        },
    }
    photograph = {"height": 4000, "width": 6000, "dtype": "float32"}
    refused = {"refused": "CUDA out of memory"}
    more = [photograph | refused, photograph | refused | {"memory": 2**31}]
    results["parts"]["restore"] = part | {"rows": more}
    lines = list(device_table.document(results))
    for memory in ("what is free", "2048 MiB"):
        assert f"| 4000 × 6000 | float32 | {memory} | CUDA out of memory |  |  |  |  |" in lines
    assert lines[0] == "an unknown device, torch ?, 2026-11-28, commit unknown."
    for start in (
        "| plain | no | 400.0 ms | 1.00 |  |",
        "| plain | yes | 600.0 ms | 1.00 | 1.50 |",
        "| recorded | no | 50.0 ms | 8.00 |  |",
    ):
        assert f"| uda | 4 {start} 100.0 ms | 4.00 | 1.0 s | 1.00 GB |" in lines
    assert "| uda | 4 | plain | no | no \\| yes |  |  |  |  |  |  |" in lines
    assert "- **a.py::b** failed: assert 0" in lines
    assert "- Tests: 1 passed, 1 failed, 0 skipped" in lines
    assert lines[-1] == "- `tests` overran after 1 s: took longer than its 2 s"
