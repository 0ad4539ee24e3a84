"""What a command that is to become a job says about itself, read as ``qdmr`` will read it there."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdmr_ray.errors import SettingsError

# Options and arguments that name places where a command writes, or goes on from.
WRITES = {
    "train": {"storage": "--storage", "store": "--store"},
    "sweep": {"storage": "--storage"},
    "demo": {"out": "--out"},
    "evaluate": {"run": "RUN", "out": "--out"},
}
# These make their files by themselves, on a disk.
ON_DISKS_ONLY = ("demo",)
_ANYWHERE = ("-v", "--verbose")


@dataclass(frozen=True)
class Command:
    """``qdmr NAME`` with the values of its options and arguments, defaults included."""

    name: str
    values: Mapping[str, Any]
    given: frozenset[str]


def parse_command(words: Sequence[str], qdmr: Any) -> Command | None:
    """The command if it is one of those in WRITES, by ``qdmr``'s own parser (a click group).

    Raises:
        SettingsError: it is one, and its usage is wrong.
    """
    words = [word for word in words if word not in _ANYWHERE]
    if len(words) < 2 or words[0] != "qdmr" or words[1] not in WRITES or "--help" in words:
        return None
    name = words[1]
    try:
        context = qdmr.commands[name].make_context(name, words[2:])
    except Exception as error:
        # typer brings a click of its own, or takes the installed one: their errors have this.
        if not hasattr(error, "format_message"):
            raise
        told = " ".join(error.format_message().split())
        raise SettingsError(f"qdmr {name}: {told}; qdmr {name} --help shows its usage") from None
    sources = {key: context.get_parameter_source(key) for key in context.params}
    given = frozenset(key for key, source in sources.items() if source.name != "DEFAULT")
    return Command(name, context.params, given)


def check_places(command: Command) -> None:
    """Whether what the job writes lies where it stays and the next job finds it.

    Raises:
        SettingsError: it would lie in the folder that Ray makes for the job.
    """
    for key, flag in WRITES[command.name].items():
        value = command.values.get(key)
        on_disk = command.name in ON_DISKS_ONLY
        if value is None or _stays(str(value), on_disk):
            continue
        given = f"{flag} {value}" if key in command.given else f"{flag} is {value} by default and"
        raise _temporary(f"qdmr {command.name}: {given}", on_disk)


def check_setting(file: Path, name: str, value: str) -> None:
    """The same for a setting of the file that a command names.

    Raises:
        SettingsError: what is written there would not stay.
    """
    if not _stays(value, on_disk=False):
        raise _temporary(f"{file}: {name}={value}", on_disk=False)


def _temporary(given: str, on_disk: bool) -> SettingsError:
    places = "" if on_disk else "s3://BUCKET/… or "
    return SettingsError(
        f"{given} lies in the job's temporary folder, which Ray deletes and the next job doesn't "
        f"see; name {places}an absolute path on a disk that all nodes share"
    )


def _stays(place: str, on_disk: bool) -> bool:
    if place.startswith("s3://"):
        return not on_disk
    return os.path.isabs(place.removeprefix("file://"))
