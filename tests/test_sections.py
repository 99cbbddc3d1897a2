"""Checked settings: what utils/sections.py takes, and what it refuses in one line."""

from dataclasses import dataclass

import pytest

from utils.errors import SettingsError, UserError
from utils.sections import ANY, checked, one_name, setting


@dataclass(frozen=True)
class Section:
    name: str = setting(part_of_a_name=True)
    rate: float = setting(0.5, above=0, below=1)
    steps: int = setting(40, at_least=0, at_most=100, never=(1,))
    kind: str = setting("a", choices=("a", "b"))
    flip: bool = False
    sizes: tuple[int, ...] = setting((), at_least=2)
    aims: dict[str, tuple[str, str]] | None = None
    maybe: float | None = setting(None, at_least=0)


ACCEPTED = {"channels": (3,), "rescaled": (True,), "workers": ANY}
CALLED = {"num_steps": "steps"}


def read(**given):
    return checked(Section, {"name": "x", **given}, "mine.yml: section 'data'", ACCEPTED, CALLED)


def refused(given, complaint):
    with pytest.raises(SettingsError, match=complaint) as caught:
        checked(Section, given, "mine.yml: section 'data'", ACCEPTED, CALLED)
    assert isinstance(caught.value, UserError) and isinstance(caught.value, ValueError)
    message = str(caught.value)
    assert "\n" not in message and message.startswith("mine.yml: section 'data'") and len(message) < 250


def test_defaults_are_taken_for_what_is_not_given():
    assert read() == Section(name="x", rate=0.5, steps=40, kind="a", flip=False, sizes=(), aims=None, maybe=None)


@pytest.mark.parametrize(
    ("key", "given", "taken"),
    [
        ("rate", "1e-4", 1e-4),  # as YAML 1.1 reads 1e-4
        ("rate", ".5", 0.5),
        ("steps", "4e1", 40),
        ("steps", 40.0, 40),
        ("steps", 0, 0),
        ("steps", 100, 100),
        ("maybe", 3, 3.0),
        ("maybe", None, None),
        ("sizes", [2, 16], (2, 16)),
        ("sizes", (4,), (4,)),
        ("aims", {"smiling": ["expression", "smiling"]}, {"smiling": ("expression", "smiling")}),
        ("name", "häuser 2.0", "häuser 2.0"),
    ],
)
def test_values_of_the_right_kind(key, given, taken):
    found = getattr(read(**{key: given}), key)
    assert found == taken
    assert type(found) is type(taken)


@pytest.mark.parametrize(
    ("key", "given", "complaint"),
    [
        ("rate", True, "rate true: must be a number"),
        ("rate", "fast", "rate 'fast': must be a number"),
        ("rate", None, "rate null: must be a number"),
        ("rate", [0.1], "must be a number"),
        ("rate", float("nan"), "rate nan: must be a number"),
        ("rate", "nan", "must be a number"),
        ("maybe", float("inf"), "must be a number"),
        ("maybe", "1e999", "must be a number"),
        ("maybe", 10**400, "must be a number"),
        pytest.param("maybe", 16**4000, "must be a number", id="digits"),
        ("rate", 0, r"rate 0\.0: must be above 0 and below 1"),
        ("rate", 1.0, "must be above 0 and below 1"),
        ("maybe", -0.1, r"maybe -0\.1: must be 0 or more"),
        ("steps", 2.5, r"steps 2\.5: must be a whole number"),
        ("steps", True, "must be a whole number"),
        ("steps", 1, "steps 1: must be another value than 1"),
        ("steps", 101, "must be 0 or more and at most 100"),
        ("steps", -1, "must be 0 or more and at most 100"),
        ("flip", 1, "flip 1: must be true or false"),
        ("flip", "yes", "flip 'yes': must be true or false"),
        ("kind", "c", "kind 'c': must be 'a' or 'b'"),
        ("sizes", 16, "sizes 16: must be a list"),
        ("sizes", "16, 8", "must be a list"),
        ("sizes", [16, 1], "sizes 1: must be 2 or more"),
        ("sizes", [16, True], "must be a whole number"),
        ("aims", {"beard": ["beard", True]}, r"aims: beard true: must be text \(in quotes\)"),
        ("aims", {"beard": ["beard"]}, "aims: beard .*must be a list of 2"),
        ("aims", ["beard"], "must be keys and values"),
        ("aims", {True: ["a", "b"]}, "must be text"),
        ("name", 7, "name 7: must be text"),
        ("name", "../up", "must be valid in a file name"),
        ("name", "a/b", "must be valid in a file name"),
        ("name", "a\\b", "must be valid in a file name"),
        ("name", "..", "must be valid in a file name"),
        ("name", " ", "must be valid in a file name"),
        ("name", "a\nb", "must be valid in a file name"),
        ("name", "a" * 1000 + "/", "must be valid in a file name"),
        ("stpes", 4, "unknown key 'stpes'; did you mean steps"),
        ("num_steps", 4, "unknown key 'num_steps'; it is called steps here"),
        (7, 4, "unknown key 7; did you mean"),
        (None, 4, "unknown key null; did you mean"),
        ("line\nbreak", 4, "unknown key"),
        ("channels", 4, "channels 4 is not supported: it must be 3"),
        ("rescaled", 1, "rescaled 1 is not supported: it must be true"),
        ("channels", [3], "not supported"),
    ],
)
def test_values_that_are_refused(key, given, complaint):
    refused({"name": "x", key: given}, complaint)


def test_what_is_missing_is_named():
    for given in (None, {}, {"rate": 0.1}, "name", ["name"]):
        refused(given, "has no name: compare")


def test_section_without_keys_is_none():
    @dataclass
    class Optional:
        rate: float = 0.5

    for given in ("text", [1], 3):
        with pytest.raises(SettingsError, match="must have keys and values"):
            checked(Optional, given, "x.yml: section 'a'")


def test_accepted_keys_change_nothing():
    assert read(channels=3, rescaled=True, workers={"any": "thing"}) == read()


def test_two_names_of_one_setting():
    same = {"conv_resample": "resamp_with_conv"}
    assert one_name({"conv_resample": False}, same, "x") == {"resamp_with_conv": False}
    assert one_name({"conv_resample": True, "resamp_with_conv": True}, same, "x") == {"resamp_with_conv": True}
    with pytest.raises(SettingsError, match="the same setting but differ"):
        one_name({"conv_resample": True, "resamp_with_conv": False}, same, "x")
