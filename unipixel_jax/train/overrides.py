"""Parses the fields of a configuration as arguments of a command: ``--optim.learning-rate 1e-4 --trained seg sam2 --no-dropout``."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

T = TypeVar("T")

_ATTRIBUTE = re.compile(r"^    (\w[\w, ]*): (.*(?:\n {5,}.*)*)", re.MULTILINE)


def override(config: T, arguments: Sequence[str], prog: str) -> T:
    """Return a configuration with other values for some fields.

    Args:
        config: a frozen dataclass; fields that are dataclasses have their own fields, after a dot.
        arguments: ``--FIELD VALUE``, hyphens or underscores in names; ``None`` is a value where a field may be None. ``--help`` lists all.
        prog: how the command is called, for its messages.

    Raises:
        SystemExit: an unknown field or a wrong value, after an explanation; or ``--help``.
    """
    usage = "%(prog)s [--help] [--FIELD VALUE ...]"
    parser = argparse.ArgumentParser(prog, usage, "Other values for fields of the configuration.", allow_abbrev=False, argument_default=argparse.SUPPRESS)
    _add_fields(parser, config, "")
    found, rest = parser.parse_known_args([_hyphened(argument) for argument in arguments])
    if rest:
        known = [option for action in parser._actions for option in action.option_strings]
        near = difflib.get_close_matches(rest[0].partition("=")[0], known, n=1)
        parser.error(f"there is no field {rest[0]}" + (f", did you mean {near[0]}?" if near else "; --help lists all"))
    return _replaced(config, vars(found), "")


def _hyphened(argument: str) -> str:
    """Write the name of an option with hyphens for underscores."""
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else argument


def _add_fields(parser: argparse.ArgumentParser, config: Any, prefix: str) -> None:
    hints, described = typing.get_type_hints(type(config)), _descriptions(type(config))
    group = parser.add_argument_group(f"fields of {prefix.rstrip('.')}" if prefix else "fields")
    for spec in dataclasses.fields(config):
        value, name = getattr(config, spec.name), prefix + spec.name
        option, shown = _option(name), " ".join(map(str, value)) if isinstance(value, tuple) else value
        text = f"{described.get(spec.name, '')} (now: {shown})".replace("%", "%%")
        if dataclasses.is_dataclass(value):
            _add_fields(parser, value, f"{name}.")
        elif hints[spec.name] is bool:
            group.add_argument(option, dest=name, action="store_true", help=text)
            group.add_argument(_option(f"{prefix}no-{spec.name}"), dest=name, action="store_false", help=f"the contrary of {option}")
        elif (options := _options(hints[spec.name])) is not None:
            group.add_argument(option, dest=name, help=text, **options)


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _options(hint: Any) -> dict[str, Any] | None:
    """Return argparse's options for a field's type; None for a type that cannot be written as text, such as a configuration in place of None."""
    if typing.get_origin(hint) is tuple:
        inner, *others = typing.get_args(hint)
        options = _options(inner)
        return options and {**options, "nargs": "*" if others == [...] else 1 + len(others)}
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kind, *others = (kind for kind in kinds if kind is not types.NoneType)
    may_be_none = len(kinds) > 1
    if typing.get_origin(kind) is Literal:
        return {"choices": typing.get_args(kind)}
    if others or kind not in (int, float, str):
        return None
    return {"type": _or_none(kind) if may_be_none else kind, "metavar": kind.__name__.upper()}


def _or_none(kind: type) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        return None if text == "None" else kind(text)

    read.__name__ = f"{kind.__name__} or None"  # as argparse calls it where it is wrong
    return read


def _descriptions(cls: type) -> dict[str, str]:
    """Return the description of each field from the docstring's section of attributes."""
    section = (inspect.getdoc(cls) or "").partition("Attributes:\n")[2]
    return {name.strip(): " ".join(text.split()) for names, text in _ATTRIBUTE.findall(section) for name in names.split(",")}


def _replaced(config: T, values: Mapping[str, Any], prefix: str) -> T:
    changes: dict[str, Any] = {}
    for spec in dataclasses.fields(config):  # type: ignore[arg-type]
        value, name = getattr(config, spec.name), prefix + spec.name
        if dataclasses.is_dataclass(value):
            if (changed := _replaced(value, values, f"{name}.")) is not value:
                changes[spec.name] = changed
        elif name in values:
            changes[spec.name] = tuple(values[name]) if isinstance(values[name], list) else values[name]
    return dataclasses.replace(config, **changes) if changes else config  # type: ignore[type-var]
