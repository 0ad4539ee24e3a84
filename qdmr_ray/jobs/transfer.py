"""Checks a bucket before a job starts, and copies a run folder from the cluster to this machine.
Both use boto3, which finds credentials in more places than other clients do (SSO, profiles,
processes), and explains what is wrong with them."""

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qdmr_ray.errors import QdmrError
from qdmr_ray.storage import TEMPORARY_PREFIX

# Files that are copied at the same time.
TRANSFERS = 16
Progress = Callable[[int, int], None]


class Unreachable(QdmrError):  # noqa: N818
    """A store doesn't answer this machine."""


def check_bucket(uri: str, endpoint: str | None = None) -> None:
    """Checks that this machine's credentials reach the bucket of ``uri``. Raises Unreachable
    without a connection, QdmrError for no credentials, no such bucket or no right to it."""
    bucket = uri.removeprefix("s3://").partition("/")[0]
    remedy = "; where only the cluster may reach it, --no-check doesn't look"
    _told(uri, lambda: _hasty_client(endpoint).head_bucket(Bucket=bucket), remedy)


def read_object(uri: str, endpoint: str | None = None) -> str | None:
    """Returns the text of an object, or None if this machine can't read it."""
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, key = uri.removeprefix("s3://").partition("/")
    try:
        answer = _hasty_client(endpoint).get_object(Bucket=bucket, Key=key)
        return str(answer["Body"].read().decode())
    except (BotoCoreError, ClientError, OSError, UnicodeDecodeError):
        return None


def fetch(folder: str, out: Path, progress: Progress, endpoint: str | None = None) -> int:
    """Copies a run folder, local or in S3, to ``out``; returns the number of files. Files that
    ``out`` already holds with the same size and no older than their source are kept; each file
    appears whole or not at all. A file that a running run deletes during the copy, such as an old
    checkpoint, is left out. Raises QdmrError where the folder is not there, or can't be reached
    from this machine."""
    if folder.startswith("s3://"):
        return _fetch_s3(folder, out, progress, endpoint)
    source = Path(folder)
    if not source.is_dir():
        raise QdmrError(
            f"{folder}: is a folder of the cluster that this machine doesn't see; run the job with "
            "--storage s3://… or on a file system that both share"
        )
    files = sorted(path for path in source.rglob("*") if path.is_file())
    files = [path for path in files if not path.name.startswith(TEMPORARY_PREFIX)]
    came = 0
    for done, path in enumerate(files, start=1):
        try:
            with _whole(out / path.relative_to(source)) as part:
                shutil.copy2(path, part)
            came += 1
        except FileNotFoundError:
            if path.exists():
                raise
        progress(done, len(files))
    return came


def _fetch_s3(folder: str, out: Path, progress: Progress, endpoint: str | None) -> int:
    from botocore.exceptions import ClientError

    bucket, _, prefix = folder.removeprefix("s3://").rstrip("/").partition("/")
    client = _client(endpoint)

    def listed() -> list[dict[str, Any]]:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
        return [item for page in pages for item in page.get("Contents", [])]

    objects = _told(folder, listed)
    if not objects:
        raise QdmrError(f"{folder}: there is nothing; check the name with qdmr jobs logs")

    def bring(item: dict[str, Any]) -> bool:
        name = item["Key"].removeprefix(f"{prefix}/")
        target = (out / name).resolve()
        if not target.is_relative_to(out.resolve()):
            raise QdmrError(f"{folder}: has an object named {item['Key']}, which is no run's")
        if target.is_file():
            stat = target.stat()
            is_newer = stat.st_mtime >= item["LastModified"].timestamp()
            if is_newer and stat.st_size == item["Size"]:
                return True
        try:
            with _whole(target) as part:
                client.download_file(bucket, item["Key"], str(part))
        except ClientError as error:
            # The object was listed a moment ago, so its bucket exists: the run has deleted it.
            if error.response.get("Error", {}).get("Code") in ("404", "NoSuchKey"):
                return False
            raise
        return True

    files = [item for item in objects if not item["Key"].endswith("/")]
    came = 0
    with ThreadPoolExecutor(TRANSFERS) as pool:
        brought = pool.map(lambda item: _told(folder, lambda: bring(item)), files)
        for done, arrived in enumerate(brought, start=1):
            came += arrived
            progress(done, len(files))
    return came


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """Yields a place for a file's content, which becomes ``target`` unless that fails."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    yield part
    os.replace(part, target)


def _client(endpoint: str | None, connect_seconds: int = 10, attempts: int = 3) -> Any:
    import boto3
    from botocore.config import Config

    retries = {"max_attempts": attempts}
    config = Config(connect_timeout=connect_seconds, read_timeout=30, retries=retries)
    # A new session looks for credentials now; boto3's default one keeps those it found first.
    return boto3.session.Session().client("s3", endpoint_url=endpoint, config=config)


def _hasty_client(endpoint: str | None) -> Any:
    # For a quick check: a store inside a cluster never answers, and must not be waited for.
    return _client(endpoint, connect_seconds=5, attempts=1)


def _told(place: str, call: Callable[[], Any], remedy: str = "") -> Any:
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, NoCredentialsError
    from botocore.exceptions import ConnectionError as NotConnected

    try:
        return call()
    except NoCredentialsError:
        told = "this machine has no S3 credentials; log in or set AWS_PROFILE"
        raise QdmrError(f"{place}: {told}{remedy}") from None
    except (BotoCoreError, ClientError, OSError) as error:
        told = " ".join(str(error).split())
        if isinstance(error, NotConnected | HTTPClientError):
            raise Unreachable(f"{place}: {told}") from error
        if not isinstance(error, ClientError):
            raise QdmrError(f"{place}: {told}") from error
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in ("404", "NoSuchBucket"):
            raise QdmrError(f"{place}: there is no such bucket") from error
        if code in ("403", "AccessDenied"):
            told = "these credentials have no right to it; use others, by AWS_PROFILE"
        raise QdmrError(f"{place}: {told}{remedy}") from error
