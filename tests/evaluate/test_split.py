"""Which photographs a search may look at."""

from __future__ import annotations

import pytest

from qdmr_ray.config import EvaluationSettings
from qdmr_ray.errors import SettingsError
from qdmr_ray.evaluate.split import validation_indices

NAMES = [f"scene{number // 3}_{number % 3}" for number in range(30)]


def split(names: list[str] = NAMES, **settings: object) -> list[int]:
    return validation_indices(EvaluationSettings(**settings), names)  # type: ignore[arg-type]


def test_nothing_is_validated_on_by_default() -> None:
    assert split() == []


def test_a_share_is_exact_and_the_same_in_whatever_order_the_photographs_come() -> None:
    chosen = {NAMES[i] for i in split(validation_share=0.4)}
    assert len(chosen) == 12
    backwards = NAMES[::-1]
    assert {backwards[i] for i in split(backwards, validation_share=0.4)} == chosen


def test_a_larger_share_holds_the_smaller_one() -> None:
    assert set(split(validation_share=0.2)) < set(split(validation_share=0.5))


def test_patterns_name_whole_scenes() -> None:
    assert split(validation_names=("scene1_*", "scene9_2")) == [3, 4, 5, 29]


def test_names_go_before_a_share() -> None:
    assert split(validation_names=("scene0_0",), validation_share=0.5) == [0]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"validation_names": ("scene1_*", "night*")}, "no test photograph is called night*"),
        ({"validation_names": ("*",)}, "none is left for the final figures"),
        ({"validation_share": 1.0}, "none is left for the final figures"),
        ({"validation_share": 0.01}, "of 30 test photographs is none"),
    ],
)
def test_a_split_that_leaves_a_part_empty_is_refused(
    settings: dict[str, object], said: str
) -> None:
    with pytest.raises(SettingsError, match=said.replace("*", r"\*")):
        split(**settings)
