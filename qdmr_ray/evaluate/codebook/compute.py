"""The view of a trained codebook: what source and target photographs choose from it.

    view = codebook_view(open_location("runs/demo"))
    write_view(view, open_location("runs/demo"))      # codebook.json and codebook.png

It needs no Ray: a bounded number of crops goes through the encoder in this process.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice

import numpy as np
import torch

from qdmr_ray.config import experiment_of_run
from qdmr_ray.data.format.reader import RecordReader
from qdmr_ray.data.streaming.stream import DataSettings
from qdmr_ray.errors import QdmrError
from qdmr_ray.evaluate.codebook.atlas import atlas_picture
from qdmr_ray.evaluate.codebook.usage import (
    ATLAS_FILE,
    OWN_SHARE,
    SOURCE,
    TARGET,
    USAGE_FILE,
    CodebookUsage,
    SetUsage,
)
from qdmr_ray.models.files import load_model, read_description
from qdmr_ray.models.layout import CONFIG_FILE, FINAL_FOLDER
from qdmr_ray.nets import VQGAN
from qdmr_ray.photographs.decode import encode_png, to_photograph
from qdmr_ray.stages.compute import ComputeSettings, tensor_float_32
from qdmr_ray.storage import Location

CROPS, CROP = 64, 256
# Crops per encoder pass, and codes per decoder pass: both bound memory.
BATCH, CODES_AT_ONCE = 4, 256
# Seed of the crops' places.
SEED = 0

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class CodebookView:
    """The use of a codebook, and its atlas, uint8 (H, W, 3)."""

    usage: CodebookUsage
    atlas: np.ndarray


def codebook_view(
    run: Location,
    *,
    data: str | None = None,
    crops: int = CROPS,
    crop: int = CROP,
    own_share: float = OWN_SHARE,
    progress: Progress | None = None,
) -> CodebookView:
    """Counts what ``crops`` squares of each domain choose from the codebook of ``run``.

    ``run`` is a run folder or, with ``data``, the folder of a VQGAN, such as an imported one. The
    squares are spread evenly over each set of the packed dataset ``data`` (the run's by default),
    at places that are the same each time; they measure ``crop`` pixels, or what a smaller
    photograph allows. Raises QdmrError for no run, no trained VQGAN in it, or no dataset where its
    settings say; ValueError where ``crops`` or ``crop`` is below 1, or ``own_share`` not in
    (0.5, 1].
    """
    if crops < 1 or crop < 1 or not 0.5 < own_share <= 1:
        raise ValueError(f"crops={crops}, crop={crop}, own_share={own_share}")
    alone, config = read_description(run) is not None, run.join(CONFIG_FILE)
    folder = run if alone else run.join("vqgan", FINAL_FOLDER)
    if not alone and not config.exists():
        raise QdmrError(
            f"{run.uri} is not a run folder: it has no config.yaml; name the folder that qdmr "
            "train or qdmr demo wrote"
        )
    settings = DataSettings()
    if not alone:
        settings = experiment_of_run(config.read_bytes().decode(), config.uri).data
    weights = _weights_of(folder)
    if weights is None:
        raise QdmrError(f"{folder.uri}: no trained VQGAN there; train the run's vqgan stage first")
    path = data or settings.path
    if not path:
        raise QdmrError(
            f"{run.uri}: is a model without a run; name a packed dataset with --data"
            if alone
            else f"{config.uri}: data.path names no packed dataset"
        )
    reader = RecordReader(path, endpoint=settings.s3_endpoint)
    network = load_model(folder).network
    assert isinstance(network, VQGAN)
    network.to("cuda" if torch.cuda.is_available() else "cpu")
    counted: list[SetUsage] = []
    for name in (SOURCE, TARGET):
        images = cut_crops(reader, name, crops=crops, crop=crop, multiple=network.multiple)
        told = _told(images, crops * len(counted), 2 * crops, progress)
        counts = tuple(count_codes(network, told).tolist())
        photographs = min(crops, reader.count(name))
        counted.append(SetUsage(photographs=photographs, crops=crops, counts=counts))
    usage = CodebookUsage(
        source=counted[0],
        target=counted[1],
        crop=crop,
        own_share=own_share,
        weights_sha256=weights,
        data_digest=reader.manifest.digest,
    )
    return CodebookView(usage, atlas_picture(decode_tiles(network), usage))


def write_view(view: CodebookView, place: Location) -> None:
    """Writes ``codebook.png``, then ``codebook.json``; raises QdmrError where writing fails."""
    place.join(ATLAS_FILE).write_bytes_atomic(encode_png(view.atlas))
    view.usage.write(place.join(USAGE_FILE))


def renew_view(run: Location, place: Location, progress: Progress | None = None) -> None:
    """Writes the view of the run's codebook into ``place`` unless it is there already or the run
    has no trained VQGAN; raises QdmrError as :func:`codebook_view` and :func:`write_view` do."""
    weights = trained_weights(run)
    if weights is None:
        return
    try:
        stored = read_usage(place)
    except QdmrError:
        stored = None
    if stored is None or stored.weights_sha256 != weights or not place.join(ATLAS_FILE).exists():
        write_view(codebook_view(run, progress=progress), place)


def read_usage(place: Location) -> CodebookUsage | None:
    """Reads ``codebook.json``, None where there is none; raises QdmrError where it is damaged."""
    return CodebookUsage.read_if_there(place.join(USAGE_FILE))


def trained_weights(run: Location) -> str | None:
    """Returns the sha256 of the run's trained VQGAN, None where it has none; raises QdmrError where
    the model is damaged or no VQGAN."""
    return _weights_of(run.join("vqgan", FINAL_FOLDER))


def _weights_of(folder: Location) -> str | None:
    description = read_description(folder)
    if description is None:
        return None
    if description["kind"] != "vqgan":
        raise QdmrError(f"{folder.uri}: is a {description['kind']} model, not a VQGAN")
    return str(description["weights_sha256"])


def cut_crops(
    reader: RecordReader, set_name: str, *, crops: int, crop: int, multiple: int
) -> Iterator[np.ndarray]:
    """Yields ``crops`` squares uint8 (3, c, c), spread evenly over the photographs of a set. c is
    ``crop``, or the photograph's smaller side, rounded down to a multiple of ``multiple``. Raises
    QdmrError for a missing set, a photograph smaller than ``multiple``, or a damaged shard."""
    count, random = reader.count(set_name), np.random.default_rng(SEED)
    table = reader.index(set_name)
    for number in range(crops):
        index = number * count // crops
        height, width = int(table.heights[index]), int(table.widths[index])
        side = min(crop, height, width) // multiple * multiple
        if side == 0:
            raise QdmrError(
                f"{table.origin(index)}: crops of {min(crop, height, width)} pixels are smaller "
                f"than one code of this network, {multiple} pixels"
            )
        top, left = (int(random.integers(length - side + 1)) for length in (height, width))
        yield reader.crop(set_name, index, top=top, left=left, size=side)


@torch.inference_mode()
def count_codes(network: VQGAN, images: Iterable[np.ndarray], *, batch: int = BATCH) -> np.ndarray:
    """Counts how often each code is chosen, int64 (K,), by ``images``: squares uint8 (3, c, c)."""
    codes = network.quantizer.codes
    counts = torch.zeros(len(codes), dtype=torch.int64)
    for stack in _stacks(images, batch):
        pixels = torch.from_numpy(np.stack(stack)).to(codes.device).float() / 255
        # TensorFloat-32 would choose another of two near codes.
        with tensor_float_32(ComputeSettings(), codes.device):
            indices = network.encode_indices(pixels).flatten()
        counts += torch.bincount(indices, minlength=len(codes)).cpu()
    return counts.numpy()


@torch.inference_mode()
def decode_tiles(network: VQGAN, *, codes_at_once: int = CODES_AT_ONCE) -> np.ndarray:
    """Decodes every code, ``codes_at_once`` at a time: uint8 (K, h, w, 3)."""
    codes = network.quantizer.codes
    chunks = torch.arange(len(codes), device=codes.device).split(codes_at_once)
    images = (image for chunk in chunks for image in network.decode_codes(chunk))
    return np.stack([to_photograph(image) for image in images])


def _stacks(images: Iterable[np.ndarray], most: int) -> Iterator[list[np.ndarray]]:
    """Yields the images in their order, in stacks of one size and at most ``most``."""
    for _, alike in groupby(images, key=lambda image: image.shape):
        while stack := list(islice(alike, most)):
            yield stack


def _told(
    images: Iterable[np.ndarray], done: int, total: int, progress: Progress | None
) -> Iterator[np.ndarray]:
    """Yields the same images; ``progress`` counts each when the next one is asked for."""
    for number, image in enumerate(images, start=done + 1):
        yield image
        if progress is not None:
            progress(number, total)
