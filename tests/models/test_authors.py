"""The authors' files: in and out again bit for bit, or one line about what is wrong with them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from torch import Tensor
from typer.testing import CliRunner

from qdmr_ray.cli.train import import_weights
from qdmr_ray.errors import QdmrError, SettingsError
from qdmr_ray.models.authors import authors_state, import_authors, infer_settings, read_authors
from qdmr_ray.models.files import EXTRAS_FILE, build_network, load_model, save_model
from qdmr_ray.nets import QDMR, VQGAN, NetworkSettings, SemanticHead
from qdmr_ray.nets.adapter import from_authors, to_authors
from qdmr_ray.nets.vgg import VGG19Features
from qdmr_ray.storage import location as storage
from qdmr_ray.storage import open_location
from qdmr_ray.verify.golden import golden_array

GOLDEN_KEYS = json.loads(
    (Path(__file__).parents[1] / "golden" / "state_dict_keys.json").read_text()
)
CONSTANTS = ("relative_position_index", "attn_mask", "mean", "std")
SHIFTED = "swin_block.swin_blks.0.residual_group.blocks.1"


def tiny_state(kind: str, settings: NetworkSettings) -> dict[str, Tensor]:
    """A tiny network's state dict in the authors' names; of a VQGAN without its extras."""
    return to_authors(
        "s2t" if kind == "vqgan" else kind, build_network(kind, settings).state_dict()
    )


def write(path: Path, state: dict[str, Any], place: str | None = "params") -> Path:
    torch.save(state if place is None else {place: state}, path)
    return path


def refusal(file: Path, kind: str) -> str:
    """What importing says: a line that names the file, then one for each key that is wrong, if
    any; and no folder is left."""
    out = file.parent / "out"
    with pytest.raises(QdmrError) as error:
        import_authors(file, kind, open_location(out))
    message = str(error.value)
    first, *others = message.split("\n")
    assert first.startswith(str(file))
    assert all(line.startswith(("  missing: ", "  unexpected: ", "  wrong")) for line in others)
    assert not out.exists()
    return message


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vqgan", "qdmr_base", "qdmr_uda"])
def test_full_size_round_trip_is_bit_exact(kind: str, tmp_path: Path) -> None:
    weights = {
        key: torch.from_numpy(golden_array(key, tuple(shape))).float()
        for key, shape, _ in GOLDEN_KEYS[kind]
        if not key.endswith(CONSTANTS)
    }
    # The constants, which this package computes, are what the authors' code stores.
    theirs = to_authors(kind, from_authors(kind, weights))
    file = write(tmp_path / "net_g.pth", theirs)

    notes = import_authors(file, kind, open_location(tmp_path / "model"))
    model = load_model(tmp_path / "model")
    back = authors_state(model)

    assert notes == ()
    assert (model.kind, model.step) == (kind, 0)
    assert model.digest.endswith(hashlib.sha256(file.read_bytes()).hexdigest())
    assert model.network.settings == NetworkSettings()
    assert back.keys() == {key for key, _, _ in GOLDEN_KEYS[kind]}
    for key, shape, dtype in GOLDEN_KEYS[kind]:
        assert str(back[key].dtype) == f"torch.{dtype}"
        assert list(back[key].shape) == shape
        assert torch.equal(
            back[key].view(-1).view(torch.uint8), theirs[key].view(-1).view(torch.uint8)
        ), key


@pytest.mark.parametrize("kind", ["vqgan", "qdmr_base", "qdmr_uda"])
def test_sizes_are_those_of_the_weights(
    kind: str, tmp_path: Path, tiny_network: NetworkSettings
) -> None:
    theirs = tiny_state(kind, tiny_network)
    file = write(tmp_path / "net_g.pth", theirs)

    notes = import_authors(file, kind, open_location(tmp_path / "model"))
    model = load_model(tmp_path / "model")

    found = model.network.settings
    if kind == "vqgan":
        # A VQGAN's weights know nothing of the bottleneck.
        found = replace(found, swin=tiny_network.swin)
        assert any("no semantic head and no VGG19" in note for note in notes)
    else:
        image = torch.rand(1, 3, 24, 16)
        assert model.network(image).image.shape == image.shape
    assert found == tiny_network
    assert "codebook_size 16 instead of 1024" in notes[-1]
    assert "swin.blocks 2 instead of 6" in notes[-1] or kind == "vqgan"
    back = authors_state(model)
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[key], value) for key, value in theirs.items())


def test_a_vqgans_head_and_vgg19_survive_beside_the_network(
    tmp_path: Path, tiny_network: NetworkSettings
) -> None:
    state = dict(build_network("vqgan", tiny_network).state_dict())
    for prefix, part in (("semantic.", SemanticHead(8)), ("vgg.", VGG19Features())):
        state |= {f"{prefix}{key}": value for key, value in part.state_dict().items()}
    theirs = to_authors("vqgan", state)
    folder = tmp_path / "model"

    import_authors(write(tmp_path / "a.pth", theirs), "vqgan", open_location(folder))

    back = authors_state(load_model(folder))
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[key], value) for key, value in theirs.items())
    data = bytearray((folder / EXTRAS_FILE).read_bytes())
    data[-1] ^= 1
    (folder / EXTRAS_FILE).write_bytes(data)
    with pytest.raises(QdmrError, match=rf"{EXTRAS_FILE}: differs from its checksum"):
        authors_state(load_model(folder))
    # Another model in the same folder has nothing to do with them.
    network = build_network("vqgan", tiny_network)
    save_model(open_location(folder), network, kind="vqgan", step=1, digest="")
    assert not any(key.startswith("vgg") for key in authors_state(load_model(folder)))


def test_base_takes_the_codebook_of_an_imported_vqgan(
    tmp_path: Path, tiny_network: NetworkSettings
) -> None:
    file = write(tmp_path / "a.pth", tiny_state("vqgan", tiny_network))
    import_authors(file, "vqgan", open_location(tmp_path / "model"))
    vqgan, base = load_model(tmp_path / "model").network, QDMR(tiny_network)
    assert isinstance(vqgan, VQGAN)

    base.take_codebook(vqgan)

    assert torch.equal(base.quantizer.codes, vqgan.quantizer.codes)


@pytest.mark.parametrize(
    ("place", "said"), [("params", None), ("params_ema", "averaged"), (None, "bare state dict")]
)
def test_where_the_weights_may_lie(
    place: str | None, said: str | None, tmp_path: Path, tiny_network: NetworkSettings
) -> None:
    file = write(tmp_path / "a.pth", tiny_state("qdmr_base", tiny_network), place)
    notes = read_authors(file, "qdmr_base").notes
    assert [said in note for note in notes[:-1]] == ([] if said is None else [True])


def test_params_are_preferred_to_averaged_ones(
    tmp_path: Path, tiny_network: NetworkSettings
) -> None:
    theirs = tiny_state("qdmr_base", tiny_network)
    other = {key: torch.zeros_like(value) for key, value in theirs.items()}
    torch.save({"params_ema": other, "params": theirs}, tmp_path / "a.pth")
    state = read_authors(tmp_path / "a.pth", "qdmr_base").state
    assert torch.equal(state["encoder.first.weight"], theirs["cac_encoder.in_conv.weight"])


def test_other_floats_become_float32_and_it_is_said(
    tmp_path: Path, tiny_network: NetworkSettings
) -> None:
    theirs = {
        key: value.half() if value.is_floating_point() else value
        for key, value in tiny_state("qdmr_uda", tiny_network).items()
    }
    file = write(tmp_path / "a.pth", theirs)
    notes = import_authors(file, "qdmr_uda", open_location(tmp_path / "model"))
    assert any("weights in float16: they become float32" in note for note in notes)
    weight = load_model(tmp_path / "model").network.state_dict()["encoder.first.weight"]
    assert torch.equal(weight, theirs["cac_encoder.in_conv.weight"].float())


def test_missing_unexpected_and_misshapen_are_all_named(
    tmp_path: Path, tiny_network: NetworkSettings
) -> None:
    theirs = tiny_state("qdmr_uda", tiny_network)
    del theirs[f"{SHIFTED}.attn.qkv.bias"]
    theirs["extra.weight"] = torch.zeros(1)
    theirs["cac_encoder.blocks.0.1.conv.9.weight"] = torch.zeros(1)
    theirs["cac_out_conv.bias"] = torch.zeros(4)

    message = refusal(write(tmp_path / "a.pth", theirs), "qdmr_uda")

    first, *others = message.split("\n")
    assert first.endswith("network: keys: 1 missing, 2 unexpected, 1 wrong shape")
    assert others == [
        f"  missing: {SHIFTED}.attn.qkv.bias",
        "  unexpected: extra.weight",
        "  unexpected: cac_encoder.blocks.0.1.conv.9.weight",
        "  wrong shape: cac_out_conv.bias (4,) instead of (3,)",
    ]


def test_many_missing_keys_are_all_named(tmp_path: Path, tiny_network: NetworkSettings) -> None:
    theirs = tiny_state("qdmr_uda", tiny_network)
    few = {k: v for k, v in theirs.items() if not k.startswith(("cacdecoder", "vqfusion"))}
    message = refusal(write(tmp_path / "a.pth", few), "qdmr_uda")
    missing = theirs.keys() - few.keys()
    assert f"keys: {len(missing)} missing" in message
    assert sorted(message.split("\n")[1:]) == sorted(f"  missing: {key}" for key in missing)


def test_our_own_weights_need_no_import(tmp_path: Path, tiny_network: NetworkSettings) -> None:
    for kind in ("vqgan", "qdmr_base"):
        folder = tmp_path / kind
        network = build_network(kind, tiny_network)
        save_model(open_location(folder), network, kind=kind, step=1, digest="")
        message = refusal(folder / "model.safetensors", kind)
        assert "this project's own names" in message
        assert "needs no import" in message
        assert "\n" not in message


def test_a_folder_is_called_one(tmp_path: Path) -> None:
    folder = tmp_path / "a.pth"
    folder.mkdir()
    assert "is a folder: give a .pth file" in refusal(folder, "vqgan")


@pytest.mark.parametrize(
    ("held", "asked", "hint"),
    [
        ("vqgan", "qdmr_uda", "it looks like a VQGAN: use --kind vqgan"),
        ("qdmr_base", "vqgan", "it looks like a restoration network: use --kind qdmr_base"),
    ],
)
def test_a_file_of_another_kind(
    held: str, asked: str, hint: str, tmp_path: Path, tiny_network: NetworkSettings
) -> None:
    file = write(tmp_path / "a.pth", tiny_state(held, tiny_network))
    assert hint in refusal(file, asked)


def test_constants_are_neither_needed_nor_believed(
    tmp_path: Path, tiny_network: NetworkSettings
) -> None:
    theirs = tiny_state("qdmr_base", tiny_network)
    without = {key: value for key, value in theirs.items() if not key.endswith(CONSTANTS)}
    changed = theirs | {f"{SHIFTED}.attn_mask": torch.ones(3)}
    assert len(without) < len(theirs)
    for number, state in enumerate((without, changed)):
        folder = tmp_path / str(number)
        import_authors(write(tmp_path / "a.pth", state), "qdmr_base", open_location(folder))
        back = authors_state(load_model(folder))
        assert all(torch.equal(back[key], value) for key, value in theirs.items())


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (Path.touch, (self.mark,))


def test_code_in_a_file_is_refused_and_not_run(
    tmp_path: Path, tiny_network: NetworkSettings
) -> None:
    mark = tmp_path / "ran"
    theirs = tiny_state("qdmr_base", tiny_network)
    file = write(tmp_path / "a.pth", {**theirs, "bomb": Bomb(mark)})
    message = refusal(file, "qdmr_base")
    assert "cannot be read as PyTorch weights (it holds something other than tensors" in message
    # PyTorch's own message recommends to load it all the same.
    assert "weights_only" not in message
    assert not mark.exists()
    torch.load(file, weights_only=False)
    assert mark.exists(), "the file must be dangerous for this to test anything"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"not weights\n", "PyTorch weights (it is no file that torch.save wrote)"),
        (b"hello\n", "PyTorch weights (it is no file that torch.save wrote)"),
        (b"PK\x03\x04 cut short", "cannot be read as PyTorch weights"),
        (b"", "PyTorch weights (it is empty)"),
        (None, "no such file"),
    ],
)
def test_files_that_are_no_weights(content: bytes | None, said: str, tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    if content is not None:
        file.write_bytes(content)
    assert said in refusal(file, "vqgan")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1, 2], "holds a list, not a state dict"),
        ({"params": {}}, "holds no weights"),
        ({"params": [1]}, "holds no weights"),
        ({"epoch": 3}, "'epoch' is a int, not a tensor"),
        ({"params": {"a": "b"}}, "'a' is a str, not a tensor"),
        ({"params": {3: torch.zeros(1)}}, "3 is a Tensor, not a tensor of weights"),
    ],
)
def test_content_that_is_no_state_dict(content: Any, said: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pth")
    assert said in refusal(tmp_path / "a.pth", "vqgan")


def test_a_truncated_file(tmp_path: Path, tiny_network: NetworkSettings) -> None:
    file = write(tmp_path / "a.pth", tiny_state("vqgan", tiny_network))
    file.write_bytes(file.read_bytes()[:-5000])
    assert "cannot be read as PyTorch weights" in refusal(file, "vqgan")


def test_an_unknown_kind_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--kind s2t: choose from vqgan, qdmr_base, qdmr_uda"):
        import_authors(tmp_path / "a.pth", "s2t", open_location(tmp_path / "out"))


def test_a_folder_in_use_is_left_alone(tmp_path: Path, tiny_network: NetworkSettings) -> None:
    file = write(tmp_path / "a.pth", tiny_state("vqgan", tiny_network))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    for out in (tmp_path / "out", file):
        with pytest.raises(QdmrError, match=rf"^{out}: is there already; name a new or empty"):
            import_authors(file, "vqgan", open_location(out))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("existed", [False, True])
def test_a_failed_write_leaves_nothing(
    existed: bool, tmp_path: Path, tiny_network: NetworkSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_file = storage.os.replace

    def failing(source: Path, destination: Path) -> None:
        if Path(destination).name == "model.json":
            raise OSError(28, "No space left on device")
        replace_file(source, destination)

    monkeypatch.setattr(storage.os, "replace", failing)
    file = write(tmp_path / "a.pth", tiny_state("qdmr_uda", tiny_network))
    out = tmp_path / "out"
    if existed:
        out.mkdir()
    with pytest.raises(QdmrError, match="the disk is full"):
        import_authors(file, "qdmr_uda", open_location(out))
    assert out.exists() is existed
    assert not existed or not list(out.iterdir())


def test_an_unwritable_place_is_named(tmp_path: Path, tiny_network: NetworkSettings) -> None:
    file = write(tmp_path / "a.pth", tiny_state("qdmr_uda", tiny_network))
    with pytest.raises(QdmrError, match=rf"^{file}/model.*cannot be|^{file}/model.*check the path"):
        import_authors(file, "qdmr_uda", open_location(file / "model"))


def test_weights_that_contradict_themselves_are_measured_by_the_papers() -> None:
    nonsense = {
        "encoder.first.weight": torch.zeros(64),
        "quantizer.codes": torch.zeros(5),
        "bottleneck.groups.0.blocks.0.attention.bias_table": torch.zeros(3),
    }
    assert infer_settings(nonsense) == NetworkSettings()
    assert infer_settings({}) == NetworkSettings()


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("source_only", {}, "has no source_only network"),
        ("qdmr_uda", {"global_residual": True}, "trained with network.global_residual"),
        ("qdmr_uda", {"window": 6}, "window of 6 does not divide the 32 x 32 map"),
    ],
)
def test_networks_that_the_authors_code_does_not_know(
    kind: str, change: dict[str, Any], said: str, tmp_path: Path, tiny_network: NetworkSettings
) -> None:
    if "window" in change:
        change = {"swin": replace(tiny_network.swin, **change)}
    network = build_network(kind, replace(tiny_network, **change))
    save_model(open_location(tmp_path), network, kind=kind, step=1, digest="")
    with pytest.raises(QdmrError, match=rf"^{tmp_path}: .*{said}"):
        authors_state(load_model(tmp_path))


def test_the_command(tmp_path: Path, tiny_network: NetworkSettings) -> None:
    app = typer.Typer()
    app.command()(import_weights)
    file = write(tmp_path / "a.pth", tiny_state("qdmr_uda", tiny_network), "params_ema")
    out = tmp_path / "model"

    result = CliRunner().invoke(app, [str(file), "--kind", "qdmr_uda", "--out", str(out)])

    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0] == f"{file}: holds no 'params': its averaged weights 'params_ema' are taken"
    assert lines[-1] == f"qdmr_uda of {file} into {out}"
    assert load_model(out).kind == "qdmr_uda"
