"""One value and one source for each setting: flag, direction's record, YAML, default; and what decides t_edit and t_boost."""

from dataclasses import replace

import pytest
from tiny_world import straight

from asyrp.config import load_config
from asyrp.options import DEFAULTS, FLAGS
from asyrp.settings import Settings, Value, check_settings, decide_t_boost, decide_t_edit, differences
from utils.errors import UserError

CELEBA = load_config("celeba")  # its section `editing` is what was published
PLAIN = replace(CELEBA, editing=type(CELEBA.editing)())
RECORD = {"t_0": 900, "n_inv_step": 30, "n_train_step": 20, "t_edit": 302, "t_boost": 11, "prompts": ["face", "sad face"]}
FACE = ("face", "smiling face")


def settings(config=PLAIN, record=None, **given):
    return Settings(given, config, record, "sad.pth")


# ---- one value, one source --------------------------------------------------------------------------------------------------


def test_flag_wins_over_the_record_over_the_yaml_over_the_default():
    layers = [(settings(), 6, "default"), (settings(CELEBA), 40, "celeba.yml"), (settings(CELEBA, RECORD), 20, "sad.pth")]
    layers.append((settings(CELEBA, RECORD, n_train_step=10), 10, "flag"))
    for found, value, source in layers:
        assert found.get("n_train_step") == Value(value, source)
        assert (found.n_train_step, found.source("n_train_step")) == (value, source)


def test_given_flag_counts_even_with_the_value_of_the_default():
    assert settings(CELEBA, n_train_step=DEFAULTS["n_train_step"]).get("n_train_step") == Value(6, "flag")


def test_record_decides_about_steps_and_not_about_training():
    """How long it was trained is no reason to train that long again; and a record may be silent."""
    found = settings(CELEBA, RECORD | {"n_iter": 7, "lr_training": 9.0, "n_test_step": 8, "n_inv_step": None})
    assert (found.t_0, found.n_train_step) == (900, 20)
    assert (found.n_iter, found.lr_training, found.n_test_step) == (1, 0.5, 40)
    assert found.get("n_inv_step") == Value(40, "celeba.yml")


def test_with_record_is_the_same_run_with_a_direction():
    found = settings(CELEBA, n_iter=3).with_record(RECORD, "happy.pth")
    assert found.get("t_0") == Value(900, "happy.pth")
    assert found.get("n_iter") == Value(3, "flag")


def test_values_and_sources_cover_every_flag():
    found = settings(CELEBA, seed=3)
    assert found.values().keys() == FLAGS.keys()
    assert found.sources().items() >= {"seed": "flag", "lpips_edit_th": "celeba.yml"}.items()
    assert "n_test_img" not in found.sources()
    assert "default" not in found.sources().values()


def test_no_such_setting():
    with pytest.raises(AttributeError, match="there is no setting lpips_edit_thr"):
        _ = settings().lpips_edit_thr
    assert not hasattr(settings(), "_anything")


def test_no_steps_are_all_steps():
    assert settings(n_test_step=0).steps("n_test_step") == 1000
    assert settings(n_test_step=0, t_0=500).steps("n_test_step") == 501
    assert settings(n_test_step=8).steps("n_test_step") == 8


@pytest.mark.parametrize(
    ("given", "T", "message"),
    [
        ({"t_0": 1000}, 1000, "--t_0 1000: celeba.yml has 1000 timesteps, numbered from 0: give 1 to 999"),
        ({}, 500, "--t_0 999: celeba.yml has 500 timesteps, numbered from 0: give 1 to 499"),
        ({"t_0": 30}, 1000, r"--n_inv_step 40 \(celeba.yml\): must be 2 to 31, or 0"),
        ({"n_test_step": 1001}, 1000, r"--n_test_step 1001 \(flag\): must be 2 to 1000, or 0"),
        ({"user_defined_t_edit": 1001}, 1000, "--user_defined_t_edit 1001: must be 0 to 1000"),
        ({"user_defined_t_addnoise": 1001}, 1000, "--user_defined_t_addnoise 1001: must be 0 to 1000"),
        ({"delta_interpolation": True, "min_delta": 1.0}, 1000, "--min_delta and --max_delta are both 1, which makes no strip"),
        ({"export": "share", "min_delta": 1.5}, 1000, "--min_delta and --max_delta are both 1.5, which makes no strip"),
        ({"edit_image": "a.png", "min_delta": 1.5}, 1000, "--min_delta and --max_delta are both 1.5, which makes no strip"),
        ({"run_train": True, "use_id_loss": True}, 1000, "the identity loss needs both"),
        ({"run_train": True, "id_loss_w": 1.0}, 1000, "the identity loss needs both"),
        ({"run_train": True, "clip_loss_w": 0.0, "l1_loss_w": 0.0}, 1000, "nothing would be trained"),
    ],
)
def test_settings_that_do_not_fit_whatever_their_source(given, T, message):
    with pytest.raises(UserError, match=message):
        check_settings(settings(CELEBA, **given), T)


@pytest.mark.parametrize(
    ("given", "strip"),
    [
        ({}, (False, 0.0, 1.0, 5)),
        ({"export": "share"}, (True, -1.0, 1.5, 6)),
        ({"export": "share", "num_delta": 3}, (True, -1.0, 1.5, 3)),
        ({"export": "share", "delta_interpolation": True}, (True, 0.0, 1.0, 5)),
        ({"export": "share", "edit_image": "a.png"}, (True, 0.0, 1.5, 4)),
    ],
)
def test_strip_of_an_export_is_its_own_unless_the_run_has_one(given, strip):
    found = settings(**given)
    assert (found.delta_interpolation, found.min_delta, found.max_delta, found.num_delta) == strip


@pytest.mark.parametrize(
    ("given", "T"),
    [
        ({"t_0": 999}, 1000),
        ({"t_0": 3999, "n_inv_step": 0}, 4000),
        ({"t_0": 30, "n_inv_step": 31, "n_train_step": 0, "n_test_step": 2}, 1000),
        ({"run_train": True, "just_precompute": True, "clip_loss_w": 0.0, "l1_loss_w": 0.0}, 1000),
    ],
)
def test_settings_that_fit(given, T):
    check_settings(settings(CELEBA, **given), T)


# ---- t_edit -----------------------------------------------------------------------------------------------------------------


def cosine(src, trg):
    """Of these two targets one is nearer than the other: t_edit 330 and 231 on a curve of slope 1/999, at 0.33."""
    return {"smiling face": 1.0, "a dog": 0.7}[trg]


def curve():
    return straight(0.999)


def never(*args):
    raise AssertionError("nobody needs this")


def t_edits(found, *uses):
    return [(value.value, value.source) for value in decide_t_edit(found, uses, curve, cosine)]


def test_t_edit_of_a_flag_needs_no_curve_and_no_clip():
    uses = [("sad.pth", RECORD, FACE), ("dog.pth", {}, None)]
    assert decide_t_edit(settings(user_defined_t_edit=0), uses, never, never) == [Value(0, "flag")] * 2


def test_t_edit_of_a_record_needs_no_curve_and_no_clip():
    for config in (PLAIN, CELEBA):
        assert decide_t_edit(settings(config), [("sad.pth", RECORD, FACE)], never, never) == [Value(302, "sad.pth")]


def test_each_direction_has_the_t_edit_of_its_own_record():
    assert t_edits(settings(), ("a", {"t_edit": 0}, None), ("b", {"t_edit": 700}, None)) == [(0, "a"), (700, "b")]


def test_t_edit_of_the_yaml_comes_after_the_record():
    config = replace(CELEBA, editing=replace(CELEBA.editing, user_defined_t_edit=111))
    assert t_edits(settings(config), ("a", {}, FACE), ("b", {"t_edit": 5}, None)) == [(111, "celeba.yml"), (5, "b")]


def test_threshold_that_is_given_is_obeyed():
    source = "LPIPS curve at 0.4 x cosine 1.000; threshold: flag"
    assert t_edits(settings(CELEBA, lpips_edit_th=0.4), ("sad.pth", RECORD, FACE)) == [(400, source)]
    config = replace(CELEBA, editing=replace(CELEBA.editing, user_defined_t_edit=111))
    assert t_edits(settings(config, lpips_edit_th=0.4), ("a", {}, FACE)) == [(400, source)]


def test_threshold_says_its_source():
    [(t_edit, source)] = t_edits(settings(CELEBA), ("a", {}, FACE))
    assert t_edit == 330
    assert source == "LPIPS curve at 0.33 x cosine 1.000; threshold: celeba.yml"
    assert t_edits(settings(), ("a", {}, FACE))[0][1].endswith("threshold: default")


def test_several_by_curve_take_the_largest_cosine_among_them():
    """As the 2023 release; those that know their own interval keep it, and have no say."""
    dog, smile = ("dog", {}, ("face", "a dog")), ("smile", {}, FACE)
    assert [t for t, _ in t_edits(settings(), dog)] == [231]
    assert [t for t, _ in t_edits(settings(), dog, smile)] == [330, 330]
    assert [t for t, _ in t_edits(settings(), smile, dog)] == [330, 330]
    assert [t for t, _ in t_edits(settings(), dog, ("own", {"t_edit": 7}, FACE))] == [231, 7]


def test_t_edit_without_prompts_is_an_error():
    with pytest.raises(UserError, match=r"t_edit of old\.pth is unknown: give --edit_attr .*or --user_defined_t_edit"):
        decide_t_edit(settings(), [("old.pth", {}, None)], never, never)


# ---- t_boost ----------------------------------------------------------------------------------------------------------------


def t_boost(found, *records, curve=never):
    value = decide_t_boost(found, records, curve)
    return value.value, value.source


def test_t_boost_by_flag_record_yaml_and_curve():
    assert t_boost(settings(user_defined_t_addnoise=0), ("sad.pth", RECORD)) == (0, "flag")
    assert t_boost(settings(CELEBA), ("sad.pth", RECORD)) == (11, "sad.pth")
    assert t_boost(settings(CELEBA), ("a", {"t_boost": 0})) == (0, "a")
    config = replace(CELEBA, editing=replace(CELEBA.editing, user_defined_t_addnoise=5))
    assert t_boost(settings(config), ("a", {})) == (5, "celeba.yml")
    assert t_boost(settings(config), ("sad.pth", RECORD)) == (11, "sad.pth")


def test_t_boost_of_several_directions_is_the_highest():
    assert t_boost(settings(), ("a", {"t_boost": 3}), ("b", {"t_boost": 9}), ("c", {})) == (9, "b")


@pytest.mark.parametrize("given", [{"lpips_addnoise_th": 0.4}, {"add_noise_from_xt": True, "lpips_addnoise_th": 0.4}])
def test_threshold_of_boosting_that_is_given_is_obeyed(given):
    own = replace(CELEBA, editing=replace(CELEBA.editing, user_defined_t_addnoise=5))
    for config in (PLAIN, own):
        found, source = t_boost(settings(config, **given), ("sad.pth", RECORD), curve=curve)
        assert (found, source) == (400, "LPIPS curve at 0.4; threshold: flag")


def test_t_boost_reads_the_distance_that_the_settings_name():
    """LPIPS(x_0, x_t) as published for celeba.yml, LPIPS(x_0, P_t) by default."""
    rising = straight(2.0)
    two = replace(rising, lpips_x0_t=rising.lpips_x0_t / 10)
    assert t_boost(settings(CELEBA), curve=lambda: two)[0] == 600
    assert t_boost(settings(), curve=lambda: two)[0] == 500


def test_ancestral_steps_are_not_boosted():
    assert t_boost(settings(sample_type="ddpm"), ("sad.pth", RECORD)) == (0, "--sample_type ddpm")
    assert t_boost(settings(sample_type="ddpm", user_defined_t_addnoise=9)) == (9, "flag")


# ---- what is said -----------------------------------------------------------------------------------------------------------


def test_flag_that_differs_from_the_record_is_one_line():
    found = settings(CELEBA, RECORD, n_train_step=10, t_0=900)
    assert differences(found, "sad.pth", RECORD, Value(302, "sad.pth")) == [
        "sad.pth was trained with n_train_step 20; using --n_train_step 10"
    ]
    assert differences(found, "sad.pth", RECORD, Value(5, "flag"))[-1] == (
        "sad.pth was trained with t_edit 302; using t_edit 5 (flag)"
    )


def test_no_warning_without_differences():
    assert differences(settings(CELEBA, RECORD), "sad.pth", RECORD, Value(302, "sad.pth")) == []
    assert differences(settings(CELEBA, n_train_step=10), "old.pth", {}, Value(302, "flag")) == []
    every = {"n_train_step": 1000, "t_0": 999}
    assert differences(settings(CELEBA, every, n_train_step=0), "all.pth", every, Value(302, "flag")) == []
