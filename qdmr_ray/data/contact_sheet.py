"""One page to look at before training: what a packed dataset holds, pictures and sizes.

    write_png(Path("sheet.png"), contact_sheet(RecordReader("data/realab-s1")))

Lenses, pairs and folders that were mixed up are seen at once in a picture, and in no table.
"""

from __future__ import annotations

import textwrap
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from qdmr_ray.data.format.reader import RecordReader
from qdmr_ray.errors import QdmrError

# The sets of the page's upper part, side by side, and those below them.
UPPER_SETS = ("source", "target")
LOWER_SETS = ("test",)

# Lengths in pixels.
MARGIN = 24
GAP = 8
SECTION_GAP = 40
# Room for the words above a section of few and small thumbnails.
LEAST_HALF_WIDTH = 360
SMALLEST_THUMBNAIL = 64
TITLE_SIZE, TEXT_SIZE = 24, 15
TITLE_HEIGHT, LINE_HEIGHT = 32, 19
# From the base line of text to the end of its line.
DESCENT = 4
# Neutral, so that the page doesn't change how colours are seen.
BACKGROUND = (24, 24, 24)
CELL = (38, 38, 38)
EDGE = (170, 70, 60)
BRIGHT, DIM, ALARM = (232, 232, 232), (150, 150, 150), (235, 130, 115)

# A large photograph is first averaged by a whole factor to no less than three times the
# thumbnail's size: no difference is seen, and Lanczos is several times as fast.
REDUCING_GAP = 3.0
ELLIPSIS = "..."


def contact_sheet(
    reader: RecordReader, *, columns: int = 4, thumbnail: int = 240, rows: int = 6
) -> np.ndarray:
    """The packed dataset's photographs on one page, uint8 (H, W, 3).

    Source at the left, target at the right, test below over the whole width; a set that isn't
    there is left out. Source and target are ``columns`` thumbnails wide and at most ``rows``
    high; a pair, aberrated and ground truth touching, takes two columns. The records are spread
    evenly over their set, from the first to the last. Under them lies a strip of squares at 1:1,
    from the corner with the most detail and from the centre, where aberrations and noise show.

    A record that can't be read is an empty tile that says why. ``thumbnail`` is the longest side
    of a photograph in pixels; one that is smaller is enlarged by a whole factor. One record is in
    memory at a time.

    Raises:
        QdmrError: there is no photograph, or a setting is too small.
    """
    for setting, value, least in (
        ("columns", columns, 1),
        ("thumbnail", thumbnail, SMALLEST_THUMBNAIL),
        ("rows", rows, 1),
    ):
        if value < least:
            raise QdmrError(f"contact sheet: {setting} is {value}; it must be at least {least}")
    upper, lower = _sets(reader, UPPER_SETS), _sets(reader, LOWER_SETS)
    if not upper and not lower:
        raise QdmrError("contact sheet: the dataset has no photographs")
    span = max(entry.span for entry in upper + lower)
    page = _Page(halves=max(1, len(upper)), columns=max(columns, span), thumbnail=thumbnail)
    bands: list[Image.Image] = []
    if upper:
        sections = [_section(reader, entry, page, half, rows) for half, entry in enumerate(upper)]
        bands += _band(page, sections)
    for entry in lower:
        bands += _band(page, [_section(reader, entry, page, None, rows)])
    bands = [page.blank(MARGIN), *bands, page.blank(MARGIN)]
    return np.concatenate([np.asarray(band) for band in bands])


def size_histogram(
    sizes: Sequence[tuple[int, int, int]],
    *,
    width: int = 40,
    most: int = 12,
    ascii_only: bool = False,
) -> list[str]:
    """A line of text with a bar per image size, the most frequent first.

    ``sizes`` holds (height, width, count). The bar of the most frequent size is ``width``
    characters long. What exceeds ``most`` sizes is one line without a bar.
    """
    counts: Counter[tuple[int, int]] = Counter()
    for image_height, image_width, count in sizes:
        counts[image_width, image_height] += count
    # Of equally frequent sizes, the largest first.
    ranked = sorted(counts.items(), key=lambda item: (-item[1], -item[0][0] * item[0][1], item[0]))
    ranked = [(size, count) for size, count in ranked if count > 0]
    shown, folded = ranked[:most], ranked[most:]
    widths = max((len(str(size[0])) for size, _ in shown), default=0)
    labels = [f"{size[0]:>{widths}} x {size[1]}" for size, _ in shown]
    numbers = [count for _, count in shown]
    if folded:
        labels.append(f"and {len(folded)} other {'size' if len(folded) == 1 else 'sizes'}")
        numbers.append(sum(count for _, count in folded))
    label_width = max(map(len, labels), default=0)
    number_width = max((len(str(number)) for number in numbers), default=0)
    lines = []
    for place, (label, number) in enumerate(zip(labels, numbers, strict=True)):
        length = max(1, round(width * number / numbers[0])) if place < len(shown) else 0
        bar = ("#" if ascii_only else "█") * length
        lines.append(f"{label:<{label_width}}  {number:>{number_width}} {bar}".rstrip())
    return lines


class _Set(NamedTuple):
    """A set that exists: its records, and the columns that one takes, two for a pair."""

    name: str
    records: int
    span: int


@dataclass(frozen=True, kw_only=True)
class _Cell:
    """Pictures that touch one another, with two lines under them; or why there are none."""

    pictures: tuple[Image.Image, ...] = ()
    caption: str
    detail: str
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class _Section:
    """A set: rows of cells that are ``span`` columns wide, and a strip of squares at 1:1.

    ``half`` is the part of the page in which it lies; None is the whole width.
    """

    title: str
    legend: str
    strip_legend: str
    half: int | None
    span: int
    rows: list[list[_Cell]]
    strip: list[_Cell]


@dataclass(frozen=True, kw_only=True)
class _Page:
    """Where things lie from left to right: one or two halves of ``columns`` thumbnails each."""

    halves: int
    columns: int
    thumbnail: int

    @property
    def half_width(self) -> int:
        return max(LEAST_HALF_WIDTH, self.columns * (self.thumbnail + GAP) - GAP)

    @property
    def width(self) -> int:
        return 2 * MARGIN + self.halves * self.half_width + (self.halves - 1) * SECTION_GAP

    def blank(self, height: int) -> Image.Image:
        return Image.new("RGB", (self.width, height), BACKGROUND)

    def section(self, half: int | None) -> tuple[int, int]:
        """(left, width) of a half; None is the whole width."""
        if half is None:
            return MARGIN, self.width - 2 * MARGIN
        return MARGIN + half * (self.half_width + SECTION_GAP), self.half_width

    def cells_per_row(self, half: int | None, span: int) -> int:
        return self.columns // span * (self.halves if half is None else 1)

    def cell_left(self, half: int | None, span: int, place: int) -> int:
        # A section of the whole width keeps to the columns of the halves above it.
        further, place = divmod(place, self.columns // span)
        left, _ = self.section((half or 0) + further)
        return left + place * span * (self.thumbnail + GAP)


def _sets(reader: RecordReader, names: Iterable[str]) -> list[_Set]:
    found = []
    for name in names:
        try:
            count = reader.count(name)
        except QdmrError:
            continue
        if count:
            found.append(_Set(name, count, _span(reader, name, count)))
    return found


def _span(reader: RecordReader, name: str, count: int) -> int:
    """2 for a set of pairs, as told by the first of a few records that can be read, else 1."""
    for index in _evenly(count, 8):
        try:
            return 1 if reader.read(name, index).ground_truth is None else 2
        except QdmrError:
            continue
    return 1


def _evenly(count: int, wanted: int) -> list[int]:
    """At most ``wanted`` places out of ``count``, with the first and the last."""
    if count <= wanted:
        return list(range(count))
    if wanted == 1:
        return [0]
    return [place * (count - 1) // (wanted - 1) for place in range(wanted)]


def _section(
    reader: RecordReader, entry: _Set, page: _Page, half: int | None, rows: int
) -> _Section:
    per_row = page.cells_per_row(half, entry.span)
    if half is None:
        # As many records as a set of the upper part has, over a width that is that many times.
        rows = -(-rows // page.halves)
    chosen = _evenly(entry.records, per_row * rows)
    cells, crops = [], []
    for index in chosen:
        cell, squares = _cells(reader, entry.name, index, page.thumbnail)
        cells.append(cell)
        if squares:
            crops.append(squares)
    cropped = _evenly(len(crops), max(1, per_row // 2))
    kind = ("photograph", "pair")[entry.span - 1] if crops else "record"
    shown = "all shown" if len(chosen) == entry.records else f"{len(chosen)} shown, spread evenly"
    pictures = "   aberrated | ground truth" if entry.span == 2 else ""
    return _Section(
        title=f"{entry.name}: {entry.records} {kind}{'s' * (entry.records != 1)}",
        legend=shown + pictures,
        strip_legend="1:1, pixel for pixel" + pictures,
        half=half,
        span=entry.span,
        rows=[cells[start : start + per_row] for start in range(0, len(cells), per_row)],
        strip=[square for place in cropped for square in crops[place]][:per_row],
    )


def _cells(
    reader: RecordReader, name: str, index: int, thumbnail: int
) -> tuple[_Cell, list[_Cell]]:
    """A record's thumbnails, and its squares at 1:1. The record itself isn't kept."""
    try:
        record = reader.read(name, index)
    except QdmrError as error:
        return _Cell(caption="not readable", detail=f"#{index}", problem=str(error)), []
    images = [record.image] if record.ground_truth is None else [record.image, record.ground_truth]
    height, width = record.image.shape[:2]
    whole = _Cell(
        pictures=tuple(_thumbnail(image, thumbnail) for image in images),
        caption=record.name,
        detail=f"#{index}   {width} x {height}",
    )
    squares = []
    for place, top, left in _places(images[-1], thumbnail):
        # Image.fromarray copies, so that nothing holds the photograph.
        cut = (image[top : top + thumbnail, left : left + thumbnail] for image in images)
        squares.append(
            _Cell(
                pictures=tuple(map(Image.fromarray, cut)),
                caption=record.name,
                detail=f"#{index}   {place}, at x {left}, y {top}",
            )
        )
    return whole, squares


def _thumbnail(image: np.ndarray, side: int) -> Image.Image:
    height, width = image.shape[:2]
    longest = max(height, width)
    if longest <= side:
        factor = side // longest
        return Image.fromarray(image).resize(
            (width * factor, height * factor), Image.Resampling.NEAREST
        )
    size = max(1, round(width * side / longest)), max(1, round(height * side / longest))
    return Image.fromarray(image).resize(size, Image.Resampling.LANCZOS, reducing_gap=REDUCING_GAP)


def _places(image: np.ndarray, side: int) -> Iterator[tuple[str, int, int]]:
    """(what it is, top, left) of the squares to show: a corner and the centre.

    The corner is the one with the most detail in ``image``, which for a pair is the ground truth:
    noise and blur shall not choose. A photograph that fits into one square is shown whole.
    """
    bottom, right = (max(0, length - side) for length in image.shape[:2])
    if (bottom, right) == (0, 0):
        yield "whole", 0, 0
        return
    corners = [
        (f"{vertical} {horizontal}", top, left)
        for vertical, top in (("top", 0), ("bottom", bottom))
        for horizontal, left in (("left", 0), ("right", right))
    ]
    yield max(
        corners,
        key=lambda corner: _detail(
            image[corner[1] : corner[1] + side, corner[2] : corner[2] + side]
        ),
    )
    yield "centre", bottom // 2, right // 2


def _detail(square: np.ndarray) -> int:
    """How much neighbouring pixels differ: greater for texture than for the shading of a sky."""
    values = square.astype(np.int16)
    return sum(int(np.abs(np.diff(values, axis=axis)).sum(dtype=np.int64)) for axis in (0, 1))


def _band(page: _Page, sections: Sequence[_Section]) -> Iterator[Image.Image]:
    """Horizontal pieces of the page: sections beside one another, their rows at one height."""
    yield _headings(page, [(section, section.title, section.legend) for section in sections])
    for row in range(max(len(section.rows) for section in sections)):
        yield _row(
            page, [(section, section.rows[row]) for section in sections if row < len(section.rows)]
        )
    strips = [section for section in sections if section.strip]
    if strips:
        yield _headings(page, [(section, "", section.strip_legend) for section in strips])
        yield _row(page, [(section, section.strip) for section in strips])
    yield page.blank(SECTION_GAP // 2)


def _headings(page: _Page, headings: Sequence[tuple[_Section, str, str]]) -> Image.Image:
    """A title and a legend at the left end of each section; all titles may be empty."""
    top = TITLE_HEIGHT if any(title for _, title, _ in headings) else 0
    band = page.blank(top + LINE_HEIGHT + GAP)
    for section, title, legend in headings:
        left, width = page.section(section.half)
        _write(band, (left, top - DESCENT), title, width, BRIGHT, TITLE_SIZE)
        _write(band, (left, top + LINE_HEIGHT - DESCENT), legend, width, DIM)
    return band


def _row(page: _Page, parts: Sequence[tuple[_Section, list[_Cell]]]) -> Image.Image:
    cells = [cell for _, row in parts for cell in row]
    # A row of nothing but unreadable records has the height of a landscape photograph.
    least = page.thumbnail * 2 // 3 if any(cell.problem for cell in cells) else 1
    height = max([least, *(picture.height for cell in cells for picture in cell.pictures)])
    band = page.blank(height + 2 * LINE_HEIGHT + 2 * GAP)
    for section, row in parts:
        width = page.thumbnail * section.span
        for place, cell in enumerate(row):
            left = page.cell_left(section.half, section.span, place)
            _draw_cell(band, cell, left, width, height)
    return band


def _draw_cell(band: Image.Image, cell: _Cell, left: int, width: int, height: int) -> None:
    draw = ImageDraw.Draw(band)
    box = (left, 0, left + width - 1, height - 1)
    draw.rectangle(box, fill=CELL, outline=EDGE if cell.problem else CELL)
    x = left + (width - sum(picture.width for picture in cell.pictures)) // 2
    for picture in cell.pictures:
        band.paste(picture, (x, (height - picture.height) // 2))
        x += picture.width
    if cell.problem:
        most = max(1, (height - 2 * GAP) // LINE_HEIGHT)
        for number, line in enumerate(_wrapped(cell.problem, width - 2 * GAP, most)):
            place = left + GAP, GAP + (number + 1) * LINE_HEIGHT - DESCENT
            _write(band, place, line, width - 2 * GAP, DIM)
    colour = ALARM if cell.problem else BRIGHT
    _write(band, (left, height + LINE_HEIGHT), cell.caption, width, colour)
    _write(band, (left, height + 2 * LINE_HEIGHT), cell.detail, width, DIM)


def _write(
    image: Image.Image,
    place: tuple[int, int],
    text: str,
    width: int,
    colour: tuple[int, int, int],
    size: int = TEXT_SIZE,
) -> None:
    """Text from its left end on the base line, shortened in the middle to ``width`` pixels."""
    font = ImageFont.load_default(size=size)
    text = _drawable(text)
    shown, kept = text, len(text)
    while kept and font.getlength(shown) > width:
        kept -= 1
        shown = _shortened(text, kept)
    ImageDraw.Draw(image).text(place, shown, fill=colour, font=font, anchor="ls")


def _shortened(text: str, kept: int) -> str:
    """The first and last of ``kept`` characters: what differs in file names is often the end."""
    tail = kept // 2
    return text[: kept - tail] + ELLIPSIS + text[len(text) - tail :]


def _drawable(text: str) -> str:
    """Without what Pillow's own font has no signs for: accents go, other letters become ``?``."""
    plain = (
        sign for sign in unicodedata.normalize("NFKD", text) if not unicodedata.combining(sign)
    )
    return "".join(sign if " " <= sign <= "~" else "?" for sign in plain)


def _wrapped(text: str, width: int, most: int) -> list[str]:
    """At most ``most`` lines of about ``width`` pixels; what is too much goes from the middle."""
    font = ImageFont.load_default(size=TEXT_SIZE)
    length = max(len(ELLIPSIS) + 1, int(width / font.getlength("n")))
    text = _drawable(text)
    lines = textwrap.wrap(text, length)
    kept = min(len(text), length * most)
    while len(lines) > most and kept:
        kept -= 1
        lines = textwrap.wrap(_shortened(text, kept), length)
    return lines
