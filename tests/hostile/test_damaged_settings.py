"""Thousands of damaged variants of settings, of a kind that people and programs write."""

import shutil
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from hostile.damage import damaged_bytes, damaged_yaml, holds
from hostile.limits import refused

from qdmr_ray.config import dump_experiment, experiment_of_run, load_experiment, stage_digest
from qdmr_ray.optics.lens import load_lens
from qdmr_ray.report.run_folder import read_run
from qdmr_ray.storage import open_location
from qdmr_ray.sweeps.plan import load_sweep

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments"
LENS = {
    "optics": {"rows": 2, "columns": 2, "support": 15, "defocus": 0.1, "tilt": [0.0, 0.1]},
    "camera": {"glare": 0.02, "white_balance": [2.0, 1.0, 1.5], "gamma": 2.2},
}
SWEEPS: dict[str, dict[str, Any]] = {
    "a search": {
        "metric": ["uda/validation/psnr", "last/validation/lpips"],
        "mode": ["max", "min"],
        "trials": 16,
        "set": {"run": ["vqgan", "uda"], "logging.validation_interval": 50},
        "space": {
            "network.codebook_size": {"choice": [64, 256]},
            "stages.uda.gan": {"float": [0.001, 0.1], "log": True},
        },
        "first": [{"network.codebook_size": 256, "stages.uda.gan": 0.01}],
    },
    "a grid": {
        "sampler": "grid",
        "space": {
            "stages.uda.iterations": {"int": [100, 300], "step": 100},
            "stages.uda.gan": {"float": [0.0, 0.2], "step": 0.1},
            "stages.uda.s2t": {"choice": [True, False], "when": {"stages.uda.gan": [0.0, 0.2]}},
        },
        "stopping": {"rule": "asha", "grace": 50, "reduction": 3},
        "set": {"logging.validation_interval": 50},
    },
    "variants": {
        "repeat": 3,
        "metric": "last/total",
        "variants": {"base": {"run": ["vqgan", "base"]}, "uda": {}, "x": {"stages.uda.gan": 0.1}},
    },
}


def values_of(name: str) -> Any:
    return yaml.safe_load((EXPERIMENTS / name).read_text())


def write(file: Path, text: str) -> Path:
    file.write_text(text, encoding="utf-8", errors="surrogatepass", newline="")
    return file


# A sweep's part that is replaced, and what the line says.
WRONG_SWEEPS: dict[str, tuple[str, dict[str, Any], str]] = {
    "a million million trials": (
        "a grid",
        {"space": {"seed": {"int": [0, 10**12]}}},
        r"space\.seed: a grid of 1000000000001 trials",
    ),
    "a thousand times a thousand trials": (
        "a grid",
        {"space": {n: {"int": [1, 1000]} for n in ("seed", "stages.uda.iterations")}},
        r"space: a grid of 1000000 trials, of which there may be 100000",
    ),
    "steps without number": (
        "a grid",
        {"space": {"stages.uda.gan": {"float": [0.0, 0.2], "step": 1e-320}}},
        r"space\.stages\.uda\.gan\.step must be above 0",
    ),
    "a range wider than any number": (
        "a search",
        {"space": {"stages.uda.gan": {"float": [-1e308, 1e308]}}},
        r"space\.stages\.uda\.gan\.float is wider than any number",
    ),
    "a choice of bytes": (
        "a search",
        {"space": {"stages.uda.gan": {"choice": [b"\0", 1.0]}}},
        r"space\.stages\.uda\.gan: .* is no setting's value",
    ),
    "a condition without a value": (
        "a search",
        {"space": {"seed": {"int": [1, 2], "when": {"network.codebook_size": []}}}},
        r"space\.seed\.when must name a value",
    ),
    "a first trial of dates": (
        "a search",
        {"first": [{"network.codebook_size": date(2026, 11, 28)}]},
        r"first: .* is no setting's value",
    ),
    "a setting called 1": ("variants", {"variants": {"a": {1: 2}}}, r"variants\.a: 1 is no name"),
    "an experiment called \\0": ("variants", {"experiment": "\0"}, r"experiment is .*null byte"),
    "an experiment called \\ud800": ("variants", {"experiment": "\ud800"}, r"experiment is "),
}


@pytest.mark.parametrize(("sweep", "values", "told"), WRONG_SWEEPS.values(), ids=WRONG_SWEEPS)
def test_a_sweep_that_cannot_be_is_refused(
    tmp_path: Path, sweep: str, values: dict[str, Any], told: str
) -> None:
    shutil.copy(EXPERIMENTS / "demo.yaml", tmp_path)
    text = yaml.safe_dump({"experiment": "demo.yaml", **SWEEPS[sweep], **values})
    file = write(tmp_path / "s.yaml", text)
    refused(lambda: load_sweep(file), match=rf"s\.yaml: {told}")


WRONG_LENSES = {
    "a billion rows": ({"rows": 10**9}, r"rows must be at most 100"),
    "ten thousand columns": ({"columns": 10**4}, r"columns must be at most 100"),
    "pixels as large as a house": ({"pixel_pitch": 1e7}, r"more than 4096 samples"),
    "pixels without end": (
        {"pixel_pitch": 1e308, "f_number": 0.5},
        r"samples",
    ),
    "a grid of gigabytes": ({"rows": 100, "columns": 100, "support": 255}, r"GB of memory"),
    "the largest pupil": ({"pixel_pitch": 4.0, "f_number": 2.2, "support": 255}, r"GB of memory"),
}


@pytest.mark.parametrize(("optics", "told"), WRONG_LENSES.values(), ids=WRONG_LENSES)
def test_a_lens_that_takes_too_much_is_refused(
    tmp_path: Path, optics: dict[str, Any], told: str
) -> None:
    file = write(tmp_path / "lens.yaml", yaml.safe_dump({"optics": optics}))
    refused(lambda: load_lens(str(file)), match=rf"lens\.yaml: .*{told}")


@pytest.mark.parametrize("name", ["demo.yaml", "realab/real_sim_s1_uda.yaml"])
def test_thousands_of_damaged_experiments(tmp_path: Path, name: str) -> None:
    def load(text: str) -> None:
        experiment = load_experiment(write(tmp_path / "e.yaml", text))
        again = experiment_of_run(dump_experiment(experiment), "config.yaml")
        for stage in again.run:
            assert stage_digest(again, stage, "d") == stage_digest(experiment, stage, "d")

    holds(load, damaged_yaml(values_of(name)), examples=200)


@pytest.mark.parametrize("sweep", SWEEPS.values(), ids=SWEEPS.keys())
def test_thousands_of_damaged_sweeps(tmp_path: Path, sweep: dict[str, Any]) -> None:
    shutil.copy(EXPERIMENTS / "demo.yaml", tmp_path)

    def load(text: str) -> None:
        plan = load_sweep(write(tmp_path / "s.yaml", text))
        for settings in [plan.baseline(), *plan.settings.first, *(plan.fixed() or [])[:2]]:
            plan.experiment(settings, name="0001", seed=1)

    holds(load, damaged_yaml({"experiment": "demo.yaml", **sweep}), examples=100)


def test_thousands_of_damaged_lenses(tmp_path: Path) -> None:
    holds(
        lambda text: load_lens(str(write(tmp_path / "lens.yaml", text))).name,
        damaged_yaml(LENS),
        examples=100,
    )


def test_thousands_of_damaged_settings_of_a_run(tmp_path: Path) -> None:
    experiment = load_experiment(EXPERIMENTS / "demo.yaml")
    whole = dump_experiment(experiment).encode()
    run = open_location(tmp_path)

    def read(data: bytes) -> None:
        (tmp_path / "config.yaml").write_bytes(data)
        read_run(run)
        experiment_of_run(data.decode(errors="replace"), "config.yaml")

    holds(read, damaged_bytes(whole), examples=150)
