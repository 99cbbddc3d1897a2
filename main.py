"""Asyrp on the command line: flags -> settings -> runner. `python main.py --help` lists the flags."""

import logging
import sys

from asyrp.parsing import parse_args
from utils.errors import UserError


def main(argv=None):
    """Run the modes the flags ask for -> exit status: 0, or 2 after an error that the user can put right."""
    try:
        given, notices = parse_args(argv)
        logging.basicConfig(level=given.get("verbose", "info").upper(), format="%(message)s", force=True)
        for notice in notices:
            logging.warning(notice)
        # Imported here: torch takes seconds, and neither --help nor a wrong flag needs it.
        from asyrp.config import load_config
        from asyrp.runner import Asyrp
        from asyrp.settings import Settings

        Asyrp(Settings(given, load_config(given["config"]))).run()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; what was finished is kept, and the same command goes on from there", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
