"""Documents name files, commands and targets that exist."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import typer.main
import yaml

from qdmr_ray import __version__
from qdmr_ray.cli.main import app

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    *("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"),
    *("docs/ARCHITECTURE.md", "docs/VERSIONS.md", "docs/security.md"),
    "experiments/bench/README.md",
]
PATH = re.compile(r"`((?:qdmr_ray|tests|docs|cluster|experiments|datasets)/[\w./-]+)`")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
COMMAND = re.compile(r"`qdmr ((?:[a-z][a-z-]* ?)+)")
TARGET = re.compile(r"`make ([a-z -]+?)`|^make ([a-z-]+)", re.MULTILINE)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_paths_and_links_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    paths = {ROOT / path for path in PATH.findall(text)}
    links = {(ROOT / name).parent / link for link in LINK.findall(text) if "://" not in link}
    missing = [str(path.relative_to(ROOT)) for path in paths | links if not path.exists()]
    assert not missing


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_exist(name: str) -> None:
    for words in COMMAND.findall((ROOT / name).read_text()):
        command = typer.main.get_command(app)
        for word in words.split():
            if not hasattr(command, "commands"):
                break
            assert word in command.commands, f"qdmr {words}"
            command = command.commands[word]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_targets_of_make_exist(name: str) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for found in TARGET.findall((ROOT / name).read_text()):
        assert set(" ".join(found).split()) <= targets


def test_every_room_is_described() -> None:
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
    rooms = {entry.relative_to(ROOT).as_posix() for entry in (ROOT / "qdmr_ray").iterdir()}
    rooms -= {"qdmr_ray/__init__.py", "qdmr_ray/__pycache__", "qdmr_ray/py.typed"}
    assert not [room for room in sorted(rooms) if f"`{room}`" not in text]


def test_the_citation_and_the_changelog_are_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["license"] == project["license"]
