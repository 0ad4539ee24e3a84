"""The ``qdmr`` command: parses, calls, prints. What it calls is imported when it is needed, so
that ``--help`` and a wrong word answer at once."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from qdmr_ray.commands.codebook import EPILOG as CODEBOOK_EPILOG
from qdmr_ray.commands.codebook import codebook
from qdmr_ray.commands.niqe import niqe_fit
from qdmr_ray.commands.weights import EXPORT_EPILOG, IMPORT_EPILOG, import_weights
from qdmr_ray.commands.weights import export as export_command
from qdmr_ray.errors import QdmrError, SettingsError

VERBOSE_FLAGS = ("-v", "--verbose")
EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130

app = typer.Typer(
    name="qdmr",
    help="Sharpen the photographs of a real, simple lens: simulate, train, evaluate, restore.",
    epilog="Start with:  qdmr demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(
    help="Fetch, simulate, pack and inspect datasets.",
    epilog="Example:  qdmr data pack Realab --out data/realab-s1 --lens S1",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(data_app, name="data")
bench_app = typer.Typer(
    help="How fast this installation is.",
    epilog="Example:  qdmr bench data --json bench.json",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(bench_app, name="bench")
app.command(epilog=CODEBOOK_EPILOG)(codebook)
app.command("import-weights", epilog=IMPORT_EPILOG)(import_weights)
app.command("export", epilog=EXPORT_EPILOG)(export_command)
app.command("niqe-fit", epilog="Example:  qdmr niqe-fit photos --out pristine.npz")(niqe_fit)

Endpoint = Annotated[
    str | None,
    typer.Option(help="Address of an S3-compatible store; AWS_ENDPOINT_URL by default."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a setting; may be repeated."),
]


@app.callback()
def _options(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show the traceback of an error.")
    ] = False,
) -> None:
    """Sharpen the photographs of a real, simple lens: simulate, train, evaluate, restore."""


def main() -> None:
    """Entry point: runs a command and turns failures into one line and an exit code."""
    flags = [flag for flag in sys.argv[1:] if flag in VERBOSE_FLAGS]
    rest = [argument for argument in sys.argv[1:] if argument not in VERBOSE_FLAGS]
    if flags:
        os.environ["QDMR_VERBOSE"] = "1"
    try:
        app(args=[*flags[:1], *rest])
    except QdmrError as error:
        if flags:
            traceback.print_exc()
        print(f"qdmr: {error}", file=sys.stderr)
        sys.exit(EXIT_USAGE if isinstance(error, SettingsError) else EXIT_FAILED)
    except SystemExit as ended:
        # typer has caught the KeyboardInterrupt already, and says nothing.
        if ended.code == EXIT_INTERRUPTED:
            print("qdmr: interrupted; run the same command again to go on", file=sys.stderr)
        raise
    except Exception as error:
        if flags:
            traceback.print_exc()
        text = " ".join(str(error).split()) or "no message"
        print(f"qdmr: {type(error).__name__}: {text} (-v shows where)", file=sys.stderr)
        sys.exit(EXIT_FAILED)


@app.command(epilog="Example:  qdmr demo --out runs/demo")
def demo(
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/demo"),
    overrides: Overrides = None,
) -> None:
    """Real photographs, two lenses, three stages, figures and a report: in a few minutes."""
    from qdmr_ray.demo import run_demo

    with _bars() as progress:
        evaluation = run_demo(out, overrides=overrides or (), say=_say, progress=progress)
    _print_evaluation(evaluation)
    _say(f"open {out / 'report.html'}")


@data_app.command(epilog="Example:  qdmr data simulate photos --lens prescription --out data/mine")
def simulate(
    source: Annotated[Path, typer.Argument(metavar="SRC_DIR", help="Folder of clean photographs.")],
    lens: Annotated[str, typer.Option(help="A shipped lens, a lens .yaml, or PSFs in an .npz.")],
    out: Annotated[Path, typer.Option(help="Folder for the Realab layout.")],
    domain: Annotated[
        str, typer.Option(help="Which set it becomes: source, target or test.")
    ] = "source",
    lens_name: Annotated[
        str | None, typer.Option(help="Name of the lens's folder; the lens's own by default.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the sensor's noise.")] = 0,
) -> None:
    """Clean photographs to aberrated ones, by a lens model."""
    from qdmr_ray.data.simulate import simulate_folder

    with _bars() as progress:
        count = simulate_folder(
            source,
            lens,
            out,
            domain=domain,
            lens_name=lens_name,
            seed=seed,
            progress=lambda done, total: progress("simulate", done, total),
        )
    _say(f"{count} photographs through {lens} into {out}")


@data_app.command(epilog="Example:  qdmr data fetch-realab --out data/Realab")
def fetch_realab(
    out: Annotated[Path, typer.Option(help="Folder for the benchmark.")] = Path("data/Realab"),
    endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="A hub or mirror; HF_ENDPOINT or https://huggingface.co by default."
        ),
    ] = None,
    revision: Annotated[str, typer.Option(help="Branch, tag or commit of the dataset.")] = "main",
    include: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Only these files, such as 'Syn/*'; may be repeated."),
    ] = None,
    keep_archives: Annotated[
        bool, typer.Option("--keep-archives", help="Keep archives that were unpacked.")
    ] = False,
) -> None:
    """Download the Realab benchmark, checked; run again, it goes on. HF_TOKEN is sent if set."""
    from qdmr_ray.data.hub import fetch_realab as fetch

    with _bars() as progress:
        result = fetch(
            out,
            endpoint=endpoint,
            revision=revision,
            include=include or (),
            keep_archives=keep_archives,
            progress=_in_megabytes(progress),
        )
    for line in result.lines(out):
        _say(line)


@data_app.command(epilog="Example:  qdmr data pack Realab --out data/realab-s1 --lens S1")
def pack(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder in the Realab layout.")],
    out: Annotated[str, typer.Option(help="Where the shards go: a folder or s3://bucket/path.")],
    lens: Annotated[str | None, typer.Option(help="Lens folder, such as S1.")] = None,
    target_set: Annotated[
        str | None, typer.Option(help="Target photographs: Real-Sim or Real-Snap.")
    ] = None,
    endpoint: Endpoint = None,
    overrides: Overrides = None,
) -> None:
    """Image folders to shards and a manifest. --set source_images=… and so on name folders of
    another layout."""
    from pydantic import TypeAdapter

    from qdmr_ray.data.pack import PackSettings
    from qdmr_ray.data.pack import pack as pack_folders
    from qdmr_ray.parsing import apply_override, parse_settings

    def start_ray() -> None:
        from qdmr_ray.train.cluster import ensure_ray

        ensure_ray()

    values: dict[str, Any] = {"lens": lens, "target_set": target_set}
    for override in overrides or ():
        apply_override(values, override)
    settings = parse_settings(TypeAdapter(PackSettings), values, "qdmr data pack")
    with _bars() as progress:
        pack_folders(
            source,
            out,
            settings=settings,
            progress=lambda done, total: progress("pack", done, total),
            start_ray=start_ray,
            endpoint=endpoint,
        )
    _print_dataset(out, endpoint)


@data_app.command(epilog="Example:  qdmr data inspect data/realab-s1 --verify")
def inspect(
    uri: Annotated[str, typer.Argument(metavar="URI", help="A packed dataset.")],
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every record against its checksum.")
    ] = False,
    sheet: Annotated[
        Path | None,
        typer.Option(metavar="F", help="Contact sheet; NAME-sheet.png here by default."),
    ] = None,
    endpoint: Endpoint = None,
) -> None:
    """What a packed dataset holds: a table, a histogram of sizes, and a contact sheet (PNG)."""
    from qdmr_ray.data.check import verify as verify_records
    from qdmr_ray.data.images import write_png
    from qdmr_ray.data.records import RecordReader
    from qdmr_ray.data.sheet import contact_sheet

    _print_dataset(uri, endpoint)
    file = sheet or Path(f"{uri.rstrip('/').rsplit('/', 1)[-1]}-sheet.png")
    write_png(file, contact_sheet(RecordReader(uri, endpoint=endpoint)))
    _say(f"contact sheet {file}")
    if not verify:
        return
    with _bars() as progress:
        problems = verify_records(
            uri, progress=lambda d, t: progress("verify", d, t), endpoint=endpoint
        )
    for problem in problems:
        print(problem.text, file=sys.stderr)
    if problems:
        raise QdmrError(f"{uri}: {len(problems)} bad records or shards; pack the dataset again")
    _say("every record agrees with its checksum")


@app.command(epilog="Example:  qdmr train experiments/demo.yaml --name try1 --set seed=1")
def train(
    experiment: Annotated[Path, typer.Argument(metavar="EXPERIMENT.yaml")],
    stage: Annotated[str, typer.Option(help="One stage of the experiment, or all.")] = "all",
    name: Annotated[str | None, typer.Option(help="Run name; the experiment's by default.")] = None,
    storage: Annotated[str, typer.Option(help="Where runs lie: a folder or s3://…")] = "runs",
    overrides: Overrides = None,
) -> None:
    """Train an experiment's stages; with the same name and storage again, it resumes."""
    from qdmr_ray.config import load_experiment

    settings = load_experiment(experiment, overrides or (), name=name)
    from qdmr_ray.train.run import train_run

    stages = None if stage == "all" else [stage]
    run = train_run(settings, storage=storage, stages=stages, say=_say)
    _say(f"run folder {run.uri}")


@app.command(epilog="Example:  qdmr evaluate runs/demo")
def evaluate(
    run: Annotated[str, typer.Argument(metavar="RUN_OR_CHECKPOINT")],
    data: Annotated[str | None, typer.Option(help="Packed dataset; the run's by default.")] = None,
    out: Annotated[str | None, typer.Option(help="Folder; the run's by default.")] = None,
    overrides: Overrides = None,
) -> None:
    """Figures and restored images of a test set, spread over the cluster; run again, it goes on.
    --set evaluation.niqe=FILE, evaluation.workers=4 and so on replace the run's settings."""
    from qdmr_ray.evaluate.evaluate import evaluate_run
    from qdmr_ray.storage import open_location

    with _bars() as progress:
        evaluation = evaluate_run(
            open_location(run),
            data=data,
            out=out,
            overrides=overrides or (),
            progress=lambda done, total: progress("evaluate", done, total),
        )
    _print_evaluation(evaluation)
    if evaluation["failed"]:
        raise typer.Exit(EXIT_FAILED)


@app.command(
    epilog="Example:  qdmr restore photos/*.jpg --checkpoint runs/demo/uda/final --out out"
)
def restore(
    files: Annotated[list[Path], typer.Argument(help="Photographs, folders or patterns.")],
    checkpoint: Annotated[str, typer.Option(help="A trained base, uda or source_only model.")],
    out: Annotated[Path, typer.Option(help="Folder for the corrected photographs.")],
    memory: Annotated[
        float,
        typer.Option(help="GiB for maps between layers; larger ones lie in scratch files.", min=0),
    ] = 2.0,
    scratch: Annotated[
        Path | None, typer.Option(help="Folder for those files; the system's by default.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:N; a GPU by default where there is one.")
    ] = None,
) -> None:
    """Correct photographs of any size; bits, transparency, EXIF data and colour profile stay."""
    from qdmr_ray.evaluate.restoration import RestoreSettings, restore_files

    settings = RestoreSettings(
        memory=round(memory * 2**30), scratch=scratch, dtype=dtype, device=device
    )
    with _bars() as progress:
        failures = restore_files(
            files,
            checkpoint,
            out,
            progress=lambda d, t, _: progress("restore", d, t),
            settings=settings,
        )
    for failure in failures:
        print(f"qdmr: {failure.reason}", file=sys.stderr)
    if failures:
        raise typer.Exit(EXIT_FAILED)
    _say(f"corrected photographs in {out}")


@app.command(epilog="Example:  qdmr report runs/demo")
def report(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="Run folder or evaluation, local or s3://.")
    ],
    out: Annotated[str | None, typer.Option(help="File; RUN/report.html by default.")] = None,
) -> None:
    """One self-contained page: figures, curves, pictures, codebook, settings."""
    from qdmr_ray.evaluate.report import build_report

    with _bars() as progress:
        page = build_report(run, out, progress=lambda d, t: progress("codebook", d, t))
    _say(page)


@app.command(epilog="Example:  qdmr verify tests/golden --dtype float64")
def verify(
    golden: Annotated[Path, typer.Argument(metavar="GOLDEN_DIR")],
    dtype: Annotated[str, typer.Option(help="float64 or float32.")] = "float64",
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="F", help="Also write the table to a file.")
    ] = None,
) -> None:
    """Compare networks, training steps and metrics with golden figures of the authors' code."""
    from qdmr_ray.verify import DTYPES, verify_folder, write_comparisons

    if dtype not in DTYPES:
        raise SettingsError(f"--dtype {dtype}: use float64 or float32")
    comparisons = verify_folder(golden, dtype, _say)
    table = Table("figure", "worst difference", "allowed", "")
    for c in comparisons:
        agrees = "agrees" if c.agrees else "DIFFERS"
        table.add_row(c.figure, f"{c.difference:.1e}", f"{c.allowed:.0e}", agrees)
    _print_table(table)
    if json_file:
        write_comparisons(comparisons, json_file)
    wrong = sum(not c.agrees for c in comparisons)
    if wrong:
        raise QdmrError(f"{golden}: {wrong} of {len(comparisons)} figures differ too much")
    _say(f"all {len(comparisons)} figures agree in {dtype}")


@app.command(epilog="Example:  qdmr doctor --storage s3://bucket/runs")
def doctor(
    storage: Annotated[str, typer.Option(help="Also try to write here.")] = "runs",
) -> None:
    """Versions, devices, Ray, storage and weights: what works, and how to get what is missing."""
    from qdmr_ray.doctor import examine

    table = Table("what", "found", "state")
    findings = examine(storage)
    for finding in findings:
        table.add_row(finding.what, finding.found, "ok" if finding.ok else finding.remedy)
    _print_table(table)
    if any(finding.needed and not finding.ok for finding in findings):
        raise typer.Exit(EXIT_FAILED)


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
        _say,
    )
    _print_figures(asdict(rates), json_file)


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
    from qdmr_ray.bench.step import PRESETS, STAGE_SETTINGS, StepBench, profile_step
    from qdmr_ray.bench.step import bench_step as measure
    from qdmr_ray.stages.compute import DTYPES

    _check_choices(
        ("stage", stage, STAGE_SETTINGS), ("preset", preset, PRESETS), ("dtype", dtype, DTYPES)
    )
    bench = StepBench(
        stage=stage,
        size=size,
        batch=batch,
        device=device,
        dtype=dtype,
        compile=compile_networks,
        channels_last=channels_last,
        recompute=recompute,
        preset=preset,
        steps=steps,
        threads=threads,
    )
    if profiled:
        _say(profile_step(bench))
        return
    _print_figures(asdict(measure(bench)), json_file)


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

    _check_choices(("preset", preset, PRESETS), ("dtype", dtype, DTYPES))
    bench = RestoreBench(
        height=height,
        width=width,
        device=device,
        dtype=dtype,
        memory=round(memory * 2**30),
        preset=preset,
        repeats=repeats,
        threads=threads,
    )
    _print_figures(asdict(measure(bench)), json_file)


def _check_choices(*choices: tuple[str, str, Collection[str]]) -> None:
    for option, value, known in choices:
        if value not in known:
            raise SettingsError(f"--{option} {value}: choose from {', '.join(known)}")


def _print_figures(figures: dict[str, Any], json_file: Path | None) -> None:
    for name, value in figures.items():
        _say(f"{name:34} {value:.5g}" if isinstance(value, float) else f"{name:34} {value}")
    if json_file:
        from qdmr_ray.storage import write_file_atomic

        write_file_atomic(json_file, json.dumps(figures, indent=1).encode() + b"\n")


def _say(text: str) -> None:
    print(text, flush=True)


def _print_table(table: Table) -> None:
    # Lines of a table must not be folded where a program reads them.
    width = None if sys.stdout.isatty() else 200
    Console(width=width).print(table)


def _print_dataset(uri: str, endpoint: str | None) -> None:
    from qdmr_ray.data.check import inspect as inspect_dataset
    from qdmr_ray.data.sheet import size_histogram

    manifest = inspect_dataset(uri, endpoint=endpoint)
    table = Table("set", "images", "ground truth", "shards", "MB", "mean R, G, B", "std R, G, B")
    for name, entry in manifest.sets.items():
        table.add_row(
            name,
            str(entry.images),
            "yes" if entry.paired else "no",
            str(len(entry.shards)),
            f"{sum(shard.bytes for shard in entry.shards) / 1e6:.1f}",
            ", ".join(f"{value:.1f}" for value in entry.image.mean),
            ", ".join(f"{value:.1f}" for value in entry.image.std),
        )
    _print_table(table)
    for name, entry in manifest.sets.items():
        sizes = [(size.height, size.width, size.images) for size in entry.sizes]
        for line in size_histogram(sizes, ascii_only=not _prints_unicode()):
            _say(f"{name:6}  {line}")
    for file in manifest.left_out:
        _say(f"left out of {file.set}: {file.origin} ({file.reason})")
    _say(f"{uri}  digest {manifest.digest[:12]}")


def _prints_unicode() -> bool:
    return (sys.stdout.encoding or "").lower().startswith("utf")


def _print_evaluation(evaluation: dict[str, Any]) -> None:
    table = Table("", *(metric.upper() for metric in evaluation["input"]), "PSNR gain")
    before = evaluation["input"].get("psnr")
    for name, figures in {"input": evaluation["input"], **evaluation["stages"]}.items():
        after = figures.get("psnr")
        gain = f"{after - before:+.2f} dB" if name != "input" and after and before else ""
        cells = ["same" if value is None else f"{value:.4g}" for value in figures.values()]
        table.add_row(name, *cells, gain)
    _print_table(table)
    _say(f"means over {evaluation['images']} test images")
    for failure in evaluation["failed"]:
        print(f"qdmr: {failure['name']}: {failure['reason']}", file=sys.stderr)


@contextmanager
def _bars() -> Iterator[Callable[[str, int, int], None]]:
    """Progress bars when a person watches, a line per finished step when not."""
    console = Console(stderr=True)
    if not console.is_terminal or os.environ.get("TERM") == "dumb":
        yield _line_when_done
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        tasks: dict[str, Any] = {}

        def update(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = progress.add_task(step, total=total)
            progress.update(tasks[step], completed=done, total=total)

        yield update


def _in_megabytes(progress: Callable[[str, int, int], None]) -> Callable[[str, int, int], None]:
    """The same bar for a step that counts bytes; it is full only when the last byte is done."""

    def update(step: str, done: int, total: int) -> None:
        megabytes = -(-total // 10**6)
        progress(f"{step} (MB)", megabytes if done >= total else done // 10**6, megabytes)

    return update


def _line_when_done(step: str, done: int, total: int) -> None:
    if done == total:
        print(f"{step}: done", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
