"""Errors that a user can cause."""


class UserError(Exception):
    """Something the user can put right. Its message is one plain line: what is wrong, and what to do about it."""
