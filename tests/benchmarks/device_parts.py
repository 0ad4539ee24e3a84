"""What ``device.sh`` measures: one part, its rows into a file as JSON lines.

    python tests/benchmarks/device_parts.py steps_uda rows.jsonl [--dry-run]

What the machine, PyTorch or a setting refuses becomes a row that says so. A dry run takes the CPU,
networks of toy size and few steps, neither records nor compiles, and otherwise does the same.
"""

import argparse
import gc
import importlib.util
import json
import os
import platform
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from rates import SMALL, SMALL_PRODUCT
from tiny_stages import DEEP, DISCRIMINATOR
from torch.autograd import DeviceType

from qdmr_ray.bench import machine
from qdmr_ray.bench.step import (
    PRESETS,
    PROFILED_STEPS,
    StepBench,
    bench_step,
    built_stage,
    compute_of,
    profiled,
    stage_of,
    step_of,
)
from qdmr_ray.errors import QdmrError, reason
from qdmr_ray.nets import VQGAN
from qdmr_ray.stages import STAGES, ComputeSettings, Stage, arithmetic
from qdmr_ray.stages.compute import BFLOAT16, DTYPES, FLOAT32

Row = dict[str, Any]
Emit = Callable[[Row], None]
REPOSITORY = Path(__file__).parents[2]
RECORDED = "recorded"
NO_KERNELS = "bfloat16, no kernels"
BUILDS: dict[str, dict[str, Any]] = {
    RECORDED: {"dtype": BFLOAT16, "cuda_graph": True},
    "plain": {"plain": True},
    "bfloat16": {"dtype": BFLOAT16},
    NO_KERNELS: {"dtype": BFLOAT16, "fused_kernels": False},
    "recorded, compiled": {"dtype": BFLOAT16, "cuda_graph": True, "compile": True},
}
# The tests that take a GPU where there is one, and need PyTorch and pytest alone.
GPU_TESTS = ("tests/stages/test_recorded_steps.py", "tests/nets/fused/test_fused.py")
PACKAGES = ("numpy", "PIL", "pytest", "triton", "torchvision", "lpips")
OPERATIONS = 20
# Steps of the training whose mean is told, at its beginning and at its end.
WINDOW = 0.1


@dataclass(frozen=True)
class Scale:
    """How large everything is; ``photographs`` are heights and widths with repetitions."""

    dry: bool = False
    device: str = "cuda"
    preset: str = "full"
    size: int = 256
    warm_up: int = 3
    steps: int = 10
    iterations: int = 80
    tests: tuple[str, ...] = GPU_TESTS
    photographs: tuple[tuple[int, int, int], ...] = ((1280, 1920, 3), (4000, 6000, 2))

    def bench(self, stage: str, build: str, *, backbones: bool = False) -> StepBench:
        """Returns the bench of a stage at the batch of its settings, or in a dry run at 1."""
        changes = dict(BUILDS[build])
        if self.dry:
            changes = {n: x for n, x in changes.items() if n not in ("cuda_graph", "compile")}
        return StepBench(
            stage=stage,
            # The feature discriminator, which UDA alone has, sees an eighth of it.
            size=self.size // 2 if self.dry and stage != "uda" else self.size,
            batch=1 if self.dry else STAGES[stage].settings_type().batch_size,
            device=self.device,
            preset=self.preset,
            warm_up=self.warm_up,
            steps=self.steps,
            backbones=backbones,
            **changes,
        )


DRY = Scale(
    dry=True,
    device="cpu",
    preset="toy",
    size=64,
    warm_up=0,
    steps=1,
    iterations=4,
    tests=GPU_TESTS[:1],
    photographs=((64, 96, 1), (96, 128, 1)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    scale = DRY if arguments.dry_run else Scale()
    if scale.dry:
        PRESETS["toy"] = DEEP, DISCRIMINATOR
        vars(machine).update(SMALL)
        vars(arithmetic).update(SMALL_PRODUCT)
        torch.set_num_threads(1)
    with arguments.rows.open("w", buffering=1) as file:
        PARTS[arguments.part](scale, lambda row: print(json.dumps(row), file=file))


def measured(what: Row, work: Callable[[], Row]) -> Row:
    """Returns ``what`` with the results of ``work``, or with the reason why there are none; frees
    the memory either way."""
    try:
        return work() | what
    except (QdmrError, RuntimeError, ImportError) as error:
        return what | {"refused": reason(error)}
    finally:
        gc.collect()


def about_the_machine(scale: Scale, emit: Emit) -> None:
    """The GPU, what is installed, and the rates by precision."""
    device = torch.device(scale.device)
    there = {name: importlib.util.find_spec(name) is not None for name in PACKAGES}
    row: Row = {
        "device": machine.device_name(device),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "packages": [name for name, found in there.items() if found],
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        row |= {
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "nccl": ".".join(map(str, torch.cuda.nccl.version())),
            "capability": f"{properties.major}.{properties.minor}",
            "memory_bytes": properties.total_memory,
        }
    emit(row)
    for dtype in DTYPES:
        compute = ComputeSettings(dtype=dtype)
        emit(measured({"dtype": dtype}, partial(rates, device, compute)))
    emit({"gigabytes_copied_per_second": machine.copy_rate(device) / arithmetic.GIGA})


def rates(device: torch.device, compute: ComputeSettings) -> Row:
    """Returns the GFLOP/s of a matrix product and of a convolution."""
    return {
        "gflops_measured": arithmetic.matrix_rate(device, compute),
        "gflops_convolution": machine.convolution_rate(device, compute),
    }


def tests(scale: Scale, emit: Emit) -> None:
    """A row for each test, in the moment in which it ends."""
    try:
        import pytest
    except ImportError:
        emit({"refused": "pytest is not installed on this machine"})
        return

    class Recorder:
        def pytest_collectreport(self, report: pytest.CollectReport) -> None:
            if report.failed:
                emit({"test": report.nodeid, "outcome": "failed", "why": why(report)})

        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.when == "call" or not report.passed:
                row = {"test": report.nodeid, "outcome": report.outcome}
                emit(row | {"seconds": round(report.duration, 2), "why": why(report)})

    os.chdir(REPOSITORY)
    # Without the conftest.py files, which need what trains with Ray.
    options = ["--noconftest", "-o", "addopts=", "-q", "-p", "no:cacheprovider"]
    pytest.main([*options, *scale.tests], plugins=[Recorder()])


def why(report: Any) -> str:
    """Returns the reason of a skipped test, or the error of a failed one."""
    if report.skipped:
        return str(report.longrepr[2])
    lines = [line for line in report.longreprtext.splitlines() if line.startswith("E ")]
    return lines[0][1:].strip() if lines else report.longreprtext[-300:]


def steps(stage: str, scale: Scale, emit: Emit) -> None:
    """Every build of a stage, without and with LPIPS and the semantic term, which have no kernels
    of ours."""
    for build in BUILDS:
        for backbones in (False,) if build == NO_KERNELS else (False, True):
            bench = scale.bench(stage, build, backbones=backbones)
            what = {"stage": stage, "batch": bench.batch, "build": build, "backbones": backbones}
            emit(measured(what, partial(bench_step, bench)))


def exchange(scale: Scale, emit: Emit) -> None:
    """Recorded steps without and with an exchange of gradients, and how far apart the weights are
    afterwards. One worker has nothing to send: this shows that a recording holds the exchange, and
    what the copies around it take."""
    backend = "gloo" if scale.dry else "nccl"
    with process_group(backend):
        for name in ("uda", "base", "vqgan"):
            alone: list[torch.Tensor] = []
            for gradients in (None, FLOAT32, BFLOAT16):
                what = {"stage": name, "gradients": gradients, "backend": backend}
                bench = scale.bench(name, RECORDED)
                emit(measured(what, partial(exchanged, bench, gradients, alone)))


@contextmanager
def process_group(backend: str) -> Iterator[None]:
    """One worker, as training makes its process group."""
    # Gloo would look up this machine's name, which may have no address.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group(
            backend, init_method=f"file://{folder}/rendezvous", rank=0, world_size=1
        )
        try:
            yield
        finally:
            torch.distributed.destroy_process_group()


def exchanged(bench: StepBench, gradients: str | None, alone: list[torch.Tensor]) -> Row:
    """Times steps that exchange ``gradients``, or none for None, whose weights go to ``alone``."""
    compute, device = compute_of(bench), torch.device(bench.device)
    if gradients is not None:
        compute = replace(compute, gradients=gradients)
    stage = built_stage(bench).to(device, compute=compute)
    if gradients is not None:
        stage.join_workers()
    try:
        step = step_of(bench, stage)
        for _ in range(stage.slow_steps + bench.warm_up):
            step()
        seconds = [arithmetic.timed(step, device) for _ in range(bench.steps)]
        weights = [p.detach().clone() for p in stage.generator.parameters() if p.requires_grad]
    finally:
        stage.close()
    row: Row = {"seconds_per_step": statistics.median(seconds), "steps": stage.iteration}
    if gradients is None:
        alone += weights
    elif alone:
        apart = sum((a - b).square().sum() for a, b in zip(alone, weights, strict=True))
        row["relative_distance"] = float((apart / sum(a.square().sum() for a in alone)).sqrt())
    return row


def restoring(scale: Scale, emit: Emit) -> None:
    """Photographs with the maps in the GPU's memory, and the largest one with the CPU's default for
    them, so that most lie in scratch files."""
    if importlib.util.find_spec("numpy") is None:
        emit({"refused": "numpy is not installed on this machine"})
        return
    from qdmr_ray.bench.restore import RestoreBench, bench_restore
    from qdmr_ray.restore.room import DEFAULT_MEMORY

    base = RestoreBench(device=scale.device, preset=scale.preset)
    benches = [
        replace(base, height=height, width=width, repeats=repeats, dtype=dtype)
        for height, width, repeats in scale.photographs
        for dtype in (BFLOAT16, FLOAT32)
    ]
    benches.append(replace(benches[-2], memory=DEFAULT_MEMORY, repeats=1))
    for bench in benches:
        what: Row = {"height": bench.height, "width": bench.width, "dtype": bench.dtype}
        what |= {} if bench.memory is None else {"memory": bench.memory}
        emit(measured(what, partial(bench_restore, bench)))


def profile(scale: Scale, emit: Emit) -> None:
    """The operations of a recorded UDA step that take the most time, by step."""
    for backbones in (False, True):
        bench = scale.bench("uda", RECORDED, backbones=backbones)
        emit(measured({"stage": "uda", "backbones": backbones}, partial(largest, bench)))


def largest(bench: StepBench) -> Row:
    """Returns the largest operations with their calls and milliseconds a step, and what all take
    together; kernels alone on a GPU, where what starts them counts their time again."""
    on_gpu = torch.device(bench.device).type == "cuda"
    taken = []
    for average in profiled(bench):
        if not on_gpu:
            taken.append((average.self_cpu_time_total, average))
        elif average.device_type == DeviceType.CUDA:
            taken.append((average.self_device_time_total, average))
    taken.sort(key=lambda pair: -pair[0])
    return {
        "milliseconds": sum(microseconds for microseconds, _ in taken) / 1e3 / PROFILED_STEPS,
        "operations": [
            {
                "name": average.key,
                "calls": average.count / PROFILED_STEPS,
                "milliseconds": microseconds / 1e3 / PROFILED_STEPS,
            }
            for microseconds, average in taken[:OPERATIONS]
        ],
    }


def training(scale: Scale, emit: Emit) -> None:
    """A VQGAN and the stages that start from it, recorded, with all terms, on one batch of noise,
    whose losses have to fall."""
    vqgan: VQGAN | None = None
    for name in ("vqgan", "base", "uda"):
        bench = scale.bench(name, RECORDED, backbones=True)
        stage = stage_of(bench, vqgan)
        emit(measured({"stage": name}, partial(trained, bench, stage, scale.iterations)))
        if isinstance(stage.network, VQGAN):
            vqgan = stage.network


def trained(bench: StepBench, stage: Stage, iterations: int) -> Row:
    """Trains; returns the terms' means at the beginning and at the end, and how fast it was once
    a recording was there."""
    device = torch.device(bench.device)
    machine.forget_peak_memory(device)
    step = step_of(bench, stage)
    lines = [step() for _ in range(stage.slow_steps)]
    rest = iterations - len(lines)
    seconds = arithmetic.timed(lambda: lines.extend(step() for _ in range(rest)), device)
    rows = torch.stack([torch.stack([x.float() for x in line.values()]) for line in lines])
    window = max(1, round(WINDOW * iterations))
    first, last = (
        dict(zip(lines[0], part.mean(0).tolist(), strict=True))
        for part in (rows[:window], rows[-window:])
    )
    return {
        "iterations": iterations,
        "samples_per_second": rest * bench.batch / seconds,
        "finite": bool(rows.isfinite().all()),
        "first": first,
        "last": last,
        "peak_memory_bytes": machine.peak_memory(device),
    }


PARTS: dict[str, Callable[[Scale, Emit], None]] = {
    "machine": about_the_machine,
    "tests": tests,
    **{f"steps_{name}": partial(steps, name) for name in ("uda", "base", "vqgan")},
    "exchange": exchange,
    "restore": restoring,
    "training": training,
    "profile": profile,
}

if __name__ == "__main__":
    main()
