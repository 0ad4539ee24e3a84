"""``qdmr config``: what it shows loads back, and the schema agrees with what is accepted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import Command
from jsonschema import Draft202012Validator

from qdmr_ray.config import experiment_type, load_experiment
from qdmr_ray.parsing import all_settings

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
FILES = sorted(EXPERIMENTS.rglob("*.yaml"))


@pytest.fixture
def validator(qdmr: Command) -> Draft202012Validator:
    """Of the schema of experiments."""
    return parsed(qdmr("config", "schema").out)


def parsed(text: str) -> Draft202012Validator:
    schema = json.loads(text)
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def wrong(validator: Draft202012Validator, values: Any) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(values)]


def test_what_is_shown_loads_back_to_the_same_experiment(qdmr: Command, tmp_path: Path) -> None:
    file = EXPERIMENTS / "demo.yaml"
    overrides = ("--set", "seed=3", "--set", "stages.uda.same_place_crops=true")
    shown = qdmr("config", "show", file, *overrides)
    assert shown.code == 0
    (tmp_path / "again.yaml").write_text(shown.out)
    assert load_experiment(tmp_path / "again.yaml") == load_experiment(file, overrides[1::2])


def test_every_setting_is_shown_with_its_help_unit_limits_and_default(qdmr: Command) -> None:
    shown = qdmr("config", "show", EXPERIMENTS / "demo.yaml").out
    text = " ".join(line.strip().removeprefix("# ") for line in shown.splitlines())
    for name, field in all_settings(experiment_type()):
        assert f"{name.rpartition('.')[2]}: " in shown
        assert field.metadata["help"] in text, name
    assert "averages logged (iterations; at least 1; default 100) log_interval: " in text
    assert '(one of float32, tf32, bfloat16; default "float32")' in text


def test_a_wrong_experiment_is_told_with_its_file(qdmr: Command, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("sed: 1")
    told = qdmr("config", "show", tmp_path / "x.yaml")
    assert told.code == 2
    assert told.line.startswith(f"qdmr: {tmp_path / 'x.yaml'}: unknown setting sed")


def test_every_shipped_file_agrees_with_its_schema(
    qdmr: Command, validator: Draft202012Validator
) -> None:
    sweeps = parsed(qdmr("config", "schema", "--sweep").out)
    kinds = set()
    for file in FILES:
        values = yaml.safe_load(file.read_text())
        is_sweep = "experiment" in values
        kinds.add(is_sweep)
        assert wrong(sweeps if is_sweep else validator, values) == [], file
        assert wrong(validator if is_sweep else sweeps, values) != [], file
    assert kinds == {True, False}


def test_a_run_and_empty_sections_agree(validator: Draft202012Validator) -> None:
    from qdmr_ray.config import dump_experiment

    saved = dump_experiment(load_experiment(EXPERIMENTS / "demo.yaml"))
    assert wrong(validator, yaml.safe_load(saved)) == []
    assert wrong(validator, {"stages": {"vqgan": None}, "logging": None}) == []


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ({"sed": 1}, "$: "),
        ({"seed": -1}, "$.seed: "),
        ({"seed": "one"}, "$.seed: "),
        ({"run": ["vqgan", "bas"]}, "$.run[1]: "),
        ({"stages": {"vqgan": {"crops": 1}}}, "$.stages.vqgan: "),
        ({"compute": {"dtype": "float16"}}, "$.compute.dtype: "),
        ({"scaling": {"resize_interval": 0}}, "$.scaling.resize_interval: "),
        ({"scaling": {"gpus_per_worker": 2}}, "$.scaling.gpus_per_worker: "),
        ({"network": {"widths": [0, 8]}}, "$.network.widths[0]: "),
        ({"evaluation": {"luma": "yes"}}, "$.evaluation.luma: "),
    ],
)
def test_what_would_be_refused_disagrees_at_its_place(
    values: dict[str, Any], place: str, validator: Draft202012Validator
) -> None:
    (told,) = wrong(validator, values)
    assert told.startswith(place)
