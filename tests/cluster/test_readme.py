"""``cluster/README.md`` names files, commands and numbers that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from qdmr_ray.cli.main import app
from qdmr_ray.config import load_experiment

README = Path(__file__).parents[2] / "cluster" / "README.md"
TEXT = README.read_text()
BLOCKS = re.findall(r"^```\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (README.parent / target).exists(), target


def test_commands_name_files_that_exist() -> None:
    named = re.findall(r"\b((?:cluster|experiments)/[\w./-]+)", "\n".join(BLOCKS))
    assert named
    for path in named:
        assert (README.parents[1] / path).exists(), path


def test_commands_of_qdmr_exist() -> None:
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    called = re.findall(r"(?<!-n )(?<![\w/-])qdmr (\w[\w-]*)(?: (\w+))?", "\n".join(BLOCKS))
    assert {"submit", "jobs", "train", "bench"} <= {name for name, _ in called}
    for name, second in called:
        assert name in known, name
        inner = getattr(known[name], "commands", None)
        assert inner is None or second in inner, f"{name} {second}"


def section(title: str) -> str:
    """From the heading to the next one."""
    (found,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    return found


@pytest.mark.parametrize("title", ["AWS", "Kubernetes"])
def test_training_on_a_cluster_that_grows_says_whether_it_wants_gpus(title: str) -> None:
    # The command may go on in the next lines.
    commands = re.findall(r"^qdmr submit (?:.*\\\n)*.*$", section(title), re.MULTILINE)
    assert commands
    for command in commands:
        assert "--set scaling.gpu=" in command


def in_order(text: str, *parts: str) -> bool:
    """Returns whether the text holds the parts in this order."""
    places = [text.find(part) for part in parts]
    return -1 not in places and places == sorted(places)


def test_kubernetes_namespace_is_made_first_and_deleted_last() -> None:
    # KubeRay's finalizer needs Redis and a namespace in which it may start a job.
    assert in_order(
        section("Kubernetes"),
        "kubectl apply -f cluster/kubernetes/namespace.yaml",
        "create secret generic qdmr-redis",
        "kubectl apply -k",
        "kubectl -n qdmr delete rayjob,raycluster --all",
        "kubectl delete -k",
        "kubectl delete namespace qdmr",
    )
    assert section("Kubernetes").count("kubectl delete -k") == 1


def test_service_accounts_have_their_role_before_there_is_a_pod() -> None:
    text = section("Kubernetes")
    assert in_order(
        text,
        "kubectl apply -f cluster/kubernetes/namespace.yaml",
        "apply -f cluster/kubernetes/base/serviceaccounts.yaml",
        "annotate --overwrite serviceaccount qdmr-head qdmr-worker eks.amazonaws.com/role-arn=",
        "kubectl apply -k",
    )
    assert text.count("annotate") == 1


def test_what_submit_is_said_to_print_it_prints(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("pass\n")
    command = ["submit", "--dry-run", "--code", str(tmp_path), "--", "python", "train.py"]
    printed = CliRunner().invoke(app, command).stdout.splitlines()
    (shape,) = re.findall(r"^COUNT files, .*$", section("One machine with GPUs"), re.MULTILINE)
    for word, pattern in (("COUNT", r"\d+"), ("SIZE", r"[\d.]+"), ("FOLDER", r"/\S+")):
        shape = shape.replace(word, pattern)
    assert re.fullmatch(shape, printed[0])


def test_stages_and_iterations_are_those_of_the_experiment() -> None:
    file = README.parents[1] / "experiments" / "realab" / "real_sim_s1_uda.yaml"
    experiment = load_experiment(file, ())
    done = [
        f"{name}: {experiment.stage(name).iterations} iterations done" for name in experiment.run
    ]
    assert "\n".join(done) in section("One machine with GPUs")
