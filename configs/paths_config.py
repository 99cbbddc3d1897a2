"""Where images and weights lie.

Every place has a default, relative to the repository, and an environment variable that overrides it: ASYRP_DATA_<NAME> for a
dataset's folder (what may lie in it: asyrp/layouts.py), ASYRP_MODEL_<NAME> for a weight file. The names stand in PLACES
below: ASYRP_DATA_CELEBA_HQ, ASYRP_MODEL_CELEBA_HQ and so on. A relative path, default or not, starts at the repository.
"""

import os
from typing import NamedTuple

from utils.errors import UserError
from utils.files import ROOT


class Place(NamedTuple):
    """What belongs to one model: the name in its environment variables, its images, and its weights."""

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
CUSTOM = "CUSTOM"  # the category of images of one's own, whatever the dataset key


def _place(kind, name, default):
    return ROOT / os.environ.get(f"ASYRP_{kind}_{name}", default)


def _images(config):
    """-> (name, default folder) of a configuration's images."""
    dataset, category = config.data.dataset, config.data.category
    if category == CUSTOM:
        return "CUSTOM", "data/custom"
    if (dataset, category) not in PLACES:
        raise UserError(
            f"no folder of images is known for dataset {dataset}, category {category}: pass --custom_train_dataset_dir and "
            "--custom_test_dataset_dir"
        )
    place = PLACES[dataset, category]
    return place.name, place.images


def dataset_folder(config):
    """Settings of `load_config` -> the dataset's folder. Raises UserError for a pair without a place."""
    return _place("DATA", *_images(config))


def dataset_variable(config):
    """Settings of `load_config` -> the environment variable that overrides `dataset_folder`."""
    return f"ASYRP_DATA_{_images(config)[0]}"


def weight_place(config):
    """Settings of `load_config` -> place of the U-Net's weights. Raises UserError where none is known.

    Category CUSTOM takes the weights of its dataset key, where there is only one such file.
    """
    dataset, category = config.data.dataset, config.data.category
    fitting = [p for key, p in PLACES.items() if key == (dataset, category) or (category == CUSTOM and key[0] == dataset)]
    if len(fitting) != 1:
        raise UserError(f"no weight file is known for dataset {dataset}, category {category}: pass --model_path")
    return fitting[0]


def weight_file(place):
    """A place -> its weight file, there or not."""
    return _place("MODEL", place.name, place.weights)


def is_moved(place):
    """Whether the environment names another weight file than the default one."""
    return f"ASYRP_MODEL_{place.name}" in os.environ


# The Inception network of FID, as torch-fidelity publishes it. It has no images of its own, like the next one.
FID_INCEPTION = Place("FID_INCEPTION", "", "pretrained/weights-inception-2015-12-05-6726825d.pth")

# The face recogniser of the identity loss (InsightFace's IR-SE50 as PyTorch weights).
IR_SE50 = Place("IR_SE50", "", "pretrained/model_ir_se50.pth")
