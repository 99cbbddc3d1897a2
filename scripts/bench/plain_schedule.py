"""The plain schedule: inversion, editing and training written directly from the equations, without saving any work.

bench.py compares it with the code of the project on the same U-Net. It uses two decoder passes at every step of an edit,
computes both training trajectories in every epoch, encodes both images with CLIP at every step, and handles one image at a
time. A timestep is an int; alpha_bars is a list of floats that ends in 1.0, so that index -1 is the noiseless end.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F


def predict_x0(x, eps, a):
    return (x - (1 - a) ** 0.5 * eps) / a**0.5


def step(x, eps, eps_edit, t, t_next, alpha_bars):
    """-> (the next state, P_t)."""
    P = predict_x0(x, eps_edit, alpha_bars[t])
    a = alpha_bars[t_next]
    return a**0.5 * P + (1 - a) ** 0.5 * eps, P


def predictions(unet, x, t, block=None):
    """(eps, eps for the edited h); without a block, h is not edited."""
    h, skips, emb = unet.encode(x, torch.full((len(x),), t, device=x.device))
    edited = h if block is None else h + block(h, emb)
    return unet.decode(h, skips, emb)[:, :3], unet.decode(edited, skips, emb)[:, :3]


@torch.no_grad()
def invert(unet, x_0, alpha_bars, timesteps):
    x = x_0
    for t, t_next in pairwise(timesteps):
        eps = unet(x, torch.full((len(x),), t, device=x.device))[:, :3]
        x, _ = step(x, eps, eps, t, t_next, alpha_bars)
    return x


@torch.no_grad()
def edit(unet, x_T, alpha_bars, timesteps, block, t_edit):
    x = x_T
    for t, t_next in pairwise([*reversed(timesteps), -1]):
        eps, eps_edit = predictions(unet, x, t, block if t >= t_edit else None)
        x, _ = step(x, eps, eps_edit, t, t_next, alpha_bars)
    return x


def train(unet, x_0, x_T, alpha_bars, timesteps, block, t_edit, optimizer, encode, direction):
    """One image of one epoch, with weight 1 for the CLIP and the L1 term."""
    x = x_plain = x_T
    for t, t_next in pairwise([*reversed(timesteps), -1]):
        if t < t_edit:
            break
        with torch.no_grad():
            time = torch.full((len(x),), t, device=x.device)
            eps_plain = unet(x_plain, time)[:, :3]
            x_plain, P_plain = step(x_plain, eps_plain, eps_plain, t, t_next, alpha_bars)
            h, skips, emb = unet.encode(x, time)
            eps = unet.decode(h, skips, emb)[:, :3]
            source = encode(x_0)
        eps_edit = unet.decode(h + block(h, emb), skips, emb)[:, :3]
        x_next, P_edit = step(x, eps, eps_edit, t, t_next, alpha_bars)
        change = F.normalize(encode(P_edit) - source, dim=-1)
        loss = -torch.log((1 + (change * direction).sum(-1)) / 2).mean() + F.l1_loss(P_edit, P_plain)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        x = x_next.detach()
