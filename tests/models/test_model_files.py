"""Trained networks on disk: back bit for bit, or one line about what is wrong with them."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from qdmr_ray.errors import QdmrError
from qdmr_ray.models.files import (
    build_network,
    load_model,
    load_weights,
    read_description,
    save_model,
)
from qdmr_ray.nets import QDMR, VQGAN, NetworkSettings
from qdmr_ray.stages import STAGES
from qdmr_ray.storage import location as storage
from qdmr_ray.storage import open_location

KINDS = ("vqgan", "qdmr_base", "qdmr_uda", "source_only")


@pytest.fixture
def saved(tmp_path: Path, tiny_network: NetworkSettings) -> Path:
    """The folder of a tiny trained VQGAN."""
    folder = tmp_path / "vqgan" / "final"
    network = VQGAN(tiny_network)
    save_model(open_location(folder), network, kind="vqgan", step=7, digest="abc")
    return folder


def refusal(folder: Path) -> str:
    """What loading says, always in one line that names the folder."""
    with pytest.raises(QdmrError) as error:
        load_model(folder)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(str(folder))
    return message


def edit_description(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    file = folder / "model.json"
    description = json.loads(file.read_text())
    change(description)
    file.write_text(json.dumps(description))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("residual", [False, True])
def test_comes_back_bit_for_bit(
    kind: str, residual: bool, tmp_path: Path, tiny_network: NetworkSettings
) -> None:
    network = build_network(kind, replace(tiny_network, global_residual=residual, commitment=0.5))
    save_model(open_location(tmp_path), network, kind=kind, step=7, digest="abc")

    model = load_model(tmp_path)

    assert (model.kind, model.step, model.digest) == (kind, 7, "abc")
    assert model.source == str(tmp_path)
    assert type(model.network) is type(network)
    assert model.network.settings == network.settings
    assert not model.network.training
    state = model.network.state_dict()
    assert state.keys() == network.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())
    x = torch.rand(1, 3, 16, 8)
    assert torch.equal(model.network(x).image, network.eval()(x).image)


def test_every_stage_has_a_kind_and_only_source_only_lacks_the_codebook(
    tiny_network: NetworkSettings,
) -> None:
    networks = {s: build_network(stage.kind, tiny_network) for s, stage in STAGES.items()}
    assert isinstance(networks["vqgan"], VQGAN)
    mixing = {s: n.domain_mixing for s, n in networks.items() if isinstance(n, QDMR)}
    assert mixing == {"base": True, "uda": True, "source_only": False}


def test_what_is_written(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == ["model.json", "model.safetensors"]
    description = read_description(open_location(saved))
    assert description is not None
    assert (description["kind"], description["step"], description["digest"]) == ("vqgan", 7, "abc")
    assert description["settings"]["widths"] == [8, 16]


@pytest.mark.parametrize("place", ["nowhere", "folder", "file"])
def test_no_model_there(place: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("no model")
    assert read_description(open_location(tmp_path / place)) is None
    assert "no model.json there; give the folder of a trained model" in refusal(tmp_path / place)


def test_damaged_weights_differ_from_their_checksum(saved: Path) -> None:
    file = saved / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    message = refusal(saved)
    assert message.startswith(f"{file}: differs from its checksum in model.json")


def test_missing_weights_are_named(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    assert refusal(saved).startswith(f"{saved / 'model.safetensors'}: no such file")


def test_weights_that_are_no_safetensors(saved: Path) -> None:
    (saved / "model.safetensors").write_bytes(b"pickle")
    digest = hashlib.sha256(b"pickle").hexdigest()
    edit_description(saved, lambda d: d.update(weights_sha256=digest))
    assert "cannot be read as safetensors" in refusal(saved)


def test_another_network_size_names_a_key_and_both_shapes(saved: Path) -> None:
    edit_description(saved, lambda d: d["settings"].update(codebook_size=32))
    message = refusal(saved)
    assert message.startswith(f"{saved / 'model.safetensors'}: weights of another network size: ")
    assert "quantizer.codes is (16, 8)" in message
    assert "ask for (32, 8)" in message


def test_another_kind_of_network_names_keys(saved: Path) -> None:
    edit_description(saved, lambda d: d.update(architecture="qdmr"))
    message = refusal(saved)
    assert "weights of another network" in message
    assert "missing (first: bottleneck." in message
    edit_description(saved, lambda d: d["settings"].update(residual_blocks=2))
    edit_description(saved, lambda d: d.update(architecture="vqgan"))
    assert "missing (first: decoder.levels.0.3." in refusal(saved)


def test_foreign_weights_are_refused_whole(tiny_network: NetworkSettings) -> None:
    network = VQGAN(tiny_network)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    foreign = {key: value + 1 for key, value in before.items()}
    foreign["quantizer.codes"] = torch.zeros(3, 8)
    with pytest.raises(QdmrError, match=r"^here: .*quantizer.codes is \(3, 8\)"):
        load_weights(network, foreign, "here")
    with pytest.raises(QdmrError, match=r"^here: .*1 unexpected \(first: extra\)"):
        load_weights(network, before | {"extra": torch.zeros(1)}, "here")
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 0}'])
def test_a_damaged_description_is_named(text: str, saved: Path) -> None:
    (saved / "model.json").write_text(text)
    assert refusal(saved).startswith(f"{saved / 'model.json'}: is ")


@pytest.mark.parametrize("key", ["kind", "settings", "step", "digest", "weights_sha256"])
def test_a_description_that_lacks_something_is_named(key: str, saved: Path) -> None:
    edit_description(saved, lambda d: d.pop(key))
    assert refusal(saved).startswith(f"{saved / 'model.json'}")


def test_a_description_with_settings_of_another_version_is_named(saved: Path) -> None:
    edit_description(saved, lambda d: d["settings"].update(attention="linear"))
    message = refusal(saved)
    assert message.startswith(f"{saved / 'model.json'}")
    assert "attention" in message


@pytest.mark.parametrize("fails_at", ["model.safetensors", "model.json"])
def test_an_interrupted_write_leaves_no_description(
    fails_at: str, tmp_path: Path, tiny_network: NetworkSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_file = storage.os.replace

    def failing(source: Path, destination: Path) -> None:
        if Path(destination).name == fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace_file(source, destination)

    monkeypatch.setattr(storage.os, "replace", failing)
    folder = tmp_path / "final"
    with pytest.raises(QdmrError, match=rf"{fails_at}: the disk is full"):
        save_model(open_location(folder), VQGAN(tiny_network), kind="vqgan", step=1, digest="")

    left = {"model.safetensors": [], "model.json": ["model.safetensors"]}[fails_at]
    assert [path.name for path in folder.iterdir()] == left
    assert read_description(open_location(folder)) is None


def test_an_interrupted_second_write_never_mixes_two_models(
    saved: Path, tiny_network: NetworkSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_file = storage.os.replace

    def failing(source: Path, destination: Path) -> None:
        if Path(destination).name == "model.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        replace_file(source, destination)

    monkeypatch.setattr(storage.os, "replace", failing)
    with pytest.raises(QdmrError, match="the disk is full"):
        save_model(open_location(saved), VQGAN(tiny_network), kind="vqgan", step=9, digest="new")

    with pytest.raises(QdmrError, match=r"checksum|no model\.json"):
        load_model(saved)


def test_weights_can_be_read_by_others(saved: Path) -> None:
    state = safetensors.torch.load_file(saved / "model.safetensors")
    assert state["quantizer.codes"].shape == (16, 8)
    assert all(value.dtype == torch.float32 for value in state.values())


def test_a_description_of_before_says_the_network_by_its_kind(saved: Path) -> None:
    edit_description(saved, lambda d: (d.pop("architecture"), d["settings"].pop("kind")))
    assert isinstance(load_model(saved).network, VQGAN)


def test_an_unknown_kind_without_an_architecture_is_refused(saved: Path) -> None:
    edit_description(saved, lambda d: (d.pop("architecture"), d.update(kind="other")))
    assert "kind 'other' is none of vqgan, qdmr_base" in refusal(saved)
