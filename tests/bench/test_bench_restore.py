"""``qdmr bench restore``: the figures it prints, and that it needs PyTorch and NumPy alone."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from rates import SMALL_RATES

from qdmr_ray.cli import main as cli

REPOSITORY = Path(__file__).parents[2]
BLOCKED = "ray", "pydantic", "pyarrow", "PIL", "yaml", "boto3", "typer", "safetensors"


def test_the_command_prints_and_writes_the_figures(
    small_rates: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "restore.json"
    size = ["--height", "100", "--width", "200", "--preset", "demo", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", ["qdmr", "bench", "restore", *size, "--json", str(out)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    found = json.loads(out.read_text())
    assert found["megapixels_per_second"] == pytest.approx(0.02 / found["seconds"])
    assert found["floor_seconds"] == pytest.approx(found["gflop_needed"] / found["gflops_measured"])
    assert found["ratio"] == pytest.approx(found["seconds"] / found["floor_seconds"])
    assert found["peak_memory_bytes"] > 0
    assert found["first_seconds"] == found["seconds"]
    # What is in force, where nothing was asked for.
    assert (found["memory"], found["strip_bytes"]) == (2 * 2**30, 8 * 2**20)
    assert "megapixels_per_second" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["qdmr", "bench", "restore", "--dtype", "float8"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "'--dtype': 'float8' is not one of 'float32', 'bfloat16'" in capsys.readouterr().err


def test_the_arithmetic_is_that_of_the_padded_photograph() -> None:
    """640 x 960 at full size takes 1,700 GFLOP (the issue's own figure); sides are padded to 64."""
    from qdmr_ray.bench.restore import needed_flop_of_photograph

    assert needed_flop_of_photograph("full", 640, 960) / 1e9 == pytest.approx(1696, rel=2e-3)
    assert needed_flop_of_photograph("full", 577, 897) == needed_flop_of_photograph(
        "full", 640, 960
    )


@pytest.mark.slow
def test_it_runs_where_only_pytorch_is_installed() -> None:
    code = f"""
import sys
for name in {BLOCKED!r}:
    sys.modules[name] = None
{SMALL_RATES}
from qdmr_ray.bench.restore import (main)
main(["--height", "64", "--width", "64", "--preset", "demo", "--repeats", "1"])
"""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["height"] == 64


def test_on_a_gpu_the_first_photograph_of_a_size_is_told_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a GPU: the CPU computes, and all that asks for a GPU is answered. The first one loads
    kernels and takes memory."""
    from qdmr_ray.bench import restore
    from qdmr_ray.restore.room import Room

    gpu = torch.device("cuda", 0)
    seconds, calls = iter([9.0, 2.0, 4.0, 3.0]), []
    monkeypatch.setattr(restore, "usable_device", lambda _: gpu)
    monkeypatch.setattr(restore, "room_on", lambda device, _: Room(maps=7, strip=device.index + 5))
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, *_, **__: module)
    for name in ("init", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, partial(calls.append, name))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: calls.append("reset"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 123)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    monkeypatch.setattr(restore.arithmetic, "timed", lambda *_: next(seconds))
    monkeypatch.setattr(restore.arithmetic, "matrix_rate", lambda *_: 1.0)
    monkeypatch.setattr(restore.machine, "convolution_rate", lambda *_: 1.0)
    bench = restore.RestoreBench(height=64, width=64, preset="demo", device="cuda:0")
    found = restore.bench_restore(bench)
    assert (found["first_seconds"], found["seconds"]) == (9.0, 3.0)
    assert (found["memory"], found["strip_bytes"]) == (7, 5)
    assert (found["device"], found["peak_memory_bytes"]) == ("a GPU", 123)
    # Before the first there are no statistics.
    assert calls == ["init", "empty_cache", "reset"]
