"""What a training of a base model leaves: weights, and beside them its state, samples, and how they were made."""

import tempfile
from pathlib import Path

import yaml

from asyrp.config import to_dict
from utils import tensors
from utils.errors import UserError
from utils.files import write_text

NEEDED = {"model", "unet", "ema", "images_seen", "seconds", "sessions"}  # in a state; an optimiser can be made anew


class Files:
    """`weights`, and beside them `state`, `record` and `samples`: the same name with .state, .yml and .png behind it."""

    def __init__(self, out):
        self.weights = Path(out)
        self.state, self.record, self.samples = (Path(f"{out}.{kind}") for kind in ("state", "yml", "png"))

    @property
    def lock(self):
        """The file by which one process at a time trains these weights."""
        return self.weights.with_name(f".{self.weights.name}.lock")

    def prepare(self, begins_anew):
        """Make the folder. Raises UserError where weights stand that a training from random ones would write over, and OSError
        where nothing can be written."""
        if self.weights.is_dir():
            raise UserError(f"--out {self.weights} is a folder: give the name of a file")
        if begins_anew and self.weights.exists() and not self.state.exists():
            raise UserError(
                f"{self.weights} is there already, without a state to go on from: begin from it ({self.from_weights()}), "
                "delete it, or give another --out"
            )
        self.weights.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=self.weights.parent).close()

    def from_weights(self):
        """The flags that go on from the weights alone, as far as the record knows them."""
        try:
            seen = yaml.safe_load(self.record.read_text(encoding="utf-8"))["images_seen"]
        except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
            seen = "N"
        return f"--init {self.weights} --images_seen {seen}"

    def read_state(self, model):
        """-> the state, None where there is none. Raises UserError when it is damaged, or of another model.

        model: what `model_sections` says of the config.
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
                f"{self.state} is damaged, or no state of a training: delete it to begin again from the weights "
                f"({self.from_weights()})"
            ) from error
        if differing:
            raise UserError(
                f"{self.state} is the state of another model: {differing}; give another --out, or delete it to begin anew"
            )
        return state

    def write(self, state, weights, record):
        """The state first, from which the rest could be made again. Raises OSError, and keeps what was there, when the
        disk does not take it."""
        tensors.save(state, self.state)
        tensors.save(weights, self.weights)
        write_text(self.record, yaml.safe_dump(to_dict(record), sort_keys=False, allow_unicode=True))


def model_sections(config):
    """What a state is only good for, of a model's settings: the network, its noise schedule and its images -> plain dicts."""
    data = {key: getattr(config.data, key) for key in ("dataset", "category", "image_size")}
    return {"data": data, "model": to_dict(config.model), "diffusion": to_dict(config.diffusion)}


def first_difference(there, here):
    """Two results of `model_sections` -> the first setting in which they differ, in words; '' where they are the same."""
    for section, values in here.items():
        for key in {**there[section], **values}:
            found, wanted = there[section].get(key), values.get(key)
            if found != wanted:
                return f"{section}.{key} is {found} there, and {wanted} in the config"
    return ""
