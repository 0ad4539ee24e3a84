"""``qdmr config``: every setting that there is, explained for people and for YAML editors."""

import dataclasses
import json
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from qdmr_ray.cli.options import OVERRIDES, App, argument, flag
from qdmr_ray.cli.output import say

app = App(
    "Train",
    "config",
    "Explain the settings of experiments and sweeps.",
    "config show experiments/demo.yaml",
)
_COMMENT_WIDTH = 100
_INDENT = "  "
_JSON_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", NoneType: "null"}
_DIALECT = "https://json-schema.org/draft/2020-12/schema"


@app.command("show", example="config show experiments/demo.yaml --set seed=1")
def show(
    experiment: Path = argument("EXPERIMENT.yaml", "An experiment, or a config.yaml."),
    overrides: list[str] | None = OVERRIDES,
) -> None:
    """Print every setting in force with its help, unit, limits and default.

    The output is YAML with comments: an experiment that trains the same.
    """
    from qdmr_ray.config import load_experiment

    settings = load_experiment(experiment, overrides or ())
    say(*_yaml_lines(settings, settings.to_dict()))


@app.command("schema", example="config schema --sweep")
def schema(
    experiment: Path | None = argument(
        "[EXPERIMENT.yaml]", "Include the settings of this experiment's plugins.", default=None
    ),
    sweep: bool = flag("--sweep", "Describe sweeps instead of experiments."),
) -> None:
    """Print a JSON schema with which YAML editors complete and check settings.

    Keep it in a file (qdmr config schema > FILE.json), and name that in the first line of a YAML
    file: # yaml-language-server: $schema=FILE.json
    """
    from qdmr_ray.config import VERSION_KEY, experiment_type, load_experiment
    from qdmr_ray.sweeps.plan import SweepSettings

    kind: type = SweepSettings
    if not sweep:
        kind = experiment_type() if experiment is None else type(load_experiment(experiment))
    described = {"$schema": _DIALECT, "title": kind.__name__, **_section_schema(kind)}
    if not sweep:
        # The sections under stages are the existing stages, plugins' included.
        stages = list(described["properties"]["stages"]["properties"])
        described["properties"]["run"]["items"]["enum"] = stages
        # This key stands in a run's config.yaml, which is an experiment as well.
        described["properties"] = {VERSION_KEY: {"type": "string"}, **described["properties"]}
    say(*json.dumps(described, indent=1, ensure_ascii=False).split("\n"))


def _yaml_lines(settings: Any, values: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Yields the lines of each setting, with comments about it above."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        is_section = dataclasses.is_dataclass(value)
        about = field.metadata["help"] if is_section else _about(field)
        width = _COMMENT_WIDTH - len(indent)
        yield ""
        yield from textwrap.wrap(
            about, width, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
        )
        if is_section:
            yield f"{indent}{field.name}:"
            yield from _yaml_lines(value, values[field.name], indent + _INDENT)
        else:
            yield from f"{indent}{field.name}: {_yaml_value(values[field.name])}".split("\n")


def _yaml_value(value: Any) -> str:
    text = _dumped(value, unicode=True)
    # Otherwise YAML's own escapes, which are read as what they stand for.
    return text if text.replace("\n", "").isprintable() else _dumped(value, unicode=False)


def _dumped(value: Any, *, unicode: bool) -> str:
    import yaml

    text: str = yaml.safe_dump(
        value, default_flow_style=True, allow_unicode=unicode, sort_keys=False, width=float("inf")
    )
    # A lone scalar is followed by a line that ends the document.
    return text.removesuffix("...\n").rstrip("\n")


def _about(field: dataclasses.Field[Any]) -> str:
    """Returns a setting's help, and in brackets its unit, limits, choices and default."""
    known = field.metadata
    notes = [known["unit"]] if known["unit"] else []
    for name, words in (("minimum", "at least"), ("above", "above"), ("maximum", "at most")):
        if known[name] is not None:
            notes.append(f"{words} {known[name]}")
    if known["choices"]:
        notes.append(f"one of {', '.join(map(str, known['choices']))}")
    default = _default(field)
    notes.append(f"default {json.dumps(default, ensure_ascii=False)}")
    return f"{known['help']} ({'; '.join(notes)})"


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return list(field.default) if isinstance(field.default, tuple) else field.default


def _section_schema(section: type) -> dict[str, Any]:
    """Returns the JSON schema of a dataclass of settings; a section may be empty."""
    hints = get_type_hints(section)
    properties = {
        field.name: _setting_schema(field, hints[field.name])
        for field in dataclasses.fields(section)
    }
    return {"type": ["object", "null"], "properties": properties, "additionalProperties": False}


def _setting_schema(field: dataclasses.Field[Any], hint: Any) -> dict[str, Any]:
    known = field.metadata
    described = {"description": known["help"], **_type_schema(hint)}
    if dataclasses.is_dataclass(hint):
        return described
    if known["unit"]:
        described["description"] += f" ({known['unit']})"
    limits = {
        "minimum": known["minimum"],
        "exclusiveMinimum": known["above"],
        "maximum": known["maximum"],
        "enum": list(known["choices"]) if known["choices"] else None,
    }
    limits = {name: limit for name, limit in limits.items() if limit is not None}
    if "items" in described:
        # On a list the limits are those of each item.
        described["items"] = {**described["items"], **limits}
    else:
        if "enum" in limits and NoneType in get_args(hint):
            limits["enum"].append(None)
        described |= limits
    return {**described, "default": _default(field)}


def _type_schema(hint: Any) -> dict[str, Any]:
    kind = get_origin(hint) or hint
    if kind in (Union, UnionType):
        kinds = [_type_schema(each) for each in get_args(hint)]
        if all(each.keys() == {"type"} and isinstance(each["type"], str) for each in kinds):
            return {"type": [each["type"] for each in kinds]}
        return {"anyOf": kinds}
    if kind in _JSON_TYPES:
        return {"type": _JSON_TYPES[kind]}
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _section_schema(kind)
    if kind is Literal:
        return {"enum": list(get_args(hint))}
    if kind is tuple:
        items = [each for each in get_args(hint) if each is not Ellipsis]
        fixed = {} if Ellipsis in get_args(hint) else {"minItems": len(items)}
        return {"type": "array", "items": _type_schema(items[0]), **fixed}
    return {"type": "object"} if kind is dict else {}
