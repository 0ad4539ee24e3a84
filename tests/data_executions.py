"""The Ray Data executions that feed streams, as Ray counts them."""

import time
from collections.abc import Callable

import ray


def executions() -> list[str]:
    """The Ray Data executions of streams that are alive: the ids of the actors that run them."""
    actors = ray._private.state.actors().items()
    return [
        name
        for name, actor in actors
        if actor["ActorClassName"] == "SplitCoordinator" and actor["State"] != "DEAD"
    ]


def wait_until(holds: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)
