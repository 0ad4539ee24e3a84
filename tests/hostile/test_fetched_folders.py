"""``qdmr jobs fetch``: folders that a log or a job's metadata name, names of files that lead
elsewhere, and files that are here already."""

import os
from collections.abc import Callable
from pathlib import Path

import boto3
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from limits import files_below, refused

from qdmr_ray.cli.main import app
from qdmr_ray.jobs import transfer
from qdmr_ray.jobs.client import Job, Jobs
from qdmr_ray.jobs.folder import folder_in_log, is_plain, normal_folder
from qdmr_ray.jobs.preflight import output_folder, parse_command

TRAIN = "qdmr train x.yaml --storage /shared/runs"


class OneJob(Jobs):
    """A cluster that knows one job."""

    def __init__(self, command: str, log: str, folder: str | None = None) -> None:
        self._job = Job("j", "FAILED", command, "ann", None, None, "", folder)
        self._log = log

    def job(self, name: str) -> Job:
        return self._job

    def logs(self, name: str) -> str:
        return self._log


def fetch(folder: str | Path, out: Path, endpoint: str | None = None) -> transfer.Fetched:
    return transfer.fetch(str(folder), out, lambda done, total: None, endpoint)


LINES = {
    "the folder above the runs": "/shared/runs/..",
    "the runs themselves by a dot": "/shared/runs/x/../..",
    "a neighbour": "/shared/runs/../home",
    "a folder whose name begins alike": "/shared/runs2/x",
    "a folder elsewhere": "/etc",
    "the root": "/",
    "only dots": "/..",
    "a repository": "/shared/runs/x/.git",
    "a repository in capitals": "/shared/runs/.GIT",
    "an escape sequence": "/shared/runs/\x1b[2J",
    "a carriage return": "/shared/runs/x\rdone",
    "a zero byte": "/shared/runs/x\0",
    "a name of 300 bytes": "/shared/runs/" + "é" * 150,
    "a bucket": "s3://shared/runs/x",
    "a bucket of no name": "s3://",
    "the parent of a bucket": "s3://shared/runs/..",
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_a_folder_that_only_the_log_names_is_the_command_s_own(line: str) -> None:
    log = f"photograph a\nrun folder {line}\n is broken\n"
    told = r"job j \(FAILED\) has ended without naming a run folder"
    refused(lambda: OneJob(TRAIN, log).folder("j"), match=told)
    # The right one is found before and behind it.
    for lines in (f"run folder /shared/runs/x\n{log}", f"{log}run folder /shared/runs/x\n"):
        assert OneJob(TRAIN, lines).folder("j") == "/shared/runs/x"


@pytest.mark.parametrize("line", ["/shared/runs/y", *LINES.values()], ids=["another run", *LINES])
def test_a_log_has_no_say_where_the_folder_is_known(line: str) -> None:
    job = OneJob(TRAIN, f"run folder {line}\n", "/shared/runs/x")
    assert job.folder("j") == "/shared/runs/x"


METADATA = ["", "..", "runs/x", "/", "//", "/..", "s3://", "s3:///", "s3://b/../c", "s3://b//c"]
METADATA += ["s3://b/.", "/runs/\x1b]0;x\x07", "/a\nb", "/a/.git", "file:///etc", "http://x/y"]


@pytest.mark.parametrize("folder", METADATA)
def test_metadata_that_name_no_folder_are_refused(folder: str) -> None:
    refused(lambda: OneJob(TRAIN, "", folder).folder("j"), match=r"job j: its folder, .*no run's")


@pytest.mark.parametrize(
    "command",
    [
        "qdmr train 'x --storage /",
        "python -m qdmr_ray.cli train x.yaml --storage /runs",
        "qdmr bench",
    ],
    ids=["half a command", "a command of an older version", "a command without a place"],
)
def test_a_log_is_not_believed_about_other_places(command: str) -> None:
    assert folder_in_log(command, "run folder /home/ann\n") is None


@settings(deadline=None)
@given(st.text(alphabet=st.sampled_from("/.aé\x1b\n s3:\\"), max_size=30))
@example("//..//a")
def test_any_folder_that_is_taken_is_normal(text: str) -> None:
    found = normal_folder(text)
    if found is not None:
        inside = found.removeprefix("s3://").removeprefix("/")
        assert is_plain(inside)
        assert normal_folder(found) == found
        target = Path("/work/runs") / found.rstrip("/").rsplit("/", 1)[-1]
        assert os.path.normpath(target) == str(target)
        assert target.parent == Path("/work/runs")


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        ("train e.yaml --storage s3://b/runs/", "s3://b/runs/mine"),
        ("train e.yaml --storage /r --name other", "/r/other"),
        ("train /on/the/cluster.yaml --storage /r --name other", "/r/other"),
        ("train e.yaml --storage /r/../q --set name=third", "/q/third"),
        ("train /on/the/cluster.yaml --storage /r", None),
        ("demo --out /r/demo", "/r/demo"),
        ("evaluate /r/mine", None),
    ],
    ids=[
        *("a store", "a name", "a file of the cluster and a name", "a folder above and a name"),
        *("a file of the cluster", "the demo", "an evaluation"),
    ],
)
def test_submit_knows_the_folder(words: str, folder: str | None, tmp_path: Path) -> None:
    import typer

    (tmp_path / "e.yaml").write_text("name: mine\nrun: [source_only]\n")
    command = parse_command(["qdmr", *words.split()], typer.main.get_command(app))
    assert output_folder(command, tmp_path) == folder


NAMES = ["../outside", "a/../../outside", "/etc/x", ".git/config", "uda/.GIT/hooks/pre-commit"]
NAMES += ["a//b", "a\nb", "\x1b[31m", "x" * 256, "./a"]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name[:20])
def test_an_object_that_is_no_file_of_a_run_is_refused_before_anything_is_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [transfer._File(n, 1, 0.0, lambda part: part.write_bytes(b"x")) for n in ("a", name)]
    monkeypatch.setattr(transfer, "_in_store", lambda *_: files)
    refused(lambda: fetch("s3://b/run", tmp_path / "out"), match=r"s3://b/run: .*which is no run's")
    assert not list(tmp_path.iterdir())


def test_a_link_out_of_the_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "secret").write_text("x")
    (tmp_path / "run" / "config.yaml").symlink_to(tmp_path / "secret")
    refused(
        lambda: fetch(tmp_path / "run", tmp_path / "out"),
        match=r"link that leads out.*config\.yaml",
    )
    assert not (tmp_path / "out").exists()


def is_a_file(out: Path) -> None:
    (out / "config.yaml").write_text("mine")


def is_newer_than_the_runs(out: Path) -> None:
    is_a_file(out)
    os.utime(out / "config.yaml", (2**31, 2**31))


def is_a_link(out: Path) -> None:
    (out / "real").write_text("mine")
    (out / "config.yaml").symlink_to("real")


def is_a_dead_link(out: Path) -> None:
    (out / "config.yaml").symlink_to("nowhere")


def is_a_link_out(out: Path) -> None:
    (out.parent / "mine").write_text("mine")
    (out / "config.yaml").symlink_to(out.parent / "mine")


def is_a_folder(out: Path) -> None:
    (out / "config.yaml").mkdir()
    (out / "config.yaml" / "mine").write_text("mine")


TAKEN = [is_a_file, is_newer_than_the_runs, is_a_link, is_a_dead_link, is_a_link_out, is_a_folder]


@pytest.mark.parametrize("taken", TAKEN)
def test_what_is_here_stays(taken: Callable[[Path], None], tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    for folder in (run / "uda", out):
        folder.mkdir(parents=True)
    (run / "config.yaml").write_text("the job's")
    (run / "uda" / "metrics.jsonl").write_text("{}")
    taken(out)
    before = files_below(out)
    for _ in range(2):
        assert fetch(run, out) == (1, ["config.yaml"])
        after = files_below(out)
        after.pop(transfer.BROUGHT_FILE)
        assert after == {**before, "uda/metrics.jsonl": b"{}"}


def test_a_folder_here_that_is_a_link_out_is_not_written_to(tmp_path: Path) -> None:
    run, out, elsewhere = (tmp_path / name for name in ("run", "out", "elsewhere"))
    for folder in (run / "uda", out, elsewhere):
        folder.mkdir(parents=True)
    (run / "uda" / "a").write_text("x")
    (out / "uda").symlink_to(elsewhere)
    assert fetch(run, out) == (0, ["uda/a"])
    assert not list(elsewhere.iterdir())


def test_a_place_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "a").write_text("x")
    (tmp_path / "out").write_text("mine")
    refused(lambda: fetch(tmp_path / "run", tmp_path / "out"), match=r"out: .*File exists")
    (tmp_path / "run" / "a").rename(tmp_path / "run" / "b")
    assert (tmp_path / "out").read_text() == "mine"


def test_a_run_that_goes_on_is_brought_up_to_date(tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    run.mkdir()
    for text in ("1\n", "1\n2\n", "1\n2\n3\n"):
        (run / "metrics.jsonl").write_text(text)
        assert fetch(run, out) == (1, [])
        assert (out / "metrics.jsonl").read_text() == text
    # From here on it is the user's own.
    (out / "metrics.jsonl").write_text("1\n2\n3\nnote\n")
    (run / "metrics.jsonl").write_text("1\n2\n3\n4\n5\n6\n")
    assert fetch(run, out) == (0, ["metrics.jsonl"])


def test_a_run_in_a_store_is_brought_up_to_date(s3_endpoint: str, tmp_path: Path) -> None:
    client = boto3.client("s3", endpoint_url=s3_endpoint)
    for text in ("1\n", "1\n2\n"):
        client.put_object(Bucket="lens", Key="run/metrics.jsonl", Body=text.encode())
        assert fetch("s3://lens/run", tmp_path, s3_endpoint) == (1, [])
        assert (tmp_path / "metrics.jsonl").read_text() == text


def test_a_copy_that_breaks_off_leaves_nothing_and_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    run.mkdir()
    (run / "a").write_text("1")
    fetch(run, out)
    (run / "a").write_text("1, 2")
    before = files_below(out)

    def breaks_off(_: Path, part: Path) -> None:
        part.write_text("1,")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transfer.shutil, "copy2", breaks_off)
    refused(lambda: fetch(run, out), match=r"run: .*No space left on device")
    assert files_below(out) == before


@settings(max_examples=50, deadline=None)
@given(damage=st.binary(max_size=60))
def test_a_damaged_note_of_what_was_brought_keeps_what_is_here(
    damage: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run, out = (tmp_path_factory.mktemp(name) for name in ("run", "out"))
    (run / "a").write_text("the job's")
    (out / "a").write_text("mine")
    (out / transfer.BROUGHT_FILE).write_bytes(damage)
    assert fetch(run, out) == (0, ["a"])
    assert (out / "a").read_text() == "mine"
