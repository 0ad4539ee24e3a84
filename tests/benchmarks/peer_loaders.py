"""Other people's loaders on the same photographs: makes their files, and measures one of them.

    python tests/benchmarks/peer_loaders.py make FOLDER
    python tests/benchmarks/peer_loaders.py measure FOLDER '{"peer": "litdata", "form": "raw"}'

``loaders.py`` runs both in the peers' environment, where this package is not installed.
FOLDER/png holds the pairs; what is made of them lies beside, in a folder for each peer and form.
All peers cut the same crop of both photographs of a pair, uniform over the image, in two loading
processes, and deliver batches of uint8 tensors. They decode PNGs with OpenCV, as BasicSR does,
which is the fastest of what they offer (0.11 s; Pillow 0.17 s, torchvision 0.16 s). Raw pixels are
stored as (height, 3, width), out of which a crop is cut fastest.
"""

import contextlib
import importlib.metadata
import io
import itertools
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.utils.data
from file_store import sent

HEIGHT, WIDTH, CROP, BATCH, LOADERS = 1280, 1920, 256, 4, 2
FIELDS = ("aberrated", "clean")
FORMS = ("png", "raw")
# Every photograph is listed so many times, under other names, so that an epoch is longer than a
# measurement, and a cache holds a part of the dataset only.
COPIES = 16
# What a cache of a store's files may hold of a dataset, and among how many pairs mosaicml-streaming
# shuffles. With its own default, all of the dataset, it would download a shard for every sample.
CACHE_SHARE, SHUFFLED = 0.25, 64
# Every peer's default, but webdataset's, which has none.
SHARD_BYTES = 64 << 20
PREFETCH = 4

Sample = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is measured: ``endpoint`` is a store that serves FOLDER, or empty for the disk, and
    ``cache`` an empty folder for copies of its files."""

    peer: str
    form: str
    endpoint: str = ""
    cache: str = ""
    warm_up: float = 2.0
    seconds: float = 6.0


@dataclass(frozen=True)
class Place:
    """Where a dataset lies, ``folder`` on the disk and ``url`` where there is a store, and a folder
    for copies with its limit in bytes."""

    folder: Path
    form: str
    endpoint: str
    cache: str
    cache_bytes: int

    @property
    def url(self) -> str:
        """Of the folder in the store."""
        return f"s3://bucket/{self.folder.name}"


def main() -> None:
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    command, folder = sys.argv[1], Path(sys.argv[2])
    if command == "make":
        print(json.dumps(dict(_make(folder))))
    else:
        print(json.dumps(_measure(folder, Job(**json.loads(sys.argv[3])))), flush=True)
        # Some peers wait for their loading processes at the end, and those for us.
        os._exit(0)


def _make(folder: Path) -> Iterator[tuple[str, str]]:
    """Writes each peer's files; yields its version, or why there is none."""
    for name, peer in PEERS.items():
        try:
            for form in FORMS:
                peer.write(_pairs(folder, form), folder / f"{name}-{form}", form)
            yield name, importlib.metadata.version(peer.distribution)
        except Exception as error:  # A peer that can't run is reported, whatever stops it.
            yield name, f"error: {type(error).__name__}: {error}"


def _measure(folder: Path, job: Job) -> dict[str, float]:
    peer, source = PEERS[job.peer], folder / f"{job.peer}-{job.form}"
    size = sum(file.stat().st_size for file in source.rglob("*"))
    place = Place(source, job.form, job.endpoint, job.cache, int(size * CACHE_SHARE))
    began = time.perf_counter()
    batches = iter(peer.batches(place))
    _checked(next(batches))
    first = time.perf_counter() - began
    warm = time.perf_counter() + job.warm_up
    while time.perf_counter() < warm:
        next(batches)
    before = sent(job.endpoint).bytes if job.endpoint else 0
    since, pairs = time.perf_counter(), 0
    while time.perf_counter() < since + job.seconds:
        pairs += len(next(batches)["clean"])
    seconds = time.perf_counter() - since
    result = {"pairs_per_second": pairs / seconds, "first_batch_seconds": first}
    if job.endpoint:
        result["bytes_per_pair"] = (sent(job.endpoint).bytes - before) / pairs
    return result


def _checked(batch: Sample) -> None:
    for field in FIELDS:
        tensor = batch[field]
        assert tensor.shape == (BATCH, 3, CROP, CROP), tensor.shape
        assert tensor.dtype == torch.uint8, tensor.dtype


def _pairs(folder: Path, form: str) -> Iterator[dict[str, bytes]]:
    for file in sorted((folder / "png/clean").iterdir()):
        pair = {field: (folder / "png" / field / file.name).read_bytes() for field in FIELDS}
        if form == "raw":
            pair = {name: _pixels(data, "png").tobytes() for name, data in pair.items()}
        yield pair


def _pixels(data: Any, form: str) -> np.ndarray:
    """Returns RGB (height, 3, width), a view where that is possible."""
    values = np.frombuffer(data, np.uint8)
    if form == "raw":
        return values.reshape(HEIGHT, 3, WIDTH)
    return cv2.imdecode(values, cv2.IMREAD_COLOR)[..., ::-1].transpose(0, 2, 1)


def _crop_of(pair: dict[str, Any], form: str) -> Sample:
    """Cuts the same crop out of both photographs of a pair."""
    top, left = random.randrange(HEIGHT - CROP + 1), random.randrange(WIDTH - CROP + 1)
    crops = {}
    for field in FIELDS:
        rows = _pixels(pair[field], form)[top : top + CROP, :, left : left + CROP]
        crops[field] = torch.from_numpy(np.ascontiguousarray(rows.transpose(1, 0, 2)))
    return crops


def _endless(loader: Iterable[Sample]) -> Iterator[Sample]:
    while True:
        yield from loader


# A plain PyTorch loader: one file for each photograph, as BasicSR's PairedImageDataset reads them.


def _write_files(pairs: Iterator[dict[str, bytes]], folder: Path, form: str) -> None:
    for number, pair in enumerate(pairs):
        for field, data in pair.items():
            (folder / field).mkdir(parents=True, exist_ok=True)
            (folder / field / f"{number:04d}").write_bytes(data)


class _Files(torch.utils.data.Dataset):
    def __init__(self, place: Place) -> None:
        self._place = place
        self._count = len(list((place.folder / "clean").iterdir()))
        self._client: Any = None

    def __len__(self) -> int:
        return self._count * COPIES

    def __getitem__(self, index: int) -> Sample:
        names = {field: f"{field}/{index % self._count:04d}" for field in FIELDS}
        if self._place.endpoint:
            return _crop_of({f: self._get(name) for f, name in names.items()}, self._place.form)
        files = {field: self._place.folder / name for field, name in names.items()}
        if self._place.form == "raw":
            maps = {field: np.memmap(file, np.uint8, "r") for field, file in files.items()}
            return _crop_of(maps, "raw")
        return _crop_of({field: file.read_bytes() for field, file in files.items()}, "png")

    def _get(self, name: str) -> bytes:
        import boto3

        if self._client is None:
            self._client = boto3.client("s3", endpoint_url=self._place.endpoint)
        key = f"{self._place.folder.name}/{name}"
        return self._client.get_object(Bucket="bucket", Key=key)["Body"].read()


def _plain(place: Place, dataset: type[_Files] = _Files) -> Iterable[Sample]:
    loader = torch.utils.data.DataLoader(
        dataset(place), batch_size=BATCH, shuffle=True, drop_last=True, **_loading()
    )
    return _endless(loader)


def _loading() -> dict[str, Any]:
    return {"num_workers": LOADERS, "prefetch_factor": PREFETCH, "persistent_workers": True}


# mosaicml-streaming: shards that are downloaded as a whole, shuffled among SHUFFLED pairs.


def _write_mosaic(pairs: Iterator[dict[str, bytes]], folder: Path, form: str) -> None:
    from streaming import MDSWriter

    columns = dict.fromkeys(FIELDS, "bytes")
    with MDSWriter(out=str(folder), columns=columns, size_limit=SHARD_BYTES) as writer:
        for pair in pairs:
            writer.write(pair)

    def named(shard: dict[str, Any], name: str) -> tuple[str, dict[str, Any]]:
        raw = shard["raw_data"]
        return raw["basename"], shard | {"raw_data": raw | {"basename": name}}

    _list_copies(folder, "shards", named)


def _mosaic(place: Place) -> Iterable[Sample]:
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    # Its shared memory outlives a process that was killed.
    clean_stale_shared_memory()

    class Crops(StreamingDataset):
        def __getitem__(self, at: Any) -> Any:
            return _crop_of(super().__getitem__(at), place.form)

    where: dict[str, Any] = {"local": str(place.folder)}
    if place.endpoint:
        os.environ["S3_ENDPOINT_URL"] = place.endpoint
        where = {"remote": place.url, "local": place.cache, "cache_limit": place.cache_bytes}
    dataset = Crops(**where, shuffle=True, shuffle_block_size=SHUFFLED, batch_size=BATCH)
    for stream in dataset.streams:
        # It has fetched the index. The forked loading processes shared its client's connection
        # and so waited 60 s for their first answers.
        stream._downloader.clean_up()
    return _endless(torch.utils.data.DataLoader(dataset, batch_size=BATCH, **_loading()))


# litdata: chunks that are downloaded as a whole and mapped; shuffled chunks, shuffled inside.


def _write_litdata(pairs: Iterator[dict[str, bytes]], folder: Path, form: str) -> None:
    from litdata.streaming.cache import Cache

    cache = Cache(str(folder), chunk_bytes=SHARD_BYTES)
    for number, pair in enumerate(pairs):
        cache[number] = pair
    cache.done()
    cache.merge()

    def named(chunk: dict[str, Any], name: str) -> tuple[str, dict[str, Any]]:
        return chunk["filename"], chunk | {"filename": name}

    _list_copies(folder, "chunks", named)


def _litdata(place: Place) -> Iterable[Sample]:
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming import downloader

    where: dict[str, Any] = {"input_dir": str(place.folder)}
    if place.endpoint:
        # No public setting lets its client speak to a store without TLS.
        downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = "true"
        where = {"input_dir": place.url, "cache_dir": place.cache}
        where |= {"storage_options": {"endpoint_url": place.endpoint}, "max_pre_download": 4}
        where["max_cache_size"] = place.cache_bytes
    cut = partial(_crop_of, form=place.form)
    dataset = StreamingDataset(**where, shuffle=True, drop_last=True, transform=cut)
    return _endless(StreamingDataLoader(dataset, batch_size=BATCH, **_loading()))


def _list_copies(folder: Path, key: str, named: Callable[[Any, str], tuple[str, Any]]) -> None:
    """Lists every shard of an index COPIES times, under names that are links to the same file."""
    index = json.loads((folder / "index.json").read_text())
    copies = []
    for copy, entry in itertools.product(range(COPIES), index[key]):
        old, _ = named(entry, "")
        new = f"{copy:02d}-{old}"
        os.link(folder / old, folder / new)
        copies.append(named(entry, new)[1])
    index[key] = copies
    (folder / "index.json").write_text(json.dumps(index))


# webdataset: tar files that are read from their beginning to their end.


def _write_tars(pairs: Iterator[dict[str, bytes]], folder: Path, form: str) -> None:
    import webdataset

    folder.mkdir()
    with contextlib.redirect_stdout(io.StringIO()):
        pattern = str(folder / "%04d.tar")
        with webdataset.ShardWriter(pattern, maxsize=SHARD_BYTES, encoder=False) as writer:
            for number, pair in enumerate(pairs):
                named = {f"{field}.bin": data for field, data in pair.items()}
                writer.write({"__key__": f"{number:04d}", **named})


def _tars(place: Place) -> Iterable[Sample]:
    import webdataset

    tars = sorted(file.name for file in place.folder.glob("*.tar"))
    root = f"{place.endpoint}/bucket/{place.folder.name}" if place.endpoint else str(place.folder)

    def cut(sample: dict[str, Any]) -> Sample:
        return _crop_of({field: sample[f"{field}.bin"] for field in FIELDS}, place.form)

    # Crops are shuffled and not photographs, since they are smaller. Until its buffer is full, it
    # takes two samples for each that it gives; so it is small, and filled at once.
    urls = [f"{root}/{tar}" for tar in tars]
    crops = webdataset.WebDataset(urls, resampled=True, shardshuffle=False).map(cut)
    batches = crops.shuffle(2 * BATCH, initial=2 * BATCH).batched(BATCH, partial=False)
    return webdataset.WebLoader(batches, batch_size=None, **_loading())


@dataclass(frozen=True)
class _Peer:
    distribution: str
    write: Callable[[Iterator[dict[str, bytes]], Path, str], None]
    batches: Callable[[Place], Iterable[Sample]]


PEERS = {
    "torch": _Peer("torch", _write_files, _plain),
    "mosaicml-streaming": _Peer("mosaicml-streaming", _write_mosaic, _mosaic),
    "litdata": _Peer("litdata", _write_litdata, _litdata),
    "webdataset": _Peer("webdataset", _write_tars, _tars),
}


if __name__ == "__main__":
    main()
