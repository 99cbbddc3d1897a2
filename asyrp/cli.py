"""The command line: flags -> settings -> runner. `python main.py` in the repository, `asyrp` where the project is installed."""

import os
import sys

STOPPED = (
    "stopped; latents, finished epochs and measured curves are kept: run the same command to resume; "
    "a test redoes its pictures and metrics"
)


def command():
    """Run `main` and exit with its status: the entry point of the program."""
    try:
        status = main()
    except KeyboardInterrupt:  # while modules are still being imported
        print(STOPPED, file=sys.stderr)
        status = 130
    if status > 128:
        # Stopped by a signal: do not wait for threads that are still reading or drawing.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def main(argv=None):
    """Run the requested modes -> exit status: 0, or 2 after an error that the user can fix."""
    from utils.terminal import guarded

    return guarded(run, argv, STOPPED)


def run(argv):
    import logging

    from asyrp.parsing import parse_args
    from asyrp.ranks import together

    with together() as ranks:
        given, notices = parse_args(argv)
        logging.basicConfig(level=given.get("verbose", "info").upper(), format="%(message)s", force=True)
        ranks.join(given.get("device"), given.get("slurm_array", False))
        for notice in notices:
            logging.warning(notice)
        # Imported here because torch takes seconds to load, and neither --help nor a wrong flag needs it.
        from asyrp.config import load_config
        from asyrp.runner import Asyrp
        from asyrp.settings import Settings

        Asyrp(Settings(given, load_config(given["config"])), ranks).run()
