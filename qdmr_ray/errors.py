"""The error that users see: one line that names file, setting and value, and says what to do."""

# Set in the environment by ``-v``, which shows the traceback of an error; Ray's processes read it.
VERBOSE_VARIABLE = "QDMR_VERBOSE"


class QdmrError(Exception):
    """A failure that the user can mend; the command line prints its message without a traceback."""


class SettingsError(QdmrError, ValueError):
    """A setting that is unknown, of the wrong type or out of its range; the exit code is 2.

    Also a ``ValueError``, so that pydantic reports it together with the place in the file.
    """


def one_line(error: BaseException) -> str:
    """The error's message without line breaks; the name of its type where it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


def reason(error: BaseException) -> str:
    """One line for a list of failures: the message, after the type where it isn't a QdmrError."""
    text = " ".join(str(error).split()) or "no message"
    return text if isinstance(error, QdmrError) else f"{type(error).__name__}: {text}"
