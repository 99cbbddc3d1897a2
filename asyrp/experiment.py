"""Where a run's results lie, what they are called, and the file that says which settings made them."""

import json
import platform
import shutil
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import torch
import yaml

from asyrp.directions import CHECKPOINTS
from utils.files import write_text
from utils.revision import commit


class Experiment:
    """Names and folders of one experiment, relative to the folder the program was started in.

    name: <exp>_LC_<category>_t<t_0>_ninv<n_inv>_ngen<n_train>, the 2023 release's form. folder: where results go. part: of an
    experiment that makes several directions, "_pc1" and so on.
    """

    def __init__(self, settings, part=""):
        config = settings.config
        # "runs/smiling" names the experiment "smiling"; with "runs/" the attribute or the model's name has to do.
        parent, _, base = settings.exp.rpartition("/")
        picture = settings.edit_image and Path(settings.edit_image).stem
        self.base = (base or picture or settings.edit_attr or config.name) + part
        steps = f"t{settings.t_0}_ninv{settings.n_inv_step}_ngen{settings.n_train_step}"
        self.suffix = f"_LC_{config.data.category}_{steps}"
        self.name = self.base + self.suffix
        self.folder = Path(parent or ("/" if settings.exp.startswith("/") else ".")) / self.name
        self.settings = settings

    def checkpoint(self, epoch, images=None):
        """Path of the checkpoint after an epoch, or within it after so many images."""
        within = "" if images is None else f"_{images}"
        return CHECKPOINTS / f"{self.name}_{epoch}{within}.pth"

    @property
    def lock(self):
        """The file by which one process at a time trains this experiment."""
        return CHECKPOINTS / f".{self.name}.lock"

    def write_settings(self, mode, **found):
        """settings_<mode>.yml beside the results: date, flags and where each is from, model, versions, commit, what was
        found out."""
        settings = {
            "date": datetime.now().isoformat(timespec="seconds"),
            "flags": self.settings.values(),
            "sources": self.settings.sources(),
            "config": asdict(self.settings.config),
            "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
            **({"commit": found_at} if (found_at := commit()) else {}),
            **found,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        # Through JSON, so that the YAML holds plain values only.
        plain = json.loads(json.dumps(settings, default=str))
        write_text(self.folder / f"settings_{mode}.yml", yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))
        script = Path(self.settings.sh_file_name or "")
        if script.is_file():
            shutil.copy(script, self.folder / script.name)
