"""Results of stages that runs share: a stage that has been trained once is not trained again.

    STORE/vqgan-3f9c.../vqgan/final/      the result, as in a run folder
    STORE/vqgan-3f9c.../entry.json        what it is: stage, digest, settings
    STORE/vqgan-3f9c.../claims/           who trains it now

An entry is named by the digest of everything that determines its weights (``stage_digest``): the
settings of the stage and of those before it, the data, the seed, the number of workers and the
version of the method. A second run that needs the stage waits; if the first one's process dies,
the second takes over from the newest checkpoint.

Times of use are those that the store or its disk gives the files, and are compared with its own
clock: machines that train may have any.
"""

import json
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from qdmr_ray.errors import QdmrError
from qdmr_ray.models.files import DESCRIPTION_FILE, WEIGHTS_FILE, read_description
from qdmr_ray.models.layout import FINAL_FOLDER, METRICS_FILE, PICTURES_FOLDER, TENSORBOARD_FOLDER
from qdmr_ray.storage import TEMPORARY_PREFIX, Location
from qdmr_ray.storage.claims import Claim, Claims
from qdmr_ray.untrusted import parse_object

ENTRY_FILE = "entry.json"
CLAIMS_FOLDER = "claims"
USES_FOLDER = "uses"
# Marks an entry that is being deleted: its result counts no longer.
PRUNING_FILE = "pruning"
# The number of digits of the digest in a folder's name.
_DIGITS = 32
# A list shows a stage without a sign of life for so long as one that nobody trains. The store's
# clock may differ from this machine's, so nothing is deleted for that.
ALIVE_SECONDS = 600.0
FINISHED, TRAINING, UNFINISHED = "finished", "training", "unfinished"
_DAY = 86400.0


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One stage in the store; ``used`` is when a run last took or trained it, in seconds since
    1970 by the store's clock, ``claim`` the number of the newest claim on it."""

    place: Location
    stage: str
    digest: str
    state: str
    bytes: int
    used: float
    claim: int


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
            return _is_finished(place, stage)

        if not finished():
            claims = Claims(place.join(CLAIMS_FOLDER))
            claim = claims.acquire(finished, lambda whom: say(f"{stage}: {whom}, who trains it"))
            if claim is not None:
                with claim:
                    # Whoever wanted to delete the entry has ended before it could.
                    place.join(PRUNING_FILE).delete()
                    if finished():
                        return place
                    entry = {"stage": stage, "digest": digest, "settings": settings}
                    text = json.dumps(entry, indent=1).encode()
                    place.join(ENTRY_FILE).write_bytes_atomic(text)
                    train(place, claim)
        return place

    def note_use(self, place: Location, run: str) -> None:
        """Records that ``run`` uses the entry; a run does so before it looks for the result, which
        :meth:`remove` then leaves alone."""
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
            claims = Claims(place.join(CLAIMS_FOLDER))
            signs = place.join(CLAIMS_FOLDER).newest()
            alive = claims.holder() is not None and time.time() - signs < ALIVE_SECONDS
            done = _is_finished(place, stage)
            yield Entry(
                place=place,
                stage=stage,
                digest=digest,
                state=FINISHED if done else TRAINING if alive else UNFINISHED,
                bytes=_bytes_below(place),
                used=max(place.newest(), place.join(USES_FOLDER).newest(), signs),
                claim=claims.newest(),
            )

    def prunable(self, *, unused_days: float, unfinished: bool) -> list[Entry]:
        """Returns the entries that nobody used for ``unused_days``, with ``unfinished`` also all
        that have no result and are not being trained. Where a stage seems to be abandoned, but
        another machine may be training it, its claim is watched for up to
        ``patience.CLAIM_STALE``."""
        entries = list(self.entries())
        # Nothing is written where there is no store.
        limit = self._now() - unused_days * _DAY if entries else 0.0
        chosen = [
            entry
            for entry in entries
            if entry.used < limit or (unfinished and entry.state != FINISHED)
        ]
        held = _held([entry.place for entry in chosen if entry.state != FINISHED])
        return [entry for entry in chosen if entry.place not in held]

    def remove(self, entry: Entry) -> bool:
        """Deletes the entry, unless a process trains it, or a run has used or trained it since it
        was listed; returns whether it did. Ended at any moment, it leaves an entry that is whole,
        or one without a result."""
        holders: list[str] = []
        claims = Claims(entry.place.join(CLAIMS_FOLDER))
        claim = claims.acquire(lambda: bool(holders), lambda _: None, holders.append)
        if claim is None:
            return False
        with claim:
            if not entry.place.join(ENTRY_FILE).exists():
                claim.discard()
                entry.place.delete_empty()
                return False
            mark = entry.place.join(PRUNING_FILE)
            # A run that notes its use after this doesn't find the result any more.
            mark.write_bytes_atomic(b"{}")
            used = entry.place.join(USES_FOLDER).newest() > entry.used
            if used or claim.number != entry.claim + 1:
                mark.delete()
                return False
            # Without it the stage has no result, whatever is left of it.
            entry.place.join(entry.stage, FINAL_FOLDER, DESCRIPTION_FILE).delete()
            last = (ENTRY_FILE, PRUNING_FILE)
            files = [file for file in entry.place.list() if file.name not in (*last, CLAIMS_FOLDER)]
            for file in (*files, *map(entry.place.join, last)):
                claim.check()
                file.delete()
            claim.discard()
        entry.place.delete_empty()
        return True

    def _now(self) -> float:
        """Returns the time by the store's clock, which dates a file that is written for it."""
        folder = self.root.join(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}")
        folder.join("now").write_bytes_atomic(b"")
        try:
            return folder.newest()
        finally:
            folder.delete()


def copy_stage(place: Location, run: Location, stage: str) -> None:
    """Copies metrics, pictures and result of a finished stage from the entry at ``place`` to a run
    folder; the description comes last, so that half a copy is no result."""
    for parts in ((stage, PICTURES_FOLDER), (TENSORBOARD_FOLDER, stage)):
        for file in place.join(*parts).list():
            run.join(*parts, file.name).write_bytes_atomic(file.read_bytes())
    for names in ((METRICS_FILE,), (FINAL_FOLDER, WEIGHTS_FILE), (FINAL_FOLDER, DESCRIPTION_FILE)):
        data = place.join(stage, *names).read_bytes()
        run.join(stage, *names).write_bytes_atomic(data)


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


def _is_finished(place: Location, stage: str) -> bool:
    if read_description(place.join(stage, FINAL_FOLDER)) is None:
        return False
    return not place.join(PRUNING_FILE).exists()


def _bytes_below(folder: Location) -> int:
    sizes = ((item, item.size()) for item in folder.list())
    return sum(_bytes_below(item) if size is None else size for item, size in sizes)
