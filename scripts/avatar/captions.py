"""Captions for labelled faces: words, orders and omissions at random, so that only the meaning can be learned.

A caption is one noun with some of the labels told and the others left out; a face fits it when the labels told are its own.
"""

import open_clip
from render import LABELS

NOUNS = ("face", "face", "face", "person", "portrait", "head", "character", "cartoon face", "human face")
TEMPLATES = tuple(t for t in open_clip.OPENAI_IMAGENET_TEMPLATES if t("") != "a photo of many .")
LEFT_OUT = -1

# label -> for every class (words before the noun, words after it).
WORDS = {
    "expression": (
        (
            ("smiling", "smiling", "happy", "laughing", "cheerful", "joyful", "grinning"),
            ("with a smile", "who is smiling", "with a happy expression", "with a smiling mouth", "laughing", "smiling"),
        ),
        (
            ("sad", "sad", "unhappy", "sorrowful", "gloomy", "miserable"),
            ("with a sad expression", "who is sad", "with a sad mouth", "looking sad", "with sad eyebrows"),
        ),
        (
            ("angry", "angry", "mad", "furious", "annoyed", "enraged"),
            ("with an angry expression", "who is angry", "with an angry mouth", "looking angry", "with angry eyebrows"),
        ),
        (
            ("surprised", "surprised", "astonished", "amazed", "shocked", "startled"),
            ("with a surprised expression", "who is surprised", "with an open mouth", "looking surprised"),
        ),
    ),
    "hair": (
        (("black-haired", "black haired"), ("with black hair", "with hair that is black")),
        (
            ("blond", "blonde", "blond-haired", "fair-haired"),
            ("with blond hair", "with blonde hair", "with golden hair", "with yellow hair"),
        ),
        (("brown-haired", "brunette"), ("with brown hair", "with chestnut hair")),
        (("red-haired", "ginger", "redheaded"), ("with red hair", "with ginger hair", "with orange hair")),
    ),
    "skin": (
        (("pale", "pale-skinned", "light-skinned"), ("with pale skin", "with light skin", "with fair skin", "with white skin")),
        (("tanned", "tan-skinned"), ("with tanned skin", "with tan skin", "with a tan")),
        (("brown-skinned",), ("with brown skin", "with a brown complexion")),
        (("dark-skinned",), ("with dark skin", "with very dark skin", "with black skin", "with a dark complexion")),
    ),
    "beard": (
        (("clean-shaven", "beardless"), ("without a beard", "with no beard", "without facial hair")),
        (("bearded",), ("with a beard", "with a beard", "with a full beard", "with facial hair")),
    ),
    "long_hair": (
        (("short-haired",), ("with short hair", "whose hair is short")),
        (("long-haired",), ("with long hair", "whose hair is long")),
    ),
    "glasses": (
        (("glasses-free",), ("without glasses", "with no glasses", "without spectacles")),
        (("bespectacled",), ("with glasses", "wearing glasses", "with spectacles", "with eyeglasses", "who wears glasses")),
    ),
}
# What a style is called around a phrase; the first, a plain picture, by nothing.
STYLES = {
    "plain": ("{}",),
    "sketch": ("sketch of a {}", "pencil sketch of a {}", "line drawing of a {}", "{} in pencil", "sketched {}"),
    "pixel art": ("pixel art of a {}", "pixel art {}", "{} in pixel art", "{} in the style of pixel art", "8-bit {}"),
}
TELLS_STYLE = 0.7  # how often a caption of a picture in a style tells it


def draw_mask(rng):
    """Which labels a caption tells: none, most often one, sometimes several -> tuple of names.

    The expression comes up most: it is the smallest thing to see.
    """
    if rng.random() < 0.1:
        return ()
    first = rng.choice(("expression", *LABELS))
    more = rng.choice((0, 0, 0, 0, 1, 1, 2, 3))
    told = [first, *rng.sample([label for label in LABELS if label != first], more)]
    rng.shuffle(told)
    return tuple(told)


def phrase(labels, told, rng):
    """labels: positions in LABELS' tuples, in its order; told: label names -> "sad blond face with a beard"."""
    before, after = [], []
    for label in told:
        adjectives, clauses = WORDS[label][labels[list(LABELS).index(label)]]
        if rng.random() < 0.5:
            before.append(rng.choice(adjectives))
        else:
            after.append(rng.choice(clauses))
    joined = f" {rng.choice(('and', ''))} ".replace("  ", " ").join(after)
    return " ".join([*before, rng.choice(NOUNS), *([joined] if joined else [])])


def draw_setting(rng):
    """What stands around a phrase: nothing, an article, or one of the prompt templates -> function str -> str."""
    choice = rng.random()
    if choice < 0.25:
        return str
    return "a {}".format if choice < 0.35 else rng.choice(TEMPLATES)


def caption(labels, rng):
    """A caption of a face -> (text, the labels it tells as a list like `labels`, LEFT_OUT where it tells nothing).

    labels: positions in LABELS' tuples and, at the end, in STYLES.
    """
    *labels, style = labels
    told = draw_mask(rng)
    tells_style = style > 0 and rng.random() < TELLS_STYLE
    around = rng.choice(list(STYLES.values())[style if tells_style else 0])
    text = draw_setting(rng)(around.format(phrase(labels, told, rng)))
    values = [value if label in told else LEFT_OUT for label, value in zip(LABELS, labels, strict=True)]
    return text, [*values, style if tells_style else LEFT_OUT]


def edit_prompts(old, new, label, rng):
    """Two prompts for a change of one label from class `old` to `new`: half of the time the first one tells the old class,
    otherwise nothing, as in "face" -> "smiling face". Apart from that label they are made of the same words."""
    noun, setting, position = rng.choice(NOUNS), draw_setting(rng), rng.randrange(2)

    def prompt(value):
        words = rng.choice(WORDS[label][value][position])
        return setting(f"{noun} {words}" if position else f"{words} {noun}")

    return (prompt(old) if rng.random() < 0.5 else setting(noun)), prompt(new)


def style_prompts(style, rng):
    """Two prompts for a picture that is drawn anew in a style, made of the same words."""
    noun, setting = rng.choice(NOUNS), draw_setting(rng)
    return setting(noun), setting(rng.choice(STYLES[style]).format(noun))


def fits(labels, told):
    """labels (B, 7), told (C, 7) with LEFT_OUT where a caption tells nothing -> (B, C) bool: face b fits caption c."""
    return ((labels[:, None] == told[None]) | (told[None] == LEFT_OUT)).all(2)
