"""Thousands of damaged variants of files with many parts: archives, models, datasets."""

import hashlib
import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hostile.damage import damaged_bytes, damaged_values, holds
from hostile.datasets import forge, packed_noise, write_manifest
from hostile.limits import files_below, refused

from qdmr_ray.data.format.manifest import MANIFEST_NAME
from qdmr_ray.data.format.reader import RecordReader
from qdmr_ray.data.format.verify import verify
from qdmr_ray.data.realab import _unpack
from qdmr_ray.models.authors import import_authors
from qdmr_ray.models.files import DESCRIPTION_FILE, WEIGHTS_FILE, load_model, save_model
from qdmr_ray.nets import VQGAN, NetworkSettings
from qdmr_ray.optics.psf import PSFGrid
from qdmr_ray.storage import open_location

Damaged = Callable[[], tuple[str, bytes]]
FILES = {"Syn/a.png": b"\x89PNG" * 20, "Syn/deep/er/b.png": bytes(300), "c.txt": b"text"}


def zipped(compression: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)
    return file.getvalue()


def tarred(mode: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=f"w:{mode}") as archive:
        for name, content in FILES.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("Syn/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "a.png"
        archive.addfile(link)
    return file.getvalue()


ARCHIVES = {
    "a.zip": lambda: zipped(zipfile.ZIP_STORED),
    "deflated.zip": lambda: zipped(zipfile.ZIP_DEFLATED),
    "bzip2.zip": lambda: zipped(zipfile.ZIP_BZIP2),
    "lzma.zip": lambda: zipped(zipfile.ZIP_LZMA),
    "a.tar": lambda: tarred(""),
    "a.tar.gz": lambda: tarred("gz"),
}


def changed(name: str, before: bytes, after: bytes) -> Damaged:
    """Returns an archive in which some bytes are others."""

    def make() -> tuple[str, bytes]:
        data = ARCHIVES[name]()
        assert before in data
        return name, data.replace(before, after)

    return make


# Of LZMA, zipfile writes a byte of options and the size of the dictionary; of the directory at the
# end of a zip, the bytes before it stand before an empty comment.
BROKEN = {
    "LZMA of unknown options": changed("lzma.zip", b"\x5d\0\0\x80\0", b"\xff\0\0\x80\0"),
    "LZMA that asks for 4 GB": changed("lzma.zip", b"\x5d\0\0\x80\0", b"\x5d\xff\xff\xff\xff"),
    "bzip2 without its first block": changed("bzip2.zip", b"1AY&SY", b"1AY&SX"),
    "members before the beginning": changed("a.zip", b"\xf9\x01\0\0\0\0", b"\xf9\x11\0\0\0\0"),
    "a member without a name": changed("a.zip", b"c.txt", b"\0.txt"),
}


@pytest.mark.parametrize("make", BROKEN.values(), ids=BROKEN.keys())
def test_a_damaged_archive_is_refused(tmp_path: Path, make: Damaged) -> None:
    name, data = make()
    (tmp_path / name).write_bytes(data)
    refused(lambda: _unpack(tmp_path / name, tmp_path / "staging"), match=rf"{name}: .*is damaged")
    assert not [path for path in tmp_path.glob("*") if path.name not in (name, "staging")]


@pytest.mark.parametrize("name", ARCHIVES)
def test_thousands_of_damaged_archives(tmp_path: Path, name: str) -> None:
    (tmp_path / "private").write_text("mine")

    def unpack(data: bytes) -> None:
        folder = tmp_path / "folder"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / name).write_bytes(data)
        try:
            _unpack(folder / name, folder / "staging")
        finally:
            assert (folder / name).read_bytes() == data
            assert files_below(tmp_path).keys() >= {"private", f"folder/{name}"}
            assert {path.name for path in tmp_path.iterdir()} == {"private", "folder"}
            assert (tmp_path / "private").read_text() == "mine"

    holds(unpack, damaged_bytes(ARCHIVES[name]()), examples=100)


@pytest.fixture
def model(tmp_path: Path, tiny_network: NetworkSettings) -> Path:
    place = open_location(tmp_path / "final")
    save_model(place, VQGAN(tiny_network), kind="vqgan", step=1, digest="d")
    return tmp_path / "final"


def test_thousands_of_damaged_descriptions_of_a_model(model: Path) -> None:
    whole = json.loads((model / DESCRIPTION_FILE).read_bytes())

    def load(values: Any) -> None:
        (model / DESCRIPTION_FILE).write_text(json.dumps(values, default=str))
        load_model(model)

    holds(load, damaged_values(whole), examples=100)


def test_thousands_of_damaged_weights(model: Path) -> None:
    description = json.loads((model / DESCRIPTION_FILE).read_bytes())

    def load(data: bytes) -> None:
        description["weights_sha256"] = hashlib.sha256(data).hexdigest()
        (model / DESCRIPTION_FILE).write_text(json.dumps(description))
        (model / WEIGHTS_FILE).write_bytes(data)
        load_model(model)

    # The header, in which the tensors are described, and the first numbers.
    whole = (model / WEIGHTS_FILE).read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little") + 64
    holds(load, damaged_bytes(whole[:end]).map(lambda head: head + whole[end:]), examples=100)


def test_thousands_of_damaged_checkpoints_of_the_authors(tmp_path: Path) -> None:
    file = io.BytesIO()
    torch.save({"params": {"conv.weight": torch.zeros(2, 3), "conv.bias": torch.ones(2)}}, file)

    def read(data: bytes) -> None:
        (tmp_path / "net.pth").write_bytes(data)
        import_authors(tmp_path / "net.pth", "vqgan", open_location(tmp_path / "out"))

    holds(read, damaged_bytes(file.getvalue()), examples=300)


def test_thousands_of_damaged_measured_lenses(tmp_path: Path) -> None:
    file = io.BytesIO()
    psf = np.full((2, 2, 3, 3, 3), 1 / 9, np.float32)
    np.savez_compressed(file, psf=psf, version=np.int64(1))

    def load(data: bytes) -> None:
        (tmp_path / "psf.npz").write_bytes(data)
        PSFGrid.load(tmp_path / "psf.npz")

    holds(load, damaged_bytes(file.getvalue()), examples=300)


def read_all(folder: Path) -> None:
    """Reads every record and verifies the dataset."""
    reader = RecordReader(str(folder))
    for name in reader.manifest.sets:
        for index in range(min(reader.count(name), 3)):
            reader.read(name, index)
    verify(str(folder))


def test_thousands_of_damaged_manifests(tmp_path: Path) -> None:
    folder = packed_noise(tmp_path)
    whole = json.loads((folder / MANIFEST_NAME).read_bytes())

    def read(values: Any) -> None:
        values = json.loads(json.dumps(values, default=str))
        try:
            write_manifest(folder, values)
        # There are no sets to compute digest and checksum from.
        except (TypeError, KeyError, AttributeError):
            (folder / MANIFEST_NAME).write_text(json.dumps(values))
        read_all(folder)

    holds(read, damaged_values(whole), examples=80)


def test_thousands_of_damaged_shards(tmp_path: Path) -> None:
    folder = packed_noise(tmp_path)
    shard = min(folder.glob("*.parquet"))
    whole = shard.read_bytes()

    def change(data: bytes) -> Callable[[dict[str, Any]], None]:
        described = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        return lambda values: values["sets"]["test"]["shards"][0].update(described)

    def read(data: bytes) -> None:
        shard.unlink()
        shard.write_bytes(data)
        forge(folder, manifest=change(data))
        read_all(folder)

    holds(read, damaged_bytes(whole), examples=100)
