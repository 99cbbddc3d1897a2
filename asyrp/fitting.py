"""Directions fitted to h, in seconds and without a loss: from labelled or unlabelled images.

The bottlenecks h_t of plain reverse processes are collected at every timestep of the editing interval; a direction is then
one delta_h per timestep. Sources: Haas et al. 2023, "Discovering Interpretable Directions in the Semantic Latent Space of
Diffusion Models" (arXiv 2303.11073): mean differences, principal components, projection; Zhu et al. 2023, "Boundary Guided
Learning-Free Semantic Control with Diffusion Models" (arXiv 2302.08357): the normal of a linear SVM.
"""

import torch

from asyrp import process
from utils.devices import to_device
from utils.errors import UserError

HELD_OUT = 0.25  # fraction of the images on which a boundary is tested


class Recording:
    """Wraps a U-Net and records its bottleneck features: `seen`, {t: h (B, C, h, w) on the CPU}."""

    def __init__(self, unet):
        self.unet, self.seen = unet, {}

    def encode(self, x, t):
        h, skips, emb = self.unet.encode(x, t)
        self.seen[int(t[0])] = h.float().cpu()
        return h, skips, emb

    def decode(self, h, skips, emb):
        return self.unet.decode(h, skips, emb)


def bottlenecks(model, latents, timesteps):
    """Collect h along the plain reverse process from x_T -> {t: (N, C, h, w)}, float32 on the CPU.

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
    """Raise UserError if a class has fewer than two images. positive: (N,) bool."""
    n, m = int(positive.sum()), int((~positive).sum())
    if min(n, m) < 2:
        raise UserError(f"{n} positive and {m} negative images: give at least two of each")


def mean_difference(h, positive):
    """{t: h (N, C, h, w)}, (N,) bool -> {t: (1, C, h, w)}: mean of the positive images minus mean of the negative ones (Haas et
    al.)."""
    check_classes(positive)
    return {t: (x[positive].mean(0) - x[~positive].mean(0)).unsqueeze(0) for t, x in h.items()}


def boundary_normals(h, positive, seed=0):
    """The normal of a linear SVM (C = 1, balanced classes) at each timestep, scaled to the distance of the class means along it
    (Zhu et al.) -> ({t: (1, C, h, w)}, {t: accuracy on held-out images}).

    h: {t: (N, C, h, w)}; positive: (N,) bool; seed: of the split. The normal is fitted to all images; the accuracy comes from
    a second fit that holds out a quarter of them, and is {} for fewer than 8 images. Raises UserError as `check_classes`.
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
        rows = (
            (rows - rows.mean(0)) / rows.std()
        ).numpy()  # one scale for all of h, so that C means the same at every timestep
        if enough:
            accuracy[t] = svm.fit(rows[rest], labels[rest]).score(rows[tested], labels[tested])
        weights = svm.fit(rows, labels).coef_[0]
        normal = torch.from_numpy(weights / (weights**2).sum() ** 0.5).float()
        along = x.flatten(1) @ normal
        apart = along[positive].mean() - along[~positive].mean()
        normals[t] = (apart * normal).view(1, *x.shape[1:])
    return normals, accuracy


def projected_off(direction, others):
    """Project other directions out of one: n - N^T (N N^T)^-1 N n, over all timesteps jointly (Haas et al. eq. 5).

    direction: {t: (1, C, h, w)}; others: list of the same, for the same timesteps. They need not be orthogonal, so a linear
    system is solved: removing them one after the other would bring earlier ones back. -> {t: (1, C, h, w)}
    """
    if not others:
        return direction
    N = torch.stack([torch.cat([other[t].flatten() for t in direction]) for other in others]).double()
    n = torch.cat([delta.flatten() for delta in direction.values()]).double()
    n = (n - N.T @ torch.linalg.lstsq(N @ N.T, N @ n).solution).float()
    parts = n.split([delta.numel() for delta in direction.values()])
    return {t: part.view_as(direction[t]) for t, part in zip(direction, parts, strict=True)}


# ---- unlabelled images ------------------------------------------------------------------------------------------------------


def principal_components(h, k):
    """The first k principal components of h at every timestep, one standard deviation long -> (list of k {t: (1, C, h, w)},
    {t: (k,) fractions of the variance}).

    Computed from the eigenvectors of the N x N Gram matrix in float64. Signs: the largest coordinate at the highest timestep is
    positive, and a component points the same way at all timesteps (Haas et al. appendix). Raises UserError unless 0 < k < N.
    """
    n = len(next(iter(h.values())))
    if not 0 < k < n:
        raise UserError(f"{k} components need more than {k} images, not {n}: give more images, or fewer --n_components")
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
