"""The places in S3 that a job is to read and write, looked at before it starts.

for place in places_of(words, parse_command(words, qdmr), Path("."), {}):
    check_bucket(place.uri, place.endpoint)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from qdmr_ray.errors import QdmrError
from qdmr_ray.jobs.command import Command, check_setting
from qdmr_ray.jobs.transfer import Unreachable, check_bucket, read_object
from qdmr_ray.storage import ENDPOINT_VARIABLE, S3_SCHEME

_ENDPOINT_SETTING = "data.s3_endpoint="


class Place(NamedTuple):
    """A place in S3 and the store's address; without one, what the environment says."""

    uri: str
    endpoint: str | None


def buckets_of(words: Sequence[str]) -> list[str]:
    """The s3 addresses among a command's words, such as ``--storage s3://…``."""
    found = [word[word.index(S3_SCHEME) :] for word in words if S3_SCHEME in word]
    return list(dict.fromkeys(found))


def places_of(
    words: Sequence[str], command: Command | None, code: Path, variables: Mapping[str, str]
) -> list[Place]:
    """Of a command of ours all that it and its experiment name, of others what stands in their
    words; one per bucket and store.

    Args:
        command: the same words as a command of ours, if they are one.
        code: the folder that goes along, in which the job starts.
        variables: the job's environment.

    Raises:
        QdmrError: the experiment's file can't be read, or a setting is wrong, such as a place that
            would not outlast the job.
    """
    read = {"train": _of_experiment, "sweep": _of_sweep, "evaluate": _of_run}
    own = variables.get(ENDPOINT_VARIABLE)
    found = None
    if command is not None and command.name in read:
        found = read[command.name](command, code, own)
    if found is None:
        found = [(uri, None) for uri in buckets_of(words)]
    places: dict[tuple[str, str | None], Place] = {}
    for uri, endpoint in found:
        if uri and uri.startswith(S3_SCHEME):
            bucket = uri.removeprefix(S3_SCHEME).partition("/")[0]
            place = Place(uri, endpoint or own)
            places.setdefault((bucket, place.endpoint), place)
    return list(places.values())


def check_places_in_s3(places: Iterable[Place], warn: Callable[[str], None]) -> None:
    """Looks at each bucket; a store that doesn't answer here may be one of the cluster's own, and
    is only warned about.

    Raises:
        QdmrError: no such bucket, no credentials, no right to it.
    """
    for place in places:
        try:
            check_bucket(place.uri, place.endpoint)
        except Unreachable as error:
            warn(f"{error}; going on, as the cluster may reach it (--no-check doesn't look)")


# Places, here or in S3, with the store's address where settings name one; None: nobody here knows.
_Found = list[tuple[str | None, str | None]] | None


def _of_experiment(command: Command, code: Path, _: str | None) -> _Found:
    from qdmr_ray.config import load_experiment

    values = command.values
    file = code / values["experiment"]
    if _is_elsewhere(file, values["experiment"]):
        return None
    data = load_experiment(file, values["overrides"] or (), name=values["name"]).data
    return [(uri, data.s3_endpoint) for uri in (values["storage"], values["store"], data.path)]


def _of_sweep(command: Command, code: Path, _: str | None) -> _Found:
    from qdmr_ray.sweeps.plan import load_sweep

    values = command.values
    file = code / values["file"]
    if _is_elsewhere(file, values["file"]):
        return None
    plan = load_sweep(file, values["overrides"] or (), name=values["name"])
    if plan.settings.store is not None:
        check_setting(values["file"], "store", plan.settings.store)
    data = plan.experiment({}, name="trial", seed=0).data
    uris = (values["storage"], plan.settings.store, data.path)
    return [(uri, data.s3_endpoint) for uri in uris]


def _of_run(command: Command, code: Path, own: str | None) -> _Found:
    """The data of a run are those that its own settings name, if they can be read from here."""
    from qdmr_ray.config import experiment_of_run

    run, data, out = (command.values[key] for key in ("run", "data", "out"))
    endpoint = None
    text = _config_text(run, own)
    if text is not None:
        # Settings of another version are no obstacle here; the job will say what it can't use.
        with contextlib.suppress(QdmrError):
            settings = experiment_of_run(text, run).data
            data, endpoint = data or settings.path, settings.s3_endpoint
    for override in command.values["overrides"] or ():
        if override.startswith(_ENDPOINT_SETTING):
            endpoint = override.removeprefix(_ENDPOINT_SETTING)
    # The run itself is looked for before its settings are known.
    return [(run, None), (data, endpoint), (out, endpoint)]


def _config_text(run: str, endpoint: str | None) -> str | None:
    if run.startswith(S3_SCHEME):
        return read_object(f"{run.rstrip('/')}/config.yaml", endpoint)
    file = Path(run.removeprefix("file://")) / "config.yaml"
    return file.read_text() if file.is_file() else None


def _is_elsewhere(file: Path, named: Path) -> bool:
    """Whether a file is one of the cluster's: such as one in its image."""
    return named.is_absolute() and not file.is_file()
