"""The judge of the default stack: a classifier that says which labels a face shows.

It measures what an edit has changed, so it must not be what the edit was trained against: a plain convolutional network
with one head a label, trained by train_judge.py with no words, no weights and no settings in common with the CLIP.

    judge = load_judge("pretrained/avatar/judge.pt")
    judge_faces(judge, images)["expression"].argmax(1)     # positions in render.py's LABELS["expression"]
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from asyrp import checkpoints

IMAGE_SIZE = 32
WIDTHS = (24, 64, 128, 128)
FEATURES = 128


def layer(width_in, width, stride):
    return nn.Sequential(
        nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False), nn.GroupNorm(8, width), nn.SiLU(inplace=True)
    )


class Judge(nn.Module):
    """classes: label name -> number of classes. forward: images (B, 3, 32, 32) in [-1, 1] -> name -> logits (B, n)."""

    def __init__(self, classes):
        super().__init__()
        strides = (1, 2, 2, 2)
        widths = zip((3, *WIDTHS), WIDTHS, strides, strict=False)
        self.body = nn.Sequential(*(layer(*sizes) for sizes in widths))
        side = IMAGE_SIZE // 8
        self.features = nn.Sequential(
            nn.Flatten(), nn.Linear(WIDTHS[-1] * side * side, FEATURES), nn.SiLU(inplace=True), nn.Dropout(0.1)
        )
        self.heads = nn.ModuleDict({label: nn.Linear(FEATURES, n) for label, n in classes.items()})

    def forward(self, images):
        features = self.features(self.body(images))
        return {label: head(features) for label, head in self.heads.items()}


def load_judge(path, device="cpu"):
    """Weights of train_judge.py -> frozen Judge in eval mode. Which labels it knows is read from the file."""
    weights = checkpoints.state_dict_of(checkpoints.load(path), path)
    classes = {key.split(".")[1]: len(value) for key, value in weights.items() if key.startswith("heads.") and value.ndim == 1}
    judge = Judge(classes)
    checkpoints.load_strictly(judge, weights, path, "the judge")
    return judge.eval().requires_grad_(False).to(device)


@torch.no_grad()
def judge_faces(judge, images):
    """images (B, 3, H, W) in [-1, 1], averaged or stretched to 32 x 32 when of another size -> label name ->
    probabilities (B, number of classes), in the order of render.py's LABELS."""
    if images.shape[2:] != (IMAGE_SIZE, IMAGE_SIZE):
        images = F.interpolate(images, (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", antialias=True)
    return {label: logits.softmax(1) for label, logits in judge(images.clamp(-1, 1)).items()}
