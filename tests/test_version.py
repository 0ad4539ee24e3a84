"""The version that run folders keep: with the commit in a checkout, alone elsewhere."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from qdmr_ray import __version__
from qdmr_ray.version import CodeVersion, _read, from_git


def git(folder: Path, *words: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    done = subprocess.run(
        ["git", *identity, "-C", str(folder), *words], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "code.py").write_text("a = 1\n")
    git(folder, "add", "code.py")
    git(folder, "commit", "-q", "-m", "first")
    _read.cache_clear()
    return folder


def test_a_checkout_has_a_commit_and_says_when_it_was_changed(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")[:12]
    # Packed references and other files than the tracked ones change nothing.
    git(checkout, "pack-refs", "--all")
    (checkout / "note.txt").write_text("untracked")
    clean = _read(checkout)
    assert (str(clean), clean.line()) == (
        f"{__version__}+g{commit}",
        f"qdmr {__version__}, commit {commit}",
    )
    _read.cache_clear()
    (checkout / "code.py").write_text("a = 2\n")
    changed = _read(checkout)
    assert (str(changed), changed.line()) == (
        f"{__version__}+g{commit}.changed",
        f"qdmr {__version__}, commit {commit}, changed",
    )


def test_changes_are_told_apart_by_their_digest(checkout: Path) -> None:
    git(checkout, "checkout", "-q", "-b", "lens")
    assert from_git(checkout).origin().keys() == {"commit", "branch"}
    assert from_git(checkout).branch == "lens"
    digests = []
    for content in ("a = 2\n", "a = 3\n", "a = 2\n"):
        (checkout / "code.py").write_text(content)
        digests.append(from_git(checkout).diff)
    assert digests[0] == digests[2] != digests[1]
    git(checkout, "checkout", "-q", "--detach")
    assert from_git(checkout).branch is None


def test_a_copy_without_history_knows_where_it_is_from(checkout: Path, tmp_path: Path) -> None:
    (checkout / "code.py").write_text("a = 2\n")
    copy = tmp_path / "copy"
    (copy / "qdmr_ray").mkdir(parents=True)
    origin = copy / "qdmr_ray" / "_origin.json"
    origin.write_text(json.dumps(from_git(checkout).origin()))
    assert _read(copy) == from_git(checkout)
    for content in ("", "[1]", '{"commit": 7}', json.dumps({"branch": "x" * 1000})):
        origin.write_text(content)
        _read.cache_clear()
        assert _read(copy) == CodeVersion(__version__)


def test_a_worktree_has_its_own_commit(checkout: Path, tmp_path: Path) -> None:
    git(checkout, "worktree", "add", "-q", str(tmp_path / "other"))
    (tmp_path / "other" / "code.py").write_text("a = 3\n")
    git(tmp_path / "other", "commit", "-q", "-a", "-m", "second")
    assert _read(tmp_path / "other").commit == git(tmp_path / "other", "rev-parse", "HEAD")[:12]


def test_elsewhere_there_is_the_version_alone(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A wheel installed somewhere below a checkout is not that checkout's code.
    (checkout / "site-packages").mkdir()
    assert _read(checkout / "site-packages") == CodeVersion(__version__)
    monkeypatch.setenv("PATH", "")  # no git
    alone = _read(checkout)
    assert (str(alone), alone.line()) == (__version__, f"qdmr {__version__}")
