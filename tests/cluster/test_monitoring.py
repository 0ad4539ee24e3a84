"""Prometheus' settings, alerts and the Grafana board, checked by Prometheus' own tools.

Debian's package ``prometheus`` has them. ``test_local.py`` scrapes a running Ray with it.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import ray.dashboard.modules.metrics
import yaml

from qdmr_ray.train.logging.prometheus import gauge_of

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "cluster" / "monitoring"
# Shown by no node without a GPU.
GPU_PANELS = {"GPU use", "GPU memory", "Model FLOPs utilisation"}
# Metrics as a training loop logs them, by the names that Gauges takes.
LOGGED = {
    "source/l1": 0.12,
    "source/gan": 0.7,
    "discriminator/real_logit": 1.5,
    "samples_per_second": 12.5,
    "data_wait_fraction": 0.05,
    "model_flops_utilization": 0.31,
    "memory_bytes": 1.2e9,
    "broken_records": 0.0,
    "iterations_planned": 500_000.0,
    "time/step": 0.2,
    "time/data_wait": 0.01,
    "codebook/source/perplexity": 310.0,
    "codebook/source/used": 0.4,
    "validation/psnr": 25.1,
    "validation/ssim": 0.71,
    "gradient_norm/generator": 0.3,
    "learning_rate/generator": 1e-4,
}
# What the package exports beside those.
COUNTED = {"ray_qdmr_non_finite_total", "ray_qdmr_preemptions_total", "ray_qdmr_trials"}
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is missing: apt-get install prometheus"
)


def board() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((MONITORING / "grafana" / "qdmr.json").read_text())
    return loaded


def panels() -> list[dict[str, Any]]:
    return [panel for panel in board()["panels"] if panel["type"] != "row"]


def expressions() -> list[tuple[str, str]]:
    """Panel's title and expression, with Grafana's variables set to everything."""
    return [
        (panel["title"], _filled_in(target["expr"]))
        for panel in panels()
        for target in panel["targets"]
    ]


def _filled_in(expression: str) -> str:
    for variable, value in (("$run", ".*"), ("$stage", ".*"), ("$__range", "3h")):
        expression = expression.replace(variable, value)
    return expression


def metrics_in(expression: str) -> set[str]:
    bare = re.sub(r'"[^"]*"', "", expression)
    return set(re.findall(r"\b(?:ray|autoscaler|qdmr)_\w+", bare))


def promtool(*arguments: object) -> str:
    """Standard output; fails with everything that it said."""
    ran = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@needs_promtool
def test_prometheus_accepts_settings_and_alerts() -> None:
    assert "SUCCESS: 1 rule files found" in promtool(
        "check", "config", MONITORING / "prometheus.yml"
    )


@needs_promtool
def test_alerts_fire_when_they_should_and_only_then() -> None:
    promtool("test", "rules", Path(__file__).with_name("alerts_test.yml"))


@needs_promtool
@pytest.mark.parametrize(
    ("scenario", "before", "after"),
    [
        (
            "a worker that is replaced within ten minutes",
            "max by (run, stage) (changes(ray_qdmr_iteration[10m]))",
            "max by (run, stage) (changes(ray_qdmr_loss[10m]))",
        ),
        (
            "a stage that shows where it begins",
            'Location="WORKER_HEAP"',
            'Location="MMAP_SHM"',
        ),
        (
            "a stage that shows where it begins",
            "(ray_qdmr_iteration[3d])",
            "(ray_qdmr_iteration[1h])",
        ),
        (
            "a trial that its sweep has stopped",
            "and on (WorkerId) ray_object_store_memory",
            "or ray_object_store_memory",
        ),
        (
            "a trial that its sweep has stopped",
            "changes(ray_qdmr_iteration[10m]) > 0\n            )\n              <",
            "(ray_qdmr_iteration < 0)\n            )\n              <",
        ),
        (
            "a trial that its sweep has stopped",
            "changes(ray_qdmr_iteration[10m]) > 0\n            )\n          )",
            "(ray_qdmr_iteration < 0)\n            )\n          )",
        ),
        ("a stage that is stuck", "[3d]) < max_over", "[3d]) <= max_over"),
        ("a stage that stands still", "(ray_qdmr_iteration[10m])", "(ray_qdmr_iteration[2m])"),
        (
            "a stage that stands still",
            "unless (\n            max by",
            "and (\n            max by",
        ),
        ("a stage whose worker is gone", "< max by (run, stage)", "<= max by (run, stage)"),
        ("a value that is not finite", "non_finite_total)\n", "non_finite_total) > 1\n"),
        (
            "a value that is not finite",
            "non_finite_total offset 10m",
            "non_finite_total offset 1h",
        ),
        (
            "a value that is not finite",
            "non_finite_total[10m])) > 0",
            "non_finite_total[10m])) > 9",
        ),
        ("waiting for data", "data_wait_fraction[5m]", "data_wait_fraction[10s]"),
        ("waiting for data", "> 0.2", "> 0.1"),
        ("a disk", "< 0.1", "< 0.2"),
    ],
)
def test_a_scenario_notices_a_wrong_alert(
    scenario: str, before: str, after: str, tmp_path: Path
) -> None:
    rules = (MONITORING / "alerts.yml").read_text()
    assert before in rules
    (tmp_path / "alerts.yml").write_text(rules.replace(before, after))
    tests = yaml.safe_load(Path(__file__).with_name("alerts_test.yml").read_text())
    # One of the scenarios: all of them take two seconds.
    (chosen,) = (test for test in tests["tests"] if test["name"].startswith(scenario))
    tests |= {"rule_files": ["alerts.yml"], "tests": [chosen]}
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(tests))
    ran = subprocess.run(
        ["promtool", "test", "rules", tmp_path / "tests.yml"], capture_output=True, text=True
    )
    assert "FAILED" in ran.stdout + ran.stderr


@needs_promtool
def test_every_expression_of_the_board_parses(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": expression}
        for number, (_, expression) in enumerate(expressions())
    ]
    file = tmp_path / "board.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "board", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", file)


def test_board_and_alerts_name_only_metrics_that_exist() -> None:
    ours = {f"ray_qdmr_{gauge_of(name)[0]}" for name in (*LOGGED, "iteration")}
    ours |= COUNTED
    # Ray's boards name Ray's metrics.
    folder = Path(ray.dashboard.modules.metrics.__file__).parent / "dashboards"
    rays = set[str]()
    for file in folder.glob("*_panels.py"):
        rays |= metrics_in(re.sub(r"['\"]", " ", file.read_text()))
    alerts = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    used = [(rule["alert"], rule["expr"]) for group in alerts for rule in group["rules"]]
    for title, expression in expressions() + used:
        assert metrics_in(expression), title
        assert metrics_in(expression) <= ours | rays, title
    shown = set().union(*(metrics_in(expression) for _, expression in expressions()))
    assert ours <= shown, "a metric that is exported and shown nowhere"


def test_panels_are_described_and_do_not_overlap() -> None:
    taken = set[tuple[int, int]]()
    for panel in board()["panels"]:
        box = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(box["x"], box["x"] + box["w"])
            for y in range(box["y"], box["y"] + box["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
    identities = [panel["id"] for panel in board()["panels"]]
    titles = [panel["title"] for panel in board()["panels"]]
    assert len(set(identities)) == len(identities)
    assert len(set(titles)) == len(titles)
    assert set(titles) >= GPU_PANELS


def test_board_takes_its_source_from_a_variable_and_grafana_provides_one() -> None:
    variable = board()["templating"]["list"][0]
    assert variable["type"] == "datasource"
    provided = yaml.safe_load(
        (MONITORING / "grafana/provisioning/datasources/prometheus.yml").read_text()
    )
    assert variable["current"]["value"] == provided["datasources"][0]["uid"]
    for panel in panels():
        assert panel["datasource"]["uid"] == "${datasource}"
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])


def test_containers_are_pinned_and_listen_on_loopback_alone() -> None:
    composed = yaml.safe_load((MONITORING / "compose.yaml").read_text())["services"]
    for name, service in composed.items():
        _, _, tag = service["image"].partition(":")
        assert re.fullmatch(r"v?\d+\.\d+\.\d+", tag), name
        assert "ports" not in service
        for mount in service["volumes"]:
            source = mount.partition(":")[0]
            if source.startswith("./"):
                assert (MONITORING / source).exists(), mount
    assert "--web.listen-address=127.0.0.1:9090" in composed["prometheus"]["command"]
    assert composed["grafana"]["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    # Without one Grafana would let in admin with the password admin.
    assert ":?" in composed["grafana"]["environment"]["GF_SECURITY_ADMIN_PASSWORD"]
