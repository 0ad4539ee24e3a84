"""The books of a sweep: every trial once, whatever happens between two lines."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from qdmr_ray.errors import QdmrError
from qdmr_ray.storage import open_location
from qdmr_ray.sweeps.plan import Plan
from qdmr_ray.sweeps.record import Record, read_records
from qdmr_ray.sweeps.trials import Book

Plans = Callable[..., Plan]


@pytest.fixture
def open_book(tmp_path: Path) -> Callable[[Plan], Book]:
    """Opens the same sweep again and again, each time as a new process would."""
    starts = itertools.count()

    def opened(plan: Plan) -> Book:
        scratch = tmp_path / f"scratch{next(starts)}"
        scratch.mkdir()
        return Book(plan, open_location(tmp_path / "sweep"), scratch, lambda _: None)

    return opened


def news(value: float | None, iteration: int = 12, **more: Any) -> dict[str, Any]:
    return {
        "progress": {"uda": iteration},
        "stages": {"vqgan": "v", "uda": "u"},
        "trained": ["uda"],
        "metrics": {"uda/validation/psnr": value},
        "iteration": iteration,
        "values": [value],
        **more,
    }


def quality(record: Record) -> float:
    """A figure that is best at gan = 0.03 and 32 codes."""
    gan, codes = record.settings["stages.uda.gan"], record.settings["network.codebook_size"]
    return 30 - 100 * abs(gan - 0.03) + codes / 100


def finish(book: Book, record: Record, value: float | None = None) -> None:
    word = news(quality(record) if value is None else value, error=None)
    book.progressed(record.id, word)
    book.ended(record.id, word)


def run_out(book: Book) -> list[Record]:
    """Lets every trial finish, one after the other."""
    done = []
    while (record := book.next()) is not None:
        finish(book, record)
        done.append(record)
    return done


def test_trials_end_with_the_budget_and_begin_with_the_experiments_own_settings(
    plan_of: Plans, open_book: Callable[[Plan], Book]
) -> None:
    book = open_book(plan_of(trials=5, first=[{"network.codebook_size": 32}]))
    done = run_out(book)
    assert [record.id for record in done] == ["0000", "0001", "0002", "0003", "0004"]
    assert book.baseline == "0000"
    assert done[0].settings == {"network.codebook_size": 16, "stages.uda.gan": 0.01}
    assert done[1].settings["network.codebook_size"] == 32
    assert len({record.settings["stages.uda.gan"] for record in done}) == 5
    assert book.front() == [max(done, key=quality).id]
    assert book.counts() == {"finished": 5}


def test_a_budget_in_iterations_counts_shared_stages_once(
    plan_of: Plans, open_book: Callable[[Plan], Book]
) -> None:
    book = open_book(plan_of(trials=None, iterations=100))
    for trained in ({"vqgan": 40, "uda": 12}, {"uda": 12}, {"uda": 12}, {"uda": 40}):
        record = book.next()
        assert record is not None
        stages = {"vqgan": "one for all", "uda": record.id}
        book.progressed(record.id, news(20.0) | {"progress": trained, "stages": stages})
        book.ended(record.id, news(20.0, error=None))
    assert book.iterations() == 116
    assert book.next() is None


def test_a_killed_sweep_goes_on_as_it_would_have(
    plan_of: Plans, open_book: Callable[[Plan], Book]
) -> None:
    plan = plan_of(trials=12, startup_trials=4)
    undisturbed = [record.settings for record in run_out(open_book(plan))]
    for folder in (open_book(plan).sweep.local_path or Path()).iterdir():
        if folder.name == "trials":
            folder.rename(folder.with_name("elsewhere"))

    done: dict[str, Record] = {}
    for stop_after in (1, 4, 5, 100):
        book = open_book(plan)
        for _ in range(stop_after):
            record = book.next()
            if record is None:
                break
            finish(book, record)
            assert record.id not in done
            done[record.id] = record
        # Killed with a trial begun that has told a value.
        record = book.next()
        if record is not None:
            book.progressed(record.id, news(1.0, iteration=4))
    assert [done[name].settings for name in sorted(done)] == undisturbed


def test_what_was_running_is_handed_out_again_with_its_history(
    plan_of: Plans, open_book: Callable[[Plan], Book]
) -> None:
    book = open_book(plan_of())
    first, second = book.next(), book.next()
    assert first is not None
    assert second is not None
    book.progressed(second.id, news(21.0, iteration=4))
    finish(book, first)

    again = open_book(plan_of())
    record = again.next()
    assert record is not None
    assert (record.id, record.settings) == (second.id, second.settings)
    # The replayed line is known, the next one is news.
    again.progressed(record.id, news(21.0, iteration=4))
    again.progressed(record.id, news(22.0, iteration=8))
    assert [line["iteration"] for line in record.history] == [4, 8]
    assert [line["values"] for line in record.history] == [[21.0], [22.0]]


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
    open_book: Callable[[Plan], Book],
    mode: list[str],
    values: list[list[float | None]],
    front: list[str],
) -> None:
    book = open_book(plan_of(metric=["uda/validation/psnr", "uda/target/l1"], mode=mode))
    for row in values:
        record = book.next()
        assert record is not None
        word = news(None) | {"values": row, "error": None}
        book.progressed(record.id, word)
        book.ended(record.id, word)
    assert book.front() == front


def test_failed_trials_stay_until_they_are_asked_for(
    plan_of: Plans, open_book: Callable[[Plan], Book]
) -> None:
    book = open_book(plan_of(trials=3))
    for number in range(3):
        record = book.next()
        assert record is not None
        if number == 1:
            book.ended(record.id, news(None) | {"error": "no such thing"})
        else:
            finish(book, record)
    assert book.records["0001"].error == "no such thing"
    assert open_book(plan_of(trials=3)).next() is None

    again = open_book(plan_of(trials=3))
    again.retry_failed()
    record = again.next()
    assert record is not None
    assert record.id == "0001"
    finish(again, record)
    assert again.next() is None
    assert again.counts() == {"finished": 3}


def test_failures_in_a_row_end_the_sweep(plan_of: Plans, open_book: Callable[[Plan], Book]) -> None:
    book = open_book(plan_of(trials=9, failures=2))
    for failed in (True, False, True, True):
        record = book.next()
        assert record is not None
        if failed:
            book.ended(record.id, news(None) | {"error": "the disk is full"})
        else:
            finish(book, record)
    assert book.next() is None
    assert book.problem is not None
    assert "the last 2 trials failed" in book.problem
    assert "the disk is full" in book.problem


def test_a_trial_that_is_stopped_counts_as_pruned_with_its_values(
    plan_of: Plans, open_book: Callable[[Plan], Book]
) -> None:
    book = open_book(plan_of(stopping={"grace": 4}))
    record = book.next()
    assert record is not None
    book.progressed(record.id, news(20.0, iteration=4))
    book.ended(record.id, None)
    assert record.state == "stopped"
    (trial,) = book.study.study.get_trials()
    assert trial.state == optuna.trial.TrialState.PRUNED
    assert trial.intermediate_values == {4: 20.0}
    (rebuilt,) = open_book(plan_of(stopping={"grace": 4})).study.study.get_trials()
    assert (rebuilt.state, rebuilt.params) == (trial.state, trial.params)
    assert rebuilt.intermediate_values == trial.intermediate_values


def test_repeats_train_the_best_and_the_baseline_with_other_seeds(
    plan_of: Plans, open_book: Callable[[Plan], Book]
) -> None:
    plan = plan_of(trials=3, repeat=3)
    book = open_book(plan)
    done = run_out(book)
    best = max(done, key=quality)
    assert best.id != "0000"
    assert book.begin_repeats()
    again = run_out(book)
    names = [f"{best.id}-s1", f"{best.id}-s2", "0000-s1", "0000-s2"]
    assert [record.id for record in again] == names
    assert [record.seed for record in again] == [1, 2, 1, 2]
    assert again[0].settings == best.settings
    # They are no part of the search.
    assert book.front() == [best.id]
    later = open_book(plan)
    assert later.next() is None
    assert not later.begin_repeats()
    assert len(later.study.study.get_trials()) == 3


def test_every_variant_is_repeated(plan_of: Plans, open_book: Callable[[Plan], Book]) -> None:
    variants = {"full": {}, "no-s2t": {"stages.uda.s2t": False}}
    plan = plan_of(space=None, trials=None, variants=variants, repeat=2)
    book = open_book(plan)
    for value in (20.0, 21.0):
        record = book.next()
        assert record is not None
        finish(book, record, value)
    assert book.next() is None
    assert [record.name for record in book.records.values()] == ["full", "no-s2t"]
    assert book.baseline is None
    assert book.begin_repeats()
    assert [(r.id, r.name, r.seed) for r in iter(book.next, None)] == [
        ("0000-s1", "full", 1),
        ("0001-s1", "no-s2t", 1),
    ]


def test_a_baseline_outside_of_the_space_is_trained_and_no_part_of_the_search(
    plan_of: Plans, open_book: Callable[[Plan], Book]
) -> None:
    plan = plan_of(trials=3, space={"stages.uda.gan": {"float": [0.5, 1.0]}})
    book = open_book(plan)
    for value in (25.0, 20.0, 21.0):
        record = book.next()
        assert record is not None
        finish(book, record, value)
    assert book.records["0000"].settings == {}
    assert len(book.study.study.get_trials()) == 2
    assert len(open_book(plan).study.study.get_trials()) == 2


def test_two_studies_of_one_seed_propose_the_same_and_of_another_do_not(
    plan_of: Plans, open_book: Callable[[Plan], Book], tmp_path: Path
) -> None:
    proposals = []
    for seed in (0, 0, 1):
        book = open_book(plan_of(seed=seed, sampler="random", baseline=False))
        proposals.append([record.settings for record in run_out(book)])
        (tmp_path / "sweep" / "trials").rename(tmp_path / f"trials{len(proposals)}")
    assert proposals[0] == proposals[1]
    assert proposals[0] != proposals[2]


def test_the_time_of_all_starts_is_added(
    plan_of: Plans, open_book: Callable[[Plan], Book], tmp_path: Path
) -> None:
    book = open_book(plan_of())
    book.write_time()
    (tmp_path / "sweep" / "seconds.json").write_text("100.0")
    assert 100 < open_book(plan_of()).seconds() < 110


def test_a_budget_of_hours_counts_earlier_starts(
    plan_of: Plans, open_book: Callable[[Plan], Book], tmp_path: Path
) -> None:
    plan = plan_of(trials=None, hours=0.5)
    assert open_book(plan).next() is not None
    (tmp_path / "sweep" / "seconds.json").write_text("1799")
    book = open_book(plan)
    assert book.next() is not None  # the one that was begun
    (tmp_path / "sweep" / "seconds.json").write_text("1801")
    book = open_book(plan)
    assert book.next() is not None
    assert book.next() is None


def test_a_damaged_record_is_named(
    plan_of: Plans, open_book: Callable[[Plan], Book], tmp_path: Path
) -> None:
    run_out(open_book(plan_of(trials=2)))
    file = tmp_path / "sweep" / "trials" / "0001" / "trial.json"
    file.write_text(file.read_text()[:-20])
    with pytest.raises(QdmrError, match=r"0001/trial\.json: is damaged"):
        open_book(plan_of(trials=2))


def test_records_hold_what_sweep_json_shows(
    plan_of: Plans, open_book: Callable[[Plan], Book], tmp_path: Path
) -> None:
    run_out(open_book(plan_of(trials=1)))
    (record,) = read_records(open_location(tmp_path / "sweep"))
    shown = json.loads(json.dumps(record.to_dict()))
    assert shown["run"] == "trials/0000"
    assert shown["iterations"] == 12
    assert shown["state"] == "finished"
    assert shown["values"] == [pytest.approx(quality(record))]
