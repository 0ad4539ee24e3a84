"""The JSON files that are written and read back."""

from __future__ import annotations

from pathlib import Path

import pytest

from qdmr_ray.errors import QdmrError
from qdmr_ray.storage import open_location
from qdmr_ray.storage.document import Document, Part


class Person(Part):
    name: str
    height: float | None = None


class Crew(Document):
    captain: Person
    others: tuple[Person, ...] = ()


class CrewLater(Crew):
    FORMAT = 2


CREW = Crew(captain=Person(name="Ahab", height=1.8), others=(Person(name="Pip"),))


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    file = open_location(tmp_path / "deep" / "crew.json")
    CREW.write(file)
    assert Crew.read(file) == CREW
    assert file.read_bytes().startswith(b'{\n "format": 1')


def test_a_file_that_is_not_there_is_none_or_an_error(tmp_path: Path) -> None:
    file = open_location(tmp_path / "crew.json")
    assert Crew.read_if_there(file) is None
    with pytest.raises(QdmrError, match=r"crew\.json: no such file"):
        Crew.read(file)


def test_a_file_without_format_is_of_the_first() -> None:
    assert CrewLater.parse('{"captain": {"name": "Ahab"}}', "crew.json").captain.name == "Ahab"


def test_an_unknown_field_is_left_out() -> None:
    crew = Crew.parse('{"captain": {"name": "Ahab", "leg": 1}, "whale": "white"}', "crew.json")
    assert crew == Crew(captain=Person(name="Ahab"))


def test_numbers_that_json_does_not_know_become_null() -> None:
    text = Crew(captain=Person(name="Ahab", height=float("nan"))).to_json(indent=None)
    assert text == '{"format": 1, "captain": {"name": "Ahab", "height": null}, "others": []}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"crew\.json: is not JSON"),
        ("[]", r"crew\.json: holds a list where an object"),
        ('{"format": 2, "captain": {"name": "Ahab"}}', r"format 2, .* reads up to 1: update"),
        ('{"format": "x", "captain": {"name": "Ahab"}}', r"format x"),
        ('{"captain": {"name": 3}}', r"crew\.json: captain\.name: input should be a valid string"),
        ("{}", r"crew\.json: captain: field required"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(text: str, message: str) -> None:
    with pytest.raises(QdmrError, match=message):
        Crew.parse(text, "crew.json")
