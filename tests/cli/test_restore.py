"""``qdmr restore``: photographs of any kind, and checkpoints that are none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from command_line import Command, noise
from PIL import Image

from qdmr_ray.models.files import save_model
from qdmr_ray.nets import VQGAN, NetworkSettings
from qdmr_ray.photographs.decode import read_image, write_png
from qdmr_ray.storage import open_location


def test_restores_photographs_of_any_kind_and_size(
    tmp_path: Path, model: Path, qdmr: Command
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    write_png(photos / "odd.png", noise(1, 13, 21))
    Image.fromarray(noise(2)[..., 0]).save(photos / "grey.tif")

    done = qdmr("restore", photos, "--checkpoint", model, "--out", tmp_path / "out")

    assert done.code == 0
    restored = {path.stem: read_image(path) for path in (tmp_path / "out").iterdir()}
    assert restored.keys() == {"odd", "grey"}
    np.testing.assert_array_equal(restored["odd"], noise(1, 13, 21))
    np.testing.assert_array_equal(restored["grey"], np.dstack([noise(2)[..., 0]] * 3))


def test_a_bad_photograph_does_not_stop_the_others(
    tmp_path: Path, model: Path, qdmr: Command
) -> None:
    good, bad, out = tmp_path / "good.png", tmp_path / "bad.png", tmp_path / "out"
    write_png(good, noise(1))
    bad.write_bytes(good.read_bytes()[:-500])

    outcome = qdmr("restore", bad, good, tmp_path / "none.png", "--checkpoint", model, "--out", out)

    assert outcome.code == 1
    assert [path.name for path in out.iterdir()] == ["good.png"]
    told = [line for line in outcome.err.splitlines() if line.startswith("qdmr: ")]
    assert len(told) == 2
    assert str(bad) in told[0]
    assert str(tmp_path / "none.png") in told[1]
    assert "Traceback" not in outcome.err


def test_a_checkpoint_of_another_network_size(tmp_path: Path, model: Path, qdmr: Command) -> None:
    write_png(tmp_path / "photo.png", noise(1))
    description = json.loads((model / "model.json").read_text())
    description["settings"]["codebook_size"] = 32
    (model / "model.json").write_text(json.dumps(description))

    told = qdmr("restore", tmp_path / "photo.png", "--checkpoint", model, "--out", tmp_path / "out")

    assert told.code == 1
    assert told.line.startswith(f"qdmr: {model / 'model.safetensors'}: weights of another network")
    assert "quantizer.codes is (16, 8)" in told.line
    assert "(32, 8)" in told.line
    assert not (tmp_path / "out").exists()


def test_checkpoints_that_are_none(tmp_path: Path, model: Path, qdmr: Command) -> None:
    write_png(tmp_path / "photo.png", noise(1))
    words = ("restore", tmp_path / "photo.png", "--out", tmp_path / "out", "--checkpoint")

    missing = qdmr(*words, tmp_path / "none")
    assert (missing.code, "no model.json there" in missing.line) == (1, True)
    (model / "model.safetensors").write_bytes(b"damaged")
    damaged = qdmr(*words, model)
    assert (damaged.code, "differs from its checksum" in damaged.line) == (1, True)
    assert not (tmp_path / "out").exists()


def test_a_vqgan_restores_nothing(
    tmp_path: Path, tiny_network: NetworkSettings, qdmr: Command
) -> None:
    """Its output only imitates the target's look; evaluate refuses it too."""
    folder = tmp_path / "vqgan" / "final"
    save_model(open_location(folder), VQGAN(tiny_network), kind="vqgan", step=1, digest="")
    write_png(tmp_path / "photo.png", noise(1))

    told = qdmr(
        "restore", tmp_path / "photo.png", "--checkpoint", folder, "--out", tmp_path / "out"
    )

    assert told.code == 1
    assert "VQGAN" in told.line
    assert not (tmp_path / "out").exists()


def test_restoring_onto_a_full_disk(
    full_disk: Path, large_realab: Path, model: Path, qdmr: Command
) -> None:
    outcome = qdmr(
        *("restore", large_realab / "Syn/gt/0.png"),
        *("--checkpoint", model, "--out", full_disk / "out"),
    )
    assert outcome.code == 1
    (told,) = [line for line in outcome.err.splitlines() if line.startswith("qdmr: ")]
    assert "the disk is full" in told
    assert not (full_disk / "out").exists()
