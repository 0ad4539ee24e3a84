"""The folder of a sweep while it runs, and however it ends."""

import json
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

from qdmr_ray.config import load_experiment
from qdmr_ray.errors import QdmrError
from qdmr_ray.evaluate.sweep_file import SweepFile, TrialRecord
from qdmr_ray.models.documents import Begun
from qdmr_ray.storage import Location, open_location
from qdmr_ray.sweeps import run as sweeps_run
from qdmr_ray.sweeps import trial
from qdmr_ray.sweeps.files import SweepFiles, save_study
from qdmr_ray.sweeps.plan import Plan
from qdmr_ray.sweeps.status import status_line, telling
from qdmr_ray.sweeps.trial import TrialReport
from qdmr_ray.sweeps.trials import Trials

Plans = Callable[..., Plan]


@pytest.fixture
def trials(plan_of: Plans, tmp_path: Path) -> Trials:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return Trials(plan_of(), open_location(tmp_path / "sweep"), scratch, lambda _: None)


def train(trials: Trials, psnr: float) -> TrialRecord:
    record = trials.next()
    assert record is not None
    metrics = {"uda/validation/psnr": psnr}
    last = TrialReport(iteration=12, values=[psnr], metrics=metrics, is_last=True)
    trials.progressed(record.id, last)
    trials.ended(record.id, last)
    return record


def until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def content(folder: Path) -> SweepFile:
    return SweepFile.read(open_location(folder / "sweep.json"))


class Pages:
    """A stand-in for the report, which notes the state of each sweep that it is made of."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.states = folder, list[tuple[str, int]]()

    def __call__(self, place: Location) -> None:
        assert place.uri == str(self.folder)
        found = content(self.folder)
        self.states.append((found.state, sum(trial.has_ended for trial in found.trials)))


@pytest.fixture
def pages(tmp_path: Path) -> Pages:
    return Pages(tmp_path / "sweep")


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def files(trials: Trials, pages: Pages, said: list[str]) -> Iterator[SweepFiles]:
    files = SweepFiles(trials, pages, lambda: None, said.append)
    yield files
    files.close()


def test_the_files_of_a_running_sweep_show_every_ended_trial(
    trials: Trials, files: SweepFiles, pages: Pages, tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep"
    files.update()
    assert content(sweep).state == "running"
    assert content(sweep).planned == 4

    first = train(trials, 20.0)
    trials.next()
    files.update()
    found = content(sweep)
    assert [(t.id, t.state) for t in found.trials] == [("0000", "finished"), ("0001", "running")]
    assert found.best == "0000"
    assert load_experiment(sweep / "best.yaml").stages.uda.gan == first.settings["stages.uda.gan"]
    assert (sweep / "tensorboard/0000").exists()
    assert not (sweep / "tensorboard/0001").exists()
    until(lambda: pages.states[:1] != [])


def test_a_report_that_is_not_due_yet_is_made_later(
    trials: Trials, pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QDMR_PATIENCE_PROGRESS_LINE", "0.3")
    files = SweepFiles(trials, pages, lambda: None, print)
    files.update()
    until(lambda: len(pages.states) == 1)
    for psnr in (20.0, 21.0):
        train(trials, psnr)
        files.update()
    # Nothing more is asked for, and the second page has both trials.
    until(lambda: pages.states[-1:] == [("running", 2)])
    files.close()
    assert len(pages.states) <= 3


def test_the_study_is_brought_up_to_date_under_an_open_dashboard(
    trials: Trials, tmp_path: Path
) -> None:
    place = open_location(tmp_path / "sweep" / "study.db")
    train(trials, 20.0)
    save_study(trials.study.file, place)
    # What optuna-dashboard does: it opens the file once.
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{place.path}")
    assert len(study.trials) == 1
    inode = os.stat(place.path).st_ino
    train(trials, 21.0)
    save_study(trials.study.file, place)
    assert os.stat(place.path).st_ino == inode
    assert study.best_value == 21.0


@pytest.mark.parametrize("what", ["nothing", "text", "link", "locked"])
def test_the_study_is_saved_whatever_lies_there(trials: Trials, tmp_path: Path, what: str) -> None:
    folder, own = tmp_path / "sweep", tmp_path / "own.db"
    folder.mkdir(exist_ok=True)
    train(trials, 20.0)
    place = folder / "study.db"
    with sqlite3.connect(own) as other:
        other.execute("create table mine (a)")
    if what == "text":
        place.write_text("no database")
    elif what == "link":
        place.symlink_to(own)
    elif what == "locked":
        place.write_bytes(own.read_bytes())
    holder = sqlite3.connect(place if what == "locked" else own)
    if what == "locked":
        holder.execute("begin exclusive")
    before = own.read_bytes()
    save_study(trials.study.file, open_location(place))
    holder.close()
    assert own.read_bytes() == before
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{place}")
    assert study.best_value == 20.0


@pytest.mark.parametrize(
    ("cause", "state", "error"),
    [
        (KeyboardInterrupt(), "stopped", None),
        (QdmrError("3 trials failed"), "failed", "3 trials failed"),
    ],
)
def test_a_sweep_that_ends_early_leaves_its_files(
    trials: Trials,
    files: SweepFiles,
    pages: Pages,
    tmp_path: Path,
    cause: BaseException,
    state: str,
    error: str | None,
) -> None:
    train(trials, 20.0)
    files.give_up(cause)
    found = content(tmp_path / "sweep")
    assert (found.state, found.error, found.best) == (state, error, "0000")
    assert pages.states[-1] == (state, 1)


def test_an_evaluation_that_is_interrupted_leaves_the_report(
    trials: Trials, files: SweepFiles, pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("qdmr_ray.sweeps.files.unseen_metrics", interrupted)
    train(trials, 20.0)
    with pytest.raises(KeyboardInterrupt):
        files.finish()
    assert pages.states[-1] == ("finished", 1)


def test_a_sweep_that_goes_on_writes_no_trial_again(
    plan_of: Plans, trials: Trials, files: SweepFiles, pages: Pages, tmp_path: Path
) -> None:
    board = tmp_path / "sweep" / "tensorboard"
    for psnr in (20.0, 21.0):
        train(trials, psnr)
    files.update()
    times = {file: file.stat().st_mtime_ns for file in board.glob("*/*")}
    assert len(times) == 2
    scratch = tmp_path / "later"
    scratch.mkdir()
    later = Trials(plan_of(), trials.sweep, scratch, lambda _: None)
    again = SweepFiles(later, pages, lambda: None, lambda _: None)
    train(later, 22.0)
    again.update()
    again.close()
    now = {file: file.stat().st_mtime_ns for file in board.glob("*/*")}
    assert len(now) == 3
    assert times.items() <= now.items()


def test_files_that_cannot_be_written_are_named_once_and_the_sweep_goes_on(
    trials: Trials, said: list[str]
) -> None:
    def broken(_: Location) -> None:
        raise QdmrError("the disk is full")

    files = SweepFiles(trials, broken, lambda: None, said.append)
    for psnr in (20.0, 21.0):
        train(trials, psnr)
        files.update()
        until(lambda: len(said) == 1)
    files.close()
    assert said == [f"{trials.sweep.uri}: not up to date (the disk is full)"]


def test_a_sweep_that_another_process_has_taken_over_writes_nothing(
    trials: Trials, pages: Pages, tmp_path: Path
) -> None:
    def lost() -> None:
        raise QdmrError("process 7 on there took over")

    files = SweepFiles(trials, pages, lost, lambda _: None)
    train(trials, 20.0)
    files.update()
    files.give_up(QdmrError("lost"))
    assert not (tmp_path / "sweep" / "sweep.json").exists()
    assert pages.states == []


def test_the_status_tells_where_running_trials_are(trials: Trials, tmp_path: Path) -> None:
    train(trials, 20.0)
    trials.next()
    assert status_line(trials).startswith("1 of 4 trials ended, ")
    assert status_line(trials).endswith("; 0001 waiting")
    # A trial's stages are trained in the store that trials share.
    run, store = tmp_path / "sweep/trials/0001", tmp_path / "sweep/stages/vqgan-abc"
    Begun(digest="abc", store=str(store)).write(open_location(run / "vqgan" / "begun.json"))
    assert status_line(trials).endswith("; 0001 vqgan 0/12")
    (store / "vqgan").mkdir(parents=True)
    lines = [json.dumps({"iteration": n, "loss": 0.5}) for n in (4, 8)]
    (store / "vqgan" / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert status_line(trials).endswith("; 0001 vqgan 8/12")
    (run / "uda").mkdir()
    (run / "uda" / "metrics.jsonl").write_text(json.dumps({"iteration": 2}))
    assert status_line(trials).endswith("; 0001 uda 2/12")


def test_lines_come_until_the_sweep_ends(
    trials: Trials, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.setenv("QDMR_PATIENCE_PROGRESS_LINE", "0.01")
    with telling(trials, said.append):
        until(lambda: len(said) > 1)
    count = len(said)
    assert {line.partition(",")[0] for line in said} == {"0 of 4 trials ended"}
    assert not [t for t in threading.enumerate() if t.name == "sweep-status"]
    assert len(said) == count


def test_all_trials_are_counted_as_soon_as_they_are_known(plan_of: Plans, tmp_path: Path) -> None:
    def opened(**changes: Any) -> Trials:
        return Trials(plan_of(**changes), open_location(tmp_path / "x"), tmp_path, print)

    variants: dict[str, Any] = {"a": {"run": ["vqgan", "uda"]}, "b": {"seed": 3}}
    named = opened(space=None, trials=None, variants=variants, repeat=3)
    assert (named.planned, named.total) == (2, 6)
    assert (opened().planned, opened().total) == (4, 4)
    timed = opened(trials=None, hours=1)
    assert (timed.planned, timed.total) == (None, 0)


def test_prometheus_tells_the_trials_of_two_sweeps_apart(
    plan_of: Plans, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = []

    def train_run(_: Any, **given: Any) -> None:
        labels.append(given["label"])

    monkeypatch.setattr(trial, "train_run", train_run)
    # Ray, which isn't there, would tell.
    monkeypatch.setattr(trial, "node_cpus", lambda: 2.0)
    for name in ("codes", "losses"):
        place = str(tmp_path / name)
        context = trial.TrialContext(
            plan=plan_of(name=name), sweep=place, store=place, folder="/", gpu=False, concurrent=1
        )
        trial.run_trial({"id": "0003", "settings": {}, "seed": 0}, context, lambda _: None)
    assert labels == ["codes/0003", "losses/0003"]


def test_sigterm_ends_a_sweep_as_ctrl_c_does() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), sweeps_run.sigterm_as_interrupt():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
