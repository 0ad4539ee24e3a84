"""``qdmr bench``: how fast this installation is."""

from __future__ import annotations

from dataclasses import asdict

from typer import Option

from qdmr_ray.cli.options import DEVELOPERS, App, JsonFile, Preset, RestoringDtype, TrainingDtype
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
    data: str | None = Option(None, help="Packed dataset; pairs of noise are made by default."),
    height: int = Option(1280, min=1, help="Pixels, of the pairs that are made."),
    width: int = Option(1920, min=1, help="Pixels, of the pairs that are made."),
    pairs: int = Option(32, min=1, help="Pairs that are made."),
    crop: int = Option(256, min=1, help="Side of a crop in pixels."),
    batch: int = Option(4, min=1, help="Pairs in a batch."),
    loaders: int = Option(2, min=1, help="Loading tasks at the same time."),
    seconds: float = Option(10.0, min=0.1, help="Length of the measurement."),
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
    stage: str = Option("base", help="vqgan, source_only, base or uda."),
    size: int = Option(64, min=1, help="Side of the images in pixels."),
    batch: int = Option(2, min=1, help="Samples in a batch."),
    device: str = Option("cpu", help="cpu, cuda or cuda:N."),
    dtype: TrainingDtype = Option("float32", help="Precision of the step."),
    compile_networks: bool = Option(
        False, "--compile", help="Use torch.compile; start_seconds tells its cost."
    ),
    channels_last: bool = Option(True, help="Lay channels innermost in memory."),
    recompute: bool = Option(
        False, "--recompute", help="Compute activations again instead of keeping them."
    ),
    cuda_graph: bool = Option(
        False, "--cuda-graph", help="Record a step as a CUDA graph and replay it."
    ),
    plain: bool = Option(
        False,
        "--plain",
        help="Measure a plain build to compare with: float32, contiguous, one forward per set.",
    ),
    preset: Preset = Option("full", help="Sizes of the networks."),
    steps: int = Option(10, min=1, help="Repetitions that are timed."),
    threads: int | None = Option(None, min=1, help="Threads of PyTorch."),
    profiled: bool = Option(False, "--profile", help="Print a table of operations instead."),
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
    height: int = Option(640, min=1, help="Pixels."),
    width: int = Option(960, min=1, help="Pixels."),
    device: str = Option("cpu", help="cpu, cuda or cuda:N."),
    dtype: RestoringDtype = Option("float32", help="Precision of the network."),
    memory: float = Option(2.0, min=0, help="GiB for maps between layers."),
    preset: Preset = Option("full", help="Sizes of the network."),
    repeats: int = Option(3, min=1, help="Repetitions that are timed."),
    threads: int | None = Option(None, min=1, help="Threads of PyTorch."),
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
