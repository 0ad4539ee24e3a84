"""The efficiency on paper: its formula by hand, and the gradients that it counts."""

import json
from dataclasses import replace
from pathlib import Path

import efficiency
import pytest
from efficiency import Step, exchange

from qdmr_ray.bench.step import PRESETS

MEGABYTE = 10**6


def test_an_exchange_is_what_nccl_expects_of_rings_and_trees() -> None:
    """By hand: a ring for few GPUs, where hops cost little; a tree for many."""
    assert exchange(450 * MEGABYTE, 1, 1e9) == 0
    # Two GPUs: 2 x 1/2 of 1 ms, the start, two hops. A node's network has no part in it.
    assert exchange(450 * MEGABYTE, 2, 1.0) == pytest.approx(1e-3 + 8.4e-6 + 2 * 3.4e-6)
    # 16 GPUs on two nodes at 10 GB/s: 30 hops, of which four cross the network.
    ring = 2 * 15 / 16 * 10e-3 + 8.4e-6 + 26 * 3.4e-6 + 4 * 14e-6
    assert exchange(100 * MEGABYTE, 16, 10e9) == pytest.approx(ring)
    # 1,024 GPUs and next to nothing to send: up a node and seven levels of nodes, and down again.
    assert exchange(1, 1024, 10e9) == pytest.approx(2 * (7 + 7) * 28e-6, rel=1e-4)


def test_what_travels_beside_arithmetic_costs_nothing() -> None:
    step = Step(seconds=0.1, generator=25 * MEGABYTE, discriminators=0, hidden=0.25)
    waits = exchange(100 * MEGABYTE, 64, 12.5e9)
    start = exchange(0, 64, 12.5e9)
    assert waits < 0.025
    assert efficiency.efficiency(step, 64, 100, 4) == pytest.approx(0.1 / (0.1 + start))
    exposed = step._replace(hidden=0.05)
    expected = 0.1 / (0.1 + waits - 0.005 + start)
    assert efficiency.efficiency(exposed, 64, 100, 4) == pytest.approx(expected)
    # Half the bytes, or as many GPUs as one.
    assert efficiency.efficiency(exposed, 64, 100, 2) > expected
    assert efficiency.efficiency(exposed, 1, 100, 4) == 1


def test_gradients_are_those_of_the_networks_at_full_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """METHOD.md: 33.8 million weights, of which the codebook is frozen, and two discriminators."""
    monkeypatch.setattr(efficiency, "hidden_share", lambda name: 0.0)
    step = efficiency.step_of("uda", 0.05)
    assert step.generator == pytest.approx(33.8e6 - 1024 * 512, rel=1e-3)
    assert step.discriminators == pytest.approx(4.38e6 + 4.52e6, rel=1e-3)


def test_the_share_that_hides_is_the_discriminators_step(monkeypatch: pytest.MonkeyPatch) -> None:
    full = PRESETS["demo"]
    monkeypatch.setitem(PRESETS, "full", full)
    base = efficiency.hidden_share("base")
    monkeypatch.setitem(PRESETS, "full", (full[0], replace(full[1], width=16)))
    assert 0 < base < efficiency.hidden_share("base") < 1


def test_the_table_says_where_it_breaks() -> None:
    step = Step(seconds=0.05, generator=30 * MEGABYTE, discriminators=10 * MEGABYTE, hidden=0.2)
    lines = list(efficiency.table("uda", step))
    assert "gradients of 120.0 MB (generator) and 40.0 MB" in lines[0]
    rows = [line for line in lines if line.startswith("| 1024 |")]
    assert rows[0].endswith("| 640 | 160 |")
    assert "- 25 Gbit/s, float32: below 90% from 16 GPUs on, below 50% from 16 GPUs on" in lines
    assert "- 160 blocks/s of 32 batches feed 256 GPUs" in lines


def test_steps_are_read_from_a_devices_results(tmp_path: Path) -> None:
    row = {"stage": "base", "build": "recorded", "backbones": False, "seconds_per_step": 0.03}
    others = [
        row | {"backbones": True, "seconds_per_step": 1},
        row | {"build": "plain", "seconds_per_step": 2},
        {"stage": "base", "build": "recorded", "refused": "no memory"},
    ]
    parts = {"steps_base": {"rows": [row, *others]}, "tests": {"rows": [{"passed": 3}]}}
    (tmp_path / "device.json").write_text(json.dumps({"parts": parts}))
    assert efficiency.recorded(tmp_path / "device.json") == {"base": 0.03}


def test_the_measured_step_is_the_readmes() -> None:
    text = Path(efficiency.__file__).with_name("README.md").read_text()
    assert f"Where {efficiency.MEASURED['uda'] * 1e3:.1f} ms go" in text
