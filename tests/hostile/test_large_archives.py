"""Archives, PSFs and pristine models that would fill the disk or the memory: one line, soon."""

import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile.limits import files_below, refused
from scipy.io import savemat

from qdmr_ray.data.realab import _unpack
from qdmr_ray.evaluate.metrics.pristine import load_pristine
from qdmr_ray.optics.lens import load_lens


def sparse_tar(path: Path, size: int) -> None:
    """A tar with an empty sparse file of so many bytes (GNU format 1.0 in pax headers)."""
    headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a.png"}
    headers["GNU.sparse.realsize"] = str(size)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("a.png")
        member.pax_headers, member.size = headers, 512
        archive.addfile(member, io.BytesIO(b"0\n".ljust(512, b"\0")))


def header(path: Path, kind: bytes, length: int) -> None:
    """A tar whose first member is a header of a kind (L: a long name, K: a long link, x: pax),
    which claims so many bytes."""
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = kind, length
    path.write_bytes(member.tobuf(tarfile.GNU_FORMAT) + b"a" * 512)


ARCHIVES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "a sparse file of 1 PB": ("a.tar", lambda p: sparse_tar(p, 10**15), "takes 1000000.0 GB"),
    "a sparse file of 2 ** 62": ("a.tar", lambda p: sparse_tar(p, 2**62), "takes "),
    "a name of 4 GB": (
        "a.tar",
        lambda p: header(p, b"L", 4 * 10**9),
        "damaged",
    ),
    "a link of 4 GB": (
        "a.tar",
        lambda p: header(p, b"K", 4 * 10**9),
        "damaged",
    ),
    "attributes of 4 GB": ("a.tar", lambda p: header(p, b"x", 4 * 10**9), "damaged"),
    "a text": ("a.tar", lambda p: p.write_text("no archive") and None, "damaged"),
    "a zip that is a text": ("a.zip", lambda p: p.write_text("no archive") and None, "damaged"),
}


@pytest.mark.parametrize(("name", "make", "told"), ARCHIVES.values(), ids=ARCHIVES)
def test_archives_that_claim_bytes(name: str, make: Any, told: str, tmp_path: Path) -> None:
    make(tmp_path / name)
    before = files_below(tmp_path)
    match = rf"{name}.*{told}"
    refused(lambda: _unpack(tmp_path / name, tmp_path / "staging"), match=match)
    assert files_below(tmp_path) == before


def deflated(path: Path, name: str, size: int) -> None:
    """An .npz whose array ``name`` has so many bytes, all zero."""
    start = io.BytesIO()
    description = {"descr": "|u1", "fortran_order": False, "shape": (size,)}
    np.lib.format.write_array_header_1_0(start, description)
    block = bytes(1 << 20)
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(f"{name}.npy", "w") as file,
    ):
        file.write(start.getvalue())
        for _ in range(size >> 20):
            file.write(block)


def test_psfs_that_inflate(tmp_path: Path) -> None:
    deflated(tmp_path / "a.npz", "psf", 1 << 28)
    match = r"a\.npz: not a readable \.npz file"
    refused(lambda: load_lens(str(tmp_path / "a.npz")), match=match, memory=200_000_000)


def test_psfs_of_a_claimed_shape(tmp_path: Path) -> None:
    start = io.BytesIO()
    description = {"descr": "<f4", "fortran_order": False, "shape": (10**6, 10**6)}
    np.lib.format.write_array_header_1_0(start, description)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("psf.npy", start.getvalue())
    match = r"a\.npz: not a readable \.npz file"
    refused(lambda: load_lens(str(tmp_path / "a.npz")), match=match)


@pytest.mark.parametrize("ending", ["npz", "mat"])
def test_what_is_no_file(ending: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f"a.{ending}")
    refused(lambda: load_pristine(tmp_path / f"a.{ending}"), match=r"pipe")
    if ending == "npz":
        refused(lambda: load_lens(str(tmp_path / "a.npz")), match=r"a\.npz: not a readable")


def test_pristine_models_that_inflate(tmp_path: Path) -> None:
    deflated(tmp_path / "a.npz", "mu_pris_param", 1 << 26)
    refused(lambda: load_pristine(tmp_path / "a.npz"), match=r"its content would fill 67 MB")
    savemat(tmp_path / "a.mat", {"mu_prisparam": np.zeros(1 << 16)})
    refused(lambda: load_pristine(tmp_path / "a.mat"), match=r"a\.mat: .*it has 524,\d+ bytes")
    # Compressed, they are small enough to be read.
    savemat(tmp_path / "b.mat", {"mu_prisparam": np.zeros(8 << 20)}, do_compression=True)
    refused(lambda: load_pristine(tmp_path / "b.mat"), match=r"b\.mat: holds no cov_prisparam")
