"""Weight files and model.json that claim more than they hold, or hold NaN: one line, soon."""

import hashlib
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hostile.limits import outcome, refused

from qdmr_ray.models.authors import authors_state, import_authors, infer_settings
from qdmr_ray.models.files import build_network, load_model, save_model, shape_network
from qdmr_ray.nets import NetworkSettings, SwinSettings
from qdmr_ray.nets.adapter import authors_key
from qdmr_ray.nets.weights import load_backbone, load_weight_file
from qdmr_ray.restore.restoration import restore
from qdmr_ray.storage import open_location


@pytest.fixture
def model(tmp_path: Path, tiny_network: NetworkSettings) -> Path:
    torch.manual_seed(0)
    network = build_network("qdmr_base", tiny_network)
    save_model(open_location(tmp_path / "m"), network, kind="qdmr_base", step=1, digest="a")
    return tmp_path / "m"


def change(model: Path, **fields: Any) -> None:
    """Writes other values into ``model.json``; those of ``settings`` are added to the old ones."""
    description = json.loads((model / "model.json").read_text())
    settings = description["settings"]
    if isinstance(sizes := fields.pop("sizes", {}), dict):
        settings |= sizes | {"swin": settings["swin"] | sizes.get("swin", {})}
    (model / "model.json").write_text(json.dumps(description | fields))


SIZES: dict[str, tuple[dict[str, Any], str]] = {
    "a hundred million Swin groups": ({"swin": {"groups": 10**8}}, "ask for more than"),
    "a hundred million Swin blocks": ({"swin": {"blocks": 10**8}}, "ask for more than"),
    "a thousand groups of a thousand blocks": (
        {"swin": {"groups": 1000, "blocks": 1000}},
        "ask for more than",
    ),
    "ten groups more": ({"swin": {"groups": 10}}, "weights of another network"),
    "a window of a million": ({"swin": {"window": 10**6}}, "impossible size"),
    "a window of 2 ** 60": ({"swin": {"window": 2**60}}, "impossible size"),
    "a window of 512": ({"swin": {"window": 512}}, "another network size"),
    "an MLP of a billion times the width": ({"swin": {"mlp_ratio": 1e9}}, "another network size"),
    "an MLP of 1e308 times the width": ({"swin": {"mlp_ratio": 1e308}}, "impossible size"),
    "a hundred million residual blocks": ({"residual_blocks": 10**8}, "ask for more than"),
    "a width of a billion": ({"widths": [8, 10**9]}, "impossible size"),
    "a width of a million": ({"widths": [8, 10**6]}, "another network size"),
    "a width of 2 ** 62": ({"widths": [8, 2**62]}, "impossible size"),
    "a thousand widths": ({"widths": [8] * 1000}, "ask for more than"),
    "a codebook of 2 ** 60": ({"codebook_size": 2**60}, "impossible size|another network size"),
    "a codebook of 4 TB": ({"codebook_size": 1 << 24, "code_dim": 1 << 16}, "another network size"),
}


@pytest.mark.parametrize(("sizes", "told"), SIZES.values(), ids=SIZES)
def test_no_network_is_built_larger_than_its_weights(
    sizes: dict[str, Any], told: str, model: Path
) -> None:
    change(model, sizes=sizes)
    refused(lambda: load_model(model), match=rf"m/model\.(json|safetensors): .*({told})")


def test_an_index_larger_than_the_memory_is_not_made(tmp_path: Path) -> None:
    """The table of a window of 128 has 65,025 rows, the index of it 268 million."""
    swin = SwinSettings(groups=1, blocks=1, heads=1, window=128, mlp_ratio=1.0)
    small = NetworkSettings(
        widths=(4, 4), residual_blocks=1, codebook_size=2, code_dim=2, swin=swin
    )
    shapes = shape_network("qdmr_base", small, weights=100)
    state = {key: torch.zeros(value.shape) for key, value in shapes.state_dict().items()}
    shapes.load_state_dict(state, assign=True)
    save_model(open_location(tmp_path), shapes, kind="qdmr_base", step=1, digest="a")
    match = r"model\.json: .*the network takes 2\.1 GB of memory"
    refused(lambda: load_model(tmp_path), match=match)


@pytest.mark.parametrize("field", ["kind", "settings", "step", "digest", "weights_sha256"])
@pytest.mark.parametrize("value", [None, [], ["qdmr"], {"a": []}, 1.5], ids=str)
def test_fields_of_another_type(field: str, value: Any, model: Path) -> None:
    change(model, **{field: value})
    refused(lambda: load_model(model), match=r"m/model\.json: ")


@pytest.mark.parametrize(
    "value", [[], {}, 5, "", "os:system", "no such:thing", "a" * 9999], ids=str
)
def test_architectures_that_are_none(value: Any, model: Path) -> None:
    change(model, architecture=value)
    refused(lambda: load_model(model), match=r"m/model\.json: ")


def sparse() -> torch.Tensor:
    place, size = torch.zeros(2, 1, dtype=torch.long), (9**9, 9**9)
    return torch.sparse_coo_tensor(place, torch.ones(1), size, check_invariants=True)


CLAIMS: dict[str, tuple[Any, str]] = {
    "a tensor of strides of zero": (torch.ones(1).expand(10**6, 10**6), "claims the shape"),
    "a sparse tensor": (sparse(), "claims the shape"),
    "a tensor without storage": (torch.ones(10**6, 10**6, device="meta"), "claims the shape"),
}


@pytest.mark.parametrize(("tensor", "told"), CLAIMS.values(), ids=CLAIMS)
@pytest.mark.parametrize("nested", [True, False], ids=["under params", "at the top"])
def test_tensors_that_claim_numbers(
    tensor: torch.Tensor, told: str, nested: bool, tmp_path: Path
) -> None:
    state = {"conv1.weight": tensor}
    torch.save({"params": state} if nested else state, tmp_path / "a.pth")
    out = open_location(tmp_path / "out")
    refused(
        lambda: import_authors(tmp_path / "a.pth", "qdmr_base", out), match=rf"a\.pth: .*{told}"
    )
    assert not (tmp_path / "out").exists()


NUMBERS = {
    "a huge level": (f"cac_encoder.blocks.{10**9}.weight", "not the weights of"),
    "a level of 5000 digits": (f"cac_encoder.blocks.{'9' * 5000}.weight", "not the weights of"),
    "an escape sequence": ("\x1b]0;x\x07", "not the weights of"),
    "a line break": ("a\nb", "not the weights of"),
}


@pytest.mark.parametrize(("key", "told"), NUMBERS.values(), ids=NUMBERS)
def test_keys_of_the_authors_files(key: str, told: str, tmp_path: Path) -> None:
    torch.save({key: torch.ones(1)}, tmp_path / "a.pth")
    out = open_location(tmp_path / "out")
    found = outcome(lambda: import_authors(tmp_path / "a.pth", "qdmr_base", out))
    # Each wrong key stands in a line of its own.
    first, *others = (found.error or f"{found}").split("\n")
    assert first.startswith(f"{tmp_path / 'a.pth'}: {told}")
    assert all(line.isprintable() for line in others)


LAYERS = {
    "levels": {f"encoder.levels.{10**9}.0.weight": (1,)},
    "levels of 5000 digits": {f"encoder.levels.{'9' * 5000}.0.weight": (1,)},
    "a width of nothing": {
        "encoder.first.weight": (0, 3, 3, 3),
        "quantizer.codes": (2, 2),
        "bottleneck.groups.0.blocks.0.attention.bias_table": (9, 1),
        "bottleneck.groups.0.blocks.0.mlp.0.weight": (1, 1),
    },
    "tables of one dimension": {"quantizer.codes": (2,), "encoder.first.weight": ()},
}


@pytest.mark.parametrize("shapes", LAYERS.values(), ids=LAYERS)
def test_weights_that_contradict_themselves_have_the_papers_sizes(shapes: Any) -> None:
    state = {key: torch.ones(shape) for key, shape in shapes.items()}
    assert outcome(lambda: infer_settings(state)).value == NetworkSettings()


@pytest.mark.parametrize("number", [10**4, 10**8, 10**30])
@pytest.mark.parametrize("layer", ["groups.{}.conv.bias", "groups.0.blocks.{}.norm1.bias"])
def test_numbered_layers_are_counted_not_made(
    layer: str, number: int, tmp_path: Path, model: Path
) -> None:
    state = authors_state(load_model(model))
    state[authors_key("qdmr_base", f"bottleneck.{layer.format(number)}")] = torch.ones(1)
    torch.save({"params": state}, tmp_path / "a.pth")
    out = open_location(tmp_path / "out")
    match = r"a\.pth: the numbers in its keys are not those of a network's layers"
    refused(lambda: import_authors(tmp_path / "a.pth", "qdmr_base", out), match=match)


def deflated(source: Path, target: Path) -> None:
    with (
        zipfile.ZipFile(source) as stored,
        zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name in stored.namelist():
            archive.writestr(name, stored.read(name))


def test_weights_that_inflate(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1 << 22)}, tmp_path / "stored.pth")
    deflated(tmp_path / "stored.pth", tmp_path / "a.pth")
    assert len(load_weight_file(tmp_path / "stored.pth", "")) == 1
    match = r"a\.pth cannot be read .*would fill"
    refused(lambda: load_weight_file(tmp_path / "a.pth", "take another"), match=match)


def test_what_is_no_weight_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.pth")
    refused(lambda: load_weight_file(tmp_path / "a.pth", "take another"), match=r"a\.pth .*pipe")
    zero = Path("/dev/zero")
    refused(lambda: load_weight_file(zero, "take another"), match=r"/dev/zero .*device")
    refused(lambda: load_weight_file(tmp_path, "take another"), match=r"directory")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
def test_weights_that_are_no_numbers(value: float, model: Path) -> None:
    loaded = load_model(model)
    key = "encoder.first.weight"
    loaded.network.state_dict()[key].view(-1)[0] = value
    save_model(open_location(model), loaded.network, kind="qdmr_base", step=1, digest="a")
    match = rf"model\.safetensors: 1 of the \d+ numbers in {key} are NaN or infinite"
    refused(lambda: load_model(model), match=match)


def test_weights_that_float32_cannot_hold(model: Path) -> None:
    file = model / "model.safetensors"
    state = safetensors.torch.load(file.read_bytes())
    state["encoder.first.weight"] = torch.full_like(state["encoder.first.weight"].double(), 1e300)
    file.write_bytes(safetensors.torch.save(state))
    change(model, weights_sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    refused(lambda: load_model(model), match=r"model\.safetensors: .*NaN or infinite")


def test_finite_weights_whose_results_are_not(model: Path) -> None:
    loaded = load_model(model)
    for value in loaded.network.state_dict().values():
        value.mul_(1e30)
    save_model(open_location(model), loaded.network, kind="qdmr_base", step=1, digest="a")
    image = np.full((32, 32, 3), 99, np.uint8)
    refused(lambda: restore(image, model), match=r"computed values that are not numbers")


def test_a_backbone_with_nan(tmp_path: Path) -> None:
    network = torch.nn.Linear(2, 2)
    torch.save({"weight": torch.full((2, 2), torch.nan), "bias": torch.ones(2)}, tmp_path / "v.pth")
    match = r"v\.pth: 4 of the 4 numbers in weight are NaN"
    refused(lambda: load_backbone("vgg", tmp_path / "v.pth", network), match=match)
