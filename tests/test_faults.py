"""The table of faults: what a user, a file or a machine may do to a run of main.py, and what must be seen then.

A fault is arranged in a folder that holds a finished training, with its latents, curves, results and direction. In each mode
where it applies the run ends well with a line that says what was mended or left out, or with status 2 and one line that names
the fault; nothing that was there before is lost, and once the fault is gone run the same command to resume.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field

import lmdb
import pytest
import torch
import yaml
from tiny_world import MODES, NAME, tensors_equal

from asyrp import directions
from utils import tensors
from utils.errors import UserError

EDITS = ("test", "evaluate")
NOT_LPIPS = ("precompute", "train", "retrain", *EDITS)
RESULTS = f"runs/{NAME}"
DIRECTION = f"checkpoint/{NAME}_0.pth"


@dataclass(frozen=True)
class Fault:
    """cause: function of a site (see conftest.py) that arranges the fault. refused: {mode: words of the one line of an error};
    mended: {mode: words of a warning, '' where there is nothing to say} of runs that end well. flags: more of them. by_curves:
    whether the intervals are read off LPIPS curves."""

    kind: str
    cause: Callable
    refused: dict = field(default_factory=dict)
    mended: dict = field(default_factory=dict)
    flags: tuple = ()
    by_curves: bool = False


def every(words, modes=tuple(MODES)):
    return dict.fromkeys(modes, words)


# ---- causes -----------------------------------------------------------------------------------------------------------------


def nothing(site):
    pass


def instead_of(name, put):
    """Something else stands where `name` belongs. The cause returns a function that puts it right."""

    def cause(site):
        path = site.root / name
        moved, was_there = path.with_name(f"{path.name}.moved"), path.exists()
        if was_there:
            path.rename(moved)
        path.parent.mkdir(parents=True, exist_ok=True)
        put(path)

        def undo():
            if os.path.lexists(path):  # what is damaged is set aside
                path.rmdir() if path.is_dir() else path.unlink()
            if was_there:
                moved.rename(path)

        return undo

    return cause


def a_file_instead_of(name):
    return instead_of(name, lambda path: path.write_text("a file"))


def a_folder_instead_of(name):
    return instead_of(name, lambda path: path.mkdir())


def a_link_to_itself(name):
    return instead_of(name, lambda path: path.symlink_to(path.name))


def a_pipe_instead_of(name):
    return instead_of(name, os.mkfifo)


def an_endless_device_instead_of(name):
    return instead_of(name, lambda path: path.symlink_to("/dev/zero"))


def cut(*names):
    """Files lose their second half."""

    def cause(site):
        for pattern in names:
            for path in site.found(pattern):
                os.truncate(path, path.stat().st_size // 2)

    return cause


def filled(*names, contents=b""):
    """Files that hold something else."""

    def cause(site):
        for pattern in names:
            for path in site.found(pattern):
                path.write_bytes(contents)

    return cause


def zeroed(name):
    def cause(site):
        for path in site.found(name):
            whole = bytearray(path.read_bytes())
            whole[-64:] = bytes(64)
            path.write_bytes(whole)

    return cause


def not_finite(name):
    """A number in a file of weights is infinite."""

    def cause(site):
        [path] = site.found(name)
        weights = torch.load(path, weights_only=True)
        tensor = max(weights.values(), key=torch.numel)
        tensor.view(-1)[0] = float("inf")
        torch.save(weights, path)

    return cause


def renamed_images(name):
    """Names of images that are not UTF-8."""

    def cause(site):
        for folder in ("train", "test"):
            for path in site.found(f"world/{folder}/*.png"):
                os.rename(path, os.fsencode(path.parent) + b"/" + name + path.name.encode())

    return cause


def a_pipe_among_the_images(site):
    for folder in ("train", "test"):
        os.mkfifo(site.root / "world" / folder / "pipe.png")


def endless_lmdb(site):
    """Whose own count of images is a lie."""
    for folder in ("train", "test"):
        shutil.rmtree(site.root / "world" / folder)
        with lmdb.open(str(site.root / "world" / folder)) as images, images.begin(write=True) as txn:
            txn.put(b"length", b"1000000000")
            txn.put(b"16-00000", b"no image")


def changed_config(**sections):
    def cause(site):
        path = site.root / "world" / "ddpm.yml"
        config = yaml.safe_load(path.read_text())
        for section, values in sections.items():
            config[section] = {**config.get(section, {}), **values}
        path.write_text(yaml.safe_dump(config))

    return cause


def bomb(site):
    """A YAML of 1 KB that is a list of ten billion."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    (site.root / "world" / "ddpm.yml").write_text("\n".join(lines))


def changed_record(**entries):
    """The record of the direction says something else."""

    def cause(site):
        contents = torch.load(site.root / DIRECTION, weights_only=True)
        contents["record"] |= entries
        torch.save(contents, site.root / DIRECTION)

    return cause


def self_holding(name):
    def cause(site):
        contents = {}
        contents |= {"state_dict": contents, "ema": contents}
        torch.save(contents, site.root / name)

    return cause


AGAIN = "is damaged ("
ASIDE = "is damaged: it was renamed to"
LEFT = "skipped: "
NO_FILES = (("a pipe", a_pipe_instead_of), ("a device", an_endless_device_instead_of), ("a folder", a_folder_instead_of))

TABLE = [
    # ---- the machine refuses to write or read ----
    Fault("a file where the store belongs", a_file_instead_of("precomputed"), every("precomputed", ("lpips", *NOT_LPIPS))),
    Fault(
        "a file where the experiment belongs", a_file_instead_of(RESULTS), every(RESULTS, ("lpips", "train", "retrain", *EDITS))
    ),
    Fault(
        "a file where checkpoints belong", a_file_instead_of("checkpoint"), every("checkpoint", ("train", "retrain", *EDITS))
    ),
    Fault(
        "a folder where the checkpoint belongs", a_folder_instead_of(DIRECTION), every("folder", ("train", "retrain", *EDITS))
    ),
    Fault("a folder where the report belongs", a_folder_instead_of(f"{RESULTS}/report.html"), every("report.html", EDITS)),
    Fault("a folder of results that leads to itself", a_link_to_itself("runs"), every("runs", ("lpips", "train", *EDITS))),
    Fault(
        "a name that is too long", nothing, every("too long", ("lpips", "train", *EDITS)), flags=("--exp", "runs/" + "a" * 300)
    ),
    Fault(
        # A file of so many bytes can be made; that of a later checkpoint cannot.
        "a name that is too long for a checkpoint",
        nothing,
        every("too long", ("retrain",)),
        flags=("--exp", f"runs/{'a' * (255 - len(NAME) + len('smile') - len('_0_2.pth'))}", "--n_iter", "11"),
    ),
    Fault(
        "side pictures that have no room",
        a_file_instead_of(f"{RESULTS}/training_images"),
        mended=every("a picture cannot be written", ("train", "retrain")),
        flags=("--save_train_image", "1", "--save_train_image_step", "1"),
    ),
    # ---- damaged files ----
    Fault("half of the weights", cut("world/ddpm.pt"), every("ddpm.pt cannot be read as a weight file")),
    Fault("empty weights", filled("world/ddpm.pt"), every("ddpm.pt")),
    Fault(
        "weights with an infinite number",
        not_finite("world/ddpm.pt"),
        every("not finite", ("precompute", "retrain")) | {"lpips": "of no use"},
    ),
    Fault("weights that hold themselves", self_holding("world/ddpm.pt"), every("ddpm.pt contains no state dict")),
    Fault(
        "half of the CLIP",
        cut("world/clip.pt"),
        every("clip.pt cannot be read as a weight file", ("train", "retrain")),
        mended={"evaluate": "clip.pt cannot be read as a weight file", "test": ""},
    ),
    Fault(
        "a CLIP's config that is no JSON",
        filled("world/clip.json", contents=b"{"),
        every("clip.json is not valid JSON", ("train", "retrain")),
        mended={"evaluate": "clip.json is not valid JSON", "test": ""},
    ),
    Fault(
        "half of a checkpoint",
        cut(DIRECTION),
        every(f"{DIRECTION} cannot be read as a weight file", ("train", *EDITS)),
        mended={"retrain": ""},
    ),
    Fault("an empty checkpoint", filled(DIRECTION), every(DIRECTION, ("train", *EDITS)), mended={"retrain": ""}),
    *(
        Fault(f"a record with {entries}", changed_record(**entries), every("is damaged: its record", ("train", *EDITS)))
        for entries in (
            {"ignore_timesteps": torch.zeros(2)},
            {"ignore_timesteps": "no"},
            {"prompts": torch.zeros(2)},
            {"note": torch.zeros(2)},
            {"training": {"lr_training": torch.zeros(2)}},
        )
    ),
    Fault("a record without its model", changed_record(model=None), {"train": "other identity"}, mended=every("", EDITS)),
    Fault("a record without its training", changed_record(training=None), mended=every("", ("train", *EDITS))),
    Fault("half of every latent", cut("precomputed/latent/*/*"), mended=every(AGAIN, NOT_LPIPS)),
    Fault("empty latents", filled("precomputed/latent/*/*"), mended=every(AGAIN, NOT_LPIPS)),
    Fault("latents that end in zeros", zeroed("precomputed/latent/*/*"), mended=every(AGAIN, NOT_LPIPS)),
    Fault(
        "half of the curves",
        cut("precomputed/curve/*/*"),
        every("no LPIPS curves for category CUSTOM", ("train", "retrain", *EDITS)),
        by_curves=True,
    ),
    Fault(
        "empty settings", filled(f"{RESULTS}/settings_train.yml"), mended=every(ASIDE, EDITS) | every("", ("train", "retrain"))
    ),
    Fault("settings of zeros", filled(f"{RESULTS}/settings_train.yml", contents=bytes(99)), mended=every(ASIDE, EDITS)),
    Fault(
        "losses of zeros", filled(f"{RESULTS}/losses/*", contents=bytes(99)), mended=every("is damaged (", ("train", *EDITS))
    ),
    Fault(
        "pictures of a report",
        filled(f"{RESULTS}/report_pictures.json", contents=b"[]"),
        mended={"evaluate": ASIDE, "test": ""},
    ),
    Fault("metrics", filled(f"{RESULTS}/evaluation.json", contents=b"{"), mended={"test": ASIDE, "evaluate": ""}),
    *(
        Fault(f"{what} where {file} belongs", put(f"{RESULTS}/{file}"), mended=modes)
        for what, put in NO_FILES
        for file, modes in (
            ("settings_train.yml", every(ASIDE, EDITS)),
            ("losses/epoch_0.csv", every("is damaged (", EDITS)),
            ("report_pictures.json", {"train": ASIDE}),
            ("evaluation.json", {"test": ASIDE}),
        )
    ),
    Fault("an index of pixels", filled("precomputed/pixels/*", contents=b"\xff[1, 2\n{}\n"), mended=every("", NOT_LPIPS)),
    Fault(
        "one image cut off",
        cut("world/*/00.png"),
        mended=every("00.png cannot be read as an image", ("lpips", "precompute", "retrain", *EDITS)),
    ),
    Fault("one image cut off, counted", cut("world/*/00.png"), mended={"precompute": "test: 3 latents ready"}),
    Fault("every image cut off", cut("world/*/*.png"), every("none of the", ("lpips", "precompute", "retrain", *EDITS))),
    Fault("half of the config", cut("world/ddpm.yml"), every("ddpm.yml")),
    Fault("a config of zeros", filled("world/ddpm.yml", contents=bytes(64)), every("ddpm.yml")),
    # ---- numbers ----
    *(
        Fault(f"{flag} {value}", nothing, every(flag, modes), flags=(flag, value))
        for flag, value, modes in (
            ("--hs_coeff_delta_h", "nan", EDITS),
            ("--hs_coeff_delta_h", "1e30", EDITS),
            ("--multiple_hs_coeff", "inf", EDITS),
            ("--max_delta", "-inf", EDITS),
            ("--dt_lambda", "-1e30", EDITS),
            ("--lpips_edit_th", "nan", ("retrain",)),
            ("--lpips_addnoise_th", "-1", EDITS),
            ("--lr_training", "1e30", ("retrain",)),
            ("--clip_loss_w", "-1", ("retrain",)),
            ("--l1_loss_w", "inf", ("retrain",)),
            ("--seed", "-1", tuple(MODES)),
            ("--cache_origin_gib", "nan", ("retrain",)),
            ("--n_inv_step", "1e30", tuple(MODES)),
            ("--bs_precompute", "0", ("precompute", "lpips")),
        )
    ),
    Fault(
        "a single strength to go through",
        nothing,
        every("--num_delta", EDITS),
        flags=("--delta_interpolation", "--num_delta", "1"),
    ),
    Fault(
        "an empty prompt", nothing, every("--trg_txts", ("retrain", "evaluate")), flags=("--src_txts", "face", "--trg_txts", "")
    ),
    Fault(
        "test images that are not there",
        nothing,
        {"test": "--start_image_id 9", "evaluate": "--start_image_id 9", "retrain": "--start_image_id 9"},
        flags=("--start_image_id", "9", "--do_test", "1"),
    ),
    Fault(
        "a number of a YAML", changed_config(editing={"lr_training": float("nan")}), every("lr_training", ("retrain", *EDITS))
    ),
    Fault("a noise schedule", changed_config(diffusion={"beta_end": float("inf")}), every("beta_end")),
    # ---- text ----
    Fault("names that are not UTF-8", renamed_images(b"\xff\xfe"), mended=every("")),
    Fault("names of several lines", renamed_images(b"a\nb\t\x1b[31m"), mended=every("")),
    Fault(
        "an experiment of several words", nothing, mended=every("", ("lpips", "retrain")), flags=("--exp", "runs/ein Lächeln")
    ),
    # ---- what has no end ----
    Fault("a pipe among the images", a_pipe_among_the_images, mended=every("")),
    Fault("an LMDB that promises a billion images", endless_lmdb, every("")),
    Fault("a YAML that unfolds", bomb, every("ddpm.yml")),
    # ---- names that leave the folder ----
    Fault("a category that climbs", changed_config(data={"category": "../../x"}), every("category")),
    Fault(
        "a dataset's name of 300 letters", nothing, every("--custom_dataset_name"), flags=("--custom_dataset_name", "a" * 300)
    ),
    Fault("a dataset's name that climbs", nothing, every("--custom_dataset_name"), flags=("--custom_dataset_name", "../../x")),
]
CASES = [
    pytest.param(fault, mode, id=f"{fault.kind}-{mode}")
    for fault in TABLE
    for mode in MODES
    if mode in {**fault.refused, **fault.mended}
]


# ---- the test ---------------------------------------------------------------------------------------------------------------


def belongings(root):
    """{name: contents} of what must not get lost: directions and latents that can be read."""
    kept = {}
    for pattern in ("checkpoint*/*.pth", "precomputed*/latent/*/*.safetensors"):
        for path in root.glob(pattern):
            if path.is_file():
                try:
                    found = tensors.load(path)
                    kept[path.name] = found["x_T"].tolist() if "x_T" in found else directions.read(path).parts
                except UserError:
                    continue
    return kept


def same(a, b):
    return tensors_equal(a, b) if isinstance(a, dict) else a == b


@pytest.mark.parametrize(("fault", "mode"), CASES)
def test_fault(site, fault, mode):
    everything = belongings(site.root)
    undo = fault.cause(site)
    intact = [name for name, contents in belongings(site.root).items() if same(contents, everything[name])]
    outside = sorted(site.root.parent.iterdir())
    more = {"intervals": ()} if fault.by_curves else {}
    status, out, err = site.run(mode, *fault.flags, **more)
    errors = [line for line in err if line.startswith("error: ")]
    assert not any("Traceback" in line for line in err)
    if mode in fault.refused:
        assert status == 2 and len(errors) == 1 and err[-1] == errors[0], err
        assert fault.refused[mode] in errors[0] and errors[0].isprintable()
    else:
        assert status == 0 and not errors, err
        assert any(fault.mended[mode] in line for line in [*err, *out])
    assert sorted(site.root.parent.iterdir()) == outside
    after = belongings(site.root)
    assert mode == "retrain" or all(name in after and same(after[name], everything[name]) for name in intact)
    if undo:
        undo()
        assert site.run(mode, *(() if mode in fault.refused else fault.flags), **more)[0] == 0
        assert belongings(site.root).keys() >= everything.keys()
