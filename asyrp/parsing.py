"""Read the command line and check each flag by itself and together with the others. Needs only the standard library."""

import argparse
import difflib
import os
import re
import sys

from asyrp.options import DEFAULTS, FLAGS, MODES, WITHOUT_EFFECT
from utils.errors import UserError

DESCRIPTION = """Edit images with a frozen diffusion model by moving its bottleneck features, h-space (Asyrp, ICLR 2023).

Seven modes, in the usual order: --lpips measures at which timesteps an edit should act, --just_precompute inverts images,
--run_train learns a direction, --fit_direction computes one from labels or unlabelled images, --calibrate equalises its
steps, --run_test edits images with it, --evaluate measures the effect.

Each setting is taken from its flag, else from the direction's record, else from the section `editing` of the YAML, else it
is the default listed here."""

EXAMPLES = """examples, with the model included in the repository:
  python main.py --lpips --config avatar.yml --n_train_img 100
  python main.py --just_precompute --config avatar.yml --n_precomp_img 100
  python main.py --run_train --config avatar.yml --exp runs/sad --edit_attr avatar_sad --train_delta_block
  python main.py --run_test --config avatar.yml --exp runs/sad --delta_interpolation --min_delta -1 --max_delta 1.5"""

PROMPTS = {"src_txts", "trg_txts"}
NO_FP16 = "--precision fp16 cannot train because its gradients underflow: use bf16"
LONGEST_NAME = 200  # bytes; file systems allow 255
METAVARS = {int: "N", float: "X", str: "TEXT"}


class Parser(argparse.ArgumentParser):
    """ArgumentParser that raises UserError instead of exiting."""

    def error(self, message):
        raise UserError(f"{message}; see {called()} --help")


class Help(argparse.RawDescriptionHelpFormatter):
    """Help in 100 columns."""

    def __init__(self, prog):
        super().__init__(prog, max_help_position=34, width=100)


def called():
    """The command that started the program: "asyrp" if it is installed and was started by that name."""
    return "asyrp" if os.path.splitext(os.path.basename(sys.argv[0]))[0] == "asyrp" else "python main.py"


def _help(flag):
    return flag.text if flag.default in (None, False) else f"{flag.text} (default: {flag.default})"


def build_parser():
    """The parser of main.py; `main.py --help` prints it."""
    parser = Parser(
        prog=called().split()[-1],
        usage=f"{called().split()[-1]} --config YAML (--lpips | --just_precompute | --run_train | --run_test | ...) [flags]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=Help,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,  # the result holds only the flags that were given
    )
    groups = {}
    for flag in FLAGS.values():
        group = groups.setdefault(flag.group, parser.add_argument_group(flag.group))
        common = {"help": _help(flag).replace("%", "%%")}
        if flag.kind == "switch":
            group.add_argument(f"--{flag.name}", action="store_true", **common)
        elif flag.kind == "zero_one":
            group.add_argument(f"--{flag.name}", type=int, nargs="?", const=1, choices=(0, 1), **common)
        else:
            shape = {"choices": flag.choices} if flag.choices else {"metavar": flag.metavar or METAVARS[flag.kind]}
            nargs = "+" if flag.many else "?" if flag.alone else None
            group.add_argument(f"--{flag.name}", type=flag.kind, nargs=nargs, const=flag.alone, **shape, **common)
    return parser


def parse_args(argv=None):
    """Command line (list of str, sys.argv by default) -> (the given flags as {name: value}, notices for the user).

    Raises UserError for an unknown flag (naming the closest one; not with --ignore_unknown_flags), a value outside its range,
    and flags that contradict each other.
    """
    found, rest = build_parser().parse_known_args(argv)
    given = vars(found)
    without_effect, unknown = [], []
    follows_ignored = False
    for word in rest:
        flag = word.split("=")[0]
        if not flag.startswith("--"):
            # The values of an ignored flag are ignored too; any other stray word is a mistake.
            if not follows_ignored:
                raise UserError(f'"{word}" does not belong to any flag: put quotes around a value with spaces')
        elif flag[2:] in WITHOUT_EFFECT:
            without_effect.append(flag)
            follows_ignored = True
        elif given.get("ignore_unknown_flags"):
            unknown.append(flag)
            follows_ignored = True
        else:
            near = difflib.get_close_matches(flag[2:], FLAGS, n=1, cutoff=0.0)
            raise UserError(f"unknown flag {flag}; did you mean --{near[0]}? (--ignore_unknown_flags skips unknown flags)")
    for name in PROMPTS & given.keys():
        given[name] = [unicode_of(name, text) for text in given[name]]
    check_values(given)
    check_together(given)
    notices = {"no effect, as in the 2023 release": without_effect, "unknown, ignored": unknown}
    return given, [f"{what}: {', '.join(flags)}" for what, flags in notices.items() if flags]


def unicode_of(name, text):
    """A prompt decoded as UTF-8, whatever the locale of the terminal. Raises UserError if it is not UTF-8."""
    try:
        return os.fsencode(text).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"--{name} {text}: the text is not valid UTF-8: set the terminal to UTF-8") from error


def check_values(given):
    """Raise UserError for a value that is invalid by itself, whatever the other flags."""
    for name, value in given.items():
        flag = FLAGS[name]
        if flag.low is not None and not flag.holds(value):
            raise UserError(f"--{name} {value}: must be {flag.range(value)}")
        for text in value if flag.many else [value]:
            if flag.kind is str and (not text.strip() or "\0" in text):
                raise UserError(f"--{name}: the text is empty: give one, or leave the flag out")
    for name in ("n_inv_step", "n_train_step", "n_test_step"):
        if given.get(name) == 1:
            raise UserError(f"--{name} 1: must be 2 or more, or 0 for every timestep up to t_0")
    if name := given.get("custom_dataset_name"):
        check_name("custom_dataset_name", name)
    if "target_image_id" in given:
        image_numbers(given["target_image_id"])
    if "target_class_num" in given and not re.fullmatch(r"\d{1,3}|n\d{8}", given["target_class_num"]):
        raise UserError(f"--target_class_num {given['target_class_num']}: must be 0 to 999, or a WordNet id such as n02099601")
    strengths(given.get("multiple_hs_coeff"))


def check_name(flag, name):
    """Raise UserError for a name that cannot be part of a file name, or that would lead out of its folder."""
    if len(os.fsencode(name)) > LONGEST_NAME:
        raise UserError(f"--{flag} {name}: too long for a file name: shorten it")
    if not re.fullmatch(r"[\w.+-]+", name) or name.strip(".") == "":
        raise UserError(f"--{flag} {name}: must be a name of letters, digits, _ + - and dots, without a folder")


def image_numbers(text):
    """ "3 7" -> [3, 7]. Raises UserError."""
    words = text.split()
    if not words or not all(re.fullmatch(r"\d{1,9}", word) for word in words):
        raise UserError(f'--target_image_id "{text}": must be image numbers such as "3 7"')
    return [int(word) for word in words]


def strengths(text):
    """ "1 0.5" -> [1.0, 0.5]; None -> []. Raises UserError."""
    found, flag = [], FLAGS["hs_coeff_delta_h"]
    for word in (text or "").split():
        try:
            found.append(float(word))
        except ValueError:
            raise UserError(f'--multiple_hs_coeff "{text}": {word} is not a number') from None
        if not flag.holds(found[-1]):
            raise UserError(f'--multiple_hs_coeff "{text}": each must be {flag.range(found[-1])}')
    return found


# ---- flags that depend on each other ----------------------------------------------------------------------------------------


def check_together(given):
    """Raise UserError for missing or contradictory flags."""

    def has(name):
        return bool(given.get(name, DEFAULTS[name]))

    if "config" not in given:
        raise UserError("no model: give --config, a name in configs/ such as avatar.yml or a path")
    if not any(has(mode) for mode in MODES):
        raise UserError(f"no mode: give one of {', '.join(f'--{mode}' for mode in MODES)}")
    sources, targets = given.get("src_txts"), given.get("trg_txts")
    if (sources is None) != (targets is None) or len(sources or []) != len(targets or []):
        raise UserError("--src_txts and --trg_txts must be given together, one target per source")
    if "edit_attr" in given and sources:
        raise UserError("--edit_attr and --src_txts/--trg_txts both set the prompts: leave one of them out")
    if has("saved_random_noise") and not has("load_random_noise"):
        raise UserError("--saved_random_noise needs --load_random_noise")
    if has("just_precompute") and has("load_random_noise") and not has("saved_random_noise"):
        raise UserError("--just_precompute --load_random_noise would keep nothing: add --saved_random_noise to keep the noise")
    if has("just_precompute") and not (has("do_train") or has("do_test")):
        raise UserError("--just_precompute with --do_train 0 and --do_test 0 has nothing to invert: leave one of them out")
    names = (given.get("multiple_attr") or "").split()
    if has("save_animation") and not (has("delta_interpolation") and len(names) < 2):
        raise UserError("--save_animation animates the strength of one direction: give --delta_interpolation and one attribute")
    if has("train_delta_block") and has("train_delta_h"):
        raise UserError("--train_delta_block and --train_delta_h are different kinds of direction: give only one of them")
    if has("run_train") and not has("just_precompute"):
        check_training(given, has)
    trains = has("run_train") or has("edit_image") or value_of(given, "fit_direction") == "clip_pca"
    if has("track") and (has("just_precompute") or not trains):
        raise UserError("--track follows a training: add --run_train, --edit_image or --fit_direction clip_pca")
    check_fit(given, has)
    check_one_image(given, has)
    check_calibrate(given, has)
    if has("run_test") or has("evaluate") or has("calibrate"):
        check_test(given, has, names)
    if has("segmenter") and not (has("evaluate") or has("edit_region")):
        raise UserError("--segmenter needs --evaluate or --edit_region")
    check_region(given, has)
    check_export(given, has)
    check_shares(given, has)
    if value_of(given, "inversion") != "ddim" and has("load_random_noise"):
        raise UserError(f"--load_random_noise does not invert images: leave out --inversion {given['inversion']}")
    if value_of(given, "inversion") == "ddpm":
        check_noise_maps(given, has)


def value_of(given, name):
    return given.get(name, DEFAULTS[name])


def check_training(given, has):
    if not (has("train_delta_block") or has("train_delta_h")):
        raise UserError("--run_train needs --train_delta_block or --train_delta_h")
    if has("train_delta_block") and given.get("get_h_num", 1) != 1:
        raise UserError(f"--train_delta_block trains one delta block: give --get_h_num 1, not {given['get_h_num']}")
    if not (has("edit_attr") or has("src_txts")):
        raise UserError("--run_train needs prompts: --edit_attr, or --src_txts and --trg_txts")
    if has("multiple_attr") or has("multiple_hs_coeff"):
        raise UserError("--run_train learns one direction: use --multiple_attr and --multiple_hs_coeff only with --run_test")
    if value_of(given, "precision") == "fp16":
        raise UserError(NO_FP16)


def check_fit(given, has):
    kind, fit = value_of(given, "fit_direction"), "--fit_direction labels"
    for name in ("fit_by", "positive", "negative", "labels", "label", "n_examples", "hold"):
        if name in given and kind != "labels":
            raise UserError(f"--{name} needs {fit}")
    for name in ("n_components", "words"):
        if name in given and kind not in ("h_pca", "clip_pca"):
            raise UserError(f"--{name} needs --fit_direction h_pca or clip_pca")
    if kind is None:
        return
    if has("run_train"):
        raise UserError("--run_train and --fit_direction both produce a direction: give only one of them")
    if kind != "clip_pca" and (has("train_delta_block") or has("train_delta_h")):
        raise UserError("--fit_direction computes a delta_h: leave out --train_delta_block and --train_delta_h")
    if kind == "clip_pca" and value_of(given, "precision") == "fp16":
        raise UserError(NO_FP16)
    if has("multiple_attr"):
        raise UserError(f"--fit_direction {kind} produces directions: use --multiple_attr only with --run_test")
    if kind != "labels" and (has("run_test") or has("evaluate")):
        raise UserError(f"--fit_direction {kind} produces several directions: test one of them later, e.g. --exp runs/x_pc1")
    for one, other in (("positive", "negative"), ("labels", "label")):
        if (one in given) != (other in given):
            raise UserError(f"--{one} and --{other} must be given together")
    if kind == "labels" and has("load_random_noise"):
        raise UserError(f"{fit} needs labelled images: leave out --load_random_noise")
    if "positive" in given and "labels" in given:
        raise UserError("--positive and --labels both define labels: give only one of them")
    if "label" in given and not re.fullmatch("[^=]+=.+", given["label"]):
        raise UserError(f"--label {given['label']}: must be NAME=VALUE, a column of the table and a value in it")
    if kind == "labels" and not ("positive" in given or "labels" in given or has("edit_attr") or has("src_txts")):
        raise UserError(f"{fit} needs labels: --positive and --negative, --labels and --label, or prompts (--edit_attr)")


def check_calibrate(given, has):
    if "equal_steps" in given and not (has("delta_interpolation") or has("export") or has("edit_image")):
        raise UserError("--equal_steps sets the spacing of a strip: add --delta_interpolation")
    if not has("calibrate"):
        if "n_calibrate_img" in given:
            raise UserError("--n_calibrate_img needs --calibrate")
        return
    for name in ("multiple_attr", "pass_editing", "num_mean_of_delta_hs", "edit_image"):
        if has(name):
            raise UserError(f"--calibrate measures one direction from a file: leave out --{name}")
    name = given.get("manual_checkpoint_name") or given.get("load_from_checkpoint") or ""
    if name.startswith("hf:") and not has("run_train"):
        copy = f"hf download {name.removeprefix('hf:')} direction.safetensors --local-dir DIR"
        raise UserError(
            f"--calibrate writes to the direction's file, and must not change the hub cache: run {copy} and use that file"
        )
    if value_of(given, "fit_direction") not in (None, "labels"):
        raise UserError("--calibrate measures one direction: fit first, then calibrate one of them, e.g. --exp runs/x_pc1")


def check_one_image(given, has):
    if "edit_image" not in given:
        return
    if not has("run_test"):
        raise UserError("--edit_image edits one image: add --run_test")
    if not (has("edit_attr") or has("src_txts")):
        raise UserError("--edit_image needs prompts: give --src_txts and --trg_txts, or --edit_attr")
    for name in ("run_train", "fit_direction", "just_precompute", "multiple_attr", "load_random_noise", "target_image_id"):
        if has(name):
            raise UserError(f"--edit_image and --{name} cannot be combined: leave one of them out")
    for name in ("custom_test_dataset_dir", "start_image_id", "n_test_img", "manual_checkpoint_name", "load_from_checkpoint"):
        if name in given:
            raise UserError(f"--{name} has no effect with --edit_image, which trains on one image and edits it: leave it out")


def check_noise_maps(given, has):
    for mode in ("run_train", "fit_direction", "edit_image"):
        if has(mode) and not has("just_precompute"):
            raise UserError(f"--{mode} uses DDIM latents: use --inversion ddpm only with --run_test or --evaluate")
    if not any(has(mode) for mode in ("just_precompute", "calibrate", "run_test", "evaluate")):
        raise UserError("--inversion ddpm needs --just_precompute, --run_test or --evaluate")
    if value_of(given, "sample_type") == "ddpm":
        raise UserError(
            "--inversion ddpm supplies the noise of every step: leave out --sample_type ddpm, which draws new noise"
        )


def check_region(given, has):
    ways = [name for name in ("edit_mask", "edit_region", "edit_threshold") if name in given]
    if len(ways) > 1:
        raise UserError(f"{' and '.join(f'--{name}' for name in ways)} both choose where to edit: give only one of them")
    components = value_of(given, "fit_direction") in ("h_pca", "clip_pca")
    if ways and not (components or any(has(mode) for mode in ("run_train", "calibrate", "run_test", "evaluate"))):
        raise UserError(f"--{ways[0]} restricts an edit: add --run_train, --run_test or --evaluate")
    for name, takes in (("region_dilation", ["edit_region"]), ("region_smoothing", ["edit_region", "edit_threshold"])):
        if name in given and ways[:1] not in [[way] for way in takes]:
            raise UserError(f"--{name} needs {' or '.join(f'--{way}' for way in takes)}")


def check_export(given, has):
    if "export" not in given:
        return
    trains_and_tests = has("run_train") and has("do_test") and not has("just_precompute")
    if not (has("run_test") or has("evaluate") or trains_and_tests):
        raise UserError("--export draws a strip of test images: add --run_test")
    for name in ("multiple_attr", "pass_editing"):
        if has(name):
            raise UserError(f"--export writes one direction: leave out --{name}")


def check_shares(given, has):
    for name in ("run_train", "edit_image", "fit_direction", "calibrate", "lpips"):
        for flag in ("slurm_array", "collect"):
            if has(flag) and has(name) and not has("just_precompute"):
                raise UserError(f"--{name} cannot run in separate processes: leave out --{flag} and start it with torchrun")
    if has("collect") and not (has("run_test") or has("evaluate")):
        raise UserError("--collect combines the results of a test: add --run_test or --evaluate, as given to its tasks")
    if has("collect") and has("slurm_array"):
        raise UserError("--slurm_array runs one task, --collect combines them afterwards: give only one of them")


def check_test(given, has, names):
    if names:
        if given.get("get_h_num", len(names)) not in (0, len(names)):
            raise UserError(
                f"--multiple_attr names {len(names)} directions but --get_h_num is {given['get_h_num']}: leave out --get_h_num"
            )
        if len(strengths(given.get("multiple_hs_coeff"))) not in (0, len(names)):
            raise UserError(f"--multiple_hs_coeff needs {len(names)} numbers, one per name in --multiple_attr")
        if has("delta_interpolation") and len(names) > 2:
            raise UserError("--delta_interpolation draws a strip for one attribute or a grid for two: give at most two")
    elif has("multiple_hs_coeff"):
        raise UserError("--multiple_hs_coeff needs --multiple_attr")
    if given.get("get_h_num") == 0 and not names and not has("pass_editing") and not has("train_delta_h"):
        raise UserError("--get_h_num 0 would edit nothing: give --get_h_num 1")
    if has("evaluate") and has("pass_editing"):
        raise UserError("--evaluate measures an edit and --pass_editing disables it: give only one of them")
    if has("evaluate") and names:
        raise UserError("--evaluate measures one direction: leave out --multiple_attr and evaluate them one by one")
    if sum(has(name) for name in ("multiple_attr", "manual_checkpoint_name", "load_from_checkpoint")) > 1:
        raise UserError(
            "--multiple_attr, --manual_checkpoint_name and --load_from_checkpoint all choose a direction: give only one"
        )
