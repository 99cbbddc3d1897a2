"""Digests of the images' pixels, so that a run that has all its latents does not have to decode images to find them."""

import json
import logging
from contextlib import suppress
from pathlib import Path

from utils.digests import digest
from utils.files import ordinary
from utils.terminal import line_of

log = logging.getLogger(__name__)


class PixelIndex:
    """The digest of every image of a dataset that was read, looked up by name, size in bytes and modification time.

    One file per folder of images, image size and alignment; one line per image. Damaged lines are ignored and their images
    decoded again; a file that cannot be written only costs time.
    """

    def __init__(self, dataset, folder):
        self.dataset = dataset
        name = digest("pixels", str(Path(dataset.folder).resolve()), dataset.image_size, dataset.align is not None)
        self.path = Path(folder) / f"{name}.jsonl"
        self.known, self.full = self._read(), False

    def refresh(self):
        """Read what other processes have added."""
        self.known |= self._read()

    def _read(self):
        known = {}
        with suppress(OSError), ordinary(self.path).open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                with suppress(ValueError, TypeError):
                    name, size, changed, pixels = json.loads(line)
                    known[name] = (size, changed, pixels)
        return known

    def get(self, i):
        """The digest of image i, or None if it is unknown or the file has changed."""
        size, changed, pixels = self.known.get(self.dataset.name(i), (None, None, None))
        return pixels if pixels is not None and (size, changed) == self.dataset.stamp(i) else None

    def add(self, indices, pixels):
        """Add the digests of images."""
        rows = []
        for i, text in zip(indices, pixels, strict=True):
            if self.get(i) != text and (stamp := self.dataset.stamp(i)) is not None:
                self.known[self.dataset.name(i)] = (*stamp, text)
                rows.append(json.dumps([self.dataset.name(i), *stamp, text]) + "\n")
        if rows and not self.full:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with ordinary(self.path).open("a", encoding="utf-8") as stream:
                    stream.write("".join(rows))
            except OSError as error:
                self.full = True
                log.warning("images will be decoded again in the next run: %s", line_of(error))
