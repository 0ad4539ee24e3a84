"""Places in a store are asked as paths on a disk are."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from faulty_store import FaultyStore
from PIL import Image

from qdmr_ray.errors import QdmrError
from qdmr_ray.photographs.decode import probe_image
from qdmr_ray.storage import StorePath, any_path, location_of


def filled(store: FaultyStore, **files: bytes) -> StorePath:
    root = any_path(f"s3://{store.bucket}/photos")
    assert isinstance(root, StorePath)
    for name, data in files.items():
        root.place.join(*name.split("__")).write_bytes_atomic(data)
    store.heal()
    return root


def test_a_path_on_a_disk_keeps_its_spelling() -> None:
    assert any_path("../a/./b") == Path("../a/b")
    assert location_of(Path("/a/../b")).path == "/a/../b"
    assert location_of(Path("~")).path == f"{Path.cwd()}/~"


def test_folders_and_files_of_a_store(faulty_store: FaultyStore) -> None:
    root = filled(faulty_store, gt__1=b"one", gt__2=b"three", notes=b"n")
    assert root.is_dir()
    assert (root / "gt").is_dir()
    assert not (root / "g").is_dir()
    assert not (root / "notes").is_dir()
    assert (root / "notes").is_file()
    found = {path.name: path for path in (root / "gt").iterdir()}
    assert sorted(found) == ["1", "2"]
    faulty_store.heal()
    # A listing has told already that these are files.
    assert all(path.is_file() for path in found.values())
    assert not faulty_store.requests
    assert found["2"].read_bytes() == b"three"
    # A whole path below a folder is that path.
    assert Path("/here") / found["1"] == found["1"]
    assert str(found["1"]) == f"s3://{faulty_store.bucket}/photos/gt/1"


def test_a_file_is_read_in_the_ranges_that_are_asked_for(faulty_store: FaultyStore) -> None:
    data = bytes(range(256)) * 2048
    root = filled(faulty_store, file=data)
    (path,) = root.iterdir()
    faulty_store.heal()
    with path.open("rb") as file:
        assert file.read(10) == data[:10]
        file.seek(-3, os.SEEK_END)
        assert file.read() == data[-3:]
        file.seek(1000)
        assert file.read(7) == data[1000:1007]
        with pytest.raises(OSError, match="before"):
            file.seek(-len(data) - 1, os.SEEK_END)
    assert faulty_store.count(method="GET") <= 3
    assert (root / "file").open("rb").read() == data
    with pytest.raises(QdmrError, match="photos/missing"):
        (root / "missing").open("rb").read()


# A PNG's end is read, too; a TIFF's directory may lie behind its pixels; Pillow reads a whole WebP.
REQUESTS = {"PNG": 2, "JPEG": 1, "TIFF": 4, "WEBP": 2, "BMP": 1}


@pytest.mark.parametrize("kind", REQUESTS)
def test_a_probe_takes_few_requests(faulty_store: FaultyStore, kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (600, 500, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(noise).save(sink, format=kind)
    (path,) = filled(faulty_store, file=sink.getvalue()).iterdir()
    faulty_store.heal()
    assert probe_image(path) == (600, 500)
    assert faulty_store.count() <= REQUESTS[kind]
    path.place.write_bytes_atomic(b"no image")
    with pytest.raises(QdmrError, match=r"photos/file: unreadable image"):
        probe_image(StorePath(path.place))
