"""An S3 store on loopback that fails when a test says so, and remembers what it was asked.

    with FaultyStore() as store:
        place = open_location(f"s3://{store.bucket}/x", endpoint=store.endpoint)
        store.fail(slow_down(), times=2, method="PUT")
        place.write_bytes_atomic(b"...")
        assert store.count(method="PUT") == 3

It is a proxy with a real socket before ``moto``, so that other processes (Ray's workers) can use
it: all that they need is the address and the ``AWS_*`` variables of ``store.environment``.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import urlsplit

import boto3
from moto.server import ThreadedMotoServer

REGION = "us-east-1"
# Headers about one connection, not about what is sent through it.
_HOP_HEADERS = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect"}
_STARTED_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Fault:
    """What happens to one request; the parts are applied in the order in which they stand.

    Args:
        delay: seconds before anything else happens.
        status: answer this and ``document`` instead of asking the store.
        drop: close the connection without a byte of an answer, without asking the store.
        lose_answer: the store does what is asked, but the connection closes without an answer.
        garble: change a bit of each byte of the answer's body.
        cut_after: send this part of the answer's body (0 to 1) and close the connection.
    """

    delay: float = 0.0
    status: int | None = None
    document: bytes = b""
    drop: bool = False
    lose_answer: bool = False
    garble: bool = False
    cut_after: float | None = None


def slow_down() -> Fault:
    """S3's answer to too many requests."""
    return answer(503, "SlowDown", "Please reduce your request rate.")


def answer(status: int, code: str = "", message: str = "") -> Fault:
    """An error of the store; without a code the answer has no document (a gateway's error)."""
    return Fault(status=status, document=_error_document(code, message) if code else b"")


def delay(seconds: float) -> Fault:
    """The right answer, late."""
    return Fault(delay=seconds)


def drop() -> Fault:
    """The connection closes before any byte; the store never hears of the request."""
    return Fault(drop=True)


def lose_answer() -> Fault:
    """The store does what is asked, but the connection closes before any byte."""
    return Fault(lose_answer=True)


def garble() -> Fault:
    """An answer of the right length whose bytes are wrong."""
    return Fault(garble=True)


def cut(after: float = 0.5) -> Fault:
    """The connection closes when this part of the announced body is sent."""
    return Fault(cut_after=after)


@dataclass(frozen=True)
class Request:
    """What was asked and answered; ``status`` is None where no whole answer was sent."""

    method: str
    path: str
    query: str
    range: str | None
    status: int | None


@dataclass
class _Rule:
    fault: Fault
    method: str | None
    path: re.Pattern[str]
    every: int
    left: float
    seen: int = 0

    def applies(self, method: str, target: str) -> bool:
        """Whether it is this request's turn; counts it when it matches."""
        if self.left <= 0 or self.method not in (None, method) or not self.path.search(target):
            return False
        self.seen += 1
        if self.seen % self.every:
            return False
        self.left -= 1
        return True


@dataclass
class FaultyStore:
    """A store with one empty bucket; every method may be called from any thread."""

    # One moto serves all stores of a process, so each has a bucket of its own.
    bucket: str = field(default_factory=lambda: f"faulty-{secrets.token_hex(4)}")
    endpoint: str = field(default="", init=False)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._rules: list[_Rule] = []
        self._requests: list[Request] = []
        self._connections: set[socket.socket] = set()
        self._server: _Server | None = None
        self._restart: threading.Timer | None = None

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables with which any process can use the store."""
        return {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL": self.endpoint,
        }

    def fail(
        self,
        fault: Fault,
        *,
        times: float = float("inf"),
        every: int = 1,
        method: str | None = None,
        path: str = "",
    ) -> None:
        """Lets ``fault`` happen to every ``every``-th matching request, ``times`` times.

        ``path`` is a pattern searched in ``/bucket/key?query``. The rule given first wins; it
        alone counts the requests that it is applied to.
        """
        with self._lock:
            self._rules.append(_Rule(fault, method, re.compile(path), every, times))

    def heal(self) -> None:
        """Forgets the rules of ``fail`` and what was asked so far."""
        with self._lock:
            self._rules.clear()
            self._requests.clear()

    def refuse(self, seconds: float) -> None:
        """Nothing listens at the address for this long; open connections are closed."""
        self.stop_listening()
        self._restart = threading.Timer(seconds, self.listen)
        self._restart.daemon = True
        self._restart.start()

    @property
    def requests(self) -> list[Request]:
        """Everything that was asked since ``heal``, in the order of the answers."""
        with self._lock:
            return list(self._requests)

    def count(self, *, method: str | None = None, path: str = "") -> int:
        """How many requests matched, as in ``fail``."""
        return sum(
            method in (None, request.method)
            and re.search(path, f"{request.path}?{request.query}") is not None
            for request in self.requests
        )

    def stored(self) -> dict[str, bytes]:
        """Every object of the bucket, read behind the proxy's back."""
        found = self._client.list_objects_v2(Bucket=self.bucket).get("Contents", [])
        return {item["Key"]: self._read(item["Key"]) for item in found}

    def unfinished_uploads(self) -> list[str]:
        """Keys of multipart uploads that were neither completed nor aborted."""
        found = self._client.list_multipart_uploads(Bucket=self.bucket)
        return [item["Key"] for item in found.get("Uploads", [])]

    def put(self, key: str, data: bytes) -> None:
        """Makes an object, behind the proxy's back."""
        self._client.put_object(Bucket=self.bucket, Key=key, Body=data)

    def __enter__(self) -> FaultyStore:
        self._behind = _moto_address()
        # Bound but not listening: keeps the port ours while connections are refused.
        self._holder = _bound_socket(0)
        self._port = self._holder.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self._port}"
        self._client = boto3.client(
            "s3",
            endpoint_url="http://{}:{}".format(*self._behind),
            region_name=REGION,
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        self._client.create_bucket(Bucket=self.bucket)
        self.listen()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._restart is not None:
            self._restart.cancel()
            self._restart.join()
        self.stop_listening()
        self._holder.close()

    def listen(self) -> None:
        """Takes connections (again)."""
        server = _Server(self, self._port)
        threading.Thread(
            target=server.serve_forever, args=(_STARTED_POLL_SECONDS,), daemon=True
        ).start()
        self._server = server

    def stop_listening(self) -> None:
        """Refuses connections and closes the open ones, until ``listen``."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
        with self._lock:
            open_ones = list(self._connections)
        for connection in open_ones:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _read(self, key: str) -> bytes:
        return self._client.get_object(Bucket=self.bucket, Key=key)["Body"].read()

    def _fault_for(self, method: str, target: str) -> Fault:
        with self._lock:
            rules = (rule.fault for rule in self._rules if rule.applies(method, target))
            return next(rules, Fault())

    def _note(self, request: Request) -> None:
        with self._lock:
            self._requests.append(request)


@lru_cache(maxsize=1)
def _moto_address() -> tuple[str, int]:
    """Of this process's moto; stopping it takes half a second, so it lives on for the next."""
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    return moto.get_host_and_port()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, store: FaultyStore, port: int) -> None:
        self.store = store
        super().__init__(("127.0.0.1", port), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away are what this server is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Header and body are two writes; together with delayed acknowledgements that costs 40 ms.
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        with self.server.store._lock:
            self.server.store._connections.add(self.connection)

    def finish(self) -> None:
        with self.server.store._lock:
            self.server.store._connections.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, format: str, *arguments: object) -> None:
        """The test asks for ``requests`` instead."""

    def _serve(self) -> None:
        fault = self.server.store._fault_for(self.command, self.path)
        time.sleep(fault.delay)
        if fault.drop:
            self._answered(None)
            return
        body = self._body()
        if fault.status is not None:
            headers = {"Content-Type": "application/xml"} if fault.document else {}
            self._send(fault.status, headers, fault.document, Fault())
            return
        status, headers, content = self._ask_store(body)
        if fault.lose_answer:
            self._answered(None)
            return
        if fault.garble:
            content = bytes(byte ^ 1 for byte in content)
        self._send(status, headers, content, fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815

    def _send(self, status: int, headers: Mapping[str, str], body: bytes, fault: Fault) -> None:
        whole = fault.cut_after is None
        # Noted before the client has its answer, so that a test counts right after a call.
        self._answered(status if whole else None)
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in _HOP_HEADERS:
                self.send_header(name, value)
        # To HEAD the store announces the length of a body that it doesn't send.
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
        if status != http.HTTPStatus.NO_CONTENT:
            self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if whole else body[: int(len(body) * (fault.cut_after or 0))])

    def _answered(self, status: int | None) -> None:
        if status is None:
            self.close_connection = True
        parts = urlsplit(self.path)
        self.server.store._note(
            Request(self.command, parts.path, parts.query, self.headers.get("Range"), status)
        )

    def _ask_store(self, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        connection = http.client.HTTPConnection(*self.server.store._behind, timeout=60)
        try:
            headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP_HEADERS}
            connection.request(
                self.command, self.path, body, headers | {"Content-Length": str(len(body))}
            )
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        finally:
            connection.close()

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers
        return b"".join(chunks)


def _error_document(code: str, message: str) -> bytes:
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{code}</Code><Message>{message}</Message>"
        "<Resource>/</Resource><RequestId>4442587FB7D0A2F9</RequestId></Error>"
    ).encode()


def _bound_socket(port: int) -> socket.socket:
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", port))
    return holder
