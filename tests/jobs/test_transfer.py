"""Fetching run folders, and looking at a bucket before a job starts; S3 over HTTP."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import boto3
import pytest

from qdmr_ray.errors import QdmrError
from qdmr_ray.jobs import transfer
from qdmr_ray.jobs.transfer import check_bucket, fetch

FILES = {
    "config.yaml": b"name: demo",
    "uda/final/model.safetensors": b"x" * 300_000,
    "a b.txt": b"",
}


@pytest.fixture
def endpoint(s3_endpoint: str) -> str:
    return s3_endpoint


@pytest.fixture
def bucket(endpoint: str) -> Any:
    client = boto3.client("s3", endpoint_url=endpoint)
    for name, content in FILES.items():
        client.put_object(Bucket="lens", Key=f"team/demo/{name}", Body=content)
    client.put_object(Bucket="lens", Key="team/demo2/config.yaml", Body=b"another")
    return client


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != transfer.BROUGHT_FILE
    }


def test_a_run_is_fetched_from_a_store(bucket: Any, endpoint: str, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    fetched = fetch("s3://lens/team/demo", tmp_path, lambda d, t: seen.append((d, t)), endpoint)
    assert fetched == (3, [])
    assert contents(tmp_path) == FILES
    assert seen[-1] == (3, 3)


def test_what_is_here_already_stays(bucket: Any, endpoint: str, tmp_path: Path) -> None:
    fetch("s3://lens/team/demo", tmp_path, lambda d, t: None, endpoint)
    model = tmp_path / "uda/final/model.safetensors"
    inode = model.stat().st_ino
    (tmp_path / "config.yaml").write_bytes(b"damaged here")
    again = fetch("s3://lens/team/demo", tmp_path, lambda d, t: None, endpoint)
    assert again == (2, ["config.yaml"])
    assert contents(tmp_path) == {**FILES, "config.yaml": b"damaged here"}
    assert model.stat().st_ino == inode


def test_a_name_that_leads_elsewhere_is_refused(bucket: Any, endpoint: str, tmp_path: Path) -> None:
    bucket.put_object(Bucket="lens", Key="team/demo/../../../outside.txt", Body=b"x")
    with pytest.raises(QdmrError, match="which is no run's"):
        fetch("s3://lens/team/demo", tmp_path / "in" / "side", lambda d, t: None, endpoint)
    assert not list(tmp_path.rglob("outside.txt"))


def test_a_run_on_a_shared_disk_is_copied(tmp_path: Path) -> None:
    source = tmp_path / "cluster" / "demo"
    for name, content in FILES.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    assert fetch(str(source), tmp_path / "here", lambda d, t: None) == (3, [])
    assert contents(tmp_path / "here") == FILES


def test_a_folder_of_another_machine_is_explained(tmp_path: Path) -> None:
    with pytest.raises(
        QdmrError, match="that this machine doesn't see; run the job with --storage"
    ):
        fetch("/nowhere/runs/demo", tmp_path, lambda d, t: None)


def test_an_empty_place_is_named(bucket: Any, endpoint: str, tmp_path: Path) -> None:
    with pytest.raises(QdmrError, match="s3://lens/team/none: there is nothing"):
        fetch("s3://lens/team/none", tmp_path, lambda d, t: None, endpoint)


def test_a_bucket_is_looked_at(bucket: Any, endpoint: str) -> None:
    check_bucket("s3://lens/team", endpoint)
    with pytest.raises(QdmrError, match="s3://elsewhere/x: there is no such bucket"):
        check_bucket("s3://elsewhere/x", endpoint)


def test_missing_credentials_are_told(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    with pytest.raises(QdmrError, match="no S3 credentials; log in"):
        check_bucket("s3://lens/x", endpoint)


def test_a_store_that_does_not_answer_is_named(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert transfer.TRANSFERS > 1
    with pytest.raises(QdmrError, match=r"s3://lens/x: .*127\.0\.0\.1:9"):
        check_bucket("s3://lens/x", "http://127.0.0.1:9")
