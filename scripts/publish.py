"""Convert a direction's checkpoint to a single safetensors file with its record; loading it runs no code.

    python scripts/publish.py checkpoint/smiling_LC_AVATAR_t999_ninv40_ngen40_1.pth --out smiling.safetensors

The file contains the direction and its record: prompts, t_edit, steps, the model it was learned on, and the settings of its
training, but no optimizer state. Use it like the checkpoint: `asyrp.load_direction("smiling.safetensors", model)`, or
`main.py --manual_checkpoint_name smiling.safetensors`. The record of a 2023 checkpoint is taken from its file name.
`main.py --run_test --export` writes the same file with a strip of test images and a model card, for the Hugging Face hub.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.terminal import catch_signals_early, guarded

if __name__ == "__main__":
    catch_signals_early()

import argparse

from asyrp import directions
from utils.errors import UserError


def publish(source, out):
    """Write the direction in `source` to `out` -> Stored. Raises UserError for an invalid source, or if `out` exists."""
    stored = directions.read(source)
    if out.suffix != ".safetensors":
        raise UserError(f"--out {out}: the name must end in .safetensors")
    if out.exists():
        raise UserError(f"{out} already exists: delete it, or give another --out")
    directions.convert(stored, out)
    return stored


def lines_of(stored):
    about, training = directions.facts(stored.kind, stored.record)
    about |= {f"trained with {name}": value for name, value in training.items()}
    return [f"  {name}: {value}" for name, value in about.items()]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="file of a direction, ours or from the 2023 release")
    parser.add_argument("--out", type=Path, help="file to write (default: next to the checkpoint, with the same name)")
    args = parser.parse_args(argv)
    if not args.checkpoint.name:
        raise UserError(f'"{args.checkpoint}" is not a file: give the checkpoint to publish')
    out = args.out or args.checkpoint.with_suffix(".safetensors")
    stored = publish(args.checkpoint, out)
    print(f"{out}: {out.stat().st_size:,} bytes")
    print("\n".join(lines_of(stored)))


if __name__ == "__main__":
    sys.exit(guarded(main))
