"""Checks a bucket before a job starts, and copies a run folder from the cluster to this machine.
Both use boto3, which finds credentials in more places than other clients do (SSO, profiles,
processes), and explains what is wrong with them."""

import json
import os
import secrets
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from qdmr_ray.errors import QdmrError
from qdmr_ray.jobs.folder import is_plain
from qdmr_ray.storage import TEMPORARY_PREFIX

# Files that are copied at the same time.
TRANSFERS = 16
# In a fetched folder: which files were brought, as they were then.
BROUGHT_FILE = ".fetched.jsonl"
_HERE, _TAKEN, _GONE = "here", "taken", "gone"
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


class Fetched(NamedTuple):
    """The number of a run's files that are here, and the names of those whose place here is taken
    by other files, which stayed."""

    here: int
    kept: list[str]


class _File(NamedTuple):
    """A file of the run, to be copied to a path; copying raises FileNotFoundError where a run that
    goes on has deleted it."""

    name: str
    size: int
    modified: float
    copy: Callable[[Path], Any]


def fetch(folder: str, out: Path, progress: Progress, endpoint: str | None = None) -> Fetched:
    """Copies a run folder, local or in S3, to ``out``. Each file appears whole or not at all. A
    file that ``out`` already holds is replaced only where an earlier fetch brought it, nobody has
    changed it since, and the run's is newer or of another size. A file that a running run deletes
    during the copy, such as an old checkpoint, is left out. Raises QdmrError where the folder is
    not there, holds a name that leads out of it, or can't be reached from this machine."""
    in_store = folder.startswith("s3://")
    files = _in_store(folder, endpoint) if in_store else _on_disk(folder)
    for file in files:
        if not is_plain(file.name):
            raise QdmrError(f"{folder}: has an object named {file.name!a}, which is no run's")
    files = [file for file in files if file.name != BROUGHT_FILE]
    _told(str(out), lambda: out.mkdir(parents=True, exist_ok=True))
    brought = _Brought(out)
    here, kept = 0, list[str]()
    with ThreadPoolExecutor(TRANSFERS if in_store else 1) as pool:
        states = pool.map(lambda file: _told(folder, lambda: brought.bring(file)), files)
        for done, (file, state) in enumerate(zip(files, states, strict=True), start=1):
            here += state == _HERE
            kept += [file.name] * (state == _TAKEN)
            progress(done, len(files))
    return Fetched(here, kept)


def _on_disk(folder: str) -> list[_File]:
    source = Path(folder)
    if not source.is_dir():
        raise QdmrError(
            f"{folder}: is a folder of the cluster that this machine doesn't see; run the job with "
            "--storage s3://… or on a file system that both share"
        )
    files, top = [], source.resolve()
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        # A link may lead to any file of this user's, who might pass on the copy.
        if not path.resolve().is_relative_to(top):
            raise QdmrError(f"{folder}: has a link that leads out of it: {path.name!a}")
        with suppress(FileNotFoundError):
            stat, name = path.stat(), path.relative_to(source).as_posix()
            files.append(_File(name, stat.st_size, stat.st_mtime, partial(shutil.copy2, path)))
    return [file for file in files if not Path(file.name).name.startswith(TEMPORARY_PREFIX)]


def _in_store(folder: str, endpoint: str | None) -> list[_File]:
    from botocore.exceptions import ClientError

    bucket, _, prefix = folder.removeprefix("s3://").rstrip("/").partition("/")
    client = _client(endpoint)

    def listed() -> list[dict[str, Any]]:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
        return [item for page in pages for item in page.get("Contents", [])]

    def download(key: str, part: Path) -> None:
        try:
            client.download_file(bucket, key, str(part))
        except ClientError as error:
            # The object was listed a moment ago, so its bucket exists: the run has deleted it.
            if error.response.get("Error", {}).get("Code") in ("404", "NoSuchKey"):
                raise FileNotFoundError(key) from error
            raise

    objects = _told(folder, listed)
    if not objects:
        raise QdmrError(f"{folder}: there is nothing; check the name with qdmr jobs logs")
    return [
        _File(
            item["Key"].removeprefix(f"{prefix}/"),
            item["Size"],
            item["LastModified"].timestamp(),
            partial(download, item["Key"]),
        )
        for item in objects
        if not item["Key"].endswith("/")
    ]


class _Brought:
    """The files that fetches have brought into a folder, so that what anybody else wrote there is
    never replaced. ``BROUGHT_FILE`` has a line per file with its size and time; each line is
    written before its file appears, so that a fetch that is killed leaves none unknown."""

    def __init__(self, out: Path) -> None:
        self._out, self._lock = out, threading.Lock()
        self._file = out / BROUGHT_FILE
        lines = self._file.read_text("utf-8", "replace") if self._file.is_file() else ""
        self._lines = set(lines.splitlines())

    def bring(self, file: _File) -> str:
        """Copies a file unless it is here; returns whether it is, or another has its place."""
        target = self._out / file.name
        if not target.resolve().is_relative_to(self._out.resolve()):
            return _TAKEN
        if os.path.lexists(target):
            stat = target.lstat()
            if stat.st_size == file.size and stat.st_mtime >= file.modified:
                return _HERE
            if self._line(file.name, stat) not in self._lines:
                return _TAKEN
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}")
        try:
            file.copy(part)
            self._remember(self._line(file.name, part.stat()))
            os.replace(part, target)
        except FileNotFoundError:
            return _GONE
        finally:
            part.unlink(missing_ok=True)
        return _HERE

    @staticmethod
    def _line(name: str, stat: os.stat_result) -> str:
        return json.dumps([name, stat.st_size, stat.st_mtime_ns])

    def _remember(self, line: str) -> None:
        with self._lock, self._file.open("a", encoding="utf-8") as file:
            # A line that was cut off by a kill must not take this one with it.
            file.write(f"\n{line}\n")
            self._lines.add(line)


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
