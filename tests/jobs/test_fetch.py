"""Which folder `qdmr jobs fetch` brings: of jobs in any state, and of runs that go on meanwhile."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from typer.testing import CliRunner

from qdmr_ray.cli.main import app
from qdmr_ray.errors import QdmrError
from qdmr_ray.jobs import transfer
from qdmr_ray.jobs.client import Jobs

if TYPE_CHECKING:
    from fake_cluster import FakeCluster

PROJECT = Path(__file__).parents[2]


def fails(*_: Any, **__: Any) -> Any:
    raise QdmrError("the cluster is gone")


def test_train_names_its_folder_before_it_can_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qdmr_ray.train.run.train_run", fails)
    (tmp_path / "try.yaml").write_text("run: [source_only]\n")
    words = ["train", str(tmp_path / "try.yaml"), "--storage", str(tmp_path / "runs")]
    done = CliRunner().invoke(app, [*words, "--name", "mine"])
    assert str(done.exception) == "the cluster is gone"
    assert done.stdout == f"run folder {tmp_path}/runs/mine\n"


def test_sweep_names_its_folder_before_it_can_fail_and_when_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = {
        "experiment": str(PROJECT / "experiments" / "demo.yaml"),
        "set": {"data.path": "/data", "logging.validation_interval": 5},
        "space": {"seed": {"choice": [1, 2]}},
        "trials": 2,
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(sweep))
    words = ["sweep", str(tmp_path / "s.yaml"), "--storage", str(tmp_path / "runs")]
    named = f"sweep folder {tmp_path}/runs/s"
    monkeypatch.setattr("qdmr_ray.sweeps.run.sweep_run", fails)
    done = CliRunner().invoke(app, words)
    assert str(done.exception) == "the cluster is gone"
    assert done.stdout == f"{named}\n"

    monkeypatch.setattr("qdmr_ray.sweeps.run.sweep_run", lambda *_, **__: {})
    monkeypatch.setattr("qdmr_ray.cli.sweep._print_results", lambda _: None)
    monkeypatch.setattr("qdmr_ray.report.build_report", lambda folder: f"{folder.uri}/report.html")
    done = CliRunner().invoke(app, words)
    assert done.stdout == f"{named}\n{named}, report {tmp_path}/runs/s/report.html\n"


def test_demo_names_its_folder_before_it_can_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qdmr_ray.demo.run_demo", fails)
    done = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "demo")])
    assert done.stdout == f"run folder {tmp_path}/demo\n"


@pytest.mark.parametrize("state", ["RUNNING", "FAILED", "STOPPED", "SUCCEEDED"])
def test_the_folder_is_known_in_every_state(fake_cluster: FakeCluster, state: str) -> None:
    from fake_cluster import FakeJob

    fake_cluster.jobs["j"] = FakeJob(
        state=state,
        log="Running entrypoint command\nrun folder s3://b/runs/demo\nvqgan 4/100\n",
        command="qdmr train demo.yaml --storage s3://b/runs/",
    )
    assert Jobs(fake_cluster.address).folder("j") == "s3://b/runs/demo"


@pytest.mark.parametrize(
    ("command", "log", "folder"),
    [
        # What others print.
        (
            "qdmr train x.yaml --storage=/runs",
            "run folder /runs/x\nrun folder of the trial\n(Worker pid=3) run folder /runs/y\n"
            "a run folder /runs/z\nrun folder /etc\nrun folder /runs2/x\n",
            "/runs/x",
        ),
        ("qdmr demo --out /runs/demo", "run folder /runs/demo\nopen report.html\n", "/runs/demo"),
        # The end's line of a sweep, and of one whose folder looks like it.
        (
            "qdmr sweep s.yaml --storage s3://b/s",
            "sweep folder s3://b/s/one\nsweep folder s3://b/s/one, report s3://b/s/one/report.html\n",
            "s3://b/s/one",
        ),
        (
            "qdmr sweep s.yaml --storage '/a, report b'",
            "sweep folder /a, report b/s\nsweep folder /a, report b/s, report /a, report b/s/"
            "report.html\n",
            "/a, report b/s",
        ),
        # A script of the user's: its last run.
        ("bash all.sh", "run folder /runs/one\nrun folder /runs/two\n", "/runs/two"),
    ],
)
def test_other_lines_are_not_taken_for_it(
    fake_cluster: FakeCluster, command: str, log: str, folder: str
) -> None:
    from fake_cluster import FakeJob

    fake_cluster.jobs["j"] = FakeJob(log=log, command=command)
    assert Jobs(fake_cluster.address).folder("j") == folder


@pytest.mark.parametrize(
    ("state", "told"),
    [("PENDING", "has not named its run folder yet"), ("FAILED", "ended without naming a run")],
)
def test_a_job_that_names_none_is_told_with_its_state(
    fake_cluster: FakeCluster, state: str, told: str
) -> None:
    from fake_cluster import FakeJob

    fake_cluster.jobs["j"] = FakeJob(state=state, log="hello\n")
    with pytest.raises(QdmrError, match=rf"job j \({state}\) .*{told}.*qdmr jobs logs j"):
        Jobs(fake_cluster.address).folder("j")


def test_what_a_run_deletes_meanwhile_stays_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "run"
    source.mkdir()
    for name in ("config.yaml", "old.checkpoint", ".tmp-ab-metrics.jsonl"):
        (source / name).write_text(name)
    copy = shutil.copy2

    def slow_copy(path: Path, target: Path) -> None:
        (source / "old.checkpoint").unlink(missing_ok=True)
        copy(path, target)

    monkeypatch.setattr(transfer.shutil, "copy2", slow_copy)
    assert transfer.fetch(str(source), tmp_path / "here", lambda d, t: None) == (1, [])
    assert [path.name for path in (tmp_path / "here").glob("[!.]*")] == ["config.yaml"]


def test_what_a_run_deletes_from_a_store_meanwhile_stays_away(
    s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = transfer._client(s3_endpoint)
    for name in ("config.yaml", "old.checkpoint"):
        client.put_object(Bucket="lens", Key=f"run/{name}", Body=name.encode())
    pages = client.get_paginator("list_objects_v2").paginate(Bucket="lens", Prefix="run/")
    listed = list(pages)
    client.delete_object(Bucket="lens", Key="run/old.checkpoint")
    monkeypatch.setattr(
        client,
        "get_paginator",
        lambda _: SimpleNamespace(paginate=lambda **__: listed),
        raising=False,
    )
    monkeypatch.setattr(transfer, "_client", lambda _: client)
    assert transfer.fetch("s3://lens/run", tmp_path, lambda d, t: None, s3_endpoint) == (1, [])
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["config.yaml"]
