"""Sweep files: what they may say, and what is refused in one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qdmr_ray.cli.main import main
from qdmr_ray.errors import QdmrError, SettingsError
from qdmr_ray.storage import open_location
from qdmr_ray.sweeps.plan import Plan, load_sweep
from qdmr_ray.sweeps.run import begun, check_same, store_of

Plans = Callable[..., Plan]
SHIPPED = sorted(
    file
    for file in (Path(__file__).parents[2] / "experiments").rglob("*.yaml")
    if "\nexperiment: " in file.read_text()
)


def test_a_trial_has_the_spaces_values_and_the_sweeps_own(plan_of: Plans) -> None:
    plan = plan_of(set={"stages.uda.l1": 2.0, "evaluation.border": 4}, sections={"seed": 5})
    experiment = plan.experiment({"stages.uda.gan": 0.05}, name="0003", seed=2)
    assert experiment.stages.uda.gan == 0.05
    assert experiment.stages.uda.l1 == 2.0
    assert experiment.evaluation.border == 4
    assert experiment.name == "0003"
    assert experiment.seed == 7
    # A trial leaves the plan as it was.
    assert plan.experiment({}, name="x", seed=0).stages.uda.gan == 0.01


def test_the_baseline_is_the_experiment_where_the_space_holds_it(plan_of: Plans) -> None:
    assert plan_of().baseline() == {"network.codebook_size": 16, "stages.uda.gan": 0.01}
    outside = plan_of(space={"stages.uda.gan": {"float": [0.5, 1.0]}})
    assert outside.baseline() == {}


def test_variants_are_settings_by_name(plan_of: Plans) -> None:
    variants = {
        "base": {"run": ["vqgan", "base"]},
        "plain": {},
        "no-s2t": {"stages.uda.s2t": False},
    }
    plan = plan_of(space=None, trials=None, variants=variants, metric="last/validation/psnr")
    assert plan.fixed() == [{"variant": name} for name in variants]
    base = plan.experiment({"variant": "base"}, name="x", seed=0)
    assert base.run == ("vqgan", "base")
    assert plan.stage_metrics(base) == [("base", "validation/psnr")]
    without = plan.experiment({"variant": "no-s2t"}, name="x", seed=0)
    assert without.stages.uda.s2t is False
    assert plan.stage_metrics(without) == [("uda", "validation/psnr")]


def test_a_grid_is_fixed_from_the_start(plan_of: Plans) -> None:
    plan = plan_of(
        sampler="grid", trials=None, space={"network.codebook_size": {"choice": [16, 32]}}
    )
    assert plan.fixed() == [{"network.codebook_size": 16}, {"network.codebook_size": 32}]
    assert plan_of().fixed() is None


BAD: list[tuple[dict[str, Any], str]] = [
    ({"tirals": 3}, "unknown setting tirals; did you mean trials?"),
    ({"trials": 0}, "trials must be at least 1"),
    ({"trials": None}, "set a budget: trials, iterations or hours"),
    ({"space": None}, "write either space"),
    ({"variants": {"a": {}}}, "write either space"),
    ({"name": "a/b"}, "name must be letters"),
    ({"mode": "best"}, "mode must be max or min"),
    ({"mode": ["max", "min"]}, "mode must have a value for each of 1 metrics"),
    ({"sampler": "bayes"}, "sampler must be one of tpe, gp, random, grid"),
    ({"stopping": {"rule": "asha", "grace": 0}}, "stopping.grace must be at least 1"),
    (
        {"stopping": {"grace": 4}, "metric": ["uda/validation/psnr", "uda/validation/ssim"]},
        "stopping works with a single metric",
    ),
    ({"metric": "psnr"}, "write stage/metric"),
    ({"metric": "uad/validation/psnr"}, "write stage/metric"),
    ({"metric": "base/validation/psnr"}, "the stages of a trial are vqgan, uda"),
    ({"space": {"stages.uda.gann": {"choice": [1]}}}, "did you mean stages.uda.gan?"),
    ({"space": {"codebook_size": {"choice": [1]}}}, "did you mean network.codebook_size?"),
    ({"space": {"stages.uda": {"choice": [1]}}}, "unknown setting stages.uda"),
    ({"space": {"stages.uda.gan": {"float": [3, 3]}}}, "is empty"),
    ({"space": {"stages.uda.gan": {"float": [-1, 1]}}}, "stages.uda.gan must be at least 0"),
    ({"space": {"network.codebook_size": {"choice": ["many"]}}}, "codebook_size is 'many'"),
    ({"space": {"logging.log_interval": {"choice": [1, 2]}}}, "changes no weights"),
    ({"set": {"stages.uda.gann": 1}}, "set: unknown setting stages.uda.gann"),
    ({"set": {"stages": {"uda": {"gann": 1}}}}, "set: unknown setting stages.uda.gann"),
    ({"set": {"stages.uda": {7: 1}}}, "set: 7 is no name of a setting"),
    ({"space": {"scaling.workers": {"choice": [1, 2]}}}, "same for all trials of a sweep"),
    ({"space": {"data.loader_workers": {"choice": [1, 2]}}}, "set it in `set` instead"),
    (
        {"space": None, "trials": None, "variants": {"a": {"scaling": {"workers": 2}}}},
        "scaling.workers is the same for all trials",
    ),
    ({"set": {"logging.validation_interval": None}}, "only logged with logging.validation_int"),
    ({"first": [{"network.codebook_size": 64}]}, "is not in the space"),
    ({"sampler": "grid"}, "a grid needs"),
    ({"space": None, "trials": None, "variants": {"a": 3}}, "variants.a must be setting: value"),
    (
        {"space": None, "trials": None, "variants": {"a": {"stages.uda.gan": -1}}},
        "stages.uda.gan must be at least 0",
    ),
    ({"experiment": ""}, "experiment is not set"),
]


@pytest.mark.parametrize(("changes", "said"), BAD)
def test_a_wrong_file_is_refused_in_one_line_that_names_it(
    write_sweep: Callable[..., Path], changes: dict[str, Any], said: str
) -> None:
    file = write_sweep(**changes)
    with pytest.raises(SettingsError) as raised:
        load_sweep(file)
    text = str(raised.value)
    assert said in text
    assert text.startswith(str(file))
    assert "\n" not in text


def test_a_missing_experiment_is_named(write_sweep: Callable[..., Path]) -> None:
    with pytest.raises(QdmrError, match=r"nowhere\.yaml: no such file"):
        load_sweep(write_sweep(experiment="nowhere.yaml"))


def test_overrides_replace_settings_of_the_sweep(write_sweep: Callable[..., Path]) -> None:
    plan = load_sweep(write_sweep(), ["trials=9", "set={stages.uda.l1: 3}"], name="other")
    assert plan.settings.trials == 9
    assert plan.settings.name == "other"
    assert plan.experiment({}, name="x", seed=0).stages.uda.l1 == 3


def test_a_section_may_be_set_as_in_an_experiment(plan_of: Plans) -> None:
    optimizer = {"generator_lr": 0.003, "milestones": [7]}
    plan = plan_of(set={"stages.uda": {"gan": 0.5, "optimizer": optimizer}})
    uda = plan.experiment({}, name="x", seed=0).stages.uda
    assert (uda.gan, uda.optimizer.generator_lr, uda.optimizer.milestones) == (0.5, 0.003, (7,))
    # Settings beside them stay those of the experiment.
    assert (uda.iterations, uda.crop) == (12, 16)


def test_a_variant_may_have_a_section(plan_of: Plans) -> None:
    variants = {"a": {"stages": {"uda": {"optimizer": {"generator_lr": 0.003}}}}, "b": None}
    plan = plan_of(space=None, trials=None, variants=variants)
    uda = plan.experiment({"variant": "a"}, name="x", seed=0).stages.uda
    assert (uda.optimizer.generator_lr, uda.iterations) == (0.003, 12)
    assert plan.experiment({"variant": "b"}, name="x", seed=0).stages.uda.iterations == 12


def test_the_file_in_a_sweeps_folder_is_that_sweep(plan_of: Plans, tmp_path: Path) -> None:
    plan = plan_of(set={"stages.uda.l1": 2.0}, name="codes", trials=3)
    place = open_location(tmp_path / "codes" / "sweep.yaml")
    begun(plan).write(place)
    again = load_sweep(Path(place.path))
    assert again.settings == plan.settings
    assert again.values == plan.values
    check_same(open_location(tmp_path / "codes"), again)
    assert load_sweep(Path(place.path), ["trials=9"]).settings.trials == 9


def test_a_sweep_goes_on_with_settings_that_are_new_since_then(
    plan_of: Plans, tmp_path: Path
) -> None:
    plan, place = plan_of(), open_location(tmp_path / "sweep")
    begun(plan).write(place.join("sweep.yaml"))
    file = tmp_path / "sweep" / "sweep.yaml"
    content = json.loads(file.read_text())
    for name in ("baseline", "startup_trials"):
        del content["sweep"][name]
    # A default that was written out, or isn't any more, is no change either.
    content["experiment"]["stages"]["uda"]["gan"] = 0.01
    file.write_text(json.dumps(content))
    check_same(place, plan)
    content["experiment"]["stages"]["uda"]["gan"] = 0.02
    file.write_text(json.dumps(content))
    with pytest.raises(QdmrError, match=r"experiment stages.uda.gan was 0.02, now 0.01\)"):
        check_same(place, plan)
    content["experiment"]["stages"]["uda"]["a_setting_of_old"] = 1
    file.write_text(json.dumps(content))
    with pytest.raises(QdmrError, match=r"experiment stages was .*; choose another --name"):
        check_same(place, plan)


def test_a_relative_store_lies_in_the_folder_of_the_command(
    plan_of: Plans, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = open_location(tmp_path / "sweep")

    def store(named: str | None) -> str:
        plan = plan_of(store=named)
        return store_of(plan, sweep, plan.experiment({}, name="x", seed=0))

    assert store("shared/stages") == str(tmp_path / "shared" / "stages")
    assert store("s3://lens/stages") == "s3://lens/stages"
    assert store(None) == str(tmp_path / "sweep" / "stages")


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_shipped_sweeps_are_valid(file: Path) -> None:
    plan = load_sweep(file)
    assert plan.settings.name == file.stem


def test_the_demos_sweep_has_sixteen_trials_over_two_codebooks() -> None:
    plan = load_sweep(SHIPPED[[file.stem for file in SHIPPED].index("demo")])
    assert plan.settings.trials == 16
    assert len(plan.space.parameters["network.codebook_size"].choices) == 2


def test_a_wrong_sweep_is_one_line_and_exit_code_2(
    write_sweep: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = write_sweep(space={"stages.uda.gann": {"choice": [1]}})
    monkeypatch.setattr(sys, "argv", ["qdmr", "sweep", str(file), "--storage", str(tmp_path / "r")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert (
        said
        == f"qdmr: {file}: space: unknown setting stages.uda.gann; did you mean stages.uda.gan?"
    )
    assert not (tmp_path / "r").exists()
