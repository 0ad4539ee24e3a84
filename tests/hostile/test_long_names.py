"""Every name that a file may have can be written; the temporary file's is not longer."""

import os
from pathlib import Path

import numpy as np
import pytest

from qdmr_ray.photographs.decode import read_image, write_png
from qdmr_ray.storage import open_location, write_file_atomic

LONG = {
    "233 bytes": "x" * 233,
    "234 bytes": "x" * 234,
    "255 bytes": "x" * 255,
    "85 characters of 255 bytes": "\u20ac" * 85,
    "255 bytes, cut inside a character": "x" + "\u20ac" * 84 + "xx",
    "bytes that are not UTF-8": os.fsdecode(b"\xe9" * 255),
}


@pytest.mark.parametrize("name", LONG.values(), ids=LONG.keys())
def test_a_file_of_a_long_name_is_written(tmp_path: Path, name: str) -> None:
    write_file_atomic(tmp_path / name, b"old")
    open_location(tmp_path / name).write_bytes_atomic(b"new")
    assert open_location(tmp_path / name).create(b"not written") is False
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {name: b"new"}


def test_a_photograph_of_a_long_name_is_written(tmp_path: Path) -> None:
    file = tmp_path / f"{'x' * 251}.png"
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    write_png(file, pixels)
    np.testing.assert_array_equal(read_image(file), pixels)
