"""Asyrp on the command line: flags -> configuration -> runner. `python main.py --help` lists the flags."""

import logging
import sys

from asyrp.config import load_config
from utils.errors import UserError
from asyrp.options import parse_args
from asyrp.runner import Asyrp


def main(argv=None):
    """Run the modes the flags ask for -> exit status: 0, or 2 after an error that the user can put right."""
    try:
        args, notices = parse_args(argv)
        logging.basicConfig(level=args.verbose.upper(), format="%(message)s", force=True)
        for notice in notices:
            logging.warning(notice)
        Asyrp(args, load_config(args.config)).run()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; what was finished is kept, and the same command goes on from there", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
