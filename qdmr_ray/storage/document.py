"""JSON files that this package writes and reads back: one typed definition for writer and reader.

    class Begun(Document):
        '''Which stage a folder is for.'''
        digest: str

    Begun(digest="…").write(folder.join("begun.json"))
    begun = Begun.read(folder.join("begun.json"))

Every file holds ``format``, the version of its schema; a file without it is of format 1. A file of
a newer format is refused with an error that says to update. A field that this version doesn't know
is ignored, so that a newer version may add one without a new format. Standard JSON has no infinity
and no NaN: both become ``null``.
"""

import json
import math
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from qdmr_ray.errors import QdmrError
from qdmr_ray.storage.location import Location
from qdmr_ray.storage.names import check_name, check_text
from qdmr_ray.untrusted import parse_json

FIRST_FORMAT = 1
# A key of a file may be of any length; so much of it is shown.
_SHOWN = 80

# Types of fields: a file beside the document, and a line that people read.
FileName = Annotated[str, AfterValidator(check_name)]
Line = Annotated[str, AfterValidator(check_text)]


class Part(BaseModel):
    """A typed object inside a :class:`Document`."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Document(Part):
    """A JSON file, or a line of a ``.jsonl`` file; subclasses add fields. ``FORMAT`` is raised when
    the previous code would misread a file of the new schema."""

    FORMAT: ClassVar[int] = FIRST_FORMAT

    @classmethod
    def parse(cls, data: bytes | str, source: str) -> Self:
        """Returns the document in ``data``; raises QdmrError, which begins with ``source``, for no
        JSON, a newer format, or a field that is missing or of a wrong type."""
        try:
            values = parse_json(data)
        except ValueError as error:
            raise QdmrError(f"{source}: is not JSON ({error}); write it again") from None
        return cls.from_dict(values, source)

    @classmethod
    def from_dict(cls, values: Any, source: str) -> Self:
        """Returns the document with these plain values; raises as :meth:`parse`."""
        if not isinstance(values, dict):
            kind = type(values).__name__
            raise QdmrError(f"{source}: holds a {kind} where an object is expected")
        version = values.get("format", FIRST_FORMAT)
        if not isinstance(version, int) or version > cls.FORMAT:
            reads = f"this version of qdmr_ray reads up to {cls.FORMAT}: update qdmr_ray"
            raise QdmrError(f"{source}: is of format {version}, and {reads}")
        try:
            return cls.model_validate({k: v for k, v in values.items() if k != "format"})
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part)[:_SHOWN] for part in first["loc"])
            text = first["msg"].removeprefix("Value error, ")
            raise QdmrError(
                f"{source}: {field}: {text[0].lower()}{text[1:]}; the file is damaged or written "
                "by hand"
            ) from None

    @classmethod
    def read(cls, file: Location) -> Self:
        """Returns the document in ``file``; raises as :meth:`parse`, also for a missing or
        unreadable file."""
        return cls.parse(file.read_bytes(), file.uri)

    @classmethod
    def read_if_there(cls, file: Location) -> Self | None:
        """Returns the document in ``file``, or None without such a file; raises as :meth:`read`."""
        return cls.read(file) if file.exists() else None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values as JSON holds them, ``format`` first."""
        values = {"format": self.FORMAT, **self.model_dump(mode="json")}
        return {name: _without_non_finite(value) for name, value in values.items()}

    def to_json(self, *, indent: int | None = 1) -> str:
        """Returns the text of the file; ``indent=None`` makes it one line."""
        text = json.dumps(self.to_dict(), indent=indent, ensure_ascii=False, allow_nan=False)
        # A lone surrogate, as a path that isn't UTF-8 has, can't be encoded; JSON's escape can.
        return text.encode(errors="backslashreplace").decode()

    def write(self, file: Location) -> None:
        """Writes ``file`` completely or not at all, and makes the folders above it; raises
        QdmrError if the disk is full or the place is not writable."""
        file.write_bytes_atomic(self.to_json().encode())


def _without_non_finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: _without_non_finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without_non_finite(inner) for inner in value]
    return value
