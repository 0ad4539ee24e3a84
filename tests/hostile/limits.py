"""Hostile inputs, each in a process of its own that may take 5 s and 1 GB.

    refused(lambda: load_experiment(bomb), match=r"bomb\\.yaml: .*aliases")

The process is forked, so that an input costs milliseconds and nothing that it breaks reaches the
next test.
"""

import faulthandler
import os
import pickle
import re
import resource
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from qdmr_ray.errors import QdmrError

SECONDS, MEMORY = 5.0, 10**9
_POLL_SECONDS = 0.01


class Outcome(NamedTuple):
    """How an action ended: with a value, with a QdmrError's message, or as nothing may end: with
    another exception or a signal."""

    value: Any = None
    error: str | None = None
    crash: str | None = None


def outcome(
    action: Callable[[], Any], *, seconds: float = SECONDS, memory: int = MEMORY
) -> Outcome:
    """Runs ``action`` in a forked process with so much time, and so many bytes beyond those that
    this process has. Its value has to be one that can be pickled."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _run(action, writing, seconds, memory)
    os.close(writing)
    told: list[bytes] = []
    # A value may be larger than the pipe, so that the child waits until it is read.
    reader = threading.Thread(target=lambda: told.append(Path(f"/dev/fd/{reading}").read_bytes()))
    reader.start()
    end = time.monotonic() + seconds
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            break
        time.sleep(_POLL_SECONDS)
    late = time.monotonic() > end
    status = os.waitpid(child, 0)[1]
    reader.join()
    os.close(reading)
    if late:
        return Outcome(crash=f"took longer than {seconds:g} s")
    if os.WIFSIGNALED(status) or not told[0]:
        return Outcome(crash=f"ended by {signal.Signals(os.WTERMSIG(status)).name}")
    return Outcome(*pickle.loads(told[0]))


def refused(
    action: Callable[[], Any], *, match: str, seconds: float = SECONDS, memory: int = MEMORY
) -> str:
    """Asserts that ``action`` raises a QdmrError of one printable line that ``match`` is found in,
    within the limits; returns the line."""
    found = outcome(action, seconds=seconds, memory=memory)
    assert found.error is not None, f"not refused: {found}"
    assert found.error.isprintable(), found.error
    assert re.search(match, found.error), found.error
    return found.error


def files_below(folder: Path) -> dict[str, bytes]:
    """What lies below a folder, to compare before and after."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def _run(action: Callable[[], Any], writing: int, seconds: float, memory: int) -> None:
    try:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        faulthandler.disable()
        try:
            found = Outcome(value=action())
        except QdmrError as error:
            found = Outcome(error=str(error))
        except BaseException as error:
            found = Outcome(crash=f"{type(error).__name__}: {error}")
        with suppress(OSError), os.fdopen(writing, "wb") as pipe:
            pipe.write(pickle.dumps(tuple(found)))
    finally:
        os._exit(0)
