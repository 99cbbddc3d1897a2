"""The images of a run and their latents."""

import logging
from pathlib import Path

from asyrp import process
from asyrp.data.datasets import ImageFolder, open_folder
from asyrp.data.layouts import open_split
from asyrp.data.pairs import DDIM, InvertedPairs, NoiseMaps, SampledPairs
from asyrp.parsing import image_numbers
from utils.align import FaceAligner
from utils.errors import UserError

log = logging.getLogger(__name__)

# The noise of the two splits must differ: one counts from 0, the other from a million.
FIRST_DRAW = {"train": 0, "test": 1_000_000}


class RunImages:
    """The training and test images that the settings select. kept: the Store of latents."""

    def __init__(self, settings, kept):
        self.settings, self.config, self.store = settings, settings.config, kept

    def dataset(self, split):
        """The dataset of a split, "train" or "test"."""
        s = self.settings
        if s.edit_image:
            return self._one_image(split)
        folder = s.custom_train_dataset_dir if split == "train" else s.custom_test_dataset_dir
        align = FaceAligner(self.store.root / "aligned", self.config.data.image_size) if s.align_face else None
        return open_split(self.config, split, folder, s.target_class_num, align)

    def _one_image(self, split):
        """The image of --edit_image; for training, followed by those of --custom_train_dataset_dir, if given."""
        s, path, size = self.settings, Path(self.settings.edit_image), self.config.data.image_size
        if not path.is_file():
            raise UserError(f"--edit_image {path}: no such file: check the path")
        neighbours = open_folder(s.custom_train_dataset_dir, size) if split == "train" and s.custom_train_dataset_dir else None
        names = [str((neighbours.folder / name).resolve()) for name in getattr(neighbours, "names", [])]
        return ImageFolder(path.parent, size, [path.name, *names])

    def check(self, *splits):
        """Raise UserError if images of `splits` are missing, before any network is loaded."""
        if not self.settings.load_random_noise:
            for split in splits:
                self.numbers(len(self.dataset(split)), 1)

    def numbers(self, length, n):
        """Numbers of the images to use: `n` from --start_image_id on, or those of --target_image_id."""
        s = self.settings
        if s.target_image_id:
            wanted = image_numbers(s.target_image_id)
            if max(wanted) >= length:
                raise UserError(f"--target_image_id {max(wanted)}: there are only {length} images, numbered from 0")
            return wanted
        start = s.start_image_id
        if start >= length:
            raise UserError(f"--start_image_id {start}: there are only {length} images, numbered from 0")
        if start + n > length:
            log.warning("%d images requested, but only %d are available: using all of them", n, length - start)
        return list(range(start, min(start + n, length)))

    def pairs(self, split, n, model, images=True):
        """(image, latent) pairs of a split -> (pairs with `fill` and `batches`, indices). images: whether x_0 is needed."""
        s = self.settings
        if s.load_random_noise:
            timesteps = model.timesteps(s.n_inv_step, s.t_0)
            indices = [FIRST_DRAW[split] + i for i in self.numbers(1_000_000, n)]
            return SampledPairs(s.seed, model, timesteps, self.store, images, s.saved_random_noise), indices
        dataset = self.dataset(split)
        return self.inverted(dataset, model), self.numbers(len(dataset), n)

    def inverted(self, dataset, model):
        """The pairs of a dataset, inverted as the settings say -> InvertedPairs."""
        s = self.settings
        timesteps, iterations = model.timesteps(s.n_inv_step, s.t_0), process.ITERATIONS.get(s.inversion)
        inversion = NoiseMaps(model, timesteps, s.seed) if iterations is None else DDIM(model, timesteps, iterations)
        return InvertedPairs(dataset, model, timesteps, self.store, inversion)
