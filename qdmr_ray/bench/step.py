"""Seconds per training step beside the floor that the arithmetic sets on this machine.

    qdmr bench step --stage uda --size 64 --batch 2
    python -m qdmr_ray.bench.step --stage base --size 256 --batch 4 --device cuda --dtype bfloat16

The second form needs PyTorch and NumPy alone. Networks are full-size, images random, LPIPS and the
semantic term off (they need downloaded weights).

The floor is the arithmetic that the method needs, counted by PyTorch's flop counter on each part,
divided by the rate of a large matrix product on the same device in the same run. What counts as
needed follows from METHOD.md, not from how a stage computes it: a network that is trained takes a
forward and a backward pass; a discriminator in the generator's step a forward pass and a backward
pass to its input; a frozen network a forward pass.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from qdmr_ray.bench.plain import one_set_at_a_time
from qdmr_ray.errors import SettingsError
from qdmr_ray.nets import (
    VQGAN,
    DiscriminatorSettings,
    NetworkSettings,
    SwinSettings,
    UNetDiscriminator,
)
from qdmr_ray.stages import (
    STAGES,
    Components,
    ComputeSettings,
    Stage,
    StageSettings,
    build_stage,
    flush_denormals,
)
from qdmr_ray.stages.compute import BFLOAT16, DTYPES, FLOAT32, tensor_float_32

# Network sizes by name: the paper's, and those of experiments/demo.yaml.
PRESETS: dict[str, tuple[NetworkSettings, DiscriminatorSettings]] = {
    "full": (NetworkSettings(), DiscriminatorSettings()),
    "demo": (
        NetworkSettings(
            widths=(16, 32, 48),
            residual_blocks=1,
            codebook_size=64,
            code_dim=16,
            swin=SwinSettings(groups=1, blocks=2, heads=4, window=8, mlp_ratio=2.0),
            global_residual=True,
        ),
        DiscriminatorSettings(width=8),
    ),
}
SEED = 0
GIGA = 1e9
# The image that the arithmetic is counted on; a multiple of every preset's windows.
COUNTED_SIDE = 64
_PROFILED_STEPS = 3
# Side of the matrices whose product gives the machine's rate: large enough to be bound by
# arithmetic, small enough to take under a second.
_MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
_MATRIX_REPEATS = 12
# Larger than the last cache.
_COPIED_BYTES = {"cpu": 1 << 28, "cuda": 1 << 30}


@dataclass(frozen=True, kw_only=True)
class StepBench:
    """What is timed: the median of ``steps`` steps after ``warm_up`` ones."""

    stage: str = "base"
    size: int = 64
    batch: int = 2
    device: str = "cpu"
    dtype: str = "float32"
    compile: bool = False
    channels_last: bool = True
    recompute: bool = False
    cuda_graph: bool = False
    # Contiguous float32 with one forward per image set.
    plain: bool = False
    preset: str = "full"
    warm_up: int = 3
    steps: int = 10
    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class StepFigures:
    """``ratio`` is seconds_per_step / floor_seconds. Convolutions may run faster than the matrix
    product (on AMD's processors they do, by other libraries): ``ratio_convolution`` is the same
    with the rate of a convolution. ``start_seconds`` is the first step, with
    compilation where there is any; peak memory is the allocator's on a GPU, the process's
    otherwise."""

    stage: str
    seconds_per_step: float
    gflop_needed: float
    gflops_measured: float
    floor_seconds: float
    ratio: float
    gflops_convolution: float
    ratio_convolution: float
    gigabytes_copied_per_second: float
    start_seconds: float
    peak_memory_bytes: int
    device: str
    dtype: str
    compile: bool
    channels_last: bool
    recompute: bool
    cuda_graph: bool
    plain: bool
    size: int
    batch: int
    threads: int
    torch: str


def bench_step(bench: StepBench) -> StepFigures:
    """Times a stage's steps and the machine's matrix rate, in one process."""
    device = torch.device(bench.device)
    if bench.threads is not None:
        torch.set_num_threads(bench.threads)
    stage, batch, compute = stage_of(bench), _batch(bench, device), compute_of(bench)
    start = timed(lambda: stage.step(batch), device)
    for _ in range(bench.warm_up):
        stage.step(batch)
    # The rate is taken before and after: a machine that is busy meanwhile shows in both.
    before = matrix_rate(device, compute.dtype)
    seconds = [timed(lambda: stage.step(batch), device) for _ in range(bench.steps)]
    peak = peak_memory(device)
    rate = max(before, matrix_rate(device, compute.dtype))
    needed = needed_flop(bench) / GIGA
    floor = needed / rate
    median = statistics.median(seconds)
    convolution = convolution_rate(device, compute)
    return StepFigures(
        stage=bench.stage,
        seconds_per_step=median,
        gflop_needed=needed,
        gflops_measured=rate,
        floor_seconds=floor,
        ratio=median / floor,
        gflops_convolution=convolution,
        ratio_convolution=median * convolution / needed,
        gigabytes_copied_per_second=copy_rate(device) / GIGA,
        start_seconds=start,
        peak_memory_bytes=peak,
        device=device_name(device),
        dtype=compute.dtype,
        compile=compute.compile,
        channels_last=compute.channels_last,
        recompute=compute.recompute,
        cuda_graph=compute.cuda_graph,
        plain=bench.plain,
        size=bench.size,
        batch=bench.batch,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
    )


def profile_step(bench: StepBench, rows: int = 25) -> str:
    """A table of the operations that take the most time in three steps, by PyTorch's profiler."""
    device = torch.device(bench.device)
    if bench.threads is not None:
        torch.set_num_threads(bench.threads)
    stage, batch = stage_of(bench), _batch(bench, device)
    for _ in range(1 + bench.warm_up):
        stage.step(batch)
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        for _ in range(_PROFILED_STEPS):
            stage.step(batch)
    order = f"self_{device.type}_time_total"
    table: str = profiler.key_averages().table(sort_by=order, row_limit=rows)
    return table


def matrix_rate(device: torch.device, dtype: str) -> float:
    """GFLOP/s of a large matrix product: the best of some repeats."""
    side = _MATRIX_SIDE[device.type]
    kind = torch.bfloat16 if dtype == BFLOAT16 else torch.float32
    a, b = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
    product = torch.empty_like(a)
    with tensor_float_32(ComputeSettings(dtype=dtype), device):
        work = partial(torch.mm, a, b, out=product)
        best = min(timed(work, device) for _ in range(_MATRIX_REPEATS))
    return 2 * side**3 / best / GIGA


def convolution_rate(device: torch.device, compute: ComputeSettings) -> float:
    """GFLOP/s of a 3 x 3 convolution of 256 channels: the best of some repeats."""
    kind = torch.bfloat16 if compute.dtype == BFLOAT16 else torch.float32
    layout = torch.channels_last if compute.channels_last else torch.contiguous_format
    batch, channels, side = 4, 256, 64
    images = torch.randn(batch, channels, side, side, device=device, dtype=kind)
    weight = torch.randn(channels, channels, 3, 3, device=device, dtype=kind)
    images, weight = (x.contiguous(memory_format=layout) for x in (images, weight))
    with tensor_float_32(compute, device):
        work = partial(nn.functional.conv2d, images, weight, padding=1)
        best = min(timed(work, device) for _ in range(_MATRIX_REPEATS))
    return 2 * batch * side**2 * channels**2 * 9 / best / GIGA


def copy_rate(device: torch.device) -> float:
    """Bytes read and written per second when a large tensor is copied."""
    values = torch.zeros(_COPIED_BYTES[device.type], dtype=torch.uint8, device=device)
    copy = torch.empty_like(values)
    best = min(timed(lambda: copy.copy_(values), device) for _ in range(_MATRIX_REPEATS))
    return 2 * values.numel() / best


def needed_flop(bench: StepBench) -> float:
    """Floating-point operations that one step of the stage needs, all parts together.

    Counted on one small image and scaled by pixels: every part is convolutions, windows of fixed
    size and layers of single positions.
    """
    scale = bench.batch * (bench.size / COUNTED_SIDE) ** 2
    return scale * _flop_of_one_image(bench.stage, bench.preset)


@cache
def _flop_of_one_image(stage: str, preset: str) -> float:
    components = _components(stage, preset)
    image = torch.rand(1, 3, COUNTED_SIDE, COUNTED_SIDE)
    return sum(
        needed.times
        * flop_of(
            needed.network, needed.inputs, to_input=needed.to_input, to_weights=needed.to_weights
        )
        for needed in STAGES[stage].needed_passes(components, image)
    )


def flop_of(
    network: Callable[[Tensor], Tensor],
    inputs: Tensor,
    *,
    to_input: bool = False,
    to_weights: bool = False,
) -> float:
    """Of a forward pass, and of a backward pass to the input, the weights, both or neither.

    A discriminator's estimates of its spectral norms are left out: they don't grow with the image.
    """
    inputs = inputs.clone().requires_grad_(to_input)
    if isinstance(network, nn.Module):
        network.requires_grad_(to_weights)
    counter = FlopCounterMode(display=False)
    with counter, torch.set_grad_enabled(to_input or to_weights):
        out = network(inputs)
        if to_input or to_weights:
            out.sum().backward()
    counts = counter.get_flop_counts()["Global"]
    if isinstance(network, UNetDiscriminator):
        counts.pop(torch.ops.aten.mm, None)
    return float(sum(counts.values()))


def compute_of(bench: StepBench) -> ComputeSettings:
    """How the stage of ``bench`` computes.

    Raises:
        SettingsError: ``plain`` beside what it goes without.
    """
    if bench.plain:
        others = {"dtype": bench.dtype != FLOAT32} | {
            name: getattr(bench, name) for name in ("compile", "recompute", "cuda_graph")
        }
        for name, given in others.items():
            if given:
                option = name.replace("_", "-")
                raise SettingsError(f"--plain is float32 and nothing else: leave out --{option}")
        return ComputeSettings(channels_last=False)
    return ComputeSettings(
        dtype=bench.dtype,
        compile=bench.compile,
        channels_last=bench.channels_last,
        recompute=bench.recompute,
        cuda_graph=bench.cuda_graph,
    )


def stage_of(bench: StepBench, vqgan: VQGAN | None = None) -> Stage:
    """The stage of ``bench`` on its device; base and uda start from ``vqgan``, or from noise."""
    compute = compute_of(bench)
    flush_denormals()
    torch.manual_seed(SEED)
    components = _components(bench.stage, bench.preset, {"vqgan": vqgan} if vqgan else None)
    stage = build_stage(bench.stage, _settings(bench.stage), components)
    if bench.plain:
        one_set_at_a_time(stage, bench.batch)
    return stage.to(bench.device, compute=compute)


def _components(
    stage: str, preset: str, trained: Mapping[str, nn.Module] | None = None
) -> Components:
    """What ``stage`` is built from; networks that it needs and ``trained`` lacks are noise."""
    network, discriminator = PRESETS[preset]
    trained = trained or {
        needed: build_stage(needed, _settings(needed), _components(needed, preset)).network
        for needed in STAGES[stage].needs
    }
    return Components(network=network, discriminator=discriminator, trained=trained)


def _settings(stage: str) -> StageSettings:
    """The stage's defaults without the terms that need downloaded weights."""
    switched_off: dict[str, Any] = dict.fromkeys(STAGES[stage].backbones, 0)
    return STAGES[stage].settings_type(**switched_off)


def _batch(bench: StepBench, device: torch.device) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(SEED)
    shape = (bench.batch, 3, bench.size, bench.size)
    names = ("source", "ground_truth", "target")
    return {name: torch.rand(shape, generator=generator).to(device) for name in names}


def timed(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Imported here: Windows has no such module.
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def main(arguments: list[str] | None = None) -> None:
    """The command line where the ``qdmr`` command and what it needs are not installed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    default = StepBench()
    parser.add_argument("--stage", choices=STAGES, default=default.stage)
    parser.add_argument("--preset", choices=PRESETS, default=default.preset)
    parser.add_argument("--dtype", choices=DTYPES, default=default.dtype)
    parser.add_argument("--device", default=default.device)
    for name in ("size", "batch", "warm_up", "steps", "threads"):
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=int, default=getattr(default, name))
    for name in ("compile", "recompute", "cuda-graph", "plain"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--channels-last", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--profile", action="store_true", help="a table of operations instead")
    values = vars(parser.parse_args(arguments))
    profiled = values.pop("profile")
    bench = StepBench(**values)
    try:
        print(profile_step(bench) if profiled else json.dumps(asdict(bench_step(bench)), indent=1))
    except SettingsError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
