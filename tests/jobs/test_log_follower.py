"""Following a log over connections that break."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from qdmr_ray.cli.main import app
from qdmr_ray.errors import QdmrError
from qdmr_ray.jobs import log_follower as following
from qdmr_ray.jobs.client import Jobs

if TYPE_CHECKING:
    from fake_cluster import FakeCluster

# As in fake_cluster, which is imported late since it imports Ray.
WHOLE, SILENT = -1, -2
LOG = "".join(f"line {n} of the log, with an ä\n" for n in range(12))


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "_FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(following, "_LONGEST_PAUSE_SECONDS", 0.05)


def followed(cluster: FakeCluster, notes: list[str] | None = None) -> tuple[str, str]:
    shown: list[str] = []
    told = [] if notes is None else notes
    state = Jobs(cluster.address).follow("j", shown.append, told.append)
    return "".join(shown), state


@pytest.mark.parametrize(
    "tails",
    [
        [WHOLE],
        # Broken off, with nothing, in the middle of lines, with less than before.
        [0, 100, 40, 230, WHOLE],
        [len(LOG), WHOLE],
    ],
)
def test_every_line_is_shown_once_however_often_it_breaks(
    fake_cluster: FakeCluster, tails: list[int]
) -> None:
    from fake_cluster import FakeJob

    fake_cluster.jobs["j"] = FakeJob(
        state="SUCCEEDED", log=LOG, tails=tails, states=["RUNNING"] * len(tails)
    )
    assert followed(fake_cluster) == (LOG, "SUCCEEDED")


def test_the_rest_comes_of_a_job_that_ended_while_the_connection_was_lost(
    fake_cluster: FakeCluster,
) -> None:
    from fake_cluster import FakeJob

    fake_cluster.jobs["j"] = FakeJob(
        state="FAILED", log=LOG, tails=[100, WHOLE], states=["RUNNING"]
    )
    assert followed(fake_cluster) == (LOG, "FAILED")


def test_a_log_that_ends_in_good_order_before_the_job_is_asked_for_again(
    fake_cluster: FakeCluster,
) -> None:
    """So does a head whose own connection to the job's node is lost."""
    from fake_cluster import FakeJob

    fake_cluster.jobs["j"] = FakeJob(
        state="STOPPED", log=LOG, tails=[WHOLE], states=["RUNNING", "RUNNING", "RUNNING"]
    )
    assert followed(fake_cluster) == (LOG, "STOPPED")
    assert len(fake_cluster.tailed) > 1


def test_a_tunnel_that_comes_back_goes_on(fake_cluster: FakeCluster) -> None:
    from fake_cluster import FakeJob

    job = FakeJob(state="RUNNING", log=LOG, tails=[100])
    fake_cluster.jobs["j"] = job
    notes: list[str] = []

    def outage() -> None:
        while not fake_cluster.tailed:
            time.sleep(0.01)
        fake_cluster.is_down = True
        time.sleep(0.3)
        job.tails, job.state = [WHOLE], "SUCCEEDED"
        fake_cluster.is_down = False

    thread = threading.Thread(target=outage)
    thread.start()
    assert followed(fake_cluster, notes) == (LOG, "SUCCEEDED")
    thread.join()
    assert len(notes) == 1
    assert re.match(
        rf"the connection to {fake_cluster.address} is lost .*5 minutes, and the job goes on",
        notes[0],
    )


def test_patience_ends_with_a_line_that_says_how_to_come_back(
    fake_cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fake_cluster import FakeJob

    monkeypatch.setattr(following, "PATIENCE_SECONDS", 0.2)
    fake_cluster.jobs["j"] = FakeJob(state="RUNNING", log=LOG, tails=[100])
    jobs = Jobs(fake_cluster.address)

    def show(_: str) -> None:
        fake_cluster.is_down = True

    told = "nothing has answered for .*; job j goes on; qdmr jobs logs j --follow comes back"
    with pytest.raises(QdmrError, match=told):
        jobs.follow("j", show, lambda _: None)


def test_the_end_is_told_though_the_log_never_comes_whole(
    fake_cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fake_cluster import FakeJob

    monkeypatch.setattr(following, "PATIENCE_SECONDS", 0.2)
    fake_cluster.jobs["j"] = FakeJob(state="FAILED", log=LOG, tails=[0])
    notes: list[str] = []
    assert followed(fake_cluster, notes) == ("", "FAILED")
    assert notes[-1] == "the rest of the log doesn't come; qdmr jobs logs j shows it"


def test_what_refuses_is_not_asked_again(fake_cluster: FakeCluster) -> None:
    from fake_cluster import FakeJob

    fake_cluster.jobs["j"] = FakeJob(state="RUNNING", log=LOG, tails=[100])
    jobs = Jobs(fake_cluster.address)

    def show(_: str) -> None:
        fake_cluster.refusal = (401, "no")

    with pytest.raises(QdmrError, match="refuses without its token"):
        jobs.follow("j", show, lambda _: None)


def test_a_connection_that_says_nothing_is_made_anew(
    fake_cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fake_cluster import FakeJob

    monkeypatch.setattr(following, "QUIET_SECONDS", 0.3)
    fake_cluster.jobs["j"] = FakeJob(
        state="SUCCEEDED", log=LOG, tails=[SILENT, WHOLE], states=["RUNNING"] * 2
    )
    assert followed(fake_cluster) == (LOG, "SUCCEEDED")


def test_a_reader_that_goes_away_ends_it(fake_cluster: FakeCluster) -> None:
    from fake_cluster import FakeJob

    fake_cluster.jobs["j"] = FakeJob(state="RUNNING", log=LOG)

    def show(_: str) -> None:
        raise BrokenPipeError("head -3 has enough")

    with pytest.raises(BrokenPipeError):
        Jobs(fake_cluster.address).follow("j", show, lambda _: None)
    assert fake_cluster.tailed == ["j"]


@pytest.mark.parametrize("tail", [SILENT, 0])
def test_interrupting_leaves_the_job_running_and_says_how_to_come_back(
    fake_cluster: FakeCluster, tail: int
) -> None:
    """While a log comes, and while one is waited for."""
    from fake_cluster import FakeJob

    fake_cluster.jobs["j"] = FakeJob(state="RUNNING", log=LOG, tails=[tail])

    def interrupt() -> None:
        while not fake_cluster.tailed:
            time.sleep(0.01)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    words = ["jobs", "logs", "j", "--follow", "--address", fake_cluster.address]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0
    assert "job j goes on; qdmr jobs logs j --follow comes back, qdmr jobs stop j" in done.stderr
