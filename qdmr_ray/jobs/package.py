"""What a job takes along: the code and settings of a folder, without data, runs and secrets.

In a git checkout these are the files that git tracks or would track; elsewhere all but hidden ones
and what is known to be none. They are copied to a folder of their own, so that what is shown is
what is uploaded.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from qdmr_ray.errors import QdmrError

# Folders that hold no code, wherever they lie.
NO_CODE = ("data", "runs", "node_modules", "__pycache__", "venv", "build", "dist")
# Weights, data, and what may be a secret.
NO_FILES = (
    *("*.pth", "*.pt", "*.safetensors", "*.onnx", "*.parquet", "*.zip", "*.tar", "*.gz"),
    *("*.pem", "*.key", "id_rsa*", "id_ed25519*", "*.tfevents.*", ".env", ".env.*", "credentials"),
)
# Ray takes no more than this from a client.
LARGEST_BYTES = 100 * 2**20


@dataclass(frozen=True)
class Upload:
    """Files to take along, relative to ``root``, and what was left out."""

    root: Path
    files: dict[PurePosixPath, int]
    left_out: tuple[PurePosixPath, ...]

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(self.files.values())

    def largest(self, count: int = 5) -> list[tuple[PurePosixPath, int]]:
        """The largest files, for who wonders what takes so long."""
        return sorted(self.files.items(), key=lambda item: -item[1])[:count]

    def copy_to(self, folder: Path) -> None:
        """Puts the files below ``folder``."""
        for name in self.files:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self.root / name, target)


def plan_upload(root: Path) -> Upload:
    """What a job takes along from ``root``.

    Raises:
        QdmrError: it is more than Ray takes; the largest files are named.
    """
    names = list(_tracked(root) or _walked(root, root))
    taken, left = {}, []
    for name in sorted(set(names)):
        path = root / name
        if _is_left_out(name):
            left.append(name)
        elif path.is_file():
            taken[name] = path.stat().st_size
    upload = Upload(root, taken, tuple(left))
    if upload.bytes > LARGEST_BYTES:
        largest = ", ".join(f"{name} ({size / 1e6:.0f} MB)" for name, size in upload.largest(3))
        raise QdmrError(
            f"{root}: a job would take {upload.bytes / 1e6:.0f} MB along, and at most "
            f"{LARGEST_BYTES / 1e6:.0f} MB can be; largest: {largest}; move data elsewhere, or "
            "name a folder with --code"
        )
    return upload


def _is_left_out(name: PurePosixPath) -> bool:
    # A folder called data inside a package is code (qdmr_ray/data).
    if name.parts[0] in NO_CODE or any(part in ("__pycache__", ".git") for part in name.parts):
        return True
    return any(fnmatchcase(name.name, pattern) for pattern in NO_FILES)


def _tracked(root: Path) -> list[PurePosixPath] | None:
    """What git knows or would add below ``root``; None where there is no git."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others"]
    try:
        done = subprocess.run([*command, "--exclude-standard"], capture_output=True, check=False)
    except OSError:
        return None
    if done.returncode != 0:
        return None
    return [PurePosixPath(name) for name in done.stdout.decode().split("\0") if name]


def _walked(root: Path, folder: Path) -> Iterator[PurePosixPath]:
    for path in sorted(folder.iterdir()):
        name = PurePosixPath(path.relative_to(root).as_posix())
        if path.name.startswith(".") or path.is_symlink():
            continue
        if path.is_dir():
            if path.name not in ("__pycache__",) and name.parts[0] not in NO_CODE:
                yield from _walked(root, path)
        else:
            yield name
