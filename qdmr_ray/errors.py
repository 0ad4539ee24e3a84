"""The error that users see: one line that names file, setting and value, and says what to do."""


class QdmrError(Exception):
    """A failure that the user can mend; the command line prints its message without a traceback."""


class SettingsError(QdmrError, ValueError):
    """A setting that is unknown, of the wrong type or out of its range; the exit code is 2.

    Also a ``ValueError``, so that pydantic reports it together with the place in the file.
    """
