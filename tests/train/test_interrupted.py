"""Ctrl-C while workers train: what the driver does, without Ray (``test_training.py`` has it)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from qdmr_ray.patience import SAVE
from qdmr_ray.train import ray_trainer
from qdmr_ray.train.logging.board import Board, News


class FakeBoard:
    """Answers like a ``Board``; its training has left after so many questions."""

    def __init__(self, *, iteration: int | None, leaves_after: int) -> None:
        self.asked: list[str] = []
        self._iteration, self._leaves_after = iteration, leaves_after

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda: self._answer(name))

    def _answer(self, name: str) -> Any:
        self.asked.append(name)
        if name == "news":
            return News(self._iteration)
        return name == "left" and self.asked.count("left") > self._leaves_after


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    boards: list[Any] = []
    monkeypatch.setattr(ray_trainer, "_abort", boards.append)
    monkeypatch.setattr(ray_trainer.ray, "get", lambda answer, **_: answer)
    monkeypatch.setattr(ray_trainer.time, "sleep", lambda _: None)
    return boards


def interrupted(board: FakeBoard) -> None:
    """Ctrl-C arrives while the driver shows the first news."""

    def look(news: News) -> None:
        raise KeyboardInterrupt

    trainer = SimpleNamespace(fit=lambda: None)
    with pytest.raises(KeyboardInterrupt):
        ray_trainer._fit(trainer, board, look)  # type: ignore[arg-type]


def test_a_checkpoint_is_waited_for(ended: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    board = FakeBoard(iteration=3, leaves_after=2)
    interrupted(board)
    assert board.asked == ["news", "news", "stop", "left", "left", "left"]
    assert ended == [board]
    assert capsys.readouterr().err == ("qdmr: saving a checkpoint; Ctrl-C again ends without\n")


def test_a_board_that_answers_late_is_waited_for(
    ended: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a busy machine: it needs 20 s."""

    def get(answer: Any, timeout: float = SAVE.default) -> Any:
        if timeout < 20:
            raise ray_trainer.ray.exceptions.GetTimeoutError
        return answer

    monkeypatch.setattr(ray_trainer.ray, "get", get)
    board = FakeBoard(iteration=3, leaves_after=0)
    interrupted(board)
    assert board.asked == ["news", "news", "stop", "left"]
    assert ended == [board]


def test_nothing_is_saved_before_the_first_step(
    ended: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    board = FakeBoard(iteration=None, leaves_after=0)
    interrupted(board)
    assert board.asked == ["news", "news"]
    assert ended == [board]
    assert not capsys.readouterr().err


def test_a_second_one_ends_without(ended: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def again(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ray_trainer.time, "sleep", again)
    board = FakeBoard(iteration=3, leaves_after=5)
    interrupted(board)
    assert board.asked.count("left") == 1
    assert ended == [board]


def test_a_training_that_does_not_answer_is_ended(
    ended: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(ray_trainer.time, "monotonic", lambda: next(clock))
    board = FakeBoard(iteration=3, leaves_after=10_000)
    interrupted(board)
    assert board.asked.count("left") == SAVE.default // 10
    assert ended == [board]


def test_a_training_that_goes_on_after_a_notice_has_not_left() -> None:
    """Otherwise Ctrl-C later would take the checkpoint of back then for the one it asks for."""
    board = Board.__ray_metadata__.modified_class()  # type: ignore[attr-defined]
    assert board.post(3, {}) is False
    board.leave()
    assert board.left()
    board.post(4, {})
    assert not board.left()
    board.stop()
    assert board.post(5, {}) is True
