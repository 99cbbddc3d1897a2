"""Errors that a user can cause."""


class UserError(Exception):
    """Something the user can put right. Its message is one plain line: what is wrong, and what to do about it."""


class SettingsError(UserError, ValueError):
    """A setting that is missing, unknown, of the wrong type or out of its range."""
