"""Train a base model: a DDPM++ or ADM U-Net on a folder of images.

    python scripts/avatar/train_ddpm.py --config avatar.yml --images data/avatar/train --out pretrained/avatar/ddpm.pt

Another YAML and another folder make a base model for a domain of one's own. Beside the weights (the moving average, in
half precision) stand `<out>.state`, from which the next start goes on, and `<out>.png`, samples drawn on the way. Stopped at
any moment, it loses at most the steps since the last save.

Objective: the simple loss of DDPM (eq. 14), optionally with the weights of P2 (Choi et al. 2022, eq. 8).
"""

import argparse
import copy
import math
import sys
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from torchvision.utils import save_image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from asyrp import checkpoints, process
from asyrp.config import load_config
from asyrp.data.datasets import ImageFolder
from utils.errors import UserError
from models import build_unet


def endless(loader):
    while True:
        yield from loader


def antithetic_timesteps(batch, T, device):
    """t and T-1-t in pairs: the loss depends strongly on t, and pairs even that out (iDDPM section 3.3 has the aim)."""
    half = torch.randint(T, ((batch + 1) // 2,), device=device)
    return torch.cat([half, T - 1 - half])[:batch]


def p2_weights(schedule, gamma):
    """P2 eq. 8 with k = 1: (1 + SNR_t)^-gamma = (1 - alpha_bar_t)^gamma, as a float32 tensor (T,). gamma 0: all ones."""
    return torch.from_numpy((1 - schedule.alpha_bars) ** gamma).float()


def learning_rate(peak, progress, warmup):
    """Linear warm-up over the share `warmup` of the training, then a cosine to zero; progress in 0..1."""
    if progress < warmup:
        return peak * progress / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))


@torch.no_grad()
def update_ema(ema, model, decay):
    for slow, fast in zip(ema.parameters(), model.parameters(), strict=True):
        slow.lerp_(fast, 1 - decay)


@torch.no_grad()
def save_samples(unet, images, schedule, path, device, steps=40):
    """Three rows: images, their reconstructions (inverted and generated back), and samples from noise."""
    t = process.timesteps(steps, len(schedule.betas) - 1)
    images = images.to(device)
    noise = process.image_noise(0, range(len(images)))(-1, images.shape).to(device)
    reconstructions = process.generate(unet, process.invert(unet, images, schedule, t), schedule, t)
    samples = process.generate(unet, noise, schedule, t)
    rows = torch.cat([images, reconstructions, samples]).clamp(-1, 1)
    save_image(rows.add(1).div(2), path, nrow=len(images))


class Trainer:
    """The state of a training and one step of it."""

    def __init__(self, args):
        self.args = args
        self.device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        config = load_config(args.config)
        d = config.diffusion
        self.schedule = process.Schedule.linear(d.beta_start, d.beta_end, d.num_diffusion_timesteps)
        self.alpha_bars = torch.from_numpy(self.schedule.alpha_bars).float().to(self.device)
        self.weights = p2_weights(self.schedule, args.p2_gamma).to(self.device)
        if args.init:
            self.unet = checkpoints.load_unet(config, args.init)
        else:
            self.unet = build_unet(config)
        self.unet = self.unet.to(self.device, memory_format=torch.channels_last).requires_grad_(True).train()
        self.ema = copy.deepcopy(self.unet).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.unet.parameters(), lr=args.lr, weight_decay=0.0)
        self.images_seen, self.seconds = 0, 0.0
        self.state_path = Path(f"{args.out}.state")
        if self.state_path.exists():
            self.resume()
        self.forward = torch.compile(self.unet) if args.compile else self.unet
        self.dataset = ImageFolder(args.images, config.data.image_size)
        self.loader = DataLoader(
            self.dataset,
            args.batch_size,
            shuffle=True,
            drop_last=len(self.dataset) >= args.batch_size,
            num_workers=args.workers,
            persistent_workers=args.workers > 0,
            pin_memory=self.device.type == "cuda",
        )

    def resume(self):
        state = checkpoints.load(self.state_path)
        self.unet.load_state_dict(state["unet"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.images_seen, self.seconds = state["images_seen"], state["seconds"]
        print(f"going on from {self.state_path}: {self.images_seen:,} images seen")

    def progress(self):
        """Share of the training done, 0..1, by images or by minutes, whichever is further."""
        by_time = self.seconds / (60 * self.args.minutes) if self.args.minutes else 0.0
        return max(self.images_seen / self.args.total_images, by_time)

    def step(self, x_0):
        args = self.args
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(args.lr, self.progress(), args.warmup)
        x_0 = x_0.to(self.device, non_blocking=True).contiguous(memory_format=torch.channels_last)
        if args.flip:
            x_0 = torch.where(torch.rand(len(x_0), 1, 1, 1, device=self.device) < 0.5, x_0.flip(3), x_0)
        t = antithetic_timesteps(len(x_0), len(self.alpha_bars), self.device)
        alpha_bar = self.alpha_bars[t][:, None, None, None]
        eps = torch.randn_like(x_0)
        x_t = alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * eps
        with torch.autocast(self.device.type, torch.bfloat16, enabled=args.precision == "bf16"):
            prediction, _ = process.split_prediction(self.forward(x_t, t))
        loss = ((prediction.float() - eps).square().mean((1, 2, 3)) * self.weights[t]).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimizer.step()
        # A short memory at first, so that the average soon forgets the random start (Karras et al. 2019, rampup).
        update_ema(self.ema, self.unet, min(args.ema, (1 + self.images_seen) / (10 * args.batch_size + self.images_seen)))
        self.images_seen += len(x_0)
        return loss.detach()

    def save(self):
        args = self.args
        half = {key: value.half().contiguous() for key, value in self.ema.state_dict().items()}
        checkpoints.save(half, args.out)
        state = {
            "unet": self.unet.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "images_seen": self.images_seen,
            "seconds": self.seconds,
        }
        checkpoints.save(state, self.state_path)
        shown = torch.stack([self.dataset[i] for i in range(min(12, len(self.dataset)))])
        save_samples(self.ema, shown, self.schedule, f"{args.out}.png", self.device)

    def run(self):
        bar = tqdm(total=self.args.total_images, initial=self.images_seen, unit="img", desc="training", mininterval=10)
        running, since_save, last = None, time.monotonic(), time.monotonic()
        for x_0 in endless(self.loader):
            if self.progress() >= 1:
                break
            loss = self.step(x_0)
            running = loss if running is None else running.lerp(loss, 0.02)
            now = time.monotonic()
            self.seconds += now - last
            last = now
            bar.update(len(x_0))
            if now - since_save > 60 * self.args.save_minutes:
                bar.set_postfix(loss=f"{running.item():.4f}", done=f"{self.progress():.1%}")
                self.save()
                since_save = last = time.monotonic()
        self.save()
        bar.close()
        print(f"{self.images_seen:,} images seen; weights in {self.args.out}, samples in {self.args.out}.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--config", required=True, help="YAML under configs/ or a path: the network, its image size and noise schedule")
    add("--images", required=True, help="folder of images; any size, resized and centre-cropped to the config's")
    add("--out", required=True, help="weight file to write; `<out>.state` beside it is gone on from when it exists")
    add("--init", help="start from these weights (full or half precision) instead of random ones")
    add("--total_images", type=int, default=5_000_000, help="images to see in all; the learning rate ends there (5,000,000)")
    add("--minutes", type=float, help="end after so many minutes of training instead, if that comes first")
    add("--batch_size", type=int, default=64)
    add("--lr", type=float, default=3e-4, help="peak learning rate of AdamW (3e-4)")
    add("--warmup", type=float, default=0.02, help="share of the training in which the learning rate rises (0.02)")
    add("--ema", type=float, default=0.999, help="decay of the moving average, per step (0.999)")
    add("--p2_gamma", type=float, default=0.0, help="P2 weighting; 0 is the simple loss, 1 the P2 paper's (0)")
    add("--flip", action="store_true", help="mirror half of the images")
    add("--precision", choices=("fp32", "bf16"), default="fp32")
    add("--compile", action="store_true", help="torch.compile the U-Net")
    add("--save_minutes", type=float, default=10, help="save weights, state and samples this often (10)")
    add("--workers", type=int, default=2, help="processes that read images (2)")
    add("--device", help="cpu, cuda, cuda:1 (default: cuda when there is one)")
    add("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    try:
        Trainer(args).run()
    except UserError as error:
        sys.exit(f"train_ddpm.py: {error}")


if __name__ == "__main__":
    main()
