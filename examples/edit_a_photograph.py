"""Edit one picture with a direction.

    python examples/edit_a_photograph.py                     # a cartoon face, made to smile by the model that ships
    python examples/edit_a_photograph.py --direction beard --strength 0.7
    python examples/edit_a_photograph.py --config celeba.yml --image me.jpg --direction my_smile.pth --t_edit 513

The picture is cropped to a square, inverted to x_T, and generated again without and with the edit.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # not needed where asyrp is installed

import asyrp  # noqa: E402

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--config", default="avatar.yml", help="model: a YAML, or a diffusers pipeline (avatar.yml)")
parser.add_argument("--image", default=ROOT / "examples/faces/test/07.png", help="picture to edit")
parser.add_argument("--direction", default="smiling", help="a file, or the name of a direction that ships (smiling)")
parser.add_argument("--strength", type=float, default=1.0, help="1 is what the direction was trained as (1)")
parser.add_argument("--t_edit", type=int, help="edit while t >= t_edit; by default what the direction's file says")
parser.add_argument("--out", default="edited.png", help="picture to write (edited.png)")
args = parser.parse_args()

try:
    model = asyrp.open_model(args.config)
    direction = asyrp.load_direction(args.direction, model)
    image = asyrp.read_image(args.image, model.image_size)  # (3, H, W) in [-1, 1]
    x_T = model.invert(image[None])
    plain = model.generate(x_T)
    edited = model.edit(x_T, direction, [args.strength], t_edit=args.t_edit)
except asyrp.UserError as error:
    sys.exit(f"error: {error}")
labels = ["original", "no edit", f"{args.direction} {args.strength:+g}"]
asyrp.labelled_grid([[image, plain[0], edited[0]]], labels).save(args.out)
print(args.out)
