"""An index that leads outside its shard, or outside itself, is refused before anything is read."""

import random
import re
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hostile.datasets import forge, packed_noise, table_bytes
from hostile.limits import outcome, refused

from qdmr_ray.data.format.index import INDEX_SCHEMA, read_index, set_index
from qdmr_ray.data.format.manifest import read_manifest
from qdmr_ray.data.format.reader import RecordReader
from qdmr_ray.data.format.verify import verify
from qdmr_ray.errors import QdmrError
from qdmr_ray.storage import open_location

cases = pytest.mark.parametrize
LARGEST = 2**63 - 1


def words(value: dict[str, Any] | str) -> str:
    """Returns the id of a test: the fields that change, without what is said about them."""
    if isinstance(value, str):
        return ""
    return ", ".join(f"{name}={str(field)[:20]}" for name, field in value.items())


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    folder = packed_noise(tmp_path_factory.mktemp("rows"))
    return set_index(open_location(folder), read_manifest(open_location(folder)).set("test")).table


@cases(
    ("change", "reason"),
    [
        ({"image_offset": -5000}, "has its image outside its shard"),
        ({"image_offset": -1}, "has its image outside its shard"),
        ({"image_offset": LARGEST}, "has its image outside its shard"),
        ({"image_offset": 10**6}, "has its image outside its shard"),
        ({"ground_truth_offset": -5000}, "has its ground truth outside its shard"),
        ({"ground_truth_offset": -1}, "has its ground truth outside its shard"),
        ({"ground_truth_offset": LARGEST}, "has its ground truth outside its shard"),
        ({"height": 0}, "has no pixels"),
        ({"width": 0}, "has no pixels"),
        ({"height": -70}, "has no pixels"),
        ({"width": -40}, "has no pixels"),
        ({"height": 2**31 - 1, "width": 2**31 - 1}, "has its image outside its shard"),
        ({"width": 2**31 - 1}, "has its image outside its shard"),
        ({"image_bands": []}, "has image checksums of other bands"),
        ({"image_bands": [1] * 3}, "has image checksums of other bands"),
        ({"ground_truth_bands": []}, "has ground truth checksums of other bands"),
        ({"height": 64}, "has image checksums of other bands"),
    ],
    ids=words,
)
def test_a_record_outside_its_shard_is_refused(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    folder = str(forge(packed_noise(tmp_path), row=1, **change))
    match = rf"index-.*\.arrow: record 1 \(images/b\.png\) {reason}; pack the dataset again"
    refused(lambda: verify(folder), match=match)
    refused(lambda: RecordReader(folder).read("test", 1), match=match)


@cases(
    ("change", "problem"),
    [
        ({"image_offset": 4}, "row 1 .* has a wrong checksum"),
        ({"ground_truth_offset": 0}, "row 1 .* has a wrong checksum"),
        ({"sha256": b"\0" * 32}, "row 1 .* has a wrong checksum"),
        ({"image_bands": [1, 2]}, "row 1 .* has a wrong checksum"),
        ({"ground_truth_bands": [1, 2]}, "row 1 .* has a wrong checksum"),
        ({"height": 40, "width": 70, "image_bands": [1], "ground_truth_bands": [1]}, "sizes of"),
        ({"name": "z"}, "names, sizes or checksums of other records"),
        ({"sha256": b"\1" * 32}, "names, sizes or checksums of other records"),
    ],
    ids=words,
)
def test_verify_tells_what_differs_though_the_files_are_whole(
    tmp_path: Path, change: dict[str, Any], problem: str
) -> None:
    folder = str(forge(packed_noise(tmp_path), row=1, **change))
    assert any(re.search(problem, found.text) for found in verify(folder))


COUNTS = {"0": 0, "-5": -5, "a negative one of 400 digits": -(10**400)}
COUNTS |= {"one of 400 digits": 10**400, "2^63": 2**63, "1.5": 1.5, "null": None, "true": True}


@cases("value", COUNTS.values(), ids=COUNTS.keys())
@cases("field", ["rows", "bytes", "images", "height"])
def test_counts_of_a_manifest_are_counts(tmp_path: Path, field: str, value: Any) -> None:
    def change(values: dict[str, Any]) -> None:
        found = values["sets"]["test"]
        places = {"images": found, "height": found["sizes"][0]}
        places.get(field, found["shards"][0])[field] = value

    folder = str(forge(packed_noise(tmp_path), manifest=change))
    found = outcome(lambda: len(verify(folder)))
    assert found.error or found.value, found


STRIPS = {name: value for name, value in COUNTS.items() if value is not None} | {"1": 1, "39": 39}


@cases("value", STRIPS.values(), ids=STRIPS.keys())
def test_strips_of_a_manifest_are_those_of_the_index(tmp_path: Path, value: Any) -> None:
    def change(values: dict[str, Any]) -> None:
        values["sets"]["test"]["strip_pixels"] = value

    folder = str(forge(packed_noise(tmp_path), manifest=change))
    match = "damaged manifest|has image checksums of other bands"
    refused(lambda: verify(folder), match=match)
    refused(lambda: RecordReader(folder).crop("test", 0, top=0, left=0, size=40), match=match)


def test_rows_that_cancel_out_are_refused(tmp_path: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        for shard, rows in zip(values["sets"]["test"]["shards"], (-5, 8), strict=True):
            shard["rows"] = rows

    folder = str(forge(packed_noise(tmp_path), manifest=change))
    refused(lambda: verify(folder), match=r"damaged manifest \(.*rows: .*greater than or equal")


def replaced(rows: pa.Table, column: str, array: pa.Array) -> bytes:
    place = rows.schema.get_field_index(column)
    return table_bytes(rows.set_column(place, INDEX_SCHEMA.field(place), array))


def texts(data: bytes) -> pa.Array:
    """Texts of a byte each, which pyarrow doesn't check."""
    places = pa.py_buffer(np.arange(len(data) + 1, dtype=np.int64))
    buffers = [None, places, pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.large_string(), len(data), buffers)


def offsets(rows: pa.Table, column: str, wrong: list[int]) -> bytes:
    """Returns an index where a column's values begin at other places than they did: these are
    written into the file's bytes, since pyarrow wouldn't write them."""
    lists = column == "image_bands"
    field = INDEX_SCHEMA.field(column)
    array = pa.array([[7, 7]] * 3, field.type) if lists else texts(b"abc")
    data = replaced(rows, column, array)
    right = struct.pack("<4q", *range(0, 8, 2)) if lists else struct.pack("<4q", *range(4))
    assert data.count(right) >= 1
    return data.replace(right, struct.pack("<4q", *wrong))


DAMAGE: dict[str, Callable[[pa.Table], bytes]] = {
    "a text that ends beyond its bytes": lambda r: offsets(r, "name", [0, 1, 2, LARGEST]),
    "a text that begins before them": lambda r: offsets(r, "name", [-(2**40), 1, 2, 3]),
    "texts that run backwards": lambda r: offsets(r, "origin", [0, 3, 1, 2]),
    "a text that is not UTF-8": lambda r: replaced(r, "name", texts(b"\xff\xfe\xe9")),
    "a list that ends beyond its values": lambda r: offsets(r, "image_bands", [0, 2, 4, 2**40]),
    "lists that run backwards": lambda r: offsets(r, "image_bands", [0, 6, 2, 4]),
    "nothing in place of a name": lambda r: replaced(
        r, "name", pa.array(["a", None, "c"], pa.large_string())
    ),
    "nothing in place of a checksum": lambda r: replaced(
        r, "image_bands", pa.array([[1, None], [1, 2], [1, 2]], pa.large_list(pa.uint32()))
    ),
    "nothing in place of a height": lambda r: replaced(
        r, "height", pa.array([1, None, 1], pa.int32())
    ),
    "compressed columns": lambda r: table_bytes(
        r, options=pa.ipc.IpcWriteOptions(compression="zstd")
    ),
    "a compressed gigabyte": lambda r: table_bytes(
        replace_name(r, "x" * 2**28), options=pa.ipc.IpcWriteOptions(compression="zstd")
    ),
    "a column less": lambda r: table_bytes(r.drop_columns(["width"])),
    "a column of another type": lambda r: table_bytes(
        r.set_column(3, "height", pa.array(["1", "2", "3"]))
    ),
    "no rows": lambda r: table_bytes(r.slice(0, 0)),
    "no bytes": lambda r: b"",
    "eight bytes": lambda r: b"ARROW1\0\0",
    "half of the file": lambda r: table_bytes(r)[: len(table_bytes(r)) // 2],
    "zeros": lambda r: bytes(4096),
    "a Parquet file's beginning": lambda r: b"PAR1" + bytes(100),
}


def replace_name(rows: pa.Table, name: str) -> pa.Table:
    place = rows.schema.get_field_index("name")
    names = pa.array([name, "b", "c"], pa.large_string())
    return rows.set_column(place, INDEX_SCHEMA.field(place), names)


@cases("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_an_index_that_is_none_is_refused(
    tmp_path: Path, rows: pa.Table, damage: Callable[[pa.Table], bytes]
) -> None:
    data = damage(rows)
    folder = str(forge(packed_noise(tmp_path), index=lambda before: data))
    match = r"index-.*\.arrow: damaged index; pack the dataset again"
    refused(lambda: RecordReader(folder).read("test", 0), match=match)


def test_thousands_of_damaged_indexes_are_refused_or_read(rows: pa.Table) -> None:
    whole = table_bytes(rows)

    def read_damaged(seed: int) -> None:
        drawn = random.Random(seed)
        for _ in range(500):
            data = bytearray(whole)
            for _ in range(drawn.choice((1, 1, 2, 8))):
                place = drawn.randrange(len(data))
                flipped = data[place] ^ 1 << drawn.randrange(8)
                data[place] = drawn.choice((0, 1, 127, 128, 255, flipped))
            if drawn.random() < 0.1:
                del data[drawn.randrange(len(data)) :]
            with suppress(QdmrError):
                read_index(pa.py_buffer(bytes(data)), "index").to_pylist()

    for seed in range(4):
        found = outcome(lambda seed=seed: read_damaged(seed), seconds=60)
        assert found.crash is None, (seed, found)
