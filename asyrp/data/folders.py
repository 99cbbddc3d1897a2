"""What lies in a folder of images: the names of those that can be read, and a line about what is left out."""

import logging
import os
import re
from collections import Counter
from functools import cache
from pathlib import Path

from PIL import features

from utils.text import printable

log = logging.getLogger(__name__)

# Endings of images that Pillow reads, and the library that it needs for some of them.
KINDS = {
    **dict.fromkeys((".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tga", ".tif", ".tiff")),
    **{".avif": "avif", ".jp2": "jpg_2000", ".webp": "webp"},
}
EXTENSIONS = tuple(sorted(kind for kind, library in KINDS.items() if library is None or features.check(library)))
# Images of other kinds, which are left out with a word; other files are none of our business.
OTHERS = (".arw", ".cr2", ".cr3", ".dng", ".exr", ".heic", ".heif", ".hif", ".jxl", ".nef", ".orf", ".psd", ".raf", ".svg")
SHOWN = 3  # names in a message


@cache
def say_once(message):
    """Log a warning; another time, the same one is not logged."""
    log.warning("%s", message)


def is_lmdb(folder):
    return (Path(folder) / "data.mdb").is_file()


def image_names(folder):
    """Names of the images directly in a folder, sorted; [] for what is no folder.

    What looks like an image and is left out is said once: kinds that Pillow does not read here, and names that stand for
    something else than a file (a pipe, a device, a folder, a link that leads nowhere), which nobody must wait for.
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
        say_once(
            f"{printable(folder)}: left out are {kinds}, which Pillow does not read here; save them as .png or .jpg to use them"
        )
    if irregular:
        say_once(f"{printable(folder)}: left out is what is no file ({_some(sorted(irregular))})")
    return sorted(names)


def _is_file(entry):
    try:
        return entry.is_file()
    except OSError:  # a link that leads to itself
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

    Links to folders are followed, each folder once, so that a link that leads upward has no end of images.
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
    """Sorted names of the folders in a folder; [] for what is no folder."""
    folder = Path(folder)
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def what_lies_at(path):
    """What a path leads to, in a few words, for an error that wanted something else there."""
    path = Path(path)
    if not os.path.lexists(path):
        return "there is no such folder"
    if not path.is_dir():
        return "it is a file, no folder" if path.is_file() else "it is no folder"
    if is_lmdb(path):
        return "it is an LMDB itself"
    folders = [f"{name} (an LMDB)" if is_lmdb(path / name) else name for name in subfolders(path)]
    found = [f"{n} images"] if (n := len(image_names(path))) else []
    found += [f"the folders {_some(folders)}" if len(folders) > 1 else f"the folder {folders[0]}"] if folders else []
    return f"it holds {' and '.join(found)}" if found else "it holds no images and no folders"


def _some(names):
    return ", ".join(map(printable, names[:SHOWN])) + (", ..." if len(names) > SHOWN else "")
