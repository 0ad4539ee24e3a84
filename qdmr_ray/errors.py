"""The error that users see: one line that names file, setting and value, and says what to do."""

# ``-v`` sets this variable, which shows the traceback of an error; Ray's processes read it, too.
VERBOSE_VARIABLE = "QDMR_VERBOSE"


class QdmrError(Exception):
    """A failure that the user can mend; the command line prints its message without a traceback."""


class SettingsError(QdmrError, ValueError):
    """A setting that is unknown, of the wrong type or out of its range; the exit code is 2. It is
    also a ``ValueError``, so that pydantic reports it together with the place in the file."""


def one_line(error: BaseException) -> str:
    """Returns the error's message without line breaks, or its type's name without a message."""
    return " ".join(str(error).split()) or type(error).__name__


def reason(error: BaseException) -> str:
    """Returns one line for a list of failures: the message, after the type unless a QdmrError."""
    text = " ".join(str(error).split()) or "no message"
    return text if isinstance(error, QdmrError) else f"{type(error).__name__}: {text}"
