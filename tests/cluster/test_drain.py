"""The watcher of spot notices where Ray doesn't answer for a while; tests/cluster/test_local.py has
it drain real nodes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

NODE = "ab" * 28
REFUSED = subprocess.CalledProcessError(1, "ray")
HUNG = subprocess.TimeoutExpired("ray", 30)
Answer = str | subprocess.SubprocessError


class Clock:
    """Time that passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Ray:
    """Answers to the commands that drain.py runs, in order; the last one for ever."""

    def __init__(self, clock: Clock, *answers: Answer) -> None:
        self.clock, self.answers = clock, list(answers)
        self.drained_with: list[str] = []

    def run(
        self, command: list[str], *, timeout: float, **options: object
    ) -> subprocess.CompletedProcess[str]:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, subprocess.TimeoutExpired):
            self.clock.sleep(timeout)
        if isinstance(answer, subprocess.SubprocessError):
            raise answer
        if "drain-node" in command:
            assert command[command.index("--node-id") + 1] == NODE
            self.drained_with.append(command[-1])
        return subprocess.CompletedProcess(command, 0, stdout=answer)


@pytest.fixture
def drain(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "cluster" / "docker")
    import drain

    return drain


@pytest.fixture
def watch(
    drain: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Ray, Callable[[], None]]]:
    """The watcher with these answers of Ray's, and a notice that comes at once."""

    def prepared(*answers: Answer, notice: int = 120) -> tuple[Ray, Callable[[], None]]:
        clock = Clock()
        ray = Ray(clock, *answers)
        monkeypatch.setattr(drain, "time", clock)
        monkeypatch.setattr(drain.subprocess, "run", ray.run)
        monkeypatch.setattr(drain, "wait_for_notice", lambda metadata: notice)
        return ray, lambda: drain.main(["watch"])

    return prepared


def test_watcher_outlives_a_ray_that_is_away_at_its_start(
    watch: Callable[..., tuple[Ray, Callable[[], None]]],
) -> None:
    ray, run = watch(REFUSED, HUNG, REFUSED, f"{NODE}\n")
    run()
    assert ray.drained_with == ["120"]


def test_a_notice_is_told_again_with_the_time_that_is_left(
    watch: Callable[..., tuple[Ray, Callable[[], None]]],
) -> None:
    ray, run = watch(f"{NODE}\n", REFUSED, HUNG, "")
    run()
    # Two pauses, and an attempt that hung.
    assert ray.drained_with == [f"{120 - 5 - 30 - 5}"]


@pytest.mark.parametrize(("answers", "seconds"), [([REFUSED], 600), ([f"{NODE}\n", REFUSED], 120)])
def test_it_gives_up_in_the_end_and_says_so(
    answers: list[Answer],
    seconds: float,
    watch: Callable[..., tuple[Ray, Callable[[], None]]],
) -> None:
    ray, run = watch(*answers)
    with pytest.raises(subprocess.CalledProcessError):
        run()
    assert seconds - 10 <= ray.clock.now <= seconds


def test_a_pod_waits_for_its_node_where_the_dashboard_is_away(
    drain: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    answers: list[object] = [ConnectionError("refused"), type("Node", (), {"state": "DEAD"})]

    def get_node(node: str) -> object:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(drain, "time", clock)
    monkeypatch.setattr("ray.util.state.get_node", get_node)
    drain.wait_until_gone(NODE, deadline=90)
    assert not answers
    assert clock.now < 90
