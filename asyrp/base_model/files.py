"""What a training of a base model leaves: weights, and beside them its state, samples, and how they were made."""

import json
from contextlib import contextmanager
from pathlib import Path

import torch
import yaml

from utils import tensors
from utils.errors import UserError
from utils.files import one_line, replacing

NEEDED = {"model", "unet", "ema", "images_seen", "seconds", "sessions"}  # in a state; an optimiser can be made anew


class Files:
    """`weights`, and beside them `state`, `record` and `samples`: the same name with .state, .yml and .png behind it."""

    def __init__(self, out):
        self.weights = Path(out)
        self.state, self.record, self.samples = (Path(f"{out}.{kind}") for kind in ("state", "yml", "png"))

    def check_free(self):
        """Raise UserError where weights stand that a training from the beginning would write over."""
        if self.weights.exists() and not self.state.exists():
            seen = f" --images_seen {n}" if (n := self.images_seen()) else ""
            raise UserError(
                f"{self.weights} is there already, without a state to go on from: begin from it with --init {self.weights}"
                f"{seen}, delete it, or give another --out"
            )

    def images_seen(self):
        """What the record says; None where it says nothing."""
        try:
            return yaml.safe_load(self.record.read_text())["images_seen"]
        except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
            return None

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
            there = state["model"]
            differing = [
                (f"{section}.{key}", there[section].get(key), values.get(key))
                for section, values in model.items()
                for key in {**there[section], **values}
                if there[section].get(key) != values.get(key)
            ]
        except (UserError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self.state} is damaged, or no state of a training: delete it to begin again from the weights (--init "
                f"{self.weights} --images_seen {self.images_seen() or 'N'})"
            ) from error
        if differing:
            name, found, wanted = differing[0]
            raise UserError(
                f"{self.state} is the state of another model: {name} is {found} there, and {wanted} in the config; give "
                "another --out, or delete it to begin anew"
            )
        return state

    def write_record(self, record):
        """record: a dict of what `plain` takes."""
        with written(self.record) as beside:
            beside.write_text(yaml.safe_dump(plain(record), sort_keys=False, allow_unicode=True))

    def write(self, state, weights, record):
        """The state first, from which the rest could be made again. Raises UserError when the disk does not take all of it."""
        for path, contents in ((self.state, state), (self.weights, weights)):
            with written(path) as beside:
                torch.save(contents, beside)
        self.write_record(record)


@contextmanager
def written(path):
    """`replacing`, with a disk that is full, or a folder that nobody may write to, told in one line."""
    try:
        with replacing(path) as beside:
            yield beside
    except (OSError, RuntimeError) as error:  # torch.save makes the one into the other
        raise UserError(
            f"{path} cannot be written ({one_line(error)}): mend that or free space; what was saved there before is kept"
        ) from error


def plain(value):
    """Settings of any kind (objects, tuples) -> dicts, lists and plain values, as YAML and a file of tensors can hold them."""
    return json.loads(json.dumps(value, default=vars))


def model_sections(config):
    """What a state is only good for, of a model's settings: the network, its noise schedule and its images -> plain dicts."""
    data = {key: getattr(config.data, key) for key in ("dataset", "category", "image_size")}
    return {"data": data, "model": plain(config.model), "diffusion": plain(config.diffusion)}
