"""The actors that feed streams, as Ray counts them."""

import time
from collections.abc import Callable

import ray


def executions() -> list[str]:
    """The Ray Data executions of streams that are alive: the ids of the actors that run them."""
    return living_actors("SplitCoordinator")


def living_actors(kind: str) -> list[str]:
    """The ids of the actors of a class that are alive or about to be."""
    actors = ray._private.state.actors().items()
    return [
        name
        for name, actor in actors
        if actor["ActorClassName"] == kind and actor["State"] != "DEAD"
    ]


def wait_until(holds: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)
