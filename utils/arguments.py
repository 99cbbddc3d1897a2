"""argparse types for the flags of scripts: numbers with a range. The flags of main.py are in asyrp/options.py."""

import argparse
import math

MANY = 10**9  # stands for "no upper limit"


def whole(low, high=MANY):
    """An argparse type for whole numbers from `low` to `high`."""
    return _number(int, low, high)


def real(low, high=MANY):
    """An argparse type for finite numbers from `low` to `high`."""
    return _number(float, low, high)


def _number(kind, low, high):
    def read(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            range_ = f"{low} or more" if high == MANY else f"{low} to {high}"
            raise argparse.ArgumentTypeError(f"{text} is not a {'whole ' if kind is int else ''}number of {range_}")
        return value

    return read
