"""The command line: every flag with its group, default and meaning, and the checks that need nothing but the flags."""

import argparse
import difflib
import re

from utils.errors import UserError

DESCRIPTION = """Edit images with a frozen diffusion model by moving its bottleneck features, h-space (Asyrp, ICLR 2023).

Five modes, in the order of a usual piece of work: --lpips measures where an edit should act, --just_precompute inverts
images, --run_train learns a direction, --run_test edits images with it, --evaluate measures what the edit did."""

EXAMPLES = """examples, on the model that the repository carries:
  python main.py --lpips --config avatar.yml --n_train_img 100
  python main.py --just_precompute --config avatar.yml --n_precomp_img 100
  python main.py --run_train --config avatar.yml --exp runs/sad --edit_attr avatar_sad --train_delta_block
      --get_h_num 1 --n_train_step 40 --clip_source origin --lr_training 0.2 --clip_loss_w 1 --l1_loss_w 4
      --lpips_edit_th 0.005
  python main.py --run_test --config avatar.yml --exp runs/sad --train_delta_block --get_h_num 1 --n_train_step 40
      --delta_interpolation --min_delta -1 --max_delta 1.5"""

# Flags of the 2023 release, and of DiffusionCLIP from which it grew, that nothing reads. Old scripts that pass them run on;
# one line says that they do nothing. The release had more: --ignore_unknown_flags is for those.
WITHOUT_EFFECT = {
    "clip_finetune",
    "clip_finetune_eff",
    "clip_latent_optim",
    "comment",
    "deterministic_inv",
    "dt_end",
    "edit_images_from_dataset",
    "edit_one_image",
    "edit_one_image_eff",
    "eta",
    "fast_noising_train",
    "hybrid_noise",
    "image_space_noise",
    "image_space_noise_optim",
    "img_path",
    "lr_clip_finetune",
    "lr_clip_lat_opt",
    "model_ratio",
    "ni",
    "unseen2unseen",
    "use_mask",
    "warigari",
}


METAVARS = {int: "N", float: "X", str: "TEXT"}


class Parser(argparse.ArgumentParser):
    """argparse that raises UserError and names the nearest flag for one it does not know."""

    def error(self, message):
        raise UserError(f"{message}; see python main.py --help")


class Help(argparse.RawDescriptionHelpFormatter):
    """100 columns; a default is told where there is one to tell."""

    def __init__(self, prog):
        super().__init__(prog, max_help_position=34, width=100)

    def _get_help_string(self, action):
        silent = action.default in (None, False, argparse.SUPPRESS)
        return action.help if silent else f"{action.help} (default: %(default)s)"


def build_parser():
    """The parser of main.py; `main.py --help` prints it."""
    parser = Parser(
        prog="main.py",
        usage="main.py --config YAML (--lpips | --just_precompute | --run_train | --run_test | --evaluate) [flags]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=Help,
        allow_abbrev=False,
    )

    group = parser.add_argument_group("mode (one at least)")
    switch(group, "lpips", "measure the LPIPS curves that t_edit and t_boost are read from")
    switch(group, "just_precompute", "invert the images of the training and test sets and stop")
    switch(group, "run_train", "learn a direction")
    switch(group, "run_test", "edit test images with a direction")
    switch(group, "evaluate", "measure what a direction does to test images: metrics as a table, JSON and CSV")

    group = parser.add_argument_group("run")
    value(group, "config", str, None, "YAML of the model: a name under configs/ or a path", required=True, metavar="YAML")
    value(group, "exp", str, "./runs/", "folder of results; its last part names the experiment and its checkpoints")
    value(group, "edit_attr", str, None, "attribute of utils/text_dic.py, which gives the prompts")
    value(group, "src_txts", str, None, "source prompt(s), instead of --edit_attr", nargs="+")
    value(group, "trg_txts", str, None, "target prompt(s), instead of --edit_attr", nargs="+")
    value(group, "seed", int, 1234, "seed of new weights, noise and order")
    value(group, "sh_file_name", str, None, "script to copy into the folder of results, if it exists")
    value(group, "model_path", str, None, "weights of the U-Net, instead of those in configs/paths_config.py")
    switch(group, "ignore_unknown_flags", "leave out flags that nothing knows, as an old script may have, and say which")
    value(group, "verbose", str, "info", "how much to tell", choices=("debug", "info", "warning", "error"))
    value(group, "device", str, None, "cpu, cuda or cuda:N; by default cuda when there is one")

    group = parser.add_argument_group("intervals (paper section 3.3)")
    value(group, "user_defined_t_edit", int, None, "t_edit, 0 to t_0, instead of reading it off the curve")
    value(group, "user_defined_t_addnoise", int, None, "t_boost, 0 (never) to t_0, instead of reading it off the curve")
    value(group, "lpips_edit_th", float, 0.33, "t_edit: first t with LPIPS(x_0, P_t) at this times the prompts' cosine")
    value(group, "lpips_addnoise_th", float, 0.1, "t_boost: first t with LPIPS at this; the paper's 1.2 is for x_t")
    switch(group, "add_noise_from_xt", "read t_boost off LPIPS(x_0, x_t) instead of LPIPS(x_0, P_t)")
    switch(group, "origin_process_addnoise", "boost the unedited picture as well")
    value(group, "custom_dataset_name", str, "celeba", "name of the LPIPS curves for a config of category CUSTOM")

    group = parser.add_argument_group("steps")
    value(group, "t_0", int, 999, "timestep that inversion reaches and generation starts from, 1 to 999")
    value(group, "n_inv_step", int, 40, "timesteps of the inversion; 0: every one")
    value(group, "n_train_step", int, 6, "timesteps of the generation in training; 0: every one")
    value(group, "n_test_step", int, 40, "timesteps of the generation in testing; 0: every one")
    value(group, "sample_type", str, "ddim", "ddim, or ddpm: ancestral steps throughout", choices=("ddim", "ddpm"))
    value(group, "dt_lambda", float, 1.0, "factor of eps in the direction term of the first step (t >= 999)")

    group = parser.add_argument_group("data")
    value(group, "custom_train_dataset_dir", str, None, "folder (or LMDB) of training images, instead of the config's")
    value(group, "custom_test_dataset_dir", str, None, "folder (or LMDB) of test images, instead of the config's")
    value(group, "target_class_num", str, None, "class of ImageNet: its number, 0 to 999, or WordNet id; else all, in order")
    number(group, "align_face", 0, "cut out faces as FFHQ did, in images of your own (needs the library face_alignment)")
    value(group, "n_train_img", int, 50, "training images; also the images that --lpips measures")
    value(group, "n_test_img", int, 10, "test images")
    value(group, "n_precomp_img", int, 100, "images of each set that --just_precompute inverts")
    value(group, "bs_train", int, 1, "images in a training batch")
    value(group, "bs_test", int, 1, "images in a test batch")
    value(group, "bs_precompute", int, 8, "images in a batch of the inversion and of --lpips")
    number(group, "do_train", 1, "with --just_precompute: the training images; with --run_train: train")
    number(group, "do_test", 1, "with --just_precompute: the test images; with --run_train: edit test images at the end")
    number(group, "shuffle_train_dataloader", 0, "draw the order of the training images anew for each epoch")
    switch(group, "re_precompute", "invert again what the cache holds already")
    switch(group, "load_random_noise", "draw x_T from noise instead of inverting images")
    switch(group, "saved_random_noise", "with --load_random_noise: keep the draw, and find it again whatever the seed")
    value(group, "target_image_id", str, None, 'work on these images only, numbers in one string ("3 7")')
    value(group, "start_image_id", int, 0, "work on the images from this number on")

    group = parser.add_argument_group("training")
    switch(group, "train_delta_block", "learn a delta block, the implicit function f_t")
    switch(group, "train_delta_h", "learn delta_h itself, the same for every image")
    switch(group, "ignore_timesteps", "one direction for all timesteps: no time embedding, or a single delta_h")
    value(group, "get_h_num", int, 0, "number of delta blocks: 1 to train, as many as attributes to combine")
    value(group, "n_iter", int, 1, "epochs")
    value(group, "lr_training", float, 0.2, "learning rate of SGD")
    value(group, "scheduler_step_size", int, 3, "epochs after which the learning rate falls")
    value(group, "sch_gamma", float, 0.1, "factor by which it falls")
    value(group, "clip_loss_w", float, 3.0, "weight of the directional CLIP loss")
    value(group, "l1_loss_w", float, 0.0, "weight of |P_edit - P_plain|, times the prompts' cosine")
    value(group, "id_loss_w", float, 0.0, "weight of the identity loss")
    switch(group, "use_id_loss", "keep the face's identity (needs the IR-SE50 weights)")
    value(
        group,
        "clip_source",
        str,
        "x0",
        "image the change is counted from: x0, or origin: the plain P_t",
        choices=("x0", "origin"),
    )
    text = (
        "CLIP: an OpenAI name, a file, or an open_clip config (.json) with weights beside it; else the config's, else ViT-B/16"
    )
    value(group, "clip_model_name", str, None, text)
    number(group, "retrain", 0, "ignore existing checkpoints instead of going on from them")
    value(group, "start_iter_when_you_use_pretrained", int, 0, "number of the first epoch")
    switch(group, "save_checkpoint_only_last_iter", "write no checkpoint before the last epoch")
    switch(group, "save_checkpoint_during_iter", "write checkpoints within an epoch as well")
    value(group, "save_checkpoint_step", int, 200, "images between two such checkpoints")

    group = parser.add_argument_group("speed")
    text = "of the networks; the process stays in float32. bf16 and fp16: half the memory; fp16 cannot train"
    value(group, "precision", str, "fp32", text, choices=("fp32", "tf32", "bf16", "fp16"))
    switch(group, "compile", "compile the U-Net: minutes once; CUDA graphs for single images; on a CPU for small networks only")
    switch(group, "checkpoint_decoder", "training: less memory, for the time of one more decoder pass a step")
    text = (
        "where training keeps the plain trajectory that later epochs use again: ram up to --cache_origin_gib, disk (under "
        "precomputed/, for other prompts too), off, or auto: ram, then disk, and off in a single epoch"
    )
    value(group, "cache_origin", str, "auto", text, choices=("auto", "ram", "disk", "off"))
    value(group, "cache_origin_gib", float, 2.0, "memory for it; one 256 px image takes 16 MB in 20 steps")
    switch(group, "cache_origin_half", "keep it in half precision")

    group = parser.add_argument_group("inference")
    value(group, "hs_coeff_delta_h", float, 1.0, "strength of the edit: factor of delta_h")
    value(group, "hs_coeff_origin_h", float, 1.0, "factor of h itself")
    switch(group, "delta_interpolation", "a strip of strengths from --min_delta to --max_delta")
    value(group, "max_delta", float, 1.0, "highest factor of the strip")
    value(group, "min_delta", float, 0.0, "lowest factor of the strip")
    value(group, "num_delta", int, 5, "pictures of the strip")
    value(group, "multiple_attr", str, None, 'combine these experiments or attributes, in one string ("smiling beard")')
    value(group, "multiple_hs_coeff", str, None, 'their factors, in one string ("1 0.5")')
    value(group, "num_mean_of_delta_hs", int, 0, "edit with the mean delta_h of so many images, one global direction")
    value(group, "load_from_checkpoint", str, None, "name of another experiment whose direction to use")
    value(group, "manual_checkpoint_name", str, None, "checkpoint to use: a path, or a name under checkpoint/")
    value(group, "choose_checkpoint_num", int, None, "use the checkpoint written within an epoch after so many images")
    switch(group, "pass_editing", "leave the edit out")

    group = parser.add_argument_group("evaluation")
    text = "segmentation model for --evaluate: a TorchScript file, or a name of torchvision's; else the config's"
    value(group, "segmenter", str, None, text)

    group = parser.add_argument_group("output")
    switch(group, "save_x0", "with --use_x0_tensor: put the original image first in each picture")
    switch(group, "use_x0_tensor", "see --save_x0")
    switch(group, "save_x_origin", "put the unedited result of the process before the edits")
    number(group, "save_train_image", 1, "save pictures while training")
    value(group, "save_train_image_step", int, 4, "of every so-many-th image")
    value(group, "save_train_image_iter", int, 1, "in every so-many-th epoch")
    switch(group, "save_process_origin", "save x_t and P_t of every step of the plain process")
    switch(group, "save_process_delta_h", "save x_t and P_t of every step of the edited process")
    switch(group, "save_precomputed_images", "save what the inverted images are generated back to")
    text = "with --delta_interpolation: save, for each image and all, an animation over the strengths and back"
    value(group, "save_animation", str, None, text, choices=("gif", "webp"))
    value(group, "save_to_folder", str, None, "folder for the training pictures, instead of training_images/")
    return parser


def value(group, name, kind, default, text, **more):
    if "choices" not in more:
        more.setdefault("metavar", METAVARS[kind])
    group.add_argument(f"--{name}", type=kind, default=default, help=text, **more)


def switch(group, name, text):
    group.add_argument(f"--{name}", action="store_true", help=text)


def number(group, name, default, text):
    """A switch that the 2023 scripts write with a value: `--do_train 1`; alone, `--do_train` is 1."""
    group.add_argument(f"--{name}", type=int, nargs="?", const=1, default=default, choices=(0, 1), help=f"{text} (0 or 1)")


def parse_args(argv=None):
    """Command line (list of str, by default the program's) -> (settings, notices for the user).

    Raises UserError for an unknown flag (naming the nearest one; not with --ignore_unknown_flags), a wrong value, and flags
    that contradict each other.
    """
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    without_effect, unknown = [], []
    known = [option for action in parser._actions for option in action.option_strings]
    follows_ignored = False
    for word in rest:
        flag = word.split("=")[0]
        if not flag.startswith("--"):
            # The values of an ignored flag come with it; any other stray word is a slip.
            if not follows_ignored:
                raise UserError(f'"{word}" belongs to no flag; put quotes around a value with spaces')
        elif flag[2:] in WITHOUT_EFFECT:
            without_effect.append(flag)
            follows_ignored = True
        elif args.ignore_unknown_flags:
            unknown.append(flag)
            follows_ignored = True
        else:
            near = difflib.get_close_matches(flag, known, n=1, cutoff=0.0)
            raise UserError(f"unknown flag {flag}; did you mean {near[0]}? (--ignore_unknown_flags leaves such a flag out)")
    check(args)
    notices = {"without effect, as in the 2023 release": without_effect, "unknown, left out": unknown}
    return args, [f"{what}: {', '.join(flags)}" for what, flags in notices.items() if flags]


def check(args):
    """Raise UserError for missing or contradictory flags."""
    if not (args.lpips or args.just_precompute or args.run_train or args.run_test or args.evaluate):
        raise UserError("no mode: give --lpips, --just_precompute, --run_train, --run_test or --evaluate")
    positive = ["n_train_img", "n_test_img", "n_precomp_img", "bs_train", "bs_test", "bs_precompute", "n_iter", "num_delta"]
    positive += ["scheduler_step_size", "save_checkpoint_step", "save_train_image_step", "save_train_image_iter"]
    for name in positive:
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: must be 1 or more")
    if not 1 <= args.t_0 <= 999:
        raise UserError(f"--t_0 {args.t_0}: must be 1 to 999")
    for name in ("n_inv_step", "n_train_step", "n_test_step"):
        n = getattr(args, name)
        if n < 0 or n == 1 or n > args.t_0 + 1:
            raise UserError(f"--{name} {n}: must be 2 to {args.t_0 + 1}, or 0 for every timestep up to t_0")
    for name in ("user_defined_t_edit", "user_defined_t_addnoise"):
        t = getattr(args, name)
        if t is not None and not 0 <= t <= 1000:
            raise UserError(f"--{name} {t}: must be 0 to 1000")
    for name in ("start_image_id", "num_mean_of_delta_hs", "start_iter_when_you_use_pretrained"):
        if getattr(args, name) < 0:
            raise UserError(f"--{name} {getattr(args, name)}: must be 0 or more")
    if args.cache_origin_gib < 0:
        raise UserError(f"--cache_origin_gib {args.cache_origin_gib}: must be 0 or more")
    if args.target_image_id is not None and not args.target_image_id.replace(" ", "").isdigit():
        raise UserError(f'--target_image_id "{args.target_image_id}": must be image numbers, as in "3 7"')
    if args.target_class_num and not re.fullmatch(r"\d{1,3}|n\d{8}", args.target_class_num):
        raise UserError(f"--target_class_num {args.target_class_num}: must be 0 to 999, or a WordNet id as n02099601")
    if (args.src_txts is None) != (args.trg_txts is None) or len(args.src_txts or []) != len(args.trg_txts or []):
        raise UserError("--src_txts and --trg_txts go together, one target for each source")
    if args.edit_attr and args.src_txts:
        raise UserError("--edit_attr and --src_txts/--trg_txts both give prompts: leave one of them out")
    if args.saved_random_noise and not args.load_random_noise:
        raise UserError("--saved_random_noise needs --load_random_noise")
    if args.just_precompute and args.load_random_noise and not args.saved_random_noise:
        raise UserError("--just_precompute --load_random_noise keeps nothing: give --saved_random_noise, which keeps the draw")
    if args.just_precompute and not (args.do_train or args.do_test):
        raise UserError("--just_precompute with --do_train 0 and --do_test 0 has nothing to invert: leave one of them out")
    if args.save_animation and not (args.delta_interpolation and len((args.multiple_attr or "").split()) < 2):
        raise UserError("--save_animation runs over the strengths of one direction: give --delta_interpolation, one attribute")
    if args.run_train:
        check_training(args)
    if args.run_test or args.evaluate:
        check_test(args)
    if args.evaluate and args.pass_editing:
        raise UserError("--evaluate measures an edit, and --pass_editing leaves it out: give one of them")
    if args.evaluate and args.multiple_attr:
        raise UserError("--evaluate measures one direction: leave out --multiple_attr, and evaluate them one by one")
    if args.segmenter and not args.evaluate:
        raise UserError("--segmenter needs --evaluate")


def is_number(word):
    try:
        float(word)
    except ValueError:
        return False
    return True


def check_training(args):
    if args.train_delta_block == args.train_delta_h:
        raise UserError("--run_train needs one of --train_delta_block and --train_delta_h")
    if args.train_delta_block and args.get_h_num != 1:
        raise UserError(f"--train_delta_block trains one delta block: give --get_h_num 1, not {args.get_h_num}")
    if not (args.edit_attr or args.src_txts):
        raise UserError("--run_train needs prompts: --edit_attr, or --src_txts and --trg_txts")
    if args.multiple_attr or args.multiple_hs_coeff:
        raise UserError("--run_train learns one direction: --multiple_attr and --multiple_hs_coeff are for --run_test")
    if args.use_id_loss != (args.id_loss_w != 0):
        raise UserError("the identity loss needs both --use_id_loss and --id_loss_w above 0")
    if args.precision == "fp16":
        raise UserError("--precision fp16 cannot train, its gradients underflow: give bf16")
    if args.clip_loss_w == args.l1_loss_w == args.id_loss_w == 0:
        raise UserError("all weights of the loss are 0: nothing would be trained; set --clip_loss_w")


def check_test(args):
    if args.multiple_attr:
        n = len(args.multiple_attr.split())
        if args.get_h_num not in (0, n):
            raise UserError(f"--multiple_attr names {n} directions: --get_h_num {args.get_h_num} contradicts it")
        words = (args.multiple_hs_coeff or "").split()
        if words and not (len(words) == n and all(map(is_number, words))):
            raise UserError(f"--multiple_hs_coeff needs {n} numbers, one for each of --multiple_attr")
        if args.delta_interpolation and n > 2:
            raise UserError("--delta_interpolation draws a strip for one attribute and a grid for two: name at most two")
    elif args.multiple_hs_coeff:
        raise UserError("--multiple_hs_coeff needs --multiple_attr")
    if not (args.pass_editing or args.train_delta_block or args.train_delta_h):
        raise UserError(
            "no direction to edit with: give --train_delta_block or --train_delta_h (the kind it was trained as), "
            "or --pass_editing"
        )
    if args.train_delta_block and args.get_h_num == 0 and not args.multiple_attr:
        raise UserError("--get_h_num 0 edits nothing: give --get_h_num 1")
