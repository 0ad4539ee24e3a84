"""Ctrl-C while workers train: what the driver does, without Ray (``test_training.py`` has it)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from qdmr_ray.train import ray_trainer as launch
from qdmr_ray.train.logging.progress_bar import ProgressBoard


class Board:
    """Answers like a ``ProgressBoard``; its training has left after so many questions."""

    def __init__(self, *, news: Any, leaves_after: int) -> None:
        self.asked: list[str] = []
        self._news, self._leaves_after = news, leaves_after

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda: self._answer(name))

    def _answer(self, name: str) -> Any:
        self.asked.append(name)
        if name == "read":
            return self._news
        return name == "left" and self.asked.count("left") > self._leaves_after


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    boards: list[Any] = []
    monkeypatch.setattr(launch, "_abort", boards.append)
    monkeypatch.setattr(launch.ray, "get", lambda answer, **_: answer)
    monkeypatch.setattr(launch.time, "sleep", lambda _: None)
    return boards


def interrupted(board: Board) -> None:
    def fit() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launch._fit(SimpleNamespace(fit=fit), board)  # type: ignore[arg-type]


def test_a_checkpoint_is_waited_for(ended: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    board = Board(news={"iteration": 3}, leaves_after=2)
    interrupted(board)
    assert board.asked == ["read", "stop", "left", "left", "left"]
    assert ended == [board]
    assert capsys.readouterr().err == ("qdmr: saving a checkpoint; Ctrl-C again ends without\n")


def test_nothing_is_saved_before_the_first_step(
    ended: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    board = Board(news=None, leaves_after=0)
    interrupted(board)
    assert board.asked == ["read"]
    assert ended == [board]
    assert not capsys.readouterr().err


def test_a_second_one_ends_without(ended: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def again(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(launch.time, "sleep", again)
    board = Board(news={"iteration": 3}, leaves_after=5)
    interrupted(board)
    assert board.asked.count("left") == 1
    assert ended == [board]


def test_a_training_that_does_not_answer_is_ended(
    ended: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(launch.time, "monotonic", lambda: next(clock))
    board = Board(news={"iteration": 3}, leaves_after=10_000)
    interrupted(board)
    assert board.asked.count("left") == launch._SAVE_SECONDS // 10
    assert ended == [board]


def test_a_training_that_goes_on_after_a_notice_has_not_left() -> None:
    """Otherwise Ctrl-C later would take the checkpoint of back then for the one it asks for."""
    board = ProgressBoard.__ray_metadata__.modified_class()  # type: ignore[attr-defined]
    assert board.post({"iteration": 3}) is False
    board.leave()
    assert board.left()
    board.post({"iteration": 4})
    assert not board.left()
    board.stop()
    assert board.post({"iteration": 5}) is True
