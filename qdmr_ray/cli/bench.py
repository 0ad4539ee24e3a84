"""``qdmr bench``: how fast this installation is."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from qdmr_ray.cli.output import print_figures, say
from qdmr_ray.errors import SettingsError

bench_app = typer.Typer(
    help="How fast this installation is.",
    epilog="Example:  qdmr bench data --json bench.json",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@bench_app.command("data", epilog="Example:  qdmr bench data --crop 256 --batch 4")
def bench_data(
    data: Annotated[
        str | None, typer.Option(help="Packed dataset; pairs of noise are made by default.")
    ] = None,
    height: Annotated[int, typer.Option(min=1, help="Of the pairs that are made.")] = 1280,
    width: Annotated[int, typer.Option(min=1, help="Of the pairs that are made.")] = 1920,
    pairs: Annotated[int, typer.Option(min=1, help="How many are made.")] = 32,
    crop: Annotated[int, typer.Option(min=1, help="Side of a crop in pixels.")] = 256,
    batch: Annotated[int, typer.Option(min=1, help="Pairs in a batch.")] = 4,
    loaders: Annotated[int, typer.Option(min=1, help="Loading tasks side by side.")] = 2,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long is measured.")] = 10.0,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="F", help="Also write the figures to a file.")
    ] = None,
) -> None:
    """Source pairs per second into a training worker, beside a plain PyTorch loader's."""
    from qdmr_ray.bench.data import DataBench
    from qdmr_ray.bench.data import bench_data as measure

    rates = measure(
        DataBench(
            data=data,
            pairs=pairs,
            height=height,
            width=width,
            crop=crop,
            batch_size=batch,
            loader_workers=loaders,
            seconds=seconds,
        ),
        say,
    )
    print_figures(asdict(rates), json_file)


@bench_app.command("step", epilog="Example:  qdmr bench step --stage uda --size 64 --batch 2")
def bench_step(
    stage: Annotated[str, typer.Option(help="vqgan, source_only, base or uda.")] = "base",
    size: Annotated[int, typer.Option(min=1, help="Side of the images in pixels.")] = 64,
    batch: Annotated[int, typer.Option(min=1, help="Samples in a batch.")] = 2,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, tf32 or bfloat16.")] = "float32",
    compile_networks: Annotated[
        bool, typer.Option("--compile", help="With torch.compile; start_seconds says its cost.")
    ] = False,
    channels_last: Annotated[bool, typer.Option(help="Channels innermost in memory.")] = True,
    recompute: Annotated[
        bool, typer.Option(help="Compute activations again instead of keeping them.")
    ] = False,
    cuda_graph: Annotated[
        bool, typer.Option(help="Record a step on the GPU and start it as a whole.")
    ] = False,
    plain: Annotated[
        bool,
        typer.Option(
            help="The build to compare with: float32, contiguous, one forward per image set."
        ),
    ] = False,
    preset: Annotated[str, typer.Option(help="Sizes of the networks: full or demo.")] = "full",
    steps: Annotated[int, typer.Option(min=1, help="How many are timed.")] = 10,
    threads: Annotated[int | None, typer.Option(min=1, help="PyTorch's threads.")] = None,
    profiled: Annotated[
        bool, typer.Option("--profile", help="Print a table of operations instead.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="F", help="Also write the figures to a file.")
    ] = None,
) -> None:
    """Seconds per training step, beside the floor that its arithmetic sets on this machine."""
    from qdmr_ray.bench.step import PRESETS, StepBench, profile_step
    from qdmr_ray.bench.step import bench_step as measure
    from qdmr_ray.restore.device import usable_device
    from qdmr_ray.stages import STAGES
    from qdmr_ray.stages.compute import DTYPES

    _check_choices(("stage", stage, STAGES), ("preset", preset, PRESETS), ("dtype", dtype, DTYPES))
    usable_device(device)
    bench = StepBench(
        stage=stage,
        size=size,
        batch=batch,
        device=device,
        dtype=dtype,
        compile=compile_networks,
        channels_last=channels_last,
        recompute=recompute,
        cuda_graph=cuda_graph,
        plain=plain,
        preset=preset,
        steps=steps,
        threads=threads,
    )
    if profiled:
        say(profile_step(bench))
        return
    print_figures(asdict(measure(bench)), json_file)


@bench_app.command("restore", epilog="Example:  qdmr bench restore --height 640 --width 960")
def bench_restore(
    height: Annotated[int, typer.Option(min=1, help="Pixels.")] = 640,
    width: Annotated[int, typer.Option(min=1, help="Pixels.")] = 960,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    memory: Annotated[float, typer.Option(min=0, help="GiB for maps between layers.")] = 2.0,
    preset: Annotated[str, typer.Option(help="Sizes of the network: full or demo.")] = "full",
    repeats: Annotated[int, typer.Option(min=1, help="How many are timed.")] = 3,
    threads: Annotated[int | None, typer.Option(min=1, help="PyTorch's threads.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="F", help="Also write the figures to a file.")
    ] = None,
) -> None:
    """Seconds and memory to correct a photograph, beside the floor that its arithmetic sets."""
    from qdmr_ray.bench.restore import DTYPES, RestoreBench
    from qdmr_ray.bench.restore import bench_restore as measure
    from qdmr_ray.bench.step import PRESETS
    from qdmr_ray.cli.restore import bytes_of

    _check_choices(("preset", preset, PRESETS), ("dtype", dtype, DTYPES))
    bench = RestoreBench(
        height=height,
        width=width,
        device=device,
        dtype=dtype,
        memory=bytes_of(memory),
        preset=preset,
        repeats=repeats,
        threads=threads,
    )
    print_figures(asdict(measure(bench)), json_file)


def _check_choices(*choices: tuple[str, str, Collection[str]]) -> None:
    for option, value, known in choices:
        if value not in known:
            raise SettingsError(f"--{option} {value}: choose from {', '.join(known)}")
