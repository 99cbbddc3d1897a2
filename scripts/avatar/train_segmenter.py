"""Train the segmenter: which part of a rendered face each pixel shows.

    python scripts/avatar/train_segmenter.py --out pretrained/avatar/segmenter.pt

Its masks come from the artwork itself (masks.py). Written as a TorchScript file, the form that main.py's --segmenter takes:
images (B, 3, H, W) in [-1, 1] -> scores (B, segments, H, W). Ends with what it reads of test faces: pixel accuracy and IoU.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.terminal import catch_signals_early, guarded

if __name__ == "__main__":
    catch_signals_early()

import argparse
import json
import warnings

import torch
import torch.nn.functional as F
from faces import blur, flip_with, from_bytes, noise, recolour, sometimes
from masks import SEGMENTS, faces_and_masks
from torch import nn
from tqdm import tqdm

from asyrp.base_model.settings import Settings, learning_rate
from asyrp.evaluation.segmenter import NAMES
from utils.arguments import real, whole
from utils.devices import find_device
from utils.files import replacing

WIDTHS = (24, 48, 96)


def layer(width_in, width):
    return nn.Sequential(nn.Conv2d(width_in, width, 3, padding=1, bias=False), nn.GroupNorm(8, width), nn.SiLU())


def doubled(x):
    """(B, C, H, W) -> (B, C, 2 H, 2 W), each pixel four times."""
    # Not F.interpolate: TorchScript writes all of its modes into the file, and older versions of PyTorch lack the newest ones.
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


class Segmenter(nn.Module):
    """A small U-Net. images (B, 3, H, W) in [-1, 1], H and W multiples of 4 -> scores (B, segments, H, W)."""

    def __init__(self):
        super().__init__()
        a, b, c = WIDTHS
        self.fine, self.middle = nn.Sequential(layer(3, a), layer(a, a)), nn.Sequential(layer(a, b), layer(b, b))
        self.coarse = nn.Sequential(layer(b, c), layer(c, c))
        self.up_middle, self.up_fine = layer(c + b, b), layer(b + a, a)
        self.head = nn.Conv2d(a, len(SEGMENTS), 1)

    def forward(self, images):
        fine = self.fine(images)
        middle = self.middle(F.max_pool2d(fine, 2))
        coarse = self.coarse(F.max_pool2d(middle, 2))
        middle = self.up_middle(torch.cat([doubled(coarse), middle], 1))
        return self.head(self.up_fine(torch.cat([doubled(middle), fine], 1)))


def spoil(images):
    """What an edited picture may suffer, short of moving its segments."""
    images = sometimes(0.5, images, blur(images, 0.6))
    images = sometimes(0.5, images, recolour(images, 0.15, 0.1))
    return sometimes(0.5, images, noise(images, 0.1))


def train(segmenter, faces, masks, args, device):
    optimizer = torch.optim.AdamW(segmenter.parameters(), lr=args.lr, weight_decay=1e-3)
    bar = tqdm(range(args.steps), desc="training the segmenter", mininterval=5)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(Settings(lr=args.lr, warmup=0.05), step / args.steps)
        batch = torch.randint(len(faces), (args.batch_size,))
        x, y = flip_with(from_bytes(faces[batch].to(device)), masks[batch].to(device))
        loss = F.cross_entropy(segmenter(spoil(x)), y.long())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)


@torch.no_grad()
def report(segmenter, faces, masks):
    """Pixel accuracy, and each segment's intersection over union, over all pixels of the faces."""
    read = torch.cat([segmenter(from_bytes(chunk)).argmax(1) for chunk in faces.split(256)])
    print(f"read rightly: {(read == masks).float().mean():.1%} of the pixels of {len(faces)} test faces")
    for i, name in enumerate(SEGMENTS):
        both, either = ((read == i) & (masks == i)).sum(), ((read == i) | (masks == i)).sum()
        print(f"  {name:10} IoU {both / either:.3f}")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", required=True, help="TorchScript file to write")
    add("--count", type=whole(1), default=6000, help="training faces (6000)")
    add("--test_count", type=whole(1), default=500, help="test faces (500)")
    add("--size", type=whole(8), default=32, help="pixels a side (32)")
    add("--steps", type=whole(2), default=1500)
    add("--batch_size", type=whole(1), default=64)
    add("--lr", type=real(1e-09, 10), default=3e-3, help="peak learning rate of AdamW (3e-3)")
    add("--device", help="cpu, cuda, cuda:1 (default: cuda when there is one)")
    add("--seed", type=whole(0), default=2)
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)
    device = find_device(args.device)
    faces, masks = map(torch.from_numpy, faces_and_masks("train", args.count, args.size))
    segmenter = Segmenter().to(device)
    train(segmenter, faces, masks, args, device)
    segmenter = segmenter.cpu().eval().requires_grad_(False)
    with warnings.catch_warnings():  # torch calls TorchScript deprecated; it is the one form that carries its own code
        warnings.simplefilter("ignore")
        with replacing(args.out) as beside:
            torch.jit.script(segmenter).save(str(beside), _extra_files={NAMES: json.dumps(list(SEGMENTS))})
        print(f"segmenter in {args.out}, {Path(args.out).stat().st_size / 2**20:.2f} MiB")
        report(torch.jit.load(args.out), *map(torch.from_numpy, faces_and_masks("test", args.test_count, args.size)))


if __name__ == "__main__":
    sys.exit(guarded(main))
