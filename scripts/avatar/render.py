"""Render labelled cartoon faces, the domain of the default stack.

    python scripts/avatar/render.py --split train --count 20000 --out data/avatar/train

Every face is decided by (split, index) alone: the same call gives the same files on every machine, in any order, and the
two splits share no seed. `labels.csv` next to the images has one row per face, `look.json` the settings.

Artwork: "Toon Head" by Johan Melin, CC BY 4.0, as packaged by DiceBear. Keep the credit beside any image you show.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]  # scripts/app.py imports this file as avatar.render

from utils.terminal import catch_signals_early, guarded, leave_signals_to_the_parent

if __name__ == "__main__":
    catch_signals_early()

import argparse
import csv
import io
import json
import random
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from importlib.resources import files

from looks import LOOK, with_grain
from PIL import Image
from tqdm import tqdm

from utils.arguments import real, whole
from utils.errors import UserError
from utils.extras import load
from utils.files import naming, replacing, write_text

LABELS = {
    "expression": ("smiling", "sad", "angry", "surprised"),
    "hair": ("black", "blond", "brown", "red"),
    "skin": ("pale", "tanned", "brown", "dark"),
    "beard": ("no", "yes"),
    "long_hair": ("no", "yes"),
    "glasses": ("no", "yes"),
}
# An expression decides three parts of the face together; each part is drawn from the artwork's variants named here.
# Variants that leave only a hair's breadth at 64 pixels (the closed smile, the chin beard) are not used: a label that
# cannot be seen can neither be learned nor judged.
EXPRESSIONS = {
    "smiling": {"mouth": ("laugh",), "eyebrows": ("happy", "neutral", "raised"), "eyes": ("happy", "wide", "humble")},
    "sad": {"mouth": ("sad",), "eyebrows": ("sad",), "eyes": ("wide", "humble")},
    "angry": {"mouth": ("angry",), "eyebrows": ("angry",), "eyes": ("wide", "bow")},
    "surprised": {"mouth": ("agape",), "eyebrows": ("raised",), "eyes": ("wide",)},
}


# Glasses are no part of the artwork: drawn here, in its coordinates, over the eyes and under the hair.
GLASSES = (
    '<g id="glasses-round" fill="#ffffff" fill-opacity=".25" stroke="#1d1d1d" stroke-width="22">'
    '<circle cx="303" cy="402" r="58"/><circle cx="465" cy="402" r="58"/>'
    '<path d="M361 396 Q384 380 407 396 M245 396 L205 384 M523 396 L563 384" fill="none"/></g>'
)


def draw_labels(split, index, glasses=LOOK.glasses):
    """Labels of face `index` of `split` ("train" or "test") -> (a dict of LABELS' keys, the random.Random for the rest).

    They are independent draws, so that no label foretells another. glasses: share of the faces that wear them; nothing else
    of a face depends on it.
    """
    rng = random.Random(f"avatar/{split}/{index}")
    worn = random.Random(f"avatar/{split}/{index}/glasses").random() < glasses
    labels = {
        "expression": rng.choice(LABELS["expression"]),
        "hair": rng.choice(LABELS["hair"]),
        "skin": rng.choice(LABELS["skin"]),
        "beard": "yes" if rng.random() < 0.3 else "no",
        "long_hair": "yes" if rng.random() < 0.45 else "no",
        "glasses": "yes" if worn else "no",
    }
    return labels, rng


def artwork_options(labels, rng, look=LOOK):
    """What `draw` takes for a face with these labels: the artwork's options, and the glasses; what the labels leave open is
    drawn from `rng`."""
    parts = EXPRESSIONS[labels["expression"]]
    return {
        "seed": str(rng.random()),
        **{f"{part}Variant": [rng.choice(variants)] for part, variants in parts.items()},
        "hairVariant": [rng.choice(("bun", "sideComed", "spiky", "undercut"))],
        "beardProbability": 100 * (labels["beard"] == "yes"),
        "beardVariant": [rng.choice(("fullBeard", "longBeard"))],
        "rearHairProbability": 100 * (labels["long_hair"] == "yes"),
        "rearHairVariant": [rng.choice(("longStraight", "longWavy", "shoulderHigh"))],
        **look.colours(labels, rng),
        "scale": 1.45,
        "translateY": 6,
        "glasses": labels["glasses"] == "yes",
    }


def dicebear():
    return load("dicebear", "drawing faces")


@cache
def artwork():
    return dicebear().Style(json.loads(files("dicebear_styles").joinpath("toon-head.json").read_text("utf-8")))


def render_face(split, index, size=64, look=LOOK):
    """Face `index` of `split` -> (PIL image of size x size, labels)."""
    labels, rng = draw_labels(split, index, look.glasses)
    image = draw(artwork_options(labels, rng, look), size)
    return (with_grain(image, split, index, look.grain) if look.grain else image), labels


def as_svg(options):
    """What `artwork_options` returns -> the drawing, as text."""
    svg = dicebear().Avatar(artwork(), {name: value for name, value in options.items() if name != "glasses"}).to_string()
    if options["glasses"]:
        place = svg.index("<use", svg.index('href="#eyebrows'))
        svg = svg[:place] + GLASSES + svg[place:]
    return svg


def draw(options, size):
    """What `artwork_options` returns -> PIL image of size x size."""
    # Drawn at twice the size and averaged: thin lines (mouths, brows) keep their weight.
    return rasterised(as_svg(options), 2 * size).resize((size, size), Image.BOX)


def rasterised(svg, size):
    """An SVG drawing (str) -> RGB image (size, size)."""
    png = load("resvg_py", "drawing faces").svg_to_bytes(svg_string=svg, width=size, height=size)
    return Image.open(io.BytesIO(bytes(png))).convert("RGB")


def save_face(index, split, size, out, look):
    image, labels = render_face(split, index, size, look)
    name = f"{index:06d}.png"
    with naming(out / name):
        image.save(out / name)
    return {"file": name, **labels}


def render_folder(split, count, out, size=64, workers=None, look=LOOK):
    """Write `count` faces and labels.csv into the folder `out`; a folder that is already complete is left as it is."""
    out = Path(out)
    table, note = out / "labels.csv", out / "look.json"
    settings = json.dumps({"split": split, "size": size, **look._asdict()}) + "\n"
    if table.exists():
        if not note.exists() or note.read_text("utf-8", errors="replace") != settings:
            raise UserError(f"{out} holds faces drawn with other settings: give another --out, or delete it")
        if len(read_labels(out)) >= count:
            return
    out.mkdir(parents=True, exist_ok=True)
    write_text(note, settings)
    job = partial(save_face, split=split, size=size, out=out, look=look)
    with ProcessPoolExecutor(workers, initializer=leave_signals_to_the_parent) as pool:
        rows = list(tqdm(pool.map(job, range(count), chunksize=32), total=count, desc=f"rendering {split} faces"))
    # The table comes last: where it stands, the folder is complete.
    with replacing(table) as beside, beside.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ["file", *LABELS])
        writer.writeheader()
        writer.writerows(rows)


def read_labels(folder):
    """labels.csv of a rendered folder as a list of dicts, in the order of the files."""
    with (Path(folder) / "labels.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=("train", "test"), required=True)
    parser.add_argument("--count", type=whole(1), required=True, help="number of faces; face i is the same whatever the count")
    parser.add_argument("--out", type=Path, required=True, help="folder for the images and labels.csv")
    parser.add_argument("--size", type=whole(8), default=64, help="pixels a side (default 64)")
    text = "largest share of a neighbouring colour in the colours of hair and skin (0.15; the models that ship saw up to 0.3)"
    parser.add_argument("--blend", type=real(0, 0.45), default=LOOK.blend, help=text)
    parser.add_argument("--workers", type=whole(1), help="processes (default: one a core)")
    args = parser.parse_args(argv)
    render_folder(args.split, args.count, args.out, args.size, args.workers, LOOK._replace(blend=args.blend))


if __name__ == "__main__":
    sys.exit(guarded(main))
