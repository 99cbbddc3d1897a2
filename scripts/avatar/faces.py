"""What the trainings of CLIP, judge and segmenter share: labelled faces as tensors, and ways to spoil an image.

Images are float tensors (B, 3, H, W) in [-1, 1] throughout; each function draws anew for every image of the batch.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from render import LABELS, read_labels

from asyrp.data.datasets import ImageFolder
from utils.errors import UserError


def open_faces(folder, image_size=32):
    """A folder of render.py -> (dataset, labels of each of its images: list of {label: class}).

    Raises UserError where labels.csv is missing or does not fit the images.
    """
    if not (Path(folder) / "labels.csv").is_file():
        raise UserError(f"{folder}: no labelled faces; draw them with scripts/avatar/render.py")
    dataset = ImageFolder(folder, image_size)
    try:
        rows = {row["file"]: row for row in read_labels(folder)}
        labels = [{label: rows[file][label] for label in LABELS} for file in dataset.names]
        if unknown := [row for row in labels if any(row[label] not in names for label, names in LABELS.items())]:
            raise ValueError(f"it has {unknown[0]}")
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{folder}: labels.csv does not fit the images ({error}); render the folder with render.py") from error
    return dataset, labels


def load_faces(folder, image_size=32):
    """A folder of render.py -> (images (N, 3, H, W) uint8, labels (N, 6) long: positions in LABELS' tuples)."""
    dataset, labels = open_faces(folder, image_size)
    numbers = [[names.index(row[label]) for label, names in LABELS.items()] for row in labels]
    return torch.stack([to_bytes(dataset[i]) for i in range(len(dataset))]), torch.tensor(numbers)


def to_bytes(images):
    """[-1, 1] -> uint8, clipped; a quarter of the memory."""
    return images.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def from_bytes(images):
    """uint8 -> [-1, 1]."""
    return images.float().div(127.5).sub(1)


def per_image(images, low, high):
    """One number for each image, uniform in low..high: (B, 1, 1, 1)."""
    return torch.empty(len(images), 1, 1, 1, device=images.device).uniform_(low, high)


def sometimes(probability, images, changed):
    """`changed` in place of `images` for a share of the batch."""
    return torch.where(per_image(images, 0, 1) < probability, changed, images)


def alike(change, *batches):
    """Each of several batches of the same shape, changed with the same random numbers."""
    seed = int(torch.randint(2**31, ()))
    results = []
    for images in batches:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            results.append(change(images))
    return results


def flip(images):
    """Mirror half of the images."""
    return sometimes(0.5, images, images.flip(3))


def flip_with(images, masks):
    """Mirror half of the images, and their masks (B, H, W) with them."""
    mirrored = torch.rand(len(images), device=images.device) < 0.5
    images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
    return images, torch.where(mirrored.view(-1, 1, 1), masks.flip(2), masks)


def move(images, pixels, zoom):
    """Shift by up to `pixels` each way and scale by up to 1 +- zoom; what comes into view repeats the border."""
    scale = per_image(images, 1 - zoom, 1 + zoom).flatten()
    reach = 2 * pixels / images.shape[3]
    theta = torch.zeros(len(images), 2, 3, device=images.device)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, :, 2].uniform_(-reach, reach)
    grid = F.affine_grid(theta, images.shape, align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def blur(images, sigma_max):
    """Gaussian blur with a standard deviation in 0..sigma_max pixels."""
    reach = max(1, round(2.5 * sigma_max))
    steps = torch.arange(-reach, reach + 1, device=images.device)
    kernel = torch.exp(-0.5 * (steps / per_image(images, 0.05, sigma_max).view(-1, 1)) ** 2)
    # Every image has its own kernel: the batch becomes channels, and each channel a group.
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)[:, None]
    rows = F.pad(images, (reach,) * 4, mode="replicate").flatten(0, 1)[None]
    rows = F.conv2d(rows, kernel[:, :, None, :], groups=kernel.shape[0])
    return F.conv2d(rows, kernel[:, :, :, None], groups=kernel.shape[0]).view_as(images)


def noise(images, sigma_max):
    """Add Gaussian noise with a standard deviation in 0..sigma_max."""
    return images + per_image(images, 0, sigma_max) * torch.randn_like(images)


def recolour(images, gain, offset):
    """Scale each channel by up to 1 +- gain and shift it by up to `offset`."""
    shape = (len(images), 3, 1, 1)
    gains = torch.empty(shape, device=images.device).uniform_(1 - gain, 1 + gain)
    return images * gains + torch.empty_like(gains).uniform_(-offset, offset)


# ---- other styles than the artwork's ----------------------------------------------------------------------------------------


def sketch(images):
    """Dark lines on white, where the brightness changes."""
    grey = images.mean(1, keepdim=True)
    across = F.pad(grey, (1, 1, 0, 0), mode="replicate").diff(dim=3)[..., 1:]
    down = F.pad(grey, (0, 0, 1, 1), mode="replicate").diff(dim=2)[..., 1:, :]
    return (1 - 3 * (across**2 + down**2).sqrt()).clamp(-1, 1).expand_as(images)


def pixel_art(images, block=4, levels=4):
    """Squares of one colour, of a few shades each."""
    coarse = F.avg_pool2d(images, block)
    shades = ((coarse + 1) / 2 * (levels - 1)).round() / (levels - 1) * 2 - 1
    return F.interpolate(shades, scale_factor=block, mode="nearest")


STYLES = {"sketch": sketch, "pixel art": pixel_art}
