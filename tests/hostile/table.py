"""Makes ``docs/security.md`` from the tests in this folder: a table of all hostile inputs.

python tests/hostile/table.py
"""

import ast
import io
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest

FOLDER = Path(__file__).parent
PAGE = FOLDER.parents[1] / "docs" / "security.md"
COMMAND = "python tests/hostile/table.py"
# These test the limits that the others rely on, and try no input.
_LEFT_OUT = {"test_limits.py"}
_MOST_SHOWN = 80

_HEAD = """\
# Hostile inputs

<!-- Made by `{command}` from the tests; changes by hand are lost. -->

[SECURITY.md](../SECURITY.md) says what is trusted. This page lists what has been tried against it:
every input that a test in `tests/hostile` gives to the package, and what happens then. An input
that is refused ends in one printable line that names the file or setting, within 5 s and 1 GB,
which a process of its own enforces (`tests/hostile/limits.py`).

**{tests} tests try {inputs} different inputs.** A row about *thousands* counts as one: it draws
damaged variants of valid files (`tests/hostile/damage.py`).
"""


class Case(NamedTuple):
    """A test: its file and function, what the function's docstring says, and the words for each
    of its parametrisations' values."""

    file: str
    function: str
    says: str
    words: tuple[str, ...]


def cases() -> list[Case]:
    """Collects the tests of this folder, in the order of their files; for a process of its own."""
    found: list[Case] = []

    class Collector:
        def pytest_collection_finish(self, session: pytest.Session) -> None:
            for item in session.items:
                assert isinstance(item, pytest.Function)
                # The words of each parametrisation; `id` joins them by hyphens, which they hold.
                call = getattr(item, "callspec", None)
                # An id of two values may be empty for the one that says what is expected.
                words = tuple(word.removesuffix("-") for word in call._idlist) if call else ()
                says = (item.function.__doc__ or "").split("\n\n")[0]
                found.append(Case(item.path.name, item.originalname, says, words))

    # Where pytest has collected them before, it has left ids behind, which it would escape again.
    for name, module in [*sys.modules.items()]:
        if (getattr(module, "__file__", None) or "").startswith(f"{FOLDER}/test_"):
            del sys.modules[name]
    options = ["--collect-only", "-qq", "-p", "no:cacheprovider", str(FOLDER)]
    with redirect_stdout(io.StringIO()) as told:
        code = pytest.main(options, [Collector()])
    assert code == pytest.ExitCode.OK, told.getvalue()
    files = sorted({case.file for case in found} - _LEFT_OUT)
    return [case for file in files for case in found if case.file == file]


def inputs(found: Sequence[Case]) -> set[tuple[str, tuple[str, ...]]]:
    """Returns the different inputs: a file's tests of the same words try the same ones."""
    return {(case.file, case.words or (case.function,)) for case in found}


def page(found: Sequence[Case]) -> str:
    """Returns the Markdown page about these tests."""
    parts = [_HEAD.format(command=COMMAND, tests=len(found), inputs=len(inputs(found)))]
    for file in dict.fromkeys(case.file for case in found):
        parts.append("\n".join(_section(file, [case for case in found if case.file == file])))
    return "\n".join(parts)


def _section(file: str, found: Sequence[Case]) -> Iterator[str]:
    """Yields the lines about a file: tests of the same inputs are one row."""
    docstring = ast.get_docstring(ast.parse((FOLDER / file).read_text())) or ""
    subject = file.removeprefix("test_").removesuffix(".py").replace("_", " ").capitalize()
    yield f"## {subject}\n"
    yield f"{_text(docstring.split(chr(10) * 2)[0])} (`tests/hostile/{file}`)\n"
    yield "| what happens | inputs |\n| --- | --- |"
    rows: dict[str, list[str]] = {}
    for function in dict.fromkeys(case.function for case in found):
        same = [case for case in found if case.function == function]
        tried = _tried([case.words for case in same])
        rows.setdefault(tried or function, []).append(same[0].says or _sentence(function))
    for tried, said in rows.items():
        yield f"| {_text(' '.join(said))} | {'' if tried.startswith('test_') else tried} |"
    yield ""


def _tried(words: Sequence[tuple[str, ...]]) -> str:
    """Returns the inputs in words: the longest list, and those that it is combined with."""
    lists = [list(dict.fromkeys(column)) for column in zip(*words, strict=True)]
    lists.sort(key=len, reverse=True)
    shown = [" · ".join(_shown(word) for word in column) for column in lists]
    return "; each with ".join(shown)


def _shown(word: str) -> str:
    """Returns words as they are, and everything else as code."""
    if re.fullmatch(r"[a-z]+(_[a-z]+)+", word):
        word = word.replace("_", " ")
    if len(word) > _MOST_SHOWN:
        word = f"{word[:_MOST_SHOWN]}…"
    if re.fullmatch(r"(\w|[ ,.;:'()…-])*", word) and "_" not in word:
        return word or "nothing"
    # In a table, a bar would end the cell even inside of code.
    code = " ".join(word.split()).replace("|", r"\|")
    return f"`` {code} ``" if "`" in code else f"`{code}`"


def _sentence(function: str) -> str:
    """Returns the name of a test function as the sentence that it is."""
    words = function.removeprefix("test_").replace("_", " ")
    words = re.sub(r"(\w) s\b", r"\1's", re.sub(r"n t\b", "n't", words))
    return f"{words[0].upper()}{words[1:]}."


def _text(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|").replace("``", "`").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(page(cases()), encoding="utf-8")
