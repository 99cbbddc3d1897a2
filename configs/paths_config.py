"""Paths of images and weights.

Each path has a default and an environment variable that overrides it: ASYRP_DATA_<NAME> for a dataset's folder (for its layout
see asyrp/data/layouts.py), ASYRP_MODEL_<NAME> for a weight file. The names are in PLACES below: ASYRP_DATA_CELEBA_HQ,
ASYRP_MODEL_CELEBA_HQ and so on. Relative paths are relative to the repository.
"""

import os
from typing import NamedTuple

from utils.errors import UserError
from utils.files import ROOT


class Place(NamedTuple):
    """The paths of one model: the name in its environment variables, its images, and its weights."""

    name: str
    images: str
    weights: str


# (data.dataset, data.category) -> place
PLACES = {
    ("AVATAR", "AVATAR"): Place("AVATAR", "data/avatar", "pretrained/avatar/ddpm.pt"),
    ("AVATAR", "AVATAR64"): Place("AVATAR64", "data/avatar64", "pretrained/avatar64/ddpm.pt"),
    ("CelebA_HQ", "CelebA_HQ"): Place("CELEBA_HQ", "data/celeba_hq", "pretrained/celeba_hq.ckpt"),
    ("CelebA_HQ_P2", "CelebA_HQ_P2"): Place("CELEBA_HQ_P2", "data/celeba_hq", "pretrained/celebahq_p2.pt"),
    ("LSUN", "bedroom"): Place("BEDROOM", "data/lsun", "pretrained/bedroom.ckpt"),
    ("LSUN", "church_outdoor"): Place("CHURCH", "data/lsun", "pretrained/church_outdoor.ckpt"),
    ("AFHQ", "dog"): Place("AFHQ_DOG", "data/afhq", "pretrained/afhq_dog_4m.pt"),
    ("FFHQ", "FFHQ"): Place("FFHQ", "data/ffhq", "pretrained/ffhq_10m.pt"),
    ("MetFACE", "metfaces"): Place("METFACE", "data/metfaces", "pretrained/metface_p2.pt"),
    ("FFHQ_P2", "FFHQ_P2"): Place("FFHQ_P2", "data/ffhq", "pretrained/ffhq_p2.pt"),
    ("AFHQ_P2", "dog_P2"): Place("AFHQ_DOG_P2", "data/afhq", "pretrained/afhq_p2.pt"),
    ("CUB", "bird"): Place("CUB", "data/cub", "pretrained/cub_p2.pt"),
    ("Flower", "flower"): Place("FLOWER", "data/flowers", "pretrained/flower_p2.pt"),
    ("IMAGENET", "IMAGENET"): Place("IMAGENET", "data/imagenet", "pretrained/256x256_diffusion_uncond.pt"),
}
CUSTOM = "CUSTOM"  # the category of your own images, with any dataset key


def _place(kind, name, default):
    return ROOT / os.environ.get(f"ASYRP_{kind}_{name}", default)


def _images(config):
    """(name, default folder) of a config's images."""
    dataset, category = config.data.dataset, config.data.category
    if category == CUSTOM:
        return "CUSTOM", "data/custom"
    if (dataset, category) not in PLACES:
        raise UserError(
            f"there is no default image folder for dataset {dataset}, category {category}: pass --custom_train_dataset_dir and "
            "--custom_test_dataset_dir"
        )
    place = PLACES[dataset, category]
    return place.name, place.images


def dataset_folder(config):
    """A Config -> the dataset's folder. Raises UserError for a dataset and category without a Place."""
    return _place("DATA", *_images(config))


def dataset_variable(config):
    """A Config -> the environment variable that overrides `dataset_folder`."""
    return f"ASYRP_DATA_{_images(config)[0]}"


def weight_place(config):
    """A Config -> the Place of the U-Net's weights. Raises UserError if there is none.

    Category CUSTOM uses the weights of its dataset key, if there is only one such file.
    """
    dataset, category = config.data.dataset, config.data.category
    fitting = [p for key, p in PLACES.items() if key == (dataset, category) or (category == CUSTOM and key[0] == dataset)]
    if len(fitting) != 1:
        raise UserError(f"there is no default weight file for dataset {dataset}, category {category}: pass --model_path")
    return fitting[0]


def weight_file(place):
    """A Place -> the path of its weight file, which may not exist."""
    return _place("MODEL", place.name, place.weights)


def is_moved(place):
    """Whether the environment overrides the default weight file."""
    return f"ASYRP_MODEL_{place.name}" in os.environ


# The Inception network for FID, as published by torch-fidelity. This one and the next have no images.
FID_INCEPTION = Place("FID_INCEPTION", "", "pretrained/weights-inception-2015-12-05-6726825d.pth")

# The face recogniser of the identity loss (InsightFace's IR-SE50 as PyTorch weights).
IR_SE50 = Place("IR_SE50", "", "pretrained/model_ir_se50.pth")
