"""Durations that the environment overrides."""

from __future__ import annotations

import pytest

from qdmr_ray.errors import SettingsError
from qdmr_ray.patience import WAITS, Wait


@pytest.mark.parametrize("wait", WAITS, ids=lambda wait: wait.variable)
def test_the_environment_overrides_each_duration(
    monkeypatch: pytest.MonkeyPatch, wait: Wait
) -> None:
    monkeypatch.delenv(wait.variable, raising=False)
    assert wait.seconds == wait.default
    monkeypatch.setenv(wait.variable, "0.25")
    assert wait.seconds == 0.25


@pytest.mark.parametrize("text", ["soon", "-1", "0", "inf", "nan"])
def test_what_is_no_duration_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    wait = WAITS[0]
    monkeypatch.setenv(wait.variable, text)
    with pytest.raises(SettingsError, match=f"{wait.variable} is '{text}': set it to a number"):
        _ = wait.seconds


def test_each_duration_has_a_variable_of_its_own() -> None:
    assert len({wait.variable for wait in WAITS}) == len(WAITS)
