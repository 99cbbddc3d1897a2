"""Train the CLIP of the default stack on captioned faces.

    python scripts/avatar/train_clip.py --images data/avatar/train --test data/avatar/test --out pretrained/avatar/clip.pt

Writes clip.json (an open_clip config) and clip.pt (its weights, half precision), which losses/clip_loss.py reads together.
It ends with what matters for editing: the zero-shot accuracies, and for changes of one label the cosine between the change
of the image's embedding and the text direction of every prompt. A good edit of one label follows its own direction alone.

What differs from ordinary CLIP training, because the model's gradients are to draw and not only to name:
- every class of every label has an anchor in the embedding, shared by both towers during training: an image is drawn to the
  anchors of its labels, a text to those that it tells, and away from none of the others;
- many captions fit many faces of a batch, so the targets of the contrastive loss (Radford et al. 2021) are shared among
  all that fit;
- twins, two renderings that differ in one label, are pulled along the text direction of that change, also half-way;
- the loss of an edit sees P_t, the predicted x_0: faces are blurred, noised, moved and tinted, and with --unet replaced by
  the predictions of a diffusion model. Twins are spoiled alike, as P_t with and without an edit are: a change of colour that
  the words do not tell then counts against an edit;
- towards the end, a step of adversarial noise (Goodfellow et al. 2015; L2) makes the gradients prefer what can be seen
  (Santurkar et al. 2019, "Image synthesis with a single (robust) classifier").
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.terminal import catch_signals_early, guarded

if __name__ == "__main__":
    catch_signals_early()

import argparse
import json
import math
import random
import time

import open_clip
import torch
import torch.nn.functional as F
from captions import LEFT_OUT, STYLES, caption, edit_prompts, fits, style_prompts
from faces import STYLES as drawn
from faces import alike, blur, flip, from_bytes, load_faces, move, noise, per_image, recolour, sometimes, to_bytes
from render import LABELS
from torch import nn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TF
from tqdm import tqdm
from twins import Twins, all_twins, random_twins

import asyrp
from asyrp import process
from asyrp.base_model.settings import Settings, learning_rate
from losses.clip_loss import TEMPLATES, ClipLoss
from utils import tensors
from utils.arguments import real, whole
from utils.devices import find_device
from utils.files import write_text

# A ResNet and not a ViT: every reduction in it but the first one averages, so its gradients show no grid of patches. It looks
# at 64 pixels, twice the faces' size: its stem divides by four, and at 32 pixels no expression was learned.
CONFIG = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2},
}
PROMPTS = {
    "expression": ("smiling face", "sad face", "angry face", "surprised face"),
    "hair": ("face with black hair", "face with blond hair", "face with brown hair", "face with red hair"),
    "skin": ("face with pale skin", "face with tanned skin", "face with brown skin", "face with dark skin"),
    "beard": ("face without a beard", "face with a beard"),
    "long_hair": ("face with short hair", "face with long hair"),
    "glasses": ("face without glasses", "face with glasses"),
    "style": ("face", "sketch of a face", "pixel art of a face"),
}
APART = 0.2  # share of the twins that are spoiled each in its own way
IN_A_STYLE = 0.2  # share of the faces, and of the twins, that are seen in another style than the artwork's


def spoil(images, strength=1.0):
    """What P_t may look like beside a clean face, (B, 3, H, W) in [-1, 1]: blurred, tinted, noisy; some stay clean."""
    spoiled = sometimes(0.5, images, blur(images, 1.2 * strength))
    spoiled = sometimes(0.5, spoiled, recolour(spoiled, 0.08 * strength, 0.06 * strength))
    return sometimes(0.8, images, sometimes(0.5, spoiled, noise(spoiled, 0.15 * strength)))


def in_styles(images, style):
    """images (B, 3, H, W), positions in STYLES (B,) -> the images, each in its style."""
    images = images.clone()
    for k, name in enumerate(STYLES):
        if k and (style == k).any():
            images[style == k] = drawn[name](images[style == k])
    return images


@torch.no_grad()
def predictions(model, images, t_low, t_high, batch_size=50):
    """x_0 uint8 (N, 3, H, W) -> P_t uint8 of the same shape: x_0 noised to a random t, and what the model makes of it."""
    results = []
    for chunk in tqdm(images.split(batch_size), desc="predicting x_0", mininterval=5):
        t = int(torch.randint(t_low, t_high, ()))
        x_0 = from_bytes(chunk.to(model.device))
        x_t, _ = process.ddim_step(x_0, torch.randn_like(x_0), process.END, t, model.schedule)
        eps = process.frozen_branch(model.unet, x_t, t).eps
        results.append(to_bytes(process.predict_x0(x_t, eps, t, model.schedule)).cpu())
    return torch.cat(results)


def contrastive_loss(images, texts, scale, positive):
    """CLIP's symmetric cross-entropy with the target shared evenly among all that fit.

    images (B, D), texts (C, D), normalised; positive (B, C) bool, at least one in every row and column.
    """
    logits, targets = scale * images @ texts.T, positive.float()
    by_image = -(targets / targets.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1).mean()
    by_text = -(targets / targets.sum(0, keepdim=True) * logits.log_softmax(0)).sum(0).mean()
    return (by_image + by_text) / 2


class Anchors(nn.Module):
    """A point of the embedding for every class of every label, shared by both towers and dropped after training.

    The contrast within a small batch is a slow teacher of small things. An image is drawn to the anchors of all its labels;
    a text to those of the labels it tells, and to no class of the others, which is what makes "face" neutral.
    """

    def __init__(self, dim, scale=15.0):
        super().__init__()
        self.sizes = [*(len(names) for names in LABELS.values()), len(STYLES)]
        self.points = nn.Parameter(torch.randn(sum(self.sizes), dim))
        self.scale = scale

    def forward(self, features, labels):
        """features (B, D), normalised; labels (B, 7), LEFT_OUT for none -> mean cross-entropy, summed over the labels."""
        logits = self.scale * features @ F.normalize(self.points, dim=1).T
        loss = 0.0
        for k, part in enumerate(logits.split(self.sizes, 1)):
            wanted = F.one_hot(labels[:, k].clamp_min(0), part.shape[1]).float()
            wanted = torch.where(labels[:, k, None] == LEFT_OUT, 1 / part.shape[1], wanted)
            loss = loss - (wanted * part.log_softmax(1)).sum(1).mean()
        return loss


class Trainer:
    """The data, the model and one step of its training."""

    def __init__(self, args):
        self.args = args
        self.device = find_device(args.device)
        self.rng = random.Random(args.seed)
        torch.manual_seed(args.seed)
        self.images, self.labels = load_faces(args.images)
        print(f"rendering {args.twins:,} twins")
        self.twins = random_twins("train", args.twins)
        if args.unet:
            self.add_predictions()
        self.model = open_clip.CLIP(**CONFIG)
        if args.init:
            weights = tensors.state_dict_of(tensors.load(args.init), args.init)
            tensors.load_strictly(self.model, weights, args.init, "the CLIP of train_clip.py")
        self.model = self.model.to(self.device).train()
        self.model.visual.to(memory_format=torch.channels_last)
        self.tokenizer = open_clip.SimpleTokenizer(context_length=self.model.context_length)
        self.mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN, device=self.device).view(3, 1, 1)
        self.std = torch.tensor(open_clip.OPENAI_DATASET_STD, device=self.device).view(3, 1, 1)
        self.anchors = Anchors(CONFIG["embed_dim"]).to(self.device)
        if args.init:
            self.place_anchors()
        decayed = [p for n, p in self.model.named_parameters() if p.ndim > 1 and "embedding" not in n]
        others = [p for n, p in self.model.named_parameters() if p.ndim <= 1 or "embedding" in n]
        others += self.anchors.parameters()
        groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=args.lr, fused=True)

    @torch.no_grad()
    def place_anchors(self):
        """Put the anchors where the words of a trained model are; random ones would pull it apart."""
        prompts = ["face", *(prompt for group in PROMPTS.values() for prompt in group)]
        neutral, *classes = self.model.encode_text(self.tokenizer(prompts).to(self.device), normalize=True)
        self.anchors.points.copy_(torch.stack(classes) - neutral)

    def add_predictions(self):
        """Some faces and twins once more, as P_t of a diffusion model; both faces of a pair with the same t and noise."""
        args = self.args
        model = asyrp.open_model(args.config, args.unet, self.device)
        chosen = torch.randperm(len(self.images))[: args.unet_faces]
        seen = predictions(model, self.images[chosen], *args.unet_t)
        self.images, self.labels = torch.cat([self.images, seen]), torch.cat([self.labels, self.labels[chosen]])
        chosen = torch.randperm(len(self.twins.edited))[: args.unet_faces // 4]
        again = Twins(*(part[chosen] for part in self.twins))
        faces, edited = alike(lambda images: predictions(model, images, *args.unet_t), again.faces, again.edited)
        again = again._replace(faces=faces, edited=edited)
        self.twins = Twins(*(torch.cat(parts) for parts in zip(self.twins, again, strict=True)))

    def encode_images(self, images):
        """(B, 3, 32, 32) in [-1, 1] -> normalised features (B, D), as losses/clip_loss.py computes them."""
        size = [self.model.visual.image_size] * 2
        images = TF.resize((images + 1) / 2, size, interpolation=InterpolationMode.BICUBIC, antialias=True)
        images = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        return self.model.encode_image(images, normalize=True)

    def draw_faces(self, strength):
        """-> faces (B, 3, H, W), their captions, the labels of the faces and of the captions (B, 7)."""
        chosen = torch.randint(len(self.images), (self.args.batch_size,))
        style = torch.where(torch.rand(len(chosen)) < IN_A_STYLE, torch.randint(1, len(STYLES), chosen.shape), 0)
        labels = torch.cat([self.labels[chosen], style[:, None]], 1)
        texts, told = zip(*(caption(row, self.rng) for row in labels.tolist()), strict=True)
        faces = move(flip(from_bytes(self.images[chosen].to(self.device))), pixels=1.5, zoom=0.06)
        faces = in_styles(faces, style)
        return spoil(faces, strength), list(texts), labels.to(self.device), torch.tensor(told).to(self.device)

    def draw_twins(self, strength):
        """-> faces and their edited twins (B, 3, H, W), and the prompts of these edits, first all sources, then all targets."""
        chosen = torch.randint(len(self.twins.faces), (self.args.batch_size // 2,))
        face, edited, label, old, new = (part[chosen] for part in self.twins)
        both = move(flip(torch.cat([from_bytes(face), from_bytes(edited)], 1).to(self.device)), pixels=1.5, zoom=0.06)
        face, edited = both.chunk(2, 1)
        # Some are the face itself, in another style.
        styled = [self.rng.choice(list(STYLES)[1:]) if self.rng.random() < IN_A_STYLE else None for _ in chosen]
        for i, name in enumerate(styled):
            if name:
                edited[i] = drawn[name](face[i : i + 1])[0]
        # An edit on its way, and P_t where the model is undecided, are mixtures; the direction is to hold for them as well.
        edited = torch.lerp(face, edited, per_image(face, 0.3, 1.7).clamp_max(1))
        names = [list(LABELS)[k] for k in label.tolist()]
        changes = zip(styled, zip(old.tolist(), new.tolist(), names, strict=True), strict=True)
        prompts = [style_prompts(s, self.rng) if s else edit_prompts(*change, self.rng) for s, change in changes]
        sources, targets = zip(*prompts, strict=True)
        before, after = alike(lambda images: spoil(images, strength), face, edited)
        return before, sometimes(APART, after, spoil(edited, strength)), [*sources, *targets]

    def losses(self, images, texts, labels, told):
        """Features of all images and texts of a step, labels of faces and captions -> (contrastive, anchors', directional)."""
        b, n = len(labels), (len(images) - len(labels)) // 2
        contrastive = contrastive_loss(images[:b], texts[:b], self.model.logit_scale.exp(), fits(labels, told))
        anchored = self.anchors(images[:b], labels) + self.anchors(texts[:b], told)
        image_change, text_change = images[b + n :] - images[b : b + n], texts[b + n :] - texts[b : b + n]
        directional = (1 - F.cosine_similarity(image_change, text_change, dim=1, eps=1e-4)).mean()
        return torch.stack([contrastive, anchored, self.args.direction_weight * directional])

    def adversarial(self, images, texts, labels, told):
        """One step of length 0..--adversarial up the loss, for half of the images."""
        moved = images.detach().requires_grad_()
        loss = self.losses(self.encode_images(moved), texts.detach(), labels, told).sum()
        (slope,) = torch.autograd.grad(loss, moved)
        slope = slope / slope.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
        return sometimes(0.5, images, images + per_image(images, 0, self.args.adversarial) * slope)

    def step(self, progress):
        args = self.args
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(Settings(lr=args.lr, warmup=0.03), progress)
        # Small things first: a mouth is a few pixels, and is found at all only where it is seen clearly.
        strength = min(1.0, 0.3 + progress)
        faces, texts, *labels = self.draw_faces(strength)
        before, after, prompts = self.draw_twins(strength)
        images = torch.cat([faces, before, after])
        texts = self.model.encode_text(self.tokenizer([*texts, *prompts]).to(self.device), normalize=True)
        if args.adversarial and progress > args.adversarial_from:
            images = self.adversarial(images, texts, *labels)
        losses = self.losses(self.encode_images(images), texts, *labels)
        self.optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(100))
        return losses.detach()

    def run(self):
        args = self.args
        bar = tqdm(total=args.steps, desc="training the CLIP", mininterval=5)
        start, step, running, progress = time.monotonic(), 0, None, 0.0
        while progress < 1:
            losses = self.step(progress)
            running = losses if running is None else running.lerp(losses, 0.02)
            step += 1
            bar.update()
            if step % 50 == 0:
                names = ("contrastive", "anchors", "direction")
                bar.set_postfix({k: f"{v:.3f}" for k, v in zip(names, running.tolist(), strict=True)}, refresh=False)
            minutes = (time.monotonic() - start) / 60
            progress = max(step / args.steps, minutes / args.minutes if args.minutes else 0.0)
        bar.close()
        self.save()

    def save(self):
        out = Path(self.args.out)
        tensors.save({key: half(value) for key, value in self.model.state_dict().items()}, out)
        write_text(out.with_suffix(".json"), json.dumps(CONFIG, indent=2) + "\n")
        print(f"weights in {out}, {out.stat().st_size / 2**20:.2f} MiB; config in {out.with_suffix('.json')}")


def half(tensor):
    return tensor.half().contiguous() if tensor.is_floating_point() else tensor


@torch.no_grad()
def zero_shot(clip, images, labels):
    """images (N, 3, H, W) in [-1, 1], labels (N, 6) -> label name -> share for which the right prompt is the nearest; of the
    style, over the images in one style after the other."""
    features = torch.cat([clip.encode_images(chunk) for chunk in images.split(250)])
    style = torch.arange(len(images)) % len(STYLES)
    in_style = torch.cat([clip.encode_images(chunk) for chunk in in_styles(images, style).split(250)])
    labels, shares = torch.cat([labels, style[:, None]], 1), {}
    for k, (label, prompts) in enumerate(PROMPTS.items()):
        classes = torch.stack([clip.encode_text([t(prompt) for t in TEMPLATES]).mean(0) for prompt in prompts])
        seen = in_style if label == "style" else features
        nearest = (seen @ F.normalize(classes, dim=1).T).argmax(1).cpu()
        shares[label] = (nearest == labels[:, k]).float().mean().item()
    return shares


@torch.no_grad()
def change_table(clip, twins, spoiled):
    """Mean cosine of an image's change with the text directions "face" -> prompt: (18 changes, 18 prompts). A row is a change
    of one label to a class, averaged over the classes it comes from; a column is a prompt."""
    before, after = (from_bytes(part).to(clip.mean.device) for part in (twins.faces, twins.edited))
    before, after = alike(spoil, before, after) if spoiled else (before, after)
    changes = F.normalize(clip.encode_images(after) - clip.encode_images(before), dim=1)
    prompts = [prompt for label in LABELS for prompt in PROMPTS[label]]
    cosines = (changes @ torch.cat([clip.direction("face", prompt) for prompt in prompts]).T).cpu()
    rows = [(k, v) for k, names in enumerate(LABELS.values()) for v in range(len(names))]
    return torch.stack([cosines[(twins.label == k) & (twins.new == v)].mean(0) for k, v in rows])


def report(path, folder, device, faces=60):
    """Measure written weights on the faces of `folder` and on twins of the test split."""
    torch.manual_seed(0)
    clip = ClipLoss(path, device)
    images, labels = load_faces(folder)
    images = from_bytes(images).to(device)
    print(f"zero-shot, {len(images)} faces of {folder}")
    for name, shown in (("clean", images), ("spoiled", spoil(images))):
        print(f"  {name:8}" + "   ".join(f"{label} {share:.1%}" for label, share in zero_shot(clip, shown, labels).items()))
    twins = all_twins("test", faces)
    columns = [name if name not in ("yes", "no") else f"{name} {label}" for label, names in LABELS.items() for name in names]
    for name in ("clean", "spoiled"):
        print(f'cosine x 100 of image changes (rows) with "face" -> prompt (columns), {len(twins.label)} twins, {name}')
        print(" " * 15 + "".join(f"{column.split()[-1][:6]:>7}" for column in columns))
        for row, column in zip(change_table(clip, twins, name == "spoiled").tolist(), columns, strict=True):
            print(f"  {column:13}" + "".join(f"{100 * value:7.0f}" for value in row))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--images", required=True, help="folder of render.py to learn from")
    add("--test", help="folder of render.py to measure on at the end")
    add("--out", required=True, help="weight file to write (clip.pt); its config is written beside it (clip.json)")
    add("--init", help="start from these weights instead of random ones")
    add("--unet", help="weights of a diffusion model: a part of the faces is seen as its predictions of x_0")
    add("--config", default="avatar.yml", help="the diffusion model's config (avatar.yml)")
    add("--unet_faces", type=whole(0), default=4000, help="how many faces are seen so, once more (4000)")
    add("--unet_t", type=whole(0), nargs=2, default=(30, 500), metavar=("LOW", "HIGH"), help="at which timesteps (30 500)")
    add("--twins", type=whole(1), default=3000, help="pairs to render that differ in one label (3000)")
    add("--direction_weight", type=real(0), default=1.0, help="weight of the directional loss on twins (1)")
    add("--adversarial", type=real(0), default=0.7, help="longest adversarial step, L2 over an image in [-1, 1]; 0: none (0.7)")
    add(
        "--adversarial_from",
        type=real(0, 1),
        default=0.7,
        help="share of the training before the adversarial steps begin (0.7)",
    )
    add("--steps", type=whole(2), default=4000, help="steps in all; the learning rate ends there (4000)")
    add("--minutes", type=real(0), help="end after so many minutes of training instead, if that comes first")
    add("--batch_size", type=whole(1), default=64, help="captioned faces a step; half as many twins join them (64)")
    add("--lr", type=real(1e-09, 10), default=2e-3, help="peak learning rate of AdamW (2e-3)")
    add("--device", help="cpu, cuda, cuda:1 (default: cuda when there is one)")
    add("--seed", type=whole(0), default=0)
    args = parser.parse_args(argv)
    trainer = Trainer(args)
    trainer.run()
    if args.test:
        report(str(Path(args.out).with_suffix(".json")), args.test, trainer.device)


if __name__ == "__main__":
    sys.exit(guarded(main))
