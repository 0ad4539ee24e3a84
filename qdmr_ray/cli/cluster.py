"""``qdmr submit`` and ``qdmr jobs``: commands on a Ray cluster."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from typer import Argument, Option

from qdmr_ray.cli.options import CLUSTER, App, Endpoint
from qdmr_ray.cli.output import bars, print_table, say
from qdmr_ray.errors import QdmrError, SettingsError

Address = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Jobs API, http://HOST:8265; else RAY_API_SERVER_ADDRESS or the config file.",
    ),
]
JobName = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job.")]

app = App(panel=CLUSTER)
jobs_app = App(
    "jobs",
    panel=CLUSTER,
    help="Follow jobs on a cluster, stop them, fetch what they made.",
    epilog="Example:  qdmr jobs list",
)


@app.command(
    example="submit --follow -- qdmr train experiments/demo.yaml --storage s3://bucket/runs",
    # From its first word on, everything belongs to the submitted command, `-v` and `--help` too.
    context_settings={"allow_interspersed_args": False},
)
def submit(
    context: typer.Context,
    command: list[str] = Argument(metavar="-- COMMAND…", help="The command and its arguments."),
    address: Address = None,
    follow: bool = Option(
        False, "--follow", help="Show the log until the job ends, also through a broken tunnel."
    ),
    name: str | None = Option(None, help="The job's id; made up by default."),
    code: Path = Option(Path(), help="Folder that is uploaded and that the command starts in."),
    env: list[str] | None = Option(None, metavar="NAME=VALUE", help="A variable for the job."),
    secret: list[str] | None = Option(
        None, metavar="NAME", help="A variable that the cluster must provide."
    ),
    dry_run: bool = Option(
        False, "--dry-run", help="Only show what would be uploaded and what not."
    ),
    check: bool = Option(
        True, "--check/--no-check", help="Check the experiment and its buckets first."
    ),
) -> None:
    """Run a command on a cluster as a Ray job, with this folder's code but no data or runs.

    What it writes has to go to s3:// or to an absolute path on a disk that all nodes share.
    """
    from qdmr_ray.jobs.client import Jobs, check_variables, find_address
    from qdmr_ray.jobs.preflight import check_buckets, check_places, parse_command, places_of
    from qdmr_ray.jobs.upload import plan_upload

    parsed = parse_command(command, context.find_root().command)
    if parsed is not None:
        check_places(parsed)
    variables = check_variables(env or (), secret or ())
    if not code.is_dir():
        raise SettingsError(f"--code {code}: is no folder")
    upload = plan_upload(code.resolve())
    say(f"{len(upload.files)} files, {upload.bytes / 1e6:.1f} MB from {upload.root}")
    for file in upload.secrets:
        say(f"left out, it may hold a secret: {file}")
    if dry_run:
        for place, count in upload.left_out_counts().items():
            say(f"left out, no code: {place} ({count} files)")
        for file, size in upload.files.items():
            say(f"{size:>10}  {file}")
        return
    if check:
        places = places_of(command, parsed, code, variables)
        check_buckets(places, lambda line: typer.echo(f"qdmr: warning: {line}", err=True))
    jobs = Jobs(find_address(address))
    job = jobs.submit(command, upload, variables=variables, name=name)
    say(f"job {job}")
    if follow:
        _follow(jobs, job)
    else:
        say(f"qdmr jobs logs {job} --follow shows its log")


@jobs_app.command("list", example="jobs list --address http://127.0.0.1:8265")
def list_jobs(address: Address = None) -> None:
    """List the cluster's jobs, the newest first."""
    from qdmr_ray.jobs.client import Jobs, find_address

    table = Table("job", "state", "user", "began", "minutes", "command")
    for job in Jobs(find_address(address)).list():
        began = datetime.fromtimestamp(job.began).strftime("%Y-%m-%d %H:%M") if job.began else ""
        last = job.ended or datetime.now().timestamp()
        minutes = f"{(last - job.began) / 60:.1f}" if job.began else ""
        table.add_row(job.id, job.state, job.user, began, minutes, job.command)
    print_table(table)


@jobs_app.command("logs", example="jobs logs JOB --follow")
def logs(
    job: JobName,
    follow: bool = Option(False, "--follow", help="Show the log until the job ends."),
    address: Address = None,
) -> None:
    """Show what a job has printed; with --follow also what it prints until it ends."""
    from qdmr_ray.jobs.client import Jobs, find_address

    jobs = Jobs(find_address(address))
    if follow:
        _follow(jobs, job)
    else:
        typer.echo(jobs.logs(job), nl=False)


@jobs_app.command("stop", example="jobs stop JOB")
def stop(job: JobName, address: Address = None) -> None:
    """End a job; run folders stay, and the same command goes on from them."""
    from qdmr_ray.jobs.client import Jobs, find_address
    from qdmr_ray.jobs.log_follower import ENDED

    state = Jobs(find_address(address)).stop(job)
    say(f"job {job}: {state}")
    if state not in ENDED:
        raise QdmrError(f"job {job} is still {state} after a minute; see qdmr jobs logs {job}")


@jobs_app.command("fetch", example="jobs fetch JOB --out runs/demo")
def fetch(
    job: JobName,
    out: Path | None = Option(None, help="Folder; runs/NAME by default."),
    address: Address = None,
    endpoint: Endpoint = None,
) -> None:
    """Copy the run or sweep folder of a job here, whatever the job's state.

    Files that are here already stay.
    """
    from qdmr_ray.jobs.client import Jobs, find_address
    from qdmr_ray.jobs.transfer import fetch as fetch_folder

    folder = Jobs(find_address(address)).folder(job)
    target = out or Path("runs") / folder.rstrip("/").rsplit("/", 1)[-1]
    with bars() as progress:
        count = fetch_folder(
            folder, target, lambda done, total: progress("fetch", done, total), endpoint
        )
    say(f"{count} files from {folder} in {target}")


def _follow(jobs: object, job: str) -> None:
    from qdmr_ray.jobs.client import Jobs
    from qdmr_ray.jobs.log_follower import SUCCEEDED, how_to_come_back

    assert isinstance(jobs, Jobs)
    try:
        state = jobs.follow(
            job,
            lambda lines: typer.echo(lines, nl=False),
            lambda line: typer.echo(f"qdmr: {line}", err=True),
        )
    except KeyboardInterrupt:
        typer.echo(f"\n{how_to_come_back(job)}", err=True)
        raise typer.Exit(0) from None
    say(f"job {job}: {state}")
    if state != SUCCEEDED:
        raise QdmrError(f"job {job} ended as {state}: {jobs.job(job).message[:300]}")
