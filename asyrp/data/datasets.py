"""Images on disk -> tensors in [-1, 1]: files in a folder, or values in an LMDB.

The interface of a dataset: `len(dataset)`, `dataset[i]`, `dataset.name(i)`, `dataset.folder`.
"""

import io
import struct
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import IO

import lmdb
import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.utils.data import Dataset
from torchvision.transforms import v2

from asyrp.data.folders import EXTENSIONS, image_names, is_lmdb, names_below, say_once, what_is_at
from utils.errors import UserError
from utils.files import stamp
from utils.text import one_line, printable

# Pillow warns about large images, palettes with transparency and damaged metadata; it reads them all the same.
warnings.filterwarnings("ignore", module=r"PIL\.")
# Errors that Pillow raises for damaged files; the last two come from EXIF data.
DAMAGED = (OSError, SyntaxError, ValueError, Image.DecompressionBombError, TypeError, struct.error)


Align = Callable[[Image.Image], Image.Image | None]  # an RGB image -> the aligned face, or None if there is none


class UnreadableImage(Exception):
    """An image that cannot be used; the message names it."""


def upright_rgb(image: Image.Image) -> Image.Image:
    """PIL image of any mode -> RGB, rotated as its EXIF data says, on a white background if it is transparent.

    Raises ValueError for greyscale images of more than 16 bits, whose white level is unknown.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        pixels = np.asarray(image)
        if image.mode == "F" or pixels.min() < 0 or pixels.max() >= 2**16:
            raise ValueError("32-bit greyscale; save it with 8 or 16 bits")
        # Pillow would clip at 255.
        image = Image.fromarray((pixels >> 8).astype(np.uint8))
    if is_transparent(image):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def is_transparent(image: Image.Image) -> bool:
    """Whether any pixel of a PIL image is transparent."""
    return image.has_transparency_data and bool((np.asarray(image.convert("RGBA"))[..., 3] < 255).any())


def to_unit_range(image: Image.Image, size: int) -> torch.Tensor:
    """RGB image of any shape -> float tensor (3, size, size) in [-1, 1].

    The shorter side is resized (bilinear, antialiased), then the centre is cropped.
    """
    pixels = v2.functional.pil_to_tensor(image)
    if min(pixels.shape[1:]) != size:
        pixels = v2.functional.resize(pixels, [size], antialias=True)
    return v2.functional.center_crop(pixels, [size]).float().div(127.5).sub(1)


ImageAndMessages = tuple[torch.Tensor | None, list[str]]


class Images(Dataset[torch.Tensor]):
    """Base class of both kinds: dataset[i] -> (3, image_size, image_size) in [-1, 1].

    Raises UnreadableImage, which names the image. align: function of an RGB image -> the aligned face, or None if there is
    none.
    """

    def __init__(self, folder: Path | str, image_size: int, align: Align | None = None) -> None:
        self.folder, self.image_size, self.align = Path(folder), image_size, align

    def __len__(self) -> int:
        raise NotImplementedError

    def name(self, i: int) -> str:
        """The name of image i, for messages and reports."""
        raise NotImplementedError

    def encoded(self, i: int) -> Path | IO[bytes]:
        """Path or stream of image i, for Pillow to open."""
        raise NotImplementedError

    def stamp(self, i: int) -> tuple[int, int] | None:
        """(size in bytes, modification time in ns) of the file that contains image i, or None if there is none."""
        with suppress(OSError):
            return stamp(self.folder / self.file(i))
        return None

    def file(self, i: int) -> str:
        """The file that contains image i, relative to the folder."""
        return self.name(i)

    def __getitem__(self, i: int) -> torch.Tensor:
        path = printable(self.folder / self.name(i))
        try:
            with Image.open(self.encoded(i)) as opened:
                if is_transparent(opened):
                    say_once(f"{printable(self.folder)}: transparent images are shown on white")
                image = upright_rgb(opened)
        except DAMAGED as error:
            reason = "unknown format" if isinstance(error, UnidentifiedImageError) else one_line(error)
            raise UnreadableImage(f"{path} cannot be read as an image ({reason})") from error
        aligned = self.align(image) if self.align else image
        if aligned is None:
            raise UnreadableImage(f"{path} cannot be aligned: no face was found")
        return to_unit_range(aligned, self.image_size)


# ---- files --------------------------------------------------------------------------------------------------------------


class ImageFolder(Images):
    """The images of one folder, sorted by name, or those listed in `names` (relative to it). recursive: include sub-folders.

    Raises UserError if the folder is missing or has no images.
    """

    def __init__(
        self,
        folder: Path | str,
        image_size: int,
        names: list[str] | None = None,
        align: Align | None = None,
        recursive: bool = False,
    ) -> None:
        super().__init__(folder, image_size, align)
        self.names = names if names is not None else (names_below if recursive else image_names)(folder)
        if not self.names:
            raise UserError(
                f"{printable(folder)} is not a folder of images ({', '.join(EXTENSIONS)}): {what_is_at(folder)}; give the "
                "folder that contains them, or an LMDB"
            )

    def __len__(self) -> int:
        return len(self.names)

    def name(self, i: int) -> str:
        return self.names[i]

    def encoded(self, i: int) -> Path:
        return self.folder / self.names[i]


# ---- LMDB ---------------------------------------------------------------------------------------------------------------


@cache
def environment(folder: Path) -> lmdb.Environment:
    """Resolved LMDB folder -> its environment, read-only and without a lock file.

    LMDB allows one environment per process. Datasets do not hold one, so that each worker opens its own on first use.
    """
    try:
        handle = lmdb.open(str(folder), readonly=True, lock=False, readahead=False)
    except (lmdb.Error, OSError) as error:
        raise UserError(
            f"{printable(folder)} cannot be opened as an LMDB ({one_line(error)}): create or download it again"
        ) from error
    # Reading past the end of the file would crash the process.
    if (folder / "data.mdb").stat().st_size < (handle.info()["last_pgno"] + 1) * handle.stat()["psize"]:
        raise UserError(f"{printable(folder)}: this LMDB is truncated: copy or download it again")
    return handle


class LmdbImages(Images):
    """The images of an LMDB, whose values are encoded images and whose keys have one of two forms.

    With a key `length` (ASCII digits), the keys are <resolution>-<five-digit number>, as in StyleGAN2 and DiffusionCLIP; those
    of `image_size` are read. Without it, every value is an image, in the order of the keys, as in LSUN.
    Raises UserError if the LMDB cannot be opened, is empty or damaged, or has only other resolutions.
    """

    def __init__(self, folder: Path | str, image_size: int, align: Align | None = None) -> None:
        super().__init__(folder, image_size, align)
        with self.read() as txn:
            length = txn.get(b"length")
            self.numbered = length is not None
            self.length: int = self._length(bytes(length), txn) if length is not None else txn.stat()["entries"]
        # Keys without numbers are listed only as far as needed, because LSUN has millions.
        self.keys: list[bytes] = []
        if not self.length:
            raise UserError(f"{printable(folder)}: this LMDB has no images: give another one")

    @contextmanager
    def read(self) -> Iterator[lmdb.Transaction]:
        """A read transaction. Raises UserError if the LMDB is damaged."""
        try:
            with environment(self.folder.resolve()).begin() as txn:
                yield txn
        except lmdb.Error as error:
            raise UserError(
                f"{printable(self.folder)}: this LMDB is damaged ({one_line(error)}): copy or download it again"
            ) from error

    def _length(self, length: bytes, txn: lmdb.Transaction) -> int:
        """The value of the key `length` -> the number of images."""
        # 18 digits are enough for any number of images.
        if not length.isdigit() or len(length) > 18:
            raise UserError(
                f"{printable(self.folder)}: the value of the key `length` is {length[:30]!r}, not a number of images: create "
                "the LMDB again"
            )
        there = resolutions(txn)
        if there and str(self.image_size) not in there:
            raise UserError(
                f"{printable(self.folder)} only has images of {', '.join(there)} px, but {self.image_size} px are needed: "
                "create the LMDB at that resolution, or use a folder of images instead"
            )
        n = int(length) if there else 0
        if n and txn.get(last := self._numbered_key(n - 1)) is None:
            raise UserError(
                f"{printable(self.folder)}: the key `length` says {n} images, but {last.decode()} is missing: create the LMDB "
                "again"
            )
        return n

    def __len__(self) -> int:
        return self.length

    def _numbered_key(self, i: int) -> bytes:
        return f"{self.image_size}-{i:05d}".encode()

    def file(self, i: int) -> str:
        return "data.mdb"

    def key(self, i: int) -> bytes:
        if self.numbered:
            return self._numbered_key(i)
        if i >= len(self.keys):
            with self.read() as txn:
                cursor = txn.cursor()
                # Continue after the last known key.
                known = bool(self.keys) and cursor.set_key(self.keys[-1])
                self.keys += map(bytes, islice(cursor.iternext(values=False), known, known + i + 1 - len(self.keys)))
        return self.keys[i]

    def name(self, i: int) -> str:
        return self.key(i).decode(errors="replace")

    def encoded(self, i: int) -> IO[bytes]:
        with self.read() as txn:
            value = txn.get(self.key(i))
        if value is None:
            raise OSError("the LMDB has no such key")
        return io.BytesIO(value)


def resolutions(txn: lmdb.Transaction) -> list[str]:
    """The resolutions in keys of the form <resolution>-<number>, as strings, found without listing all keys."""
    found, cursor = [], txn.cursor()
    there = cursor.first()
    while there:
        resolution, dash, _ = bytes(cursor.key()).partition(b"-")
        if dash and resolution.isdigit():
            found.append(resolution.decode())
            there = cursor.set_range(resolution + b".")  # "." follows "-" in ASCII: skips all keys of this resolution
        else:
            there = cursor.next()
    return sorted(found, key=int)


# -------------------------------------------------------------------------------------------------------------------------


def open_folder(folder: Path | str, image_size: int, align: Align | None = None, recursive: bool = False) -> Images:
    """A folder of images or an LMDB -> dataset. Raises UserError, which says what is there, if it is neither. recursive:
    include sub-folders."""
    if is_lmdb(folder):
        return LmdbImages(folder, image_size, align=align)
    return ImageFolder(folder, image_size, align=align, recursive=recursive)


def read_image(path: Path | str, image_size: int) -> torch.Tensor:
    """One image file -> (3, image_size, image_size) in [-1, 1]. Raises UserError that names it."""
    path = Path(path)
    try:
        return ImageFolder(path.parent, image_size, [path.name])[0]
    except UnreadableImage as error:
        raise UserError(str(error)) from error


def read_folder(folder: Path | str, image_size: int, n: int | None = None) -> torch.Tensor:
    """The images of a folder or LMDB, sorted by name, or the first n of them -> (N, 3, image_size, image_size) in [-1, 1].

    Images that cannot be read are skipped. Raises UserError if there is no image.
    """
    dataset = open_folder(folder, image_size)
    return first_images(dataset, len(dataset) if n is None else n)


# ---- images that cannot be read ---------------------------------------------------------------------------------------------


def load_batch(dataset: Images, indices: Iterable[int]) -> tuple[list[int], torch.Tensor | None, list[str]]:
    """Read images -> (indices that could be read, images (B, 3, H, W) or None, messages about the others)."""
    good, images, messages = [], [], []
    for i in indices:
        try:
            images.append(dataset[i])
            good.append(i)
        except UnreadableImage as error:
            messages.append(str(error))
    return good, torch.stack(images) if images else None, messages


class Readable(Dataset[ImageAndMessages]):
    """The images of a dataset, with each unreadable one replaced by the next readable one.

    dataset[i] -> (image, or None if none is readable; messages about unreadable ones: list of str).
    """

    def __init__(self, dataset: Images) -> None:
        self.dataset = dataset
        self.faulty: set[int] = set()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> ImageAndMessages:
        messages: list[str] = []
        for k in chain(range(i, len(self)), range(i)):
            if k not in self.faulty:
                try:
                    return self.dataset[k], messages
                except UnreadableImage as error:
                    self.faulty.add(k)
                    messages.append(str(error))
        return None, messages


def collate(items: Sequence[ImageAndMessages]) -> ImageAndMessages:
    """Items of `Readable` -> (images (B, 3, H, W) or None, messages)."""
    images = [image for image, _ in items if image is not None]
    return torch.stack(images) if images else None, [message for _, messages in items for message in messages]


def first_images(dataset: Images, n: int) -> torch.Tensor:
    """The first n readable images (n, 3, H, W), or all if there are fewer. Raises UserError if there are none."""
    images: list[torch.Tensor] = []
    messages: list[str] = []
    start = 0
    while len(images) < n and start < len(dataset):
        numbers = range(start, min(start + n - len(images), len(dataset)))
        _, read, messages = load_batch(dataset, numbers)
        images += [] if read is None else list(read)
        start = numbers.stop
    if not images:
        raise UserError(f"{dataset.folder}: none of its {len(dataset)} images can be used, for example: {messages[-1]}")
    return torch.stack(images)
