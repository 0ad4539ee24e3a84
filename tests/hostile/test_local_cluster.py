"""A folder of ``cluster/local/nodes.py`` that somebody else made, or that is damaged."""

import importlib.util
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from limits import files_below

SCRIPT = Path(__file__).parents[2] / "cluster" / "local" / "nodes.py"
GOOD = {"gcs": 20001, "dashboard": 20002, "processes": {}}


@pytest.fixture(scope="module")
def nodes() -> ModuleType:
    spec = importlib.util.spec_from_file_location("local_nodes", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder() -> Iterator[Path]:
    """A cluster's folder with a state, a token, and a file that ``up`` didn't write."""
    with tempfile.TemporaryDirectory(prefix="q", dir="/tmp") as parent:
        made = Path(parent) / "c"
        made.mkdir(mode=0o700)
        write(made, GOOD)
        (made / "token").write_text("a" * 64)
        yield made


def write(folder: Path, state: Any) -> None:
    (folder / "state.json").write_text(state if isinstance(state, str) else json.dumps(state))


def said(capsys: pytest.CaptureFixture[str], nodes: ModuleType, *words: Any) -> tuple[str, str]:
    """What a command printed, which ended with exit code 1."""
    with pytest.raises(SystemExit) as stopped:
        nodes.main([str(word) for word in words])
    assert stopped.value.code == 1
    out, error = capsys.readouterr()
    assert error.count("\n") == 1
    assert error.rstrip("\n").isprintable()
    return out, error


def is_foreign(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Only root could make a folder of another user; this process is another one instead.
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)


def is_open(folder: Path, _: pytest.MonkeyPatch) -> None:
    folder.chmod(0o777)


def is_readable_by_a_group(folder: Path, _: pytest.MonkeyPatch) -> None:
    folder.chmod(0o750)


def is_a_link(folder: Path, _: pytest.MonkeyPatch) -> None:
    folder.symlink_to(folder.rename(folder.with_name("elsewhere")))


@pytest.mark.parametrize("command", ["status", "down", "up"])
@pytest.mark.parametrize(
    ("made", "told"),
    [
        (is_foreign, "belongs to another user"),
        (is_open, r"others may use it (mode 777)"),
        (is_readable_by_a_group, r"others may use it (mode 750)"),
        (is_a_link, "is no folder"),
    ],
)
def test_a_folder_that_others_may_have_written_is_refused(
    command: str,
    made: Callable[[Path, pytest.MonkeyPatch], None],
    told: str,
    nodes: ModuleType,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = files_below(folder)
    made(folder, monkeypatch)
    out, error = said(capsys, nodes, command, "--folder", folder)
    assert (out, told in error) == ("", True), error
    assert files_below(folder) == before


STATES = {
    "a command as port": GOOD | {"gcs": "1; touch X"},
    "a number in a text as port": GOOD | {"gcs": "20001"},
    "true as port": GOOD | {"gcs": True},
    "a fraction as port": GOOD | {"dashboard": 20001.5},
    "a port above 65535": GOOD | {"dashboard": 65536},
    "a negative port": GOOD | {"dashboard": -1},
    "no port": {"gcs": 20001, "processes": {}},
    "a port that is a host": GOOD | {"dashboard": "1@example.com"},
    "not a number": '{"gcs": NaN, "dashboard": 1, "processes": {}}',
    "a number of 5000 digits": '{"gcs": ' + "1" * 5000 + "}",
    "a node's name that leads out": GOOD | {"processes": {"../../home": [1, 1]}},
    "a node's name that is a path": GOOD | {"processes": {"/etc": [1, 1]}},
    "a node's name with a line break": GOOD | {"processes": {"head\n": [1, 1]}},
    "a process group": GOOD | {"processes": {"head": [-1, 1]}},
    "a process of one number": GOOD | {"processes": {"head": [1]}},
    "a process of three numbers": GOOD | {"processes": {"head": [1, 2, 3]}},
    "a process id in a text": GOOD | {"processes": {"head": ["1", 1]}},
    "processes in a list": GOOD | {"processes": [[1, 1]]},
    "a list": [],
    "nothing": "",
    "half of it": json.dumps(GOOD)[:20],
    "ten thousand levels": "[" * 10_000,
}


@pytest.mark.parametrize("command", ["status", "down"])
@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_a_state_that_up_does_not_write_is_refused(
    command: str, state: Any, nodes: ModuleType, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, state)
    before = files_below(folder)
    out, error = said(capsys, nodes, command, "--folder", folder)
    assert out == ""
    assert f"{folder}/state.json: is not what" in error
    assert files_below(folder) == before


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_state_that_is_no_file_is_refused(
    kind: str, nodes: ModuleType, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder / "state.json"
    file.rename(folder / "real.json")
    {"link": lambda: file.symlink_to("real.json"), "pipe": lambda: os.mkfifo(file)}.get(
        kind, file.mkdir
    )()
    assert "is not what" in said(capsys, nodes, "status", "--folder", folder)[1]


def test_down_ends_no_process_that_is_not_a_node_of_this_folder(
    nodes: ModuleType, folder: Path
) -> None:
    stranger = subprocess.Popen(["sleep", "60"])
    other = [sys.executable, "-c", "import time; time.sleep(60)", f"--temp-dir={folder}2/head"]
    neighbour = subprocess.Popen(other)
    try:
        started = {"head": stranger, "worker1": neighbour}
        processes = {n: (p.pid, nodes._started_at(p.pid)) for n, p in started.items()}
        write(folder, GOOD | {"processes": processes})
        nodes.main(["down", "--folder", str(folder)])
        assert stranger.poll() is None
        assert neighbour.poll() is None
    finally:
        for process in (stranger, neighbour):
            process.kill()
            process.wait()
    assert not folder.exists()


def test_down_ends_the_node_of_this_folder(nodes: ModuleType, folder: Path) -> None:
    words = [sys.executable, "-c", "import time; time.sleep(60)", f"--temp-dir={folder}/head"]
    node = subprocess.Popen(words, start_new_session=True)
    try:
        write(folder, GOOD | {"processes": {"head": (node.pid, nodes._started_at(node.pid))}})
        nodes.main(["down", "--folder", str(folder)])
        assert node.wait(1) == -15
    finally:
        node.kill()
        node.wait()


def test_down_deletes_what_up_wrote_and_nothing_else(
    nodes: ModuleType, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, GOOD | {"processes": {"head": (2**31, 1), "worker1": (2**31, 1)}})
    (folder / "head").mkdir()
    (folder / "head" / "session").write_text("x")
    (folder / "worker1").symlink_to(folder.parent)
    (folder / "head.log").write_text("x")
    (folder / "thesis.tex").write_text("years of work")
    nodes.main(["down", "--folder", str(folder)])
    assert files_below(folder) == {"thesis.tex": b"years of work"}
    assert "stays, as other files are there" in capsys.readouterr().err


def test_a_token_is_not_sent_to_whoever_has_the_dead_head_s_port(
    nodes: ModuleType,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(folder, GOOD | {"processes": {}})
    monkeypatch.setattr(nodes, "_nodes", lambda *_: pytest.fail("asked"))
    assert "has no head" in said(capsys, nodes, "status", "--folder", folder)[1]


TOKENS = {"no letter": "", "63 letters": "a" * 63, "letters with accents": "é" * 64}
TOKENS["another header behind it"] = "a" * 64 + "\r\nHost: x"


@pytest.mark.parametrize("token", TOKENS.values(), ids=TOKENS.keys())
def test_a_token_that_up_does_not_write_is_not_sent(
    token: str, nodes: ModuleType, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "token").write_text(token)
    with pytest.raises(SystemExit):
        nodes._read_token(folder)
    assert "holds no token" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["$(touch X)", "a;touch X", "a b", "`touch X`", "a\ntouch X", "'"])
def test_a_shell_that_evaluates_the_exports_runs_nothing_else(
    name: str, nodes: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes._print_exports(Path("/tmp") / name, GOOD)
    lines = capsys.readouterr().out
    script = f'eval {shlex.quote(lines)}; printf %s "$RAY_AUTH_TOKEN_PATH"'
    done = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == f"/tmp/{name}/token"
    assert not list(tmp_path.iterdir())


def test_a_cluster_whose_start_breaks_off_leaves_nothing(
    nodes: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(nodes, "LONGEST_FOLDER", 1000)
    monkeypatch.setattr(nodes, "_ray", lambda: nodes._stop("Ray is not installed"))
    with pytest.raises(SystemExit):
        nodes.main(["up", "--folder", str(tmp_path / "c")])
    assert "Ray is not installed" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()
