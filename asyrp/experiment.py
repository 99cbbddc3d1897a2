"""Folder and file names of an experiment, and the file of the settings that produced its results."""

import json
import platform
import shutil
from contextlib import suppress
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

    name: <exp>_LC_<category>_t<t_0>_ninv<n_inv>_ngen<n_train>, as in the 2023 release. folder: where results go, named like the
    experiment, with the inversion added ("_ddpm", "_fixed_point") if it is not the config's own. part: "_pc1" and so on, if an
    experiment has several directions.
    """

    def __init__(self, settings, part=""):
        config = settings.config
        # "runs/smiling" names the experiment "smiling"; with "runs/" the name is that of the attribute or the model.
        parent, _, base = settings.exp.rpartition("/")
        picture = settings.edit_image and Path(settings.edit_image).stem
        self.base = (base or picture or settings.edit_attr or config.name) + part
        steps = f"t{settings.t_0}_ninv{settings.n_inv_step}_ngen{settings.n_train_step}"
        self.suffix = f"_LC_{config.data.category}_{steps}"
        self.name = self.base + self.suffix
        inversion = "" if settings.inversion == config.inversion else f"_{settings.inversion}"
        self.folder = Path(parent or ("/" if settings.exp.startswith("/") else ".")) / f"{self.name}{inversion}"
        self.settings = settings

    def checkpoint(self, epoch, images=None):
        """Path of the checkpoint after an epoch, or within it after this many images."""
        within = "" if images is None else f"_{images}"
        return CHECKPOINTS / f"{self.name}_{epoch}{within}.pth"

    @property
    def lock(self):
        """The lock file that lets only one process train this experiment."""
        return CHECKPOINTS / f".{self.name}.lock"

    def write_settings(self, mode, **found):
        """Write settings_<mode>.yml: date, flags and their sources, model, versions, commit, and `found`, what the run
        decided."""
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
        # Via JSON, so that the YAML contains only plain values.
        plain = json.loads(json.dumps(settings, default=str))
        write_text(self.folder / f"settings_{mode}.yml", yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))
        script = Path(self.settings.sh_file_name or "")
        if script.is_file():
            # No result ends in .sh, so the copy never overwrites one.
            name = script.name if script.suffix == ".sh" else f"{script.name}.sh"
            with suppress(shutil.SameFileError):
                shutil.copy(script, self.folder / name)
