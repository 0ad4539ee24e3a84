"""Realab on a Hugging Face hub: its files with their checksums, and their bytes.

The library lists the files, finds the token and knows the addresses. The bytes are received here,
because the library (2.x) throws a partial file away when it is killed, and Realab is large.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from qdmr_ray import __version__
from qdmr_ray.errors import QdmrError, SettingsError

if TYPE_CHECKING:
    import httpx2

DATASET = "Zhonghua/Realab"
DEFAULT_ENDPOINT = "https://huggingface.co"
ENDPOINT_VARIABLE = "HF_ENDPOINT"
ADDRESS_REMEDY = (
    "check the network, the proxy variables (HTTPS_PROXY, NO_PROXY) and the hub's address "
    f"({ENDPOINT_VARIABLE} or --endpoint)"
)
AGAIN = "run the same command again, it goes on where it stopped"
# Seconds between the tries after a failure that may pass; whenever bytes came, they start anew.
WAITS: tuple[float, ...] = (1, 2, 4, 8, 16)
# A hub may ask for a longer wait; its limits count requests in windows of five minutes.
_LONGEST_WAIT = 300
# Seconds of silence after which a connection counts as broken, as in the library.
_TIMEOUT = 10
# CloudFront, which serves the hub's large files, sends no more than 50 GB in one answer.
PIECE = 10 * 1000**3
_CHUNK = 1 << 20
_RANGE_REFUSED = 416


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """A file as the hub lists it.

    ``checksum`` is "sha256:…" of a large file, "git:…" (the SHA-1 of git's blob) of a small one.
    """

    path: str
    size: int
    checksum: str

    def agrees(self, local: Path) -> bool:
        """Whether the local file is there and has this size and checksum."""
        if not local.is_file() or local.stat().st_size != self.size:
            return False
        kind = self.checksum.partition(":")[0]
        digest = hashlib.sha256() if kind == "sha256" else hashlib.sha1(b"blob %d\0" % self.size)
        with open(local, "rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        return self.checksum == f"{kind}:{digest.hexdigest()}"


class HubClient:
    """One revision of Realab on one hub. When ``stop`` is set, receiving ends early.

    Raises SettingsError when ``endpoint`` (by default ``HF_ENDPOINT``, then huggingface.co) is no
    address.
    """

    def __init__(self, endpoint: str | None, revision: str) -> None:
        # The library reads this when it is imported, and reports what runs here unless it is set.
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        # What goes wrong is told once, in one line, below.
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        self.endpoint = _address(endpoint)
        # The address may hold a mirror's password, which is nothing for messages.
        self._shown = re.sub(r"//[^/@]*@", "//", self.endpoint)
        self.page = f"{self._shown}/datasets/{DATASET}"
        self.revision = self.commit = revision
        self.stop = threading.Event()

    def files(self) -> list[HubFile]:
        """Asks which commit the revision stands for, so that all files are of one, and lists it.

        Raises:
            QdmrError: the hub can't be reached, refuses access or doesn't know the revision.
        """
        import httpx2
        from huggingface_hub import HfApi
        from huggingface_hub.errors import OfflineModeIsEnabled
        from huggingface_hub.hf_api import RepoFile

        api = HfApi(self.endpoint, library_name="qdmr_ray", library_version=__version__)
        try:
            self.commit = self._commit(api)
            entries = list(
                api.list_repo_tree(
                    DATASET, recursive=True, revision=self.commit, repo_type="dataset"
                )
            )
        except httpx2.HTTPError as error:
            raise self._explained(error) from error
        except OfflineModeIsEnabled as error:
            raise QdmrError(
                f"{self._shown}: HF_HUB_OFFLINE forbids every download; unset it"
            ) from error
        except ImportError as error:  # for SOCKS
            raise QdmrError(
                f"{self._shown}: the proxy variables name a proxy of a kind that needs another "
                f"package ({error}); install it or name an HTTP proxy"
            ) from error
        except UnicodeEncodeError as error:
            raise QdmrError(
                "HF_TOKEN: holds characters that no token has; copy the token again"
            ) from error
        except (KeyError, TypeError, ValueError) as error:  # no JSON, or other JSON: a portal
            text = " ".join(str(error).split())
            raise QdmrError(
                f"{self._shown}: doesn't answer as a Hugging Face hub ({text}); {ADDRESS_REMEDY}"
            ) from error
        return [
            HubFile(
                path=entry.path,
                size=entry.size,
                checksum=f"sha256:{entry.lfs.sha256}" if entry.lfs else f"git:{entry.blob_id}",
            )
            for entry in entries
            if isinstance(entry, RepoFile)
        ]

    def receive(self, file: HubFile, partial: Path, advance: Callable[[int], None]) -> None:
        """Appends to ``partial`` until it has the file's size.

        Raises:
            QdmrError: the hub refused, or failed several times without one byte between.
            OSError: the disk did.
        """
        import httpx2

        waits = iter(WAITS)
        while not self.stop.is_set() and (have := _size(partial)) < file.size:
            try:
                self._request(file, partial, have, advance)
            except httpx2.HTTPError as error:
                if _size(partial) > have:
                    waits = iter(WAITS)
                self._wait(error, next(waits, None), file.path)

    def _commit(self, api: Any) -> str:
        """The commit that the revision stands for. A hub that is silent now is told at once."""
        from huggingface_hub.errors import HfHubHTTPError

        waits = iter(WAITS)
        while True:
            try:
                info = api.dataset_info(DATASET, revision=self.revision, timeout=_TIMEOUT)
                return info.sha or self.revision
            except HfHubHTTPError as error:
                self._wait(error, next(waits, None))

    def _request(
        self, file: HubFile, partial: Path, have: int, advance: Callable[[int], None]
    ) -> None:
        """One request for what is missing, or the next piece of it."""
        import httpx2
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        url = hf_hub_url(
            DATASET,
            file.path,
            repo_type="dataset",
            revision=self.commit,
            endpoint=self.endpoint,
        )
        headers = build_hf_headers(library_name="qdmr_ray", library_version=__version__)
        headers["Accept-Encoding"] = "identity"
        end = min(file.size, have + PIECE)
        if have or end < file.size:
            headers["Range"] = f"bytes={have}-{end - 1}"
        with get_session().stream("GET", url, headers=headers, timeout=_TIMEOUT) as response:
            if response.status_code == _RANGE_REFUSED:
                partial.unlink(missing_ok=True)
            hf_raise_for_status(response)
            if have and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                # The server sends the whole file.
                advance(-have)
                have, end = 0, file.size
            with open(partial, "ab" if have else "wb") as out:
                for chunk in response.iter_bytes():
                    out.write(chunk)
                    advance(len(chunk))
                    # More than the file has is a wrong file; its checksum will tell.
                    if self.stop.is_set() or out.tell() > file.size:
                        return
                if out.tell() < end:
                    raise httpx2.RemoteProtocolError(
                        "the answer ended early", request=response.request
                    )

    def _wait(self, error: httpx2.HTTPError, wait: float | None, path: str | None = None) -> None:
        """Waits before the next try, or raises when there is none left or no sense in one."""
        if wait is None or not _may_pass(error):
            raise self._explained(error, path) from error
        self.stop.wait(max(wait, _asked_wait(error)))

    def _explained(self, error: httpx2.HTTPError, path: str | None = None) -> QdmrError:
        """One line that names the address and what to do."""
        from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError

        if not isinstance(error, HfHubHTTPError):
            reason = str(error) or type(error).__name__
            at = f"the connection failed at {path}" if path else "the hub cannot be reached"
            again = f"; {AGAIN}" if path else ""
            return QdmrError(
                f"{_host(error, self._shown)}: {at} ({reason}); {ADDRESS_REMEDY}{again}"
            )
        status = error.response.status_code
        answer = f"{status} {error.response.reason_phrase}".strip()
        if status in (401, 403):
            return QdmrError(
                f"{self.page}: access is refused ({answer}); accept the dataset's terms on that "
                "page and set HF_TOKEN to a valid token of your account there"
            )
        if isinstance(error, RevisionNotFoundError):
            return QdmrError(f"{self.page}: no revision {self.revision!r}; check --revision")
        if status == 404 and path is None:
            return QdmrError(
                f"{self.page}: no such dataset or revision {self.revision!r} ({answer}); check "
                f"--revision and the hub's address ({ENDPOINT_VARIABLE} or --endpoint)"
            )
        what = f"{self.page}: {path}" if path else self.page
        if _may_pass(error):
            token = "; with HF_TOKEN set its limits are higher" if status == 429 else ""
            return QdmrError(f"{what}: the hub is busy ({answer}); {AGAIN}, later{token}")
        return QdmrError(f"{what}: the hub answers {answer}; {AGAIN}, or choose another --revision")


def _address(endpoint: str | None) -> str:
    address = (endpoint or os.environ.get(ENDPOINT_VARIABLE) or DEFAULT_ENDPOINT).rstrip("/")
    try:
        parts = urlsplit(address)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        usable = False
    if not usable:
        raise SettingsError(
            f"{address}: is no address of a hub; write --endpoint (or {ENDPOINT_VARIABLE}) as "
            f"{DEFAULT_ENDPOINT}"
        )
    return address


def _may_pass(error: httpx2.HTTPError) -> bool:
    """Whether another try may help: a broken connection, a limit on requests, a server's fault."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    return isinstance(error, httpx2.TransportError)


def _asked_wait(error: httpx2.HTTPError) -> int:
    """Seconds that the hub asks to wait, 0 where it names none."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import parse_ratelimit_headers

    if not isinstance(error, HfHubHTTPError):
        return 0
    limit = parse_ratelimit_headers(error.response.headers)
    if limit is not None and limit.remaining == 0:
        return min(limit.reset_in_seconds + 1, _LONGEST_WAIT)
    after = error.response.headers.get("Retry-After", "")
    return min(int(after), _LONGEST_WAIT) if after.isdecimal() else 0


def _host(error: httpx2.HTTPError, endpoint: str) -> str:
    """Scheme and host that were asked: a file's host may be another, and its URL has secrets."""
    try:
        url = error.request.url
    except RuntimeError:
        return endpoint
    return f"{url.scheme}://{url.netloc.decode()}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
