"""Turns folders of clean photographs into the Realab layout, each imaged through a lens or several.

    qdmr data simulate photographs --lens manufactured --out data/realab

``optics.simulate`` images one photograph; this module reads and writes the files around it, here or
on all nodes of a cluster. Notes below ``simulated`` say what each file that was written was made
from. A file whose note fits is kept, so that the same command goes on where it was interrupted, and
does only what new photographs and lenses add.
"""

import hashlib
import json
import re
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qdmr_ray.data.packing.folders import (
    DatasetFolders,
    ImageFolder,
    Progress,
    RecordFiles,
    check_folders,
)
from qdmr_ray.data.packing.resume import claimed
from qdmr_ray.data.tasks import TASK_MEMORY, Sees, Tasks
from qdmr_ray.errors import QdmrError, SettingsError
from qdmr_ray.optics.lens import Lens, load_lenses
from qdmr_ray.optics.simulate import require_size, simulate_image
from qdmr_ray.photographs.decode import encode_png, read_checked
from qdmr_ray.storage import TEMPORARY_PREFIX, AnyPath, Location, location_of, open_location
from qdmr_ray.storage.claims import Claim
from qdmr_ray.storage.document import Document

# Folders of the Realab layout per domain: of the aberrated images, and of the clean images.
DOMAINS: dict[str, tuple[str, str | None]] = {
    "source": ("Syn/{lens}/train", "Syn/gt"),
    "target": ("Real-Sim/{lens}/train", None),
    "test": ("Real-Sim/{lens}/val", "Real-Sim/{lens}/val_gt"),
}
NOTES_FOLDER = "simulated"
_NOTE = re.compile(r"[0-9a-f]{16}\.json")
# Raised when the same photograph, lens and seed give other pixels: older files are made again then.
_RESULT = 1
# Files finished within so many seconds get a note together; a kill loses no more than these.
_NOTE_SECONDS = 10.0
# Starting Ray takes as long as simulating so many pixels (9 s; a core does 1 to 1.2 megapixels a
# second).
_WORTH_STARTING_RAY = 30 * 10**6
# The bytes that a task takes for each pixel of its photograph.
_PIXEL_MEMORY = 150
# Digits of a checksum in a note.
_DIGITS = 32
# Requests at a time to a store.
_REQUESTS = 32

# What a file was made from, and its bytes.
Made = tuple[str, int]


@dataclass(frozen=True)
class _Photograph:
    """A clean photograph, and which of the pictures made from it are missing: ``folders`` below the
    output, each with the number of its lens, ``None`` for the clean copy."""

    file: RecordFiles
    folders: tuple[tuple[str, int | None], ...]

    @property
    def name(self) -> str:
        """The name of every picture made from it."""
        return f"{self.file.name}.png"

    @property
    def pictures(self) -> list[str]:
        """The missing pictures, below the output."""
        return [f"{folder}/{self.name}" for folder, _ in self.folders]

    @property
    def lenses(self) -> int:
        """How many aberrated pictures are missing."""
        return sum(lens is not None for _, lens in self.folders)


@dataclass(frozen=True)
class _Simulator:
    """The work on one photograph, wherever it is done. Relative paths begin at ``base``; ``keys``
    are checksums over each lens and the seed."""

    out: Location
    lenses: Sequence[Lens]
    keys: Sequence[str]
    seed: int
    base: Path
    may_write: Callable[[], None]

    def __call__(self, photograph: _Photograph) -> dict[str, Made]:
        """Writes the missing pictures; returns what each file was made from."""
        file, name = photograph.file, photograph.name
        path = self.base / file.image
        # Asked before the file is read: one that changes meanwhile must not pass for done.
        version = location_of(path).version()
        image = read_checked(path, str(file.image))
        made = {}
        for folder, number in photograph.folders:
            lens = None if number is None else self.lenses[number]
            picture = image
            if lens is not None:
                picture = simulate_image(image, lens, seed=self.seed, name=name)
            data = encode_png(picture)
            self.may_write()
            self.out.join(folder, name).write_bytes_atomic(data)
            made[f"{folder}/{name}"] = self.origin(number, version), len(data)
        return made

    def origin(self, lens: int | None, version: tuple[int, int | str]) -> str:
        """Returns a checksum over all that decides a picture's pixels but the file's name: the
        photograph's version and, unless it is the clean copy, the lens by its number."""
        key = "" if lens is None else self.keys[lens]
        return hashlib.sha256(json.dumps([key, *version]).encode()).hexdigest()[:_DIGITS]


def _key(lens: Lens, seed: int) -> str:
    decides = json.dumps([_RESULT, seed, lens.grid.psf.shape, repr(lens.camera)])
    return hashlib.sha256(decides.encode() + lens.grid.psf.tobytes()).hexdigest()


def simulate_folder(
    src: AnyPath,
    lenses: Sequence[str],
    out: str | Path,
    *,
    domain: str = "source",
    lens_name: str | None = None,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
    endpoint: str | None = None,
    start_ray: Callable[[], None] | None = None,
    say: Callable[[str], None] = print,
) -> int:
    """Simulates every photograph of a folder through every lens into the Realab layout.

    Args:
        src: folder of clean photographs.
        lenses: as for ``load_lenses``.
        out: folder for the layout, a local path or ``s3://…``.
        domain: "source" writes pairs (``Syn/gt``, ``Syn/<lens>/train``), "target" unpaired images
            (``Real-Sim/<lens>/train``), "test" test pairs (``Real-Sim/<lens>/val``, ``val_gt``).
        lens_name: the folder of a single lens, by default the lens's own name; Realab has S1, S2.
        seed: of the noise; the same seed gives the same files.
        progress: called with (aberrated images done, images in all).
        endpoint: the address of an S3-compatible store.
        start_ray: called when there is so much to do that starting Ray pays. When Ray is running,
            tasks on all nodes that see ``src`` and ``out`` do it, else this process.
        say: receives a line when some nodes can't take part, and while it isn't known whether
            another process still simulates into ``out``.

    Returns how many photographs there are. Raises QdmrError for no such folder, no images in it,
    two images that would get the same name, an unreadable or too small image, an unknown or
    malformed lens, a full disk, or another process that simulates this domain into ``out``. Files
    already written are whole. Headers and sizes are looked at before anything is written.
    """
    if domain not in DOMAINS:
        raise SettingsError(f"domain must be one of {', '.join(DOMAINS)}; it is {domain!r}")
    tasks = Tasks("simulating", start_ray, say)
    folders = DatasetFolders(target=ImageFolder(images=src))
    files = check_folders(folders, tasks=tasks)["target"]
    _require_names(files)
    loaded = load_lenses(lenses)
    if lens_name is not None and len(loaded) > 1:
        raise SettingsError(f"a lens name needs a single lens; there are {len(loaded)}")
    for lens in loaded:
        for file in files:
            require_size(str(file.image), file.height, file.width, lens)
    places = [_folders(domain, lens_name or lens.name) for lens in loaded]
    location, within = open_location(out, endpoint=endpoint), f"{NOTES_FOLDER}/{domain}"
    with claimed(location, say, work="simulating", within=within) as claim:
        keys = [_key(lens, seed) for lens in loaded]
        simulator = _Simulator(location, loaded, keys, seed, Path.cwd(), claim.check)
        notes = _Notes(location.join(within))
        noted = notes.read()
        missing = _missing(simulator, files, places, noted)
        rewritten = {path for photograph in missing for path in photograph.pictures}
        if rewritten & noted.keys():
            # Otherwise a kill would leave a note on a picture that was replaced meanwhile.
            notes.keep({path: made for path, made in noted.items() if path not in rewritten})
        _simulate(simulator, missing, len(files) * len(loaded), progress, tasks, claim, notes)
    return len(files)


def _simulate(
    simulator: _Simulator,
    missing: Sequence[_Photograph],
    total: int,
    progress: Progress,
    tasks: Tasks,
    claim: Claim,
    notes: "_Notes",
) -> None:
    """Makes the missing pictures, and notes them."""
    pixels = sum(p.file.height * p.file.width * p.lenses for p in missing)
    done = total - sum(photograph.lenses for photograph in missing)
    if done:
        progress(done, total)
    ends = [photograph.file.image for photograph in (*missing[:1], *missing[-1:])]
    results = tasks.results(
        simulator,
        missing,
        sees=Sees.of(ends, (simulator.out, claim)),
        is_large=pixels > _WORTH_STARTING_RAY,
        memory=lambda p: TASK_MEMORY + _PIXEL_MEMORY * p.file.height * p.file.width,
    )
    try:
        for place, made in results:
            notes.add(made)
            done += missing[place].lenses
            progress(done, total)
    except QdmrError:
        # On a full disk there is no room for the note either.
        with suppress(QdmrError):
            notes.write()
        raise
    notes.write()


class _Note(Document):
    """What pictures, by their path below the output, were made from."""

    made: dict[str, Made]


class _Notes:
    """Notes on finished pictures: files of JSON, one for all that were finished within some
    seconds. None is kept on a picture that is about to be written."""

    def __init__(self, folder: Location) -> None:
        self._folder, self._made, self._since = folder, dict[str, Made](), time.monotonic()

    def read(self) -> dict[str, Made]:
        """Returns what was noted before; a damaged note is passed over."""
        found: dict[str, Made] = {}
        for file in self._files():
            with suppress(QdmrError):
                found |= _Note.read(file).made
        return found

    def keep(self, noted: dict[str, Made]) -> None:
        """Replaces all notes by these."""
        before = self._files()
        self._made = noted
        self.write()
        for file in before:
            file.delete()

    def _files(self) -> list[Location]:
        names = self._folder.file_sizes()
        return [self._folder.join(name) for name in names if _NOTE.fullmatch(name)]

    def add(self, made: dict[str, Made]) -> None:
        """Keeps notes on pictures, and writes them when it is time."""
        self._made |= made
        if time.monotonic() - self._since > _NOTE_SECONDS:
            self.write()

    def write(self) -> None:
        """Writes what was added since the last time; raises QdmrError where that fails."""
        if self._made:
            # A name of its own: none of an earlier run is overwritten.
            _Note(made=self._made).write(self._folder.join(f"{secrets.token_hex(8)}.json"))
        self._made, self._since = {}, time.monotonic()


def _missing(
    simulator: _Simulator,
    files: Sequence[RecordFiles],
    places: Sequence[tuple[str, str | None]],
    noted: dict[str, Made],
) -> list[_Photograph]:
    """Returns what is missing of ``files`` in ``places``, the lenses' folders (aberrated, clean):
    an entry for each photograph and lens. Clears what a killed process left half-written."""
    present: dict[str, dict[str, int]] = {}
    for name in {name for pair in places for name in pair if name is not None}:
        folder = simulator.out.join(name)
        present[name] = folder.file_sizes()
        for other in present[name]:
            if other.startswith(TEMPORARY_PREFIX):
                folder.join(other).delete()

    def version_of(file: RecordFiles) -> tuple[int, int | str]:
        return location_of(simulator.base / file.image).version()

    versions: Iterable[tuple[int, int | str] | None] = [None] * len(files)
    if noted:
        with ThreadPoolExecutor(_REQUESTS) as threads:
            versions = list(threads.map(version_of, files))
    missing = []
    for file, version in zip(files, versions, strict=True):
        picture, seen = f"{file.name}.png", set[str | None]()
        for number, (aberrated, clean) in enumerate(places):
            # Lenses may share the clean copy.
            wanted: list[tuple[str, int | None]] = [(aberrated, number)]
            wanted += [(clean, None)] if clean is not None and clean not in seen else []
            seen.add(clean)
            lacking = tuple(
                (folder, lens)
                for folder, lens in wanted
                if version is None
                or noted.get(f"{folder}/{picture}")
                != (simulator.origin(lens, version), present[folder].get(picture))
            )
            if lacking:
                missing.append(_Photograph(file, lacking))
    return missing


def _require_names(files: Sequence[RecordFiles]) -> None:
    """Raises QdmrError where two photographs would be written under one name."""
    seen: dict[str, AnyPath] = {}
    for file in files:
        other = seen.setdefault(file.name, file.image)
        if other is not file.image:
            same = f"{other.name} would be written under the same name, {file.name}.png"
            raise QdmrError(f"{file.image}: {same}; rename one")


def _folders(domain: str, lens_name: str) -> tuple[str, str | None]:
    """Returns a domain's folders of the Realab layout: aberrated, and clean (``None`` when
    unpaired)."""
    aberrated, clean = DOMAINS[domain]
    return aberrated.format(lens=lens_name), clean and clean.format(lens=lens_name)


def domain_folders(out: Path, domain: str, lens_name: str) -> tuple[Path, Path | None]:
    """Returns a domain's Realab folders: aberrated, and clean (``None`` when unpaired)."""
    aberrated, clean = _folders(domain, lens_name)
    return out / aberrated, None if clean is None else out / clean


def write_pair(
    image: np.ndarray, lens: Lens, aberrated: Path, clean: Path | None, *, name: str, seed: int
) -> None:
    """Writes ``image`` through the lens to ``aberrated/name`` and, unless unpaired, as it is to
    ``clean/name``; makes the folders. Raises QdmrError when the image is too small for the lens or
    a file cannot be written."""
    result = simulate_image(image, lens, seed=seed, name=name)
    for folder, picture in ((aberrated, result), (clean, image)):
        if folder is not None:
            open_location(folder / name).write_bytes_atomic(encode_png(picture))
