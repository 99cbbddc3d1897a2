"""Validate a section of settings, from a YAML file or a caller, against a dataclass: names, types and ranges."""

import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, field, fields
from difflib import get_close_matches
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

from utils.errors import SettingsError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ANY = object()  # for `accepted`: any value
NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
Section = TypeVar("Section", bound="DataclassInstance")
LONGEST = 60  # most characters of an invalid value in a message


def setting(default: Any = MISSING, **limits: Any) -> Any:
    """A field of a settings dataclass, with limits that `checked` applies to its value, or to each value of a list.

    at_least, at_most, above, below: bounds of a number. choices, never: allowed or forbidden values. part_of_a_name: a string
    that becomes part of a file name.
    """
    return field(default=default, metadata=limits)


def checked(
    kind: type[Section],
    given: Any,
    where: object,
    accepted: Mapping[str, Any] | None = None,
    called: Mapping[str, str] | None = None,
) -> Section:
    """Validate a mapping (None: empty) -> an instance of the dataclass `kind`.

    Types are those of the annotations: bool, int, float, str, tuples and dicts of them, and `| None`. An int is accepted as a
    float, and so is a string such as "1e-4", which YAML 1.1 does not parse as a number; a bool, nan and infinity are not.

    where: prefix of messages, the file and the section. accepted: {key: values} that are allowed and ignored, ANY for any
    value. called: {other name of a key: its name here}, for hints.
    Raises SettingsError, one line, for a setting that is missing, unknown, of the wrong type or out of range.
    """
    accepted, called = accepted or {}, called or {}
    known = {f.name: f for f in fields(kind)}
    required = [f.name for f in known.values() if f.default is MISSING and f.default_factory is MISSING]
    if not isinstance(given, dict):
        if given is not None and not required:
            raise SettingsError(f"{where} is {_shown(given)}, but must have keys and values: compare configs/celeba.yml")
        given = {}
    missing = [name for name in required if name not in given]
    values, hints = {}, get_type_hints(kind)
    for key, value in given.items():
        if key in known:
            values[key] = _fitting(hints[key], value, known[key].metadata, f"{where}: {key}")
        elif key in accepted:
            _check_accepted(key, value, accepted[key], where)
        else:
            raise SettingsError(f"{where}: unknown key {_shown(key)}; {_hint(key, [*known, *accepted], called)}")
    if missing:
        raise SettingsError(f"{where} has no {', '.join(missing)}: compare configs/celeba.yml")
    return kind(**values)


def one_name(given, same, where):
    """Rename the keys of a mapping by `same` {other name: name here}. Raises SettingsError if both are given and differ."""
    renamed = dict(given)
    for other, name in same.items():
        if other in renamed:
            value = renamed.pop(other)
            if renamed.setdefault(name, value) != value:
                raise SettingsError(f"{where}: {other} and {name} are the same setting but differ: leave one out")
    return renamed


def nearest(name, names):
    """The known name closest to a misspelled one."""
    return get_close_matches(str(name), names, n=1, cutoff=0.0)[0]


def _hint(key, names, called):
    return f"it is called {called[key]} here" if key in called else f"did you mean {nearest(key, names)}?"


def _check_accepted(key, value, allowed, where):
    # Also compare types, because 1 == True.
    if allowed is not ANY and not any(value == a and type(value) is type(a) for a in allowed):
        raise SettingsError(f"{where}: {key} {_shown(value)} is not supported: it must be {_listed(allowed)}")


def _fitting(kind, value, limits, where):
    """Convert a value to `kind` and check its limits. Raises SettingsError."""
    origin, inner = get_origin(kind), get_args(kind)
    if NoneType in inner:
        [kind] = [k for k in inner if k is not NoneType]
        return None if value is None else _fitting(kind, value, limits, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _wrong(value, where, "a list")
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else inner
        if len(kinds) != len(value):
            raise _wrong(value, where, f"a list of {len(kinds)}")
        return tuple(_fitting(k, v, limits, where) for k, v in zip(kinds, value, strict=True))
    if origin is dict:
        if not isinstance(value, dict):
            raise _wrong(value, where, "keys and values")
        return {_fitting(inner[0], k, {}, where): _fitting(inner[1], v, limits, f"{where}: {k}") for k, v in value.items()}
    if kind in (int, float):
        value = _number(kind, value, where)
    elif not isinstance(value, kind):
        raise _wrong(value, where, "true or false" if kind is bool else "text (in quotes)")
    if fault := _outside(value, limits):
        raise _wrong(value, where, fault)
    return value


def _number(kind, value, where):
    if isinstance(value, str) and NUMBER.fullmatch(value):
        value = float(value)
    wanted = "a whole number" if kind is int else "a number"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(value, where, wanted)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or (kind is int and number != int(number)):
        raise _wrong(value, where, wanted)
    return int(value) if kind is int else number


def _outside(value, limits):
    """The violated limit in words, or ''."""
    if "choices" in limits and value not in limits["choices"]:
        return _listed(limits["choices"])
    if value in limits.get("never", ()):
        return f"another value than {_shown(value)}"
    if limits.get("part_of_a_name") and not _is_part_of_a_name(value):
        return "valid in a file name: no /, no \\, no leading dot"
    bounds = {
        "at_least": (lambda bound: value >= bound, "{} or more"),
        "above": (lambda bound: value > bound, "above {}"),
        "at_most": (lambda bound: value <= bound, "at most {}"),
        "below": (lambda bound: value < bound, "below {}"),
    }
    given = {name: limits[name] for name in bounds if name in limits}
    if all(bounds[name][0](bound) for name, bound in given.items()):
        return ""
    return " and ".join(bounds[name][1].format(bound) for name, bound in given.items())


def _is_part_of_a_name(text):
    return bool(text.strip()) and text.isprintable() and not text.startswith(".") and not set(text) & set("/\\")


def _wrong(value, where, wanted):
    return SettingsError(f"{where} {_shown(value)}: must be {wanted}")


def _shown(value):
    if value is None or isinstance(value, bool):
        return {True: "true", False: "false", None: "null"}[value]
    try:
        text = repr(value)
    except ValueError:  # Python cannot print integers of more than 4300 digits, which hexadecimal YAML can contain
        text = "with a number of thousands of digits"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _listed(values):
    return " or ".join(_shown(value) for value in values)
