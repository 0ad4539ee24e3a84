"""``qdmr bench``: how fast this installation is."""

from pathlib import Path
from typing import Any

from qdmr_ray.cli.options import JSON_FILE, App, Preset, RestoringDtype, TrainingDtype, flag, option
from qdmr_ray.cli.output import print_results, say
from qdmr_ray.errors import SettingsError

app = App(
    "Developers", "bench", "Measure how fast this installation is.", "bench data --json bench.json"
)


@app.command("data", example="bench data --crop 256 --batch 4")
def bench_data(
    data: str | None = option(None, "Packed dataset; pairs of noise are made by default."),
    height: int = option(1280, "Pixels, of the pairs that are made.", min=1),
    width: int = option(1920, "Pixels, of the pairs that are made.", min=1),
    pairs: int = option(32, "Pairs that are made.", min=1),
    crop: int = option(256, "Side of a crop in pixels.", min=1),
    batch: int = option(4, "Pairs in a batch.", min=1),
    workers: int = option(1, "Training workers that are fed at the same time.", min=1),
    loaders: int = option(2, "Loading tasks at the same time, for each worker.", min=1),
    seconds: float = option(10.0, "Length of the measurement.", min=0.1),
    json_file: Path | None = JSON_FILE,
) -> None:
    """Measure source pairs per second into training workers; one, beside a plain PyTorch loader."""
    from qdmr_ray.bench.data import DataBench
    from qdmr_ray.bench.data import bench_data as measure

    made: Any = {"data": data, "pairs": pairs, "height": height, "width": width}
    read: Any = {"crop": crop, "batch_size": batch, "loader_workers": loaders, "seconds": seconds}
    print_results(measure(DataBench(**made, **read, workers=workers), say), json_file)


@app.command("step", example="bench step --stage uda --size 64 --batch 2")
def bench_step(
    stage: str = option("base", "vqgan, source_only, base or uda."),
    size: int = option(64, "Side of the images in pixels.", min=1),
    batch: int = option(2, "Samples in a batch.", min=1),
    device: str = option("cpu", "cpu, cuda or cuda:N."),
    dtype: TrainingDtype = option("float32", "Precision of the step."),
    compile_networks: bool = flag("--compile", "Use torch.compile; start_seconds tells its cost."),
    channels_last: bool = option(True, "Lay channels innermost in memory."),
    recompute: bool = flag("--recompute", "Compute activations again instead of keeping them."),
    cuda_graph: bool = flag("--cuda-graph", "Record a step as a CUDA graph and replay it."),
    backbones: bool = flag("--backbones", "Add LPIPS and the semantic term, of random weights."),
    fused_kernels: bool = option(True, "Use our own kernels on a GPU."),
    plain: bool = flag(
        "--plain",
        "Measure a plain build to compare with: float32, contiguous, one forward per set.",
    ),
    preset: Preset = option("full", "Sizes of the networks."),
    steps: int = option(10, "Repetitions that are timed.", min=1),
    threads: int | None = option(None, "Threads of PyTorch.", min=1),
    profiled: bool = flag("--profile", "Print a table of operations instead."),
    json_file: Path | None = JSON_FILE,
) -> None:
    """Measure seconds per training step, beside the floor that its arithmetic sets here."""
    from qdmr_ray.bench.step import StepBench, profile_step
    from qdmr_ray.bench.step import bench_step as measure
    from qdmr_ray.restore.device import usable_device
    from qdmr_ray.stages import STAGES

    if stage not in STAGES:
        raise SettingsError(f"--stage {stage}: choose from {', '.join(STAGES)}")
    usable_device(device)
    work: Any = {"stage": stage, "preset": preset, "size": size, "batch": batch, "plain": plain}
    terms: Any = {"backbones": backbones, "fused_kernels": fused_kernels}
    layout: Any = {"dtype": dtype, "channels_last": channels_last, "recompute": recompute}
    run: Any = {"device": device, "threads": threads, "steps": steps, "cuda_graph": cuda_graph}
    bench = StepBench(**work, **terms, **layout, **run, compile=compile_networks)
    if profiled:
        say(*profile_step(bench).split("\n"))
        return
    print_results(measure(bench), json_file)


@app.command("restore", example="bench restore --height 640 --width 960")
def bench_restore(
    height: int = option(640, "Pixels.", min=1),
    width: int = option(960, "Pixels.", min=1),
    device: str = option("cpu", "cpu, cuda or cuda:N."),
    dtype: RestoringDtype = option("float32", "Precision of the network."),
    memory: float | None = option(
        None, "GiB for maps between layers, 2 by default, on a GPU what is free.", min=0
    ),
    preset: Preset = option("full", "Sizes of the network."),
    repeats: int = option(3, "Repetitions that are timed.", min=1),
    threads: int | None = option(None, "Threads of PyTorch.", min=1),
    json_file: Path | None = JSON_FILE,
) -> None:
    """Measure time and memory to correct a photograph, beside its arithmetic's floor."""
    from qdmr_ray.bench.restore import RestoreBench
    from qdmr_ray.bench.restore import bench_restore as measure
    from qdmr_ray.cli.restore import bytes_of

    work: Any = {"height": height, "width": width, "preset": preset, "memory": bytes_of(memory)}
    run: Any = {"device": device, "dtype": dtype, "repeats": repeats, "threads": threads}
    print_results(measure(RestoreBench(**work, **run)), json_file)
