"""Measures the seconds per training step beside the floor that the arithmetic sets here.

    qdmr bench step --stage uda --size 64 --batch 2
    python -m qdmr_ray.bench.step --stage base --size 256 --batch 4 --device cuda --dtype bfloat16

The second form needs PyTorch alone. Networks are full-size, images random. LPIPS and the semantic
term are off, or with ``backbones`` on, with VGGs of random weights.

The floor is the arithmetic that the method needs (``qdmr_ray/stages/arithmetic.py`` says what that
is) over the rate of a large matrix product on the same device in the same run. What the backbones
need is counted as the stage computes it.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from qdmr_ray.bench import machine
from qdmr_ray.bench.backbones import RandomBackbones
from qdmr_ray.bench.plain import one_set_at_a_time
from qdmr_ray.errors import SettingsError
from qdmr_ray.nets import VQGAN, DiscriminatorSettings, NetworkSettings, SwinSettings
from qdmr_ray.nets.vgg import DOWNSAMPLING as VGG_DOWNSAMPLING
from qdmr_ray.stages import (
    STAGES,
    Components,
    Stage,
    StageSettings,
    arithmetic,
    build_stage,
    flush_denormals,
)
from qdmr_ray.stages.compute import DTYPES, ComputeSettings
from qdmr_ray.stages.objective import Losses

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
# Side of the image that the arithmetic is counted on; a multiple of every preset's windows.
COUNTED_SIDE = 64
PROFILED_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class StepBench:
    """The settings of the bench: it takes the median of ``steps`` steps after ``warm_up`` ones."""

    stage: str = "base"
    size: int = 64
    batch: int = 2
    device: str = "cpu"
    dtype: str = "float32"
    compile: bool = False
    channels_last: bool = True
    recompute: bool = False
    cuda_graph: bool = False
    # Also trains with LPIPS and, a VQGAN, with the semantic term.
    backbones: bool = False
    fused_kernels: bool = True
    # Builds the baseline: contiguous float32 with one forward pass per image set.
    plain: bool = False
    preset: str = "full"
    warm_up: int = 3
    steps: int = 10
    threads: int | None = None


def bench_step(bench: StepBench) -> dict[str, Any]:
    """Times a stage's steps, and the machine's rates in the same process; returns the settings in
    force and the results, where ``start_seconds`` is the first step, compilation included. Raises
    SettingsError for settings that exclude one another."""
    device, compute = torch.device(bench.device), compute_of(bench)
    machine.forget_peak_memory(device)
    step = step_of(bench)
    start = arithmetic.timed(step, device)
    for _ in range(bench.warm_up):
        step()
    # The rate is taken before and after: a machine that is busy meanwhile shows in both.
    before = arithmetic.matrix_rate(device, compute)
    seconds = median(arithmetic.timed(step, device) for _ in range(bench.steps))
    peak = machine.peak_memory(device)
    rate = max(before, arithmetic.matrix_rate(device, compute))
    convolution = machine.convolution_rate(device, compute)
    fused = compute.fused_kernels is not False and device.type == "cuda"
    in_force: Any = {"channels_last": compute.channels_last, "fused_kernels": fused}
    in_force["device"] = machine.device_name(device)
    return {
        **asdict(bench) | in_force | {"threads": torch.get_num_threads()},
        **machine.against_floor(seconds, needed_flop(bench), rate, convolution, peak),
        "seconds_per_step": seconds,
        "gigabytes_copied_per_second": machine.copy_rate(device) / arithmetic.GIGA,
        "start_seconds": start,
    }


def profile_step(bench: StepBench, rows: int = 25) -> str:
    """Returns PyTorch's profiler table of the operations that take the most time in three steps."""
    kind = torch.device(bench.device).type
    table = profiled(bench).table(sort_by=f"self_{kind}_time_total", row_limit=rows)
    return str(table)


def profiled(bench: StepBench) -> Any:
    """Returns PyTorch's profiler's averages over ``PROFILED_STEPS`` steps, by operation."""
    step, kind = step_of(bench), torch.device(bench.device).type
    for _ in range(1 + bench.warm_up):
        step()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (kind == "cuda")
    with profile(activities=activities) as profiler:
        for _ in range(PROFILED_STEPS):
            step()
    return profiler.key_averages()


def needed_flop(bench: StepBench) -> float:
    """Counts the floating-point operations that one step needs, all networks together. It counts on
    one small image and scales by pixels: every network is made of convolutions, windows of fixed
    size and layers of single positions."""
    scale = bench.batch * (bench.size / COUNTED_SIDE) ** 2
    flop = _flop_of_one_image(bench.stage, bench.preset)
    if bench.backbones:
        flop += _flop_of_backbones(bench.stage, bench.preset)
    return scale * flop


@cache
def _flop_of_one_image(stage: str, preset: str) -> float:
    kind, (network, discriminator) = STAGES[stage], PRESETS[preset]
    components = Components(network=network, discriminator=discriminator)
    settings = arithmetic.without_backbones(kind)
    return arithmetic.needed_flop(kind, settings, components, COUNTED_SIDE)


@cache
def _flop_of_backbones(stage: str, preset: str) -> float:
    """Counts what the terms with backbones add to a step on one image."""
    totals = []
    for backbones in (True, False):
        bench = StepBench(
            stage=stage, preset=preset, size=COUNTED_SIDE, batch=1, backbones=backbones
        )
        step = step_of(bench)
        with FlopCounterMode(display=False) as counter:
            step()
        totals.append(float(counter.get_total_flops()))
    return totals[0] - totals[1]


def compute_of(bench: StepBench) -> ComputeSettings:
    """Returns the compute settings; raises SettingsError for ``plain`` with another setting."""
    names = ("dtype", "compile", "recompute", "cuda_graph")
    settings = {name: getattr(bench, name) for name in names}
    if not bench.plain:
        fused = None if bench.fused_kernels else False
        layout: Any = {"channels_last": bench.channels_last, "fused_kernels": fused}
        return ComputeSettings(**layout, **settings)
    plain = ComputeSettings(channels_last=False, fused_kernels=False)
    for name, value in settings.items():
        if value != getattr(plain, name):
            option = name.replace("_", "-")
            raise SettingsError(f"--plain is float32 and nothing else: leave out --{option}")
    return plain


def stage_of(bench: StepBench, vqgan: VQGAN | None = None) -> Stage:
    """Builds the stage on its device; base and uda start from ``vqgan``, or from noise."""
    return built_stage(bench, vqgan).to(bench.device, compute=compute_of(bench))


def built_stage(bench: StepBench, vqgan: VQGAN | None = None) -> Stage:
    """Builds the stage's networks, which are on no device and have no optimizer yet."""
    flush_denormals()
    torch.manual_seed(SEED)
    components = components_of(bench.stage, bench.preset, {"vqgan": vqgan} if vqgan else None)
    settings = _settings(bench.stage, bench.preset, backbones=bench.backbones)
    stage = build_stage(bench.stage, settings, components)
    if bench.plain:
        one_set_at_a_time(stage, bench.batch)
    return stage


def components_of(
    stage: str, preset: str, trained: Mapping[str, nn.Module] | None = None
) -> Components:
    """Builds the components of ``stage``; networks that ``trained`` lacks are noise."""
    network, discriminator = PRESETS[preset]
    components = RandomBackbones(network=network, discriminator=discriminator)
    if trained:
        return replace(components, trained=trained)
    return arithmetic.with_untrained(STAGES[stage], components)


def _settings(stage: str, preset: str, *, backbones: bool = False) -> StageSettings:
    """Returns the stage's defaults without the terms that compare with backbones, unless these are
    wanted. The demo trains without the semantic term, which needs features at 1/8."""
    off: dict[str, Any] = dict.fromkeys(STAGES[stage].backbones, 0)
    if backbones:
        coarser = PRESETS[preset][0].downsampling != VGG_DOWNSAMPLING
        off = {term: 0 for term in off if term == "semantic" and coarser}
    return STAGES[stage].settings_type(**off)


def step_of(bench: StepBench, stage: Stage | None = None) -> Callable[[], Losses]:
    """Returns a training step of ``stage``, by default a new one, on random images, with the
    threads that the bench sets."""
    if bench.threads is not None:
        torch.set_num_threads(bench.threads)
    stage, generator = stage or stage_of(bench), torch.Generator().manual_seed(SEED)
    shape = (bench.batch, 3, bench.size, bench.size)
    names = ("source", "ground_truth", "target")
    batch = {name: torch.rand(shape, generator=generator).to(bench.device) for name in names}
    return partial(stage.step, batch)


def main(arguments: list[str] | None = None) -> None:
    """Runs the bench where the ``qdmr`` command and what it needs are not installed."""
    machine.run_alone(
        StepBench(),
        bench_step,
        choices={"stage": [*STAGES], "preset": [*PRESETS], "dtype": [*DTYPES]},
        arguments=arguments,
        profile=profile_step,
    )


if __name__ == "__main__":
    main()
