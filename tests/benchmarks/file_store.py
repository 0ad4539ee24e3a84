"""A store on loopback for benchmarks: the files of a folder, by ranges, late and slow as told.

    with serving(folder, latency=0.005, rate=125e6) as endpoint:
        open_location("s3://bucket/PATH", endpoint=endpoint)  # FOLDER/PATH
        sent(endpoint)  # bytes and requests so far

It runs in a process of its own and sends files with ``sendfile``, because moto, which the tests
use, copies every byte in Python several times and would be what is measured. It only reads, and
doesn't look at signatures.
"""

import contextlib
import http.server
import json
import math
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_SENT = "/-/sent"
# Bytes that are sent at a time where the rate is bounded.
_PIECE = 2**17


class Sent(NamedTuple):
    """What a store has answered with."""

    bytes: int
    requests: int


@contextlib.contextmanager
def serving(folder: Path, *, latency: float = 0.0, rate: float = math.inf) -> Iterator[str]:
    """Yields the address of a store that holds the files of ``folder``: each answer comes after
    ``latency`` seconds, all together at ``rate`` bytes a second. Sets credentials for it."""
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    command = [sys.executable, __file__, str(folder), str(latency), str(rate)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
    finally:
        server.kill()
        server.wait()


def sent(endpoint: str) -> Sent:
    """Asks the store how much it has sent."""
    with urllib.request.urlopen(endpoint + _SENT, timeout=10) as answer:
        return Sent(**json.load(answer))


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder: Path, latency: float, rate: float) -> None:
        self.folder, self.latency, self.rate = folder.resolve(), latency, rate
        self.lock, self.sent = threading.Lock(), Sent(0, 0)
        # When the line will have sent what was promised so far.
        self.free_at = 0.0
        super().__init__(("127.0.0.1", 0), _Files)

    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing of clients that leave in the middle, as those of webdataset do."""


class _Files(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *arguments: object) -> None:
        """Logs nothing: logging would be most of the work."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        if self.path == _SENT:
            content = json.dumps(self.server.sent._asdict()).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            return
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        time.sleep(self.server.latency)
        # What stands before the second slash is the bucket.
        file = (self.server.folder / self.path.split("?")[0].split("/", 2)[-1]).resolve()
        if not (file.is_relative_to(self.server.folder) and file.is_file()):
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        size = file.stat().st_size
        wanted = self.headers.get("Range")
        first, last = 0, size - 1
        if wanted:
            begin, _, end = wanted.removeprefix("bytes=").partition("-")
            first, last = int(begin), min(int(end or last), last)
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(last - first + 1))
        self.send_header("ETag", '"x"')
        self.send_header("Last-Modified", "Mon, 23 Nov 2026 10:00:00 GMT")
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.end_headers()
        length = last - first + 1 if with_body else 0
        with self.server.lock:
            done = self.server.sent
            self.server.sent = Sent(done.bytes + length, done.requests + 1)
        if with_body:
            self.wfile.flush()
            with file.open("rb") as handle:
                while first <= last:
                    length = last - first + 1
                    if self.server.rate != math.inf:
                        length = min(length, _PIECE)
                        time.sleep(self._turn(length))
                    first += os.sendfile(self.connection.fileno(), handle.fileno(), first, length)

    def _turn(self, length: int) -> float:
        """Returns the seconds until the line has room for ``length`` more bytes."""
        now = time.monotonic()
        with self.server.lock:
            start = max(now, self.server.free_at)
            self.server.free_at = start + length / self.server.rate
        return start - now


if __name__ == "__main__":
    _server = _Server(Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]))
    print(_server.server_port, flush=True)
    _server.serve_forever()
