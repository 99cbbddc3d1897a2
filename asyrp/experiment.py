"""Where a run's results lie and what they are called."""

import json
import platform
import re
import shutil
from datetime import datetime
from pathlib import Path

import torch
import yaml

from asyrp.config import ROOT, to_dict
from utils.errors import UserError

CHECKPOINTS = Path("checkpoint")
SHIPPED = ROOT / "pretrained"


class Experiment:
    """Names and folders of one experiment; all relative to the folder the program was started in.

    name: <exp>_LC_<category>_t<t_0>_ninv<n_inv>_ngen<n_train>, the 2023 release's form. folder: where results go.
    """

    def __init__(self, args, config):
        # "runs/smiling" names the experiment "smiling"; with "runs/" the attribute or the model's name has to do.
        parent, _, base = args.exp.rpartition("/")
        self.base = base or args.edit_attr or config.path.stem
        self.suffix = f"_LC_{config.data.category}_t{args.t_0}_ninv{args.n_inv_step}_ngen{args.n_train_step}"
        self.name = self.base + self.suffix
        self.folder = Path(parent or ".") / self.name
        self.args, self.config = args, config

    def checkpoint(self, epoch, images=None):
        """Path of the checkpoint after an epoch, or within it after so many images."""
        within = "" if images is None else f"_{images}"
        return CHECKPOINTS / f"{self.name}_{epoch}{within}.pth"

    def find_direction(self, name=None):
        """The checkpoint of a direction -> path.

        name: a path, a name under checkpoint/, an experiment (with or without its suffix), or a direction that ships with
        the model; None means this experiment. Raises UserError that says where it was looked for.
        """
        name = name or self.base
        chosen = self.args.choose_checkpoint_num
        places = [Path(name), CHECKPOINTS / name, CHECKPOINTS / f"{name}.pth"]
        found = [place for place in places if place.is_file()]
        if found and chosen is not None:
            raise UserError(f"--choose_checkpoint_num chooses among an experiment's checkpoints: leave it out for {found[0]}")
        for stem in (name + self.suffix, name):
            found += self._epochs(stem, chosen)
        if chosen is None:
            category = self.config.data.category.lower()
            found += [p for p in [SHIPPED / category / "directions" / f"{name}.pth"] if p.is_file()]
        if not found:
            within = "" if chosen is None else f" after {chosen} images (--choose_checkpoint_num)"
            raise UserError(
                f"no direction {name}{within}: looked for {CHECKPOINTS}/{name}{self.suffix}_<epoch>.pth and for a file of that "
                "name; train it with --run_train, or give --manual_checkpoint_name"
            )
        return found[0]

    def _epochs(self, stem, images):
        """Checkpoints <stem>_<epoch>[_<images>].pth, the latest epoch first."""
        pattern = re.compile(re.escape(stem) + r"_(\d+)" + ("" if images is None else f"_{images}") + r"\.pth")
        matches = [(pattern.fullmatch(path.name), path) for path in CHECKPOINTS.glob("*.pth")]
        epochs = {int(match[1]): path for match, path in matches if match}
        return [epochs[epoch] for epoch in sorted(epochs, reverse=True)]

    def write_settings(self, mode, **found):
        """settings_<mode>.yml beside the results: date, flags, the model's settings, versions, what the run found out."""
        versions = {"python": platform.python_version(), "torch": str(torch.__version__)}
        date = datetime.now().isoformat(timespec="seconds")
        settings = {"date": date, "flags": vars(self.args), "config": to_dict(self.config), "versions": versions, **found}
        self.folder.mkdir(parents=True, exist_ok=True)
        # Through JSON, so that the YAML holds plain values only.
        plain = json.loads(json.dumps(settings, default=str))
        (self.folder / f"settings_{mode}.yml").write_text(yaml.safe_dump(plain, sort_keys=False))
        script = Path(self.args.sh_file_name or "")
        if script.is_file():
            shutil.copy(script, self.folder / script.name)
