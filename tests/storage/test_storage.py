"""Local files and an S3-compatible store behind one interface."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import re
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import boto3
import pytest
from faulty_store import (
    Fault,
    FaultyStore,
    answer,
    cut,
    delay,
    drop,
    lose_answer,
    slow_down,
)
from moto.server import ThreadedMotoServer
from obstore.exceptions import GenericError

from qdmr_ray.errors import QdmrError
from qdmr_ray.storage import Location, open_location, retry, write_file_atomic
from qdmr_ray.storage.location import LARGEST_SINGLE_REQUEST


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
    assert folder.file_sizes() == {"a": 5, "b": 6}
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
    assert folder.file_sizes() == {}


def test_a_version_tells_a_file_from_its_successor(folder: Location) -> None:
    file = folder.join("a", "b.png")
    with pytest.raises(QdmrError, match=r"b\.png"):
        file.version()
    file.write_bytes_atomic(b"one")
    first = file.version()
    assert first == file.version()
    file.write_bytes_atomic(b"two")
    assert file.version() != first
    assert folder.is_folder()
    assert folder.join("a").is_folder()
    assert not file.is_folder()
    assert not folder.join("a", "b").is_folder()


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


# What follows needs a store that fails, and mostly a clock that doesn't make the tests wait.

# More than one request's worth: four parts.
LARGE = bytes(range(256)) * (25 * 4096)


class Clock:
    """A clock that only pauses move; keeps their lengths in seconds. Threads that ran before keep
    real time: loaders of an earlier test may still be asking a store that is gone, and with pauses
    that cost nothing they would move this clock by minutes."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []
        self.strangers = {thread.ident for thread in threading.enumerate()}
        self.strangers.remove(threading.get_ident())

    def sleep(self, seconds: float) -> None:
        if threading.get_ident() in self.strangers:
            time.sleep(seconds)
            return
        self.pauses.append(seconds)
        self.now += seconds

    def monotonic(self) -> float:
        return time.monotonic() if threading.get_ident() in self.strangers else self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(retry, "sleep", clock.sleep)
    monkeypatch.setattr(retry, "monotonic", clock.monotonic)
    # obstore's pauses between attempts at a part are real: leave them out.
    monkeypatch.setattr(retry, "_PART_ATTEMPTS", 1)
    return clock


@pytest.fixture
def place(faulty_store: FaultyStore) -> Location:
    """A folder of the store, which this process has not talked to yet."""
    retry._answered.discard(faulty_store.endpoint)
    return open_location(f"s3://{faulty_store.bucket}/x", endpoint=faulty_store.endpoint)


def put_x(place: Location) -> None:
    place.join("new").write_bytes_atomic(b"fresh")


# Each with the kind of request that does the work, and what it gives with "x/a" = b"12345".
OPERATIONS: dict[str, tuple[str, Callable[[Location], object], object]] = {
    "read": ("GET", lambda place: place.join("a").read_bytes(), b"12345"),
    "read a range": ("GET", lambda place: place.join("a").read_bytes(1, 3), b"234"),
    "write": ("PUT", put_x, None),
    "exists": ("HEAD", lambda place: place.join("a").exists(), True),
    "size": ("HEAD", lambda place: place.join("a").size(), 5),
    "list": ("GET", lambda place: [found.name for found in place.list()], ["a"]),
    "sizes of all": ("GET", lambda place: place.file_sizes(), {"a": 5}),
    "delete": ("DELETE", lambda place: place.join("a").delete(), None),
    "delete a folder": ("DELETE", lambda place: place.delete(), None),
}
AFTERWARDS = {
    "write": {"x/a": b"12345", "x/new": b"fresh"},
    "delete": {},
    "delete a folder": {},
}
ANSWERED = {
    "slow down": slow_down(),
    "internal error": answer(500, "InternalError", "We encountered an internal error."),
    "bad gateway": answer(502),
    "unavailable": answer(503),
    "gateway timeout": answer(504),
    "too many": answer(429, "TooManyRequests", "slowly"),
}
NETWORK = {"dropped": drop(), "answer lost": lose_answer()}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("fault", [*ANSWERED, *NETWORK])
def test_a_passing_failure_is_not_seen(
    faulty_store: FaultyStore, place: Location, clock: Clock, operation: str, fault: str
) -> None:
    faulty_store.put("x/a", b"12345")
    method, act, expected = OPERATIONS[operation]
    faulty_store.fail((ANSWERED | NETWORK)[fault], times=2, method=method)
    assert act(place) == expected
    assert faulty_store.stored() == AFTERWARDS.get(operation, {"x/a": b"12345"})
    if fault in ANSWERED:
        assert faulty_store.count(method=method) == 3
        assert len(clock.pauses) == 2
    elif fault == "dropped":
        assert faulty_store.count(method=method) >= 3


@pytest.mark.parametrize("operation", ["read", "read a range", "list"])
def test_a_body_that_breaks_off_is_fetched_again(
    faulty_store: FaultyStore, place: Location, clock: Clock, operation: str
) -> None:
    faulty_store.put("x/a", b"12345")
    _, act, expected = OPERATIONS[operation]
    faulty_store.fail(cut(), times=2, method="GET")
    assert act(place) == expected
    assert faulty_store.count(method="GET") == 3
    assert len(clock.pauses) == 2


def test_a_body_shorter_than_the_object_is_fetched_again(
    faulty_store: FaultyStore, place: Location, clock: Clock
) -> None:
    faulty_store.put("x/a", b"12345")
    faulty_store.fail(Fault(status=206, document=b"12"), times=2, method="GET")
    assert place.join("a").read_bytes() == b"12345"
    assert len(clock.pauses) == 2


def test_reading_is_one_request(faulty_store: FaultyStore, place: Location) -> None:
    faulty_store.put("x/a", b"12345")
    file = place.join("a")
    assert file.read_piece(1, 3) == (b"234", 5)
    assert file.read_piece(3, 9) == (b"45", 5)
    assert file.read_bytes() == b"12345"
    asked = [(request.method, request.range) for request in faulty_store.requests]
    assert asked == [("GET", "bytes=1-3"), ("GET", "bytes=3-11"), ("GET", "bytes=0-")]


def test_an_empty_object_is_read(faulty_store: FaultyStore, place: Location, clock: Clock) -> None:
    faulty_store.put("x/a", b"")
    assert place.join("a").read_bytes() == b""
    assert place.join("a").size() == 0
    # Some stores send an empty object as a whole, whatever range is asked for.
    faulty_store.fail(Fault(status=200), times=1, method="GET")
    assert place.join("a").read_bytes() == b""
    assert clock.pauses == []


def test_a_short_object_is_told_at_once(
    faulty_store: FaultyStore, place: Location, clock: Clock
) -> None:
    faulty_store.put("x/a", b"12345")
    file = place.join("a")
    for offset, length in ((2, 4), (5, 1), (7, 2)):
        with pytest.raises(QdmrError) as caught:
            file.read_bytes(offset, length)
        assert str(caught.value) == (
            f"{file.uri}: ends at byte 5 instead of {offset + length}; "
            "the file is damaged, write it again"
        )
    assert file.read_bytes(5) == file.read_bytes(7) == file.read_bytes(2, 0) == b""
    assert clock.pauses == []


def test_what_is_written_by_many_while_every_third_request_fails_is_whole(
    faulty_store: FaultyStore, place: Location, clock: Clock
) -> None:
    contents = {f"{i}": os.urandom(1000 + i) for i in range(24)}
    for fault in (slow_down(), drop(), lose_answer()):
        faulty_store.fail(fault, every=9)

    def there_and_back(name: str) -> bytes:
        place.join(name).write_bytes_atomic(contents[name])
        return place.join(name).read_bytes()

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(there_and_back, contents)) == list(contents.values())
    assert sorted(found.name for found in place.list()) == sorted(contents)
    assert faulty_store.stored() == {f"x/{name}": data for name, data in contents.items()}


def test_a_small_object_is_one_request(
    faulty_store: FaultyStore, place: Location, clock: Clock
) -> None:
    place.join("a").write_bytes_atomic(memoryview(LARGE)[:LARGEST_SINGLE_REQUEST])
    assert [(request.method, request.query) for request in faulty_store.requests] == [("PUT", "")]


@pytest.mark.parametrize("fault", [slow_down(), drop(), lose_answer(), answer(500)])
@pytest.mark.parametrize("step", [r"\?uploads", "partNumber=2", r"\?uploadId="])
def test_an_upload_that_fails_midway_starts_again(
    faulty_store: FaultyStore, place: Location, clock: Clock, step: str, fault: Fault
) -> None:
    file = place.join("a")
    faulty_store.put("x/a", b"old")
    faulty_store.fail(fault, times=3, path=step)
    file.write_bytes_atomic(LARGE)
    assert faulty_store.stored() == {"x/a": LARGE}
    assert faulty_store.count(path=step) >= 4
    assert faulty_store.count(method="PUT", path=r"/x/a\?$") == 0


def test_an_upload_whose_end_is_answered_by_an_error_in_a_good_answer_starts_again(
    faulty_store: FaultyStore, place: Location, clock: Clock
) -> None:
    error = answer(200, "InternalError", "We encountered an internal error. Please try again.")
    faulty_store.fail(error, times=1, path=r"\?uploadId=")
    place.join("a").write_bytes_atomic(LARGE)
    assert faulty_store.stored() == {"x/a": LARGE}
    assert len(clock.pauses) == 1


@pytest.mark.parametrize(
    ("data", "step"),
    [(b"new", ""), (LARGE, ""), (LARGE, "partNumber=2"), (LARGE, r"\?uploadId=")],
    ids=["small", "large", "a part", "the end"],
)
def test_an_upload_that_may_not_be_leaves_what_was_there(
    faulty_store: FaultyStore, place: Location, clock: Clock, step: str, data: bytes
) -> None:
    place.exists()
    faulty_store.put("x/old", b"old")
    faulty_store.fail(answer(403, "AccessDenied", "Access Denied"), path=step)
    for name in ("old", "new"):
        with pytest.raises(QdmrError, match="access denied"):
            place.join(name).write_bytes_atomic(data)
    assert faulty_store.stored() == {"x/old": b"old"}
    assert clock.pauses == []


def test_parts_are_tried_again_one_by_one(faulty_store: FaultyStore, place: Location) -> None:
    place.exists()
    faulty_store.fail(slow_down(), times=1, path="partNumber=2")
    place.join("a").write_bytes_atomic(LARGE)
    assert faulty_store.stored() == {"x/a": LARGE}
    assert faulty_store.count(path=r"\?uploads") == 1
    assert faulty_store.count(method="PUT") == 5


def test_deleting_many_goes_on_where_some_failed(
    faulty_store: FaultyStore, place: Location, clock: Clock
) -> None:
    for number in range(20):
        faulty_store.put(f"x/{number}", b"1")
    faulty_store.fail(slow_down(), times=2, method="DELETE")
    place.delete()
    assert faulty_store.stored() == {}
    assert 1 <= len(clock.pauses) <= 2


def test_deleting_what_may_not_be_deleted_is_told(
    faulty_store: FaultyStore, place: Location, clock: Clock
) -> None:
    for name in ("a", "b"):
        faulty_store.put(f"x/{name}", b"1")
    faulty_store.fail(answer(403, "AccessDenied", "Access Denied"), method="DELETE")
    with pytest.raises(QdmrError, match=r"x: access denied .* it cannot be deleted"):
        place.delete()
    assert clock.pauses == []


CHECK = (
    "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the profile or the instance's role) "
    "and what they allow"
)
SET = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the profile or the instance's role"
LASTING = {
    "denied": (
        answer(403, "AccessDenied", "Access Denied"),
        f"access denied by ADDRESS, it cannot be written; check the credentials {CHECK}",
    ),
    "unknown key": (
        answer(403, "InvalidAccessKeyId", "No such key."),
        f"ADDRESS refuses the credentials (InvalidAccessKeyId: No such key.); {SET}",
    ),
    "wrong secret": (
        answer(403, "SignatureDoesNotMatch", "Check your key."),
        f"ADDRESS refuses the credentials (SignatureDoesNotMatch: Check your key.); {SET}",
    ),
    "expired": (
        answer(400, "ExpiredToken", "It is too old."),
        f"ADDRESS refuses the credentials (ExpiredToken: It is too old.); {SET}",
    ),
    "no bucket": (
        answer(404, "NoSuchBucket", "The specified bucket does not exist"),
        "ADDRESS has no bucket BUCKET; create it or check the address",
    ),
    "clock": (
        answer(403, "RequestTimeTooSkewed", "Too far."),
        "cannot be written (RequestTimeTooSkewed: Too far.); set this machine's clock",
    ),
    "region": (
        answer(301, "PermanentRedirect", "Elsewhere."),
        "the bucket lies in another region; set AWS_REGION to it",
    ),
    "invalid": (
        answer(400, "InvalidArgument", "Not so."),
        "ADDRESS refuses that it is written (InvalidArgument: Not so.)",
    ),
    "not implemented": (
        answer(501),
        "ADDRESS refuses that it is written (HTTP status 501)",
    ),
}


@pytest.mark.parametrize("kind", LASTING)
def test_a_lasting_failure_is_told_at_once(
    faulty_store: FaultyStore, place: Location, clock: Clock, kind: str
) -> None:
    fault, message = LASTING[kind]
    faulty_store.fail(fault)
    file = place.join("a")
    with pytest.raises(QdmrError) as caught:
        file.write_bytes_atomic(b"1")
    expected = message.replace("ADDRESS", faulty_store.endpoint)
    assert str(caught.value) == f"{file.uri}: {expected.replace('BUCKET', faulty_store.bucket)}"
    assert len(faulty_store.requests) == 1
    assert clock.pauses == []


def test_a_refusal_ends_the_trying(
    faulty_store: FaultyStore, place: Location, clock: Clock
) -> None:
    faulty_store.fail(slow_down(), times=2)
    faulty_store.fail(answer(403))
    with pytest.raises(QdmrError, match="it cannot be read; check the credentials"):
        place.join("a").read_bytes()
    assert len(faulty_store.requests) == 3


def test_a_missing_file_and_a_missing_bucket_are_told_apart(
    faulty_store: FaultyStore, place: Location, clock: Clock
) -> None:
    file = place.join("gone")
    with pytest.raises(QdmrError) as caught:
        file.read_bytes()
    assert str(caught.value) == f"{file.uri}: no such file or folder; check the path"
    lost = open_location("s3://nowhere/file", endpoint=faulty_store.endpoint)
    remedy = "create it or check the address"
    for act in (lost.read_bytes, lambda: lost.write_bytes_atomic(b"1")):
        with pytest.raises(QdmrError) as caught:
            act()
        assert str(caught.value) == (
            f"s3://nowhere/file: {faulty_store.endpoint} has no bucket nowhere; {remedy}"
        )
    assert not lost.exists()
    assert lost.list() == []
    assert clock.pauses == []


def free_address() -> str:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}"


@pytest.mark.parametrize("data", [b"small", LARGE], ids=["small", "large"])
def test_an_address_that_never_answered_is_given_up_soon(clock: Clock, data: bytes) -> None:
    address = free_address()
    file = open_location("s3://photos/a", endpoint=address)
    with pytest.raises(QdmrError) as caught:
        file.write_bytes_atomic(data)
    assert str(caught.value) == (
        f"s3://photos/a: cannot be written, {address} gave no usable answer for 20 s (Connection "
        "refused); check the address (AWS_ENDPOINT_URL or s3_endpoint) and that the "
        "store runs"
    )
    assert sum(clock.pauses) == pytest.approx(20)


def test_a_store_that_answered_before_is_waited_for(
    faulty_store: FaultyStore, place: Location, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    faulty_store.put("x/a", b"12345")
    assert place.join("a").exists()
    faulty_store.fail(slow_down())
    with caplog.at_level(logging.WARNING), pytest.raises(QdmrError) as caught:
        place.join("a").read_bytes()
    assert str(caught.value) == (
        f"{place.uri}/a: cannot be read, {faulty_store.endpoint} gave no usable answer for 120 s "
        "(SlowDown: Please reduce your request rate.); see that the store works, then start again"
    )
    assert sum(clock.pauses) == pytest.approx(120)
    (warning,) = [record for record in caplog.records if record.name == "qdmr_ray.storage.retry"]
    told = f"{faulty_store.endpoint} fails (SlowDown: Please reduce your request rate.); trying"
    assert warning.getMessage().startswith(f"{told} again for ")


def test_a_missing_file_counts_as_an_answer(
    faulty_store: FaultyStore, place: Location, clock: Clock
) -> None:
    with pytest.raises(QdmrError):
        place.join("gone").read_bytes()
    faulty_store.fail(slow_down())
    with pytest.raises(QdmrError, match="for 120 s"):
        place.exists()


def test_pauses_grow_to_a_bound_and_are_drawn_at_random(
    faulty_store: FaultyStore, place: Location, clock: Clock
) -> None:
    place.exists()
    faulty_store.fail(answer(503), times=40)
    place.exists()
    bounds = [min(5.0, 0.1 * 2**number) for number in range(40)]
    shares = [pause / bound for pause, bound in zip(clock.pauses, bounds, strict=True)]
    assert max(shares) <= 1
    assert min(shares) < 0.3
    assert max(shares) > 0.7


def test_a_slow_operation_gets_its_attempts_too(clock: Clock) -> None:
    failures = iter([True, True, True, False])

    def upload() -> str:
        clock.now += 300
        if next(failures):
            raise GenericError("Server returned non-2xx status code: 503 Service Unavailable: ")
        return "done"

    retry._answered.add("somewhere")
    assert retry.persistently(upload, address="somewhere") == "done"


def test_an_untrusted_certificate_is_told_at_once(tmp_path: Path, clock: Clock) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run(
        ["openssl", *made, "-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"https://localhost:{server.server_port}"
    with pytest.raises(QdmrError, match=rf"the certificate of {address} is not trusted \(.+\)"):
        open_location("s3://photos/a", endpoint=address).exists()
    server.shutdown()
    server.server_close()
    assert clock.pauses == []


def test_local_failures_are_not_tried_again(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = open_location(tmp_path)
    with pytest.raises(QdmrError, match="no such file"):
        place.join("gone").read_bytes()
    (tmp_path / "short").write_bytes(b"1234")
    with pytest.raises(QdmrError, match="ends at byte 4 instead of 6"):
        place.join("short").read_bytes(2, 4)
    calls = []

    def broken(path: object) -> None:
        calls.append(path)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "listdir", broken)
    with pytest.raises(QdmrError, match=r"cannot be listed \(Input/output error\)"):
        place.list()
    assert len(calls) == 1
    assert clock.pauses == []


def test_a_location_may_travel_to_another_process(
    faulty_store: FaultyStore, place: Location, clock: Clock
) -> None:
    faulty_store.put("x/a", b"12345")
    arrived = pickle.loads(pickle.dumps(place))
    assert arrived == place
    faulty_store.fail(slow_down(), times=2)
    assert arrived.join("a").read_bytes() == b"12345"
    assert len(clock.pauses) == 2


CHAINS = {
    "profile": ({"AWS_PROFILE": "lens"}, "profile-key"),
    "environment": ({"AWS_ACCESS_KEY_ID": "env-key", "AWS_SECRET_ACCESS_KEY": "x"}, "env-key"),
    "nothing": ({}, None),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_credentials_come_from_the_aws_chain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chain: str
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    profile = "[lens]\naws_access_key_id = profile-key\naws_secret_access_key = x\n"
    (tmp_path / "credentials").write_text(profile)
    (tmp_path / "config").write_text("[profile lens]\nregion = eu-west-3\n")
    variables, key = CHAINS[chain]
    found = {"SHARED_CREDENTIALS_FILE": "credentials", "CONFIG_FILE": "config"}
    for name, file in found.items():
        monkeypatch.setenv(f"AWS_{name}", str(tmp_path / file))
    for name, value in {"AWS_EC2_METADATA_DISABLED": "true", **variables}.items():
        monkeypatch.setenv(name, value)
    signatures: list[str | None] = []

    class Store(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            signatures.append(self.headers.get("Authorization"))
            self.send_error(404)

        do_GET = do_HEAD  # noqa: N815

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing."""

    server = HTTPServer(("127.0.0.1", 0), Store)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    place = open_location("s3://photos/a", endpoint=f"http://127.0.0.1:{server.server_port}")
    assert place.size() is None
    server.shutdown()
    server.server_close()
    (signature,) = signatures
    if key is None:
        assert signature is None
    else:
        assert signature is not None
        assert f"Credential={key}/" in signature
        assert ("eu-west-3" in signature) == (chain == "profile")


# On the real clock, with nothing replaced.


@pytest.mark.slow
def test_a_store_that_refuses_for_three_seconds_is_read(
    faulty_store: FaultyStore, place: Location
) -> None:
    place.join("a").write_bytes_atomic(b"12345")
    faulty_store.refuse(3)
    begun = time.monotonic()
    assert place.join("a").read_bytes() == b"12345"
    assert 2.5 < time.monotonic() - begun < 15


@pytest.mark.slow
def test_a_store_that_answers_after_five_seconds_is_read(
    faulty_store: FaultyStore, place: Location
) -> None:
    faulty_store.put("x/a", b"12345")
    faulty_store.fail(delay(5), times=1, method="GET")
    begun = time.monotonic()
    assert place.join("a").read_bytes() == b"12345"
    # It is the late answer that was taken, not one to a second attempt.
    assert time.monotonic() - begun >= 5
    assert faulty_store.count(method="GET") == 1


def test_an_address_where_nothing_listens_is_told_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_CONTACT_SECONDS", 1.0)
    begun = time.monotonic()
    with pytest.raises(QdmrError, match=r"gave no usable answer for 1 s \(Connection refused"):
        open_location("s3://photos/a", endpoint=free_address()).exists()
    assert time.monotonic() - begun < 5


def test_an_address_that_takes_connections_but_never_answers_is_told_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retry, "FIRST_CONTACT_SECONDS", 1.0)
    monkeypatch.setattr(retry, "_ANSWER_SECONDS", 1.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(QdmrError, match=re.escape("(timeout); check the address")):
            open_location("s3://photos/a", endpoint=address).exists()
