"""The trials of a sweep: each is trained once, whatever kills the sweep at whatever moment."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import optuna
import pytest

from qdmr_ray.errors import QdmrError
from qdmr_ray.evaluate.sweep_file import SweepFile, TrialRecord
from qdmr_ray.storage import open_location
from qdmr_ray.sweeps.optuna_study import importances
from qdmr_ray.sweeps.plan import Plan
from qdmr_ray.sweeps.results import summary
from qdmr_ray.sweeps.trial import TrialReport
from qdmr_ray.sweeps.trials import Trials

Plans = Callable[..., Plan]


@pytest.fixture
def open_trials(tmp_path: Path) -> Callable[[Plan], Trials]:
    """Opens the same sweep again and again, each time as a new process would."""
    starts = itertools.count()

    def opened(plan: Plan) -> Trials:
        scratch = tmp_path / f"scratch{next(starts)}"
        scratch.mkdir()
        return Trials(plan, open_location(tmp_path / "sweep"), scratch, lambda _: None)

    return opened


def report(value: float | None, iteration: int = 12, **changes: Any) -> TrialReport:
    return TrialReport(
        **{
            "progress": {"uda": iteration},
            "stages": {"vqgan": "v", "uda": "u"},
            "trained": ["uda"],
            "metrics": {"uda/validation/psnr": value},
            "iteration": iteration,
            "values": [value],
            **changes,
        }
    )


def quality(record: TrialRecord) -> float:
    """A metric that is best at gan = 0.03 and 32 codes."""
    gan, codes = record.settings["stages.uda.gan"], record.settings["network.codebook_size"]
    return 30 - 100 * abs(gan - 0.03) + codes / 100


def finish(trials: Trials, record: TrialRecord, value: float | None = None) -> None:
    last = report(quality(record) if value is None else value, is_last=True)
    trials.progressed(record.id, last)
    trials.ended(record.id, last)


def run_out(trials: Trials) -> list[TrialRecord]:
    """Lets every trial finish, one after the other."""
    done = []
    while (record := trials.next()) is not None:
        finish(trials, record)
        done.append(record)
    return done


def test_trials_end_with_the_budget_and_begin_with_the_experiments_own_settings(
    plan_of: Plans, open_trials: Callable[[Plan], Trials]
) -> None:
    trials = open_trials(plan_of(trials=5, first=[{"network.codebook_size": 32}]))
    done = run_out(trials)
    assert [record.id for record in done] == ["0000", "0001", "0002", "0003", "0004"]
    assert trials.baseline == "0000"
    assert done[0].settings == {"network.codebook_size": 16, "stages.uda.gan": 0.01}
    assert done[1].settings["network.codebook_size"] == 32
    assert len({record.settings["stages.uda.gan"] for record in done}) == 5
    assert trials.front() == [max(done, key=quality).id]
    assert trials.counts() == {"finished": 5}


def test_a_budget_in_iterations_counts_shared_stages_once(
    plan_of: Plans, open_trials: Callable[[Plan], Trials]
) -> None:
    trials = open_trials(plan_of(trials=None, iterations=100))
    for trained in ({"vqgan": 40, "uda": 12}, {"uda": 12}, {"uda": 12}, {"uda": 40}):
        record = trials.next()
        assert record is not None
        stages = {"vqgan": "one for all", "uda": record.id}
        trials.progressed(record.id, report(20.0, progress=trained, stages=stages))
        trials.ended(record.id, report(20.0, is_last=True))
    assert trials.iterations() == 116
    assert trials.next() is None


@pytest.mark.slow
def test_a_killed_sweep_goes_on_as_it_would_have(
    plan_of: Plans, open_trials: Callable[[Plan], Trials]
) -> None:
    plan = plan_of(trials=12, startup_trials=4)
    undisturbed = [record.settings for record in run_out(open_trials(plan))]
    for folder in (open_trials(plan).sweep.local_path or Path()).iterdir():
        if folder.name == "trials":
            folder.rename(folder.with_name("elsewhere"))

    done: dict[str, TrialRecord] = {}
    for stop_after in (1, 4, 5, 100):
        trials = open_trials(plan)
        for _ in range(stop_after):
            record = trials.next()
            if record is None:
                break
            finish(trials, record)
            assert record.id not in done
            done[record.id] = record
        # Killed with a trial begun that has told a value.
        record = trials.next()
        if record is not None:
            trials.progressed(record.id, report(1.0, iteration=4))
    assert [done[name].settings for name in sorted(done)] == undisturbed


def test_what_was_running_is_handed_out_again_with_its_history(
    plan_of: Plans, open_trials: Callable[[Plan], Trials]
) -> None:
    trials = open_trials(plan_of())
    first, second = trials.next(), trials.next()
    assert first is not None
    assert second is not None
    trials.progressed(second.id, report(21.0, iteration=4))
    finish(trials, first)

    again = open_trials(plan_of())
    record = again.next()
    assert record is not None
    assert (record.id, record.settings) == (second.id, second.settings)
    # The replayed line is known, the next one is news.
    again.progressed(record.id, report(21.0, iteration=4))
    again.progressed(record.id, report(22.0, iteration=8))
    assert [(line.iteration, line.values) for line in record.history] == [(4, [21.0]), (8, [22.0])]


@pytest.mark.parametrize(
    ("mode", "values", "front"),
    [
        (["max", "max"], [[1, 5], [2, 4], [1, 4], [3, 1]], ["0003", "0001", "0000"]),
        (["max", "min"], [[1, 5], [2, 4], [1, 4], [3, 1]], ["0003"]),
        (["min", "min"], [[2, 2], [2, 2], [3, 1], [None, 0]], ["0000", "0001", "0002"]),
    ],
)
def test_the_front_is_what_nothing_beats(
    plan_of: Plans,
    open_trials: Callable[[Plan], Trials],
    mode: list[str],
    values: list[list[float | None]],
    front: list[str],
) -> None:
    trials = open_trials(plan_of(metric=["uda/validation/psnr", "uda/target/l1"], mode=mode))
    for row in values:
        record = trials.next()
        assert record is not None
        last = report(None, values=row, is_last=True)
        trials.progressed(record.id, last)
        trials.ended(record.id, last)
    assert trials.front() == front


@pytest.mark.slow
def test_failed_trials_stay_until_they_are_asked_for(
    plan_of: Plans, open_trials: Callable[[Plan], Trials]
) -> None:
    trials = open_trials(plan_of(trials=3))
    for number in range(3):
        record = trials.next()
        assert record is not None
        if number == 1:
            trials.ended(record.id, report(None, is_last=True, error="no such thing"))
        else:
            finish(trials, record)
    assert trials.records["0001"].error == "no such thing"
    assert open_trials(plan_of(trials=3)).next() is None

    again = open_trials(plan_of(trials=3))
    again.retry_failed()
    record = again.next()
    assert record is not None
    assert record.id == "0001"
    finish(again, record)
    assert again.next() is None
    assert again.counts() == {"finished": 3}


def test_failures_in_a_row_end_the_sweep(
    plan_of: Plans, open_trials: Callable[[Plan], Trials]
) -> None:
    trials = open_trials(plan_of(trials=9, failures=2))
    for failed in (True, False, True, True):
        record = trials.next()
        assert record is not None
        if failed:
            trials.ended(record.id, report(None, is_last=True, error="the disk is full"))
        else:
            finish(trials, record)
    assert trials.next() is None
    assert trials.problem is not None
    assert "the last 2 trials failed" in trials.problem
    assert "the disk is full" in trials.problem


def test_a_trial_that_is_stopped_counts_as_pruned_with_its_values(
    plan_of: Plans, open_trials: Callable[[Plan], Trials]
) -> None:
    trials = open_trials(plan_of(stopping={"grace": 4}))
    record = trials.next()
    assert record is not None
    trials.progressed(record.id, report(20.0, iteration=4))
    trials.ended(record.id, None)
    assert record.state == "stopped"
    (trial,) = trials.study.study.get_trials()
    assert trial.state == optuna.trial.TrialState.PRUNED
    assert trial.intermediate_values == {4: 20.0}
    (rebuilt,) = open_trials(plan_of(stopping={"grace": 4})).study.study.get_trials()
    assert (rebuilt.state, rebuilt.params) == (trial.state, trial.params)
    assert rebuilt.intermediate_values == trial.intermediate_values


def test_repeats_train_the_best_and_the_baseline_with_other_seeds(
    plan_of: Plans, open_trials: Callable[[Plan], Trials]
) -> None:
    plan = plan_of(trials=3, repeat=3)
    trials = open_trials(plan)
    done = run_out(trials)
    best = max(done, key=quality)
    assert best.id != "0000"
    assert trials.begin_repeats()
    again = run_out(trials)
    names = [f"{best.id}-s1", f"{best.id}-s2", "0000-s1", "0000-s2"]
    assert [record.id for record in again] == names
    assert [record.seed for record in again] == [1, 2, 1, 2]
    assert again[0].settings == best.settings
    # They are no part of the search.
    assert trials.front() == [best.id]
    later = open_trials(plan)
    assert later.next() is None
    assert not later.begin_repeats()
    assert len(later.study.study.get_trials()) == 3


def test_every_variant_is_repeated(plan_of: Plans, open_trials: Callable[[Plan], Trials]) -> None:
    variants = {"full": {}, "no-s2t": {"stages.uda.s2t": False}}
    plan = plan_of(space=None, trials=None, variants=variants, repeat=2)
    trials = open_trials(plan)
    for value in (20.0, 21.0):
        record = trials.next()
        assert record is not None
        finish(trials, record, value)
    assert trials.next() is None
    assert [record.name for record in trials.records.values()] == ["full", "no-s2t"]
    assert trials.baseline is None
    assert trials.begin_repeats()
    assert [(r.id, r.name, r.seed) for r in iter(trials.next, None)] == [
        ("0000-s1", "full", 1),
        ("0001-s1", "no-s2t", 1),
    ]


def test_a_baseline_outside_of_the_space_is_trained_and_no_part_of_the_search(
    plan_of: Plans, open_trials: Callable[[Plan], Trials]
) -> None:
    plan = plan_of(trials=3, space={"stages.uda.gan": {"float": [0.5, 1.0]}})
    trials = open_trials(plan)
    for value in (25.0, 20.0, 21.0):
        record = trials.next()
        assert record is not None
        finish(trials, record, value)
    assert trials.records["0000"].settings == {}
    assert len(trials.study.study.get_trials()) == 2
    assert len(open_trials(plan).study.study.get_trials()) == 2


@pytest.mark.slow
@pytest.mark.parametrize("space", ["plain", "conditional", "two metrics"])
def test_a_gaussian_process_proposes_better_than_chance(
    plan_of: Plans, open_trials: Callable[[Plan], Trials], tmp_path: Path, space: str
) -> None:
    options: dict[str, Any] = {
        "plain": {},
        "conditional": {
            "space": {
                "network.codebook_size": {"choice": [16, 32]},
                "stages.uda.gan": {
                    "float": [0.001, 0.1],
                    "log": True,
                    "when": {"network.codebook_size": [16, 32]},
                },
            }
        },
        "two metrics": {"metric": ["uda/validation/psnr", "uda/validation/ssim"]},
    }[space]
    best = {}
    for sampler in ("gp", "random"):
        plan = plan_of(trials=12, startup_trials=5, sampler=sampler, baseline=False, **options)
        trials = open_trials(plan)
        count = len(plan.settings.metrics)
        while (record := trials.next()) is not None:
            last = report(0.0, values=[quality(record)] * count, is_last=True)
            trials.progressed(record.id, last)
            trials.ended(record.id, last)
        best[sampler] = max(map(quality, trials.records.values()))
        (tmp_path / "sweep" / "trials").rename(tmp_path / sampler)
    assert best["gp"] > best["random"]
    assert best["gp"] > 30.1


def test_a_parameter_under_a_condition_has_its_importance(
    plan_of: Plans, open_trials: Callable[[Plan], Trials]
) -> None:
    plan = plan_of(
        trials=30,
        sampler="random",
        baseline=False,
        space={
            "stages.uda.s2t": {"choice": [True, False]},
            "stages.uda.l1": {"float": [1.0, 2.0]},
            "stages.uda.gan": {"float": [0.0, 1.0], "when": {"stages.uda.s2t": [True]}},
        },
    )
    trials = open_trials(plan)
    while (record := trials.next()) is not None:
        # Where there are s2t images, only the weight of the GAN matters; elsewhere nothing does.
        finish(trials, record, 20.0 + 10 * record.settings.get("stages.uda.gan", 0.5))
    found = importances(trials.study.study)
    assert next(iter(found)) == "stages.uda.gan"
    assert found["stages.uda.l1"] < 0.2
    assert sum(found.values()) == pytest.approx(1)


def test_equal_trials_have_no_importances(
    plan_of: Plans, open_trials: Callable[[Plan], Trials]
) -> None:
    trials = open_trials(plan_of())
    for _ in range(4):
        record = trials.next()
        assert record is not None
        finish(trials, record, 20.0)
    assert importances(trials.study.study) == {}


def test_two_studies_of_one_seed_propose_the_same_and_of_another_do_not(
    plan_of: Plans, open_trials: Callable[[Plan], Trials], tmp_path: Path
) -> None:
    proposals = []
    for seed in (0, 0, 1):
        trials = open_trials(plan_of(seed=seed, sampler="random", baseline=False))
        proposals.append([record.settings for record in run_out(trials)])
        (tmp_path / "sweep" / "trials").rename(tmp_path / f"trials{len(proposals)}")
    assert proposals[0] == proposals[1]
    assert proposals[0] != proposals[2]


def test_the_time_of_all_starts_is_added(
    plan_of: Plans, open_trials: Callable[[Plan], Trials], tmp_path: Path
) -> None:
    trials = open_trials(plan_of())
    trials.write_time()
    (tmp_path / "sweep" / "seconds.json").write_text("100.0")
    assert 100 < open_trials(plan_of()).seconds() < 110


def test_a_budget_of_hours_counts_earlier_starts(
    plan_of: Plans, open_trials: Callable[[Plan], Trials], tmp_path: Path
) -> None:
    plan = plan_of(trials=None, hours=0.5)
    assert open_trials(plan).next() is not None
    (tmp_path / "sweep" / "seconds.json").write_text("1799")
    trials = open_trials(plan)
    assert trials.next() is not None  # the one that was begun
    (tmp_path / "sweep" / "seconds.json").write_text("1801")
    trials = open_trials(plan)
    assert trials.next() is not None
    assert trials.next() is None


def test_a_damaged_record_is_named(
    plan_of: Plans, open_trials: Callable[[Plan], Trials], tmp_path: Path
) -> None:
    run_out(open_trials(plan_of(trials=2)))
    file = tmp_path / "sweep" / "trials" / "0001" / "trial.json"
    file.write_text(file.read_text()[:-20])
    with pytest.raises(QdmrError, match=r"0001/trial\.json: is not JSON .*: its trial is then"):
        open_trials(plan_of(trials=2))


def test_a_record_of_an_earlier_version_goes_on(
    plan_of: Plans, open_trials: Callable[[Plan], Trials], tmp_path: Path
) -> None:
    (tmp_path / "sweep/trials/0000").mkdir(parents=True)
    # As it was written before files had a format.
    line = {"iteration": 4, "seconds": 1.5, "values": [20.0]}
    old = {
        "id": "0000",
        "number": 0,
        "seed": 0,
        "name": None,
        "state": "running",
        "settings": {"network.codebook_size": 16, "stages.uda.gan": 0.01},
        "metrics": {"uda/validation/psnr": 20.0},
        "values": [20.0],
        "history": [line],
        "progress": {"uda": 4},
        "stages": {"uda": "u"},
        "trained": [],
        "seconds": 1.5,
        "begun": 1.0,
        "ended": None,
        "error": None,
    }
    (tmp_path / "sweep/trials/0000/trial.json").write_text(json.dumps(old))
    trials = open_trials(plan_of())
    record = trials.next()
    assert record is not None
    assert record.id == "0000"
    trials.progressed("0000", report(21.0, iteration=8))
    kept = json.loads((tmp_path / "sweep/trials/0000/trial.json").read_text())
    assert kept["format"] == 1
    assert [row["values"] for row in kept["history"]] == [[20.0], [21.0]]


def test_sweep_json_says_what_became_of_each_trial(
    plan_of: Plans, open_trials: Callable[[Plan], Trials], tmp_path: Path
) -> None:
    trials = open_trials(plan_of(trials=3, stopping={"grace": 4}))
    run_out(trials)
    summary(trials, "finished").write(open_location(tmp_path / "sweep.json"))
    written = json.loads((tmp_path / "sweep.json").read_text())
    assert written["trials"][0] == {
        "id": "0000",
        "number": 0,
        "settings": {"network.codebook_size": 16, "stages.uda.gan": 0.01},
        "seed": 0,
        "name": None,
        "state": "finished",
        "metrics": {"uda/validation/psnr": 28.16},
        "values": [28.16],
        "history": [{"iteration": 12, "seconds": ANY, "values": [28.16]}],
        "progress": {"uda": 12},
        "stages": {"vqgan": "v", "uda": "u"},
        "trained": ["uda"],
        "seconds": ANY,
        "begun": ANY,
        "ended": ANY,
        "error": None,
        "iterations": 12,
        "run": "trials/0000",
    }
    assert written["best"] == written["front"][0] == trials.front()[0]
    assert written["metrics"] == [{"name": "uda/validation/psnr", "mode": "max"}]
    assert written["stopping"] == {"rule": "asha", "grace": 4, "reduction": 3.0}
    assert written["stages_trained"] == {"vqgan": 0, "uda": 1}
    read = SweepFile.read(open_location(tmp_path / "sweep.json"))
    assert read.to_dict() == written
    best = read.trial(written["best"])
    assert best is not None
    assert best.settings == trials.records[best.id].settings
