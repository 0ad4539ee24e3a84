"""Names in datasets from elsewhere lead nowhere: not out of a folder, not into a terminal."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hostile.datasets import forge, packed_noise
from hostile.limits import refused
from hypothesis import given
from hypothesis import strategies as st

from qdmr_ray.data.format.manifest import read_manifest
from qdmr_ray.data.format.reader import RecordReader
from qdmr_ray.data.format.verify import verify
from qdmr_ray.data.packing.pack import LEAVE_OUT, PackSettings, pack
from qdmr_ray.errors import SettingsError
from qdmr_ray.evaluate.results import Evaluation
from qdmr_ray.photographs.decode import write_png
from qdmr_ray.storage import open_location
from qdmr_ray.storage.names import MOST_NAME_BYTES, NOT_A_NAME, check_name

# What a name may do, by what it is: the reason why it is refused.
BAD_NAMES = {
    "a way out of the folder": ("../../../x", "holds a /"),
    "an absolute path": ("/etc/passwd", "holds a /"),
    "a folder below": ("a/b", "holds a /"),
    "the folder above": ("..", "is no name"),
    "the folder itself": (".", "is no name"),
    "nothing": ("", "is no name"),
    "an escape sequence": ("\x1b[2J", "holds control characters"),
    "an eight-bit escape": ("\x9b2J", "holds control characters"),
    "two lines": ("a\nb", "holds control characters"),
    "a line break at the end": ("a\n", "holds control characters"),
    "the end of a C string": ("a\0.png", "holds control characters"),
    "256 bytes": ("x" * 256, "more than 255 bytes"),
    "86 characters of 258 bytes": ("\u20ac" * 86, "more than 255 bytes"),
    "a million characters": ("x" * 10**6, "more than 255 bytes"),
}
SURROGATE = ("a\udce9", "not UTF-8")
NO_TEXTS = {k: v for k, v in BAD_NAMES.items() if "control" in v[1]}
NO_TEXTS["a byte that is not UTF-8"] = SURROGATE
BAD_JSON = {**BAD_NAMES, "a lone surrogate": SURROGATE}
cases = pytest.mark.parametrize
any_bad_name = cases(("name", "reason"), BAD_NAMES.values(), ids=BAD_NAMES.keys())
any_bad_text = cases(("name", "reason"), NO_TEXTS.values(), ids=NO_TEXTS.keys())


@any_bad_name
def test_a_record_of_an_index_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    folder = forge(packed_noise(tmp_path), row=1, name=name)
    match = rf"index-.*\.arrow: record 1: name .*{reason}.*pack the dataset again"
    assert len(refused(lambda: RecordReader(str(folder)).read("test", 1), match=match)) < 500
    refused(lambda: verify(str(folder)), match=match)


@cases("column", ["origin", "ground_truth_origin"])
@cases("text", ["a\x1b[2J", "a\nb", "\x7f"], ids=["an escape", "two lines", "delete"])
def test_an_origin_that_is_no_text_is_refused(tmp_path: Path, column: str, text: str) -> None:
    folder = forge(packed_noise(tmp_path), row=2, **{column: text})
    match = rf"record 2: {column} .*control characters"
    refused(lambda: RecordReader(str(folder)).read("test", 0), match=match)


@cases("kind", ["index", "shard"])
@cases(("name", "reason"), BAD_JSON.values(), ids=BAD_JSON.keys())
def test_a_file_of_a_manifest_is_refused(tmp_path: Path, kind: str, name: str, reason: str) -> None:
    def change(values: dict[str, Any]) -> None:
        found = values["sets"]["test"]
        (found["index"] if kind == "index" else found["shards"][1])["file"] = name

    folder = forge(packed_noise(tmp_path), manifest=change)
    match = rf"manifest\.json: damaged manifest \(.*file: .*{reason}"
    refused(lambda: read_manifest(open_location(folder)), match=match)


@any_bad_text
@cases("place", ["lens", "set", "origin", "reason"])
def test_texts_of_a_manifest_are_refused(
    tmp_path: Path, place: str, name: str, reason: str
) -> None:
    def change(values: dict[str, Any]) -> None:
        if place == "lens":
            values["lens"] = name
        elif place == "set":
            values["sets"][name] = values["sets"]["test"]
        else:
            left_out = {"set": "test", "origin": "a.png", "reason": "is empty"}
            values["left_out"] = [left_out | {place: name}]

    folder = forge(packed_noise(tmp_path), manifest=change)
    refused(lambda: read_manifest(open_location(folder)), match=f"damaged manifest .*{reason}")


@any_bad_text
def test_a_photograph_of_such_a_name_is_not_packed(tmp_path: Path, name: str, reason: str) -> None:
    if "\0" in name:
        pytest.skip("no file system has such a name")
    file = tmp_path / "images" / f"{name}.png"
    file.parent.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    write_png(tmp_path / "images" / "b.png", pixels)
    file.write_bytes((tmp_path / "images" / "b.png").read_bytes())
    stop = PackSettings(test_images="images")
    out = tmp_path / "packed"
    line = refused(lambda: pack(tmp_path, str(out), settings=stop), match=f"{reason}.*rename")
    assert str(file.parent) in line
    assert not out.exists()
    leave_out = PackSettings(test_images="images", bad_images=LEAVE_OUT)
    pack(tmp_path, str(out), settings=leave_out)
    manifest = read_manifest(open_location(out))
    assert manifest.set("test").images == 1
    assert manifest.left_out[0].origin.isprintable()


def test_a_folder_whose_name_is_not_utf8_is_named_by_escapes(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(bytes(tmp_path / "Lens") + b"\xe9"))
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    (folder / "a.png").write_bytes(b"")
    write_png(tmp_path / "a.png", pixels)
    os.replace(tmp_path / "a.png", folder / "a.png")
    out = tmp_path / "packed"
    pack(tmp_path, str(out), settings=PackSettings(test_images=folder.name))
    assert RecordReader(str(out)).index("test").origin(0) == r"Lens\udce9/a.png"


@any_bad_text
def test_a_lens_of_such_a_name_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "images").mkdir()
    settings = PackSettings(test_images="images", lens=name)
    refused(lambda: pack(tmp_path, str(tmp_path / "out"), settings=settings), match=reason)


@any_bad_name
def test_a_stage_of_an_evaluation_names_no_other_file(name: str, reason: str) -> None:
    values = {"images": 1, "input": {}, "stages": {name: {"psnr": 1.0}}, "per_image": []}
    refused(lambda: Evaluation.from_dict(values, "evaluation.json"), match=reason)


def test_good_names_are_read(tmp_path: Path) -> None:
    names = ["a b", "Bild \u00e4\u20ac", "x" * 251, "at 1.00\u202fPM", "-rf", "a\\b", "a..b"]
    folder = packed_noise(tmp_path, names)
    reader = RecordReader(str(folder))
    assert sorted(reader.read("test", i).name for i in range(len(names))) == sorted(names)
    assert not verify(str(folder))


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=300))
def test_pyarrow_and_python_agree_about_names(name: str) -> None:
    column = pa.array([name], pa.large_string())
    found = pc.match_substring_regex(column, NOT_A_NAME)[0].as_py()
    too_long = len(name.encode()) > MOST_NAME_BYTES
    try:
        assert check_name(name) == name
        assert not found
        assert not too_long
    except SettingsError:
        assert found or too_long
