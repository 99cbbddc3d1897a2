"""Images on disk -> tensors in [-1, 1]."""

from pathlib import Path

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.utils.data import Dataset
from torchvision.transforms import v2

from asyrp.errors import UserError

EXTENSIONS = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


class UnreadableImage(Exception):
    """An image file that cannot be decoded; the message names it."""


def to_unit_range(image, size):
    """PIL image of any mode and shape -> float tensor (3, size, size) in [-1, 1].

    Turned upright as its EXIF data says, converted to RGB, shorter side resized (bilinear, antialiased), centre-cropped.
    """
    image = v2.functional.pil_to_tensor(ImageOps.exif_transpose(image).convert("RGB"))
    if min(image.shape[1:]) != size:
        image = v2.functional.resize(image, [size], antialias=True)
    image = v2.functional.center_crop(image, [size])
    return image.float().div(127.5).sub(1)


class ImageFolder(Dataset):
    """The images of one folder, sorted by name.

    dataset[i] -> (3, image_size, image_size) in [-1, 1]; raises UnreadableImage, which names the file.
    Raises UserError when the folder is missing or holds no image.
    """

    def __init__(self, folder, image_size):
        self.folder, self.image_size = Path(folder), image_size
        if not self.folder.is_dir():
            raise UserError(f"{folder}: no such folder of images; check the path")
        self.files = sorted(p for p in self.folder.iterdir() if p.suffix.lower() in EXTENSIONS)
        if not self.files:
            raise UserError(f"{folder}: holds no image ({', '.join(sorted(EXTENSIONS))}); put images directly into it")

    def __len__(self):
        return len(self.files)

    def name(self, i):
        """What image i is called in messages and reports."""
        return self.files[i].name

    def __getitem__(self, i):
        try:
            with Image.open(self.files[i]) as image:
                return to_unit_range(image, self.image_size)
        except (OSError, UnidentifiedImageError, SyntaxError, Image.DecompressionBombError) as error:
            raise UnreadableImage(f"{self.files[i]} cannot be read as an image ({error})") from error


def load_batch(dataset, indices):
    """-> (indices that could be read, images (B, 3, H, W) or None, messages about those that could not)."""
    good, images, messages = [], [], []
    for i in indices:
        try:
            images.append(dataset[i])
            good.append(i)
        except UnreadableImage as error:
            messages.append(str(error))
    return good, torch.stack(images) if images else None, messages
