"""Following a job's log over a connection that may break, as a tunnel from a laptop does. After a
break the log is requested from its beginning again, without showing its known part twice, until the
job has ended and its whole log has arrived."""

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

from qdmr_ray.errors import QdmrError
from qdmr_ray.jobs.errors import explained, is_lost, status_of

SUCCEEDED, FAILED, STOPPED = "SUCCEEDED", "FAILED", "STOPPED"
ENDED = (SUCCEEDED, FAILED, STOPPED)
# Following ends after so long without any answer; a laptop may change networks meanwhile.
PATIENCE_SECONDS = 300.0
# A connection that is silent for so long may have died without an error: it is opened again.
QUIET_SECONDS = 120.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 10.0


def how_to_come_back(job: str) -> str:
    """Returns the end of every line about a job that goes on unwatched."""
    back, end = f"qdmr jobs logs {job} --follow", f"qdmr jobs stop {job}"
    return f"job {job} goes on; {back} comes back, {end} ends it"


class Follower:
    """Shows the log of ``job`` until it ends. ``client`` is Ray's of its jobs API, at ``address``.
    ``show`` receives the log, piece by piece, ``note`` a line when the connection is lost."""

    def __init__(
        self,
        client: Any,
        address: str,
        job: str,
        show: Callable[[str], None],
        note: Callable[[str], None],
    ) -> None:
        self._client, self._address, self._job = client, address, job
        self._show, self._note, self._shown = show, note, 0

    def run(self) -> str:
        """Follows the job to its end, and returns its final state; raises QdmrError if nothing
        answers for PATIENCE_SECONDS, or the server refuses."""
        heard, pause, told, state = time.monotonic(), _FIRST_PAUSE_SECONDS, False, ""
        while True:
            before = self._shown
            has_log, has_answered, failure = asyncio.run(self._tail())
            try:
                state = str(self._client.get_job_info(self._job).status.value)
                # An ended job still answers; that must not prolong the wait for its log forever.
                has_answered = has_answered or state not in ENDED
            except Exception as error:
                failure = self._passing(error)
            if has_log and state in ENDED:
                return state
            if has_answered:
                heard, told = time.monotonic(), False
            elif time.monotonic() - heard > PATIENCE_SECONDS:
                return self._given_up(state)
            elif not told:
                short = " ".join(str(failure).split())[:120] or type(failure).__name__
                self._note(
                    f"the connection to {self._address} is lost ({short}); trying for "
                    f"{PATIENCE_SECONDS / 60:.0f} minutes, and the job goes on meanwhile"
                )
                told = True
            longer = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            pause = _FIRST_PAUSE_SECONDS if self._shown > before else longer
            time.sleep(pause)

    async def _tail(self) -> tuple[bool, bool, Exception | None]:
        """Shows the new part of the log. Returns whether the log reached its end, whether any of it
        arrived, and the error that broke it off."""
        passed, came = 0, False
        async with aclosing(self._client.tail_job_logs(self._job)) as pieces:
            while True:
                try:
                    piece = await asyncio.wait_for(anext(pieces), QUIET_SECONDS)
                except StopAsyncIteration:
                    return True, True, None
                except Exception as error:
                    return False, came, self._passing(error)
                came = True
                if passed + len(piece) > self._shown:
                    self._show(piece[max(0, self._shown - passed) :])
                passed += len(piece)
                self._shown = max(self._shown, passed)

    def _passing(self, error: Exception) -> Exception:
        """Returns the error if trying again may help, else raises a QdmrError."""
        import aiohttp

        status = status_of(error)
        if status is None:
            # Ray's client raises a RuntimeError for a connection that broke off.
            passing = is_lost(error) or isinstance(error, RuntimeError | aiohttp.ClientError)
        else:
            passing = status >= 500 or status in (408, 429)
        if not passing:
            raise explained(error, self._address, self._job) from error
        return error

    def _given_up(self, state: str) -> str:
        if state in ENDED:
            self._note(f"the rest of the log doesn't come; qdmr jobs logs {self._job} shows it")
            return state
        raise QdmrError(
            f"{self._address}: nothing has answered for {PATIENCE_SECONDS / 60:.0f} minutes; "
            f"{how_to_come_back(self._job)}"
        )
