"""Draws one page to look at before training: what a packed dataset holds, pictures and sizes.

    write_png(Path("sheet.png"), contact_sheet(RecordReader("data/realab-s1")))

Lenses, pairs and folders that were mixed up are seen at once in a picture, and in no table.
"""

import textwrap
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from qdmr_ray.data.format.reader import RecordReader
from qdmr_ray.errors import QdmrError

# Lengths in pixels.
MARGIN = 24
GAP = 8
SECTION_GAP = 40
# Room for the words above a section of few and small thumbnails.
LEAST_HALF_WIDTH = 360
SMALLEST_THUMBNAIL = 64
TITLE_SIZE, TEXT_SIZE = 24, 15
TITLE_HEIGHT, LINE_HEIGHT = 32, 19
# Distance from the base line of text to the end of its line.
DESCENT = 4
# The grey is neutral, so that the page doesn't change how colours are seen.
BACKGROUND = (24, 24, 24)
CELL = (38, 38, 38)
EDGE = (170, 70, 60)
BRIGHT, DIM, ALARM = (232, 232, 232), (150, 150, 150), (235, 130, 115)

# A large photograph is first averaged by a whole factor to no less than three times the thumbnail's
# size: no difference is seen, and Lanczos is several times as fast.
REDUCING_GAP = 3.0
# Records that are tried to tell whether a set holds pairs.
_TRIED = 8


def contact_sheet(
    reader: RecordReader, *, columns: int = 4, thumbnail: int = 240, rows: int = 6
) -> np.ndarray:
    """Draws the packed dataset's photographs on one page, uint8 (H, W, 3).

    Source is at the left, target at the right, test below over the whole width; a missing set is
    left out. Source and target are ``columns`` thumbnails wide and at most ``rows`` high; a pair,
    aberrated and ground truth touching, takes two columns. The records are spread evenly over their
    set, from the first to the last. Under them lies a strip of squares at 1:1, from the corner with
    the most detail and from the centre, where aberrations and noise show.

    A record that can't be read is an empty tile that says why. ``thumbnail`` is the longest side of
    a photograph in pixels; a smaller photograph is enlarged by a whole factor. One record is in
    memory at a time. Raises QdmrError without photographs, or where a setting is too small.
    """
    settings = (("columns", columns, 1), ("thumbnail", thumbnail, SMALLEST_THUMBNAIL))
    for setting, value, least in (*settings, ("rows", rows, 1)):
        if value < least:
            raise QdmrError(f"contact sheet: {setting} is {value}; it must be at least {least}")
    spans = {name: span for name in ("source", "target", "test") if (span := _span(reader, name))}
    if not spans:
        raise QdmrError("contact sheet: the dataset has no photographs")
    upper = [name for name in ("source", "target") if name in spans]
    page = _Page(max(1, len(upper)), max(columns, *spans.values()), thumbnail)
    above: list[tuple[str, Sequence[int]]] = [(n, [half]) for half, n in enumerate(upper)]
    below: list[tuple[str, Sequence[int]]] = (
        [("test", range(page.halves))] if "test" in spans else []
    )
    bands = [page.blank(MARGIN)]
    for group in filter(None, (above, below)):
        bands += page.band([page.section(reader, n, spans[n], halves, rows) for n, halves in group])
    bands.append(page.blank(MARGIN))
    return np.concatenate([np.asarray(band) for band in bands])


def size_histogram(
    sizes: Sequence[tuple[int, int, int]],
    *,
    width: int = 40,
    most: int = 12,
    ascii_only: bool = False,
) -> list[str]:
    """Writes a line of text with a bar per image size, the most frequent first.

    ``sizes`` holds (height, width, count). The bar of the most frequent size is ``width``
    characters long; all sizes beyond ``most`` share one line without a bar.
    """
    counts: Counter[tuple[int, int]] = Counter()
    for image_height, image_width, count in sizes:
        counts[image_width, image_height] += count
    # Of equally frequent sizes, the largest comes first; the unary plus drops counts of 0.
    ranked = sorted((+counts).items(), key=lambda item: (-item[1], -item[0][0] * item[0][1], item))
    digits = max((len(str(size[0])) for size, _ in ranked[:most]), default=0)
    bar = "#" if ascii_only else "█"
    lines = [
        (f"{w:>{digits}} x {h}", count, bar * max(1, round(width * count / ranked[0][1])))
        for (w, h), count in ranked[:most]
    ]
    if folded := ranked[most:]:
        noun = "size" if len(folded) == 1 else "sizes"
        lines.append((f"and {len(folded)} other {noun}", sum(count for _, count in folded), ""))
    label_width = max((len(label) for label, _, _ in lines), default=0)
    number_width = max((len(str(count)) for _, count, _ in lines), default=0)
    texts = (f"{a:<{label_width}}  {count:>{number_width}} {bar}" for a, count, bar in lines)
    return [text.rstrip() for text in texts]


@dataclass(frozen=True, kw_only=True)
class _Cell:
    """Pictures that touch one another, with two lines under them; or why there are none."""

    caption: str
    detail: str
    pictures: tuple[Image.Image, ...] = ()
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class _Section:
    """A set on the page: rows of cells, at ``lefts`` and ``cell_width`` wide, and at last a row of
    squares at 1:1. ``left`` and ``width`` are those of the headings, of (title, legend) each."""

    left: int
    width: int
    lefts: Sequence[int]
    cell_width: int
    headings: tuple[tuple[str, str], tuple[str, str]]
    rows: Sequence[Sequence[_Cell]]
    strip: Sequence[_Cell]


@dataclass(frozen=True)
class _Page:
    """One or two halves side by side, of ``columns`` thumbnails each; drawn in bands."""

    halves: int
    columns: int
    thumbnail: int

    def left(self, half: int) -> int:
        width = max(LEAST_HALF_WIDTH, self.columns * (self.thumbnail + GAP) - GAP)
        return MARGIN + half * (width + SECTION_GAP)

    def blank(self, height: int) -> Image.Image:
        width = self.left(self.halves) - SECTION_GAP + MARGIN
        return Image.new("RGB", (width, height), BACKGROUND)

    def section(
        self, reader: RecordReader, name: str, span: int, halves: Sequence[int], rows: int
    ) -> _Section:
        """Lays out a set over these halves, in cells ``span`` columns wide, record by record."""
        # A section of the whole width keeps to the columns of the halves above it.
        step = span * (self.thumbnail + GAP)
        lefts = [self.left(h) + k * step for h in halves for k in range(self.columns // span)]
        count, per_row = reader.count(name), len(lefts)
        # A wide set shows as many records as a set in one half, in rows that are that much longer.
        chosen = _evenly(count, per_row * -(-rows // len(halves)))
        drawn = [_cells(reader, name, index, self.thumbnail) for index in chosen]
        cells, crops = [cell for cell, _ in drawn], [squares for _, squares in drawn if squares]
        kind = ("photograph", "pair")[span - 1] if crops else "record"
        shown = "all shown" if len(chosen) == count else f"{len(chosen)} shown, spread evenly"
        pictures = "   aberrated | ground truth" if span == 2 else ""
        title = f"{name}: {count} {kind}{'s' * (count != 1)}"
        cropped = _evenly(len(crops), max(1, per_row // 2))
        return _Section(
            left=self.left(halves[0]),
            width=self.left(len(halves)) - SECTION_GAP - MARGIN,
            lefts=lefts,
            cell_width=self.thumbnail * span,
            headings=((title, shown + pictures), ("", "1:1, pixel for pixel" + pictures)),
            rows=[cells[start : start + per_row] for start in range(0, len(cells), per_row)],
            strip=[square for place in cropped for square in crops[place]][:per_row],
        )

    def band(self, sections: Sequence[_Section]) -> Iterator[Image.Image]:
        """Yields horizontal pieces of the page: sections side by side, their rows at one height."""
        yield self._headings(sections, 0)
        for row in range(max(len(section.rows) for section in sections)):
            yield self._row([(s, s.rows[row]) for s in sections if row < len(s.rows)])
        if strips := [section for section in sections if section.strip]:
            yield self._headings(strips, 1)
            yield self._row([(section, section.strip) for section in strips])
        yield self.blank(SECTION_GAP // 2)

    def _headings(self, sections: Sequence[_Section], number: int) -> Image.Image:
        """Draws a title, where there is one, and a legend at the left end of each section."""
        top = TITLE_HEIGHT if sections[0].headings[number][0] else 0
        band = self.blank(top + LINE_HEIGHT + GAP)
        for section in sections:
            title, legend = section.headings[number]
            left, line = section.left, top + LINE_HEIGHT - DESCENT
            _write(band, (left, top - DESCENT), title, section.width, BRIGHT, TITLE_SIZE)
            _write(band, (left, line), legend, section.width, DIM)
        return band

    def _row(self, rows: Sequence[tuple[_Section, Sequence[_Cell]]]) -> Image.Image:
        cells = [cell for _, row in rows for cell in row]
        # A row of nothing but unreadable records has the height of a landscape photograph.
        least = self.thumbnail * 2 // 3 if any(cell.problem for cell in cells) else 1
        height = max([least, *(picture.height for cell in cells for picture in cell.pictures)])
        band = self.blank(height + 2 * LINE_HEIGHT + 2 * GAP)
        for section, row in rows:
            for left, cell in zip(section.lefts, row, strict=False):
                _draw_cell(band, cell, left, section.cell_width, height)
        return band


def _span(reader: RecordReader, name: str) -> int:
    """Returns the columns of a record: 2 for pairs, else 1; 0 for a set that is missing or empty.
    The first of a few records that can be read decides."""
    try:
        count = reader.count(name)
    except QdmrError:
        return 0
    for index in _evenly(count, _TRIED):
        try:
            return 1 if reader.read(name, index).ground_truth is None else 2
        except QdmrError:
            continue
    return min(count, 1)


def _evenly(count: int, wanted: int) -> list[int]:
    """Returns at most ``wanted`` places out of ``count``, with the first and the last."""
    if count <= wanted:
        return list(range(count))
    return [place * (count - 1) // max(wanted - 1, 1) for place in range(wanted)]


def _cells(
    reader: RecordReader, name: str, index: int, thumbnail: int
) -> tuple[_Cell, list[_Cell]]:
    """Returns a record's thumbnails, and its squares at 1:1. The record itself isn't kept."""
    try:
        record = reader.read(name, index)
    except QdmrError as error:
        return _Cell(caption="not readable", detail=f"#{index}", problem=str(error)), []
    images = [record.image] if record.ground_truth is None else [record.image, record.ground_truth]
    height, width = record.image.shape[:2]
    pictures = tuple(_thumbnail(image, thumbnail) for image in images)
    detail = f"#{index}   {width} x {height}"
    whole = _Cell(pictures=pictures, caption=record.name, detail=detail)
    squares = []
    for place, top, left in _places(images[-1], thumbnail):
        square = slice(top, top + thumbnail), slice(left, left + thumbnail)
        # Image.fromarray copies, so that nothing holds the photograph.
        pictures = tuple(Image.fromarray(image[square]) for image in images)
        detail = f"#{index}   {place}, at x {left}, y {top}"
        squares.append(_Cell(pictures=pictures, caption=record.name, detail=detail))
    return whole, squares


def _thumbnail(image: np.ndarray, side: int) -> Image.Image:
    picture = Image.fromarray(image)
    longest = max(picture.size)
    if longest <= side:
        return ImageOps.scale(picture, side // longest, Image.Resampling.NEAREST)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=REDUCING_GAP)
    return picture


def _places(image: np.ndarray, side: int) -> list[tuple[str, int, int]]:
    """Returns (label, top, left) of the squares to show: a corner and the centre.

    The corner is the one with the most detail in ``image``, which for a pair is the ground truth:
    noise and blur shall not choose. A photograph that fits into one square is shown whole.
    """
    bottom, right = (max(0, length - side) for length in image.shape[:2])
    if (bottom, right) == (0, 0):
        return [("whole", 0, 0)]

    def detail(corner: tuple[str, int, int]) -> int:
        """Sums differences of neighbouring pixels: more for texture than for a sky's shading."""
        _, top, left = corner
        square = image[top : top + side, left : left + side].astype(np.int16)
        return sum(int(np.abs(np.diff(square, axis=axis)).sum(dtype=np.int64)) for axis in (0, 1))

    corners = [
        (f"{vertical} {horizontal}", top, left)
        for vertical, top in (("top", 0), ("bottom", bottom))
        for horizontal, left in (("left", 0), ("right", right))
    ]
    return [max(corners, key=detail), ("centre", bottom // 2, right // 2)]


def _draw_cell(band: Image.Image, cell: _Cell, left: int, width: int, height: int) -> None:
    box = (left, 0, left + width - 1, height - 1)
    ImageDraw.Draw(band).rectangle(box, fill=CELL, outline=EDGE if cell.problem else CELL)
    x = left + (width - sum(picture.width for picture in cell.pictures)) // 2
    for picture in cell.pictures:
        band.paste(picture, (x, (height - picture.height) // 2))
        x += picture.width
    most = max(1, (height - 2 * GAP) // LINE_HEIGHT)
    for number, line in enumerate(_wrapped(cell.problem, width - 2 * GAP, most), start=1):
        place = left + GAP, GAP + number * LINE_HEIGHT - DESCENT
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
    """Draws text from its left end on the base line, shortened to ``width``."""
    font = ImageFont.load_default(size=size)
    shown = _shortened(text, lambda shown: font.getlength(shown) <= width)
    ImageDraw.Draw(image).text(place, shown, fill=colour, font=font, anchor="ls")


def _wrapped(text: str, width: int, most: int) -> list[str]:
    """Wraps to at most ``most`` lines of about ``width`` pixels."""
    length = max(4, int(width / ImageFont.load_default(size=TEXT_SIZE).getlength("n")))
    shown = _shortened(text, lambda shown: len(textwrap.wrap(shown, length)) <= most)
    return textwrap.wrap(shown, length)


def _shortened(text: str, fits: Callable[[str], bool]) -> str:
    """Drops from the middle, as file names often differ at the end, until the text fits. Of what
    Pillow's own font has no signs for, accents go, and other letters become ``?``."""
    signs = (
        sign for sign in unicodedata.normalize("NFKD", text) if not unicodedata.combining(sign)
    )
    text = shown = "".join(sign if " " <= sign <= "~" else "?" for sign in signs)
    kept = len(text)
    while kept and not fits(shown):
        kept -= 1
        tail = kept // 2
        shown = text[: kept - tail] + "..." + text[len(text) - tail :]
    return shown
