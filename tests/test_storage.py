"""Local files and an S3-compatible store behind one interface."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from qdmr_ray.errors import QdmrError
from qdmr_ray.storage import Location, open_location, write_file_atomic


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    credentials = {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in credentials.items():
            patch.setenv(name, value)
        boto3.client("s3", endpoint_url=address, region_name="us-east-1").create_bucket(
            Bucket="photos"
        )
        yield address
    server.stop()


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    if request.param == "local":
        return open_location(tmp_path / "folder")
    address = request.getfixturevalue("endpoint")
    return open_location(f"s3://photos/{tmp_path.name}", endpoint=address)


def test_what_is_written_can_be_read_listed_and_deleted(folder: Location) -> None:
    assert folder.list() == []
    folder.join("b").write_bytes_atomic(b"second")
    folder.join("a").write_bytes_atomic(b"first")
    folder.join("below", "c").write_bytes_atomic(b"third")
    assert [found.name for found in folder.list()] == ["a", "b", "below"]
    assert folder.join("a").exists()
    assert folder.join("b").size() == 6
    assert folder.join("b").read_bytes() == b"second"
    assert folder.join("b").read_bytes(1, 3) == b"eco"
    folder.join("b").write_bytes_atomic(b"new")
    assert folder.join("b").read_bytes() == b"new"
    folder.join("a").delete()
    folder.join("never there").delete()
    assert not folder.join("a").exists()
    assert folder.join("a").size() is None
    folder.delete()
    assert folder.list() == []


def test_missing_and_short_files_are_named(folder: Location) -> None:
    with pytest.raises(QdmrError, match=r"gone: no such file"):
        folder.join("gone").read_bytes()
    folder.join("short").write_bytes_atomic(b"1234")
    with pytest.raises(QdmrError, match=r"short: ends at byte 4 instead of 6"):
        folder.join("short").read_bytes(2, 4)


def test_a_uri_names_the_same_place_again(folder: Location) -> None:
    folder.join("a").write_bytes_atomic(b"x")
    uri = folder.join("a").uri
    assert uri.startswith("s3://photos/") == folder.is_s3
    if not folder.is_s3:
        assert open_location(uri).read_bytes() == b"x"
        assert folder.local_path == Path(folder.path)


def test_the_endpoint_may_come_from_the_environment(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_location("s3://photos/env", endpoint=endpoint).write_bytes_atomic(b"here")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    assert open_location("s3://photos/env").read_bytes() == b"here"


def test_a_missing_bucket_is_one_line(endpoint: str) -> None:
    with pytest.raises(QdmrError, match="s3://nowhere/file") as caught:
        open_location("s3://nowhere/file", endpoint=endpoint).read_bytes()
    assert "\n" not in str(caught.value)


def test_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_location("data/packed").uri == str(tmp_path / "data" / "packed")
    assert open_location(f"file://{tmp_path}").path == str(tmp_path)


@pytest.mark.parametrize("uri", ["gs://bucket/x", "s3://", ""])
def test_places_that_cannot_be_are_refused(uri: str) -> None:
    with pytest.raises(QdmrError):
        open_location(uri)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "result.bin"
    write_file_atomic(file, b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(QdmrError, match=r"result\.bin: the disk is full"):
        write_file_atomic(file, b"new and longer")
    assert [path.name for path in tmp_path.iterdir()] == ["result.bin"]
    assert file.read_bytes() == b"old"


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_bytes(b"")
    with pytest.raises(QdmrError, match="taken"):
        open_location(tmp_path / "taken" / "deeper" / "file").write_bytes_atomic(b"x")
