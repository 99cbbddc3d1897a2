"""Where the images of a dataset lie: (configuration, split, flags) -> dataset."""

import re
from pathlib import Path

from asyrp.data.datasets import ImageFolder, image_names, is_lmdb, open_folder
from utils.errors import UserError
from configs.paths_config import CUSTOM, dataset_folder, dataset_variable

# data.dataset -> split -> where its images may lie in the dataset's folder, besides train/, test/, LMDB_train/, LMDB_test/.
# Each place is a folder of images or an LMDB. These are the layouts as published: LSUN's, AFHQ's, ImageNet's.
LAYOUTS = {
    "LSUN": {
        "train": ["{category}_train_lmdb", "{category}/train"],
        "test": ["{category}_val_lmdb", "{category}/test"],
    },
    "AFHQ": {
        "train": ["train/{category}", "{category}/train"],
        "test": ["test/{category}", "val/{category}", "{category}/test"],
    },
    "IMAGENET": {"train": [], "test": ["val"]},
}
# data.dataset -> sub-folders whose images belong to the folder: FFHQ's thousands, ImageNet's classes.
SUBFOLDERS = {"FFHQ": r"\d+", "MetFACE": r"\d+", "IMAGENET": r"n\d{8}"}
# Published as one folder: its last images are for testing.
UNDIVIDED = ("FFHQ", "MetFACE")
TEST_IMAGES = 500


def check_image_settings(config, train_folder, test_folder, class_number, align_face):
    """Raise UserError for flags about images that do not fit the dataset."""
    given = [train_folder, test_folder]
    custom = config.data.category == CUSTOM
    if class_number and (config.data.dataset != "IMAGENET" or custom or all(given)):
        raise UserError("--target_class_num picks a class of ImageNet, and no image would come from there: leave it out")
    if align_face and not (custom or any(given)):
        raise UserError("--align_face is for portraits of your own: name their folder with --custom_test_dataset_dir")


def open_split(config, split, folder=None, class_number=None, align=None):
    """The images of "train" or "test" -> dataset.

    A --custom_<split>_dataset_dir wins over the configuration's folder. align: see `Images`; for images of one's own only.
    Raises UserError when there are none, naming every place that was looked at.
    """
    size, kind = config.data.image_size, config.data.dataset
    if folder:
        return open_folder(folder, size, align)
    if config.data.category == CUSTOM:
        kind = CUSTOM
    else:
        align = None
    folder = dataset_folder(config)
    places = [place.format(category=config.data.category) for place in LAYOUTS.get(kind, {}).get(split, [])] + [split]
    if class_number:
        places = [f"{place}/{wordnet_id(class_number)}" for place in places]
    else:
        places.append(f"LMDB_{split}")
    for place in places:
        if is_lmdb(folder / place):
            return open_folder(folder / place, size, align)
        if names := names_within(folder / place, SUBFOLDERS.get(kind)):
            return ImageFolder(folder / place, size, names, align)
    if kind in UNDIVIDED:
        if names := names_within(folder, SUBFOLDERS[kind]):
            return ImageFolder(folder, size, divided(folder, names)[split])
        places += [f"the folder itself (its last {TEST_IMAGES} are for testing)"]
    raise UserError(
        f"no {split} images in {folder}: put a folder of images or an LMDB at one of {', '.join(places)}; or set "
        f"{dataset_variable(config)} to another folder, or pass --custom_{split}_dataset_dir"
    )


def names_within(folder, pattern=None):
    """Sorted names, relative to `folder`, of its images and of those in its sub-folders that match `pattern`."""
    folder, names = Path(folder), image_names(folder)
    if pattern and folder.is_dir():
        for sub in sorted(path.name for path in folder.iterdir() if re.fullmatch(pattern, path.name)):
            names += [f"{sub}/{name}" for name in image_names(folder / sub)]
    return names


def divided(folder, names):
    """Names of all images -> {"train": all but the last ones, "test": the last ones}."""
    if len(names) <= TEST_IMAGES:
        raise UserError(
            f"{folder} holds {len(names)} images, and the last {TEST_IMAGES} are for testing: none would be left for training; "
            "divide them into train/ and test/"
        )
    return {"train": names[:-TEST_IMAGES], "test": names[-TEST_IMAGES:]}


def wordnet_id(wanted):
    """A class of ImageNet by its number, 0 to 999, or by its WordNet id -> the WordNet id, the name of its folder."""
    # Imported here: it takes a second, and one dataset needs it.
    from timm.data import ImageNetInfo

    return wanted if wanted.startswith("n") else ImageNetInfo().index_to_label_name(int(wanted))
