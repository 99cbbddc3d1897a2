"""LPIPS with AlexNet (Zhang et al., CVPR 2018), the distance used to choose the editing intervals (paper section 3.3)."""

import warnings
from pathlib import Path

import torch
from lpips import LPIPS

from utils.errors import UserError
from utils.tensors import load, load_strictly, state_dict_of

WEIGHTS = Path(__file__).resolve().parent.parent / "pretrained" / "lpips" / "alexnet_features.pt"
SMALLEST = 31  # pixels; the smallest input that survives AlexNet's second pooling


def load_lpips(weights: Path | str = WEIGHTS) -> LPIPS:
    """Load the frozen metric: `distance(a, b)`, images (B, 3, H, W) in [-1, 1] of 31 px or more -> (B, 1, 1, 1).

    The five AlexNet convolutions come from `weights`, the linear layers (version 0.1) from the lpips package. If the file is
    missing, torchvision downloads the same convolutions. Raises UserError if that fails, or if the file does not fit.

    Images are not resized. At 32 px the last three layers have a single position and distances are smaller (0.46 for noise,
    0.68 at 64 px and 0.86 at 128 px), so thresholds depend on the resolution.
    """
    path = Path(weights)
    if not path.is_file():
        return _frozen(_from_torchvision(path))
    metric = _quietly(pnet_rand=True)
    # lpips splits torchvision's features.<n> into slices: slice2.3.weight is features.3.weight.
    names = {"features." + name.split(".", 1)[1]: name for name in metric.net.state_dict()}
    tensors = {names.get(name, name): tensor for name, tensor in state_dict_of(load(path), path).items()}
    load_strictly(metric.net, tensors, path, "AlexNet's convolutions")
    return _frozen(metric)


def _from_torchvision(path: Path) -> LPIPS:
    try:
        return _quietly(pnet_rand=False)
    except (OSError, RuntimeError) as error:  # no network, or an incomplete download
        raise UserError(
            f"LPIPS: {path} is missing and torchvision cannot download AlexNet ({error}): create the file with "
            "scripts/convert_alexnet.py, or try again with network access"
        ) from error


def _quietly(pnet_rand: bool) -> LPIPS:
    # Ignore the warning that lpips uses a deprecated torchvision argument, and keep AlexNet's initialisation from changing
    # the random numbers of the run.
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore", UserWarning)
        return LPIPS(net="alex", pnet_rand=pnet_rand, verbose=False)


def _refuse_small(metric: LPIPS, images: tuple[torch.Tensor, ...]) -> None:
    if min(images[0].shape[-2:]) < SMALLEST:
        raise UserError(
            f"LPIPS with AlexNet needs images of {SMALLEST} pixels or more: set the intervals with "
            "--user_defined_t_edit and --user_defined_t_addnoise"
        )


def _frozen(metric: LPIPS) -> LPIPS:
    metric.register_forward_pre_hook(_refuse_small)
    return metric.eval().requires_grad_(False)
