"""The files of a base model training: weights, and next to them its state, samples and settings."""

import tempfile
from pathlib import Path

import yaml

from asyrp.config import to_dict
from utils import tensors
from utils.errors import UserError
from utils.files import write_text

NEEDED = {"model", "unet", "ema", "images_seen", "seconds", "sessions"}  # entries of a state; the optimiser is optional


class Files:
    """`weights`, and next to them `state`, `record` and `samples`: the same name followed by .state, .yml and .png."""

    def __init__(self, out):
        self.weights = Path(out)
        self.state, self.record, self.samples = (Path(f"{out}.{kind}") for kind in ("state", "yml", "png"))

    @property
    def lock(self):
        """The lock file that lets only one process train these weights."""
        return self.weights.with_name(f".{self.weights.name}.lock")

    def prepare(self, from_scratch):
        """Create the folder. Raises UserError if a training from scratch would overwrite weights, and OSError if the folder
        is not writable."""
        if self.weights.is_dir():
            raise UserError(f"--out {self.weights} is a folder: give the name of a file")
        if from_scratch and self.weights.exists() and not self.state.exists():
            raise UserError(
                f"{self.weights} already exists, without a state to resume from: start from it ({self.from_weights()}), "
                "delete it, or give another --out"
            )
        self.weights.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=self.weights.parent).close()

    def from_weights(self):
        """The flags that continue from the weights alone."""
        try:
            seen = yaml.safe_load(self.record.read_text(encoding="utf-8"))["images_seen"]
        except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
            seen = "N"
        return f"--init {self.weights} --images_seen {seen}"

    def read_state(self, model):
        """The state, or None if there is none. Raises UserError if it is damaged, or belongs to another model.

        model: `model_sections` of the config.
        """
        if not self.state.exists():
            return None
        try:
            state = tensors.load(self.state)
            if missing := NEEDED - state.keys():
                raise KeyError(*missing)
            differing = first_difference(state["model"], model)
        except (UserError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self.state} is damaged, or not a training state: delete it and start again from the weights "
                f"({self.from_weights()})"
            ) from error
        if differing:
            raise UserError(
                f"{self.state} belongs to another model: {differing}: give another --out, or delete it to start from scratch"
            )
        return state

    def write(self, state, weights, record):
        """Write the state first, since the rest can be restored from it. Raises OSError, and keeps the old files, if they
        cannot be written."""
        tensors.save(state, self.state)
        tensors.save(weights, self.weights)
        write_text(self.record, yaml.safe_dump(to_dict(record), sort_keys=False, allow_unicode=True))


def model_sections(config):
    """The settings of a model that a state depends on: network, noise schedule and images -> plain dicts."""
    data = {key: getattr(config.data, key) for key in ("dataset", "category", "image_size")}
    return {"data": data, "model": to_dict(config.model), "diffusion": to_dict(config.diffusion)}


def first_difference(there, here):
    """Two results of `model_sections` -> a description of the first difference; '' if they are equal."""
    for section, values in here.items():
        for key in {**there[section], **values}:
            found, wanted = there[section].get(key), values.get(key)
            if found != wanted:
                return f"{section}.{key} is {found} there, but {wanted} in the config"
    return ""
