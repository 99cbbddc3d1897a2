"""Errors that a user can cause."""

from utils.text import printable


class UserError(Exception):
    """An error that the user can fix. The message is one line: what is wrong, and what to do about it."""

    def __str__(self) -> str:
        # Paths, keys and messages of other programs may contain unprintable characters.
        return printable(super().__str__())


class Ended(Exception):
    """Exit with `status` and no message, because another process of the job reports the error."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class SettingsError(UserError, ValueError):
    """A setting that is missing, unknown, of the wrong type or out of range."""
