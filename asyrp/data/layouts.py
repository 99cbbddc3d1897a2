"""Find the images of a dataset: (config, split) -> dataset."""

from asyrp.data.datasets import ImageFolder, open_folder
from asyrp.data.folders import is_lmdb, names_within, what_is_at
from configs.paths_config import CUSTOM, dataset_folder, dataset_variable
from utils.errors import UserError
from utils.text import printable

# data.dataset -> split -> where its images may be in the dataset's folder, in addition to train/, test/, LMDB_train/ and
# LMDB_test/. Each place is a folder of images or an LMDB. These are the layouts in which LSUN, AFHQ and ImageNet are published.
# Datasets and categories ending in P2 use the images of those without: only the model differs.
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
P2 = "_P2"
# data.dataset -> sub-folders whose images are included: FFHQ's numbered folders, ImageNet's classes, the species of CUB.
SUBFOLDERS = {"FFHQ": r"\d+", "MetFACE": r"\d+", "IMAGENET": r"n\d{8}", "CUB": r"\d{3}\..+"}
# Datasets published without a split, in one of these folders: the last images are for testing.
UNDIVIDED = {
    "FFHQ": ["images1024x1024", "images", "."],
    "MetFACE": ["images", "."],
    "CUB": ["images", "."],
    "Flower": ["jpg", "."],
}
TEST_IMAGES = 500


def check_image_settings(config, train_folder, test_folder, class_number, align_face):
    """Raise UserError for image flags that do not apply to the dataset."""
    given = [train_folder, test_folder]
    custom = config.data.category == CUSTOM
    if class_number and (config.data.dataset != "IMAGENET" or custom or all(given)):
        raise UserError("--target_class_num chooses a class of ImageNet, but this run uses no ImageNet images: leave it out")
    if align_face and not (custom or any(given)):
        raise UserError("--align_face is for your own portraits: give their folder with --custom_test_dataset_dir")


def open_split(config, split, folder=None, class_number=None, align=None):
    """The images of "train" or "test" -> dataset.

    folder: your own images, instead of the config's. class_number: an ImageNet class or WordNet id. align: see `Images`; only
    for your own images. Raises UserError if there are none, listing the places that were searched and what is there
    instead.
    """
    size = config.data.image_size
    kind, category = config.data.dataset.removesuffix(P2), config.data.category.removesuffix(P2)
    if folder:
        return open_folder(folder, size, align)
    if config.data.category == CUSTOM:
        kind = CUSTOM
    else:
        align = None
    folder = dataset_folder(config)
    places = [place.format(category=category) for place in LAYOUTS.get(kind, {}).get(split, [])] + [split]
    if class_number:
        places = [f"{place}/{wordnet_id(class_number)}" for place in places]
    else:
        places.append(f"LMDB_{split}")
    for place in places:
        if is_lmdb(folder / place):
            return open_folder(folder / place, size, align)
        if names := names_within(folder / place, SUBFOLDERS.get(kind)):
            return ImageFolder(folder / place, size, names, align)
    for place in UNDIVIDED.get(kind, []):
        if names := names_within(folder / place, SUBFOLDERS.get(kind)):
            return ImageFolder(folder / place, size, divided(folder / place, names)[split])
    if kind in UNDIVIDED:
        places += [*UNDIVIDED[kind][:-1], f"the folder itself (its last {TEST_IMAGES} images are for testing)"]
    raise UserError(
        f"no {split} images in {printable(folder)} ({what_is_at(folder)}): put a folder of images or an LMDB in one of "
        f"{', '.join(places)}; or set {dataset_variable(config)} to another folder, or pass --custom_{split}_dataset_dir"
    )


def divided(folder, names):
    """Names of all images -> {"train": all but the last TEST_IMAGES, "test": the last TEST_IMAGES}."""
    if len(names) <= TEST_IMAGES:
        raise UserError(
            f"{printable(folder)} has {len(names)} images, and the last {TEST_IMAGES} are for testing, so none would be left "
            "for training: split them into train/ and test/"
        )
    return {"train": names[:-TEST_IMAGES], "test": names[-TEST_IMAGES:]}


def wordnet_id(wanted):
    """An ImageNet class by number, 0 to 999, or WordNet id -> the WordNet id, the name of its folder."""
    # Imported here because it takes a second and only ImageNet needs it.
    from timm.data import ImageNetInfo

    return wanted if wanted.startswith("n") else ImageNetInfo().index_to_label_name(int(wanted))
