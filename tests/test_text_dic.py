"""The table of prompts."""

import pytest

from utils import text_dic
from utils.errors import UserError
from utils.text_dic import PROMPTS, prompts_for


def test_known_attributes():
    assert prompts_for("smiling") == ("face", "smiling face")
    assert prompts_for("frida") == ("photo", "self-portrait by Frida Kahlo")
    assert prompts_for("dog_happy") == ("Dog", "Happy Dog")
    assert prompts_for("avatar_smiling") == ("face", "smiling face")


def test_no_group_hides_another():
    groups = [getattr(text_dic, name) for name in dir(text_dic) if name.isupper() and name not in ("PROMPTS", "BY_CATEGORY")]
    assert len(PROMPTS) == sum(map(len, groups)) == 106 + len(text_dic.AVATARS)
    assert all(src.strip() and trg.strip() for src, trg in PROMPTS.values())


@pytest.mark.parametrize(("typed", "meant"), [("smilling", "smiling"), ("hair", "red_hair"), ("church_snw", "church_snow")])
def test_unknown_attribute_names_the_nearest(typed, meant):
    with pytest.raises(UserError) as caught:
        prompts_for(typed)
    assert meant in str(caught.value) and "--src_txts" in str(caught.value) and "--trg_txts" in str(caught.value)


@pytest.mark.parametrize("typed", ["", "qqqqqqq"])
def test_no_similar_attribute(typed):
    with pytest.raises(UserError, match=r"utils/text_dic\.py lists all of them"):
        prompts_for(typed)
