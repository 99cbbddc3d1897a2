"""What is measured of an edit, each metric defined once. Images are (B, 3, H, W) in [-1, 1]; values are one an image, (B,)."""

import math
import warnings
from dataclasses import dataclass
from itertools import pairwise

import torch

from losses.clip_loss import directional_loss
from utils.extras import load

RANGE = 2.0  # of [-1, 1]
MEASURABLE = 0.005  # a mean score that falls by less, say from 0.001 to 0.000, has not fallen
CERTAIN = 1e-6  # probabilities nearer to 0 or 1 are as good as certain
SUBSETS = 100  # of the images, over which KID is averaged
LARGEST_SUBSET = 1000


@dataclass(frozen=True)
class Summary:
    """Mean over n images and its standard error: None for a single image, whose spread nobody knows."""

    mean: float
    standard_error: float | None
    n: int

    def __str__(self):
        if self.standard_error is None:
            return f"{self.mean:.3g}"
        return f"{self.mean:.3g} ± {self.standard_error:.2g}"


class Moments:
    """Count, mean and spread of values that come in portions (Chan, Golub and LeVeque 1983)."""

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
        """-> Summary; at least one value must have come."""
        deviation = math.sqrt(self.squares / (self.n - 1)) if self.n > 1 else None
        return Summary(self.mean, deviation / math.sqrt(self.n) if self.n > 1 else None, self.n)


def summary(values):
    """Values of n images (a sequence or a tensor, one at least) -> Summary."""
    return Moments().add(values).summary()


def s_dir(before, after, direction):
    """S_dir: cosine of CLIP's image difference with a text direction (paper section 5; StyleCLIP-NADA's loss is 1 - S_dir).

    before, after: normalised features (B, D); direction: (1, D), normalised. -> (B,), -1 to 1; 0 where nothing has changed.
    """
    return 1 - directional_loss(before, after, direction)


def psnr(images, reference):
    """Peak signal-to-noise ratio in dB, of images clipped to [-1, 1]."""
    pair = images.clamp(-1, 1), reference.clamp(-1, 1)
    measure = load("torchmetrics.functional.image", "PSNR").peak_signal_noise_ratio
    return measure(*pair, data_range=RANGE, reduction=None, dim=(1, 2, 3))


def ssim(images, reference):
    """Structural similarity (Wang et al. 2004), of images clipped to [-1, 1]."""
    pair = images.clamp(-1, 1), reference.clamp(-1, 1)
    measure = load("torchmetrics.functional.image", "SSIM").structural_similarity_index_measure
    return measure(*pair, data_range=RANGE, reduction=None).reshape(-1)


def segment_agreement(before, after):
    """Segmentation consistency (paper section 5) of label maps (B, H, W) -> (mean IoU, pixel accuracy), 0 to 1.

    The mean is over the segments that either map of an image shows.
    """
    accuracy = (before == after).flatten(1).double().mean(1)
    overlaps = []
    for a, b in zip(before, after, strict=True):
        segments = torch.cat([a.unique(), b.unique()]).unique()
        ious = [((a == s) & (b == s)).sum() / ((a == s) | (b == s)).sum() for s in segments]
        overlaps.append(torch.stack(ious).double().mean())
    return torch.stack(overlaps), accuracy


def log_odds(probabilities):
    """log p / (1 - p): the logit of a class against all others, finite at 0 and 1."""
    p = probabilities.double().clamp(CERTAIN, 1 - CERTAIN)
    return (p / (1 - p)).log()


def edit_precision_ratio(target, others):
    """EPR: how much an edit changes what it aims at, against what it changes besides.

    target: mean over images of |change of the aimed-at attribute's logit|; others: the same of all other attributes. -> their
    ratio, above 1 for an edit that changes its aim most; None where nothing else has changed at all.
    """
    return target / others if others > 0 else None


def frechet_distance(a, b):
    """Fréchet distance of two sets of features (n, D), taken as Gaussians (Heusel et al. 2017); FID on Inception's."""
    features = torch.nn.Identity()
    features.num_features = a.shape[1]
    distance = load("torchmetrics.image.fid", "the Fréchet distance").FrechetInceptionDistance
    metric = distance(feature=features, sync_on_compute=False)  # the sets are whole: there is nothing to sync
    metric.update(a, real=True)
    metric.update(b, real=False)
    return metric.compute().item()


def kernel_distance(a, b):
    """KID (Binkowski et al. 2018) of two sets of features (n, D) -> (mean, standard deviation over SUBSETS, their size)."""
    distance = load("torchmetrics.image.kid", "KID").KernelInceptionDistance
    size = min(len(a) // 2, LARGEST_SUBSET)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore", UserWarning)  # that it keeps all features
        torch.manual_seed(0)  # the same subsets, and so the same number, at every call
        how = {"subsets": SUBSETS, "subset_size": size, "sync_on_compute": False}
        metric = distance(feature=torch.nn.Identity(), **how)
        metric.update(a, real=True)
        metric.update(b, real=False)
        mean, deviation = metric.compute()
    return mean.item(), deviation.item(), size


def monotone(means):
    """Whether mean scores over rising strengths never fall measurably."""
    return all(b >= a - MEASURABLE for a, b in pairwise(means))
