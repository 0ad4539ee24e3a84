"""Claims let one process at a time do a piece of work, on a disk or in a store that several share.

    claims = Claims(folder)
    claim = claims.acquire(finished=lambda: result.exists(), say=print)
    if claim is not None:            # None: another process has finished the work meanwhile
        with claim:
            work()

A claim is a numbered file that can be made only once; the highest number holds. Its holder rewrites
a file beside it every few seconds. A waiting process takes over, by making the next number, when
that file has not changed for a while by the waiting process's own clock: no two machines' clocks
are compared. A holder on the same machine whose process has ended is replaced at once.

A holder that was only suspended, or whose signs of life could not be written, goes on after it was
replaced. Before it writes what others read, it calls ``claim.check()``, which then raises
QdmrError. Between check and write remains a moment: claims therefore suit only work that may be
done twice with the same result, such as training a stage.

Work that a second process had better not wait for passes ``refuse`` to ``acquire``.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from qdmr_ray.errors import QdmrError
from qdmr_ray.patience import CLAIM_BEAT, CLAIM_STALE
from qdmr_ray.storage import TEMPORARY_PREFIX, Location
from qdmr_ray.untrusted import parse_object

_POLL_SECONDS = 1.0
_CLAIM = re.compile(r"(\d{6,9})\.json")
_OURS = re.compile(rf"\d{{6,9}}\.(json|beat)|{re.escape(TEMPORARY_PREFIX)}.*")
_RELEASED = "released"


class Claims:
    """The claims in ``folder``. A holder gives a sign of life every ``beat`` seconds, and counts as
    gone after ``stale`` seconds without one; both come from ``qdmr_ray.patience`` by default. With
    ``traceless``, a claim that ends deletes its files and those before it, and then the folder."""

    def __init__(
        self,
        folder: Location,
        *,
        beat: float | None = None,
        stale: float | None = None,
        traceless: bool = False,
    ) -> None:
        self._folder, self.traceless = folder, traceless
        self._beat = CLAIM_BEAT.seconds if beat is None else beat
        self._stale = CLAIM_STALE.seconds if stale is None else stale
        # The holder's number and sign of life, and when this process saw the sign change.
        self._seen: tuple[int, bytes] | None = None
        self._seen_at = 0.0
        self._first_seen: tuple[int, bytes] | None = None

    def acquire(
        self,
        finished: Callable[[], bool],
        say: Callable[[str], None],
        refuse: Callable[[str], None] | None = None,
    ) -> Claim | None:
        """Waits until the work is free and returns the claim, or None once the work is
        ``finished``. ``say`` receives one line that names the holder. ``refuse``, which raises
        instead of waiting, is called with the holder's name once it has shown life: a holder
        elsewhere, whose process can't be looked up, by its next sign. Raises QdmrError if the
        folder can't be read or written."""
        told: int | None = None
        while not finished():
            number = self.newest()
            if number == 0 or self._is_free(number):
                if claim := self._try(number + 1):
                    return claim
                continue
            if refuse is not None and self._lives():
                refuse(self._owner(number))
            if told != number:
                say(f"waiting for {self._owner(number)}")
                told = number
            self.wait()
        return None

    def holder(self) -> dict[str, Any] | None:
        """Returns the holder (``owner``, ``time`` of its last sign of life), or None without
        one."""
        if (number := self.newest()) == 0:
            return None
        found = _content(self._sign(number))
        if not isinstance(found.get("time"), int | float):
            found |= {"owner": self._owner(number), "time": 0.0}
        return None if found.get("state") == _RELEASED else found

    def newest(self) -> int:
        """Returns the number of the newest claim, held or not; 0 without one."""
        matches = (_CLAIM.fullmatch(name) for name in self._folder.file_sizes())
        return max((int(match[1]) for match in matches if match), default=0)

    def holds(self, claim: str) -> bool:
        """Returns whether the claim with this ``id`` is the newest; raises QdmrError if the folder
        can't be read."""
        number = self.newest()
        # Of two claims of one number the first was deleted with all that it was on.
        return number > 0 and _id(number, self._file(number).read_bytes()) == claim

    def check(self, claim: str) -> None:
        """Raises QdmrError where another process has taken over from the claim with this ``id``,
        or the folder can't be read."""
        if not self.holds(claim):
            raise QdmrError(
                f"{self._folder.uri}: {self._owner(self.newest())} took over, since this process "
                f"gave no sign of life for {self._stale:g} s; let the other one finish, and see "
                "that this machine reaches the folder all the time"
            )

    def is_held(self) -> bool | None:
        """Returns whether a living process holds the claim; None while that can't be told yet: ask
        again, until the holder has shown life or was silent for ``stale`` seconds."""
        number = self.newest()
        if number == 0 or self._is_free(number):
            return False
        return True if self._lives() else None

    def remove(self, claim: Claim) -> None:
        """Deletes a claim that has ended and all before it, unless another process has taken over,
        and the folder if nothing else lies there."""
        with suppress(QdmrError):
            self.check(claim.id)
            # The claim is the last to go: as long as it is there, no other can be made.
            own = [self._sign(claim.number), self._file(claim.number)]
            earlier = [file for file in self._folder.list() if _OURS.fullmatch(file.name)]
            for file in [*(file for file in earlier if file not in own), *own]:
                file.delete()
            self._folder.delete_empty()

    def wait(self) -> None:
        """Sleeps until it is worth while to look again."""
        time.sleep(min(_POLL_SECONDS, self._stale / 4))

    def _is_free(self, number: int) -> bool:
        sign = b""
        with suppress(QdmrError):
            sign = self._sign(number).read_bytes()
        found = _parsed(sign)
        if found.get("state") == _RELEASED or _runs_here(found.get("process")) is False:
            return True
        if self._seen != (number, sign):
            self._seen, self._seen_at = (number, sign), time.monotonic()
        return time.monotonic() - self._seen_at > self._stale

    def _lives(self) -> bool:
        """Returns whether the holder that :meth:`_is_free` has looked at has shown life."""
        self._first_seen = self._first_seen or self._seen
        sign = self._seen[1] if self._seen else b""
        return self._seen != self._first_seen or bool(_runs_here(_parsed(sign).get("process")))

    def _try(self, number: int) -> Claim | None:
        owner = f"process {os.getpid()} on {socket.gethostname()}"
        # The random part makes each attempt's content unique, which `create` requires.
        text = json.dumps({"owner": owner, "attempt": secrets.token_hex(8)}).encode()
        file = self._file(number)
        made = file.create(text)
        if not made:
            return None
        return Claim(self, number, _id(number, text), owner, self._beat)

    def _owner(self, number: int) -> str:
        owner = str(_content(self._file(number)).get("owner", ""))
        return owner if owner and owner.isprintable() else "another process"

    def _file(self, number: int) -> Location:
        return self._folder.join(f"{number:06}.json")

    def _sign(self, number: int) -> Location:
        return self._folder.join(f"{number:06}.beat")


class Claim:
    """A held claim: a context that writes signs of life until it ends or another process has taken
    over. ``holds`` and ``check`` may be sent to other processes that do the work."""

    def __init__(self, claims: Claims, number: int, claim: str, owner: str, beat: float) -> None:
        self._claims, self.number, self.id = claims, number, claim
        # ``check`` raises QdmrError where another process has taken over; both do where the folder
        # can't be read.
        self.holds, self.check = partial(claims.holds, claim), partial(claims.check, claim)
        self._owner, self._beat = owner, beat
        self._file, self._sign = claims._file(number), claims._sign(number)
        self._over, self._count = threading.Event(), 0
        self._show()
        self._thread = threading.Thread(target=self._run, daemon=True, name="claim")
        self._thread.start()

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        if self._over.is_set():
            return
        self._over.set()
        self._thread.join()
        if self._claims.traceless:
            self._claims.remove(self)
            return
        with suppress(QdmrError):
            if not self.holds():
                return
            # Waiting processes then need not wait until the holder looks dead.
            try:
                self._show(_RELEASED)
            except QdmrError:
                # On a full disk this write fails, but the claim itself can still be removed.
                self._file.delete()

    def discard(self) -> None:
        """Ends the claim and deletes all claims on the work, where the work itself is deleted."""
        self._over.set()
        self._thread.join()
        self._claims.remove(self)

    def _run(self) -> None:
        while not self._over.wait(self._beat):
            # A failing store must not end the work; at worst, the work is done twice.
            with suppress(QdmrError):
                if not self.holds():
                    return
                self._show()

    def _show(self, state: str = "working") -> None:
        self._count += 1
        sign = {
            "owner": self._owner,
            "process": process_here(os.getpid()),
            "state": state,
            "count": self._count,
            "time": time.time(),
        }
        self._sign.write_bytes_atomic(json.dumps(sign).encode())


def _id(number: int, content: bytes) -> str:
    return f"{number} {_parsed(content).get('attempt')}"


def _content(file: Location) -> dict[str, Any]:
    """Returns the JSON object in ``file``, an empty one where there is none."""
    with suppress(QdmrError):
        return _parsed(file.read_bytes())
    return {}


def _parsed(data: bytes) -> dict[str, Any]:
    with suppress(ValueError):
        return parse_object(data)
    return {}


def process_here(pid: int) -> dict[str, Any] | None:
    """Returns what identifies a process among all machines and containers, or None if the process
    has ended or the system doesn't tell."""
    with suppress(OSError, ValueError, IndexError):
        # The name in brackets may hold spaces; the start time is the 22nd field.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if fields[0] not in ("Z", "X"):
            return {"pid": pid, "started": int(fields[19]), **_machine()}
    return None


def _machine() -> dict[str, str]:
    """Returns ids of this boot of the machine and of this container's process namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return {"boot": boot, "namespace": os.readlink("/proc/self/ns/pid")}


def _runs_here(process: Any) -> bool | None:
    """Returns whether the process runs; None where it is one of another machine or container."""
    with suppress(OSError):
        if isinstance(process, dict) and _machine().items() <= process.items():
            return process_here(process.get("pid", 0)) == process
    return None
