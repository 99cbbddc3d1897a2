"""The judge of the default stack: a classifier for the labels of a face.

It measures what an edit has changed, so it must be independent of the CLIP that the edit was trained with: a plain
convolutional network with one head per label, trained by scripts/avatar/train_judge.py without text.

    judge = load_judge("pretrained/avatar/judge.pt")
    judge.read(images)["expression"].argmax(1)     # positions in judge.labels["expression"]
"""

import torch
import torch.nn.functional as F
from torch import nn

from utils import tensors
from utils.errors import UserError

IMAGE_SIZE = 32
WIDTHS = (24, 64, 128, 128)
FEATURES = 128


def layer(width_in, width, stride):
    return nn.Sequential(
        nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False), nn.GroupNorm(8, width), nn.SiLU(inplace=True)
    )


class Judge(nn.Module):
    """labels: {label: names of its classes}. forward: images (B, 3, 32, 32) in [-1, 1] -> {label: logits (B, n)}."""

    def __init__(self, labels):
        super().__init__()
        self.labels = {label: tuple(classes) for label, classes in labels.items()}
        strides = (1, 2, 2, 2)
        widths = zip((3, *WIDTHS), WIDTHS, strides, strict=False)
        self.body = nn.Sequential(*(layer(*sizes) for sizes in widths))
        side = IMAGE_SIZE // 8
        self.features = nn.Sequential(
            nn.Flatten(), nn.Linear(WIDTHS[-1] * side * side, FEATURES), nn.SiLU(inplace=True), nn.Dropout(0.1)
        )
        self.heads = nn.ModuleDict({label: nn.Linear(FEATURES, len(classes)) for label, classes in labels.items()})

    def forward(self, images):
        features = self.features(self.body(images))
        return {label: head(features) for label, head in self.heads.items()}

    @torch.no_grad()
    def read(self, images):
        """images (B, 3, H, W) in [-1, 1], resized to 32 x 32 if needed -> {label: probabilities (B, number of classes)}."""
        if images.shape[2:] != (IMAGE_SIZE, IMAGE_SIZE):
            images = F.interpolate(images, (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", antialias=True)
        return {label: logits.softmax(1) for label, logits in self(images.clamp(-1, 1)).items()}

    def names(self, images):
        """images (B, 3, H, W) in [-1, 1] -> {label: names of the most probable classes (list of str)}."""
        return self.named(self.read(images))

    def named(self, read):
        """Output of `read` -> {label: names of the most probable classes (list of str)}."""
        return {label: [self.labels[label][i] for i in p.argmax(1).tolist()] for label, p in read.items()}


def save_judge(judge, path):
    """Write the judge's weights in half precision, with the names of its labels and classes."""
    weights = {key: value.half().contiguous() for key, value in judge.state_dict().items()}
    tensors.save({"model": weights, "labels": {label: list(names) for label, names in judge.labels.items()}}, path)


def load_judge(path, device="cpu", aims=(), kept=()):
    """A file written by `save_judge` -> frozen Judge in eval mode. aims: (label, class) pairs, kept: labels, all of which it
    must have. Raises UserError if it is not a judge or lacks one of them."""
    contents = tensors.load(path)
    if not isinstance(contents, dict) or "labels" not in contents:
        raise UserError(f"{path} is not a judge, it has no labels: train one with scripts/avatar/train_judge.py")
    try:
        judge = Judge(contents["labels"])
    except (AttributeError, TypeError, ValueError, LookupError, RuntimeError) as error:
        raise UserError(
            f"{path} is damaged, its labels are invalid: train it again with scripts/avatar/train_judge.py"
        ) from error
    tensors.load_strictly(judge, tensors.state_dict_of(contents, path), path, "the judge")
    for label, wanted in [*aims, *((label, None) for label in kept)]:
        _check_known(judge, path, label, wanted)
    return judge.eval().requires_grad_(False).to(device)


def _check_known(judge, path, label, wanted):
    """Raise UserError for a label, or a class of it (None: any), that the judge does not have."""
    if label not in judge.labels:
        raise UserError(f"the judge {path} has no label {label}: use one of {', '.join(judge.labels)}")
    if wanted is not None and wanted not in judge.labels[label]:
        known = ", ".join(judge.labels[label])
        raise UserError(f"the judge {path} has no class {wanted} for the label {label}: use one of {known}")
