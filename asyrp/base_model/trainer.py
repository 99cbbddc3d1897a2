"""Train a base model: a U-Net on images, with the objective of DDPM.

The output is a moving average of the weights. A training resumes from its saved state.
"""

import copy
import logging
import math
import time
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler
from tqdm import tqdm

from asyrp import process
from asyrp.acceleration.fast_unet import LAYOUTS, autocast, check_compiler, layout_for
from asyrp.base_model.files import model_sections
from asyrp.base_model.settings import learning_rate, loss_weights
from asyrp.config import to_dict
from asyrp.data.datasets import Readable, collate
from asyrp.ranks import ALONE
from models import build_unet
from models.convert import read_weights_of
from utils import tensors
from utils.errors import UserError
from utils.terminal import leave_signals_to_the_parent, line_of
from utils.text import one_line

log = logging.getLogger(__name__)

COLD_STEPS = 100  # steps of warm-up for trained weights with a new optimiser
SMOOTHING = 0.02  # weight of the newest batch in the displayed loss


def antithetic_timesteps(batch, T, device):
    """Pairs of t and T-1-t, which reduce the variance of the loss over t (the aim of iDDPM section 3.3) -> (batch,)."""
    half = torch.randint(T, ((batch + 1) // 2,), device=device)
    return torch.cat([half, T - 1 - half])[:batch]


@torch.no_grad()
def update_ema(ema, model, decay):
    for slow, fast in zip(ema.parameters(), model.parameters(), strict=True):
        slow.lerp_(fast, 1 - decay)


def seed_at(seed, images_seen):
    """The seed of a training that starts or resumes after images_seen images, so that no random numbers are repeated."""
    return int(np.random.SeedSequence((seed, images_seen)).generate_state(1, np.uint64)[0] >> np.uint64(1))


@torch.no_grad()
def reconstruct_and_sample(unet, images, schedule, steps=40):
    """images (B, 3, H, W) in [-1, 1] -> (their reconstructions by inversion and generation, as many samples from noise)."""
    t = process.timesteps(min(steps, len(schedule.betas)), len(schedule.betas) - 1)
    noise = process.image_noise(0, range(len(images)))(-1, images.shape).to(images.device)
    reconstructions = process.generate(unet, process.invert(unet, images, schedule, t), schedule, t)
    return reconstructions, process.generate(unet, noise, schedule, t)


class Trainer:
    """A U-Net in training (`unet`), its moving average (`ema`), its optimiser, and its progress.

    config: a Config. init: a weight file to start from. state: from `Trainer.state`, to resume from; overrides `init`. Seeds
    PyTorch's random numbers from the number of images seen. ranks: processes that share each batch; every process draws the
    random numbers of the whole batch, so that the number of processes changes only rounding.
    Raises UserError if weights are missing, damaged or of another network, or if the batch has fewer images than processes.
    """

    def __init__(self, config, settings, device="cpu", init=None, state=None, ranks=ALONE):
        if settings.batch_size < ranks.world:
            raise UserError(
                f"--batch_size {settings.batch_size} is split over {ranks.world} processes: use {ranks.world} or more"
            )
        self.settings, self.device, self.model = settings, torch.device(device), model_sections(config)
        self.ranks = ranks
        self.images_seen, self.seconds, self.sessions = settings.images_seen, 0.0, []
        if state:
            self.images_seen, self.seconds, self.sessions = (state[key] for key in ("images_seen", "seconds", "sessions"))
        self.began_at, self.began_from = self.images_seen, str(init) if init and not state else None
        torch.manual_seed(seed_at(settings.seed, self.images_seen))
        automatic = "channels_last" if self.device.type == "cuda" else "contiguous"
        wanted = automatic if settings.memory_format == "auto" else settings.memory_format
        self.layout = LAYOUTS[layout_for(self.device, wanted)]
        if settings.compile:
            check_compiler(self.device)
        self._make_networks(config, init, state)
        self._make_optimizer(state)
        is_trained, has_moments = bool(init or state), bool(state) and "optimizer" in state
        self.cold_steps_left = COLD_STEPS if is_trained and not has_moments else 0
        self.schedule = process.Schedule.of(config.diffusion)
        self.alpha_bars = torch.from_numpy(self.schedule.alpha_bars).float().to(self.device)
        self.weights = loss_weights(self.schedule, settings).to(self.device)
        self.forward = torch.compile(self.unet) if settings.compile else self.unet
        self.loss = None  # running mean

    def _make_networks(self, config, init, state):
        if getattr(config.model, "prediction_type", "epsilon") != "epsilon":
            # The loss here is in eps, which tells little about v at large timesteps.
            raise UserError("prediction_type v_prediction cannot be trained here: set prediction_type epsilon in the config")
        unet = build_unet(config)
        ema, what = copy.deepcopy(unet), f"the U-Net of {config.path.name}"
        if state:
            tensors.load_strictly(unet, state["unet"], "the state", what)
            tensors.load_strictly(ema, state["ema"], "the state", what)
        elif init:
            weights = read_weights_of(unet, init)
            for network in (unet, ema):
                tensors.load_strictly(network, weights, init, what)
        self.unet = unet.to(self.device, memory_format=self.layout).requires_grad_(True).train()
        self.ema = ema.to(self.device, memory_format=self.layout).requires_grad_(False).eval()

    def _make_optimizer(self, state):
        s = self.settings
        self.optimizer = torch.optim.AdamW(self.unet.parameters(), lr=s.lr, betas=s.betas, weight_decay=0.0)
        if state and "optimizer" in state:
            try:
                self.optimizer.load_state_dict(state["optimizer"])
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise UserError("the optimizer in the state is damaged: delete the state and start from the weights") from error
            for group in self.optimizer.param_groups:
                group["betas"] = s.betas

    # ---- one step -----------------------------------------------------------------------------------------------------------

    @property
    def progress(self):
        """Fraction of the training done, 0 to 1, by images or by minutes, whichever is larger."""
        by_time = self.seconds / (60 * self.settings.minutes) if self.settings.minutes else 0.0
        return max(self.images_seen / self.settings.total_images, by_time)

    def rate(self):
        """The learning rate of the next step."""
        return learning_rate(self.settings, self.progress) * (1 - self.cold_steps_left / (COLD_STEPS + 1))

    def step(self, x_0):
        """One optimiser step on images (B, 3, H, W) in [-1, 1], this process's part of the batch."""
        s, ranks = self.settings, self.ranks
        n = s.batch_size if ranks.joined else len(x_0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        x_0 = x_0.to(self.device, non_blocking=True).contiguous(memory_format=self.layout)
        if s.flip:
            x_0 = torch.where(ranks.share(torch.rand(n, 1, 1, 1, device=self.device)) < 0.5, x_0.flip(3), x_0)
        t = ranks.share(antithetic_timesteps(n, len(self.alpha_bars), self.device))
        alpha_bar = self.alpha_bars[t][:, None, None, None]
        whole = torch.empty(n, *x_0.shape[1:], device=self.device, memory_format=self.layout)
        eps = ranks.share(whole.normal_())
        x_t = alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * eps
        with autocast(s.precision, self.device):
            prediction, _ = process.split_prediction(self.forward(x_t, t))
        loss = ((prediction.float() - eps).square().mean((1, 2, 3)) * self.weights[t]).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        loss = loss.detach()
        gradients = [p.grad for p in self.unet.parameters() if p.grad is not None]
        ranks.average([*gradients, loss], len(x_0) / n)
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), s.clip_norm)
        self.optimizer.step()
        # A low decay at first, so that the average soon forgets the random weights (ramp-up as in StyleGAN, Karras et al.
        # 2019).
        update_ema(self.ema, self.unet, min(s.ema, (1 + self.images_seen) / (10 * s.batch_size + self.images_seen)))
        self.images_seen += n
        self.cold_steps_left = max(0, self.cold_steps_left - 1)
        self.loss = loss if self.loss is None else self.loss.lerp(loss, SMOOTHING)

    # ---- all steps ----------------------------------------------------------------------------------------------------------

    def loader(self, dataset):
        """The remaining batches, with each image equally often; this process's part of each batch."""
        s = self.settings
        steps = math.ceil((s.total_images - self.images_seen) / s.batch_size)
        order = RandomSampler(dataset, num_samples=steps * s.batch_size)
        return DataLoader(
            Readable(dataset),
            batch_sampler=Parts(BatchSampler(order, s.batch_size, drop_last=False), self.ranks),
            num_workers=s.workers,
            collate_fn=collate,
            worker_init_fn=leave_signals_to_the_parent,
            pin_memory=self.device.type == "cuda",
        )

    def run(self, dataset, save, stopped=lambda: False):
        """Train to the end, or until `stopped()` is true -> the value of `stopped()`. Calls `save()` periodically and at the
        end.

        An OSError of a periodic save is logged, and saving is tried again later; an error of the last save is raised. Of
        several processes, the first one saves and keeps time; all stop when one of them is stopped.
        """
        told, last, stop = set(), time.monotonic(), None
        saved = last
        with tqdm(total=self.settings.total_images, initial=self.images_seen, unit="img", desc="training") as bar:
            for x_0, messages in self.loader(dataset):
                for message in dict.fromkeys(messages):
                    if message not in told:
                        log.warning("skipped: %s", message)
                told.update(messages)
                if x_0 is None:
                    raise UserError(f"{dataset.folder}: none of the images can be read any more: check the files")
                with compiling():
                    self.step(x_0)
                now = time.monotonic()
                everybody = self.ranks.gather([(self.seconds + now - last, stopped())])
                (self.seconds, _), last = everybody[0], now
                if bar.update(self.images_seen - bar.n):
                    bar.set_postfix(loss=f"{self.loss.item():.4f}", done=f"{self.progress:.1%}", refresh=False)
                stop = next((said for _, said in everybody if said), None)
                if stop or self.progress >= 1:
                    break
                if now - saved > 60 * self.settings.save_minutes and self.ranks.leads:
                    self.check()
                    try:
                        save()
                    except OSError as error:
                        log.warning("%s; the previous save is kept, and training continues", line_of(error))
                    saved = last = time.monotonic()
        self.check()
        if self.ranks.leads:
            save()
        return stop

    def check(self):
        """Raise UserError if the loss is not finite, so that broken weights never overwrite good ones."""
        if not self.loss.isfinite():
            raise UserError(f"the loss is not finite after {self.images_seen:,} images: lower --lr; the previous save is kept")

    # ---- saving -------------------------------------------------------------------------------------------------------------

    def state(self):
        """Everything needed to resume the training, for `torch.save`."""
        return {
            "model": self.model,
            "unet": self.unet.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "images_seen": self.images_seen,
            "seconds": self.seconds,
            "sessions": self.history(),
        }

    def history(self):
        """The sessions of the training: images seen at start and end, and settings -> list of plain dicts."""
        if self.images_seen == self.began_at:
            return self.sessions
        stretch = {"from": self.began_at, "to": self.images_seen, "settings": to_dict(self.settings)}
        return [*self.sessions, stretch | ({"init": self.began_from} if self.began_from else {})]

    def averaged_weights(self, dtype=torch.float32):
        """The moving average as a state dict in `dtype`, on the CPU."""
        return {key: value.to("cpu", dtype).contiguous() for key, value in self.ema.state_dict().items()}


class Parts:
    """A batch sampler that yields this process's part of each batch."""

    def __init__(self, batches, ranks):
        self.batches, self.ranks = batches, ranks

    def __iter__(self):
        return map(self.ranks.share, self.batches)

    def __len__(self):
        return len(self.batches)


@contextmanager
def compiling():
    """Tell in one line that the compiler failed."""
    try:
        yield
    except torch._dynamo.exc.BackendCompilerFailed as error:
        raise UserError(f"--compile: this U-Net cannot be compiled here ({one_line(error)}); leave --compile out") from error
