"""What Ray's jobs API answers, in one line that says what to do."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from qdmr_ray.errors import QdmrError
from qdmr_ray.jobs.client import ADDRESS_VARIABLE, Jobs, find_address
from qdmr_ray.jobs.upload import Upload, plan_upload
from qdmr_ray.version import from_git

if TYPE_CHECKING:
    from fake_cluster import FakeCluster

# Times in names are digits, and people's names are words.
NAMES = ("token-train-20260101-140312-ab", "ann-train-20260101-140412-ab", "a-train-20260401-1-c")
LOST = "no Ray cluster answers there; is the tunnel up?"


@pytest.mark.parametrize("variable", [ADDRESS_VARIABLE, "RAY_ADDRESS"])
def test_the_address_that_is_named_is_the_one_that_is_asked(
    fake_cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    from fake_cluster import FakeJob

    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    fake_cluster.jobs["j"] = FakeJob(state="RUNNING")
    assert Jobs(find_address(fake_cluster.address)).job("j").state == "RUNNING"
    assert os.environ[variable] == "http://127.0.0.1:9"


@pytest.mark.parametrize("name", NAMES)
def test_a_broken_connection_is_told_as_that(fake_cluster: FakeCluster, name: str) -> None:
    jobs = Jobs(fake_cluster.address)
    fake_cluster.is_down = True
    for call in (jobs.job, jobs.logs, lambda job: jobs.follow(job, print)):
        with pytest.raises(QdmrError, match=re.escape(f"{fake_cluster.address}: {LOST}")):
            call(name)


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_job_is_told_as_that(fake_cluster: FakeCluster, name: str) -> None:
    jobs = Jobs(fake_cluster.address)
    for call in (jobs.job, jobs.logs, lambda job: jobs.follow(job, print)):
        with pytest.raises(QdmrError, match=f"has no job {name}; qdmr jobs list shows all"):
            call(name)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_is_told_as_that(fake_cluster: FakeCluster, status: int) -> None:
    jobs = Jobs(fake_cluster.address)
    fake_cluster.refusal = (status, "404: Unauthorized, the job does not exist")
    with pytest.raises(QdmrError, match="refuses without its token; set RAY_AUTH_MODE=token"):
        jobs.job("j")


@pytest.mark.parametrize("name", NAMES)
def test_any_other_failure_is_told_in_its_own_words(fake_cluster: FakeCluster, name: str) -> None:
    jobs = Jobs(fake_cluster.address)
    text = f"{name}: token 401 403 404 does not exist, cannot connect"
    fake_cluster.refusal = (500, text)
    with pytest.raises(QdmrError, match=re.escape(f"status code 500: {text}")):
        jobs.job(name)


def test_a_name_that_is_taken_is_told_as_that(fake_cluster: FakeCluster, tmp_path: Path) -> None:
    jobs = Jobs(fake_cluster.address)
    # As Ray's head passes on what the node's agent has answered.
    fake_cluster.refusal = (
        500,
        "Traceback ... RuntimeError: Request failed with status code 400: Traceback ... "
        "ValueError: Job with submission_id mine already exists. Please use a different one.",
    )
    with pytest.raises(QdmrError, match="a job of this name already, --name mine; choose another"):
        jobs.submit(["true"], Upload(tmp_path, {}, (), ()), name="mine")
    fake_cluster.refusal = (500, "FileExistsError: the package already exists")
    with pytest.raises(QdmrError, match="the package already exists"):
        jobs.submit(["true"], Upload(tmp_path, {}, (), ()), name="mine")


def test_a_job_keeps_the_commit_the_branch_and_the_changes_of_its_code(
    fake_cluster: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> None:
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        subprocess.run(["git", *identity, "-C", str(tmp_path), *words], check=True)

    git("init", "-q", "-b", "lens")
    (tmp_path / "qdmr_ray").mkdir()
    (tmp_path / "qdmr_ray" / "__init__.py").write_text("")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    (tmp_path / "qdmr_ray" / "__init__.py").write_text("a = 1\n")
    uploaded = []

    def upload(request: dict[str, Any]) -> None:
        folder = Path(request["runtime_env"]["working_dir"])
        uploaded.append(json.loads((folder / "qdmr_ray" / "_origin.json").read_text()))

    jobs = Jobs(fake_cluster.address)
    monkeypatch.setattr(jobs._client, "submit_job", lambda **request: upload(request))
    jobs.submit(["true"], plan_upload(tmp_path), name="mine")
    monkeypatch.undo()
    # The file goes along and is none of the folder's own.
    assert not (tmp_path / "qdmr_ray" / "_origin.json").exists()
    assert uploaded == [from_git(tmp_path).origin()]
    assert uploaded[0].keys() == {"commit", "branch", "diff"}

    jobs.submit(["true"], plan_upload(tmp_path), name="mine")
    assert fake_cluster.submitted[0]["metadata"].items() >= uploaded[0].items()
    assert jobs.job("mine").origin == uploaded[0]
