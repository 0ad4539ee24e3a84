"""Tokens stay where they belong: no plain text on a network, no file that others may read."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from qdmr_ray.data.realab import _Hub
from qdmr_ray.ray_cluster import keep_token_private

CLUSTER = Path(__file__).parents[2] / "cluster"
PLAIN_TEXT = [
    "http://hub.example",
    "http://10.0.0.1:80",
    "http://127.0.0.1.evil.example",
    "http://localhost.evil.example",
    "http://127.0.0.1@evil.example",
    "http://localhost:x@evil.example:80",
    "http://0.0.0.0:80",
    "http://2130706433",
]
SAFE = ["https://hub.example", "http://127.0.0.1:9", "http://127.8.8.8", "http://localhost:9"]


@pytest.mark.parametrize("address", PLAIN_TEXT)
def test_no_token_goes_over_a_network_as_plain_text(address: str) -> None:
    assert _Hub(address, "main").token is False


@pytest.mark.parametrize("address", SAFE)
def test_a_token_goes_over_https_and_to_this_machine(address: str) -> None:
    # The library then sends HF_TOKEN, or the token of its own login.
    assert _Hub(address, "main").token is None


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file in a home of its own, where new files are open to all."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    before = os.umask(0)
    yield tmp_path / ".ray" / "auth_token"
    os.umask(before)


def mode_of(file: Path) -> int:
    return file.stat().st_mode & 0o777


def test_a_local_ray_finds_a_token_that_only_its_user_reads(token: Path) -> None:
    keep_token_private()
    assert mode_of(token) == 0o600
    first = token.read_text()
    assert re.fullmatch("[0-9a-f]{64}", first)
    keep_token_private()
    assert token.read_text() == first
    assert os.listdir(token.parent) == [token.name]


def test_a_token_that_ray_left_open_is_closed_and_kept(token: Path) -> None:
    token.parent.mkdir()
    token.write_text("0123")
    assert mode_of(token) == 0o666
    keep_token_private()
    assert mode_of(token) == 0o600
    assert token.read_text() == "0123"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RAY_AUTH_MODE", "disabled"),
        ("RAY_AUTH_TOKEN", "0123"),
        ("RAY_AUTH_TOKEN_PATH", "/run/token"),
    ],
)
def test_no_token_is_made_where_ray_makes_none(
    name: str, value: str, token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    keep_token_private()
    assert not token.parent.exists()


def test_a_home_that_is_none_is_left_to_ray(token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token.parent.write_text("a file")
    keep_token_private()
    monkeypatch.setenv("HOME", "/dev/null/none")
    keep_token_private()


@pytest.mark.ray
@pytest.mark.slow
def test_a_command_that_starts_a_ray_leaves_no_token_to_others(token: Path) -> None:
    started = "from qdmr_ray.ray_cluster import ensure_ray; ensure_ray()"
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    subprocess.run([sys.executable, "-c", started], env=environment, check=True, timeout=280)
    assert mode_of(token) == 0o600


def commands() -> list[str]:
    """What the documents say makes a token."""
    files = [CLUSTER / "README.md", *CLUSTER.glob("aws/*.yaml")]
    lines = [line for file in files for line in file.read_text().splitlines()]
    return [line.lstrip("# ") for line in lines if "get-auth-token" in line]


@pytest.mark.parametrize("there", [False, True], ids=["no token yet", "a token that is open"])
@pytest.mark.parametrize("number", range(4))
def test_the_documents_command_leaves_the_token_to_its_owner(
    number: int, there: bool, token: Path, tmp_path: Path
) -> None:
    assert len(commands()) == 4
    ray = tmp_path / "ray"
    # As Ray does it: an existing token stays.
    written = "[ -e ~/.ray/auth_token ] || { mkdir -p ~/.ray; echo 0123 > ~/.ray/auth_token; }"
    ray.write_text(f"#!/bin/sh\n{written}\n")
    ray.chmod(0o755)
    if there:
        token.parent.mkdir()
        token.write_text("0123\n")
    environment = {"HOME": str(tmp_path), "PATH": f"{tmp_path}:/usr/bin:/bin"}
    subprocess.run(["sh", "-c", commands()[number]], env=environment, check=True)
    assert mode_of(token) == 0o600


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_a_node_on_aws_closes_its_token_before_ray_starts(kind: str) -> None:
    config = yaml.safe_load((CLUSTER / "aws" / f"{kind}.yaml").read_text())
    assert "chmod 600 ~/.ray/auth_token" in config["setup_commands"]
