"""The version of the running code: release, commit, and whether the working tree was changed."""

import os
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from qdmr_ray import __version__

_CHANGED = "-dirty"


@dataclass(frozen=True)
class CodeVersion:
    """``commit`` is None outside a git checkout, such as in an installed wheel."""

    version: str
    commit: str | None = None
    changed: bool = False

    def __str__(self) -> str:
        """Returns the word that files keep, a Python version: ``0.1.0+g1c548cb12345.changed``."""
        if self.commit is None:
            return self.version
        return f"{self.version}+g{self.commit}{'.changed' if self.changed else ''}"

    def line(self) -> str:
        """Returns the line that ``qdmr --version`` prints."""
        commit = "" if self.commit is None else f", commit {self.commit}"
        return f"qdmr {self.version}{commit}{', changed' if self.changed else ''}"


def code_version() -> str:
    """Returns the version as files keep it."""
    return str(_read(Path(__file__).resolve().parents[1]))


def version_line() -> str:
    """Returns the version as people read it."""
    return _read(Path(__file__).resolve().parents[1]).line()


@cache
def _read(root: Path) -> CodeVersion:
    """Returns the version of the package in ``root``, with git's commit if ``root`` itself is a
    checkout: a package installed below another project's checkout must not take that project's
    commit for its own. ``.git`` is a file in a worktree."""
    word = ""
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
        # Reading must not write: several processes may ask at the same time.
        quiet = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        # Twelve hexadecimal digits of a commit, as many as run folders have always kept.
        command.append("--abbrev=12")
        with suppress(OSError, subprocess.CalledProcessError):
            word = subprocess.run(
                command, capture_output=True, text=True, check=True, env=quiet
            ).stdout.strip()
    return CodeVersion(__version__, word.removesuffix(_CHANGED) or None, word.endswith(_CHANGED))
