"""Edit several pictures with one direction, from strength -1 to 1.5: a row for each picture, a column for each strength.

    python examples/sweep_strengths.py                       # four cartoon faces, on the model that ships
    python examples/sweep_strengths.py --direction beard --strengths 0 0.25 0.5 0.75 1
    python examples/sweep_strengths.py --config celeba.yml --images my_photos --direction my_smile.safetensors

The pictures are inverted once; each strength then costs one run of the generative process.
"""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # not needed where asyrp is installed

import asyrp  # noqa: E402

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--config", default="avatar.yml", help="model: a YAML, or a diffusers pipeline (avatar.yml)")
parser.add_argument("--images", default=ROOT / "examples/faces/test", help="folder of pictures; the first four are edited")
parser.add_argument("--direction", default="smiling", help="a file, or the name of a direction that ships (smiling)")
parser.add_argument("--strengths", type=float, nargs="+", default=[-1, -0.5, 0, 0.5, 1, 1.5])
parser.add_argument("--out", default="strengths.png", help="picture to write (strengths.png)")
args = parser.parse_args()

try:
    model = asyrp.open_model(args.config)
    direction = asyrp.load_direction(args.direction, model)
    images = asyrp.read_folder(args.images, model.image_size, 4)
    x_T = model.invert(images)
    columns = [images] + [model.edit(x_T, direction, [s]).cpu() for s in tqdm(args.strengths, unit="strength")]
except asyrp.UserError as error:
    sys.exit(f"error: {error}")
rows = [[*row] for row in zip(*columns, strict=True)]
asyrp.labelled_grid(rows, ["original", *(f"{s:+g}" for s in args.strengths)]).save(args.out)
print(args.out)
