"""Results of stages that runs share: a stage that has been trained once is not trained again.

    STORE/vqgan-3f9c.../vqgan/final/      the result, as in a run folder
    STORE/vqgan-3f9c.../entry.json        what it is: stage, digest, settings
    STORE/vqgan-3f9c.../claims/           who trains it now

An entry is named by the digest of everything that determines its weights (``stage_digest``): the
settings of the stage and of those before it, the data, the seed, the number of workers and the
version of the method. A second run that needs the stage waits; if the first one's process dies,
the second takes over from the newest checkpoint.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from qdmr_ray.errors import QdmrError
from qdmr_ray.models.files import DESCRIPTION_FILE, WEIGHTS_FILE, read_description
from qdmr_ray.models.layout import FINAL_FOLDER, METRICS_FILE, PICTURES_FOLDER, TENSORBOARD_FOLDER
from qdmr_ray.storage import Location
from qdmr_ray.storage.claims import Claim, Claims
from qdmr_ray.untrusted import parse_object

ENTRY_FILE = "entry.json"
CLAIMS_FOLDER = "claims"
USES_FOLDER = "uses"
# The number of digits of the digest in a folder's name.
_DIGITS = 32
# A list shows a stage without a sign of life for so long as one that nobody trains. The sign was
# dated by another machine's clock, so nothing is deleted for that.
ALIVE_SECONDS = 600.0
FINISHED, TRAINING, UNFINISHED = "finished", "training", "unfinished"
_DAY = 86400.0


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One stage in the store; ``used`` is when a run last took or trained it, in seconds since
    1970."""

    place: Location
    stage: str
    digest: str
    state: str
    bytes: int
    used: float


class StageStore:
    """The stages below ``root``."""

    def __init__(self, root: Location) -> None:
        self.root = root

    def place(self, stage: str, digest: str) -> Location:
        """Returns the place of a stage's run folder."""
        return self.root.join(f"{stage}-{digest[:_DIGITS]}")

    def provide(
        self,
        stage: str,
        digest: str,
        settings: dict[str, Any],
        train: Callable[[Location, Claim], None],
        say: Callable[[str], None],
    ) -> Location:
        """Returns the run folder that holds the finished stage, once it is found, another run has
        finished it, or ``train``, called with that folder and a claim on it, has made it. Raises
        QdmrError where ``train`` does, or the store can't be used."""
        place = self.place(stage, digest)

        def finished() -> bool:
            return read_description(place.join(stage, FINAL_FOLDER)) is not None

        if not finished():
            claims = Claims(place.join(CLAIMS_FOLDER))
            claim = claims.acquire(finished, lambda whom: say(f"{stage}: {whom}, who trains it"))
            if claim is not None:
                with claim:
                    entry = {"stage": stage, "digest": digest, "settings": settings}
                    text = json.dumps(entry, indent=1).encode()
                    place.join(ENTRY_FILE).write_bytes_atomic(text)
                    train(place, claim)
        return place

    def note_use(self, place: Location, run: str) -> None:
        """Records that ``run`` uses the entry, for :meth:`entries` and :func:`prunable`."""
        name = "".join(c if c.isalnum() or c in "-_." else "-" for c in run)[-120:]
        note = json.dumps({"run": run, "time": time.time()}).encode()
        place.join(USES_FOLDER, f"{name}.json").write_bytes_atomic(note)

    def entries(self) -> Iterator[Entry]:
        """Yields every stage in the store, by name."""
        for place in self.root.list():
            file = place.join(ENTRY_FILE)
            if not file.exists():
                continue
            try:
                entry = parse_object(file.read_bytes())
            except ValueError as error:
                raise QdmrError(f"{file.uri}: is damaged ({error}); delete its folder") from error
            stage, digest = str(entry.get("stage")), str(entry.get("digest"))
            if place.name != self.place(stage, digest).name:
                told = "it names another stage than its folder"
                raise QdmrError(f"{file.uri}: is damaged ({told}); delete its folder")
            final = place.join(stage, FINAL_FOLDER)
            done = read_description(final) is not None
            holder = Claims(place.join(CLAIMS_FOLDER)).holder()
            alive = holder is not None and time.time() - holder["time"] < ALIVE_SECONDS
            used = [_time_in(note) for note in place.join(USES_FOLDER).list()]
            yield Entry(
                place=place,
                stage=stage,
                digest=digest,
                state=FINISHED if done else TRAINING if alive else UNFINISHED,
                bytes=_bytes_below(place),
                used=max([0.0, *used, *([holder["time"]] if holder else [])]),
            )


def copy_stage(place: Location, run: Location, stage: str) -> None:
    """Copies metrics, pictures and result of a finished stage from the entry at ``place`` to a run
    folder; the description comes last, so that half a copy is no result."""
    for parts in ((stage, PICTURES_FOLDER), (TENSORBOARD_FOLDER, stage)):
        for file in place.join(*parts).list():
            run.join(*parts, file.name).write_bytes_atomic(file.read_bytes())
    for names in ((METRICS_FILE,), (FINAL_FOLDER, WEIGHTS_FILE), (FINAL_FOLDER, DESCRIPTION_FILE)):
        data = place.join(stage, *names).read_bytes()
        run.join(stage, *names).write_bytes_atomic(data)


def prunable(entries: Iterator[Entry], *, unused_days: float, unfinished: bool) -> list[Entry]:
    """Returns the entries that nobody used for ``unused_days``, with ``unfinished`` also all that
    have no result and are not being trained. Where a stage seems to be abandoned, but another
    machine may be training it, its claim is watched for up to ``patience.CLAIM_STALE``."""
    limit = time.time() - unused_days * _DAY
    chosen = [
        entry
        for entry in entries
        if entry.state != TRAINING
        and (entry.used < limit or (unfinished and entry.state == UNFINISHED))
    ]
    held = _held([entry.place for entry in chosen if entry.state == UNFINISHED])
    return [entry for entry in chosen if entry.place not in held]


def _held(places: list[Location]) -> set[Location]:
    """Returns the entries that a living process is training, by this process's clock alone: all
    are watched at once, until each has shown life or was silent for long enough."""
    watched = {place: Claims(place.join(CLAIMS_FOLDER)) for place in places}
    held: set[Location] = set()
    while watched:
        answers = {place: claims.is_held() for place, claims in watched.items()}
        held |= {place for place, answer in answers.items() if answer}
        pending = {p: claims for p, claims in watched.items() if answers[p] is None}
        for claims in [*pending.values()][:1]:
            claims.wait()
        watched = pending
    return held


def _time_in(note: Location) -> float:
    """Returns when the run that left this note used the stage, 0 where it is damaged."""
    with suppress(ValueError, KeyError, TypeError):
        return float(parse_object(note.read_bytes())["time"])
    return 0.0


def _bytes_below(folder: Location) -> int:
    sizes = ((item, item.size()) for item in folder.list())
    return sum(_bytes_below(item) if size is None else size for item, size in sizes)
