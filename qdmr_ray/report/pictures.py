"""Pictures of a run, small enough for one page, and maps of their differences from the truth."""

import base64
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from qdmr_ray.evaluate.names import GROUND_TRUTH, INPUT
from qdmr_ray.evaluate.results import Evaluation, PhotographResult
from qdmr_ray.evaluate.sheets import absolute_error, error_colours
from qdmr_ray.photographs.decode import decode_image
from qdmr_ray.report.evaluation import last_stage, picture_kinds
from qdmr_ray.report.run_folder import RunData, noted
from qdmr_ray.report.summary import photograph_gain
from qdmr_ray.storage import Location

# Longest sides in pixels: of a photograph, of a training picture and of a thumbnail.
PHOTOGRAPH_SIDE = 1024
TRAINING_SIDE = 1400
THUMBNAIL_SIDE = 112
# Photographs are compared by eye, so they keep nearly all detail and full colour resolution.
PHOTOGRAPH_QUALITY = 92
MAP_QUALITY = 80
THUMBNAIL_QUALITY = 75
# A training picture that is a larger PNG than this is stored as a JPEG.
LARGEST_PNG = 400_000
# Photographs may take so much base64 in all; with plotly.js (4.8 MB) a page stays below 15 MB.
PHOTOGRAPH_BUDGET = 9_500_000
MOST_PHOTOGRAPHS = 12
# The most detailed block is searched among blocks of this side in pixels.
DETAIL_BLOCK = 48
# Factors by which differences may be amplified, and the share of pixels that may then saturate.
AMPLIFICATIONS = (16, 12, 8, 6, 4, 3, 2, 1)
SATURATED_SHARE = 0.01


@dataclass(kw_only=True)
class Photograph:
    """One held-out photograph on the page: data URIs of its pictures and difference maps. The
    magnified detail starts at ``focus``, in fractions of width and height."""

    name: str
    width: int
    height: int
    scale: float
    focus: tuple[float, float]
    thumbnail: str
    pictures: dict[str, str] = field(default_factory=dict)
    differences: dict[str, str] = field(default_factory=dict)


def photographs(run: RunData, metric: str | None) -> tuple[list[Photograph], int]:
    """Returns the evaluated photographs that fit on the page, and their maps' amplification."""
    if run.evaluation is None:
        return [], 1
    load = partial(load_pictures, run.place, run.evaluation, run.problems)
    shown, amplification = embedded(run.evaluation, metric, load)
    if not shown and run.evaluation.per_image:
        run.problems.append("evaluation/ holds none of the evaluated photographs' pictures")
    return shown, amplification


def embedded(
    evaluation: Evaluation, metric: str | None, load: Callable[[str], dict[str, np.ndarray]]
) -> tuple[list[Photograph], int]:
    """Returns the photographs that fit on the page, and the amplification of their maps. ``load``
    returns a photograph's pictures, which may be none. If not all fit, they are spread evenly from
    the smallest to the largest gain in ``metric``, so that the page doesn't show the best alone."""
    chosen = _spread(evaluation, metric)
    loaded = [(image, load(image.name)) for image in chosen]
    present = [(image, pictures) for image, pictures in loaded if pictures]
    amplification = _amplification([pictures for _, pictures in present])
    shown: list[Photograph] = []
    room = PHOTOGRAPH_BUDGET
    for image, pictures in present:
        photograph = _embed(image.name, pictures, amplification)
        uris = [photograph.thumbnail, *photograph.pictures.values()]
        room -= sum(map(len, [*uris, *photograph.differences.values()]))
        if shown and room < 0:
            break
        shown.append(photograph)
    order = {image.name: index for index, image in enumerate(evaluation.per_image)}
    return sorted(shown, key=lambda photograph: order[photograph.name]), amplification


def embedded_picture(file: Location, problems: list[str]) -> tuple[str, int, int] | None:
    """Returns ``(data URI, width, height)`` of a picture, reduced if very large; ``None``, and a
    line in ``problems``, if the file is no readable image."""
    image = None
    with noted(problems):
        image = Image.fromarray(decode_image(file.read_bytes(), file.uri))
    if image is None:
        return None
    image.thumbnail((TRAINING_SIDE, TRAINING_SIDE), Image.Resampling.LANCZOS)
    uri = _uri(image, "PNG", optimize=True)
    if len(uri) > LARGEST_PNG:
        uri = _uri(image, quality=PHOTOGRAPH_QUALITY)
    return uri, image.width, image.height


def load_pictures(
    place: Location, evaluation: Evaluation, problems: list[str], name: str
) -> dict[str, np.ndarray]:
    """Returns one photograph's existing pictures: input, stages in order, ground truth; where the
    evaluation knows both lenses, also that of the source lens and its s2t image."""
    root = place.join("evaluation")
    folder = root.join(name)
    if not lies_below(folder, root, name):
        problems.append(f"{name!r} is no name of a folder in evaluation/: not shown")
        return {}
    pictures = {}
    present: Mapping[str, int] = {}
    with noted(problems):
        present = folder.file_sizes()
    for file in (folder.join(f"{kind}.png") for kind in picture_kinds(evaluation)):
        with noted(problems):
            if file.name in present:
                pixels = decode_image(file.read_bytes(), file.uri)
                pictures[file.name.removesuffix(".png")] = pixels
    if len({picture.shape for picture in pictures.values()}) > 1:
        problems.append(f"the pictures in {folder.uri} differ in size: not shown")
        return {}
    return pictures


def _spread(evaluation: Evaluation, metric: str | None) -> list[PhotographResult]:
    """Returns at most ``MOST_PHOTOGRAPHS``, any first few of which are spread over the gains."""
    images, last = evaluation.per_image, last_stage(evaluation)
    if last is None or metric is None:
        return list(images[:MOST_PHOTOGRAPHS])
    ranked = sorted(images, key=lambda image: photograph_gain(image, last, metric) or 0.0)
    return [ranked[place] for place in _bisected(len(ranked), MOST_PHOTOGRAPHS)]


def _bisected(length: int, wanted: int) -> Iterator[int]:
    """Yields ``wanted`` places spread over ``length``: both ends, the middle, then the quarters."""
    wanted = min(length, wanted)
    if wanted <= 2:
        yield from range(wanted)
        return
    places = [round(index * (length - 1) / (wanted - 1)) for index in range(wanted)]
    yield places.pop(0)
    yield places.pop()
    gaps = [places]
    while gaps:
        gap = gaps.pop(0)
        if gap:
            middle = len(gap) // 2
            yield gap[middle]
            gaps += [gap[:middle], gap[middle + 1 :]]


def lies_below(folder: Location, root: Location, name: str) -> bool:
    """Returns whether ``name`` leads to a folder in ``root``, neither out of it nor over a link."""
    if "\0" in name or {"", ".", ".."} & set(name.split("/")):
        return False
    if folder.local_path is None or root.local_path is None:
        return True
    # A name may be too long, or be none that a disk can hold.
    with suppress(OSError, ValueError):
        return folder.local_path.resolve().is_relative_to(root.local_path.resolve())
    return False


def _amplification(sets: Sequence[dict[str, np.ndarray]]) -> int:
    """Returns the page's largest factor at which hardly any pixel of the inputs saturates."""
    samples = [
        absolute_error(pictures[INPUT], pictures[GROUND_TRUTH]).ravel()
        for pictures in sets
        if INPUT in pictures and GROUND_TRUTH in pictures
    ]
    if not samples:
        return 1
    high = float(np.quantile(np.concatenate(samples), 1.0 - SATURATED_SHARE))
    return next((factor for factor in AMPLIFICATIONS if factor * high <= 255.0), 1)


def _embed(name: str, pictures: dict[str, np.ndarray], amplification: int) -> Photograph:
    any_picture = next(iter(pictures.values()))
    height, width = any_picture.shape[:2]
    scale = min(1.0, PHOTOGRAPH_SIDE / max(height, width))
    thumbnail = Image.fromarray(pictures.get(INPUT, any_picture))
    thumbnail.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    photograph = Photograph(
        name=name,
        width=width,
        height=height,
        scale=scale,
        focus=_most_detailed(pictures.get(GROUND_TRUTH, any_picture)),
        thumbnail=_uri(thumbnail, quality=THUMBNAIL_QUALITY),
    )
    for kind, picture in pictures.items():
        photograph.pictures[kind] = _photograph_uri(picture, scale, PHOTOGRAPH_QUALITY)
        if kind != GROUND_TRUTH and GROUND_TRUTH in pictures:
            error = absolute_error(picture, pictures[GROUND_TRUTH])
            colours = error_colours(error, amplification)
            photograph.differences[kind] = _photograph_uri(colours, scale, MAP_QUALITY)
    return photograph


def _most_detailed(image: np.ndarray) -> tuple[float, float]:
    """Returns the centre of the block with the strongest edges, as fractions (x, y) of width and
    height. Only the ground truth decides: a choice by gain would flatter the method."""
    grey = image.mean(axis=2, dtype=np.float32)
    rows, columns = grey.shape[0] // DETAIL_BLOCK, grey.shape[1] // DETAIL_BLOCK
    if rows == 0 or columns == 0:
        return 0.5, 0.5
    edges = np.abs(np.diff(grey, axis=1, append=grey[:, -1:]))
    edges += np.abs(np.diff(grey, axis=0, append=grey[-1:]))
    blocks = edges[: rows * DETAIL_BLOCK, : columns * DETAIL_BLOCK]
    blocks = blocks.reshape(rows, DETAIL_BLOCK, columns, DETAIL_BLOCK)
    row, column = divmod(int(blocks.mean(axis=(1, 3)).argmax()), columns)
    x, y = (column + 0.5) * DETAIL_BLOCK, (row + 0.5) * DETAIL_BLOCK
    return x / grey.shape[1], y / grey.shape[0]


def _photograph_uri(pixels: np.ndarray, scale: float, quality: int) -> str:
    image = Image.fromarray(pixels)
    if scale < 1.0:
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        image = image.resize(size, Image.Resampling.LANCZOS)
    return _uri(image, quality=quality)


def _uri(image: Image.Image, kind: str = "JPEG", **options: Any) -> str:
    buffer = io.BytesIO()
    # subsampling=0 keeps a JPEG's colour at full resolution: lateral colour is one of the
    # aberrations. With optimize=True, Pillow fails on JPEGs that hardly compress.
    image.save(buffer, format=kind, subsampling=0, **options)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/{kind.lower()};base64,{encoded}"
