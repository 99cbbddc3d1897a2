"""Download published weights to the paths in configs/paths_config.py, and the published directions to checkpoint/.

    python scripts/download.py --list
    python scripts/download.py celeba ir_se50
    python scripts/download.py deltas

Run the same command again to resume an interrupted download.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.terminal import catch_signals_early, guarded

if __name__ == "__main__":
    catch_signals_early()

import argparse
import logging
from contextlib import contextmanager

from asyrp.config import CONFIGS, load_config
from asyrp.directions import CHECKPOINTS
from configs.paths_config import FID_INCEPTION, IR_SE50, weight_file, weight_place
from utils.download import admit, fetch, parts, published_directions, recorded
from utils.errors import UserError
from utils.weights import DIRECTIONS_LISTING, DIRECTIONS_PAGE, PUBLISHED

DELTAS = "deltas"


def known_places():
    """{name: Place}: every config with published weights, and the networks for the identity loss and metrics."""
    configs = {path.stem: weight_place(load_config(str(path))) for path in sorted(CONFIGS.glob("*.yml"))}
    return {
        name: place
        for name, place in (configs | {place.name.lower(): place for place in (IR_SE50, FID_INCEPTION)}).items()
        if place.name in PUBLISHED
    }


def show(places):
    """Print a table of everything available, with state, size, licence and sources."""
    row = "{:<11} {:<24} {:>12}  {:<14} {}".format
    print(row("name", "state", "size", "licence", "file"))
    for name, place in places.items():
        published, path = PUBLISHED[place.name], weight_file(place)
        size = f"{path.stat().st_size / 1e6:,.0f} MB" if path.is_file() else f"~{4 * published.parameters / 1e6:,.0f} MB"
        print(row(name, state(path), size, published.licence or "see the page", path))
        for source in published.sources:
            print(f"            {source}")
        print(f"            page: {published.page}, file {published.file}")
    fetched = len(recorded(CHECKPOINTS))
    print(row(DELTAS, f"{fetched} present" if fetched else "missing", "", "see the page", CHECKPOINTS / "*.pth"))
    print(f"            {DIRECTIONS_LISTING}\n            page: {DIRECTIONS_PAGE}, folder checkpoint")


def state(path):
    if path.is_file():
        return "present"
    begun = sum(part.stat().st_size for part in parts(path))
    return f"incomplete ({begun / 1e6:,.1f} MB)" if begun else "missing"


def wanted(name, places):
    """A name -> list of (Published, path)."""
    if name == DELTAS:
        return [(published, CHECKPOINTS / file) for file, published in published_directions().items()]
    return [(PUBLISHED[places[name].name], weight_file(places[name]))]


def get(published, path):
    if path.is_file():
        admit(published, path)
        print(f"{path} already exists")
    else:
        fetch(published, path)
        print(f"{path}: {path.stat().st_size:,} bytes")


@contextmanager
def reported(failures):
    """Print a UserError and add it to `failures`, so that the remaining downloads still run."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        failures.append(error)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to download; see --list")
    parser.add_argument(
        "--list", action="store_true", help="list everything available: name, state, size, licence, file, sources"
    )
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    places = known_places()
    known = [*places, DELTAS]
    if not args.list and not args.names:
        parser.error(f"give names to download ({', '.join(known)}), or --list")
    if unknown := [name for name in args.names if name not in known]:
        parser.error(f"unknown name {unknown[0]}; the names are {', '.join(known)}")
    if args.list:
        show(places)
    failures = []
    for name in args.names:
        with reported(failures):
            for published, path in wanted(name, places):
                with reported(failures):
                    get(published, path)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(guarded(main))
