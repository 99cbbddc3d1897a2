"""Errors that a user can cause."""

from utils.text import printable


class UserError(Exception):
    """Something the user can put right. Its message is one plain line: what is wrong, and what to do about it."""

    def __str__(self):
        # A path, a key or another program's words in it may hold anything.
        return printable(super().__str__())


class Ended(Exception):
    """The program ends with `status`, and without a word: another process of the same job has said it, or will."""

    def __init__(self, status):
        super().__init__(status)
        self.status = status


class SettingsError(UserError, ValueError):
    """A setting that is missing, unknown, of the wrong type or out of its range."""
