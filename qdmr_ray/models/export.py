"""Exports a trained model's generator to one file for programs that know nothing of this package.

    exported = export_model("runs/demo/uda/final", "onnx", open_location("qdmr.onnx"))

A ``.safetensors`` file holds weights under our names, ``authors`` the same under theirs. ONNX and
``torch.export`` (``.pt2``) files hold the whole computation ``image -> restored`` for any batch,
height and width. Each file is opened again and compared with the network before it gets its name.
"""

import importlib.util
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from qdmr_ray import __version__
from qdmr_ray.errors import QdmrError, SettingsError
from qdmr_ray.models.authors import PARAMS, authors_state, read_authors
from qdmr_ray.models.files import LoadedModel, build_network, load_model, load_weights
from qdmr_ray.nets.registry import image_of
from qdmr_ray.nets.weights import first_line
from qdmr_ray.storage import Location

OPSET = 18
INPUT_NAME, OUTPUT_NAME = "image", "restored"
AXES = {0: "batch", 2: "height", 3: "width"}
# Tracing takes a size of one for a constant, so a graph needs at least two windows a side.
SMALLEST = 2
# Batch, and height and width in multiples of the network's, for tracing and for comparing.
EXAMPLE = (2, 3, 4)
CHECKED = ((1, 2, 3), (3, 3, 2))
# The largest allowed difference over the network's largest output value: float32 rounding.
ALLOWED = 1e-4
# Rounding may tip one position towards another of two equally near codes, which shows in the whole
# image; a wrong graph is wrong on every image.
IMAGES_TRIED = 3
# The file inside a .pt2 that carries the description.
DESCRIPTION = "qdmr.json"
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

Restorer = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Check:
    """The ``difference`` between file and network on an image of ``shape`` (B, 3, H, W): largest
    absolute difference over the largest absolute value."""

    shape: tuple[int, int, int, int]
    difference: float


class Generator(nn.Module):
    """A network as a function of images (B, 3, H, W) in [0, 1] to restored ones, not clamped."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return image_of(self.network(image))


def export_model(
    checkpoint: str | Path | Location,
    form: str,
    out: Location,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[Check, ...]:
    """Writes the model in ``checkpoint`` as a file ``out`` of ``form``, one of ``FORMS``, once the
    file has been found to agree with the network on images of two sizes.

    Raises SettingsError for an unknown ``form``; QdmrError where there is no model, a package is
    missing, the form has no such network, the file disagrees with the network, or ``out`` is not
    writable.
    """
    if form not in FORMS:
        raise SettingsError(f"--to {form}: choose from {', '.join(FORMS)}")
    write, reopen = FORMS[form]
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if form == "onnx" and missing:
        raise QdmrError(
            f"export to onnx needs {', '.join(missing)}: pip install 'qdmr_ray[export]'"
        )
    model = load_model(checkpoint)
    with tempfile.TemporaryDirectory(prefix="qdmr-export-") as folder:
        file = Path(folder) / f"model.{form}"
        say(f"writing {model.kind} as {form}")
        try:
            write(model, file)
            say("comparing it with the network")
            restorer = reopen(model, file)
            checks = tuple(_check(restorer, model, size) for size in CHECKED)
        except QdmrError:
            raise
        # The exporters and their runtimes raise errors without a common type.
        except Exception as error:
            raise QdmrError(
                f"{model.source}: cannot be exported to {form} with torch {torch.__version__} "
                f"({first_line(error)}); nothing was written"
            ) from error
        for check in checks:
            # Written so that NaN counts as a disagreement.
            if not check.difference <= ALLOWED:
                raise QdmrError(
                    f"{model.source}: as {form} it differs from the network by "
                    f"{check.difference:.1e} on images of {check.shape}, where {ALLOWED:.0e} is "
                    "allowed; nothing was written"
                )
        out.write_bytes_atomic(file.read_bytes())
    return checks


def describe(model: LoadedModel) -> dict[str, str]:
    """Returns what a user of the file has to know, as the text that every format can carry."""
    multiple = model.network.multiple
    smallest = SMALLEST * multiple
    return {
        "producer": f"qdmr_ray {__version__}",
        "kind": model.kind,
        "settings": json.dumps(asdict(model.network.settings)),
        "step": str(model.step),
        "digest": model.digest,
        "multiple": str(multiple),
        "smallest": str(smallest),
        "input": f"{INPUT_NAME}: float32 (batch, 3, height, width), RGB in [0, 1]; height and "
        f"width are multiples of {multiple}, at least {smallest}",
        "output": f"{OUTPUT_NAME}: float32 of the same shape; clamp it to [0, 1]",
    }


def _image(model: LoadedModel, size: tuple[int, int, int], seed: int = 0) -> Tensor:
    batch, height, width = size
    multiple = model.network.multiple
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, height * multiple, width * multiple, generator=generator)


def _check(restorer: Restorer, model: LoadedModel, size: tuple[int, int, int]) -> Check:
    network = Generator(model.network)
    for seed in range(IMAGES_TRIED):
        image = _image(model, size, seed)
        with torch.inference_mode():
            wanted, found = network(image), restorer(image)
        difference = float((found - wanted).abs().max() / wanted.abs().max())
        if difference <= ALLOWED:
            break
    batch, _, height, width = image.shape
    return Check((batch, 3, height, width), difference)


def _write_safetensors(model: LoadedModel, file: Path) -> None:
    state = {key: value.contiguous() for key, value in model.network.state_dict().items()}
    safetensors.torch.save_file(state, file, metadata={"format": "pt", **describe(model)})


def _write_authors(model: LoadedModel, file: Path) -> None:
    state = {key: value.detach().contiguous() for key, value in authors_state(model).items()}
    # Given a path, torch.save would write the file's name into the archive.
    with file.open("wb") as stream:
        torch.save({PARAMS: state}, stream)


def _open_weights(model: LoadedModel, file: Path) -> Restorer:
    theirs = file.suffix == ".authors"
    state = read_authors(file, model.kind).state if theirs else safetensors.torch.load_file(file)
    network = build_network(model.kind, model.network.settings)
    load_weights(network, state, str(file))
    return Generator(network.eval())


def trace(model: LoadedModel) -> torch.export.ExportedProgram:
    """Traces the computation ``image -> restored`` for any batch, and for heights and widths that
    are multiples of ``network.multiple``, at least ``SMALLEST`` of them."""
    multiple = model.network.multiple
    height, width = (torch.export.Dim(name, min=SMALLEST) for name in ("height", "width"))
    sizes = {0: torch.export.Dim("batch", min=1), 2: multiple * height, 3: multiple * width}
    with torch.no_grad(), _quiet():
        return torch.export.export(
            Generator(model.network),
            (_image(model, EXAMPLE),),
            dynamic_shapes={INPUT_NAME: sizes},
            strict=False,
        )


def _write_pt2(model: LoadedModel, file: Path) -> None:
    with _quiet():
        buffer = io.BytesIO()
        description = json.dumps(describe(model))
        torch.export.save(trace(model), buffer, extra_files={DESCRIPTION: description})
    file.write_bytes(buffer.getvalue())


def _open_pt2(model: LoadedModel, file: Path) -> Restorer:
    with _quiet():
        return torch.export.load(io.BytesIO(file.read_bytes())).module()


def _write_onnx(model: LoadedModel, file: Path) -> None:
    import onnx

    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            trace(model),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    # The inner values' sizes are expressions such as 64*s12, whose names mean nothing outside.
    del proto.graph.value_info[:]
    for value in (*proto.graph.input, *proto.graph.output):
        for axis, name in AXES.items():
            value.type.tensor_type.shape.dim[axis].dim_param = name
    for key, text in describe(model).items():
        proto.metadata_props.add(key=key, value=text)
    onnx.checker.check_model(proto)
    file.write_bytes(proto.SerializeToString())


def _open_onnx(model: LoadedModel, file: Path) -> Restorer:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        file.read_bytes(), options, providers=["CPUExecutionProvider"]
    )

    def restore(image: Tensor) -> Tensor:
        (restored,) = session.run([OUTPUT_NAME], {INPUT_NAME: image.numpy()})
        return torch.from_numpy(restored)

    return restore


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporters' warnings about their own insides."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


FORMS: dict[str, tuple[Callable[[LoadedModel, Path], Any], Callable[[LoadedModel, Path], Restorer]]]
FORMS = {
    "safetensors": (_write_safetensors, _open_weights),
    "onnx": (_write_onnx, _open_onnx),
    "pt2": (_write_pt2, _open_pt2),
    "authors": (_write_authors, _open_weights),
}
