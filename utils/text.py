"""Text for messages, terminals and pages: one line without unprintable characters."""

import os
from contextlib import suppress


def one_line(error: BaseException | str) -> str:
    """The message of an error as one printable line, or its type if it has no message."""
    return printable(" ".join(str(error).split())) or type(error).__name__


def printable(text: object) -> str:
    """Any text, such as a file name, as one line of valid text: unprintable characters are escaped, and so are bytes that are
    not UTF-8, as \\xff. Names are decoded as UTF-8 in any locale."""
    text = str(text)
    with suppress(UnicodeError):
        text = os.fsencode(text).decode("utf-8", "surrogateescape")
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(c: str) -> str:
    # os.fsdecode represents such a byte as a lone surrogate.
    return f"\\x{ord(c) - 0xDC00:02x}" if "\udc80" <= c <= "\udcff" else c.encode("unicode_escape").decode()
