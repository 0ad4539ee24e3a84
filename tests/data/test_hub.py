"""Realab is fetched from a stand-in for the hub: whole, resumed, checked, unpacked, and every
failure told in one line."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import pytest

from qdmr_ray.cli import main as cli
from qdmr_ray.data import hub_client
from qdmr_ray.data.archives import STATE_FOLDER
from qdmr_ray.data.hub import FetchResult, fetch_realab
from qdmr_ray.errors import QdmrError, SettingsError

COMMIT = "c0ffee" + 34 * "0"
TOKEN = "hf_secretOfTheUser"
API = "/api/datasets/Zhonghua/Realab"
RESOLVE = f"/datasets/Zhonghua/Realab/resolve/{COMMIT}/"
# Files larger than this are LFS files on the stand-in: redirected to another host, SHA-256.
LFS = 1000
PAGE = 3


class Request(NamedTuple):
    path: str
    range: str | None
    token: str | None


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request: a status, a cut or a stop after bytes, or other bytes."""

    status: int = 200
    cut: int | None = None
    stall: int | None = None
    wrong: bool = False
    ranges: bool = True
    headers: tuple[tuple[str, str], ...] = ()


@dataclass
class Hub:
    """A hub on this machine. ``faults`` are used up, one per request, by path; "" is the API."""

    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    log: list[Request] = field(default_factory=list)
    port: int = 0
    released: threading.Event = field(default_factory=threading.Event)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def requests(self, name: str) -> list[Request]:
        """The requests for a file's bytes."""
        return [r for r in self.log if r.path in (RESOLVE + name, f"/bytes/{name}")]

    def ranges(self, name: str) -> list[str | None]:
        host = "/bytes/" if len(self.files[name]) > LFS else RESOLVE
        return [request.range for request in self.log if request.path == host + name]

    def tree(self) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = [{"type": "directory", "path": "Syn", "oid": "0" * 40}]
        for path, data in self.files.items():
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            entry = {"type": "file", "path": path, "size": len(data), "oid": blob}
            if len(data) > LFS:
                sha256 = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 134}
            entries.append(entry)
        return entries


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        seen = Request(path, self.headers.get("Range"), self.headers.get("Authorization"))
        self.hub.log.append(seen)
        name = path.removeprefix(RESOLVE).removeprefix("/bytes/")
        large = len(self.hub.files.get(name, b"")) > LFS
        if path.startswith(RESOLVE) and large:
            # "localhost" is another host than 127.0.0.1, as the hub's store is.
            place = f"http://localhost:{self.hub.port}/bytes/{name}"
            self.answer(302, b"", {"Location": place, "X-Repo-Commit": COMMIT})
            return
        faults = self.hub.faults.get("" if path.startswith(API) else name, [])
        fault = faults.pop(0) if faults else Fault()
        if fault.status != 200:
            self.answer(fault.status, b"{}", dict(fault.headers))
        elif path.startswith(API):
            self.answer_api(path, url.query)
        elif name in self.hub.files:
            self.send(self.hub.files[name], fault)
        else:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def answer_api(self, path: str, query: str) -> None:
        if path in (f"{API}/revision/main", f"{API}/revision/{COMMIT}"):
            self.answer(200, json.dumps({"id": "Zhonghua/Realab", "sha": COMMIT}).encode(), {})
        elif path == f"{API}/tree/{COMMIT}":
            start = int(query.partition("start=")[2] or 0)
            tree = self.hub.tree()
            more = f'<{self.hub.address}{path}?start={start + PAGE}>; rel="next"'
            link = {"Link": more} if start + PAGE < len(tree) else {}
            self.answer(200, json.dumps(tree[start : start + PAGE]).encode(), link)
        else:
            self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})

    def send(self, data: bytes, fault: Fault) -> None:
        if fault.wrong:
            data = bytes(len(data))
        start, end = 0, len(data)
        asked = self.headers.get("Range")
        if asked and fault.ranges:
            first, last = asked.removeprefix("bytes=").split("-")
            start, end = int(first), int(last) + 1
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        body = data[start:end]
        self.wfile.write(body[: fault.cut if fault.stall is None else fault.stall])
        if fault.stall is not None:
            self.wfile.flush()
            self.hub.released.wait(20)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty hub; waits between tries are short, and no token of this machine is used."""
    hub = Hub()
    handler = type("HubHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    monkeypatch.setattr(hub_client, "WAITS", (0.01, 0.01))
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    for name in ("HF_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    yield hub
    hub.released.set()
    server.shutdown()
    server.server_close()


def fetch(hub: Hub, out: Path, **options: Any) -> FetchResult:
    return fetch_realab(out, endpoint=hub.address, **options)


def content(out: Path) -> dict[str, bytes]:
    """Every file below the folder, but for the state of fetching."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and STATE_FOLDER not in path.parts
    }


def large(seed: int, size: int = 200_000) -> bytes:
    return hashlib.shake_128(bytes([seed])).digest(size)


PLAIN = {
    ".gitattributes": b"*.png filter=lfs",
    "README.md": b"about",
    "empty.txt": b"",
    "Syn/gt/1 ä.png": large(1),
    "Syn/gt/2.png": large(2),
    "Syn/S1/train/1 ä.png": large(3),
    "Syn/S1/train/2.png": b"small",
}


def test_everything_is_fetched_and_the_layout_found(hub: Hub, tmp_path: Path) -> None:
    hub.files = dict(PLAIN)
    steps: list[tuple[str, int, int]] = []
    result = fetch(hub, tmp_path / "new" / "Realab", progress=lambda *step: steps.append(step))
    assert content(tmp_path / "new" / "Realab") == PLAIN
    total = sum(map(len, PLAIN.values()))
    assert result == FetchResult(
        files=len(PLAIN),
        size=total,
        fetched=len(PLAIN),
        commit=COMMIT,
        realab=tmp_path / "new" / "Realab",
        found=("README.md", "Syn/", "empty.txt"),
    )
    assert steps[-1] == ("download", total, total)
    assert all(done < total for _, done, _ in steps[:-1])


def test_the_layout_is_found_two_levels_deeper(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"a/b/Syn/gt/1.png": b"1", "a/README.md": b"2"}
    assert fetch(hub, tmp_path).realab == tmp_path / "a" / "b"


def test_another_layout_is_said_plainly(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"images/1.png": b"1", "notes.txt": b"2"}
    result = fetch(hub, tmp_path)
    assert result.realab is None
    line = result.lines(tmp_path)[-1]
    assert f"no Realab layout in {tmp_path}; there are: images/, notes.txt" in line
    assert "datasets/README.md" in line


def test_a_second_run_downloads_and_hashes_nothing(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.files = dict(PLAIN)
    fetch(hub, tmp_path)
    hub.log.clear()
    monkeypatch.setattr(hub_client.HubFile, "agrees", None)
    assert fetch(hub, tmp_path).fetched == 0
    assert all(request.path.startswith(API) for request in hub.log)


def test_a_file_that_was_changed_is_fetched_again(hub: Hub, tmp_path: Path) -> None:
    hub.files = dict(PLAIN)
    fetch(hub, tmp_path)
    # Same size: only the checksum tells.
    (tmp_path / "Syn/gt/2.png").write_bytes(bytes(200_000))
    (tmp_path / "README.md").unlink()
    assert fetch(hub, tmp_path).fetched == 2
    assert content(tmp_path) == PLAIN


def test_files_from_elsewhere_are_checked_instead_of_downloaded(hub: Hub, tmp_path: Path) -> None:
    hub.files = dict(PLAIN)
    fetch(hub, tmp_path)
    shutil.rmtree(tmp_path / STATE_FOLDER)
    assert fetch(hub, tmp_path).fetched == 0


def test_a_record_that_was_cut_off_costs_one_line(hub: Hub, tmp_path: Path) -> None:
    hub.files = dict(PLAIN)
    fetch(hub, tmp_path)
    record = tmp_path / STATE_FOLDER / "record.jsonl"
    record.write_bytes(record.read_bytes()[:-20])
    for _ in range(2):
        assert fetch(hub, tmp_path).fetched == 0
    assert len(record.read_text().split()) > len(PLAIN)


def test_a_new_version_on_the_hub_replaces_the_old(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"Syn/gt/1.png": large(1), "Syn/gt/2.png": large(2)}
    fetch(hub, tmp_path)
    hub.files["Syn/gt/1.png"] = large(9)
    assert fetch(hub, tmp_path).fetched == 1
    assert content(tmp_path) == hub.files


def test_patterns_choose_files(hub: Hub, tmp_path: Path) -> None:
    hub.files = dict(PLAIN)
    fetch(hub, tmp_path, include=["Syn/S1", "*.md"])
    assert set(content(tmp_path)) == {"README.md", "Syn/S1/train/1 ä.png", "Syn/S1/train/2.png"}
    with pytest.raises(QdmrError, match=r"no file matches Sin/\*; at the top there are: .*, Syn"):
        fetch(hub, tmp_path, include=["Sin/*"])


# -- broken connections and wrong bytes ----------------------------------------------------------


def test_a_cut_connection_goes_on_where_it_stopped(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"big.bin": large(1)}
    # More cuts than tries: as long as bytes come, it goes on.
    hub.faults = {"big.bin": [Fault(cut=50_000)] * 3}
    fetch(hub, tmp_path)
    assert content(tmp_path) == hub.files
    assert hub.ranges("big.bin") == [None, *(f"bytes={n}-199999" for n in (50000, 100000, 150000))]


def test_a_later_run_goes_on_with_the_partial_file(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"big.bin": large(1)}
    hub.faults = {"big.bin": [Fault(cut=70_000), *[Fault(status=503)] * 9]}
    with pytest.raises(QdmrError, match=r"big\.bin: the hub is busy \(503.*same command again"):
        fetch(hub, tmp_path)
    assert content(tmp_path) == {}
    hub.faults.clear()
    hub.log.clear()
    fetch(hub, tmp_path)
    assert content(tmp_path) == hub.files
    assert hub.ranges("big.bin") == ["bytes=70000-199999"]


def test_a_killed_run_goes_on_with_the_partial_file(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"big.bin": large(1), "Syn/gt/1.png": b"1"}
    hub.faults = {"big.bin": [Fault(stall=123_000)]}
    program = "import sys; from qdmr_ray.cli.main import main; sys.argv[0] = 'qdmr'; main()"
    words = ["data", "fetch-realab", "--out", str(tmp_path), "--endpoint", hub.address]
    running = subprocess.Popen([sys.executable, "-c", program, *words])
    partials = tmp_path / STATE_FOLDER / "partial"
    await_that(lambda: any(path.stat().st_size > 100_000 for path in partials.glob("*")))
    with pytest.raises(QdmrError, match="another fetch-realab is at work"):
        fetch(hub, tmp_path)
    running.send_signal(signal.SIGKILL)
    running.wait()
    hub.released.set()
    hub.log.clear()
    assert fetch(hub, tmp_path).fetched == 1
    assert content(tmp_path) == hub.files
    (resumed,) = hub.ranges("big.bin")
    assert resumed is not None
    assert int(resumed.removeprefix("bytes=").partition("-")[0]) > 100_000


def await_that(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_server_without_ranges_sends_the_whole_file(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"big.bin": large(1)}
    hub.faults = {"big.bin": [Fault(cut=50_000), Fault(ranges=False)]}
    fetch(hub, tmp_path)
    assert content(tmp_path) == hub.files


def test_huge_files_are_asked_for_in_pieces(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_client, "PIECE", 90_000)
    hub.files = {"big.bin": large(1)}
    fetch(hub, tmp_path)
    assert content(tmp_path) == hub.files
    assert hub.ranges("big.bin") == ["bytes=0-89999", "bytes=90000-179999", "bytes=180000-199999"]


@pytest.mark.parametrize("name", ["large.png", "small.png"])
def test_wrong_bytes_are_fetched_again(hub: Hub, tmp_path: Path, name: str) -> None:
    hub.files = {"large.png": large(1), "small.png": b"small"}
    hub.faults = {name: [Fault(wrong=True)]}
    fetch(hub, tmp_path)
    assert content(tmp_path) == hub.files


@pytest.mark.parametrize("name", ["large.png", "small.png"])
def test_a_file_that_stays_wrong_is_named_and_the_others_kept(
    hub: Hub, tmp_path: Path, name: str
) -> None:
    hub.files = {"large.png": large(1), "small.png": b"small", "other.png": large(2)}
    hub.faults = {name: [Fault(wrong=True)] * 2}
    with pytest.raises(QdmrError, match=rf"{name}: differs from the hub's checksum"):
        fetch(hub, tmp_path)
    right = {path: data for path, data in hub.files.items() if path != name}
    assert content(tmp_path) == right
    assert list((tmp_path / STATE_FOLDER / "partial").iterdir()) == []


# -- what the hub and the disk refuse ------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_hub_is_asked_again(hub: Hub, tmp_path: Path, status: int) -> None:
    hub.files = {"Syn/gt/1.png": large(1)}
    hub.faults = {"": [Fault(status=status)], "Syn/gt/1.png": [Fault(status=status)]}
    fetch(hub, tmp_path)
    assert content(tmp_path) == hub.files


def test_the_wait_that_the_hub_asks_for_is_kept(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"1.png": large(1), "2.png": large(2)}
    limited = Fault(status=429, headers=(("RateLimit", '"resolvers";r=0;t=0'),))
    hub.faults = {
        "1.png": [limited],
        "2.png": [Fault(status=429, headers=(("Retry-After", "1"),))],
    }
    started = time.monotonic()
    fetch(hub, tmp_path)
    assert 1 <= time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (401, (), r"401 Unauthorized\); accept the dataset's terms on that page and set HF_TOKEN"),
        (403, (("X-Error-Code", "GatedRepo"),), r"403 Forbidden\); accept .* set HF_TOKEN"),
        (404, (("X-Error-Code", "RevisionNotFound"),), r"no revision 'main'; check --revision"),
        (404, (), r"no such dataset or revision 'main' \(404.*HF_ENDPOINT or --endpoint"),
        (429, (), r"busy \(429 .*same command again.*later; with HF_TOKEN set its limits"),
        (502, (), r"busy \(502 Bad Gateway\); run the same command again"),
        (418, (), r"the hub answers 418"),
    ],
)
def test_refusals_name_the_page_and_the_remedy(
    hub: Hub, tmp_path: Path, status: int, headers: Any, said: str
) -> None:
    hub.faults = {"": [Fault(status=status, headers=headers)] * 5}
    page = f"{hub.address}/datasets/Zhonghua/Realab: "
    with pytest.raises(QdmrError, match=f"{page}.*{said}") as caught:
        fetch(hub, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_refused_file_stops_the_others(hub: Hub, tmp_path: Path) -> None:
    hub.files = {f"{i:03}.png": b"x" for i in range(50)}
    wait = Fault(status=503, headers=(("Retry-After", "100"),))
    hub.faults = {"000.png": [Fault(status=403)], **{name: [wait] for name in [*hub.files][1:]}}
    with pytest.raises(QdmrError, match=r"403 Forbidden"):
        fetch(hub, tmp_path)
    # Those that waited don't go on either.
    assert content(tmp_path) == {}


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "http://no-such-host.invalid"])
def test_an_unreachable_hub_is_told_at_once(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setattr(hub_client, "WAITS", (60, 60))
    monkeypatch.setenv("HF_ENDPOINT", address)
    started = time.monotonic()
    with pytest.raises(QdmrError, match=r"cannot be reached .*HTTPS_PROXY.*--endpoint") as caught:
        fetch_realab(tmp_path / "out", endpoint=None)
    assert str(caught.value).startswith(f"{address}: ")
    assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 15
    assert not (tmp_path / "out").exists()


def test_a_password_in_the_address_is_not_printed(hub: Hub, tmp_path: Path) -> None:
    hub.faults = {"": [Fault(status=403)]}
    for address in (f"http://me:secret@127.0.0.1:{hub.port}", "http://me:secret@127.0.0.1:9"):
        with pytest.raises(QdmrError, match=r"^http://127\.0\.0\.1:") as caught:
            fetch_realab(tmp_path, endpoint=address)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("body", [b"<html>log in here</html>", b"[]", b'{"sha": 1}'])
def test_an_address_of_something_else_is_told(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    monkeypatch.setattr(Handler, "answer_api", lambda self, *_: self.answer(200, body, {}))
    with pytest.raises(QdmrError, match=r"doesn't answer as a Hugging Face hub .*--endpoint"):
        fetch(hub, tmp_path)


def test_a_token_that_is_none_is_told(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", f"{TOKEN}…")
    with pytest.raises(QdmrError, match=r"HF_TOKEN: holds characters that no token has") as caught:
        fetch(hub, tmp_path)
    assert TOKEN not in str(caught.value)
    assert hub.log == []


@pytest.mark.parametrize("address", ["huggingface.co", "ftp://hub", "http://", "http://[x"])
def test_what_is_no_address_is_refused(tmp_path: Path, address: str) -> None:
    with pytest.raises(SettingsError, match=r"is no address of a hub"):
        fetch_realab(tmp_path, endpoint=address)


def test_a_path_that_leads_elsewhere_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"good.png": b"1", "../evil.png": b"2"}
    with pytest.raises(QdmrError, match=r"'\.\./evil\.png', which leads out of"):
        fetch(hub, tmp_path / "out")
    assert content(tmp_path) == {}


def test_a_short_disk_is_told_before_anything_is_received(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.files = {"a.zip": zipped({"Syn/gt/1.png": large(1, 2_000_000)}), "b.png": large(2)}
    usage = shutil.disk_usage(tmp_path)._replace(free=4_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    # The archive, its content and the photograph.
    with pytest.raises(
        QdmrError, match=r"takes 4\.2 MB and 4\.0 MB are free; free space"
    ) as caught:
        fetch(hub, tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert all(request.path.startswith(API) for request in hub.log)


def test_a_folder_that_is_a_file_is_told(hub: Hub, tmp_path: Path) -> None:
    hub.files = dict(PLAIN)
    (tmp_path / "file").write_text("x")
    with pytest.raises(QdmrError, match=r"file.*cannot be used .*--out"):
        fetch(hub, tmp_path / "file" / "Realab")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_told(hub: Hub, tmp_path: Path) -> None:
    hub.files = dict(PLAIN)
    tmp_path.chmod(0o500)
    with pytest.raises(QdmrError, match=r"no permission to write; choose another folder"):
        fetch(hub, tmp_path / "out")


@pytest.mark.parametrize(
    ("number", "said"), [(28, "the disk is full"), (13, "no permission to write")]
)
def test_a_disk_that_refuses_is_told(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    hub.files = dict(PLAIN)

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(QdmrError, match=rf"{tmp_path}.*{said}"):
        fetch(hub, tmp_path)


# -- archives ------------------------------------------------------------------------------------


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred(
    files: dict[str, bytes], mode: str = "w", links: dict[str, tuple[bytes, str]] | None = None
) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, (kind, target) in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    return buffer.getvalue()


INSIDE = {"Realab/Syn/gt/1.png": large(1), "./Realab/Syn/S1/train/1.png": large(2)}
UNPACKED = {"Realab/Syn/gt/1.png": large(1), "Realab/Syn/S1/train/1.png": large(2)}
ARCHIVES = {
    "realab.zip": zipped({**INSIDE, "Realab/empty/": b""}),
    "realab.tar": tarred(INSIDE),
    "realab.tar.gz": tarred(INSIDE, "w:gz"),
    "realab.TGZ": tarred(INSIDE, "w:gz"),
}


@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.parametrize("keep", [False, True])
def test_an_archive_is_unpacked_once(hub: Hub, tmp_path: Path, name: str, keep: bool) -> None:
    hub.files = {f"parts/{name}": ARCHIVES[name], "README.md": b"about"}
    steps: list[tuple[str, int, int]] = []
    result = fetch(hub, tmp_path, keep_archives=keep, progress=lambda *step: steps.append(step))
    expected = {"README.md": b"about", **{f"parts/{k}": v for k, v in UNPACKED.items()}}
    if keep:
        expected[f"parts/{name}"] = ARCHIVES[name]
    assert content(tmp_path) == expected
    assert result.realab == tmp_path / "parts"
    assert steps[-1] == ("unpack", len(ARCHIVES[name]), len(ARCHIVES[name]))
    hub.log.clear()
    steps.clear()
    assert fetch(hub, tmp_path, keep_archives=keep).fetched == 0
    assert content(tmp_path) == expected
    assert all(request.path.startswith(API) for request in hub.log)


def test_a_stopped_unpacking_is_done_again(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.files = {"realab.zip": ARCHIVES["realab.zip"]}
    replace = os.replace

    def stop(source: Any, target: Any) -> None:
        if "train" in str(target):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        fetch(hub, tmp_path)
    assert {**content(tmp_path), "realab.zip": b""} == {
        "realab.zip": b"",
        "Realab/Syn/gt/1.png": large(1),
    }
    monkeypatch.setattr(os, "replace", replace)
    hub.log.clear()
    assert fetch(hub, tmp_path).fetched == 0
    assert content(tmp_path) == UNPACKED


def test_what_was_unpacked_and_is_gone_is_fetched_again(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"realab.zip": ARCHIVES["realab.zip"]}
    fetch(hub, tmp_path)
    (tmp_path / "Realab/Syn/gt/1.png").unlink()
    assert fetch(hub, tmp_path).fetched == 1
    assert content(tmp_path) == UNPACKED


EVIL = {
    "dots.zip": (zipped({"good.png": b"1", "../evil.png": b"2"}), r"leads out of"),
    "dots.tar": (tarred({"Syn/../../evil.png": b"2"}), r"leads out of"),
    "root.tar.gz": (tarred({"/tmp/evil.png": b"2"}, "w:gz"), r"leads out of"),
    "windows.zip": (zipped({"..\\evil.png": b"2"}), r"leads out of"),
    "state.zip": (zipped({".qdmr-fetch/record.jsonl": b"2"}), r"leads out of"),
    "itself.zip": (zipped({"itself.zip": b"2"}), r"of its own name"),
    "soft.tar": (tarred({}, links={"evil": (tarfile.SYMTYPE, "/etc")}), r"'evil' is a link"),
    "hard.tar": (tarred({}, links={"evil": (tarfile.LNKTYPE, "/etc/hosts")}), r"is a link"),
    "pipe.tar": (tarred({}, links={"evil": (tarfile.FIFOTYPE, "")}), r"or a device"),
    "cut.tar": (tarred({"1.png": large(1)})[:100_000], r"archive is damaged"),
    "cut.tar.gz": (tarred({"1.png": large(1)}, "w:gz")[:100_000], r"archive is damaged"),
    "cut.zip": (zipped({"1.png": large(1)})[:100_000], r"archive is damaged"),
    "text.zip": (b"no archive", r"archive is damaged"),
    "text.tar": (b"no archive", r"archive is damaged"),
    "bits.zip": (zipped({"1.png": large(1)}).replace(large(1)[:9], b"bit error"), r"is damaged"),
}


@pytest.mark.parametrize("name", EVIL)
def test_an_unsafe_or_damaged_archive_is_refused(hub: Hub, tmp_path: Path, name: str) -> None:
    data, said = EVIL[name]
    hub.files = {name: data}
    with pytest.raises(QdmrError, match=rf"{tmp_path}/out/{name}: .*{said}") as caught:
        fetch(hub, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert content(tmp_path) == {f"out/{name}": data}


def test_links_and_encrypted_files_in_a_zip_are_refused(hub: Hub, tmp_path: Path) -> None:
    link = zipfile.ZipInfo("evil")
    link.external_attr = 0o120777 << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(link, "/etc")
    hub.files = {"link.zip": buffer.getvalue()}
    with pytest.raises(QdmrError, match=r"link\.zip: 'evil' is a link"):
        fetch(hub, tmp_path)
    # Bit 0 of the flags, in the local header and in the table of contents: encrypted.
    encrypted = bytearray(zipped({"1.png": b"1"}))
    encrypted[6] |= 1
    encrypted[encrypted.index(b"PK\x01\x02") + 8] |= 1
    hub.files = {"closed.zip": bytes(encrypted)}
    with pytest.raises(QdmrError, match=r"closed\.zip: cannot be unpacked .*encrypted"):
        fetch(hub, tmp_path)


# -- the command ---------------------------------------------------------------------------------


def run_command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *words: str
) -> tuple[int, str, str]:
    monkeypatch.setenv("QDMR_VERBOSE", "")  # set by -v
    monkeypatch.setattr(sys, "argv", ["qdmr", "data", "fetch-realab", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    shown = capfd.readouterr()
    return int(ended.value.code or 0), shown.out, shown.err


def test_the_command_says_what_it_did_and_never_the_token(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.files = dict(PLAIN)
    hub.faults = {"": [Fault(status=503)], "README.md": [Fault(status=500)]}
    words = ("--out", str(tmp_path), "--endpoint", hub.address, "--revision", COMMIT)
    code, out, err = run_command(monkeypatch, capfd, *words)
    assert (code, err) == (0, "download (MB): done\n")
    assert "7 files (0.6 MB) of revision c0ffee000000" in out
    assert f"Realab layout in {tmp_path}; next:  qdmr data pack {tmp_path} --out" in out
    # The hub gets the token, and the other host, which has the large files, does not.
    asked = [r for r in hub.log if not r.path.startswith("/bytes/")]
    elsewhere = [r for r in hub.log if r.path.startswith("/bytes/")]
    assert {request.token for request in asked} == {f"Bearer {TOKEN}"}
    assert len(elsewhere) == 3
    assert {request.token for request in elsewhere} == {None}
    hub.faults = {"": [Fault(status=401)]}
    code, out, failed = run_command(monkeypatch, capfd, "-v", *words)
    assert code == 1
    assert "access is refused" in failed
    left = "".join(p.read_text() for p in (tmp_path / ".qdmr-fetch").rglob("*") if p.is_file())
    assert TOKEN not in out + err + failed + left


def test_the_command_fails_with_one_line(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.files = {"Syn/gt/1.png": large(1), "Syn/gt/2.png": large(2)}
    hub.faults = {"Syn/gt/1.png": [Fault(wrong=True)] * 2, "Syn/gt/2.png": [Fault(cut=0)] * 9}
    words = ("--out", str(tmp_path), "--endpoint", hub.address)
    code, out, err = run_command(monkeypatch, capfd, *words)
    assert (code, out) == (1, "")
    (line,) = err.splitlines()
    assert line.startswith("qdmr: http://localhost:")
    assert "the connection failed at Syn/gt/2.png" in line
