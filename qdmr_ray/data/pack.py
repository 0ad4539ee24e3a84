"""Folders of photographs -> a packed dataset: Parquet shards and a manifest.

    qdmr data pack Realab --out data/s1 --set lens=S1

Packing is lossless, the same files give the same bytes, and a failed or interrupted run leaves
what was there before: shards are named by their content, the manifest comes last and in one
piece, and only then are files of an earlier packing removed.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdmr_ray.data.folders import (
    TARGETS,
    DatasetFolders,
    ImageFolder,
    RecordFiles,
    check_folders,
    find_realab,
    is_realab,
)
from qdmr_ray.data.manifest import (
    CHANNELS,
    Manifest,
    SetEntry,
    ShardEntry,
    read_manifest,
    write_manifest,
)
from qdmr_ray.data.shards import ShardJob, record_digest, record_pixels, write_shard
from qdmr_ray.errors import QdmrError, SettingsError
from qdmr_ray.settings import Settings, setting
from qdmr_ray.storage import TEMPORARY_PREFIX, Location, open_location

# Called with (steps done, steps in all): packing checks every record, then packs it.
Progress = Callable[[int, int], None]

_SHARD_NAME = re.compile(r"(source|target|test)-\d{5}-[0-9a-f]{16}\.parquet")


@dataclass(frozen=True, kw_only=True)
class PackSettings(Settings):
    """Which folders become which set, and how large the shards are."""

    lens: str | None = setting(
        None, "lens folder of the Realab layout, such as S1; not needed when there is one only"
    )
    target_set: str | None = setting(
        None,
        "which target photographs of the Realab layout; not needed when there is one set only",
        choices=TARGETS,
    )
    source_images: str | None = setting(
        None, "folder of aberrated images, inside the packed folder or absolute; replaces Realab"
    )
    source_ground_truth: str | None = setting(None, "folder of their clean images")
    target_images: str | None = setting(None, "folder of photographs of the real lens")
    test_images: str | None = setting(None, "folder of held-out photographs of the real lens")
    test_ground_truth: str | None = setting(None, "folder of their ground truth, where known")
    shard_bytes: int = setting(
        128 * 2**20, "pixels in a shard before the next one starts", unit="bytes", minimum=1
    )
    shard_records: int = setting(1024, "records in a shard before the next one starts", minimum=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.source_images is None) != (self.source_ground_truth is None):
            raise SettingsError("set both source_images and source_ground_truth, or neither")
        if self.test_ground_truth is not None and self.test_images is None:
            raise SettingsError("test_ground_truth needs test_images")

    def folders(self, src: Path) -> DatasetFolders:
        """The folders that are named here, and for the others what a Realab layout in ``src``
        holds: photographs of a lens may thus lie elsewhere than its simulated pairs."""
        explicit = DatasetFolders(
            lens=self.lens,
            source=_folder(src, self.source_images, self.source_ground_truth),
            target=_folder(src, self.target_images, None),
            test=_folder(src, self.test_images, self.test_ground_truth),
        )
        named = explicit.sets()
        if named and ("source" in named or not is_realab(src)):
            return explicit
        found = find_realab(
            src, self.lens, self.target_set, needs_target=not {"target", "test"} & named.keys()
        )
        return DatasetFolders(
            lens=found.lens,
            source=found.source,
            target=explicit.target or found.target,
            test=explicit.test or found.test,
        )


@dataclass(frozen=True, kw_only=True)
class SetSummary:
    """One set in numbers; ``sizes`` holds (height, width, how many records)."""

    name: str
    images: int
    paired: bool
    shards: int
    bytes: int
    sizes: list[tuple[int, int, int]]


@dataclass(frozen=True, kw_only=True)
class DatasetSummary:
    """What a packed dataset holds, from its manifest alone."""

    uri: str
    lens: str | None
    digest: str
    sets: tuple[SetSummary, ...]


def pack(
    src: Path,
    out: str,
    *,
    settings: PackSettings,
    progress: Progress | None = None,
    endpoint: str | None = None,
) -> Manifest:
    """Packs the photographs below ``src`` into the folder ``out`` (local path or ``s3://…``).

    Shards are written by Ray tasks on this machine when Ray is running, else one after another.
    ``endpoint`` is the address of an S3-compatible store.

    Raises:
        QdmrError: something is wrong with the folders or images (found before anything is
            written), or ``out`` cannot be written.
    """
    if not src.is_dir():
        raise QdmrError(f"{src}: no such folder; name the folder of photographs to pack")
    location = open_location(out, endpoint=endpoint)
    folders = settings.folders(src)
    report: Progress = progress if progress is not None else lambda done, total: None
    # Twice as many steps as records: checking reads every file too.
    checked = check_folders(folders, lambda done, total: report(done, 2 * total))
    jobs = list(_jobs(checked, settings))
    existed = location.exists()
    before = {file.name for file in location.list()}
    shards: dict[tuple[str, int], ShardEntry] = {}
    total = sum(len(job.records) for job in jobs)
    done = total
    try:
        for job, shard in _run(jobs, location.uri, endpoint):
            shards[job.set_name, job.number] = shard
            done += len(job.records)
            report(done, 2 * total)
        manifest = Manifest(lens=folders.lens, sets=_sets(folders, shards))
        write_manifest(location, manifest)
    except BaseException:
        if existed:
            _remove(location, lambda name: name not in before)
        else:
            location.delete()
        raise
    kept = {shard.file for shard in shards.values()}
    _remove(location, lambda name: name not in kept)
    return manifest


def inspect(uri: str, *, endpoint: str | None = None) -> DatasetSummary:
    """Counts, sizes and bytes of a packed dataset, without reading its shards.

    Raises:
        QdmrError: there is no dataset, or its manifest is damaged.
    """
    location = open_location(uri, endpoint=endpoint)
    manifest = read_manifest(location)
    sets = tuple(
        SetSummary(
            name=name,
            images=entry.images,
            paired=entry.paired,
            shards=len(entry.shards),
            bytes=sum(shard.bytes for shard in entry.shards),
            sizes=entry.size_counts(),
        )
        for name, entry in manifest.sets.items()
    )
    return DatasetSummary(uri=location.uri, lens=manifest.lens, digest=manifest.digest, sets=sets)


def verify(
    uri: str, *, progress: Progress | None = None, endpoint: str | None = None
) -> tuple[str, ...]:
    """Reads every shard against its checksum: one line for each bad one, none when all is well.

    Raises:
        QdmrError: there is no dataset, or its manifest is damaged.
    """
    location = open_location(uri, endpoint=endpoint)
    manifest = read_manifest(location)
    shards = [shard for entry in manifest.sets.values() for shard in entry.shards]
    total = sum(len(shard.records) for shard in shards)
    done = 0
    problems: list[str] = []
    for shard in shards:
        problems.extend(_shard_problems(location.join(shard.file), shard))
        done += len(shard.records)
        if progress is not None:
            progress(done, total)
    return tuple(problems)


def _folder(src: Path, images: str | None, ground_truth: str | None) -> ImageFolder | None:
    if images is None:
        return None
    return ImageFolder(
        images=src / images, ground_truth=None if ground_truth is None else src / ground_truth
    )


def _jobs(checked: dict[str, list[RecordFiles]], settings: PackSettings) -> Iterator[ShardJob]:
    """Cuts every set into shards: a new one starts when the next record would not fit."""
    for set_name, files in checked.items():
        number, batch, size = 0, list[RecordFiles](), 0
        for record in files:
            images = 1 if record.ground_truth is None else 2
            length = CHANNELS * record.height * record.width * images
            full = len(batch) == settings.shard_records or size + length > settings.shard_bytes
            if batch and full:
                yield ShardJob(set_name=set_name, number=number, records=tuple(batch))
                number, batch, size = number + 1, [], 0
            batch.append(record)
            size += length
        yield ShardJob(set_name=set_name, number=number, records=tuple(batch))


def _run(
    jobs: list[ShardJob], uri: str, endpoint: str | None
) -> Iterator[tuple[ShardJob, ShardEntry]]:
    """Writes the shards and gives each as it is finished, in any order."""
    # Where Ray is running, it has been imported; importing it here would cost two seconds.
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        yield from _run_on_ray(ray, jobs, uri, endpoint)
        return
    for job in jobs:
        yield job, write_shard(job, uri, endpoint)


def _run_on_ray(
    ray: Any, jobs: list[ShardJob], uri: str, endpoint: str | None
) -> Iterator[tuple[ShardJob, ShardEntry]]:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # The photographs are on this machine's disk, so the tasks must be too.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    task = ray.remote(write_shard).options(scheduling_strategy=here)
    running = {task.remote(job, uri, endpoint): job for job in jobs}
    try:
        while running:
            ready, _ = ray.wait(list(running))
            job = running.pop(ready[0])
            yield job, _result(ray, ready[0])
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        # A task that is past cancelling would leave its shard after the folder was cleaned.
        if running:
            ray.wait(list(running), num_returns=len(running))


def _result(ray: Any, reference: Any) -> ShardEntry:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        # The user's error, without the remote traceback around it.
        if isinstance(error.cause, QdmrError):
            raise error.cause from None
        raise


def _sets(
    folders: DatasetFolders, shards: dict[tuple[str, int], ShardEntry]
) -> dict[str, SetEntry]:
    return {
        name: SetEntry(
            paired=folder.ground_truth is not None,
            shards=tuple(shards[key] for key in sorted(shards) if key[0] == name),
        )
        for name, folder in folders.sets().items()
    }


def _remove(location: Location, unwanted: Callable[[str], bool]) -> None:
    """Deletes files of earlier packings, and nothing that something else has put there."""
    for file in location.list():
        ours = _SHARD_NAME.fullmatch(file.name) or file.name.startswith(TEMPORARY_PREFIX)
        if ours and unwanted(file.name):
            file.delete()


def _shard_problems(file: Location, shard: ShardEntry) -> list[str]:
    try:
        data = file.read_bytes()
    except QdmrError as error:
        return [str(error)]
    if hashlib.sha256(data).hexdigest() == shard.sha256:
        return []
    if len(data) != shard.bytes:
        return [f"{file.uri}: {len(data)} bytes instead of {shard.bytes}; pack the dataset again"]
    content = memoryview(data)
    bad = [
        f"{row} ({record.origin})"
        for row, record in enumerate(shard.records)
        if record_digest(*record_pixels(record, content)) != record.sha256
    ]
    where = f"row {', '.join(bad)}" if bad else "outside the pixels"
    return [f"{file.uri}: wrong checksum, {where}; pack the dataset again"]
