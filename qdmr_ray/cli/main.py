"""The ``qdmr`` command: parses, calls, prints. What it calls is imported when it is needed, so
that ``--help`` and a wrong word answer at once."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from qdmr_ray.cli.bench import bench_app
from qdmr_ray.cli.codebook import EPILOG as CODEBOOK_EPILOG
from qdmr_ray.cli.codebook import codebook
from qdmr_ray.cli.compare import EPILOG as COMPARE_EPILOG
from qdmr_ray.cli.compare import compare
from qdmr_ray.cli.data import data_app
from qdmr_ray.cli.evaluation import print_evaluation
from qdmr_ray.cli.jobs import SUBMIT_EPILOG, jobs_app, submit
from qdmr_ray.cli.niqe import niqe_fit
from qdmr_ray.cli.output import Overrides, bars, print_table, quick_imports, say
from qdmr_ray.cli.stages import stages_app
from qdmr_ray.cli.sweep import EPILOG as SWEEP_EPILOG
from qdmr_ray.cli.sweep import sweep
from qdmr_ray.cli.weights import EXPORT_EPILOG, IMPORT_EPILOG, import_weights
from qdmr_ray.cli.weights import export as export_command
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


@app.callback()
def _options(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show the traceback of an error.")
    ] = False,
) -> None:
    """Sharpen the photographs of a real, simple lens: simulate, train, evaluate, restore."""
    if os.environ.get("QDMR_SECRETS"):
        from qdmr_ray.jobs.client import check_secrets

        check_secrets()


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
        # A command for which this is not true has said so, and raised an exit of its own kind.
        if ended.code == EXIT_INTERRUPTED and type(ended) is SystemExit:
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
    with quick_imports():
        from qdmr_ray.demo import run_demo
    from qdmr_ray.storage import open_location

    say(f"run folder {open_location(out).uri}")
    with bars() as progress:
        evaluation = run_demo(out, overrides=overrides or (), say=say, progress=progress)
    print_evaluation(evaluation)
    say(f"open {out / 'report.html'}")
    if evaluation.failed:
        raise typer.Exit(EXIT_FAILED)


@app.command(epilog="Example:  qdmr train experiments/demo.yaml --name try1 --set seed=1")
def train(
    experiment: Annotated[Path, typer.Argument(metavar="EXPERIMENT.yaml")],
    stage: Annotated[str, typer.Option(help="One stage of the experiment, or all.")] = "all",
    name: Annotated[str | None, typer.Option(help="Run name; the experiment's by default.")] = None,
    storage: Annotated[str, typer.Option(help="Where runs lie: a folder or s3://…")] = "runs",
    store: Annotated[
        str | None,
        typer.Option(help="Stages that runs share: a folder or s3://…"),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Train an experiment's stages; with the same name and storage again, it resumes."""
    with quick_imports():
        from qdmr_ray.config import load_experiment

    settings = load_experiment(experiment, overrides or (), name=name)
    from qdmr_ray.storage import open_location

    # Before anything can fail: `qdmr jobs fetch` finds the folder of every job by this line.
    folder = open_location(storage, endpoint=settings.data.s3_endpoint).join(settings.name)
    say(f"run folder {folder.uri}")
    with quick_imports():
        from qdmr_ray.train.run import train_run

    stages = None if stage == "all" else [stage]
    run = train_run(settings, storage=storage, stages=stages, store=store, say=say)
    say(f"run folder {run.uri}")


@app.command(epilog="Example:  qdmr evaluate runs/demo")
def evaluate(
    run: Annotated[str, typer.Argument(metavar="RUN_OR_CHECKPOINT")],
    data: Annotated[str | None, typer.Option(help="Packed dataset; the run's by default.")] = None,
    out: Annotated[str | None, typer.Option(help="Folder; the run's by default.")] = None,
    overrides: Overrides = None,
) -> None:
    """Figures and restored images of a test set, spread over the cluster; run again, it goes on.
    --set evaluation.niqe=FILE, evaluation.workers=4 and so on replace the run's settings."""
    with quick_imports():
        from qdmr_ray.evaluate.evaluate import evaluate_run
    from qdmr_ray.storage import open_location

    # As `train` does, for `qdmr jobs fetch`.
    say(f"run folder {open_location(out or run).uri}")
    with bars() as progress:
        evaluation = evaluate_run(
            open_location(run),
            data=data,
            out=out,
            overrides=overrides or (),
            progress=lambda done, total: progress("evaluate", done, total),
            codebook_progress=lambda done, total: progress("codebook", done, total),
        )
    print_evaluation(evaluation)
    if evaluation.failed:
        raise typer.Exit(EXIT_FAILED)


@app.command(
    epilog="Example:  qdmr restore photos/*.jpg --checkpoint runs/demo/uda/final --out out"
)
def restore(
    # One that can't be read is a failure of that file; the others are restored.
    files: Annotated[
        list[Path], typer.Argument(help="Photographs, folders or patterns.", readable=False)
    ],
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
    from qdmr_ray.cli.restore import bytes_of, shown
    from qdmr_ray.restore.restoration import RestoreSettings, restore_files

    settings = RestoreSettings(memory=bytes_of(memory), scratch=scratch, dtype=dtype, device=device)
    with shown(out) as report:
        failures = restore_files(files, checkpoint, out, report, settings)
    if failures:
        raise typer.Exit(EXIT_FAILED)
    say(f"corrected photographs in {out}")


@app.command(epilog="Example:  qdmr report runs/demo")
def report(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="Run folder, evaluation or sweep, local or s3://.")
    ],
    out: Annotated[str | None, typer.Option(help="File; RUN/report.html by default.")] = None,
) -> None:
    """One self-contained page from what a run has left: metrics, curves, pictures, codebook,
    settings. It computes nothing: the codebook's part comes from qdmr evaluate or qdmr codebook."""
    from qdmr_ray.report import build_report

    say(build_report(run, out))


@app.command(epilog="Example:  qdmr verify tests/golden --dtype float64")
def verify(
    golden: Annotated[Path, typer.Argument(metavar="GOLDEN_DIR")],
    dtype: Annotated[str, typer.Option(help="float64 or float32.")] = "float64",
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="F", help="Also write the table to a file.")
    ] = None,
) -> None:
    """Compare networks, training steps and metrics with golden figures of the authors' code."""
    from qdmr_ray.verify.folder import DTYPES, verify_folder, write_comparisons

    if dtype not in DTYPES:
        raise SettingsError(f"--dtype {dtype}: use float64 or float32")
    comparisons = verify_folder(golden, dtype, say)
    table = Table("figure", "worst difference", "allowed", "")
    for c in comparisons:
        agrees = "agrees" if c.agrees else "DIFFERS"
        table.add_row(c.figure, f"{c.difference:.1e}", f"{c.allowed:.0e}", agrees)
    print_table(table)
    if json_file:
        write_comparisons(comparisons, json_file)
    wrong = sum(not c.agrees for c in comparisons)
    if wrong:
        raise QdmrError(f"{golden}: {wrong} of {len(comparisons)} figures differ too much")
    say(f"all {len(comparisons)} figures agree in {dtype}")


@app.command(epilog="Example:  qdmr doctor --storage s3://bucket/runs")
def doctor(
    storage: Annotated[str, typer.Option(help="Also try to write here.")] = "runs",
    address: Annotated[
        str | None,
        typer.Option(help="Jobs API of a cluster: is it open to strangers? http://HOST:8265"),
    ] = None,
) -> None:
    """Versions, devices, Ray, storage and weights: what works, and how to get what is missing."""
    from qdmr_ray.doctor import examine

    table = Table("what", "found", "state")
    findings = examine(storage, address)
    for finding in findings:
        table.add_row(finding.what, finding.found, "ok" if finding.ok else finding.remedy)
    print_table(table)
    if any(finding.needed and not finding.ok for finding in findings):
        raise typer.Exit(EXIT_FAILED)


# In the order of --help: first those above.
app.command(epilog=SWEEP_EPILOG)(sweep)
app.command(epilog=COMPARE_EPILOG)(compare)
app.command(epilog=CODEBOOK_EPILOG)(codebook)
app.command("niqe-fit", epilog="Example:  qdmr niqe-fit photos --out pristine.npz")(niqe_fit)
app.command("import-weights", epilog=IMPORT_EPILOG)(import_weights)
app.command("export", epilog=EXPORT_EPILOG)(export_command)
app.command(epilog=SUBMIT_EPILOG)(submit)
app.add_typer(jobs_app, name="jobs")
app.add_typer(data_app, name="data")
app.add_typer(stages_app, name="stages")
app.add_typer(bench_app, name="bench")


if __name__ == "__main__":
    main()
