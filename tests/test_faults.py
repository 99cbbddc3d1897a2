"""A table of faults: what a user, a file or a machine may do to a run of main.py, and how it must react.

A fault is set up in a folder with a finished training: latents, curves, results and a direction. In each mode where it applies,
the run either succeeds with a line that says what was repaired or skipped, or exits with status 2 and one line that names the
fault. Nothing that was there before is lost, and once the fault is removed the same command succeeds.
"""

import pytest
import torch
from faults import (
    DIRECTION,
    Fault,
    a_file_instead_of,
    a_folder_instead_of,
    a_link_to_itself,
    a_pipe_among_the_images,
    a_pipe_instead_of,
    an_endless_device_instead_of,
    bomb,
    changed_config,
    changed_record,
    cut,
    endless_lmdb,
    every,
    filled,
    not_finite,
    nothing,
    renamed_images,
    self_holding,
    zeroed,
)
from tiny_world import MODES, NAME, tensors_equal

from asyrp import directions
from utils import tensors
from utils.errors import UserError

EDITS = ("test", "evaluate")
NOT_LPIPS = ("precompute", "train", "retrain", *EDITS)
RESULTS = f"runs/{NAME}"
AGAIN = "is damaged ("
ASIDE = "is damaged: it was renamed to"
LEFT = "skipped: "
NO_FILES = (("a pipe", a_pipe_instead_of), ("a device", an_endless_device_instead_of), ("a folder", a_folder_instead_of))

TABLE = [
    # ---- the machine refuses to write or read ----
    Fault("a file in place of the store", a_file_instead_of("precomputed"), every("precomputed", ("lpips", *NOT_LPIPS))),
    Fault(
        "a file in place of the experiment", a_file_instead_of(RESULTS), every(RESULTS, ("lpips", "train", "retrain", *EDITS))
    ),
    Fault(
        "a file in place of the checkpoints", a_file_instead_of("checkpoint"), every("checkpoint", ("train", "retrain", *EDITS))
    ),
    Fault("a folder in place of the checkpoint", a_folder_instead_of(DIRECTION), every("folder", ("train", "retrain", *EDITS))),
    Fault("a folder in place of the report", a_folder_instead_of(f"{RESULTS}/report.html"), every("report.html", EDITS)),
    Fault("a results folder that is a link to itself", a_link_to_itself("runs"), every("runs", ("lpips", "train", *EDITS))),
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
        "training pictures that cannot be written",
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
        every("inf or nan", ("precompute", "retrain")) | {"lpips": "LPIPS curves are invalid"},
    ),
    Fault("weights that contain themselves", self_holding("world/ddpm.pt"), every("ddpm.pt contains no state dict")),
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
    Fault("latents with zeros at the end", zeroed("precomputed/latent/*/*"), mended=every(AGAIN, NOT_LPIPS)),
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
        "damaged report_pictures.json",
        filled(f"{RESULTS}/report_pictures.json", contents=b"[]"),
        mended={"evaluate": ASIDE, "test": ""},
    ),
    Fault(
        "damaged evaluation.json", filled(f"{RESULTS}/evaluation.json", contents=b"{"), mended={"test": ASIDE, "evaluate": ""}
    ),
    *(
        Fault(f"{what} in place of {file}", put(f"{RESULTS}/{file}"), mended=modes)
        for what, put in NO_FILES
        for file, modes in (
            ("settings_train.yml", every(ASIDE, EDITS)),
            ("losses/epoch_0.csv", every("is damaged (", EDITS)),
            ("report_pictures.json", {"train": ASIDE}),
            ("evaluation.json", {"test": ASIDE}),
        )
    ),
    Fault(
        "a damaged index of pixels", filled("precomputed/pixels/*", contents=b"\xff[1, 2\n{}\n"), mended=every("", NOT_LPIPS)
    ),
    Fault(
        "one truncated image",
        cut("world/*/00.png"),
        mended=every("00.png cannot be read as an image", ("lpips", "precompute", "retrain", *EDITS)),
    ),
    Fault("one truncated image, counted", cut("world/*/00.png"), mended={"precompute": "test: 3 latents ready"}),
    Fault("every image truncated", cut("world/*/*.png"), every("none of the", ("lpips", "precompute", "retrain", *EDITS))),
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
        "a strip of one strength",
        nothing,
        every("--num_delta", EDITS),
        flags=("--delta_interpolation", "--num_delta", "1"),
    ),
    Fault(
        "an empty prompt", nothing, every("--trg_txts", ("retrain", "evaluate")), flags=("--src_txts", "face", "--trg_txts", "")
    ),
    Fault(
        "test images that do not exist",
        nothing,
        {"test": "--start_image_id 9", "evaluate": "--start_image_id 9", "retrain": "--start_image_id 9"},
        flags=("--start_image_id", "9", "--do_test", "1"),
    ),
    Fault("nan in a YAML", changed_config(editing={"lr_training": float("nan")}), every("lr_training", ("retrain", *EDITS))),
    Fault("an infinite noise schedule", changed_config(diffusion={"beta_end": float("inf")}), every("beta_end")),
    # ---- text ----
    Fault("file names that are not UTF-8", renamed_images(b"\xff\xfe"), mended=every("")),
    Fault("file file names of several lines", renamed_images(b"a\nb\t\x1b[31m"), mended=every("")),
    Fault(
        "an experiment name of several words",
        nothing,
        mended=every("", ("lpips", "retrain")),
        flags=("--exp", "runs/ein Lächeln"),
    ),
    # ---- what has no end ----
    Fault("a pipe among the images", a_pipe_among_the_images, mended=every("")),
    Fault("an LMDB with a false count of a billion images", endless_lmdb, every("")),
    Fault("a YAML bomb", bomb, every("ddpm.yml")),
    # ---- names that leave the folder ----
    Fault("a category with a parent folder", changed_config(data={"category": "../../x"}), every("category")),
    Fault("a dataset name of 300 letters", nothing, every("--custom_dataset_name"), flags=("--custom_dataset_name", "a" * 300)),
    Fault(
        "a dataset name with a parent folder",
        nothing,
        every("--custom_dataset_name"),
        flags=("--custom_dataset_name", "../../x"),
    ),
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
