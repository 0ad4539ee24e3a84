"""The files that a job uploads: a folder's code and settings, without data, runs and secrets. In a
git checkout these are the tracked files, and those untracked ones that git doesn't ignore and whose
names don't suggest a secret. Elsewhere they are all files but hidden ones, known data, and those
whose names suggest a secret. The files are copied into a folder of their own, so that exactly the
files shown are uploaded."""

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from qdmr_ray.errors import QdmrError
from qdmr_ray.jobs.sensitive import NotSecret, may_be_secret

# Names are compared in lower case. These folders hold no code at the top of a project ...
NO_CODE = ("data", "runs", "node_modules", "__pycache__", "venv", "build", "dist")
# ... and these hold none at any depth, unless git tracks them or they are Python packages.
NO_CODE_INSIDE = ("data", "runs", "node_modules", "venv", "build", "dist")
# Weights and data.
NO_FILES = (
    *("*.pth", "*.pt", "*.safetensors", "*.onnx", "*.parquet", "*.zip", "*.tar", "*.gz"),
    "*.tfevents.*",
)
# Folders and files in which programs keep their users' keys, passwords and tokens.
SECRET_FOLDERS = (
    *(".aws", ".azure", ".docker", ".gcloud", ".gnupg", ".huggingface", ".kube", ".oci", ".ssh"),
    *(".secrets", "secrets", ".credentials", "credentials", ".terraform"),
)
SECRET_FILES = (
    *(".env", ".env.*", "*.env", ".envrc", ".netrc", "_netrc", ".git-credentials", ".pypirc"),
    *(".npmrc", ".yarnrc*", ".pgpass", ".my.cnf", ".htpasswd", ".boto", ".s3cfg", ".dockercfg"),
    *(".dockerconfigjson", ".vault*", "rclone.conf", "kubeconfig*", "*.kubeconfig"),
    *("*.pem", "*.key", "*.p8", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.ppk", "*.kdbx"),
    *("*.gpg", "*.asc", "*.ovpn", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*"),
    *("*.tfvars", "*.tfvars.json", "*.tfstate", "*.tfstate.*"),
    *("credentials", "*credentials.*", "*accesskeys.csv", "client_secret*", "*service_account*"),
    *("*service-account*", "token", "*_token", "*-token", "*.token", "token.*", "*_token.*"),
    *("*-token.*", "secret", "secrets", "*.secret", "*.secrets", "secret.*", "secrets.*"),
    *("*_secret.*", "*_secrets.*", "*-secret.*", "*-secrets.*", "password*", "*passwords.*"),
)
# Source files that git tracks are never secrets: token.py is then about tokens, and holds none.
PROGRAMS = ("*.py", "*.pyi", "*.c", "*.cc", "*.cpp", "*.cu", "*.cuh", "*.h", "*.hpp")
# The largest upload that Ray accepts.
LARGEST_BYTES = 100 * 2**20


@dataclass(frozen=True)
class Upload:
    """Files to upload with their sizes, relative to ``root``, and what is left out."""

    root: Path
    files: dict[PurePosixPath, int]
    # Files that may hold a secret; users are told each name.
    secrets: tuple[PurePosixPath, ...]
    # Data, runs, weights, and other hidden or foreign things.
    left_out: tuple[PurePosixPath, ...]

    @property
    def bytes(self) -> int:
        """The size of all files."""
        return sum(self.files.values())

    def left_out_counts(self) -> dict[str, int]:
        """Counts the files that are left out, by top-level folder; top-level files by name."""
        return Counter(
            f"{name.parts[0]}/" if len(name.parts) > 1 else name.name for name in self.left_out
        )

    def copy_to(self, folder: Path) -> None:
        """Copies the files below ``folder``."""
        for name in self.files:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self.root / name, target)


def plan_upload(root: Path, not_secret: NotSecret | None = None) -> Upload:
    """Chooses the files that a job uploads from ``root``, also those of ``not_secret`` whose names
    suggest a secret; raises QdmrError, which names the largest, if they are more than Ray accepts.
    """
    not_secret = not_secret or NotSecret()
    tracked = set(_git_files(root, "--cached"))
    others = set(_git_files(root, "--others", "--exclude-standard")) - tracked
    names = tracked | others or set(_walked(root, root))
    taken, secret, left = {}, [], []
    for name in sorted(names):
        path = root / name
        if not path.is_file():
            continue
        # A link is uploaded as the file that it leads to.
        real = _real(root, name)
        suspects = any(_may_be_secret(it, it in tracked) for it in {name, real or name})
        if name not in not_secret and suspects:
            secret.append(name)
        elif real is None or any(_is_no_code(root, it, it in tracked) for it in {name, real}):
            left.append(name)
        else:
            taken[name] = path.stat().st_size
    upload = Upload(root, taken, tuple(secret), tuple(left))
    if upload.bytes > LARGEST_BYTES:
        by_size = sorted(upload.files.items(), key=lambda item: -item[1])
        largest = ", ".join(f"{name} ({size / 1e6:.0f} MB)" for name, size in by_size[:3])
        raise QdmrError(
            f"{root}: a job would take {upload.bytes / 1e6:.0f} MB along, and at most "
            f"{LARGEST_BYTES / 1e6:.0f} MB can be; largest: {largest}; move data elsewhere, or "
            "name a folder with --code"
        )
    return upload


def _may_be_secret(name: PurePosixPath, is_tracked: bool) -> bool:
    *folders, file = (part.lower() for part in name.parts)
    if is_tracked and _matches(file, PROGRAMS):
        return False
    if any(folder in SECRET_FOLDERS for folder in folders) or _matches(file, SECRET_FILES):
        return True
    # Tracked files are meant to be shared.
    return not is_tracked and any(may_be_secret(part) for part in name.parts)


def _is_no_code(root: Path, name: PurePosixPath, is_tracked: bool) -> bool:
    *folders, file = (part.lower() for part in name.parts)
    if (folders and folders[0] in NO_CODE) or _matches(file, NO_FILES):
        return True
    if any(folder in ("__pycache__", ".git") for folder in folders):
        return True
    if is_tracked:
        return False
    # Ray follows .gitignore, too.
    if any(part.startswith(".") for part in (*folders, file)) and file != ".gitignore":
        return True
    # A folder called data inside a package is code (qdmr_ray/data).
    return any(
        folder in NO_CODE_INSIDE and not root.joinpath(*name.parts[:depth], "__init__.py").exists()
        for depth, folder in enumerate(folders, start=1)
    )


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _real(root: Path, name: PurePosixPath) -> PurePosixPath | None:
    """Returns a file's real place below ``root``, or None if a link leads out of it."""
    if not (root / name).is_symlink():
        return name
    real, top = (root / name).resolve(), root.resolve()
    return PurePosixPath(real.relative_to(top)) if real.is_relative_to(top) else None


def _git_files(root: Path, *which: str) -> list[PurePosixPath]:
    """Returns the files that git lists below ``root``; none without git."""
    command = ["git", "-C", str(root), "ls-files", "-z", *which]
    try:
        listed = subprocess.run(command, capture_output=True, check=True).stdout.split(b"\0")
    except (OSError, subprocess.CalledProcessError):
        return []
    return [PurePosixPath(os.fsdecode(name)) for name in listed if name]


def _walked(root: Path, folder: Path) -> Iterator[PurePosixPath]:
    for path in sorted(folder.iterdir()):
        name = PurePosixPath(path.relative_to(root).as_posix())
        if path.is_dir():
            # These aren't listed: data can be millions of files, and links lead anywhere.
            hidden = path.name.startswith(".") or path.is_symlink()
            if not hidden and name.parts[0].lower() not in NO_CODE:
                yield from _walked(root, path)
        else:
            yield name
