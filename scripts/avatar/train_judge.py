"""Train the judge: a classifier of every label of the rendered faces.

    python scripts/avatar/train_judge.py --images data/avatar/train --test data/avatar/test --out pretrained/avatar/judge.pt

The faces are spoiled a little (blur, noise, shift, tint), so that it reads what a diffusion model draws. Ends with the
share of the test faces it reads rightly, label by label, on clean faces and on spoiled ones.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.terminal import catch_signals_early, guarded

if __name__ == "__main__":
    catch_signals_early()

import argparse
import time

import torch
import torch.nn.functional as F
from faces import blur, flip, from_bytes, load_faces, move, noise, recolour, sometimes
from render import LABELS
from tqdm import tqdm

from asyrp.acceleration.fast_unet import LAYOUTS, layout_for
from asyrp.base_model.settings import Settings, learning_rate
from models.judge import Judge, load_judge, save_judge
from utils.arguments import real, whole
from utils.devices import find_device


def spoil(images):
    """What a decent sample of a diffusion model may suffer; mild, for the judge must still see small differences."""
    images = move(flip(images), pixels=1.5, zoom=0.05)
    images = sometimes(0.5, images, blur(images, 0.8))
    images = sometimes(0.5, images, recolour(images, 0.06, 0.05))
    return sometimes(0.5, images, noise(images, 0.1))


def train(judge, images, labels, args, device):
    optimizer = torch.optim.AdamW(judge.parameters(), lr=args.lr, weight_decay=1e-3)
    bar = tqdm(total=args.steps, desc="training the judge", mininterval=5)
    start, step, running, layout = time.monotonic(), 0, None, LAYOUTS[layout_for(device)]
    while True:
        progress = step / args.steps
        if args.minutes:
            progress = max(progress, (time.monotonic() - start) / (60 * args.minutes))
        if progress >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(Settings(lr=args.lr, warmup=0.05), progress)
        batch = torch.randint(len(images), (args.batch_size,))
        x = spoil(from_bytes(images[batch].to(device))).contiguous(memory_format=layout)
        answers = judge(x)
        loss = sum(F.cross_entropy(answers[label], labels[batch, k].to(device)) for k, label in enumerate(LABELS))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        running = loss.detach() if running is None else running.lerp(loss.detach(), 0.02)
        step += 1
        bar.update()
        if step % 100 == 0:
            bar.set_postfix(loss=f"{running.item():.4f}", refresh=False)
    bar.close()


def accuracies(judge, images, labels):
    """images (N, 3, H, W) in [-1, 1], labels (N, 6) -> label name -> share read rightly."""
    answers = [judge.read(chunk) for chunk in images.split(250)]
    return {
        label: (torch.cat([a[label] for a in answers]).argmax(1).cpu() == labels[:, k]).float().mean().item()
        for k, label in enumerate(LABELS)
    }


def report(judge, folder, device):
    images, labels = load_faces(folder)
    images = from_bytes(images).to(device)
    print(f"read rightly, {len(images)} faces of {folder}")
    for name, shown in (("clean", images), ("spoiled", spoil(images))):
        print(f"  {name:8}" + "   ".join(f"{label} {share:.1%}" for label, share in accuracies(judge, shown, labels).items()))


def run(args):
    torch.manual_seed(args.seed)
    device = find_device(args.device)
    images, labels = load_faces(args.images)
    judge = load_judge(args.init) if args.init else Judge(LABELS)
    judge = judge.to(device, memory_format=LAYOUTS[layout_for(device)]).requires_grad_(True).train()
    train(judge, images, labels, args, device)
    save_judge(judge, args.out)
    print(f"weights in {args.out}, {Path(args.out).stat().st_size / 2**20:.2f} MiB")
    if args.test:
        report(load_judge(args.out, device), args.test, device)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--images", required=True, help="folder of render.py to learn from")
    add("--test", help="folder of render.py to measure on at the end")
    add("--out", required=True, help="weight file to write, in half precision")
    add("--init", help="start from these weights instead of random ones")
    add("--steps", type=whole(2), default=4000, help="steps in all; the learning rate ends there (4000)")
    add("--minutes", type=real(0), help="end after so many minutes instead, if that comes first")
    add("--batch_size", type=whole(1), default=128)
    add("--lr", type=real(1e-09, 10), default=2e-3, help="peak learning rate of AdamW (2e-3)")
    add("--device", help="cpu, cuda, cuda:1 (default: cuda when there is one)")
    add("--seed", type=whole(0), default=1)
    run(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(guarded(main))
