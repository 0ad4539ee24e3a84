"""Loaders of this package and of others on the same photographs: a disk, and a store.

    python -m venv peers
    peers/bin/pip install torch==2.14.1 mosaicml-streaming litdata webdataset opencv-python-headless
    PYTHONPATH=. python tests/benchmarks/loaders.py --peers peers/bin/python --json loaders.json

Random crops of 256 out of pairs of 1920 x 1280 with sensor noise, the same of both photographs, in
batches of 4 uint8 tensors, shuffled, to one process by two loading processes. The files of the disk
are in the page cache; the store is ``file_store.py``, each of whose answers comes 5 ms late. What a
loader keeps of the store's files is limited to a quarter of the dataset, as when that is larger
than a disk; ours keeps nothing. The peers have an environment of their own, as
mosaicml-streaming 0.13 needs an older NumPy than Ray; ``peer_loaders.py`` says how each is used.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from file_store import sent, serving
from PIL import Image
from skimage import data

import qdmr_ray
from qdmr_ray.bench.data import DataBench, bench_data
from qdmr_ray.data.packing.pack import PackSettings, pack
from qdmr_ray.data.streaming.crops import Cutter
from qdmr_ray.data.streaming.stream import DataSettings, InProcessStream
from qdmr_ray.photographs.decode import write_png

HEIGHT, WIDTH, CROP, BATCH, NOISE = 1280, 1920, 256, 4, 1.5
LATENCY = 0.005
# A peer that has not answered by then is stopped and reported.
PATIENCE_SECONDS = 90.0
PEERS = ("torch", "mosaicml-streaming", "litdata", "webdataset")
_SCRIPT = Path(__file__).with_name("peer_loaders.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--peers", required=True, help="Python of the peers' environment")
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--warm-up", type=float, default=2.0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qdmr-loaders-") as name:
        folder = Path(name)
        print(f"making {arguments.pairs} pairs, and everybody's files of them", flush=True)
        _make_photographs(folder / "png", arguments.pairs)
        images = {"source_images": "aberrated", "source_ground_truth": "clean"}
        pack(folder / "png", str(folder / "packed"), settings=PackSettings(**images))
        with serving(folder, latency=LATENCY) as endpoint:
            os.environ["AWS_ENDPOINT_URL"] = endpoint
            rows = list(_rows(arguments, folder, endpoint))
    table = "\n".join(_table(rows))
    print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


def _rows(arguments: argparse.Namespace, folder: Path, endpoint: str) -> Iterator[dict[str, Any]]:
    versions = _peer(arguments, folder, "make", patience=10 * PATIENCE_SECONDS)
    lasting = {"warm_up": arguments.warm_up, "seconds": arguments.seconds}
    for store in ("", endpoint):
        yield from _ours(folder, store, lasting)
        for peer in PEERS:
            for form in ("png", "raw"):
                job = {"peer": peer, "form": form, "endpoint": store} | lasting
                row = _peer(arguments, folder, "measure", job)
                version = versions.get(peer, versions.get("error"))
                yield _said({"loader": peer, "version": version, "form": form} | row, store)


def _ours(folder: Path, store: str, lasting: dict[str, float]) -> Iterator[dict[str, Any]]:
    path = "s3://bucket/packed" if store else str(folder / "packed")
    bench = DataBench(data=path, crop=CROP, batch_size=BATCH, cache_bytes=0, **lasting)
    # Counted first, as loading tasks that read ahead end a while after the bench.
    more = {"bytes_per_pair": _bytes_per_pair(path, store)} if store else {}
    found = bench_data(bench, lambda _: None)
    ours = {"version": qdmr_ray.__version__, "form": "raw"}
    for name, prefix in (("qdmr_ray", ""), ("torch, our shards", "torch_loader_")):
        names = ("pairs_per_second", "first_batch_seconds")
        if prefix + names[0] not in found:
            continue
        rates = {name: found[prefix + name] for name in names}
        yield _said({"loader": name} | ours | rates | more, store)


def _bytes_per_pair(path: str, store: str) -> float:
    """Returns what is read for the crops of 64 batches, by itself: a feed reads ahead of them."""
    samples: dict[str, Any] = {"batch_size": BATCH, "crop": CROP, "same_place": False, "seed": 0}
    settings = DataSettings(path=path, cache_bytes=0)
    stream = InProcessStream(
        settings, sets=("source",), start_iteration=0, end_iteration=64, **samples
    )
    cutter, before = Cutter(stream.request), sent(store).bytes
    positions = stream.portion.positions(0, 64)
    cutter.cut(positions)
    return (sent(store).bytes - before) / len(positions)


def _peer(
    arguments: argparse.Namespace,
    folder: Path,
    command: str,
    job: dict[str, Any] | None = None,
    patience: float = PATIENCE_SECONDS,
) -> dict[str, Any]:
    """Returns what ``peer_loaders.py`` prints, or an ``error``. Its loading processes end with it:
    they are a group of their own."""
    cache = folder / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir()
    more = [json.dumps(job | {"cache": str(cache)})] if job else []
    process = subprocess.Popen(
        [arguments.peers, str(_SCRIPT), command, str(folder), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, errors = process.communicate(timeout=patience)
        result: dict[str, Any] = json.loads(out.splitlines()[-1])
        return result
    except subprocess.TimeoutExpired:
        return {"error": f"no result after {patience:.0f} s"}
    except IndexError:
        lines = [line for line in errors.splitlines() if "Error" in line]
        return {"error": lines[-1] if lines else f"ended with {process.returncode}"}
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _make_photographs(folder: Path, pairs: int) -> None:
    random = np.random.default_rng(0)
    scaled = Image.fromarray(data.coffee()).resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    for name in ("aberrated", "clean"):
        (folder / name).mkdir(parents=True)
        for number in range(pairs):
            noisy = np.asarray(scaled) + random.normal(0, NOISE, (HEIGHT, WIDTH, 3))
            pixels = np.clip(noisy, 0, 255).astype(np.uint8)
            write_png(folder / name / f"{number:04d}.png", pixels)


def _said(row: dict[str, Any], store: str) -> dict[str, Any]:
    row = {"place": "store" if store else "disk"} | row
    load = f"load {os.getloadavg()[0]:.1f}"
    print(json.dumps(row), load, flush=True)
    return row | {"load": os.getloadavg()[0]}


def _table(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    yield "| from | loader | version | stored as | pairs/s | first batch | read for a pair |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for row in rows:
        cells = [row["place"], row["loader"], row["version"], row["form"]]
        if "error" in row:
            yield f"| {' | '.join(cells)} | {row['error']} | | |"
            continue
        read = f"{row['bytes_per_pair'] / 1e6:.1f} MB" if "bytes_per_pair" in row else ""
        rates = [f"{row['pairs_per_second']:.1f}", f"{row['first_batch_seconds']:.1f} s", read]
        yield f"| {' | '.join([*cells, *rates])} |"


if __name__ == "__main__":
    main()
