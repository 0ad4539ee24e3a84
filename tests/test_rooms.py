"""The rooms of the package: imports run one way, and Ray stays where it belongs."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "qdmr_ray"
# From top to bottom: a room may import from those below it; rooms in one line not from each other.
ROOMS = (
    ("cli",),
    ("serve",),
    ("jobs",),
    ("api",),
    ("sweeps",),
    ("bench", "demo", "doctor"),
    ("report",),
    ("train",),
    ("verify",),
    ("evaluate",),
    ("ray_cluster",),
    ("config",),
    ("restore",),
    ("data",),
    ("stages",),
    ("models",),
    ("optics",),
    ("nets",),
    ("photographs",),
    ("storage",),
    ("ray_compat",),
    ("parsing", "losses"),
    ("settings", "patience", "untrusted"),
    ("errors", "version"),
)
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
# The public functions of the package, imported when they are asked for.
FRONT_DOOR = "__init__"
WITHOUT_RAY = ("nets", "losses", "stages", "models", "photographs", "optics", "restore", "settings")
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(file: Path) -> str:
    """The room that a file of the package lies in."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(file: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of each import in a file, those inside functions included."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: relative import"
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name


def test_no_import_runs_up_the_list_of_rooms() -> None:
    wrong = []
    for file in FILES:
        room = room_of(file)
        if room == FRONT_DOOR:
            continue
        for line, name in imported(file):
            parts = name.split(".")
            if parts[0] != "qdmr_ray" or parts[1] not in LEVEL or parts[1] == room:
                continue
            if LEVEL[parts[1]] <= LEVEL[room]:
                wrong.append(f"{file.relative_to(PACKAGE)}:{line}: {room} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_every_file_lies_in_a_room_of_the_list() -> None:
    rooms = {room_of(file) for file in FILES} - {FRONT_DOOR}
    assert rooms <= LEVEL.keys()


@pytest.mark.parametrize("room", WITHOUT_RAY)
def test_pytorch_rooms_import_no_ray(room: str) -> None:
    wrong = [
        f"{file.relative_to(PACKAGE)}:{line}: {name}"
        for file in FILES
        if room_of(file) == room
        for line, name in imported(file)
        if name.split(".")[0] == "ray"
    ]
    assert not wrong, "\n".join(wrong)


def is_private(name: str) -> bool:
    """Whether a dotted name is of a part of Ray that Ray doesn't promise to keep."""
    parts = name.split(".")
    hidden = any(p.startswith("_") and not p.startswith("__") for p in parts)
    return parts[0] == "ray" and (hidden or name.startswith("ray.train.v2"))


def reached(file: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of each import and each chain of attributes (``ray._private.x``)."""
    yield from imported(file)
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Constant) and str(node.value).startswith("ray."):
            # Names that are handed to importlib.
            yield node.lineno, str(node.value).split(" ")[0]


def test_private_parts_of_ray_are_reached_for_in_one_file() -> None:
    wrong = {
        f"{file.relative_to(PACKAGE)}:{line}: {name}"
        for file in FILES
        if room_of(file) != "ray_compat"
        for line, name in reached(file)
        if is_private(name)
    }
    assert not wrong, "\n".join(sorted(wrong))


@pytest.mark.parametrize(
    "text",
    [
        "import ray.train.v2.api",
        "from ray._private import state",
        "from ray.data import _internal",
        "ray._private.state.state.get_draining_nodes()",
        "importlib.import_module('ray.data._internal.stats')",
    ],
)
def test_each_way_to_a_private_part_is_seen(tmp_path: Path, text: str) -> None:
    file = tmp_path / "file.py"
    file.write_text(text)
    assert any(is_private(name) for _, name in reached(file))
