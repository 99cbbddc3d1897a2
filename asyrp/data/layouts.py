"""Where the images of a dataset lie: (configuration, split) -> dataset."""

from asyrp.data.datasets import ImageFolder, open_folder
from asyrp.data.folders import is_lmdb, names_within, what_lies_at
from configs.paths_config import CUSTOM, dataset_folder, dataset_variable
from utils.errors import UserError
from utils.text import printable

# data.dataset -> split -> where its images may lie in the dataset's folder, besides train/, test/, LMDB_train/, LMDB_test/.
# Each place is a folder of images or an LMDB. These are the layouts as published: LSUN's, AFHQ's, ImageNet's. A dataset and a
# category that end in P2 have the images of those without: it is the model that is another one.
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
# data.dataset -> sub-folders whose images belong to the folder: FFHQ's thousands, ImageNet's classes, the species of CUB.
SUBFOLDERS = {"FFHQ": r"\d+", "MetFACE": r"\d+", "IMAGENET": r"n\d{8}", "CUB": r"\d{3}\..+"}
# Published as one folder, below the dataset's or the dataset's own: its last images are for testing.
UNDIVIDED = {
    "FFHQ": ["images1024x1024", "images", "."],
    "MetFACE": ["images", "."],
    "CUB": ["images", "."],
    "Flower": ["jpg", "."],
}
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

    folder: of images of one's own; it wins over the configuration's. class_number: of ImageNet, or a WordNet id. align: see
    `Images`; for images of one's own only. Raises UserError when there are none, naming every place that was looked at and what
    lies there instead.
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
        places += [*UNDIVIDED[kind][:-1], f"the folder itself (its last {TEST_IMAGES} are for testing)"]
    raise UserError(
        f"no {split} images in {printable(folder)} ({what_lies_at(folder)}): put a folder of images or an LMDB at one of "
        f"{', '.join(places)}; or set {dataset_variable(config)} to another folder, or pass --custom_{split}_dataset_dir"
    )


def divided(folder, names):
    """Names of all images -> {"train": all but the last ones, "test": the last ones}."""
    if len(names) <= TEST_IMAGES:
        raise UserError(
            f"{printable(folder)} holds {len(names)} images, and the last {TEST_IMAGES} are for testing: none would be left "
            "for training; divide them into train/ and test/"
        )
    return {"train": names[:-TEST_IMAGES], "test": names[-TEST_IMAGES:]}


def wordnet_id(wanted):
    """A class of ImageNet by its number, 0 to 999, or by its WordNet id -> the WordNet id, the name of its folder."""
    # Imported here: it takes a second, and one dataset needs it.
    from timm.data import ImageNetInfo

    return wanted if wanted.startswith("n") else ImageNetInfo().index_to_label_name(int(wanted))
