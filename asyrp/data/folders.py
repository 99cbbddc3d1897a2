"""List the readable images in a folder, with a warning about files that are skipped."""

import logging
import os
import re
from collections import Counter
from functools import cache
from pathlib import Path

from PIL import features

from utils.text import printable

log = logging.getLogger(__name__)

# Suffixes of images that Pillow reads, and the optional library it needs for some of them.
KINDS = {
    **dict.fromkeys((".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tga", ".tif", ".tiff")),
    **{".avif": "avif", ".jp2": "jpg_2000", ".webp": "webp"},
}
EXTENSIONS = tuple(sorted(kind for kind, library in KINDS.items() if library is None or features.check(library)))
# Suffixes of images that are skipped with a warning; other files are ignored.
OTHERS = (".arw", ".cr2", ".cr3", ".dng", ".exr", ".heic", ".heif", ".hif", ".jxl", ".nef", ".orf", ".psd", ".raf", ".svg")
SHOWN = 3  # most names in a message


@cache
def say_once(message):
    """Log a warning the first time only."""
    log.warning("%s", message)


def is_lmdb(folder):
    return (Path(folder) / "data.mdb").is_file()


def image_names(folder):
    """Sorted names of the images directly in a folder; [] if it is not a folder.

    Warns once about images that are skipped: those of a kind that this Pillow cannot read, and those that are not regular
    files (pipes, devices, folders, broken links), because reading them could block.
    """
    if not Path(folder).is_dir():
        return []
    names, irregular, others = [], [], Counter()
    with os.scandir(folder) as entries:
        for entry in entries:
            ending = os.path.splitext(entry.name)[1].lower()
            if ending in EXTENSIONS and _is_file(entry):
                names.append(entry.name)
            elif ending in EXTENSIONS:
                irregular.append(entry.name)
            elif ending in KINDS or ending in OTHERS:
                others[ending] += 1
    if others:
        kinds = ", ".join(f"{n} {ending}" for ending, n in sorted(others.items()))
        say_once(f"{printable(folder)}: skipped {kinds}, which Pillow cannot read here; save them as .png or .jpg to use them")
    if irregular:
        say_once(f"{printable(folder)}: skipped names that are not files ({_some(sorted(irregular))})")
    return sorted(names)


def _is_file(entry):
    try:
        return entry.is_file()
    except OSError:  # a link to itself
        return False


def names_within(folder, pattern=None):
    """Sorted names, relative to `folder`, of its images and of those in its sub-folders that match `pattern`."""
    names = image_names(folder)
    for sub in subfolders(folder) if pattern else []:
        if re.fullmatch(pattern, sub):
            names += [f"{sub}/{name}" for name in image_names(Path(folder) / sub)]
    return names


def names_below(folder):
    """Sorted names, relative to `folder`, of its images and of those in all its sub-folders.

    Links to folders are followed, but each folder is visited only once, so that a link to a parent folder causes no loop.
    """
    folder, names, seen = Path(folder), [], set()
    for place, inside, _ in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            inside.clear()
            continue
        seen.add(real)
        names += [str((Path(place) / name).relative_to(folder)) for name in image_names(place)]
    return sorted(names)


def subfolders(folder):
    """Sorted names of the folders in a folder; [] if it is not a folder."""
    folder = Path(folder)
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def what_is_at(path):
    """Describe in a few words what is at a path, for an error that expected something else there."""
    path = Path(path)
    if not os.path.lexists(path):
        return "there is no such folder"
    if not path.is_dir():
        return "it is a file, not a folder" if path.is_file() else "it is not a folder"
    if is_lmdb(path):
        return "it is an LMDB"
    folders = [f"{name} (an LMDB)" if is_lmdb(path / name) else name for name in subfolders(path)]
    found = [f"{n} images"] if (n := len(image_names(path))) else []
    found += [f"the folders {_some(folders)}" if len(folders) > 1 else f"the folder {folders[0]}"] if folders else []
    return f"it contains {' and '.join(found)}" if found else "it contains no images and no folders"


def _some(names):
    return ", ".join(map(printable, names[:SHOWN])) + (", ..." if len(names) > SHOWN else "")
