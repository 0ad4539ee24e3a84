"""The error that users see: one line that names file, setting and value, and says what to do."""

import re
from typing import Any

# ``-v`` sets this variable, which shows the traceback of an error; Ray's processes read it, too.
VERBOSE_VARIABLE = "QDMR_VERBOSE"
# Between "://" and the last "@" of an address stand a user's name and password. A password may hold
# "/" and "@", which ought to be encoded; after a host without a port, both belong to the path.
_LOGIN = re.compile(r"(?<=://)(?:[^\s\"/@:]*:[^\s\"]*|[^\s\"/]*)@")


class QdmrError(Exception):
    """A failure that the user can mend; the command line prints its message without a traceback:
    one line, and more only where more are given. No message holds a password that stands in an
    address, or anything out of a name that a terminal would obey."""

    def __init__(self, *lines: Any) -> None:
        super().__init__(*(printable(without_passwords(str(line))) for line in lines))

    def __str__(self) -> str:
        return "\n".join(self.args)


class SettingsError(QdmrError, ValueError):
    """A setting that is unknown, of the wrong type or out of its range; the exit code is 2. It is
    also a ``ValueError``, so that pydantic reports it together with the place in the file."""


def without_passwords(text: str) -> str:
    """Returns the text with ``…@`` for each user's name and password in an address."""
    return _LOGIN.sub("…@", text)


def one_line(error: BaseException) -> str:
    """Returns the error's message without line breaks, or its type's name without a message."""
    return " ".join(str(error).split()) or type(error).__name__


def reason(error: BaseException) -> str:
    """Returns one line for a list of failures: the message, after the type unless a QdmrError."""
    text = " ".join(str(error).split()) or "no message"
    return text if isinstance(error, QdmrError) else f"{type(error).__name__}: {text}"


def printable(text: str) -> str:
    """Returns ``text`` with what a terminal would obey, and what UTF-8 cannot hold, as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
