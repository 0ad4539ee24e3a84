"""``qdmr bench``: how fast this installation is."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from qdmr_ray.cli.options import (
    DEVELOPERS,
    App,
    JsonFile,
    Preset,
    RestoringDtype,
    TrainingDtype,
)
from qdmr_ray.cli.output import print_figures, say
from qdmr_ray.errors import SettingsError

app = App(
    "bench",
    panel=DEVELOPERS,
    help="Measure how fast this installation is.",
    epilog="Example:  qdmr bench data --json bench.json",
)


@app.command("data", example="bench data --crop 256 --batch 4")
def bench_data(
    data: Annotated[
        str | None, typer.Option(help="Packed dataset; pairs of noise are made by default.")
    ] = None,
    height: Annotated[int, typer.Option(min=1, help="Pixels, of the pairs that are made.")] = 1280,
    width: Annotated[int, typer.Option(min=1, help="Pixels, of the pairs that are made.")] = 1920,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs that are made.")] = 32,
    crop: Annotated[int, typer.Option(min=1, help="Side of a crop in pixels.")] = 256,
    batch: Annotated[int, typer.Option(min=1, help="Pairs in a batch.")] = 4,
    loaders: Annotated[int, typer.Option(min=1, help="Loading tasks at the same time.")] = 2,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of the measurement.")] = 10.0,
    json_file: JsonFile = None,
) -> None:
    """Measure source pairs per second into a training worker, beside a plain PyTorch loader."""
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


@app.command("step", example="bench step --stage uda --size 64 --batch 2")
def bench_step(
    stage: Annotated[str, typer.Option(help="vqgan, source_only, base or uda.")] = "base",
    size: Annotated[int, typer.Option(min=1, help="Side of the images in pixels.")] = 64,
    batch: Annotated[int, typer.Option(min=1, help="Samples in a batch.")] = 2,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    dtype: Annotated[TrainingDtype, typer.Option(help="Precision of the step.")] = "float32",
    compile_networks: Annotated[
        bool, typer.Option("--compile", help="Use torch.compile; start_seconds tells its cost.")
    ] = False,
    channels_last: Annotated[bool, typer.Option(help="Lay channels innermost in memory.")] = True,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Compute activations again instead of keeping them.")
    ] = False,
    cuda_graph: Annotated[
        bool, typer.Option("--cuda-graph", help="Record a step as a CUDA graph and replay it.")
    ] = False,
    plain: Annotated[
        bool,
        typer.Option(
            "--plain",
            help="Measure a plain build to compare with: float32, contiguous, one forward per set.",
        ),
    ] = False,
    preset: Annotated[Preset, typer.Option(help="Sizes of the networks.")] = "full",
    steps: Annotated[int, typer.Option(min=1, help="Repetitions that are timed.")] = 10,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of PyTorch.")] = None,
    profiled: Annotated[
        bool, typer.Option("--profile", help="Print a table of operations instead.")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Measure seconds per training step, beside the floor that its arithmetic sets here."""
    from qdmr_ray.bench.step import StepBench, profile_step
    from qdmr_ray.bench.step import bench_step as measure
    from qdmr_ray.restore.device import usable_device
    from qdmr_ray.stages import STAGES

    if stage not in STAGES:
        raise SettingsError(f"--stage {stage}: choose from {', '.join(STAGES)}")
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


@app.command("restore", example="bench restore --height 640 --width 960")
def bench_restore(
    height: Annotated[int, typer.Option(min=1, help="Pixels.")] = 640,
    width: Annotated[int, typer.Option(min=1, help="Pixels.")] = 960,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    dtype: Annotated[RestoringDtype, typer.Option(help="Precision of the network.")] = "float32",
    memory: Annotated[float, typer.Option(min=0, help="GiB for maps between layers.")] = 2.0,
    preset: Annotated[Preset, typer.Option(help="Sizes of the network.")] = "full",
    repeats: Annotated[int, typer.Option(min=1, help="Repetitions that are timed.")] = 3,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of PyTorch.")] = None,
    json_file: JsonFile = None,
) -> None:
    """Measure time and memory to correct a photograph, beside its arithmetic's floor."""
    from qdmr_ray.bench.restore import RestoreBench
    from qdmr_ray.bench.restore import bench_restore as measure
    from qdmr_ray.cli.restore import bytes_of

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
