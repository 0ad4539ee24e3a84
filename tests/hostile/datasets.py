"""Packed datasets whose index and manifest say something else, with checksums that agree.

folder = packed_noise(tmp_path)
forge(folder, row=1, name="../../x")
forge(folder, manifest=lambda values: values["sets"]["test"].update(images=-5))
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from qdmr_ray.data.format.index import encode_index, index_table, set_index
from qdmr_ray.data.format.manifest import MANIFEST_NAME, read_manifest
from qdmr_ray.data.packing.pack import PackSettings, pack
from qdmr_ray.photographs.decode import write_png
from qdmr_ray.storage import open_location

PAIRS = PackSettings(test_images="images", test_ground_truth="truth", shard_records=2)
HEIGHT, WIDTH = 70, 40


def packed_noise(root: Path, names: Sequence[str] = ("a", "b", "c")) -> Path:
    """Packs a test set of pairs into ``root/packed``, two to a shard; one photograph has two bands
    of checksums."""
    random = np.random.default_rng(0)
    for folder in ("images", "truth"):
        (root / folder).mkdir(parents=True)
        for name in names:
            pixels = random.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            write_png(root / folder / f"{name}.png", pixels)
    pack(root, str(root / "packed"), settings=PAIRS)
    return root / "packed"


def forge(
    folder: Path,
    *,
    row: int = 0,
    manifest: Callable[[dict[str, Any]], None] = lambda values: None,
    index: Callable[[bytes], bytes] = lambda data: data,
    **entry: Any,
) -> Path:
    """Changes fields of a record's ``entry``, then the bytes of the index, then the manifest, each
    with the checksums that belong to it; returns the folder."""
    found = read_manifest(open_location(folder)).set("test")
    file = folder / found.index.file
    if entry:
        records = set_index(open_location(folder), found)
        rows = [records[i] for i in range(len(records))]
        rows[row] = replace(rows[row], **entry)
        data = bytes(encode_index(index_table(rows)))
    else:
        data = file.read_bytes()
    data = index(data)
    file.unlink()
    file.write_bytes(data)
    values = json.loads((folder / MANIFEST_NAME).read_bytes())
    described = values["sets"]["test"]["index"]
    described |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    manifest(values)
    write_manifest(folder, values)
    return folder


def write_manifest(folder: Path, values: dict[str, Any]) -> None:
    """Writes plain values as a manifest, with its digest and checksum."""
    content = {name: entry["content"] for name, entry in values["sets"].items()}
    # The digest begins with the number of the format in which it was first written.
    values["digest"] = _sha256([2, values["lens"], content])
    values.pop("checksum", None)
    (folder / MANIFEST_NAME).write_text(json.dumps(values | {"checksum": _sha256(values)}))


def table_bytes(table: pa.Table, **options: Any) -> bytes:
    """Returns an Arrow file of any table."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, **options) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
