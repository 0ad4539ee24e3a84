"""The folder that a job writes, as others name it: a job's metadata, or its log, in which anything
may stand, names of files too. ``qdmr submit`` puts the folder into the metadata
(``output_folder`` in ``qdmr_ray/jobs/preflight.py``); only for other commands, such as a script,
the log is read.

    folder_in_log("bash all.sh", "run folder /runs/one\\n")
"""

import os
import re
import shlex
import unicodedata
from pathlib import PurePosixPath

from qdmr_ray.storage import S3_SCHEME

# The lines in which commands of this package name the folder that they write.
_LINE = re.compile(
    r"^(?:run|sweep) folder (?P<folder>(?:/|s3://).*?)(?:, report (?P=folder)/report\.html)?$", re.M
)
_LONGEST_NAME = 255


def folder_in_log(command: str, log: str) -> str | None:
    """Returns the last folder that a job's log names, where its command may write it."""
    for line in reversed(list(_LINE.finditer(log))):
        folder = normal_folder(line["folder"])
        if folder is not None and _may_write(command, folder):
            return folder
    return None


def normal_folder(folder: str) -> str | None:
    """Returns an absolute path or address in S3 without ``..`` and the like, None for any other
    text. Its last part can be the name of a folder here."""
    if folder.startswith(S3_SCHEME):
        inside = folder.removeprefix(S3_SCHEME).rstrip("/")
        return f"{S3_SCHEME}{inside}" if inside and is_plain(inside) else None
    path = os.path.normpath(folder)
    # POSIX gives two leading slashes a meaning of their own, which no file system here knows.
    path = "/" + path.lstrip("/") if path.startswith("/") else path
    return path if path.startswith("/") and is_plain(path[1:]) else None


def is_plain(name: str) -> bool:
    """Returns whether a relative name leads to a file below the folder that it is joined to, on any
    disk: no empty part, ``..`` or ``.git``, no control character, no part above 255 bytes."""
    return not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name) and all(
        part.lower() not in ("", ".", "..", ".git") and len(part.encode()) <= _LONGEST_NAME
        for part in name.split("/")
    )


def _may_write(command: str, folder: str) -> bool:
    """Returns whether ``folder`` lies where the job's command writes; always true for other
    commands than ``qdmr``. Libraries and file names may print lines that look like this
    package's."""
    try:
        words = shlex.split(command)
    except ValueError:
        return not command.startswith("qdmr ")
    if words[:1] != ["qdmr"] and words[:3] != ["python", "-m", "qdmr_ray.cli"]:
        return True
    values = (word.partition("=")[2] if word.startswith("--") else word for word in words)
    places = (normal_folder(value) for value in values)
    return any(
        place and PurePosixPath(folder).is_relative_to(PurePosixPath(place)) for place in places
    )
