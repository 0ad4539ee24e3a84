"""Downloads the Realab benchmark from a Hugging Face hub: resumable, checked and unpacked.

    qdmr data fetch-realab --out data/Realab

``huggingface_hub`` receives each file under a temporary name and moves it when it is complete. A
run that is killed loses the files in flight, eight at most; the next run receives only those again.
The library compares sizes only, so every file is hashed here and compared with the hub's checksum;
a record in ``.qdmr-fetch`` keeps a later run from hashing it again.
"""

import errno
import hashlib
import ipaddress
import logging
import os
import re
import shlex
import shutil
import tarfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from glob import escape
from operator import attrgetter
from pathlib import Path, PurePosixPath
from typing import Any, Self, TypeVar
from urllib.parse import unquote, urlsplit

import httpx2
from pydantic import Field

from qdmr_ray.data.packing.folders import is_realab
from qdmr_ray.errors import QdmrError, SettingsError
from qdmr_ray.storage import Location, disk_error, open_location
from qdmr_ray.storage.document import Document
from qdmr_ray.untrusted import ZIP_ERRORS

Progress = Callable[[str, int, int], None]
T = TypeVar("T")

DATASET = "Zhonghua/Realab"
DEFAULT_ENDPOINT = "https://huggingface.co"
STATE_FOLDER = ".qdmr-fetch"
# Seconds between the tries after a failure that may pass.
WAITS: tuple[float, ...] = (1, 2, 4, 8, 16)
_REMEDY = (
    "check the network, HF_TOKEN, the proxy variables (HTTPS_PROXY, NO_PROXY) and the hub's "
    "address (HF_ENDPOINT or --endpoint)"
)
_AGAIN = "run the same command again, it goes on where it stopped"
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
_DAMAGED = (tarfile.ReadError, UnicodeError, *ZIP_ERRORS)
# Kinds of members whose size is that of a file; others have names and attributes.
_WITH_CONTENT = (*tarfile.REGULAR_TYPES, tarfile.DIRTYPE)
_LONGEST_HEADER = 1 << 20
# Tries at receiving a file before it counts as damaged on the hub.
_TRIES = 2


class _Record(Document):
    """The files that earlier runs verified (checksum, size and time of change) and unpacked (the
    archive's checksum, and how many files each folder received), by path on the hub."""

    verified: dict[str, tuple[str, int, int]] = Field(default_factory=dict)
    unpacked: dict[str, tuple[str, dict[str, int]]] = Field(default_factory=dict)


def fetch_realab(
    out: Path,
    *,
    endpoint: str | None,
    revision: str = "main",
    include: Sequence[str] = (),
    keep_archives: bool = False,
    progress: Progress = lambda step, done, total: None,
) -> list[str]:
    """Downloads Realab into ``out``, checks every file and unpacks archives beside themselves;
    returns two lines: what was fetched, and what to do next.

    ``endpoint`` is the hub's address; by default ``HF_ENDPOINT``, then huggingface.co. ``revision``
    is a branch, tag or commit. With patterns such as "Syn/*" in ``include``, a file's path must
    match one. ``keep_archives`` leaves archives in place after they are unpacked. ``progress`` is
    called with (step, bytes done, bytes in all).

    Raises QdmrError where the hub is unreachable, refuses or is busy; the disk is short, full or
    not writable; a file differs from the hub's checksum twice; an archive is damaged or unsafe; or
    another run works in ``out``. Verified files stay.
    """
    from huggingface_hub.utils import WeakFileLock

    hub = _Hub(endpoint, revision)
    files = hub.files(include)
    state = out / STATE_FOLDER
    try:
        state.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(state / "lock", timeout=0.1):
            fetch = _Fetch(out, files, open_location(state / "record.json"))
            received = fetch.receive(hub, include, keep_archives, progress)
            fetch.unpack(keep_archives, progress)
    except TimeoutError as error:
        raise QdmrError(f"{out}: another fetch-realab is at work there; wait for it") from error
    except OSError as error:
        raise disk_error(str(error.filename2 or error.filename or out), "written", error) from error
    said = (
        f"{len(files)} files ({_gigabytes(sum(file.size for file in files))}) of revision "
        f"{hub.commit[:12]} in {out}, {received} of them received now; all agree with the hub's "
        "checksums"
    )
    # The layout may lie one or two folders deeper.
    for realab in filter(is_realab, (out, *sorted(out.glob("*")), *sorted(out.glob("*/*")))):
        command = f"qdmr data pack {shlex.quote(str(realab))} --out data/realab-s1"
        next_step = f"next:  {command} --lens S1 --target-set Real-Sim"
        return [said, f"Realab layout in {realab}; {next_step}"]
    names = ", ".join(sorted(path.name + "/" * path.is_dir() for path in out.glob("[!.]*")))
    where = "datasets/README.md (section Realab) describes the expected folders"
    return [said, f"no Realab layout in {out}; there are: {names}; {where}"]


class _File:
    """A file as the hub lists it; ``entry`` is huggingface_hub's ``RepoFile``."""

    def __init__(self, entry: Any) -> None:
        self.path: str = entry.path
        self.size: int = entry.size
        # Large files carry a SHA-256, small ones git's SHA-1 of header and content.
        self.checksum: str = entry.lfs.sha256 if entry.lfs else entry.blob_id
        self._is_large = bool(entry.lfs)
        self.is_archive = self.path.lower().endswith(_ARCHIVES)

    def agrees(self, local: Path) -> bool:
        """Whether the local file exists and has this content."""
        if not local.is_file() or local.stat().st_size != self.size:
            return False
        start = hashlib.sha256() if self._is_large else hashlib.sha1(b"blob %d\0" % self.size)
        with open(local, "rb") as file:
            return hashlib.file_digest(file, lambda: start).hexdigest() == self.checksum


def _is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


class _Hub:
    """One revision of Realab on one hub; every failure becomes a line that says what to do."""

    def __init__(self, endpoint: str | None, revision: str) -> None:
        # The library reads this when it is imported, and reports the download to the hub otherwise.
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        # Warnings of the library would repeat what the error says.
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        self.endpoint = (endpoint or os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
        if not re.match(r"https?://[^/?#\[\]]+", self.endpoint):
            remedy = f"write --endpoint (or HF_ENDPOINT) as {DEFAULT_ENDPOINT}"
            raise SettingsError(f"{self.endpoint}: is no address of a hub; {remedy}")
        address = urlsplit(self.endpoint)
        # None leaves the token to the library: HF_TOKEN, or that of its own login. As plain text it
        # would be everybody's on the way.
        is_safe = address.scheme == "https" or _is_loopback(address.hostname or "")
        self.token = None if is_safe else False
        # The address may hold a mirror's password, which messages must not show.
        self.page = f"{re.sub('//[^/@]*@', '//', self.endpoint)}/datasets/{DATASET}"
        self.revision = self.commit = revision

    def files(self, include: Sequence[str]) -> list[_File]:
        """Lists the files of the commit that the revision is now, so that all belong together."""
        from huggingface_hub import HfApi
        from huggingface_hub.utils import filter_repo_objects

        api = HfApi(self.endpoint, token=self.token)

        def listed() -> list[Any]:
            self.commit = api.dataset_info(DATASET, revision=self.revision, timeout=10).sha or ""
            which: Any = {"revision": self.commit, "repo_type": "dataset", "recursive": True}
            tree = api.list_repo_tree(DATASET, **which)
            return [entry for entry in tree if hasattr(entry, "blob_id")]

        entries = self._patiently(listed, first_contact=True)
        path, patterns = attrgetter("path"), _patterns(include)
        chosen = list(filter_repo_objects(entries, allow_patterns=patterns, key=path))
        if not chosen:
            tops = ", ".join(sorted({entry.path.partition("/")[0] for entry in entries}))
            found = f"at the top there are: {tops or 'no files at all'}"
            wanted = ", ".join(include) or "anything"
            raise QdmrError(f"{DATASET}: no file matches {wanted}; {found}")
        return [_File(entry) for entry in sorted(chosen, key=path)]

    def download(self, **options: Any) -> None:
        """Receives the files that are missing or differ; ``options`` of ``snapshot_download``."""
        from huggingface_hub import snapshot_download

        options |= {"repo_type": "dataset", "revision": self.commit, "endpoint": self.endpoint}
        options["token"] = self.token
        self._patiently(lambda: snapshot_download(DATASET, **options))

    def _patiently(self, operation: Callable[[], T], *, first_contact: bool = False) -> T:
        """Returns the result of ``operation``, which is tried again after a failure that may pass.
        On ``first_contact`` an address that does not answer is an error at once."""
        for wait in (*WAITS, None):
            try:
                return operation()
            except (OSError, httpx2.HTTPError) as error:
                # The library hides why it could not ask for a file behind an error of its own.
                cause = error.__cause__ or error
                if getattr(cause, "errno", None) is not None:
                    raise  # the disk's
                status = getattr(getattr(cause, "response", None), "status_code", None)
                lasting = status < 500 and status not in (408, 429) if status else first_contact
                if wait is None or lasting:
                    raise self._explained(cause, status, lasting) from error
            except (ImportError, KeyError, TypeError, ValueError) as error:
                # The causes: a portal's page, a file that leads elsewhere, a token with characters
                # that no token has, a proxy of a kind that needs another package.
                raise self._explained(error, None, lasting=True) from error
            time.sleep(wait)
        raise AssertionError("the last try returns or raises")

    def _explained(self, error: BaseException, status: int | None, lasting: bool) -> QdmrError:
        if status is None:
            text = " ".join(str(error).split()) or type(error).__name__
            # The bytes may come from another host, named alone, since its URL holds secrets.
            request = getattr(error, "_request", None)
            host = f" by {request.url.host}" if request else ""
            return QdmrError(f"{self.page}: no usable answer{host} ({text}); {_REMEDY}; {_AGAIN}")
        response = error.response  # type: ignore[attr-defined]
        path = unquote(response.request.url.path).partition(f"/resolve/{self.commit}/")[2]
        what = f"{self.page}: {path}: " if path else f"{self.page}: "
        answer = f"{status} {response.reason_phrase}".strip()
        if status in (401, 403):
            remedy = "accept the dataset's terms on that page and set HF_TOKEN to a valid token"
            if self.token is False:
                remedy = f"write --endpoint with https:// (http gets no HF_TOKEN), {remedy}"
            return QdmrError(f"{what}access is refused ({answer}); {remedy} of your account there")
        if status == 404:
            remedy = f"check --revision {self.revision} and the hub's address (HF_ENDPOINT or"
            return QdmrError(f"{what}no such dataset, revision or file; {remedy} --endpoint)")
        if lasting:
            return QdmrError(f"{what}the hub answers {answer}; choose another --revision")
        token = "; with HF_TOKEN set its limits are higher" if status == 429 else ""
        return QdmrError(f"{what}the hub is busy ({answer}); {_AGAIN}, later{token}")


class _Fetch:
    """The files that one run wants in ``out``, and the record of earlier runs."""

    def __init__(self, out: Path, files: list[_File], record: Location) -> None:
        self.out, self.files, self.place = out, files, record
        self.record = _Record.read_if_there(record) or _Record()

    def receive(
        self, hub: _Hub, include: Sequence[str], keep_archives: bool, progress: Progress
    ) -> int:
        """Receives and verifies what is missing; returns how many files were received."""
        unpacked = [file for file in self.files if self._is_unpacked(file)]
        wanted = [file for file in self.files if file not in unpacked]
        size = sum(file.size for file in wanted if self._stamp(file) is None)
        # The content of an archive takes at least as much as the archive.
        packed = [file.size for file in wanted if file.is_archive]
        room = size + (sum(packed) if keep_archives else max(packed, default=0))
        _require_room(self.out, room, f"what is missing of {DATASET}")
        # A run that was killed leaves the files in flight behind.
        for partial in (self.out / ".cache/huggingface/download").rglob("*.incomplete"):
            partial.unlink()
        before = [self._stamp(file) for file in wanted]
        for _ in range(_TRIES):
            hub.download(
                local_dir=self.out,
                allow_patterns=_patterns(include),
                ignore_patterns=[escape(file.path) for file in unpacked],
                tqdm_class=_bar(size, progress),
            )
            wrong = self._verify(wanted)
            for file in wrong:
                (self.out / file.path).unlink(missing_ok=True)
            if not wrong:
                break
        else:
            more = f" (and {len(wrong) - 1} more files)" if len(wrong) > 1 else ""
            raise QdmrError(
                f"{self.out / wrong[0].path}: differs from the hub's checksum, also when received "
                f"again; run the same command again later, or try another hub with --endpoint{more}"
            )
        if size:
            progress("download", size, size)
        return sum(old != self._stamp(file) for old, file in zip(before, wanted, strict=True))

    def unpack(self, keep_archives: bool, progress: Progress) -> None:
        """Unpacks the archives that are not yet unpacked, one after the other."""
        archives = [file for file in self.files if file.is_archive]
        packed = [file for file in archives if not self._is_unpacked(file)]
        done = 0
        for file in packed:
            counts = _unpack(self.out / file.path, self.out / STATE_FOLDER / "unpacking")
            self.record.unpacked[file.path] = (file.checksum, counts)
            self._save()
            done += file.size
            progress("unpack", done, sum(file.size for file in packed))
        for file in () if keep_archives else archives:
            (self.out / file.path).unlink(missing_ok=True)

    def _verify(self, files: list[_File]) -> list[_File]:
        verified = self.record.verified
        unknown = [file for file in files if verified.get(file.path, ()) != self._stamp(file)]
        with ThreadPoolExecutor(4) as pool:
            agree = list(pool.map(lambda file: file.agrees(self.out / file.path), unknown))
        wrong = [file for file, agrees in zip(unknown, agree, strict=True) if not agrees]
        for file in unknown:
            if file not in wrong and (stamp := self._stamp(file)):
                verified[file.path] = stamp
        self._save()
        return wrong

    def _stamp(self, file: _File) -> tuple[str, int, int] | None:
        """Returns (checksum, size, time of change) of a file; None where there is none."""
        with suppress(FileNotFoundError):
            found = (self.out / file.path).stat()
            return file.checksum, found.st_size, found.st_mtime_ns
        return None

    def _is_unpacked(self, file: _File) -> bool:
        """Whether the file is an archive whose folders still hold as many files as it brought."""
        checksum, counts = self.record.unpacked.get(file.path, ("", {}))
        folder = (self.out / file.path).parent
        return checksum == file.checksum and all(
            sum(path.is_file() for path in (folder / name).glob("*")) >= count
            for name, count in counts.items()
        )

    def _save(self) -> None:
        # The record must not claim, after a power cut, what the disk has lost.
        os.sync()
        self.record.write(self.place)


def _unpack(archive: Path, staging: Path) -> dict[str, int]:
    """Unpacks into ``staging`` and moves the files beside the archive once all are whole. Returns
    how many files each folder received; folders are relative to the archive's own."""
    shutil.rmtree(staging, ignore_errors=True)
    try:
        if archive.name.lower().endswith(".zip"):
            with zipfile.ZipFile(archive) as opened:
                size = sum(member.file_size for member in opened.infolist())
                _require_room(archive.parent, size, f"unpacking {archive.name}")
                # zipfile would write what leads elsewhere into the folder, under another name.
                for member in opened.namelist():
                    if not member:
                        raise zipfile.BadZipFile("a file in it has no name")
                    if member.startswith("/") or ".." in PurePosixPath(member).parts:
                        raise _refused(archive, member)
                opened.extractall(staging)
        else:
            with tarfile.open(archive, tarinfo=_Member) as opened_tar:
                size = 0
                for entry in opened_tar:
                    # Told before the next one is read: a sparse file may claim any size.
                    size += entry.size
                    _require_room(archive.parent, size, f"unpacking {archive.name}")
                opened_tar.extractall(staging, filter="data")
    except tarfile.FilterError as error:
        raise _refused(archive, error.tarinfo.name) from error
    except _DAMAGED as error:
        raise _damaged(archive, error) from error
    except OSError as error:
        # Decompressors raise one without a number; EINVAL is a place before the file's beginning.
        if error.errno not in (None, errno.EINVAL):
            raise
        raise _damaged(archive, error) from error
    except RuntimeError as error:  # zipfile's: encrypted, or compressed in a way it can't read
        remedy = "unpack it with another program, in the same folder"
        raise QdmrError(f"{archive}: cannot be unpacked ({error}); {remedy}") from error
    counts: Counter[str] = Counter()
    for source in [path for path in staging.rglob("*") if path.is_symlink() or path.is_file()]:
        name = source.relative_to(staging)
        target = archive.parent / name
        if target == archive or {STATE_FOLDER, ".cache"} & set(name.parts):
            raise _refused(archive, str(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, target)
        counts[name.parent.as_posix()] += 1
    shutil.rmtree(staging, ignore_errors=True)
    return dict(counts)


def _damaged(archive: Path, error: BaseException) -> QdmrError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    remedy = f"delete it and {_AGAIN}; if it stays so, leave it out with --include"
    return QdmrError(f"{archive}: the archive is damaged ({reason}); {remedy}")


class _Member(tarfile.TarInfo):
    """Refuses names and attributes, which are read at once, of any length."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        member = super().frombuf(buf, encoding, errors)
        if member.type not in _WITH_CONTENT and member.size > _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header claims {member.size} bytes")
        return member


def _refused(archive: Path, name: str) -> QdmrError:
    return QdmrError(
        f"{archive}: holds {name!r}, which is a device, leads out of its folder, or would replace "
        "the archive or the state of this download; don't use this file"
    )


def _require_room(folder: Path, size: int, purpose: str) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        takes = f"{purpose} takes {_gigabytes(size)} and {_gigabytes(free)} are free"
        remedy = "free space there or choose another folder with --out"
        raise QdmrError(f"{folder}: {takes}; {remedy}")


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _patterns(include: Sequence[str]) -> list[str] | None:
    """Returns patterns for the library, which match also the files in a folder that matches."""
    return [*include, *(f"{pattern.rstrip('/')}/*" for pattern in include)] or None


def _bar(total: int, progress: Progress) -> type[Any]:
    """Makes the library's progress bar class, which draws nothing and calls ``progress``."""
    from tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *_: Any, **options: Any) -> None:
            super().__init__(disable=True, total=options.get("total"))
            # The library counts received bytes, written bytes and files, each with a bar.
            self.counts_bytes = options.get("unit") == "B"

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            if self.counts_bytes and self.n < total:
                progress("download", int(self.n), total)

    return Bar
