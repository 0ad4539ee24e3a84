"""What varies in a sweep: ranges, conditions, grids."""

from __future__ import annotations

from typing import Any

import optuna
import pytest

from qdmr_ray.errors import SettingsError
from qdmr_ray.sweeps.space import Space

CONDITIONAL = {
    "feature_gan": {"choice": [0, 0.01, 0.1]},
    "target_feature": {"float": [0.1, 1.0], "when": {"feature_gan": [0.01, 0.1]}},
    "feature_label": {"float": [0.2, 0.8], "when": {"target_feature_kind": "soft"}},
    "target_feature_kind": {"choice": ["soft", "hard"], "when": {"feature_gan": 0.1}},
}


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ([1, 2], "write choice"),
        ({}, "needs one of choice, float, int; it has 0"),
        ({"choice": [1], "int": [1, 2]}, "needs one of choice, float, int; it has 2"),
        ({"choices": [1]}, "unknown 'choices'"),
        ({"choice": []}, "must be a list of values"),
        ({"choice": 3}, "must be a list of values"),
        ({"choice": [1, 2, 1]}, "names a value twice"),
        ({"choice": [1, 2], "log": True}, "a choice has no log"),
        ({"float": [1]}, r"must be \[low, high\]"),
        ({"float": [1, "2"]}, r"must be \[low, high\]"),
        ({"float": [0, float("inf")]}, r"must be \[low, high\]"),
        ({"int": [1, 2.5]}, r"must be \[low, high\]"),
        ({"float": [2, 2]}, "is empty: 2 is not below 2"),
        ({"int": [5, 1]}, "is empty: 5 is not below 1"),
        ({"float": [0, 1], "log": True}, "needs values above 0"),
        ({"float": [0, 1], "log": "yes"}, "must be true or false"),
        ({"float": [0, 1], "step": 2}, "fit the range"),
        ({"float": [1, 2], "log": True, "step": 0.1}, "exclude each other"),
        ({"float": [0, 1], "when": {"y": 1}}, "y is not in the space"),
        ({"float": [0, 1], "when": {"other": 9}}, "other is never 9"),
        ({"float": [0, 1], "when": [1]}, "setting: value lines"),
    ],
)
def test_a_wrong_parameter_is_named(spec: Any, said: str) -> None:
    with pytest.raises(SettingsError, match=said) as raised:
        Space.parse({"x": spec, "other": {"choice": [1, 2]}})
    assert str(raised.value).startswith("space.x")


def test_conditions_in_a_circle_are_refused() -> None:
    space = {
        "a": {"choice": [1, 2], "when": {"b": 1}},
        "b": {"choice": [1, 2], "when": {"a": 1}},
    }
    with pytest.raises(SettingsError, match="a, b depend on each other"):
        Space.parse(space)


def test_what_depends_on_others_comes_after_them_and_varies_only_beside_their_values() -> None:
    space = Space.parse(CONDITIONAL)
    chosen = {"feature_gan": 0.1, "target_feature_kind": "soft"}

    def sampled(**changes: Any) -> set[str]:
        return set(space.sample(lambda p: (chosen | changes).get(p.name, 0.5)))

    assert sampled() == set(CONDITIONAL)
    assert sampled(target_feature_kind="hard") == set(CONDITIONAL) - {"feature_label"}
    assert sampled(feature_gan=0.01) == {"feature_gan", "target_feature"}
    assert sampled(feature_gan=0) == {"feature_gan"}


@pytest.mark.parametrize(
    ("settings", "inside"),
    [
        ({"feature_gan": 0}, True),
        ({"feature_gan": 0.01, "target_feature": 0.1}, True),
        ({"feature_gan": 0.01}, True),
        ({"feature_gan": 0, "target_feature": 0.5}, False),
        ({"feature_gan": 0.5}, False),
        ({"feature_gan": 0.01, "target_feature": 1.5}, False),
        ({"elsewhere": 1}, False),
    ],
)
def test_a_space_knows_what_it_holds(settings: dict[str, Any], inside: bool) -> None:
    assert Space.parse(CONDITIONAL).holds(settings) is inside


@pytest.mark.parametrize(
    ("spec", "value", "inside"),
    [
        ({"int": [2, 8], "step": 2}, 4, True),
        ({"int": [2, 8], "step": 2}, 5, False),
        ({"int": [2, 8]}, 4.0, False),
        ({"float": [0.0, 1.0], "step": 0.1}, 0.7, True),
        ({"float": [0.0, 1.0], "step": 0.1}, 0.75, False),
        ({"float": [0.0, 1.0]}, True, False),
        ({"choice": [[1, 2], [3]]}, [1, 2], True),
        ({"choice": [[1, 2], [3]]}, [1], False),
        ({"choice": [True, False]}, True, True),
        ({"choice": [None, 1]}, None, True),
    ],
)
def test_values_are_those_that_may_be_proposed(
    spec: dict[str, Any], value: Any, inside: bool
) -> None:
    assert Space.parse({"x": spec}).parameters["x"].holds(value) is inside


def test_a_grid_has_every_combination_once() -> None:
    space = Space.parse(
        {
            "k": {"choice": [256, 1024]},
            "dim": {"int": [1, 3]},
            "weight": {"float": [0.0, 0.2], "step": 0.1, "when": {"k": 1024}},
        }
    )
    grid = list(space.grid())
    assert len(grid) == 3 + 3 * 3
    assert grid[0] == {"k": 256, "dim": 1}
    assert [(row["dim"], round(row["weight"], 9)) for row in grid if row["k"] == 1024] == [
        (dim, weight) for dim in (1, 2, 3) for weight in (0.0, 0.1, 0.2)
    ]


def test_a_grid_needs_an_end_of_values() -> None:
    with pytest.raises(SettingsError, match=r"space\.x: a grid needs"):
        list(Space.parse({"x": {"float": [0, 1]}}).grid())


@pytest.mark.parametrize(
    "spec",
    [
        {"choice": [[100], [200, 260], None, True, 3, 0.5, "a"]},
        {"int": [1, 1024], "log": True},
        {"int": [2, 10], "step": 4},
        {"float": [1e-4, 1.0], "log": True},
        {"float": [0.0, 1.0], "step": 0.25},
    ],
)
def test_optuna_proposes_values_that_the_space_holds(spec: dict[str, Any]) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    parameter = Space.parse({"x": spec}).parameters["x"]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found = [parameter.suggest(study.ask()) for _ in range(40)]
    assert all(parameter.holds(value) for value in found)
    assert len({str(value) for value in found}) > 2
