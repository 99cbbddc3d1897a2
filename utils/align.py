"""Align portraits as in FFHQ: rotate, scale and crop the face.

The method is that of Karras, Laine & Aila (2019), "A Style-Based Generator Architecture for GANs", appendix A, with the details
of its public code (NVlabs/ffhq-dataset, `recreate_aligned_images`); that of CelebA-HQ (Karras et al. 2018, appendix C) is
similar. Coordinates are (x, y) in pixels, x to the right and y down; a landmark on pixel (i, j) is at (i, j).
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from torchvision.transforms.functional import pil_to_tensor

from utils.digests import digest
from utils.errors import UserError
from utils.extras import install, load
from utils.files import replacing

LEFT_EYE, RIGHT_EYE, MOUTH_CORNERS = slice(36, 42), slice(42, 48), [48, 54]  # of the usual 68 landmarks
OVERSAMPLING = 4
LONGEST_SIDE = 1024  # longest side of the image for landmark detection; larger ones take minutes


# ---- geometry -----------------------------------------------------------------------------------------------------------


def face_square(landmarks):
    """68 landmarks (68, 2) -> corners (4, 2) of the square around the face: top left, bottom left, bottom right, top right.

    Top and left are relative to the face. Half a side is twice the distance between the eyes, or 1.8 times the distance from
    eyes to mouth, whichever is larger.
    """
    left, right = landmarks[LEFT_EYE].mean(0), landmarks[RIGHT_EYE].mean(0)
    eyes, mouth = (left + right) / 2, landmarks[MOUTH_CORNERS].mean(0)
    across, down = right - left, mouth - eyes
    # The horizontal axis of the face: the mean of `across` and of `down` rotated by 90 degrees.
    x = across + down[::-1] * (1, -1)
    x *= max(2 * np.hypot(*across), 1.8 * np.hypot(*down)) / np.hypot(*x)
    y = x[::-1] * (-1, 1)
    centre = eyes + 0.1 * down
    return np.stack([centre - x - y, centre - x + y, centre + x + y, centre + x - y])


def align(image, landmarks, size):
    """RGB image and the 68 landmarks (68, 2) of a face -> RGB image (size, size) of that face.

    Areas outside of the image are filled with its reflection, which fades into blur and then into the median colour.
    """
    square = face_square(np.asarray(landmarks, dtype=np.float64)) + 0.5  # from pixel indices to pixel centres
    image, square = shrink(image, square, size)
    image, square = crop(image, square)
    image, square = pad(image, square)
    fine = OVERSAMPLING * size
    image = image.transform((fine, fine), Image.Transform.QUAD, square.flatten().tolist(), Image.Resampling.BILINEAR)
    return image.resize((size, size), Image.Resampling.LANCZOS)


def side(square):
    return float(np.hypot(*(square[3] - square[0])))


def margin(square):
    return max(round(0.1 * side(square)), 3)


def shrink(image, square, size):
    """Downscale an image whose face is more than four times `size` by a whole factor, against aliasing."""
    factor = int(side(square) / size / 2)
    if factor <= 1:
        return image, square
    small = image.resize([round(n / factor) for n in image.size], Image.Resampling.LANCZOS)
    return small, square * small.size / image.size


def crop(image, square):
    """Crop to the square plus a margin."""
    low = np.maximum(np.floor(square.min(0)) - margin(square), 0).astype(int)
    high = np.minimum(np.ceil(square.max(0)) + margin(square), image.size).astype(int)
    return image.crop((*low, *high)), square - low


def pad(image, square):
    """Pad an image where the square extends beyond its borders."""
    low = np.maximum(margin(square) - np.floor(square.min(0)), 0)
    high = np.maximum(np.ceil(square.max(0)) + margin(square) - image.size, 0)
    if max(*low, *high) <= margin(square) - 4:
        return image, square
    left, top = low = np.maximum(low, round(0.3 * side(square))).astype(int)
    right, bottom = np.maximum(high, round(0.3 * side(square))).astype(int)
    pixels = np.pad(np.asarray(image), ((top, bottom), (left, right), (0, 0)), mode="reflect")
    blurred = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(0.02 * side(square))))
    pixels = pixels.astype(np.float32)
    height, width = pixels.shape[:2]
    y, x = np.ogrid[:height, :width]
    # 1 at the new borders, 0 at the old ones, negative inside.
    outward = 1 - np.minimum(np.minimum(x / left, (width - 1 - x) / right), np.minimum(y / top, (height - 1 - y) / bottom))
    outward = outward[..., None]
    pixels += (blurred - pixels) * np.clip(3 * outward + 1, 0, 1)
    pixels += (np.median(pixels, axis=(0, 1)) - pixels) * np.clip(outward, 0, 1)
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8)), square + low


# ---- landmarks ----------------------------------------------------------------------------------------------------------


def find_landmarks(image):
    """RGB image -> the 68 landmarks (68, 2) of its largest face, or None. Raises UserError if the weights are not available."""
    scale = max(1, max(image.size) / LONGEST_SIDE)
    small = image.resize([round(n / scale) for n in image.size], Image.Resampling.BILINEAR) if scale > 1 else image
    faces = landmark_network().get_landmarks_from_image(np.asarray(small))
    return max(faces, key=lambda face: np.ptp(face, axis=0).prod()) * scale if faces else None


@cache
def landmark_network():
    """The network of Bulat & Tzimiropoulos (2017), on the CPU because the library changes global cuDNN settings on a GPU."""
    face_alignment = load("face_alignment", "--align_face")
    try:
        return face_alignment.FaceAlignment(face_alignment.LandmarksType.TWO_D, device="cpu", compile=False)
    except OSError as error:
        raise UserError(f"--align_face: face_alignment could not download its weights ({error}): check the network") from error


class FaceAligner:
    """Portrait -> its largest face (size, size), or None. Results are cached in `folder`.

    The constructor raises UserError if the landmark library is not installed.
    """

    def __init__(self, folder, size):
        if find_spec("face_alignment") is None:
            raise UserError(f"--align_face needs face_alignment: {install('align')}")
        self.folder, self.size = Path(folder), size

    def __call__(self, image):
        path = self.folder / f"{digest(pil_to_tensor(image), self.size)}.png"
        if not path.exists():
            landmarks = find_landmarks(image)
            if landmarks is None:
                return None
            with replacing(path) as temporary:
                align(image, landmarks, self.size).save(temporary, "PNG")
        with Image.open(path) as face:
            return face.convert("RGB")
