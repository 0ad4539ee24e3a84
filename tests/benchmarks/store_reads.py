"""Crops out of a store by ranged requests: pairs per second and CPU time of the reading process.

    python tests/benchmarks/store_reads.py

The store is a small HTTP server on loopback, in a process of its own, that answers ranges of
files by ``sendfile``: what is measured is our side. Pairs of 1920 x 1280 noise, crop 256.
``layouts.py`` asks the same server with a latency and a bandwidth.
"""

from __future__ import annotations

import http.server
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from qdmr_ray.data.format.index import NO_OFFSET, RecordEntry, encode_index, index_table
from qdmr_ray.data.format.layout import STRIP_PIXELS, count_bands
from qdmr_ray.data.packing.pack import PackSettings, pack
from qdmr_ray.data.streaming.crops import Cutter
from qdmr_ray.data.streaming.stream import DataSettings, InProcessStream
from qdmr_ray.photographs.decode import write_png

PAIRS, BLOCK, BLOCKS = 16, 64, 8
INDEXED = 20_000
# Bytes that the server sends at a time where its bandwidth is bounded.
_PIECE = 2**17


class _Files(http.server.BaseHTTPRequestHandler):
    """Ranges of the files in ``folder``, each answer after ``latency`` seconds, all together at
    ``rate`` bytes a second."""

    folder: Path
    latency: float
    rate: float
    # When the line will have sent what was promised so far.
    free_at = 0.0
    line = threading.Lock()
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *arguments: object) -> None:
        """Logs nothing: logging would be most of the work."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        file = self.folder / self.path.split("?")[0].rsplit("/", 1)[-1]
        if not file.is_file():
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
        time.sleep(self.latency)
        if with_body:
            self.wfile.flush()
            with file.open("rb") as handle:
                while first <= last:
                    length = last - first + 1
                    if self.rate != math.inf:
                        length = min(length, _PIECE)
                        time.sleep(self._turn(length))
                    first += os.sendfile(self.connection.fileno(), handle.fileno(), first, length)

    def _turn(self, length: int) -> float:
        """Returns the seconds until the line has room for ``length`` more bytes."""
        now = time.monotonic()
        with self.line:
            start = max(now, _Files.free_at)
            _Files.free_at = start + length / self.rate
        return start - now


@contextmanager
def serving(folder: Path, *, latency: float = 0.0, rate: float = math.inf) -> Iterator[str]:
    """Yields the address of a store that holds the files of ``folder``: each answer comes after
    ``latency`` seconds, all together at ``rate`` bytes a second. Sets credentials for it."""
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    command = [sys.executable, __file__, "--serve", str(folder), str(latency), str(rate)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
    finally:
        server.kill()
        server.wait()


def main() -> None:
    with tempfile.TemporaryDirectory() as name, serving(_packed(Path(name))) as endpoint:
        _measure(endpoint)
    for truth in (True, False):
        print(f"index, {'pairs' if truth else 'photographs'}: {_index_bytes(truth):.0f} B a record")


def _measure(endpoint: str) -> None:
    for requests in (1, 4, 16):
        settings = DataSettings(
            path="s3://bucket/data", s3_endpoint=endpoint, cache_bytes=0, requests=requests
        )
        stream = InProcessStream(
            settings,
            batch_size=1,
            crop=256,
            same_place=False,
            sets=("source",),
            seed=0,
            start_iteration=0,
            end_iteration=1,
        )
        cutter = Cutter(stream.request)
        cutter.cut(np.arange(BLOCK))
        start, used = time.perf_counter(), time.process_time()
        for block in range(BLOCKS):
            cutter.cut(np.arange(block * BLOCK, (block + 1) * BLOCK))
        pairs = BLOCKS * BLOCK
        seconds, used = time.perf_counter() - start, time.process_time() - used
        rate, cost = pairs / seconds, used / pairs * 1e3
        print(f"{requests:2} requests at a time: {rate:4.0f} pairs/s, {cost:.1f} ms CPU a pair")


def _packed(folder: Path) -> Path:
    random = np.random.default_rng(0)
    for name in ("aberrated", "clean"):
        (folder / name).mkdir()
        for i in range(PAIRS):
            pixels = random.integers(0, 256, (1280, 1920, 3), dtype=np.uint8)
            write_png(folder / name / f"{i}.png", pixels)
    settings = PackSettings(source_images="aberrated", source_ground_truth="clean")
    start = time.perf_counter()
    pack(folder, str(folder / "packed"), settings=settings)
    print(f"packing, one process: {(time.perf_counter() - start) / PAIRS / 2:.2f} s an image")
    return folder / "packed"


def _index_bytes(paired: bool) -> float:
    size = np.array([1280]), np.array([1920])
    bands = [0] * int(count_bands(*size, STRIP_PIXELS)[0])
    entries = [
        RecordEntry(
            name=f"{i:08d}",
            height=1280,
            width=1920,
            origin=f"Syn/S1/train/{i:08d}.png",
            ground_truth_origin=f"Syn/gt/{i:08d}.png" if paired else None,
            image_offset=i,
            ground_truth_offset=i if paired else NO_OFFSET,
            sha256=bytes(32),
            image_bands=bands,
            ground_truth_bands=bands if paired else [],
        )
        for i in range(INDEXED)
    ]
    return len(encode_index(index_table(entries))) / INDEXED


def _serve(folder: str, latency: str, rate: str) -> None:
    _Files.folder, _Files.latency, _Files.rate = Path(folder), float(latency), float(rate)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Files)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    _serve(*sys.argv[2:]) if "--serve" in sys.argv else main()
