"""Metrics of an edit. Images are (B, 3, H, W) in [-1, 1]; values are per image, (B,)."""

import math
import warnings
from dataclasses import dataclass
from itertools import pairwise

import torch

from losses.clip_loss import directional_loss
from utils.extras import load

RANGE = 2.0  # width of [-1, 1]
MEASURABLE = 0.005  # a decrease of a mean score by less than this is ignored
CERTAIN = 1e-6  # probabilities are clamped to [CERTAIN, 1 - CERTAIN]
SUBSETS = 100  # number of subsets over which KID is averaged
LARGEST_SUBSET = 1000


@dataclass(frozen=True)
class Summary:
    """Mean over n images and its standard error (None for a single image)."""

    mean: float
    standard_error: float | None
    n: int

    def __str__(self):
        if self.standard_error is None:
            return f"{self.mean:.3g}"
        return f"{self.mean:.3g} ± {self.standard_error:.2g}"


class Moments:
    """Running count, mean and variance (Chan, Golub and LeVeque 1983)."""

    def __init__(self):
        self.n, self.mean, self.squares = 0, 0.0, 0.0

    def add(self, values):
        """values: a sequence or a tensor of numbers. -> self"""
        values = torch.as_tensor(values).double()
        if n := len(values):
            mean, before = values.mean().item(), self.n
            self.n += n
            step = mean - self.mean
            self.mean += step * n / self.n
            self.squares += (values - mean).square().sum().item() + step**2 * before * n / self.n
        return self

    def summary(self):
        """The Summary of the values; at least one must have been added."""
        deviation = math.sqrt(self.squares / (self.n - 1)) if self.n > 1 else None
        return Summary(self.mean, deviation / math.sqrt(self.n) if self.n > 1 else None, self.n)


def summary(values):
    """Values of n >= 1 images (a sequence or a tensor) -> Summary."""
    return Moments().add(values).summary()


def s_dir(before, after, direction):
    """S_dir: cosine of CLIP's image difference with a text direction (paper section 5; StyleCLIP-NADA's loss is 1 - S_dir).

    before, after: normalised features (B, D); direction: (1, D), normalised. -> (B,), -1 to 1; 0 if nothing has changed.
    """
    return 1 - directional_loss(before, after, direction)


def psnr(images, reference):
    """Peak signal-to-noise ratio in dB of images clipped to [-1, 1] -> (B,)."""
    pair = images.clamp(-1, 1), reference.clamp(-1, 1)
    measure = load("torchmetrics.functional.image", "PSNR").peak_signal_noise_ratio
    return measure(*pair, data_range=RANGE, reduction=None, dim=(1, 2, 3))


def ssim(images, reference):
    """Structural similarity (Wang et al. 2004) of images clipped to [-1, 1] -> (B,)."""
    pair = images.clamp(-1, 1), reference.clamp(-1, 1)
    measure = load("torchmetrics.functional.image", "SSIM").structural_similarity_index_measure
    return measure(*pair, data_range=RANGE, reduction=None).reshape(-1)


def segment_agreement(before, after):
    """Segmentation consistency (paper section 5) of label maps (B, H, W) -> (mean IoU, pixel accuracy), 0 to 1.

    The mean is over the segments present in either map of an image.
    """
    accuracy = (before == after).flatten(1).double().mean(1)
    overlaps = []
    for a, b in zip(before, after, strict=True):
        segments = torch.cat([a.unique(), b.unique()]).unique()
        ious = [((a == s) & (b == s)).sum() / ((a == s) | (b == s)).sum() for s in segments]
        overlaps.append(torch.stack(ious).double().mean())
    return torch.stack(overlaps), accuracy


def log_odds(probabilities):
    """log p / (1 - p), the logit of a class against all others; finite at 0 and 1."""
    p = probabilities.double().clamp(CERTAIN, 1 - CERTAIN)
    return (p / (1 - p)).log()


def edit_precision_ratio(target, others):
    """EPR: how much an edit changes its target attribute relative to all other attributes.

    target: mean over images of |change of the target attribute's logit|; others: the same for all other attributes. -> their
    ratio, above 1 if the target changes most; None if nothing else has changed.
    """
    return target / others if others > 0 else None


def frechet_distance(a, b):
    """Fréchet distance of Gaussians fitted to two sets of features (n, D) (Heusel et al. 2017); FID on Inception features."""
    features = torch.nn.Identity()
    features.num_features = a.shape[1]
    distance = load("torchmetrics.image.fid", "the Fréchet distance").FrechetInceptionDistance
    metric = distance(feature=features, sync_on_compute=False)  # each process already has the full sets
    metric.update(a, real=True)
    metric.update(b, real=False)
    return metric.compute().item()


def kernel_distance(a, b):
    """KID (Binkowski et al. 2018) of two sets of features (n, D) -> (mean, standard deviation over SUBSETS, their size)."""
    distance = load("torchmetrics.image.kid", "KID").KernelInceptionDistance
    size = min(len(a) // 2, LARGEST_SUBSET)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore", UserWarning)  # about the memory that it needs
        torch.manual_seed(0)  # the same subsets, and so the same result, in every call
        how = {"subsets": SUBSETS, "subset_size": size, "sync_on_compute": False}
        metric = distance(feature=torch.nn.Identity(), **how)
        metric.update(a, real=True)
        metric.update(b, real=False)
        mean, deviation = metric.compute()
    return mean.item(), deviation.item(), size


def monotone(means):
    """Whether mean scores at ascending strengths never fall by more than MEASURABLE."""
    return all(b >= a - MEASURABLE for a, b in pairwise(means))
