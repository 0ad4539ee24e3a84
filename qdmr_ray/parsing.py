"""Turns plain values of YAML files and ``--set`` into typed settings, with one-line errors."""

import dataclasses
import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from qdmr_ray.errors import QdmrError, SettingsError, one_line, printable
from qdmr_ray.untrusted import (
    DEEPEST,
    TOO_DEEP,
    check_distinct,
    check_integer,
    check_length,
    open_regular,
)

# A YAML file of settings has some kilobytes and some hundred values.
LARGEST_YAML, MOST_VALUES = 1 << 18, 10_000
_TAG = "tag:yaml.org,2002:"
# Characters of a wrong value that a message shows.
_SHOWN = 200


def parse_settings(adapter: TypeAdapter[Any], values: Mapping[str, Any], source: str) -> Any:
    """Turns plain values into typed settings; raises SettingsError, whose one line names source,
    setting and value."""
    root = adapter._type if isinstance(adapter._type, type) else object
    try:
        return adapter.validate_python(_without_empty_sections(values, root))
    except ValidationError as error:
        raise SettingsError(f"{source}: {printable(_explain(error.errors()[0], root))}") from None


def _without_empty_sections(values: Mapping[str, Any], section: Any) -> dict[str, Any]:
    """Replaces sections with nothing below them (all lines commented out) by their defaults."""
    hints = get_type_hints(section) if dataclasses.is_dataclass(section) else {}
    filled: dict[str, Any] = {}
    for name, value in values.items():
        inner = _section(hints.get(name))
        empty = value is None and inner is hints.get(name)
        if inner is not None and (empty or isinstance(value, dict)):
            filled[name] = _without_empty_sections(value or {}, inner)
        else:
            filled[name] = value
    return filled


def _explain(error: Mapping[str, Any], root: type) -> str:
    # pydantic's location is a list of keys, which for an unknown key ends with that key.
    *before, last = error["loc"] or ("",)
    is_unknown = error["type"] in ("unexpected_keyword_argument", "extra_forbidden")
    # Brackets are pydantic's name of a kind of value, except in a key that a user wrote.
    path = [part for part in before if not (isinstance(part, str) and "[" in part)]
    path += [last] if is_unknown or not (isinstance(last, str) and "[" in last) else []
    name = ".".join(str(part) for part in path)
    if is_unknown:
        return _explain_unknown(path, name, root)
    if error["type"] == "value_error":
        inside = f"{name}." if name else ""
        return f"{inside}{error['ctx']['error']}"
    return f"{name} is {_short(repr(error['input']))}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _explain_unknown(path: Sequence[Any], name: str, root: type) -> str:
    section: Any = root
    for part in path[:-1]:
        section = _section(get_type_hints(section).get(part)) or object
    fields = dataclasses.fields(section) if dataclasses.is_dataclass(section) else ()
    known = {field.name: "".join(f"{p}." for p in path[:-1]) + field.name for field in fields}
    # A setting is often right and only its section is missing.
    elsewhere = _by_last_part([setting for setting, _ in all_settings(root)])
    near = _nearest(str(path[-1]), known) or _nearest(str(path[-1]), elsewhere)
    hint = f"did you mean {near}?" if near else f"known: {', '.join(known)}"
    return f"unknown setting {name}; {hint}"


def all_settings(section: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    """Yields every setting below ``section`` as (dotted name, field)."""
    if not dataclasses.is_dataclass(section):
        return
    hints = get_type_hints(section)
    for field in dataclasses.fields(section):
        if inner := _section(hints[field.name]):
            yield from all_settings(inner, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", field


def _section(hint: Any) -> type | None:
    """Returns the dataclass that a setting's type is or may be (``Section | None``)."""
    kinds = (hint, *get_args(hint))
    return next((k for k in kinds if isinstance(k, type) and dataclasses.is_dataclass(k)), None)


def parse_yaml(data: bytes | str) -> Any:
    """Returns the plain values of a YAML text. Raises ValueError, whose message is one line, for no
    YAML, more than ``LARGEST_YAML`` bytes or, with aliases written out, ``MOST_VALUES`` values, an
    alias inside its own anchor, and all that :func:`parse_json` refuses."""
    if len(data) > LARGEST_YAML:
        raise ValueError(f"it has more than {LARGEST_YAML} bytes")
    try:
        loader = yaml.SafeLoader(data if isinstance(data, str) else data.decode())
        # Nodes share what aliases repeat, so that they are no larger than the text; values that
        # merges (<<) copy, or code that walks values, can be larger by any factor.
        root = loader.get_single_node()
        if root is None:
            return None
        _check_node(loader, root, {})
        return loader.construct_document(root)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(printable(one_line(error))) from error
    # PyYAML raises these for `!!bool maybe`, `!!int ''` and `!!timestamp today`.
    except (LookupError, AttributeError) as error:
        raise ValueError("a value is not of the kind that its tag (!!) names") from error


def _check_node(
    loader: yaml.SafeLoader, node: yaml.Node, extents: dict[int, tuple[int, int] | None]
) -> tuple[int, int]:
    """Returns how many values a node holds with its aliases written out, and in how many levels.
    ``extents`` has those of the nodes before, and None for the nodes that hold this one."""
    if id(node) in extents:
        if (known := extents[id(node)]) is None:
            raise ValueError("an alias (*) stands inside its own anchor (&)")
        return known
    extents[id(node)] = None
    inside: Sequence[yaml.Node] = ()
    if isinstance(node, yaml.MappingNode):
        # The key of a merge, <<, may stand twice.
        check_distinct(
            key.value
            for key, _ in node.value
            if isinstance(key, yaml.ScalarNode) and key.tag != f"{_TAG}merge"
        )
        inside = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        inside = node.value
    elif isinstance(node, yaml.ScalarNode) and node.tag in (f"{_TAG}int", f"{_TAG}float"):
        check_length(node.value)
        if node.tag == f"{_TAG}int":
            check_integer(loader.construct_yaml_int(node))
    found = [_check_node(loader, part, extents) for part in inside]
    values, levels = 1 + sum(v for v, _ in found), max((1 + depth for _, depth in found), default=0)
    if values > MOST_VALUES:
        raise ValueError(f"it holds more than {MOST_VALUES} values, aliases (*) written out")
    if levels > DEEPEST:
        raise ValueError(TOO_DEEP)
    extents[id(node)] = values, levels
    return values, levels


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML file that holds a mapping; raises QdmrError where it is missing, unreadable or
    something else than a mapping."""
    try:
        with open_regular(path) as file:
            return yaml_mapping(file.read(LARGEST_YAML + 1), str(path))
    except FileNotFoundError:
        raise QdmrError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise QdmrError(f"{path}: cannot be read as YAML ({one_line(error)})") from error


def yaml_mapping(data: bytes | str, source: str) -> dict[str, Any]:
    """Returns the mapping in a YAML text; raises QdmrError, which starts with ``source``, where it
    is no YAML or something else than a mapping."""
    try:
        values = parse_yaml(data)
    except ValueError as error:
        raise QdmrError(f"{source}: cannot be read as YAML ({error})") from error
    if not isinstance(values, dict):
        raise QdmrError(f"{source}: holds no settings; write `name: value` lines")
    return values


def apply_override(values: dict[str, Any], override: str) -> None:
    """Applies ``a.b=value`` (the value as YAML) to nested plain values; raises SettingsError where
    the ``=`` is missing, the value is no YAML, or a section's name is that of a setting."""
    name, separator, text = override.partition("=")
    said = f"--set {printable(_short(override))}"
    if not separator or not name:
        raise SettingsError(f"{said}: write --set section.setting=value")
    try:
        value = parse_yaml(text)
    except ValueError as error:
        raise SettingsError(f"{said}: the value is no YAML ({error})") from None
    put_setting(values, name, value, said=said)


def put_setting(values: dict[str, Any], name: str, value: Any, *, said: str | None = None) -> None:
    """Puts the value of a dotted name into nested plain values; raises SettingsError, which starts
    with ``said``, where a section's name is that of a setting."""
    *sections, leaf = name.split(".")
    place = values
    for section in sections:
        inner = {} if place.get(section) is None else place[section]
        if not isinstance(inner, dict):
            raise SettingsError(f"{said or name}: {section} is a setting, not a section")
        # Copied, since an anchor in the file may have put the same section elsewhere, too.
        place[section] = dict(inner)
        place = place[section]
    place[leaf] = value


def check_known(place: str, name: str, section: Any) -> None:
    """Raises SettingsError, which starts with ``place``, where ``section`` has no setting of the
    dotted ``name``."""
    known = [setting for setting, _ in all_settings(section)]
    if name in known:
        return
    near = _nearest(name, {setting: setting for setting in known}, cutoff=0.7)
    near = near or _nearest(name.rpartition(".")[2], _by_last_part(known))
    hint = f"did you mean {near}?" if near else "see config.yaml of a run for all settings"
    raise SettingsError(f"{place}: unknown setting {name}; {hint}")


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested plain values by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def unfolded(place: str, values: Mapping[str, Any], section: Any) -> dict[str, Any]:
    """Returns settings by their dotted names, those in a section's mapping one by one, so that
    ``{"a": {"b": 1}}`` becomes ``{"a.b": 1}``. Raises SettingsError, which starts with ``place``,
    for an unknown one."""
    known = [setting for setting, _ in all_settings(section)]

    def unfold(prefix: str, values: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
        for key, value in values.items():
            if not isinstance(key, str):
                raise SettingsError(f"{place}: {key!r} is no name of a setting")
            name = f"{prefix}{key}"
            is_section = any(setting.startswith(f"{name}.") for setting in known)
            if name not in known and is_section and isinstance(value, Mapping):
                yield from unfold(f"{name}.", value)
            else:
                check_known(place, name, section)
                yield name, value

    return dict(unfold("", values))


def _nearest(name: str, known: Mapping[str, str], cutoff: float = 0.6) -> str | None:
    near = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    return known[near[0]] if near else None


def _by_last_part(names: Sequence[str]) -> dict[str, str]:
    return {name.rpartition(".")[2]: name for name in names}
