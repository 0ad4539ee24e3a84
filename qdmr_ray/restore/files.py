"""Corrects photograph files: while the network computes one, the next one is decoded and the last
ones are encoded and written.

    failures = restore_files([Path("photos")], Path("runs/demo/uda/final"), Path("corrected"))

A GPU takes 0.1 to 0.3 s for a photograph of 2.5 megapixels. Decoding it and encoding a PNG take up
to a second of one CPU, in Pillow's code, which lets other threads run. Only these two leave the
calling thread: the network, all events, and Ctrl-C with them, stay there.
"""

import contextlib
import os
import re
import tempfile
import unicodedata
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from qdmr_ray.errors import QdmrError, SettingsError
from qdmr_ray.models.files import LoadedModel
from qdmr_ray.photographs.decode import IMAGE_SUFFIXES
from qdmr_ray.photographs.files import Photograph, check_fits, read_photograph, write_photograph
from qdmr_ray.restore.device import usable_device
from qdmr_ray.restore.inputs import Failure, expand, failure_of
from qdmr_ray.restore.restoration import Checkpoint, RestoreSettings, loaded, restore
from qdmr_ray.storage import TEMPORARY_PREFIX
from qdmr_ray.storage.names import MOST_NAME_BYTES

# Device and number of a file; None where there is none.
Identity = tuple[int, int] | None

# PNGs that are encoded at the same time, each in 0.3 s per megapixel; a GPU is four times as fast.
MOST_WRITERS = 4
# Bytes of the pixels of results that are being written, together: large ones are written one by
# one.
MOST_UNWRITTEN = 2**29

# An address in a store, which has only one slash left as a Path.
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/+(.*)")


class Report:
    """Receives the events of ``restore_files`` as they happen, on the thread that called it; a
    subclass may show some. A result is written while the next photographs are computed, so
    ``restored`` and ``failed``, which come in the order of the photographs, may come after later
    ones have begun."""

    def begun(self, path: Path, number: int, total: int) -> None:
        """Work on a photograph, the ``number``-th of ``total``, begins."""

    def advanced(self, share: float) -> None:
        """The ``share``, 0 .. 1, of the arithmetic is done for the photograph begun last."""

    def restored(self, path: Path, result: Path, lost: Sequence[str]) -> None:
        """The photograph is done; ``lost`` names what its file has no room for, a line each."""

    def failed(self, failure: Failure) -> None:
        """A photograph can't be corrected, or something named holds no photograph."""


def restore_files(
    files: Sequence[Path],
    checkpoint: Checkpoint,
    out: Path,
    report: Report | None = None,
    settings: RestoreSettings | None = None,
) -> list[Failure]:
    """Corrects photographs into ``out`` under their own names and formats; returns what failed.

    ``files`` may be photographs, folders (the photographs directly in them) and patterns such as
    ``"night/*.jpg"``; each photograph is corrected once. EXIF orientation is applied; 16 bits,
    transparency, EXIF data and colour profile are kept. A file that fails does not stop the others,
    and leaves nothing behind. Interrupted, what is already computed is still written. Raises
    QdmrError where there is no photograph at all, ``out`` cannot be made or written to, or the
    checkpoint is unusable.
    """
    report, settings = report or Report(), settings or RestoreSettings()
    if address := _ADDRESS.fullmatch(str(out)):
        raise SettingsError(
            f"--out {address[1]}://{address[2]}: photographs are restored into local folders only; "
            "name one, and copy it"
        )
    paths, failures = expand(files)
    if not paths:
        why = "; ".join(failure.reason for failure in failures) or "an empty list"
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        raise QdmrError(f"no photograph to restore ({why}); name {kinds} files or folders")
    device = usable_device(settings.device)
    model = loaded(checkpoint)
    model.network.to(device)
    if not model.restores:
        raise QdmrError(
            f"{model.source}: is a VQGAN, which restores nothing; name a base, uda or source_only "
            "model"
        )
    for failure in failures:
        report.failed(failure)
    with _folder(out):
        return failures + _Restoring(paths, out, model, settings, report).run()


@contextlib.contextmanager
def _folder(out: Path) -> Iterator[None]:
    """Makes the folder and tests it before hours of work; removes a new one that stays empty."""
    made, step = not out.exists(), "made"
    try:
        try:
            out.mkdir(parents=True, exist_ok=True)
            step = "written to"
            with tempfile.NamedTemporaryFile(dir=out, prefix=TEMPORARY_PREFIX):
                pass
        except OSError as error:
            raise QdmrError(
                f"the folder {out} cannot be {step} ({error.strerror}): name another --out"
            ) from error
        yield
    finally:
        if made:
            with contextlib.suppress(OSError):
                out.rmdir()


@dataclass(frozen=True, kw_only=True)
class _Ending:
    """How a photograph ends: ``writing`` gives what its file has no room for, or its error. Until
    it does, the result's pixels take ``size`` bytes."""

    path: Path
    result: Path
    writing: Future[list[str]]
    size: int = 0


class _Restoring:
    """The photographs of one call of ``restore_files``."""

    def __init__(
        self,
        paths: Sequence[Path],
        out: Path,
        model: LoadedModel,
        settings: RestoreSettings,
        report: Report,
    ) -> None:
        self._paths, self._model, self._settings, self._report = paths, model, settings, report
        # A file whose ending is not that of an image becomes a PNG.
        self._results = [
            out / (path.name if path.suffix.lower() in IMAGE_SUFFIXES else f"{path.stem}.png")
            for path in paths
        ]
        # The files that no result may replace, and why.
        self._taken = {
            _identity(path): f"overwrite {path}, which is to be restored, too" for path in paths
        }
        self._failures: list[Failure] = []
        # The photographs whose end is still to be told, in order.
        self._ending: deque[_Ending] = deque()
        # The number of the photograph that is read ahead, and what it will be.
        self._ahead: tuple[int, Future[Photograph]] | None = None
        self._writers = min(MOST_WRITERS, os.cpu_count() or 1)
        self._reading = ThreadPoolExecutor(1, "qdmr-read")
        self._writing = ThreadPoolExecutor(self._writers, "qdmr-write")

    def run(self) -> list[Failure]:
        """Restores all; returns what failed."""
        with self._writing, self._reading:
            try:
                for number in range(len(self._paths)):
                    self._restore(number)
            finally:
                # Interrupted, this writes what is computed, and computes no more.
                self._reading.shutdown(wait=False, cancel_futures=True)
                self._tell_all()
        return self._failures

    def _restore(self, number: int) -> None:
        path, result = self._paths[number], self._results[number]
        self._report.begun(path, number + 1, len(self._paths))
        size = 0
        try:
            if self._may_be_written(result):
                self._tell_all()
            _check_free(result, path, self._taken)
            photograph = self._photograph(number)
            self._read_ahead(number + 1)
            pixels = self._corrected(path, photograph.pixels)
        except Exception as error:  # Whatever one photograph breaks, the others are restored.
            writing: Future[list[str]] = Future()
            writing.set_exception(error)
        else:
            size = pixels.nbytes
            self._make_room(size)
            writing = self._writing.submit(write_photograph, result, photograph, pixels)
        self._ending.append(_Ending(path=path, result=result, writing=writing, size=size))
        self._tell_finished()

    def _photograph(self, number: int) -> Photograph:
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == number:
            try:
                return ahead[1].result()
            except Exception as error:
                if not _tells_of_memory(error):
                    raise
            # It was too little beside the photograph before, and may suffice by now.
            self._tell_all()
        return self._read(number).result()

    def _read_ahead(self, number: int) -> None:
        """Begins to read a photograph, unless it has to wait for another one's result."""
        if number == len(self._paths):
            return
        result = self._results[number]
        if self._may_be_written(result) or _is_one(result, self._results[number - 1]):
            return
        with contextlib.suppress(QdmrError):
            _check_free(result, self._paths[number], self._taken)
            self._ahead = number, self._read(number)

    def _read(self, number: int) -> Future[Photograph]:
        return self._reading.submit(_read, self._paths[number], self._results[number])

    def _corrected(self, path: Path, pixels: np.ndarray) -> np.ndarray:
        try:
            return restore(pixels, self._model, self._settings, self._advanced)
        except (RuntimeError, MemoryError) as error:
            # PyTorch has an exception type of its own only for a GPU's memory.
            if not _tells_of_memory(error):
                raise
            height, width = pixels.shape[:2]
            where, remedy = "", "lower --memory, so that more lies in scratch files"
            if isinstance(error, torch.OutOfMemoryError):
                where = " on the GPU"
                remedy = "end what else uses it, or choose --device cpu"
            raise QdmrError(
                f"{path}: too little memory{where} for {width}x{height} pixels; {remedy}"
            ) from error

    def _advanced(self, share: float) -> None:
        self._tell_finished()
        self._report.advanced(share)

    def _may_be_written(self, result: Path) -> bool:
        """Whether a photograph before may get, or not get, the same file as its result."""
        return any(_is_one(result, ending.result) for ending in self._ending)

    def _make_room(self, size: int) -> None:
        """Waits until a result of ``size`` bytes may be written beside those before."""
        while self._ending:
            sizes = [ending.size for ending in self._ending if not ending.writing.done()]
            if not sizes or (len(sizes) < self._writers and sum(sizes) + size <= MOST_UNWRITTEN):
                return
            self._tell_first()

    def _tell_finished(self) -> None:
        while self._ending and self._ending[0].writing.done():
            self._tell_first()

    def _tell_all(self) -> None:
        while self._ending:
            self._tell_first()

    def _tell_first(self) -> None:
        """Waits for the end of the first photograph that it isn't told of, and tells it."""
        ending = self._ending[0]
        # Interrupted while this waits, the photograph stays the first.
        wait([ending.writing])
        self._ending.popleft()
        path, result = ending.path, ending.result
        try:
            lost = ending.writing.result()
        except Exception as error:  # As above: the others are restored.
            self._failures.append(failure_of(path, error))
            self._report.failed(self._failures[-1])
        else:
            self._taken[_identity(result)] = f"replace that of {path}"
            self._report.restored(path, result, [f"{path}: {line}" for line in lost])


def _read(path: Path, result: Path) -> Photograph:
    photograph = read_photograph(path)
    check_fits(photograph, result.suffix.lower(), str(path))
    return photograph


def _tells_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or "memory" in str(error)


def _is_one(result: Path, other: Path) -> bool:
    """Whether two results may be one file: on some disks case doesn't matter, nor how accents are
    encoded."""
    one, another = (unicodedata.normalize("NFC", p.name.casefold()) for p in (result, other))
    return one == another


def _check_free(result: Path, path: Path, taken: Mapping[Identity, str]) -> None:
    """Keeps a result from overwriting another photograph's result, or a photograph itself, also on
    a disk that takes two names for one; and from a name that no disk takes."""
    if (length := len(os.fsencode(result.name))) > MOST_NAME_BYTES:
        raise QdmrError(
            f"{path}: the name of its result, {result.name}, has {length} bytes, and disks take "
            f"{MOST_NAME_BYTES}: give the photograph a shorter one"
        )
    if result.is_dir():
        raise QdmrError(f"{path}: its result would be {result}, a folder; name another --out")
    if (there := _identity(result)) is None:
        return
    if there == _identity(path):
        raise QdmrError(f"{path}: its result would overwrite it; name another --out")
    if there in taken:
        raise QdmrError(f"{path}: its result {result} would {taken[there]}; name another --out")


def _identity(path: Path) -> Identity:
    """Returns what tells a file from every other one, whatever their names; None without a file."""
    with contextlib.suppress(OSError):
        found = path.stat()
        return found.st_dev, found.st_ino
    return None
