"""``qdmr bench step``: the arithmetic it counts, the figures it prints, and what it imports."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from rates import SMALL_RATES

from qdmr_ray.bench.plain import one_set_at_a_time
from qdmr_ray.bench.step import (
    PRESETS,
    StepBench,
    bench_step,
    needed_flop,
    profile_step,
    step_of,
)
from qdmr_ray.cli import main as cli
from qdmr_ray.config import experiment_from_dict
from qdmr_ray.errors import SettingsError
from qdmr_ray.nets import VQGAN
from qdmr_ray.stages import STAGES, Components, build_stage

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "gflop"), [("vqgan", 153.2), ("source_only", 118.3), ("base", 119.6), ("uda", 275.0)]
)
def test_the_needed_arithmetic_is_that_of_the_method(stage: str, gflop: float) -> None:
    """64 x 64, batch 2. The restoration network takes 67.8 GFLOP forward and backward, the image
    discriminator 19.4 and two thirds of it without its weights: base is 67.8 + 2/3 x 19.4 +
    2 x 19.4."""
    bench = StepBench(stage=stage, size=64, batch=2)
    assert needed_flop(bench) / 1e9 == pytest.approx(gflop, rel=1e-3)
    larger = StepBench(stage=stage, size=128, batch=4)
    assert needed_flop(larger) == pytest.approx(8 * needed_flop(bench))


@pytest.mark.parametrize(("stage", "batch"), [("vqgan", 8), ("base", 4), ("uda", 4)])
def test_the_costs_of_a_reproduction_are_those_of_this_arithmetic(stage: str, batch: int) -> None:
    tera = needed_flop(StepBench(stage=stage, size=256, batch=batch)) / 1e12
    assert f"{tera:.2f}" in (REPOSITORY / "cluster" / "README.md").read_text()


def test_lpips_needs_three_passes_of_vgg16() -> None:
    """The truth's forward, the output's forward, and back to the output."""
    bench = StepBench(stage="base", preset="demo", size=64, batch=2)
    with_it = StepBench(stage="base", preset="demo", size=64, batch=2, backbones=True)
    widths = {64: (3, 64, 64), 32: (64, 128, 128), 16: (128, 256, 256, 256)}
    widths |= {8: (256, 512, 512, 512), 4: (512, 512, 512, 512)}
    forward = sum(
        2 * 9 * side**2 * sum(a * b for a, b in pairwise(channels))
        for side, channels in widths.items()
    )
    added = needed_flop(with_it) - needed_flop(bench)
    assert added == pytest.approx(2 * 3 * forward, rel=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "terms"), [("full", {"lpips", "semantic"}), ("demo", {"lpips"})]
)
def test_backbones_are_noise_where_nothing_was_downloaded(
    preset: str, terms: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "lpips", None)
    for backbones in (True, False):
        bench = StepBench(stage="vqgan", preset=preset, size=32, batch=1, backbones=backbones)
        logged = step_of(bench)()
        found = {name.partition("/")[2] for name in logged}
        assert found & {"lpips", "semantic"} == (terms if backbones else set())
        assert all(value.isfinite() for value in logged.values())


def test_the_demo_preset_is_the_demos() -> None:
    values = yaml.safe_load((REPOSITORY / "experiments/demo.yaml").read_text())
    experiment = experiment_from_dict({k: values[k] for k in ("network", "discriminator")})
    assert PRESETS["demo"] == (experiment.network, experiment.discriminator)


def test_the_command_prints_and_writes_the_figures(
    small_rates: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "step.json"
    command = ["bench", "step", "--stage", "uda", "--preset", "demo", "--steps", "2"]
    monkeypatch.setattr(sys, "argv", ["qdmr", *command, "--json", str(out)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    found = json.loads(out.read_text())
    assert found["stage"] == "uda"
    assert found["floor_seconds"] == pytest.approx(found["gflop_needed"] / found["gflops_measured"])
    assert found["ratio"] == pytest.approx(found["seconds_per_step"] / found["floor_seconds"])
    for name in ("seconds_per_step", "start_seconds", "peak_memory_bytes"):
        assert found[name] > 0
    assert "seconds_per_step" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["qdmr", "bench", "step", "--stage", "bass"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "--stage bass: choose from vqgan" in capsys.readouterr().err


@pytest.mark.parametrize("name", STAGES)
def test_the_plain_build_gives_the_same_figures(name: str) -> None:
    """Its networks see one image set at a time, and its losses are those of the joined ones."""
    network, discriminator = PRESETS["demo"]
    passes: list[int] = []

    def figures(*, plain: bool) -> dict[str, float]:
        torch.manual_seed(0)
        trained = {"vqgan": VQGAN(network)} if name in ("base", "uda") else {}
        components = Components(network=network, discriminator=discriminator, trained=trained)
        stage = build_stage(
            name, STAGES[name].settings_type(**dict.fromkeys(STAGES[name].backbones, 0)), components
        )
        if plain:
            one_set_at_a_time(stage, batch=2)
        stage.network.encoder.register_forward_hook(lambda _, x, __: passes.append(len(x[0])))
        stage.to("cpu", torch.float64)
        batch = {domain: torch.rand(2, 3, 64, 64).double() for domain in stage.domains}
        return [{k: float(v) for k, v in stage.step(batch).items()} for _ in range(2)][-1]

    joined = figures(plain=False)
    sets, passes[:] = set(passes), []
    assert sets == {2 * {"vqgan": 2, "uda": 3}.get(name, 1)}
    assert figures(plain=True) == pytest.approx(joined, rel=1e-8)
    assert set(passes) == {2}


def test_plain_goes_with_nothing_else() -> None:
    with pytest.raises(SettingsError, match="leave out --dtype"):
        bench_step(StepBench(plain=True, dtype="bfloat16"))


def test_the_profile_names_operations() -> None:
    table = profile_step(StepBench(stage="base", preset="demo", warm_up=1))
    assert "aten::convolution_backward" in table


@pytest.mark.slow
def test_it_runs_with_pytorch_alone() -> None:
    """As on a GPU machine that has neither Ray nor pydantic, typer, rich or pyarrow."""
    program = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {{"ray", "pydantic", "typer", "rich", "pyarrow", "yaml"}}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked())
{SMALL_RATES}
from qdmr_ray.bench.step import (main)
main(["--stage", "vqgan", "--preset", "demo", "--steps", "1", "--warm-up", "0"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["stage"] == "vqgan"
