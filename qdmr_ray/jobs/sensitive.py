"""Which names suggest a secret: one rule for files and for variables, and a way round it by name.

    may_be_secret("WANDB_KEY")                       # True
    may_be_secret("TOKENIZERS_PARALLELISM")          # False
    NotSecret(["MAX_TOKENS", "src/token.py"])        # what --not-secret names

A name is read as words, at ``_``, ``-``, ``.`` and capitals: ``tokenizer`` is not about tokens.
"""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from qdmr_ray.errors import SettingsError

# Found anywhere in a name whose words are joined: API_KEY_FILE, myPassword, HFSECRETS.
_ANYWHERE = re.compile(
    r"secret|passw(?:or)?d|passphrase|credential|(?:api|access|private|ssh|signing|encryption)key"
)
# Found as a word, or as its end: HF_TOKEN, hftoken.
_WORD = re.compile(r".*tokens?|private|creds?|pwd|kubeconfig|apikeys?")
# Found as the last word, since more names begin with these: WANDB_KEY, DB_PASS; not key_frames.
_LAST = re.compile(r"keys?|pass|pw")
_SPLIT = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+")
# The user and password of an address. The pattern has no way to take one text in two ways.
_PASSWORD = re.compile(r"://[^\s/:@?#]*:[^\s/@?#]+@")


def may_be_secret(name: str) -> bool:
    """Returns whether a variable's name, or a part of a file's path, suggests a secret."""
    for piece in name.split("."):
        words = [word.lower() for word in _SPLIT.findall(piece)]
        if words and (
            _ANYWHERE.search("".join(words))
            or any(_WORD.fullmatch(word) for word in words)
            or _LAST.fullmatch(words[-1])
        ):
            return True
    return False


def holds_password(text: str) -> bool:
    """Returns whether a text holds an address with a password: ``https://ann:hush@host``."""
    return _PASSWORD.search(text) is not None


class NotSecret:
    """The names that a user has declared to hold no secret: variables, and files or folders
    relative to the uploaded folder. Remembers which of them were met."""

    def __init__(self, names: Sequence[str] = ()) -> None:
        self._names = {PurePosixPath(name): name for name in names}
        self._met: set[PurePosixPath] = set()

    def __contains__(self, name: object) -> bool:
        path = PurePosixPath(str(name))
        found = {path, *path.parents} & self._names.keys()
        self._met |= found
        return bool(found)

    def check(self) -> None:
        """Raises SettingsError for a name that was never met: it is misspelt."""
        for path in self._names.keys() - self._met:
            raise SettingsError(
                f"--not-secret {self._names[path]!a}: no variable of --env and no file of the "
                "uploaded folder has this name"
            )
