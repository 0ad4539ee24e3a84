"""Finds the sets of a dataset in folders of photographs, pairs their files and checks them.

Everything that can be wrong with a user's folders is found here, before anything is written.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from qdmr_ray.data.tasks import Sees, Tasks
from qdmr_ray.errors import QdmrError, SettingsError
from qdmr_ray.photographs.decode import IMAGE_SUFFIXES, probe_image
from qdmr_ray.storage import AnyPath, StorePath
from qdmr_ray.storage.names import check_name

# Folder names of the Realab benchmark.
CLEAN = Path("Syn", "gt")
TARGETS = REAL_SIM, REAL_SNAP = ("Real-Sim", "Real-Snap")
# A message names this many of the files without a partner.
_NAMED = 3
# The records of one task. A header on a disk takes 0.2 ms.
_PROBED_TOGETHER = 256
# So many records take as long to probe as Ray to start.
_WORTH_STARTING_RAY = 30_000
# A header in a store takes a request, whose time is spent waiting.
_REQUESTS = 32

# A photograph and its ground truth.
Pair = tuple[AnyPath, AnyPath | None]
# Called with (done, in all).
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ImageFolder:
    """One set: a folder of photographs and, for pairs, the folder of their ground truth."""

    images: AnyPath
    ground_truth: AnyPath | None = None


@dataclass(frozen=True, kw_only=True)
class DatasetFolders:
    """Where the three sets lie; a set that is ``None`` does not exist. ``source`` are simulated
    pairs (aberrated, clean), ``target`` unpaired photographs of the real lens, ``test`` held-out
    photographs of the real lens, with ground truth where it is known."""

    lens: str | None = None
    source: ImageFolder | None = None
    target: ImageFolder | None = None
    test: ImageFolder | None = None

    def sets(self) -> dict[str, ImageFolder]:
        """Returns the sets that exist, by name, in the order source, target, test."""
        named = {"source": self.source, "target": self.target, "test": self.test}
        return {name: folder for name, folder in named.items() if folder is not None}


@dataclass(frozen=True, kw_only=True)
class RecordFiles:
    """The files of one record, checked: both exist, can be opened and have this size. ``name`` is
    the file name without its ending, the same on both sides of a pair."""

    name: str
    image: AnyPath
    ground_truth: AnyPath | None
    height: int
    width: int

    @property
    def paths(self) -> list[AnyPath]:
        """The photograph and, of a pair, the ground truth."""
        return [self.image] if self.ground_truth is None else [self.image, self.ground_truth]

    @property
    def pixel_bytes(self) -> int:
        """The bytes of the record's pixels, the ground truth's included."""
        return 3 * self.height * self.width * len(self.paths)


def is_photograph(path: AnyPath) -> bool:
    """Whether a path is a file of a known image format, and not hidden."""
    known = path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    return known and path.is_file()


def list_images(folder: AnyPath) -> list[AnyPath]:
    """Lists the photographs directly in ``folder``, sorted by name, without hidden files; raises
    QdmrError where the folder is missing, no folder, or holds no photograph."""
    try:
        files: list[AnyPath] = [path for path in folder.iterdir() if is_photograph(path)]
    except OSError as error:
        raise QdmrError(f"{folder}: cannot be listed ({error.strerror}); check the path") from error
    if not files:
        raise QdmrError(f"{folder}: holds no image ({', '.join(IMAGE_SUFFIXES)})")
    return sorted(files, key=lambda path: path.name)


def is_realab(root: AnyPath) -> bool:
    """Whether ``root`` is laid out as Realab, as far as source pairs go."""
    return any((place / CLEAN).is_dir() for place in (root, root / "Realab"))


def find_realab(
    root: AnyPath, lens: str | None = None, target: str | None = None, *, needs_target: bool = True
) -> DatasetFolders:
    """Finds the sets of one lens in a folder laid out as Realab; ``root`` may also hold
    ``Realab/``.

    ``lens`` and ``target`` ("Real-Sim" or "Real-Snap") may be ``None`` where there is one only.
    Without ``needs_target`` a layout that has source pairs alone is enough. Raises QdmrError where
    the layout is not there, or ``lens`` or ``target`` is missing or ambiguous.
    """
    if (root / "Realab").is_dir():
        root = root / "Realab"
    for folder in (root, root / CLEAN):
        if not folder.is_dir():
            raise QdmrError(f"{folder}: no such folder; expected the Realab layout")
    folders = (root / "Syn").iterdir()
    lenses = sorted(folder.name for folder in folders if (folder / "train").is_dir())
    lens = _only("lens", lens, lenses, root / "Syn")
    targets = {name: _target_folders(root, name, lens) for name in TARGETS}
    present = sorted(name for name, (train, _) in targets.items() if train.images.is_dir())
    source = ImageFolder(images=root / "Syn" / lens / "train", ground_truth=root / CLEAN)
    found = DatasetFolders(lens=lens, source=source)
    if not present and not needs_target:
        return found
    if not present:
        places = [str(train.images).removeprefix(f"{root}/") for train, _ in targets.values()]
        expected = " or ".join(places)
        raise QdmrError(f"{root}: no target photographs of lens {lens}; expected {expected}")
    train, test = targets[_only("target", target, present, root)]
    return replace(found, target=train, test=test if test.images.is_dir() else None)


def check_folders(
    folders: DatasetFolders,
    progress: Progress = lambda done, total: None,
    *,
    rejected: list[tuple[str, AnyPath, str]] | None = None,
    tasks: Tasks | None = None,
) -> dict[str, list[RecordFiles]]:
    """Returns every record of every set, by set name, sorted by name; decodes nothing yet, and
    reads headers alone.

    ``progress`` is called with (records checked, records in all). Where a list ``rejected`` is
    given, a record that cannot be used is appended to it as (set, file, reason), not raised.
    ``tasks`` may do the work on other nodes. Raises QdmrError where a folder is missing or empty,
    names do not match between photographs and ground truth, a name is refused by ``check_name``,
    the sizes of a pair differ, or a file's header is not that of a readable image.
    """
    if not folders.sets():
        raise QdmrError("no set to read: name at least one folder of images")
    matched = {name: _match(folder) for name, folder in folders.sets().items()}
    checked: dict[str, list[RecordFiles]] = {name: [] for name in matched}
    pairs = [(name, *pair) for name, found in matched.items() for pair in found]
    pieces = [pairs[i : i + _PROBED_TOGETHER] for i in range(0, len(pairs), _PROBED_TOGETHER)]
    # The first and the last file of each folder stand for all.
    ends = [file for found in matched.values() for pair in (found[0], found[-1]) for file in pair]
    done_pieces = (tasks or Tasks("checking")).results(
        partial(_check_records, Path.cwd()),
        pieces,
        sees=Sees.of([file for file in ends if file is not None]),
        is_large=len(pairs) > _WORTH_STARTING_RAY,
    )
    results: dict[int, list[RecordFiles | str]] = {}
    done = 0
    for place, results[place] in done_pieces:
        if rejected is None:
            for reason in (result for result in results[place] if isinstance(result, str)):
                raise QdmrError(reason)
        for _ in results[place]:
            done += 1
            progress(done, len(pairs))
    in_order = (result for place in range(len(pieces)) for result in results[place])
    for (name, image, _), result in zip(pairs, in_order, strict=True):
        if isinstance(result, RecordFiles):
            checked[name].append(result)
        elif rejected is not None:
            rejected.append((name, image, result))
    return checked


def _target_folders(root: AnyPath, target: str, lens: str) -> tuple[ImageFolder, ImageFolder]:
    """Returns the training and test folders of one target set, whether they exist or not."""
    if target == REAL_SNAP:
        train, test = (root / REAL_SNAP / f"{lens}_{name}_2K" for name in ("train", "val"))
        return ImageFolder(images=train), ImageFolder(images=test)
    folder = root / REAL_SIM / lens
    test_set = ImageFolder(images=folder / "val", ground_truth=folder / "val_gt")
    return ImageFolder(images=folder / "train"), test_set


def _only(what: str, wanted: str | None, present: list[str], where: AnyPath) -> str:
    """Returns ``wanted`` if it is there, or the only option that is there."""
    options = ", ".join(present) or "none"
    if wanted is None and len(present) == 1:
        return present[0]
    if wanted is None:
        raise QdmrError(f"{where}: set {what} to one of those found there: {options}")
    if wanted not in present:
        raise QdmrError(f"{where}: no {what} {wanted!r}; there is: {options}")
    return wanted


def _match(folder: ImageFolder) -> list[Pair]:
    """Matches photographs with their ground truth by name without ending."""
    images = list_images(folder.images)
    if folder.ground_truth is None:
        return [(path, None) for path in images]
    by_name, truth = _by_name(images), _by_name(list_images(folder.ground_truth))
    if by_name.keys() != truth.keys():
        raise QdmrError(
            f"names do not match: only in {folder.images}: {_some(by_name.keys() - truth.keys())}; "
            f"only in {folder.ground_truth}: {_some(truth.keys() - by_name.keys())}"
        )
    return [(by_name[name], truth[name]) for name in sorted(by_name)]


def _by_name(paths: Iterable[AnyPath]) -> dict[str, AnyPath]:
    named: dict[str, AnyPath] = {}
    for path in paths:
        if path.stem in named:
            same = f"has the same name as {named[path.stem].name}, so its partner is unclear"
            raise QdmrError(f"{path}: {same}; rename or remove one")
        named[path.stem] = path
    return named


def _some(names: set[str]) -> str:
    rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return (", ".join(sorted(names)[:_NAMED]) or "none") + rest


def _check_records(
    base: Path, records: Sequence[tuple[str, AnyPath, AnyPath | None]]
) -> list[RecordFiles | str]:
    """Checks some records of sets, whose relative paths begin at ``base``; returns an error's text
    in the place of a record that can't be used."""

    def check(record: tuple[str, AnyPath, AnyPath | None]) -> RecordFiles | str:
        try:
            return _check_record(base, *record[1:])
        except QdmrError as error:
            return str(error)

    if not isinstance(records[0][1], StorePath):
        return [check(record) for record in records]
    # Threads change the filters of warnings in any order: those of before come back at the end.
    with warnings.catch_warnings(), ThreadPoolExecutor(_REQUESTS) as threads:
        return list(threads.map(check, records))


def _check_record(base: Path, image: AnyPath, ground_truth: AnyPath | None) -> RecordFiles:
    try:
        check_name(image.stem)
    except SettingsError as error:
        raise QdmrError(f"{image}: {error}; rename the file") from None
    height, width = probe_image(base / image, str(image))
    if ground_truth is not None:
        other = probe_image(base / ground_truth, str(ground_truth))
        if other != (height, width):
            raise QdmrError(
                f"{image} is {width} x {height} pixels but its ground truth {ground_truth} is "
                f"{other[1]} x {other[0]}; both must have one size"
            )
    size = {"height": height, "width": width}
    return RecordFiles(name=image.stem, image=image, ground_truth=ground_truth, **size)
