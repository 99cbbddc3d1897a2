"""Directions fitted to h itself, in seconds and without a loss: from labelled images, or from images alone.

The bottlenecks h_t of plain reverse processes are collected at every timestep of the editing interval; a direction is then one
delta_h a timestep. Sources: Haas et al. 2023, "Discovering Interpretable Directions in the Semantic Latent Space of Diffusion
Models" (arXiv 2303.11073): mean differences, principal components, projection; Zhu et al. 2023, "Boundary Guided Learning-Free
Semantic Control with Diffusion Models" (arXiv 2302.08357): the normal of a linear SVM.
"""

import torch

from asyrp import process
from utils.devices import to_device
from utils.errors import UserError

HELD_OUT = 0.25  # share of the images on which a boundary is tested


class Recording:
    """A U-Net, in its two halves, that keeps the bottleneck of every encoding: `seen`, {t: h (B, C, h, w) on the CPU}."""

    def __init__(self, unet):
        self.unet, self.seen = unet, {}

    def encode(self, x, t):
        h, skips, emb = self.unet.encode(x, t)
        self.seen[int(t[0])] = h.float().cpu()
        return h, skips, emb

    def decode(self, h, skips, emb):
        return self.unet.decode(h, skips, emb)


def bottlenecks(model, latents, timesteps):
    """h along the plain reverse process from x_T -> {t: (N, C, h, w)}, float32 on the CPU.

    latents: an iterable of x_T (B, 3, H, W). timesteps: those of the editing interval, ascending.
    """
    found = {t: [] for t in timesteps}
    for x_T in latents:
        recording = Recording(model.unet)
        process.generate(recording, to_device(x_T, model.device), model.schedule, timesteps)
        for t, h in recording.seen.items():
            found[t].append(h)
    return {t: torch.cat(chunks) for t, chunks in found.items()}


# ---- labelled images --------------------------------------------------------------------------------------------------------


def check_classes(positive):
    """Raise UserError where a class has too few images to be told from the other. positive: (N,) bool."""
    n, m = int(positive.sum()), int((~positive).sum())
    if min(n, m) < 2:
        raise UserError(f"{n} positive and {m} negative images: at least two of each are needed")


def mean_difference(h, positive):
    """{t: h (N, C, h, w)}, (N,) bool -> {t: (1, C, h, w)}: the mean of the positive images less that of the negative ones."""
    check_classes(positive)
    return {t: (x[positive].mean(0) - x[~positive].mean(0)).unsqueeze(0) for t, x in h.items()}


def boundary_normals(h, positive, seed=0):
    """The normal of a linear SVM (C = 1, classes weighted alike) at each timestep, as long as the classes' means lie apart
    along it -> ({t: (1, C, h, w)}, {t: accuracy on images that were held out}).

    h: {t: (N, C, h, w)}; positive: (N,) bool; seed: of the division. The normal is that of all images; the accuracy is of one
    that was fitted without a quarter of them, and {} for fewer than 8 images.
    """
    from sklearn.model_selection import train_test_split
    from sklearn.svm import SVC

    check_classes(positive)
    labels = positive.numpy()
    enough = HELD_OUT * len(labels) >= 2
    if enough:
        rest, tested = train_test_split(range(len(labels)), test_size=HELD_OUT, random_state=seed, stratify=labels)
    normals, accuracy = {}, {}
    for t, x in h.items():
        rows, svm = x.flatten(1).double(), SVC(kernel="linear", class_weight="balanced")
        rows = ((rows - rows.mean(0)) / rows.std()).numpy()  # one scale for all of h: C means the same at every timestep
        if enough:
            accuracy[t] = svm.fit(rows[rest], labels[rest]).score(rows[tested], labels[tested])
        weights = svm.fit(rows, labels).coef_[0]
        normal = torch.from_numpy(weights / (weights**2).sum() ** 0.5).float()
        along = x.flatten(1) @ normal
        apart = along[positive].mean() - along[~positive].mean()
        normals[t] = (apart * normal).view(1, *x.shape[1:])
    return normals, accuracy


def projected_off(direction, others):
    """A direction without what it shares with others: n - N^T (N N^T)^-1 N n, over all timesteps jointly (Haas et al. eq. 5).

    direction: {t: (1, C, h, w)}; others: list of the same, for the same timesteps. The system is solved, since the others need
    not be orthogonal: taking them off one after the other would put back what was taken off before.
    """
    if not others:
        return direction
    N = torch.stack([torch.cat([other[t].flatten() for t in direction]) for other in others]).double()
    n = torch.cat([delta.flatten() for delta in direction.values()]).double()
    n = (n - N.T @ torch.linalg.lstsq(N @ N.T, N @ n).solution).float()
    parts = n.split([delta.numel() for delta in direction.values()])
    return {t: part.view_as(direction[t]) for t, part in zip(direction, parts, strict=True)}


# ---- images alone -----------------------------------------------------------------------------------------------------------


def principal_components(h, k):
    """The first k principal components of h at every timestep, a standard deviation long -> (list of k {t: (1, C, h, w)},
    {t: (k,) shares of the variance}).

    By the eigenvectors of the N x N matrix of inner products, in float64. Signs: the largest coordinate at the highest timestep
    is positive, and a component points the same way at all timesteps (Haas et al. appendix).
    """
    n = len(next(iter(h.values())))
    if not 0 < k < n:
        raise UserError(f"{k} components of {n} images: there are at most {n - 1}; give more images")
    found, shares, first = [{} for _ in range(k)], {}, None
    for t in sorted(h, reverse=True):
        x = h[t].flatten(1).double()
        x = x - x.mean(0)
        values, vectors = torch.linalg.eigh(x @ x.T)
        values, vectors = values.flip(0)[:k].clamp_min(1e-30), vectors.flip(1)[:, :k]
        axes = (vectors / values.sqrt()).T @ x  # (k, d), of length 1
        if first is None:
            largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
            first = axes = axes * largest.sign()
        axes = axes * torch.where((axes * first).sum(1, keepdim=True) < 0, -1.0, 1.0)
        shares[t] = values / x.square().sum()
        for one, axis, value in zip(found, axes, values, strict=True):
            one[t] = (axis * (value / (n - 1)).sqrt()).float().view(1, *h[t].shape[1:])
    return found, shares
