"""YAML and JSON of strangers: values or one line, in little time and memory."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hostile.limits import outcome, refused
from hypothesis import given, settings
from hypothesis import strategies as st

from qdmr_ray.config import experiment_of_run, load_experiment
from qdmr_ray.data.format.manifest import read_manifest
from qdmr_ray.errors import QdmrError
from qdmr_ray.models.files import load_model
from qdmr_ray.optics.lens import load_lens
from qdmr_ray.parsing import LARGEST_YAML, parse_yaml
from qdmr_ray.report.run_folder import read_run
from qdmr_ray.storage import open_location
from qdmr_ray.storage.document import Document
from qdmr_ray.sweeps.plan import load_sweep
from qdmr_ray.untrusted import parse_json

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@contextmanager
def one_line_of(kind: type[Exception]) -> Iterator[None]:
    """Nothing is raised, or such an error with one printable line."""
    try:
        yield
    except kind as error:
        if not str(error).isprintable():
            raise AssertionError(repr(str(error))) from error


def tenfold_aliases() -> str:
    """Each line is a list of the line before, ten times: 10²⁵ values in 1 kB."""
    lines = [f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]" for a, b in pairwise(LETTERS)]
    return "\n".join(["a: &a [x]", *lines])


def doubled_merges() -> str:
    """Each mapping merges the one before, twice."""
    lines = [f"{b}: &{b} {{<<: [*{a}, *{a}], {b}: 1}}" for a, b in pairwise(LETTERS)]
    return "\n".join(["a: &a {x: 1}", *lines])


def chained_aliases() -> str:
    """Each list holds the one before: 200 levels without a nested line."""
    return "\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 200))])


YAML = {
    "aliases that repeat tenfold": (tenfold_aliases(), r"more than 10000 values"),
    "merges that double": (doubled_merges(), r"more than 10000 values"),
    "a chain of 200 aliases": (chained_aliases(), r"deeper than 64 levels"),
    "a list inside itself": ("a: &a [*a]", r"inside its own anchor"),
    "a mapping inside itself": ("a: &a {b: {c: *a}}", r"inside its own anchor"),
    "a merge of itself": ("a: &a {<<: *a}", r"inside its own anchor"),
    "lists a thousand levels deep": ("a: " + "[" * 1000 + "]" * 1000, r"deeper than 64 levels"),
    "mappings a thousand levels deep": ("{a: " * 1000 + "1" + "}" * 1000, r"deeper than 64"),
    "dashes a thousand levels deep": ("a:\n" + "- " * 1000, r"deeper than 64 levels"),
    "eleven thousand numbers": ("a: [" + "0," * 11_000 + "]", r"more than 10000 values"),
    "a file of 2 MB": ("a: " + "x" * 2_000_000, r"more than 262144 bytes"),
    "an integer of 400 digits": ("seed: " + "9" * 400, r"9… has 400 digits"),
    "an integer of 5000 digits": ("seed: " + "9" * 5000, r"9… has 5000 digits"),
    "an integer of 65 bits": (f"seed: {2**64}", r"18446744073709551616… has more than 64 bits"),
    "a hexadecimal integer of 80 digits": ("seed: 0x" + "f" * 80, r"more than 64 bits"),
    "an integer of 100,000 sixtieths": ("seed: 1" + ":1" * 100_000, r"200001 digits"),
    "a float of 100,000 sixtieths": ("seed: 1" + ":1" * 100_000 + ".0", r"200003 digits"),
    "a key twice": ("seed: 1\nseed: 2", r"'seed' stands twice among the keys"),
    "a key twice in a section": ("data: {uri: a, uri: b}", r"'uri' stands twice"),
    "a key twice, once in quotes": ("seed: 1\n'seed': 2", r"'seed' stands twice"),
    "a key of 100 kB twice": (f"{{? {'k' * 100_000} : 1, ? {'k' * 100_000} : 2}}", r"stands twice"),
    "a Python object": ("a: !!python/object/apply:os.system [ls]", r"for the tag .*python/object"),
    "a boolean that is none": ("seed: !!bool maybe", r"not of the kind that its tag"),
    "an integer of no digits": ("seed: !!int ''", r"not of the kind that its tag"),
    "a date that is none": ("seed: !!timestamp today", r"not of the kind that its tag"),
    "the 99th of the 99th": ("name: 2001-99-99", r"month must be in 1..12"),
    "an integer that is none": ("seed: !!int x", r"invalid literal"),
    "a binary number without digits": ("seed: 0b_", r"invalid literal"),
    "a list as key": ("? [1]\n: 2", r"unhashable key"),
    "two documents": ("seed: 1\n---\nseed: 2", r"a single document"),
    "an escape sequence": ('name: "\x1b[31m"', r"character #x001b"),
    "a text direction": ("name: [\u202e", r"\\u202e"),
    "a null character": ("name: a\0", r"#x0000"),
    "nothing but text": ("hello", r"holds no settings"),
}


@pytest.mark.parametrize(("text", "told"), YAML.values(), ids=YAML)
def test_yaml_is_refused_as_experiment_lens_and_run(text: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    assert "config.yaml" in refused(lambda: load_experiment(file), match=told)
    assert "config.yaml" in refused(lambda: load_lens(str(file)), match=told)
    assert "a run" in refused(lambda: experiment_of_run(text, "a run"), match=told)


@pytest.mark.parametrize("name", ["merges that double", "dashes a thousand levels deep"])
def test_yaml_is_refused_wherever_it_is_read(name: str, tmp_path: Path) -> None:
    file, (text, told) = tmp_path / "config.yaml", YAML[name]
    file.write_text(text)
    refused(lambda: load_sweep(file), match=told)
    refused(lambda: read_run(open_location(tmp_path)), match=told)
    refused(lambda: load_experiment("experiments/demo.yaml", [f"data={text}"]), match="no YAML")


def test_what_people_write_is_read() -> None:
    text = "a: &a {x: 1, y: [2, .5, 0x10, 1_000]}\nb: {<<: *a, x: ~}\nc: *a\n<<: {d: 1}\n<<: {e: 2}"
    assert parse_yaml(text) == yaml.safe_load(text)
    assert parse_yaml(f"seed: {2**64 - 1}") == {"seed": 2**64 - 1}


JSON = {
    "lists a thousand levels deep": ("[" * 1000 + "]" * 1000, r"deeper than 64 levels"),
    "lists a million levels deep": ("[" * 1_000_000, r"deeper than 64 levels"),
    "objects a thousand levels deep": ('{"a":' * 1000 + "1" + "}" * 1000, r"deeper than 64"),
    "an integer of 400 digits": ('{"format": ' + "9" * 400 + "}", r"9… has 400 digits"),
    "an integer of 5000 digits": ('{"format": ' + "9" * 5000 + "}", r"9… has 5000 digits"),
    "an integer of 65 bits": ('{"format": -9223372036854775809}', r"more than 64 bits"),
    "a key twice": ('{"format": 1, "format": 2}', r"'format' stands twice"),
    "a key twice inside": ('{"format": {"a": 1, "a": 2}}', r"'a' stands twice"),
    "bytes that are no text": (b'{"format": "\xff"}', r"can't decode"),
    "an escape sequence": ('{"format": "\x1b[31m"}', r"Invalid control character"),
    "nothing": ("", r"Expecting value"),
    "a list": ("[1]", r"."),
    "a number": ("1", r"."),
}


@pytest.mark.parametrize(("text", "told"), JSON.values(), ids=JSON)
def test_json_is_refused_wherever_it_is_read(text: str | bytes, told: str, tmp_path: Path) -> None:
    data = text if isinstance(text, bytes) else text.encode()
    (tmp_path / "model.json").write_bytes(data)
    (tmp_path / "manifest.json").write_bytes(data)
    refused(lambda: load_model(tmp_path), match=r"model\.json: .*" + told)
    refused(lambda: read_manifest(open_location(tmp_path)), match=r"manifest\.json: ")
    refused(lambda: Document.parse(data, "a.json"), match=r"a\.json: .*" + told)


PLAIN: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=100, deadline=None)
@given(PLAIN)
def test_json_reads_what_json_writes(values: Any) -> None:
    text = json.dumps(values)
    assert json.dumps(parse_json(text)) == text


VALID = "a: &a {x: 1, y: [2, .5, 2026-01-01]}\nb: {<<: *a, x: ~}\nc: 'it''s'\nd: |\n  e\n"


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(VALID)), st.integers(0, 4), st.text(":{}[]&*!|<>'\"-?,# \n\t0x1~é\x07"))
def test_damaged_yaml_is_read_or_refused(start: int, cut: int, inserted: str) -> None:
    text = VALID[:start] + inserted + VALID[start + cut :]
    with one_line_of(ValueError):
        values = parse_yaml(text)
        assert repr(values) == repr(yaml.safe_load(text))


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text() | st.integers() | st.none(), PLAIN, min_size=1))
def test_any_settings_are_taken_or_refused(values: dict[Any, Any]) -> None:
    with one_line_of(QdmrError):
        experiment_of_run(yaml.safe_dump(values), "config.yaml")


@pytest.mark.parametrize("read", [load_experiment, load_lens, load_sweep], ids=lambda f: f.__name__)
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["a pipe", "a folder"])
def test_what_is_no_file_is_not_waited_for(read: Any, make: Any, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    make(file)
    refused(lambda: read(str(file) if read is load_lens else file), match=r"settings\.yaml: ")


def test_devices_and_endless_files_are_not_read(tmp_path: Path) -> None:
    refused(lambda: load_experiment("/dev/zero"), match="/dev/zero: .*a device")
    refused(lambda: open_location("/dev/zero").read_bytes(), match="/dev/zero: .*a device")
    with (tmp_path / "config.yaml").open("wb") as file:
        file.truncate(10**13)
    place = open_location(tmp_path / "config.yaml")
    refused(place.read_bytes, match=r"config\.yaml: .*takes 10,000\.0 GB of memory")
    refused(lambda: load_experiment(tmp_path / "config.yaml"), match=r"yaml: .*more than 262144")


def test_the_largest_file_takes_little_time() -> None:
    text = "'" + "a\n" * (LARGEST_YAML // 2 - 2) + "'"
    assert outcome(lambda: len(parse_yaml(text))).value
