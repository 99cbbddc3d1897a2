"""Learn a direction from two prompts and a folder of images, and try it on images that it was not learned from.

    python examples/learn_a_direction.py                     # "face" to "sad face", on 16 faces of the model that ships
    python examples/learn_a_direction.py --config celeba.yml --images my_photos --test other_photos --target "old face"

16 images are few: the paper used 1,000. The result, learned.safetensors, also works with main.py and scripts/app.py.
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
parser.add_argument("--images", default=ROOT / "examples/faces/train", help="folder to learn from")
parser.add_argument("--test", default=ROOT / "examples/faces/test", help="folder to try it on")
parser.add_argument("--source", default="face", help="prompt for the images as they are (face)")
parser.add_argument("--target", default="sad face", help="prompt for what they should become (sad face)")
args = parser.parse_args()

try:
    model = asyrp.open_model(args.config)
    images, test = (asyrp.read_folder(folder, model.image_size) for folder in (args.images, args.test))
    bar = tqdm(unit="batch")
    direction = asyrp.train_direction(model, images, args.source, args.target, progress=lambda done, _: bar.update())
    bar.close()
    direction.save("learned.safetensors")
    x_T = model.invert(test[:4])
    rows = [[*pair] for pair in zip(test, model.generate(x_T), model.edit(x_T, direction), strict=False)]
except asyrp.UserError as error:
    sys.exit(f"error: {error}")
asyrp.labelled_grid(rows, ["original", "no edit", args.target]).save("learned.png")
print(f"learned.safetensors, learned.png: t_edit {direction.record['t_edit']}")
