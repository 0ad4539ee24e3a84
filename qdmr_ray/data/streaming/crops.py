"""Cuts the samples at some positions out of a packed dataset.

The result depends on the arguments alone. Both streams cut with this code, in the training process
or in Ray's tasks, so their batches hold the same numbers.
"""

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Self

import numpy as np

from qdmr_ray.data.format.index import SetIndex
from qdmr_ray.data.format.layout import CHANNELS
from qdmr_ray.data.format.placement import Placement
from qdmr_ray.data.format.reader import BrokenRecordError, RecordReader
from qdmr_ray.data.streaming.plan import Crop, CropPlan
from qdmr_ray.errors import QdmrError
from qdmr_ray.settings import Settings, setting
from qdmr_ray.storage.retry import check_endpoint

# Maps a column of images to (its set, whether it is the ground truth).
FIELDS = {
    "source": ("source", False),
    "ground_truth": ("source", True),
    "target": ("target", False),
}
# With so many broken records in a row, the whole set is at fault.
_MOST_SKIPPED_IN_A_ROW = 100

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DataSettings(Settings):
    """Where the packed dataset lies and how much is spent on feeding it to one worker."""

    path: str = setting("", "packed dataset, a local path or s3://bucket/path")
    s3_endpoint: str | None = setting(
        None, "address of an S3-compatible store; AWS_ENDPOINT_URL when not set"
    )
    cache_bytes: int = setting(
        64 * 2**30,
        "disk that each node may use for copies of shards that lie in a store; 0 for none",
        unit="bytes",
        minimum=0,
    )
    cache_folder: str | None = setting(
        None, "where those copies lie; ~/.cache/qdmr_ray/shards when not set"
    )
    cache_copies: int = setting(
        2,
        "nodes that keep a copy of each shard, as far as cache_bytes allow; another node has its "
        "crops cut there. 1 reads the least from the store",
        minimum=1,
    )
    requests: int = setting(
        16, "ranged requests at a time of each loading task to a store", minimum=1
    )
    skip_broken: bool = setting(
        False,
        "pass over a record whose bytes are wrong, count it and take the next one, instead of "
        "stopping; a store that doesn't answer, or a missing shard, stops the run all the same",
    )
    batches_per_block: int = setting(
        32,
        "batches that one loading task cuts; fewer where object_store_bytes or the loading tasks "
        "side by side would not allow so many",
        minimum=1,
    )
    loader_workers: int = setting(2, "loading tasks at a time per training worker", minimum=1)
    loader_cpus: float = setting(
        0.5, "CPUs that Ray sets aside for each loading task", unit="CPUs", minimum=0
    )
    object_store_bytes: int = setting(
        512 * 2**20,
        "bound on the crops that lie ready in the object store for each training worker (Ray "
        "frees used ones up to a second later)",
        unit="bytes",
        minimum=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.s3_endpoint is not None:
            check_endpoint(self.s3_endpoint, "s3_endpoint")

    @property
    def opened(self) -> Self:
        """The settings that decide what is opened, and how; the others at their defaults."""
        names = ("path", "s3_endpoint", "cache_bytes", "cache_folder")
        return type(self)(**{name: getattr(self, name) for name in names})


@dataclass(frozen=True, kw_only=True)
class CropRequest:
    """What crops are cut from which dataset, whose shards have ``bytes`` in all, whoever gets them:
    the key under which a process keeps the opened dataset."""

    settings: DataSettings
    digest: str
    bytes: int
    crop: int
    same_place: bool
    sets: tuple[str, ...]
    fields: tuple[str, ...]
    seed: int


class Cutter:
    """Computes and cuts the samples at some positions; opens the dataset unless a reader is
    given."""

    def __init__(self, request: CropRequest, reader: RecordReader | None = None) -> None:
        self._request = request
        self._reader = reader or opened_dataset(request.settings, request.digest)
        self._plan = crop_plan(request, {name: self._reader.index(name) for name in request.sets})
        self._said: set[str] = set()
        self._threads: ThreadPoolExecutor | None = None
        if self._reader.is_remote:
            # Waiting for a store takes no CPU, so many requests run at a time.
            self._threads = ThreadPoolExecutor(
                request.settings.requests, thread_name_prefix="crops"
            )

    def cut(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """Returns columns of n rows, the samples at global ``positions``, int64 (n,).

        Images are uint8 (rows, 3, c, c). For each set there are ``SET_index`` (the record),
        ``SET_place`` (float32 (rows, 2): the crop's middle as a share of height and width, that is
        its position in the field of view) and ``SET_skipped`` (broken records passed over).
        """
        columns = {"positions": positions}
        for name in self._request.sets:
            columns |= self.cut_set(name, positions)
        return columns

    def ask(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """Returns by set which node is to be asked for each sample (``RecordReader.ask``)."""
        planned = self._plan.at(positions)
        return {n: self._reader.ask(n, crops.index, positions) for n, crops in planned.items()}

    def cut_set(self, name: str, positions: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the columns of one set, as ``cut`` does."""
        count, size = len(positions), self._request.crop
        fields = [field for field in self._request.fields if FIELDS[field][0] == name]
        images = {f: np.empty((count, CHANNELS, size, size), dtype=np.uint8) for f in fields}
        planned = self._plan.of_set(name, positions).rows()
        index = np.empty(count, dtype=np.int64)
        place = np.empty((count, 2), dtype=np.float32)
        skipped = np.zeros(count, dtype=np.int64)

        def cut_one(row: int) -> None:
            chosen = planned[row]
            while True:
                try:
                    for field in fields:
                        self._cut_into(images[field][row], field, chosen)
                    break
                except BrokenRecordError as error:
                    if not self._request.settings.skip_broken:
                        raise
                    if str(error) not in self._said:
                        self._said.add(str(error))
                        _log.warning("left out: %s", error)
                    skipped[row] += 1
                    if skipped[row] >= min(_MOST_SKIPPED_IN_A_ROW, self._reader.count(name)):
                        raise
                    # Always the same record stands in: the next one, at the same position.
                    following = (chosen.index + 1) % self._reader.count(name)
                    chosen = self._plan.instead(name, int(positions[row]), following)
            index[row] = chosen.index
            corner = np.array([chosen.top, chosen.left])
            place[row] = (corner + size / 2) / self._reader.index(name).size(chosen.index)

        run = map if self._threads is None else self._threads.map
        for _ in run(cut_one, range(count)):
            pass
        return images | {f"{name}_index": index, f"{name}_place": place, f"{name}_skipped": skipped}

    def _cut_into(self, image: np.ndarray, field: str, crop: Crop) -> None:
        set_name, ground_truth = FIELDS[field]
        target = image.transpose(0, 2, 1) if crop.transpose else image
        if crop.flip_vertical:
            target = target[:, ::-1]
        read = partial(
            self._reader.crop,
            set_name,
            crop.index,
            top=crop.top,
            left=crop.left,
            size=self._request.crop,
            ground_truth=ground_truth,
        )
        if crop.flip_horizontal:
            target[:] = _mirrored(read())
        else:
            read(out=target)


@lru_cache(maxsize=16)
def cutter_of_process(request: CropRequest, placement: Placement | None = None) -> Cutter:
    """Returns this process's cutter: Ray reuses processes, so shards stay mapped between tasks. All
    cutters of a process read a dataset through one reader."""
    reader = _reader_of_process(request.settings.opened, request.digest, placement)
    return Cutter(request, reader)


@lru_cache(maxsize=4)
def _reader_of_process(
    settings: DataSettings, digest: str, placement: Placement | None
) -> RecordReader:
    return opened_dataset(settings, digest, placement=placement)


def opened_dataset(
    settings: DataSettings,
    digest: str,
    *,
    fill_cache: bool = True,
    placement: Placement | None = None,
) -> RecordReader:
    """Opens the dataset; raises QdmrError where its manifest isn't the one of ``digest`` any more.
    Without ``fill_cache``, no shard is copied to this node; with a ``placement``, those that it
    gives to this node."""
    reader = RecordReader(
        settings.path,
        endpoint=settings.s3_endpoint,
        cache_bytes=settings.cache_bytes,
        cache_folder=Path(settings.cache_folder) if settings.cache_folder else None,
        fill_cache=fill_cache,
        placement=placement,
    )
    if reader.manifest.digest != digest:
        raise QdmrError(f"{settings.path}: was packed again while it was being read; start again")
    return reader


def crop_plan(request: CropRequest, indexes: dict[str, SetIndex]) -> CropPlan:
    """Plans ``request`` over the records of ``indexes``, by set name; raises QdmrError where a set
    is empty, or an image smaller than the crop."""
    return CropPlan(
        {name: (index.heights, index.widths) for name, index in indexes.items()},
        crop=request.crop,
        same_place=request.same_place,
        seed=request.seed,
        label=lambda name, index: indexes[name].origin(index),
    )


def checked_fields(sets: tuple[str, ...], fields: tuple[str, ...] | None) -> tuple[str, ...]:
    """Returns the wanted columns of images: ``fields``, or all of ``sets``; raises ValueError where
    a set or field is unknown, or a field belongs to a set that is not asked for."""
    known = {set_name for set_name, _ in FIELDS.values()}
    if not sets or not set(sets) <= known:
        raise ValueError(f"sets {sets}: choose from {', '.join(sorted(known))}")
    offered = tuple(field for field, (set_name, _) in FIELDS.items() if set_name in sets)
    if fields is not None and not set(fields) <= set(offered):
        raise ValueError(f"fields {fields}: the sets {sets} bring {', '.join(offered)}")
    return offered if fields is None else fields


def _mirrored(planes: np.ndarray) -> np.ndarray:
    """Mirrors ``planes`` (3, H, W) left to right, eight pixels at a time where the width allows:
    numpy reverses bytes one by one (315 us for 3 x 256 x 256); reversing 64-bit words and the bytes
    inside each takes 32 us."""
    if planes.shape[-1] % 8:
        return planes[..., ::-1]
    words = np.ascontiguousarray(planes).view(np.uint64)
    return words[..., ::-1].byteswap().view(np.uint8)
