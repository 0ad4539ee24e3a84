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
from urllib.parse import quote, unquote, urlsplit

import huggingface_hub.constants
import pytest

from qdmr_ray.cli import main as cli
from qdmr_ray.data import realab
from qdmr_ray.data.realab import STATE_FOLDER, fetch_realab
from qdmr_ray.errors import QdmrError, SettingsError

COMMIT = "c0ffee" + 34 * "0"
TOKEN = "hf_secretOfTheUser"
API = "/api/datasets/Zhonghua/Realab"
RESOLVE = f"/datasets/Zhonghua/Realab/resolve/{COMMIT}/"
# Files larger than this are LFS files on the stand-in: redirected to another host, SHA-256.
LFS = 1000
PAGE = 3


class Request(NamedTuple):
    method: str
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

    def received(self) -> list[str]:
        """The files whose bytes were asked for."""
        paths = [request.path for request in self.log if request.method == "GET"]
        return [
            path.removeprefix("/bytes/").removeprefix(RESOLVE)
            for path in paths
            if path.startswith(("/bytes/", RESOLVE))
        ]

    def tree(self) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = [{"type": "directory", "path": "Syn", "oid": "0" * 40}]
        for path, data in self.files.items():
            entry = {"type": "file", "path": path, "size": len(data), "oid": git_checksum(data)}
            if len(data) > LFS:
                entry["lfs"] = {"oid": checksum(data), "size": len(data), "pointerSize": 134}
            entries.append(entry)
        return entries


def git_checksum(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def checksum(data: bytes) -> str:
    """What the hub names a file's content by."""
    return hashlib.sha256(data).hexdigest() if len(data) > LFS else git_checksum(data)


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        seen = (self.command, path, self.headers.get("Range"), self.headers.get("Authorization"))
        self.hub.log.append(Request(*seen))
        name = path.removeprefix(RESOLVE).removeprefix("/bytes/")
        data = self.hub.files.get(name)
        sought = "" if path.startswith(API) else name
        asked = self.command == "GET"
        faults = self.hub.faults.get(sought, []) if asked else []
        fault = faults.pop(0) if faults else Fault()
        if fault.status != 200:
            self.answer(fault.status, b"{}", dict(fault.headers))
        elif path.startswith(API):
            self.answer_api(path, url.query)
        elif data is None:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        elif self.command == "HEAD":
            about = {"X-Repo-Commit": COMMIT, "ETag": f'"{checksum(data)}"'}
            if len(data) > LFS:
                # "localhost" is another host than 127.0.0.1, as the hub's store is.
                place = f"http://localhost:{self.hub.port}/bytes/{quote(name)}"
                about |= {"Location": place, "X-Linked-Size": str(len(data))}
                self.answer(302, b"", about)
            else:
                self.answer(200, b"", about | {"Content-Length": str(len(data))})
        else:
            self.send(data, fault)

    do_HEAD = do_GET  # noqa: N815

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
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
        if asked:
            first, last = asked.removeprefix("bytes=").split("-")
            start, end = int(first), int(last or len(data) - 1) + 1
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
    monkeypatch.setattr(realab, "WAITS", (0.01, 0.01))
    sleep = time.sleep
    # The library's own pauses are seconds long.
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.01)))
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    for name in ("HF_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    yield hub
    hub.released.set()
    server.shutdown()
    server.server_close()


def fetch(hub: Hub, out: Path, **options: Any) -> list[str]:
    return fetch_realab(out, endpoint=hub.address, **options)


def content(out: Path) -> dict[str, bytes]:
    """Every file below the folder, but for the state of fetching."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and not {STATE_FOLDER, ".cache"} & set(path.parts)
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
    out = tmp_path / "new" / "Realab"
    said, next_step = fetch(hub, out, progress=lambda *step: steps.append(step))
    assert content(out) == PLAIN
    assert said == (
        f"7 files (0.6 MB) of revision c0ffee000000 in {out}, 7 of them received now; all agree "
        "with the hub's checksums"
    )
    assert next_step.startswith(f"Realab layout in {out}; next:  qdmr data pack {out} --out")
    total = sum(map(len, PLAIN.values()))
    assert steps[-1] == ("download", total, total)
    assert len(steps) > 1
    assert all(done < total for _, done, _ in steps[:-1])


def test_the_layout_is_found_two_levels_deeper(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"a/b/Syn/gt/1.png": b"1", "a/README.md": b"2"}
    assert f"Realab layout in {tmp_path / 'a' / 'b'};" in fetch(hub, tmp_path)[1]


def test_another_layout_is_said_plainly(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"images/1.png": b"1", "notes.txt": b"2"}
    line = fetch(hub, tmp_path)[1]
    assert f"no Realab layout in {tmp_path}; there are: images/, notes.txt" in line
    assert "datasets/README.md" in line


def test_a_second_run_downloads_and_hashes_nothing(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.files = dict(PLAIN)
    fetch(hub, tmp_path)
    hub.log.clear()
    monkeypatch.setattr(realab._File, "agrees", None)
    assert "0 of them received now" in fetch(hub, tmp_path)[0]
    assert all(request.path.startswith(API) for request in hub.log)


def test_a_file_that_was_changed_is_fetched_again(hub: Hub, tmp_path: Path) -> None:
    hub.files = dict(PLAIN)
    fetch(hub, tmp_path)
    # Same size: only the checksum tells.
    (tmp_path / "Syn/gt/2.png").write_bytes(bytes(200_000))
    (tmp_path / "README.md").unlink()
    assert "2 of them received now" in fetch(hub, tmp_path)[0]
    assert content(tmp_path) == PLAIN


def test_large_files_from_elsewhere_are_checked_instead_of_downloaded(
    hub: Hub, tmp_path: Path
) -> None:
    hub.files = {"Syn/gt/1.png": large(1)}
    (tmp_path / "Syn/gt").mkdir(parents=True)
    (tmp_path / "Syn/gt/1.png").write_bytes(large(1))
    assert "0 of them received now" in fetch(hub, tmp_path)[0]
    assert hub.received() == []


def test_a_new_version_on_the_hub_replaces_the_old(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.files = {"Syn/gt/1.png": large(1), "Syn/gt/2.png": large(2)}
    fetch(hub, tmp_path)
    hub.files["Syn/gt/1.png"] = large(9)
    newer = COMMIT.replace("c0ffee", "facade")
    monkeypatch.setattr(sys.modules[__name__], "COMMIT", newer)
    monkeypatch.setattr(sys.modules[__name__], "RESOLVE", RESOLVE.replace("c0ffee", "facade"))
    assert "1 of them received now" in fetch(hub, tmp_path)[0]
    assert content(tmp_path) == hub.files


def test_patterns_choose_files(hub: Hub, tmp_path: Path) -> None:
    hub.files = dict(PLAIN)
    fetch(hub, tmp_path, include=["Syn/S1", "*.md"])
    assert set(content(tmp_path)) == {"README.md", "Syn/S1/train/1 ä.png", "Syn/S1/train/2.png"}
    with pytest.raises(QdmrError, match=r"no file matches Sin/\*; at the top there are: .*, Syn"):
        fetch(hub, tmp_path, include=["Sin/*"])


# -- broken connections and wrong bytes ----------------------------------------------------------


def test_a_cut_connection_goes_on_where_it_stopped(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The library goes on at whole chunks, of 10 MB.
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    hub.files = {"big.bin": large(1)}
    hub.faults = {"big.bin": [Fault(cut=50_000)] * 3}
    fetch(hub, tmp_path)
    assert content(tmp_path) == hub.files
    ranges = [request.range for request in hub.log if request.range]
    assert ranges == [f"bytes={n}-" for n in (50000, 100000, 150000)]


def test_a_run_that_failed_keeps_what_is_complete(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"1.png": large(1), "2.png": large(2)}
    hub.faults = {"2.png": [Fault(status=503)] * 9}
    with pytest.raises(QdmrError, match=r"the hub is busy \(503 .*same command again"):
        fetch(hub, tmp_path)
    assert content(tmp_path) == {"1.png": large(1)}
    hub.faults.clear()
    hub.log.clear()
    fetch(hub, tmp_path)
    assert content(tmp_path) == hub.files
    assert hub.received() == ["2.png"]


def test_a_killed_run_leaves_no_half_file(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"big.bin": large(1), "Syn/gt/1.png": b"1"}
    hub.faults = {"big.bin": [Fault(stall=123_000)]}
    program = "import sys; from qdmr_ray.cli.main import main; sys.argv[0] = 'qdmr'; main()"
    words = ["data", "fetch-realab", "--out", str(tmp_path), "--endpoint", hub.address]
    running = subprocess.Popen([sys.executable, "-c", program, *words])
    await_that(lambda: "big.bin" in hub.received() and (tmp_path / "Syn/gt/1.png").exists())
    with pytest.raises(QdmrError, match="another fetch-realab is at work"):
        fetch(hub, tmp_path)
    running.send_signal(signal.SIGKILL)
    running.wait()
    hub.released.set()
    hub.log.clear()
    assert "big.bin" not in content(tmp_path)
    assert "1 of them received now" in fetch(hub, tmp_path)[0]
    assert content(tmp_path) == hub.files
    assert hub.received() == ["big.bin"]
    assert list(tmp_path.rglob("*.incomplete")) == []


def await_that(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


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


# -- what the hub and the disk refuse ------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_hub_is_asked_again(hub: Hub, tmp_path: Path, status: int) -> None:
    hub.files = {"Syn/gt/1.png": large(1)}
    hub.faults = {"": [Fault(status=status)], "Syn/gt/1.png": [Fault(status=status)]}
    fetch(hub, tmp_path)
    assert content(tmp_path) == hub.files


@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (401, (), r"401 Unauthorized\); accept the dataset's terms on that page and set HF_TOKEN"),
        (403, (("X-Error-Code", "GatedRepo"),), r"403 Forbidden\); accept .* set HF_TOKEN"),
        (
            404,
            (("X-Error-Code", "RevisionNotFound"),),
            r"no such .*revision.*check --revision main",
        ),
        (404, (), r"no such dataset, .*HF_ENDPOINT or --endpoint"),
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


def test_a_refused_file_is_told(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"Syn/gt/000.png": b"x"}
    hub.faults = {"Syn/gt/000.png": [Fault(status=403)]}
    with pytest.raises(QdmrError, match=r"Syn/gt/000\.png: access is refused \(403 Forbidden"):
        fetch(hub, tmp_path)
    assert content(tmp_path) == {}


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "http://no-such-host.invalid"])
def test_an_unreachable_hub_is_told_at_once(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setattr(realab, "WAITS", (60, 60))
    monkeypatch.setenv("HF_ENDPOINT", address)
    started = time.monotonic()
    with pytest.raises(QdmrError, match=r"no usable answer .*HTTPS_PROXY.*--endpoint") as caught:
        fetch_realab(tmp_path / "out", endpoint=None)
    assert str(caught.value).startswith(f"{address}/datasets/")
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
    with pytest.raises(QdmrError, match=r"no usable answer .*--endpoint"):
        fetch(hub, tmp_path)


def test_a_token_that_is_none_is_told(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", f"{TOKEN}…")
    with pytest.raises(QdmrError, match=r"check the network, HF_TOKEN") as caught:
        fetch(hub, tmp_path)
    assert TOKEN not in str(caught.value)
    assert hub.log == []


@pytest.mark.parametrize("address", ["huggingface.co", "ftp://hub", "http://", "http://[x"])
def test_what_is_no_address_is_refused(tmp_path: Path, address: str) -> None:
    with pytest.raises(SettingsError, match=r"is no address of a hub"):
        fetch_realab(tmp_path, endpoint=address)


def test_a_path_that_leads_elsewhere_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"../evil.png": b"2"}
    with pytest.raises(QdmrError, match=r"\.\./evil\.png"):
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
    with pytest.raises(QdmrError, match=r"file.*no such file or folder"):
        fetch(hub, tmp_path / "file" / "Realab")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_told(hub: Hub, tmp_path: Path) -> None:
    hub.files = dict(PLAIN)
    tmp_path.chmod(0o500)
    with pytest.raises(QdmrError, match=r"no permission, .*choose another folder"):
        fetch(hub, tmp_path / "out")


@pytest.mark.parametrize(("number", "said"), [(28, "the disk is full"), (13, "no permission")])
def test_a_disk_that_refuses_is_told(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    hub.files = dict(PLAIN)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(shutil, "move", refuse)
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
    lines = fetch(hub, tmp_path, keep_archives=keep, progress=lambda *step: steps.append(step))
    expected = {"README.md": b"about", **{f"parts/{k}": v for k, v in UNPACKED.items()}}
    if keep:
        expected[f"parts/{name}"] = ARCHIVES[name]
    assert content(tmp_path) == expected
    assert f"Realab layout in {tmp_path / 'parts'}" in lines[1] or "Realab/Realab" in lines[1]
    assert steps[-1] == ("unpack", len(ARCHIVES[name]), len(ARCHIVES[name]))
    hub.log.clear()
    steps.clear()
    assert "0 of them received" in fetch(hub, tmp_path, keep_archives=keep)[0]
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
    monkeypatch.setattr(os, "replace", replace)
    hub.log.clear()
    assert "0 of them received" in fetch(hub, tmp_path)[0]
    assert content(tmp_path) == UNPACKED


def test_what_was_unpacked_and_is_gone_is_fetched_again(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"realab.zip": ARCHIVES["realab.zip"]}
    fetch(hub, tmp_path)
    (tmp_path / "Realab/Syn/gt/1.png").unlink()
    assert "1 of them received" in fetch(hub, tmp_path)[0]
    assert content(tmp_path) == UNPACKED


EVIL = {
    "dots.zip": (zipped({"good.png": b"1", "../evil.png": b"2"}), r"leads out of"),
    "root.zip": (zipped({"/tmp/evil.png": b"2"}), r"leads out of"),
    "dots.tar": (tarred({"Syn/../../evil.png": b"2"}), r"leads out of"),
    "state.zip": (zipped({".qdmr-fetch/record.json": b"2"}), r"state of this download"),
    "state.tar": (tarred({".cache/x.metadata": b"2"}), r"state of this download"),
    "itself.zip": (zipped({"itself.zip": b"2"}), r"would replace the archive"),
    "soft.tar": (tarred({}, links={"evil": (tarfile.SYMTYPE, "/etc")}), r"'evil', which"),
    "hard.tar": (tarred({}, links={"evil": (tarfile.LNKTYPE, "/etc/hosts")}), r"'evil', which"),
    "pipe.tar": (tarred({}, links={"evil": (tarfile.FIFOTYPE, "")}), r"is a device"),
    "cut.tar": (tarred({"1.png": large(1)})[:100_000], r"archive is damaged"),
    "cut.tar.gz": (tarred({"1.png": large(1)}, "w:gz")[:100_000], r"archive is damaged"),
    "cut.zip": (zipped({"1.png": large(1)})[:100_000], r"archive is damaged"),
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


def test_an_encrypted_zip_is_refused(hub: Hub, tmp_path: Path) -> None:
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
    kept = [*(tmp_path / STATE_FOLDER).rglob("*"), *(tmp_path / ".cache").rglob("*")]
    left = "".join(path.read_text() for path in kept if path.is_file())
    assert TOKEN not in out + err + failed + left


def test_a_mirror_that_is_reached_by_plain_http_gets_no_token(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.files = dict(PLAIN)
    monkeypatch.setattr(realab, "_is_loopback", lambda host: False)
    fetch(hub, tmp_path)
    assert len(hub.log) > len(PLAIN)
    assert {request.token for request in hub.log} == {None}
    hub.faults = {"": [Fault(status=401)]}
    told = r"401 Unauthorized\); write --endpoint with https://.*HF_TOKEN"
    with pytest.raises(QdmrError, match=told):
        fetch(hub, tmp_path)


def test_the_command_fails_with_one_line(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.files = {"Syn/gt/1.png": large(1), "Syn/gt/2.png": large(2)}
    hub.faults = {"Syn/gt/1.png": [Fault(wrong=True)] * 2, "Syn/gt/2.png": [Fault(cut=0)] * 99}
    words = ("--out", str(tmp_path), "--endpoint", hub.address)
    code, out, err = run_command(monkeypatch, capfd, *words)
    assert (code, out) == (1, "")
    (line,) = err.splitlines()
    assert line.startswith(f"qdmr: {hub.address}/datasets/Zhonghua/Realab: no usable answer")
