"""Find LPIPS curves: those measured on a model are in the store, the published ones in utils/lpips_curves/."""

import logging

from asyrp import intervals, store
from configs.paths_config import CUSTOM, PLACES
from utils.errors import UserError
from utils.files import ROOT, shown

log = logging.getLogger(__name__)

PUBLISHED = ROOT / "utils" / "lpips_curves"
# The published curves for a category, and for a dataset key with category CUSTOM.
OF_CATEGORY = {
    "CelebA_HQ": "celeba",
    "CelebA_HQ_P2": "celeba",
    "FFHQ": "celeba",
    "FFHQ_P2": "celeba",
    "dog": "afhq",
    "dog_P2": "afhq",
    "bedroom": "bedroom",
    "church_outdoor": "church",
    "metfaces": "metface",
    "AVATAR": "avatar",
}
OF_DATASET = {
    **dict.fromkeys(("CelebA_HQ", "CelebA_HQ_P2", "FFHQ", "FFHQ_P2"), "celeba"),
    **dict.fromkeys(("AFHQ", "AFHQ_P2"), "afhq"),
    "MetFACE": "metface",
}


def name_of_curve(config, name=None):
    """The name of the curves that a run measures and reads: the given one, else the published name for the category, else the
    category."""
    return name or _published(config.data) or config.data.category


def _published(data):
    if data.category == CUSTOM:
        return OF_DATASET.get(data.dataset)
    # Only for published models: the category of a pipeline is its folder name, which may equal that of a dataset.
    return OF_CATEGORY.get(data.category) if (data.dataset, data.category) in PLACES else None


def keep_curve(kept, curve, model, images, name):
    """Write a measured Curve to the store -> its path. images: digests of the measured images, in order."""
    key = store.curve_key(model, curve.t.tolist(), images, name)
    about = {"model": model.identity, "precision": model.precision, "name": name, "images": len(images)}
    kept.write("curve", key, curve.to_tensors(), about)
    return kept.path("curve", key)


def find_curve(kept, model, name=None):
    """The LPIPS curves of a model -> (Curve, a description of where it comes from).

    name: --custom_dataset_name. Without it: the newest curves measured on this model, else the published ones of its category.
    With it: curves of that name measured on this model, else the published ones of that name, else those of another model,
    with a warning.
    Raises UserError if there are none: the curves of another model are never used by default.
    """

    def kept_one(is_wanted):
        if key := kept.newest("curve", is_wanted):
            about = kept.about("curve", key)
            where = f"{kept.path('curve', key)}, measured on {about['images']} images"
            return intervals.Curve.from_tensors(kept.read("curve", key)), where, about

    if found := kept_one(lambda about: about["model"] == model.identity and name in (None, about["name"])):
        return found[:2]
    published = name or _published(model.config.data)
    path = PUBLISHED / f"{published}.csv"
    if published and path.is_file():
        return intervals.Curve.read(path), f"{shown(path)}, published"
    if name and (found := kept_one(lambda about: about["name"] == name)):
        log.warning("the curves %s were measured on another model, %s", name, found[2]["model"])
        return found[:2]
    known = ", ".join(sorted(path.stem for path in PUBLISHED.glob("*.csv")))
    what = f"named {name}" if name else f"for category {model.config.data.category}"
    raise UserError(
        f"no LPIPS curves {what}: measure them with --lpips, choose others with --custom_dataset_name ({known}), or set "
        "--user_defined_t_edit and --user_defined_t_addnoise"
    )
