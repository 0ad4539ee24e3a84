"""The version of the running code: release, commit, branch, and what was changed since.

    python -m qdmr_ray.version > qdmr_ray/_origin.json

A copy of the package without its git history, as a job or an image has it, keeps the file
``_origin.json``: ``qdmr submit`` and the image's build write it.
"""

import hashlib
import json
import os
import subprocess
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

from qdmr_ray import __version__

ORIGIN_FILE = "_origin.json"
_ROOT = Path(__file__).resolve().parents[1]
_LONGEST_WORD = 200


@dataclass(frozen=True)
class CodeVersion:
    """``commit`` is None outside a git checkout, such as in an installed wheel, and ``branch`` also
    where no branch is checked out. ``diff`` is the start of the SHA-256 of ``git diff HEAD``, None
    where nothing was changed."""

    version: str
    commit: str | None = None
    branch: str | None = None
    diff: str | None = None

    def __str__(self) -> str:
        """Returns the word that files keep, a Python version: ``0.1.0+g1c548cb12345.changed``."""
        if self.commit is None:
            return self.version
        return f"{self.version}+g{self.commit}{'.changed' if self.diff else ''}"

    def line(self) -> str:
        """Returns the line that ``qdmr --version`` prints."""
        commit = "" if self.commit is None else f", commit {self.commit}"
        return f"qdmr {self.version}{commit}{', changed' if self.diff else ''}"

    def origin(self) -> dict[str, str]:
        """Returns what is known beside the release, as texts by their names."""
        return {name: text for name, text in asdict(self).items() if text and name != "version"}


def code_version() -> str:
    """Returns the version as files keep it."""
    return str(_read(_ROOT))


def version_line() -> str:
    """Returns the version as people read it."""
    return _read(_ROOT).line()


def running_code() -> CodeVersion:
    """Returns the version of the running package."""
    return _read(_ROOT)


@cache
def _read(root: Path) -> CodeVersion:
    """Returns the version of the package in ``root``, with git's commit if ``root`` itself is a
    checkout: a package installed below another project's checkout must not take that project's
    commit for its own. ``.git`` is a file in a worktree."""
    if (root / ".git").exists():
        return from_git(root)
    found = {}
    with suppress(OSError, ValueError):
        found = json.loads((root / "qdmr_ray" / ORIGIN_FILE).read_bytes())
    alone = CodeVersion(__version__)
    if not isinstance(found, dict):
        return alone
    words = {name: found.get(name) for name in ("commit", "branch", "diff")}
    known = {n: w for n, w in words.items() if isinstance(w, str) and len(w) <= _LONGEST_WORD}
    return replace(alone, **known)


def from_git(folder: Path) -> CodeVersion:
    """Returns the version of the checkout that ``folder`` is or lies in; the release alone where it
    is none, or there is no git."""

    def git(*words: str) -> bytes:
        # Reading must not write: several processes may ask at the same time.
        quiet = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, check=True, env=quiet).stdout

    try:
        # Twelve hexadecimal digits of a commit, as many as run folders have always kept.
        commit = git("rev-parse", "--short=12", "HEAD").decode().strip()
        diff = git("diff", "--no-ext-diff", "--no-textconv", "--binary", "HEAD", "--")
        branch = git("branch", "--show-current").decode().strip()
    except (OSError, subprocess.CalledProcessError):
        return CodeVersion(__version__)
    digest = hashlib.sha256(diff).hexdigest()[:12] if diff else None
    return CodeVersion(__version__, commit, branch or None, digest)


if __name__ == "__main__":
    print(json.dumps(from_git(_ROOT).origin()))
