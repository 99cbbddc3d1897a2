"""A section of settings, as a YAML file or a caller gives it, checked against a dataclass: names, types and ranges."""

import math
import re
from dataclasses import MISSING, field, fields
from difflib import get_close_matches
from types import NoneType
from typing import get_args, get_origin, get_type_hints

from utils.errors import SettingsError

ANY = object()  # for `accepted`: whatever the value is
NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
LONGEST = 60  # characters of a faulty value that a message shows


def setting(default=MISSING, **limits):
    """A field of a dataclass of settings, with the limits that `checked` holds its value, or each of a list's, against.

    at_least, at_most, above, below: bounds of a number. choices, never: the values that are allowed, or are not.
    part_of_a_name: a text that becomes part of a file's name.
    """
    return field(default=default, metadata=limits)


def checked(kind, given, where, accepted=None, called=None):
    """A mapping (None: an empty one) -> an instance of the dataclass `kind`.

    Types are those of the fields' annotations: bool, int, float, str, tuples and dicts of them, and `| None`. An int is a float
    too, a text such as "1e-4" (which YAML 1.1 takes for one) is a number, a bool is none; nan and infinity are refused.

    where: what messages begin with, the file and the section. accepted: {key: values} that may stand there and change nothing,
    ANY for every value. called: {another name of a key: its name here}.
    Raises SettingsError, one line, for what is missing, unknown, of the wrong type or out of range.
    """
    accepted, called = accepted or {}, called or {}
    known = {f.name: f for f in fields(kind)}
    required = [f.name for f in known.values() if f.default is MISSING and f.default_factory is MISSING]
    if not isinstance(given, dict):
        if given is not None and not required:
            raise SettingsError(f"{where} is {_shown(given)}; keys and values are expected: compare configs/celeba.yml")
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
        raise SettingsError(f"{where} lacks {', '.join(missing)}; compare configs/celeba.yml")
    return kind(**values)


def one_name(given, same, where):
    """A mapping in which each key of `same` {other name: name here} has its name here. Raises SettingsError when both are given
    and differ."""
    renamed = dict(given)
    for other, name in same.items():
        if other in renamed:
            value = renamed.pop(other)
            if renamed.setdefault(name, value) != value:
                raise SettingsError(f"{where}: {other} and {name} are the same setting and differ: leave one out")
    return renamed


def nearest(name, names):
    """The name that a slip of the pen was meant to be."""
    return get_close_matches(str(name), names, n=1, cutoff=0.0)[0]


def _hint(key, names, called):
    return f"it is called {called[key]} here" if key in called else f"did you mean {nearest(key, names)}?"


def _check_accepted(key, value, allowed, where):
    # 1 == True, and a list cannot be looked up in a set.
    if allowed is not ANY and not any(value == a and type(value) is type(a) for a in allowed):
        raise SettingsError(f"{where}: {key} {_shown(value)} is not supported; it can only be {_listed(allowed)}")


def _fitting(kind, value, limits, where):
    """A value as `kind` has it, within its limits."""
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
    """What the limits want, when the value is outside; else ''."""
    if "choices" in limits and value not in limits["choices"]:
        return _listed(limits["choices"])
    if value in limits.get("never", ()):
        return f"another value than {_shown(value)}"
    if limits.get("part_of_a_name") and not _is_part_of_a_name(value):
        return "a name that a file can bear: no /, no \\, no leading dot"
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
    except ValueError:  # Python writes no number of more than 4300 digits; YAML's hexadecimal ones may have them
        text = "with a number of thousands of digits"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _listed(values):
    return " or ".join(_shown(value) for value in values)
