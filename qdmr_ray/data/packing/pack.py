"""Packs folders of photographs into Parquet shards, an index per set and a manifest.

    qdmr data pack Realab --out data/s1 --set lens=S1

Packing is lossless, and the same files give the same bytes. A packing that is killed or fails
leaves what was there before and the shards that it finished (``resume``), from which the next run
goes on. Shards are named by their content, the manifest comes last and in one piece, and only then
are files of an earlier packing removed.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from qdmr_ray.data.format.index import content_digest, encode_index
from qdmr_ray.data.format.layout import STRIP_PIXELS
from qdmr_ray.data.format.manifest import (
    MANIFEST_NAME,
    FileEntry,
    LeftOut,
    Manifest,
    SetEntry,
    SizeCount,
    ValueStatistics,
)
from qdmr_ray.data.format.shards import LEVELS, PackedShard, ShardJob, left_out_of, write_by_content
from qdmr_ray.data.packing.folders import (
    TARGETS,
    DatasetFolders,
    ImageFolder,
    Progress,
    RecordFiles,
    check_folders,
    find_realab,
    is_realab,
)
from qdmr_ray.data.packing.resume import (
    UNFINISHED_FOLDER,
    claimed,
    delete_notes,
    finished_before,
    write_and_note,
)
from qdmr_ray.data.tasks import Sees, Tasks
from qdmr_ray.errors import QdmrError, SettingsError
from qdmr_ray.settings import Settings, setting
from qdmr_ray.storage import (
    S3_SCHEME,
    TEMPORARY_PREFIX,
    AnyPath,
    Location,
    any_path,
    open_location,
)
from qdmr_ray.storage.claims import Claim
from qdmr_ray.storage.names import check_text

_OURS = re.compile(r"(source|target|test)-(\d{5,6}|index)-[0-9a-f]{16}\.(parquet|arrow)")
# Starting Ray takes as long as packing this many bytes of pixels (7 s; one core packs 1920 x 1280
# PNGs at 0.1 to 0.14 s each).
_WORTH_STARTING_RAY = 2**30
STOP, LEAVE_OUT = "stop", "leave_out"


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
        None,
        "folder of aberrated images, inside the packed folder, absolute or s3://…; replaces Realab",
    )
    source_ground_truth: str | None = setting(None, "folder of their clean images")
    target_images: str | None = setting(None, "folder of photographs of the real lens")
    test_images: str | None = setting(None, "folder of held-out photographs of the real lens")
    test_ground_truth: str | None = setting(None, "folder of their ground truth, where known")
    shard_bytes: int = setting(
        128 * 2**20, "pixels in a shard before the next one starts", unit="bytes", minimum=1
    )
    shard_records: int = setting(1024, "records in a shard before the next one starts", minimum=1)
    bad_images: str = setting(
        STOP,
        "what an unreadable or constant image does: stop packing, or leave_out the image and say "
        "so in the manifest",
        choices=(STOP, LEAVE_OUT),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.source_images is None) != (self.source_ground_truth is None):
            raise SettingsError("set both source_images and source_ground_truth, or neither")
        if self.test_ground_truth is not None and self.test_images is None:
            raise SettingsError("test_ground_truth needs test_images")

    def folders(self, src: AnyPath, endpoint: str | None = None) -> DatasetFolders:
        """Returns the folders that these settings name, and the others from a Realab layout in
        ``src``; photographs of a lens may thus lie elsewhere than its simulated pairs. ``endpoint``
        is that of folders in a store. Raises QdmrError where there is no such layout, or its lens
        or target set is ambiguous."""

        def below(folder: str) -> AnyPath:
            apart = folder.startswith(S3_SCHEME)
            return any_path(folder, endpoint=endpoint) if apart else src / folder

        explicit: dict[str, Any] = {}
        for name in ("source", "target", "test"):
            images = getattr(self, f"{name}_images")
            truth = getattr(self, f"{name}_ground_truth", None)
            if images is not None:
                explicit[name] = ImageFolder(below(images), None if truth is None else below(truth))
        if explicit and ("source" in explicit or not is_realab(src)):
            return DatasetFolders(lens=self.lens, **explicit)
        found = find_realab(src, self.lens, self.target_set, needs_target=not explicit)
        return replace(found, **explicit)


def pack(
    src: AnyPath,
    out: str,
    *,
    settings: PackSettings,
    progress: Progress = lambda done, total: None,
    endpoint: str | None = None,
    start_ray: Callable[[], None] | None = None,
    say: Callable[[str], None] = print,
) -> Manifest:
    """Packs the photographs below ``src`` into the folder ``out`` (local path or ``s3://…``).

    When Ray is running, tasks on all nodes that see ``src`` and ``out`` write the shards, else this
    process writes them one after another; ``start_ray`` is called when there is so much to pack
    that starting it pays. ``progress`` is called with (steps done, steps in all): every record is
    checked, then packed. ``endpoint`` is the address of an S3-compatible store. ``say`` receives a
    line when some nodes can't take part, and while it isn't known whether another process still
    packs into ``out``. Raises QdmrError where something is wrong with the folders or images,
    another process packs into ``out``, or it cannot be written; wrong names, sizes and headers are
    found before anything is written, damaged pixels when their shard is packed.
    """
    if not src.is_dir():
        raise QdmrError(f"{src}: no such folder; name the folder of photographs to pack")
    location = open_location(out, endpoint=endpoint)
    folders = settings.folders(src, endpoint)
    tasks = Tasks("packing", start_ray, say)
    if folders.lens is not None:
        check_text(folders.lens)
    rejected: list[tuple[str, AnyPath, str]] = []
    checked = check_folders(
        folders,
        lambda done, total: progress(done, 2 * total),
        rejected=rejected if settings.bad_images == LEAVE_OUT else None,
        tasks=tasks,
    )
    root = src.absolute()
    left_out = [left_out_of(n, file.absolute(), root, reason) for n, file, reason in rejected]
    jobs = list(_jobs(checked, settings, root))
    with claimed(location, say) as claim:
        manifest = _packed(folders, jobs, left_out, location, claim, progress, tasks)
        claim.check()
        _delete_others(location, manifest.files)
    return manifest


def _packed(
    folders: DatasetFolders,
    jobs: Sequence[ShardJob],
    left_out: list[LeftOut],
    location: Location,
    claim: Claim,
    progress: Progress,
    tasks: Tasks,
) -> Manifest:
    """Writes all files of the dataset; what was finished before an error waits for the next try."""
    count = sum(len(job.records) for job in jobs)
    had_files = any(file.name != UNFINISHED_FOLDER for file in location.list())
    packed: dict[int, tuple[PackedShard, pa.Table]] = {}
    done = count
    try:
        for place, result in _results(jobs, location, claim, tasks):
            packed[place] = result
            done += len(jobs[place].records)
            progress(done, 2 * count)
        sets = {}
        for name, folder in folders.sets().items():
            results = [packed[i] for i, job in enumerate(jobs) if job.set_name == name]
            left_out += [file for shard, _ in results for file in shard.left_out]
            if not any(shard.shard for shard, _ in results):
                raise QdmrError(f"{folder.images}: no image of the {name} set can be used")
            sets[name] = _set_entry(name, folder.ground_truth is not None, results, location)
        left_out.sort(key=lambda file: (file.set, file.origin))
        manifest = Manifest(lens=folders.lens, sets=sets, left_out=tuple(left_out))
        claim.check()
        manifest.write(location.join(MANIFEST_NAME))
        return manifest
    except QdmrError as error:
        if packed:
            waiting = f"{len(packed)} finished shards wait for the next try"
            raise QdmrError(f"{error}; {waiting}") from error
        if not had_files:
            claim.check()
            _delete_others(location, ())
        raise


def _delete_others(location: Location, kept: Sequence[FileEntry]) -> None:
    """Deletes the files of earlier packings, and nothing that something else has put there."""
    names = {file.file for file in kept}
    for file in location.list():
        ours = _OURS.fullmatch(file.name) or file.name.startswith(TEMPORARY_PREFIX)
        if ours and file.name not in names:
            file.delete()
    delete_notes(location)


def _jobs(
    checked: dict[str, list[RecordFiles]], settings: PackSettings, root: AnyPath
) -> Iterator[ShardJob]:
    """Cuts every set into shards: a new one starts when the next record would not fit."""
    leave_out = settings.bad_images == LEAVE_OUT
    for set_name, files in checked.items():
        shards: list[list[RecordFiles]] = [[]]
        size = 0
        for record in files:
            full = len(shards[-1]) == settings.shard_records
            if shards[-1] and (full or size + record.pixel_bytes > settings.shard_bytes):
                shards.append([])
                size = 0
            shards[-1].append(record)
            size += record.pixel_bytes
        for number, records in enumerate(map(tuple, shards if files else [])):
            yield ShardJob(
                set_name=set_name,
                number=number,
                records=records,
                root=root,
                base=Path.cwd(),
                leave_out=leave_out,
            )


def _results(
    jobs: Sequence[ShardJob], location: Location, claim: Claim, tasks: Tasks
) -> Iterator[tuple[int, tuple[PackedShard, pa.Table]]]:
    """Yields each job's place and result as it is finished, in any order; those of an interrupted
    run come first."""
    before = finished_before(location, jobs)
    yield from before.items()
    rest = [place for place in range(len(jobs)) if place not in before]
    # A shard's first photographs stand for all in their folders.
    firsts = {job.set_name: job.records[0].paths for job in jobs}
    results = tasks.results(
        partial(write_and_note, location, claim.check),
        [jobs[place] for place in rest],
        sees=Sees.of([path for paths in firsts.values() for path in paths], (location, claim)),
        is_large=sum(r.pixel_bytes for p in rest for r in jobs[p].records) > _WORTH_STARTING_RAY,
        memory=lambda job: job.memory,
    )
    for place, result in results:
        yield rest[place], result


def _set_entry(
    name: str, paired: bool, results: Sequence[tuple[PackedShard, pa.Table]], location: Location
) -> SetEntry:
    """Writes the index of a set, and returns its part of the manifest."""
    table = pa.concat_tables(index for _, index in results).combine_chunks()
    sizes = Counter(zip(table["height"].to_pylist(), table["width"].to_pylist(), strict=True))
    levels: Any = sum(np.array(shard.levels, dtype=np.int64) for shard, _ in results)
    return SetEntry(
        paired=paired,
        images=table.num_rows,
        content=content_digest(table),
        sizes=tuple(
            SizeCount(height=height, width=width, images=images)
            for (height, width), images in sorted(sizes.items())
        ),
        image=_statistics(levels[0]),
        ground_truth=_statistics(levels[1]) if paired else None,
        strip_pixels=STRIP_PIXELS,
        index=write_by_content(location, f"{name}-index", "arrow", encode_index(table)),
        shards=tuple(shard.shard for shard, _ in results if shard.shard is not None),
    )


def _statistics(levels: Any) -> ValueStatistics:
    """Computes the statistics from int64 (3, 256) counts of values: exact, whatever the order."""
    # Python's integers have any length: nothing is lost before the division and the root.
    counts, values = levels.astype(object), np.arange(LEVELS).astype(object)
    pixels, total, squares = counts.sum(axis=1), counts @ values, counts @ values**2
    deviation = (pixels * squares - total * total) ** 0.5 / pixels
    present = [np.flatnonzero(channel).tolist() for channel in levels]
    return ValueStatistics(
        mean=tuple(round(value, 6) for value in total / pixels),
        std=tuple(round(value, 6) for value in deviation),
        minimum=tuple(found[0] for found in present),
        maximum=tuple(found[-1] for found in present),
    )
