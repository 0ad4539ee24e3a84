"""``qdmr submit`` and ``qdmr jobs``: commands on a Ray cluster."""

from __future__ import annotations

from pathlib import Path
from time import time
from typing import TYPE_CHECKING

import typer

from qdmr_ray.cli.options import ENDPOINT, App, argument, flag, option
from qdmr_ray.cli.output import Table, bar, date, print_table, say, show_log, tell
from qdmr_ray.errors import QdmrError, SettingsError

if TYPE_CHECKING:
    from qdmr_ray.jobs.client import Jobs

ADDRESS = option(
    None,
    "Jobs API, http://HOST:8265; else RAY_API_SERVER_ADDRESS or the config file.",
    metavar="URL",
)
JOB = argument("JOB", "Id of the job.")

app = App("Cluster")
jobs_app = App(
    "Cluster", "jobs", "Follow jobs on a cluster, stop them, fetch what they made.", "jobs list"
)


@app.command(
    example="submit --follow -- qdmr train experiments/demo.yaml --storage s3://bucket/runs",
    # From its first word on, everything belongs to the submitted command, `-v` and `--help` too.
    context_settings={"allow_interspersed_args": False},
)
def submit(
    context: typer.Context,
    command: list[str] = argument("-- COMMAND…", "The command and its arguments."),
    address: str | None = ADDRESS,
    follow: bool = flag(
        "--follow", "Show the log until the job ends, also through a broken tunnel."
    ),
    name: str | None = option(
        None, "The job's id; made up by default.", "--submission-id", "--name"
    ),
    code: Path = option(
        Path(),
        "Folder that is uploaded and that the command starts in.",
        "--working-dir",
        "--code",
    ),
    env: list[str] | None = option(None, "A variable for the job.", metavar="NAME=VALUE"),
    secret: list[str] | None = option(
        None, "A variable that the cluster must provide.", metavar="NAME"
    ),
    not_secret: list[str] | None = option(
        None, "A variable or file that holds no secret, whatever its name.", metavar="NAME"
    ),
    dry_run: bool = flag("--dry-run", "Only show what would be uploaded and what not."),
    check: bool = option(True, "Check the experiment and its buckets first.", "--check/--no-check"),
) -> None:
    """Run a command on a cluster as a Ray job, with this folder's code but no data or runs.

    What it writes has to go to s3:// or to an absolute path on a disk that all nodes share.
    """
    from qdmr_ray.jobs.client import check_command, check_variables
    from qdmr_ray.jobs.preflight import (
        check_buckets,
        check_places,
        output_folder,
        parse_command,
        places_of,
    )
    from qdmr_ray.jobs.sensitive import NotSecret
    from qdmr_ray.jobs.upload import plan_upload

    parsed = parse_command(command, context.find_root().command)
    if parsed is not None:
        check_places(parsed)
    check_command(command)
    harmless = NotSecret(not_secret or ())
    variables = check_variables(env or (), secret or (), harmless)
    if not code.is_dir():
        raise SettingsError(f"--code {code}: is no folder")
    upload = plan_upload(code.resolve(), harmless)
    harmless.check()
    say(f"{len(upload.files)} files, {upload.bytes / 1e6:.1f} MB from {upload.root}")
    for file in upload.secrets:
        say(f"left out, it may hold a secret: {file}")
    if upload.secrets:
        say("--not-secret FILE uploads one of them")
    if dry_run:
        for place, count in upload.left_out_counts().items():
            say(f"left out, no code: {place} ({count} files)")
        for file, size in upload.files.items():
            say(f"{size:>10}  {file}")
        return
    if check:
        places = places_of(command, parsed, code, variables)
        check_buckets(places, lambda line: tell(f"qdmr: warning: {line}"))
    jobs = _jobs(address)
    writes = output_folder(parsed, code)
    job = jobs.submit(command, upload, variables=variables, name=name, writes=writes)
    say(f"job {job}")
    if follow:
        _follow(jobs, job)
    else:
        say(f"qdmr jobs logs {job} --follow shows its log")


@jobs_app.command("list", example="jobs list --address http://127.0.0.1:8265")
def list_jobs(address: str | None = ADDRESS) -> None:
    """List the cluster's jobs, the newest first."""
    table = Table("job", "state", "user", "began", "minutes", "command")
    for job in _jobs(address).list():
        minutes = f"{((job.ended or time()) - job.began) / 60:.1f}" if job.began else ""
        table.add_row(job.id, job.state, job.user, date(job.began), minutes, job.command)
    print_table(table)


@jobs_app.command("status", example="jobs status JOB")
def status(job: str = JOB, address: str | None = ADDRESS) -> None:
    """Show a job's state, command, folder, and the commit, branch and changes of its code."""
    found = _jobs(address).job(job)
    shown = {
        "state": found.state,
        "message": found.message,
        "user": found.user,
        "command": found.command,
        "folder": found.folder,
        "began": date(found.began),
        "ended": date(found.ended),
        **found.origin,
    }
    for name, text in shown.items():
        if text:
            say(f"{name:8} {text}")


@jobs_app.command("delete", example="jobs delete JOB")
def delete(job: str = JOB, address: str | None = ADDRESS) -> None:
    """Have the cluster forget a job that has ended, and its log; what it wrote stays."""
    _jobs(address).delete(job)
    say(f"job {job}: deleted")


@jobs_app.command("logs", example="jobs logs JOB --follow")
def logs(
    job: str = JOB,
    follow: bool = option(False, "Show the log until the job ends.", "--follow", "-f"),
    address: str | None = ADDRESS,
) -> None:
    """Show what a job has printed; with --follow also what it prints until it ends."""
    if follow:
        _follow(_jobs(address), job)
    else:
        show_log(_jobs(address).logs(job))


@jobs_app.command("stop", example="jobs stop JOB")
def stop(job: str = JOB, address: str | None = ADDRESS) -> None:
    """End a job; run folders stay, and the same command goes on from them."""
    from qdmr_ray.jobs.log_follower import ENDED

    state = _jobs(address).stop(job)
    say(f"job {job}: {state}")
    if state not in ENDED:
        raise QdmrError(f"job {job} is still {state} after a minute; see qdmr jobs logs {job}")


@jobs_app.command("fetch", example="jobs fetch JOB --out runs/demo")
def fetch(
    job: str = JOB,
    out: Path | None = option(None, "Folder; runs/NAME by default."),
    address: str | None = ADDRESS,
    endpoint: str | None = ENDPOINT,
) -> None:
    """Copy the run or sweep folder of a job here, whatever the job's state.

    Files that are here already stay, unless a fetch brought them and the job has newer ones.
    """
    from qdmr_ray.jobs.transfer import fetch as fetch_folder

    folder = _jobs(address).folder(job)
    target = out or Path("runs") / folder.rstrip("/").rsplit("/", 1)[-1]
    with bar("fetch") as progress:
        count, kept = fetch_folder(folder, target, progress, endpoint)
    if kept:
        names = ", ".join(kept[:3]) + (f" and {len(kept) - 3} more" if len(kept) > 3 else "")
        told = f"{target}: stay as they are here, and are others than the job's: {names}"
        tell(f"qdmr: warning: {told}; --out NEW_FOLDER fetches the job's")
    say(f"{count} files from {folder} in {target}")


def _jobs(address: str | None) -> Jobs:
    from qdmr_ray.jobs.client import Jobs, find_address

    return Jobs(find_address(address))


def _follow(jobs: Jobs, job: str) -> None:
    from qdmr_ray.jobs.log_follower import SUCCEEDED, how_to_come_back

    try:
        state = jobs.follow(job, show_log, lambda line: tell(f"qdmr: {line}"))
    except KeyboardInterrupt:
        tell("", how_to_come_back(job))
        raise typer.Exit(0) from None
    say(f"job {job}: {state}")
    if state != SUCCEEDED:
        raise QdmrError(f"job {job} ended as {state}: {jobs.job(job).message[:300]}")
