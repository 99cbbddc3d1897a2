"""Text that goes to a terminal, a page or a message: one line of it, and nothing that cannot be printed."""

import os
from contextlib import suppress


def one_line(error):
    """An error's message as one printable line; the error's type where it has no message."""
    return printable(" ".join(str(error).split())) or type(error).__name__


def printable(text):
    """Text of any origin, such as a file's name, as one line of valid text: what cannot be printed is written as an escape, a
    byte that is no UTF-8 as \\xff. A name is read as UTF-8 whatever the locale is."""
    text = str(text)
    with suppress(UnicodeError):
        text = os.fsencode(text).decode("utf-8", "surrogateescape")
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(c):
    # Python reads such a byte of a name as a lone surrogate (os.fsdecode).
    return f"\\x{ord(c) - 0xDC00:02x}" if "\udc80" <= c <= "\udcff" else c.encode("unicode_escape").decode()
