"""Asyrp on the command line; `python main.py --help` lists the flags. Its code is in asyrp/cli.py."""

from utils.terminal import catch_signals_early

if __name__ == "__main__":
    catch_signals_early()

from asyrp.cli import STOPPED, command, main

__all__ = ["STOPPED", "command", "main"]

if __name__ == "__main__":
    command()
