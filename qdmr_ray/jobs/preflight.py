"""Checks of a command before it becomes a job: where it writes, and what it reads. ``qdmr``'s own
parser reads the command line, as it will in the job.

    command = parse_command(["qdmr", "train", "x.yaml", "--storage", "s3://b/runs"], qdmr)
    check_places(command)
    check_buckets(places_of(words, command, Path("."), {}), print)
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from qdmr_ray.errors import QdmrError, SettingsError
from qdmr_ray.jobs.transfer import Unreachable, check_bucket, read_object
from qdmr_ray.storage import ENDPOINT_VARIABLE, S3_SCHEME, open_location

# Options and arguments that name the places where a command writes, or resumes from.
WRITES = {
    "train": {"storage": "--storage", "store": "--store"},
    "sweep": {"storage": "--storage"},
    "demo": {"out": "--out"},
    "evaluate": {"run": "RUN", "out": "--out"},
}
# These commands write to disks only.
ON_DISKS_ONLY = ("demo",)
_ENDPOINT_SETTING = "data.s3_endpoint="
_SOURCE_LENS_SETTING = "evaluation.source_lens="


@dataclass(frozen=True)
class Command:
    """``qdmr NAME`` with the values of its options and arguments, defaults included."""

    name: str
    values: Mapping[str, Any]
    given: frozenset[str]


class Place(NamedTuple):
    """A place in S3 and the store's address; without an address, the environment's counts."""

    uri: str
    endpoint: str | None


def parse_command(words: Sequence[str], qdmr: Any) -> Command | None:
    """Parses the words of a ``qdmr`` command of WRITES; returns None for any other command.
    ``qdmr`` is the command line's root group. Raises SettingsError if the usage of the command is
    wrong."""
    program, *rest = words
    if program != "qdmr":
        return None
    # Options of ``qdmr`` itself stand before the command's name.
    while rest and rest[0] in ("-v", "--verbose"):
        rest.pop(0)
    if not rest or rest[0] not in WRITES or "--help" in rest:
        return None
    name = rest[0]
    try:
        context = qdmr.commands[name].make_context(name, rest[1:])
    except Exception as error:
        # typer's errors of usage have this method; its class of them is private.
        if not hasattr(error, "format_message"):
            raise
        told = " ".join(error.format_message().split())
        raise SettingsError(f"qdmr {name}: {told}; qdmr {name} --help shows its usage") from None
    sources = {key: context.get_parameter_source(key) for key in context.params}
    given = frozenset(key for key, source in sources.items() if source.name != "DEFAULT")
    return Command(name, context.params, given)


def check_places(command: Command) -> None:
    """Checks that the job's output outlasts the job, at a place where the next job finds it; raises
    SettingsError if it would lie in the folder that Ray makes for the job."""
    on_disk = command.name in ON_DISKS_ONLY
    for key, flag in WRITES[command.name].items():
        value = command.values.get(key)
        if value is None or _stays(str(value), on_disk):
            continue
        given = f"{flag} {value}" if key in command.given else f"{flag} is {value} by default and"
        raise _temporary(f"qdmr {command.name}: {given}", on_disk)


def places_of(
    words: Sequence[str], command: Command | None, code: Path, variables: Mapping[str, str]
) -> list[Place]:
    """Returns the places in S3 that a job will use, one per bucket and store: those that a ``qdmr``
    command and its experiment name, or the s3 addresses among the words of any other command. The
    job starts in ``code``, the folder that is uploaded, with the environment ``variables``. Raises
    QdmrError where the experiment's file can't be read, or a setting is wrong, such as a place that
    would not outlast the job."""
    read = {"train": _of_file, "sweep": _of_file, "evaluate": _of_run}
    own = variables.get(ENDPOINT_VARIABLE)
    found = None
    if command is not None and command.name in read:
        found = read[command.name](command.values, code, own)
    if found is None:
        found = [(word[word.index(S3_SCHEME) :], None) for word in words if S3_SCHEME in word]
    places: dict[tuple[str, str | None], Place] = {}
    for uri, endpoint in found:
        if uri and uri.startswith(S3_SCHEME):
            bucket, store = uri.removeprefix(S3_SCHEME).partition("/")[0], endpoint or own
            places.setdefault((bucket, store), Place(uri, store))
    return list(places.values())


def output_folder(command: Command | None, code: Path) -> str | None:
    """Returns the run or sweep folder that a command will write, started in the folder ``code``;
    None where it writes none, or its experiment lies on the cluster only or can't be read."""
    if command is None:
        return None
    values = command.values
    if command.name == "demo":
        return open_location(values["out"]).uri
    if command.name not in ("train", "sweep"):
        return None
    with contextlib.suppress(QdmrError, OSError):
        name = values["name"] or _name_in_file(command, code)
        return open_location(values["storage"]).join(name).uri
    return None


def _name_in_file(command: Command, code: Path) -> str:
    from qdmr_ray.config import load_experiment
    from qdmr_ray.sweeps.plan import load_sweep

    overrides = command.values["overrides"] or ()
    if command.name == "train":
        return load_experiment(code / command.values["experiment"], overrides).name
    return load_sweep(code / command.values["file"], overrides).settings.name


def check_buckets(places: Iterable[Place], warn: Callable[[str], None]) -> None:
    """Checks that each bucket exists and can be read with this machine's credentials. A store that
    doesn't answer here causes only a warning, since perhaps only the cluster reaches it. Raises
    QdmrError for no such bucket, no credentials or no right to it."""
    for place in places:
        try:
            check_bucket(place.uri, place.endpoint)
        except Unreachable as error:
            warn(f"{error}; going on, as the cluster may reach it (--no-check doesn't look)")


# Places, here or in S3, with the store's address if settings name one; None if unknown here.
_Found = list[tuple[str | None, str | None]] | None
_Values = Mapping[str, Any]


def _of_file(values: _Values, code: Path, _: str | None) -> _Found:
    """Returns the places of an experiment, or of a sweep and its trials."""
    from qdmr_ray.config import load_experiment
    from qdmr_ray.sweeps.plan import load_sweep

    named: Path = values.get("experiment") or values["file"]
    if named.is_absolute() and not named.is_file():
        return None  # It lies on the cluster only, such as in its image.
    overrides, name = values["overrides"] or (), values["name"]
    if "experiment" in values:
        store, experiment = values["store"], load_experiment(code / named, overrides, name=name)
    else:
        plan = load_sweep(code / named, overrides, name=name)
        store, experiment = plan.settings.store, plan.experiment({}, name="trial", seed=0)
        if store is not None and not _stays(store, on_disk=False):
            raise _temporary(f"{named}: store={store}", on_disk=False)
    data = experiment.data
    found = values["storage"], store, data.path, experiment.evaluation.source_lens
    return [(uri, data.s3_endpoint) for uri in found]


def _of_run(values: _Values, code: Path, own: str | None) -> _Found:
    """Returns a run's places; its own settings name the data, if they can be read from here."""
    from qdmr_ray.config import experiment_of_run

    run, data, out = (values[key] for key in ("run", "data", "out"))
    endpoint = source_lens = None
    text = _config_text(run, own)
    if text is not None:
        # Settings of another version don't matter here; the job itself reports what it can't use.
        with contextlib.suppress(QdmrError):
            experiment = experiment_of_run(text, run)
            data, endpoint = data or experiment.data.path, experiment.data.s3_endpoint
            source_lens = experiment.evaluation.source_lens
    for override in values["overrides"] or ():
        if override.startswith(_ENDPOINT_SETTING):
            endpoint = override.removeprefix(_ENDPOINT_SETTING)
        if override.startswith(_SOURCE_LENS_SETTING):
            source_lens = override.removeprefix(_SOURCE_LENS_SETTING)
    # The run itself is opened before its settings are known.
    return [(run, None), (data, endpoint), (out, endpoint), (source_lens, endpoint)]


def _config_text(run: str, endpoint: str | None) -> str | None:
    if run.startswith(S3_SCHEME):
        return read_object(f"{run.rstrip('/')}/config.yaml", endpoint)
    file = Path(run.removeprefix("file://")) / "config.yaml"
    return file.read_text() if file.is_file() else None


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
