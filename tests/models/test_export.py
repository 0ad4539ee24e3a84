"""Exported files give what the network gives, at every size, or they are not written."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
import typer
from torch import Tensor
from typer.testing import CliRunner

from qdmr_ray.cli.restore import export
from qdmr_ray.errors import QdmrError, SettingsError
from qdmr_ray.models import export as module
from qdmr_ray.models.authors import read_authors
from qdmr_ray.models.export import ALLOWED, FORMS, export_model, trace
from qdmr_ray.models.files import LoadedModel, build_network, load_model, save_model
from qdmr_ray.nets import NetworkSettings
from qdmr_ray.nets import quantizer as quantizer_module
from qdmr_ray.storage import open_location

pytestmark = pytest.mark.slow
# Images (B, 3, H, W) for networks of multiple 8: square, tall, wide, one and more in a batch.
SHAPES = [(1, 3, 16, 16), (3, 3, 64, 24), (2, 3, 16, 80), (1, 3, 120, 128)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_network: NetworkSettings) -> Path:
    """A folder with a tiny model of each kind, named by it. Read only."""
    folder = tmp_path_factory.mktemp("models")
    for kind in ("vqgan", "qdmr_uda", "source_only"):
        torch.manual_seed(1)
        network = build_network(kind, tiny_network)
        save_model(open_location(folder / kind), network, kind=kind, step=7, digest="abc")
    return folder


@pytest.fixture(scope="module")
def exported(models: Path) -> Path:
    """The folder with the UDA model in every format, as ``model.FORMAT``."""
    with pytest.MonkeyPatch.context() as patch:
        # A graph must not be bound to the number of chunks that its example happens to have.
        patch.setattr(quantizer_module, "ROWS_AT_ONCE", 50)
        for form in FORMS:
            export_model(models / "qdmr_uda", form, open_location(models / f"model.{form}"))
    return models


def wanted(folder: Path, image: Tensor) -> Tensor:
    with torch.no_grad():
        return load_model(folder).network(image).image


def close(found: Tensor, to: Tensor) -> bool:
    return found.shape == to.shape and bool((found - to).abs().max() <= ALLOWED * to.abs().max())


def replaced(
    monkeypatch: pytest.MonkeyPatch, form: str, spoil: Callable[[Tensor, int], Tensor]
) -> None:
    """Makes opening a file of ``form`` give ``spoil(result, number of the image)``."""
    write, reopen = FORMS[form]
    images = 0

    def opener(model: LoadedModel, file: Path) -> Callable[[Tensor], Tensor]:
        restorer = reopen(model, file)

        def spoiled(image: Tensor) -> Tensor:
            nonlocal images
            images += 1
            return spoil(restorer(image), images)

        return spoiled

    monkeypatch.setitem(FORMS, form, (write, opener))


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        ("vqgan", "safetensors"),
        ("vqgan", "pt2"),
        ("vqgan", "authors"),
        ("qdmr_uda", "authors"),
        ("source_only", "safetensors"),
        ("source_only", "pt2"),
    ],
)
def test_two_sizes_are_compared_before_writing(
    kind: str, form: str, models: Path, tmp_path: Path
) -> None:
    out = tmp_path / "made" / "file"
    checks = export_model(models / kind, form, open_location(out))
    assert out.is_file()
    assert len({check.shape[2:] for check in checks}) == 2
    assert all(check.difference <= ALLOWED for check in checks)


def test_safetensors_hold_the_generator_under_our_names(exported: Path) -> None:
    model = load_model(exported / "qdmr_uda")
    with safetensors.safe_open(exported / "model.safetensors", "pt") as file:
        assert set(file.keys()) == model.network.state_dict().keys()
        for key, value in model.network.state_dict().items():
            assert torch.equal(file.get_tensor(key), value)
        described = file.metadata()
    assert (described["kind"], described["step"], described["digest"]) == ("qdmr_uda", "7", "abc")
    assert json.loads(described["settings"])["swin"]["window"] == 4
    assert (described["multiple"], described["smallest"]) == ("8", "16")


def test_authors_file_is_read_back(exported: Path) -> None:
    weights = read_authors(exported / "model.authors", "qdmr_uda")
    state = load_model(exported / "qdmr_uda").network.state_dict()
    assert all(torch.equal(weights.state[key], value) for key, value in state.items())
    assert torch.load(exported / "model.authors", weights_only=True).keys() == {"params"}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_program_takes_any_size(shape: tuple[int, ...], exported: Path) -> None:
    program = torch.export.load(exported / "model.pt2").module()
    image = torch.rand(shape)
    assert close(program(image), wanted(exported / "qdmr_uda", image))


def test_the_program_refuses_other_sizes_and_says_what_it_takes(exported: Path) -> None:
    described = {module.DESCRIPTION: ""}
    program = torch.export.load(exported / "model.pt2", extra_files=described).module()
    for shape in ((1, 3, 20, 16), (1, 3, 8, 16)):
        with pytest.raises((RuntimeError, AssertionError)):
            program(torch.rand(shape))
    said = json.loads(described[module.DESCRIPTION])["input"]
    assert "height and width are multiples of 8, at least 16" in said


@pytest.mark.parametrize("shape", [*SHAPES, (1, 3, 8, 8)])
def test_onnx_takes_any_size(shape: tuple[int, ...], exported: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(
        exported / "model.onnx", providers=["CPUExecutionProvider"]
    )
    (inlet,), (outlet,) = session.get_inputs(), session.get_outputs()
    assert (inlet.name, inlet.shape) == ("image", ["batch", 3, "height", "width"])
    assert (outlet.name, outlet.shape) == ("restored", ["batch", 3, "height", "width"])
    image = torch.rand(shape)
    (restored,) = session.run(None, {"image": image.numpy()})
    assert close(torch.from_numpy(restored), wanted(exported / "qdmr_uda", image))
    assert session.get_modelmeta().custom_metadata_map["multiple"] == "8"


def test_onnx_is_one_file_of_the_stated_opset(exported: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(exported / "model.onnx", load_external_data=False)
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == module.OPSET
    assert not any(tensor.external_data for tensor in model.graph.initializer)


def test_tracing_leaves_the_network_as_it_was(models: Path) -> None:
    model, folder = load_model(models / "qdmr_uda"), models / "qdmr_uda"
    trace(model)
    # What the network keeps for the size it saw last must not come from the tracing.
    _, height, width = module.EXAMPLE
    for image in (torch.rand(1, 3, height * 8, width * 8), torch.rand(2, 3, 16, 16)):
        with torch.no_grad():
            assert torch.equal(model.network(image).image, wanted(folder, image))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda result, _: result * (1 + 3 * ALLOWED),
        lambda result, _: result * float("nan"),
        # Right at the first size, wrong at the second.
        lambda result, number: result if number == 1 else result + 1,
    ],
)
def test_a_file_that_disagrees_is_not_written(
    spoil: Callable[[Tensor, int], Tensor],
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replaced(monkeypatch, "safetensors", spoil)
    out = tmp_path / "model.safetensors"
    for before in (None, b"an older one"):
        if before:
            out.write_bytes(before)
        with pytest.raises(QdmrError, match=r"differs from the network by .*nothing was written"):
            export_model(models / "qdmr_uda", "safetensors", open_location(out))
        assert (out.read_bytes() if out.exists() else None) == before
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_an_exporters_own_error_is_one_line(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(result: Tensor, number: int) -> Tensor:
        raise RuntimeError("no such operator\nat line 3")

    replaced(monkeypatch, "safetensors", fail)
    said = r"cannot be exported to safetensors with torch .* \(no such operator\); nothing was"
    with pytest.raises(QdmrError, match=said):
        export_model(models / "qdmr_uda", "safetensors", open_location(tmp_path / "a"))
    assert not list(tmp_path.iterdir())


def test_one_image_with_two_equally_near_codes_is_forgiven(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced(monkeypatch, "safetensors", lambda result, number: result + (number == 1))
    checks = export_model(models / "qdmr_uda", "safetensors", open_location(tmp_path / "a"))
    assert [check.difference for check in checks] == [0, 0]


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_without_onnx_it_says_how_to_get_it(
    package: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else find(name)
    )
    with pytest.raises(QdmrError, match=rf"needs {package}: pip install 'qdmr_ray\[export\]'"):
        export_model(models / "qdmr_uda", "onnx", open_location(tmp_path / "a.onnx"))
    assert not list(tmp_path.iterdir())


def test_an_unknown_format_is_wrong_usage(models: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--to jit: choose from safetensors, onnx, pt2, auth"):
        export_model(models / "qdmr_uda", "jit", open_location(tmp_path / "a"))


@pytest.mark.parametrize(
    ("checkpoint", "form", "out", "said"),
    [
        ("nowhere", "pt2", "a", r"nowhere: no model\.json there"),
        ("source_only", "authors", "a", "the authors' code has no source_only network"),
        ("qdmr_uda", "authors", "file/a", r"file/a?.*(cannot be|check the path)"),
        ("qdmr_uda", "safetensors", "folder", "folder: cannot be written"),
    ],
)
def test_other_errors_leave_nothing(
    checkpoint: str, form: str, out: str, said: str, models: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("a file")
    (tmp_path / "folder").mkdir()
    with pytest.raises(QdmrError, match=said) as error:
        export_model(models / checkpoint, form, open_location(tmp_path / out))
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


def test_the_command(models: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(export)
    out = tmp_path / "model.safetensors"
    arguments: list[Any] = [models / "qdmr_uda", "--to", "safetensors", "--out", out]

    result = CliRunner().invoke(app, [str(argument) for argument in arguments])

    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert sum("largest difference" in line for line in lines) == 2
    assert lines[-1] == f"safetensors of {models / 'qdmr_uda'} into {out}"
    assert out.is_file()
