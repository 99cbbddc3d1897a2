"""The command line: what is refused and how, old flags, and the help."""

import re

import pytest

from asyrp.options import DEFAULTS, FLAGS, WITHOUT_EFFECT
from asyrp.parsing import EXAMPLES, build_parser, image_numbers, parse_args, strengths
from utils.errors import UserError

TEST = ["--config", "x.yml", "--run_test", "--train_delta_block", "--get_h_num", "1"]
TRAIN = ["--config", "x.yml", "--run_train", "--train_delta_block", "--get_h_num", "1", "--edit_attr", "smiling"]
PRECOMPUTE = ["--config", "x.yml", "--just_precompute"]
# group -> one of its flags
GROUPS = {
    "mode": "--just_precompute",
    "run": "--model_path",
    "intervals": "--lpips_edit_th",
    "steps": "--n_inv_step",
    "data": "--custom_test_dataset_dir",
    "training": "--clip_loss_w",
    "fitting": "--fit_by",
    "speed": "--precision",
    "several processes": "--collect",
    "inference": "--delta_interpolation",
    "region": "--edit_mask",
    "sharing": "--export",
    "evaluation": "--segmenter",
    "output": "--save_process_origin",
}


@pytest.mark.parametrize("flags", [TEST, TRAIN, ["--config", "x.yml", "--lpips"], ["--config", "x.yml", "--just_precompute"]])
def test_minimal_flags(flags):
    given, notices = parse_args(flags)
    assert given["config"] == "x.yml"
    assert notices == []


def test_only_given_flags_are_returned():
    """A default is no wish: settings.py asks a direction's record and the YAML before it."""
    given, _ = parse_args([*TRAIN, "--n_iter", "1", "--do_test"])
    assert given == {
        "config": "x.yml",
        "run_train": True,
        "train_delta_block": True,
        "get_h_num": 1,
        "edit_attr": "smiling",
        "n_iter": DEFAULTS["n_iter"],
        "do_test": 1,
    }


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config", "x.yml"], "no mode: give one of --lpips"),
        (["--lpips"], "no model: give --config"),
        ([*TEST, "--n_inv_stp", "40"], "unknown flag --n_inv_stp; did you mean --n_inv_step?"),
        ([*TEST, "--lpips_edit_thr=0.3"], "unknown flag --lpips_edit_thr; did you mean --lpips_edit_th?"),
        ([*TEST, "--multiple_at", "a b"], "unknown flag --multiple_at; did you mean --multiple_attr?"),  # nothing is completed
        ([*TEST, "stray"], '"stray" does not belong to any flag'),
        ([*TEST, "--n_test_img", "many"], "--n_test_img: invalid int value"),
        ([*TEST, "--n_test_img", "0"], "--n_test_img 0: must be 1 or more"),
        ([*TEST, "--bs_test", "-3"], "--bs_test -3: must be 1 to 65536"),
        ([*TEST, "--sample_type", "pndm"], "--sample_type: invalid choice"),
        ([*TEST, "--do_test", "2"], "--do_test: invalid choice"),
        ([*TEST, "--t_0", "0"], "--t_0 0: must be 1 or more"),
        ([*TEST, "--n_test_step", "1"], "--n_test_step 1: must be 2 or more, or 0"),
        ([*TEST, "--user_defined_t_edit", "-1"], "--user_defined_t_edit -1: must be 0 or more"),
        ([*TEST, "--lr_training", "nan"], "--lr_training nan: must be 0 to 1000"),
        ([*TEST, "--lr_training", "1e999"], "--lr_training inf: must be 0 to 1000"),
        ([*TEST, "--n_test_img", "1" + "0" * 400], "0: must be 1 to 1000000000"),
        ([*TEST, "--seed", str(2**63)], f"must be 0 to {2**63 - 1}"),
        ([*TEST, "--edit_attr", ""], "--edit_attr: the text is empty"),
        ([*TEST, "--src_txts", "face", "--trg_txts", " "], "--trg_txts: the text is empty"),
        ([*TEST, "--custom_dataset_name", "../mine"], "--custom_dataset_name ../mine: must be a name of letters"),
        ([*TEST, "--custom_dataset_name", ".."], "--custom_dataset_name ..: must be a name of letters"),
        ([*TEST, "--target_class_num", "1000"], "--target_class_num 1000: must be 0 to 999, or a WordNet id"),
        ([*TEST, "--num_delta", "1"], "--num_delta 1: must be 2 to 1000"),
        ([*TEST, "--cache_origin_gib", "-1"], "--cache_origin_gib -1.0: must be 0 to 1000000"),
        ([*TRAIN, "--precision", "fp16"], "--precision fp16 cannot train"),
        ([*TEST, "--load_from_checkpoint", "a", "--manual_checkpoint_name", "b"], "all choose a direction: give only one"),
        ([*TEST, "--evaluate", "--pass_editing"], "--evaluate measures an edit"),
        ([*TEST[:-2], "--evaluate", "--multiple_attr", "a b"], "--evaluate measures one direction"),
        ([*TEST, "--segmenter", "x.pt"], "--segmenter needs --evaluate or --edit_region"),
        ([*TEST, "--start_image_id", "-1"], "--start_image_id -1: must be 0 or more"),
        ([*TEST, "--target_image_id", "3,7"], "must be image numbers"),
        ([*TEST, "--target_image_id", " "], "--target_image_id: the text is empty"),
        ([*TEST, "--src_txts", "face"], "--src_txts and --trg_txts must be given together"),
        ([*TEST, "--src_txts", "face", "dog", "--trg_txts", "cat"], "one target per source"),
        ([*TRAIN, "--src_txts", "face", "--trg_txts", "sad face"], "both set the prompts"),
        ([*TEST, "--saved_random_noise"], "--saved_random_noise needs --load_random_noise"),
        ([*PRECOMPUTE, "--load_random_noise"], "would keep nothing: add --saved_random_noise"),
        ([*PRECOMPUTE, "--do_train", "0", "--do_test", "0"], "has nothing to invert"),
        (
            [*TRAIN, "--train_delta_h"],
            "--train_delta_block and --train_delta_h are different kinds of direction: give only one",
        ),
        ([*TEST, "--train_delta_h"], "--train_delta_block and --train_delta_h are different kinds of direction: give only one"),
        ([*TRAIN[:3], *TRAIN[4:]], "--run_train needs --train_delta_block or --train_delta_h"),
        ([*TRAIN, "--get_h_num", "2"], "give --get_h_num 1, not 2"),
        (TRAIN[:-2], "--run_train needs prompts"),
        ([*TRAIN, "--multiple_attr", "a b"], "--run_train learns one direction"),
        ([*TEST, "--get_h_num", "0"], "--get_h_num 0 would edit nothing"),
        ([*TEST, "--multiple_attr", "a b"], "--multiple_attr names 2 directions but --get_h_num is 1"),
        ([*TEST[:-2], "--multiple_attr", "a b", "--multiple_hs_coeff", "1"], "--multiple_hs_coeff needs 2 numbers"),
        ([*TEST[:-2], "--multiple_attr", "a b", "--multiple_hs_coeff", "1 x"], "x is not a number"),
        ([*TEST[:-2], "--multiple_attr", "a b", "--multiple_hs_coeff", "1 1e9"], "each must be -1000 to 1000"),
        ([*TEST, "--multiple_hs_coeff", "1"], "--multiple_hs_coeff needs --multiple_attr"),
        ([*TEST[:-2], "--multiple_attr", "a b c", "--delta_interpolation"], "give at most two"),
        ([*TEST, "--save_animation", "gif"], "animates the strength of one direction: give --delta_interpolation"),
        ([*TEST[:-2], "--multiple_attr", "a b", "--delta_interpolation", "--save_animation", "gif"], "one attribute"),
        ([*TEST, "--delta_interpolation", "--save_animation", "png"], "--save_animation: invalid choice"),
    ],
)
def test_refused(flags, message):
    with pytest.raises(UserError) as caught:
        parse_args(flags)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_flags_without_effect_are_one_notice():
    old = ["--ni", "--comment", "for the paper", "--hybrid_noise=1", "--eta", "-0.5", "1"]
    given, notices = parse_args([*TEST, *old, "--n_test_img", "3"])
    assert given["n_test_img"] == 3
    assert notices == ["no effect, as in the 2023 release: --ni, --comment, --hybrid_noise, --eta"]


def test_ignore_unknown_flags():
    old = ["--of_no_meaning", "a", "b", "--ni", "--neither=3"]
    given, notices = parse_args([*TEST, *old, "--ignore_unknown_flags", "--n_test_img", "3"])
    assert given["n_test_img"] == 3
    assert notices == ["no effect, as in the 2023 release: --ni", "unknown, ignored: --of_no_meaning, --neither"]
    with pytest.raises(UserError, match=r"unknown flag --of_no_meaning; .*--ignore_unknown_flags"):
        parse_args([*TEST, *old])


def test_no_flag_is_both_known_and_without_effect():
    assert not FLAGS.keys() & WITHOUT_EFFECT


@pytest.mark.parametrize(("flags", "value"), [(["--do_train"], 1), (["--do_train", "1"], 1), (["--do_train", "0"], 0)])
def test_switches_that_may_have_a_number(flags, value):
    assert parse_args([*TRAIN, *flags])[0]["do_train"] == value
    assert "do_train" not in parse_args(TRAIN)[0]


def test_negative_numbers_are_values():
    given, _ = parse_args([*TEST[:-2], "--min_delta", "-1", "--multiple_attr", "a b", "--multiple_hs_coeff", "-1 0.5"])
    assert (given["min_delta"], strengths(given["multiple_hs_coeff"])) == (-1.0, [-1.0, 0.5])


def test_zero_is_a_user_defined_value():
    given, _ = parse_args([*TEST, "--user_defined_t_edit", "0", "--user_defined_t_addnoise", "0"])
    assert (given["user_defined_t_edit"], given["user_defined_t_addnoise"]) == (0, 0)


def test_image_numbers():
    assert image_numbers("3 7") == [3, 7]
    assert image_numbers(" 0 ") == [0]


def test_no_direction_need_be_named_and_none_counted():
    """The direction of the experiment itself is looked for, and its file says what it is."""
    assert parse_args(["--config", "x.yml", "--run_test"])[1] == []
    assert parse_args([*TEST[:3], "--multiple_attr", "a b", "--get_h_num", "2"])[1] == []


def test_published_precompute_may_also_say_run_train():
    """Nothing is trained then, and so nothing of a training is asked for."""
    assert parse_args([*PRECOMPUTE, "--run_train"])[0] == {"config": "x.yml", "just_precompute": True, "run_train": True}


def test_help_shows_every_group_and_default(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_args(["--help"])
    shown = capsys.readouterr().out
    assert caught.value.code == 0
    for group, flag in GROUPS.items():
        assert f"\n{group}" in shown, group
        assert flag in shown
    assert {flag.group.split(" (")[0] for flag in FLAGS.values()} == GROUPS.keys()
    assert "(default: 0.33)" in shown
    assert not re.search(r"default: (None|False)", shown)
    assert max(map(len, shown.splitlines())) <= 128
    for mode in ("--lpips", "--just_precompute", "--run_train", "--run_test"):
        assert f"python main.py {mode} --config avatar.yml" in shown  # an example of each


@pytest.mark.parametrize("example", re.findall(r"main\.py (.*)", EXAMPLES))
def test_examples_of_the_help_are_accepted(example):
    assert parse_args(example.split())[1] == []


def test_every_flag_is_explained():
    shown = " ".join(build_parser().format_help().split())
    for name, flag in FLAGS.items():
        assert f"--{name} " in shown
        assert flag.text in shown, name
