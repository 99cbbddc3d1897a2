"""The gauges of --evaluate. Each measures the pictures of a batch -> {name of a metric: one value per image}.

    gauge.before(original, reconstruction)    -> values of the reconstruction; keeps what edits are compared with
    gauge.after(label, edited)                -> values of one edit of the same images

Images are (B, 3, H, W) in [-1, 1] on the gauge's device; values are sequences of B numbers, None for an image to which a
metric does not apply. A gauge whose weights are missing raises UserError, which says how to get them.
"""

import torch

from asyrp.evaluation import metrics
from asyrp.evaluation.segmenter import open_segmenter
from configs.paths_config import FID_INCEPTION, IR_SE50, weight_file
from losses.id_loss import IdLoss
from losses.lpips_alex import load_lpips
from models.judge import load_judge
from utils import tensors
from utils.download import verify
from utils.errors import UserError
from utils.extras import load
from utils.files import ROOT
from utils.text_dic import PROMPTS

LEAST = 500  # fewest images for comparing two sets


def weights_of(place):
    """A Place of configs/paths_config.py -> its weight file. Raises UserError if it is missing: weights of metrics are not
    downloaded automatically."""
    path = weight_file(place)
    if not path.is_file():
        raise UserError(f"{path} is missing: download it with python scripts/download.py {place.name.lower()}")
    verify(path)
    return path


class Features:
    """Features of the originals and of each edit, to be compared as distributions."""

    def __init__(self):
        self.sets = {}

    def add(self, label, features):
        self.sets.setdefault(label, []).append(features.cpu())

    def take(self):
        """{label: features} added since the last call; they are removed here."""
        taken, self.sets = {label: torch.cat(chunks) for label, chunks in self.sets.items()}, {}
        return taken

    def distances(self, name, kernel=True):
        """Distances of each edit from the originals -> {label: {metric: {"value", "n", ...}}}. Raises UserError for too few
        images."""
        whole = {label: torch.cat(chunks) for label, chunks in self.sets.items()}
        originals = whole.pop("original")
        n = len(originals)
        if n < LEAST:
            raise UserError(
                f"{n} images are too few to compare two sets: use --n_test_img {LEAST} or more, with as many images"
            )
        found = {}
        for label, features in whole.items():
            found[label] = {f"Fréchet distance, {name}": {"value": metrics.frechet_distance(originals, features), "n": n}}
            if kernel:
                mean, deviation, size = metrics.kernel_distance(originals, features)
                about = {"value": mean, "standard_deviation": deviation, "subsets": metrics.SUBSETS, "subset_size": size}
                found[label][f"KID, {name}"] = {**about, "n": n}
        return found


class Clip:
    """S_dir from the original and from the reconstruction, and the distance of the sets in CLIP space."""

    name = "S_dir, KID and Fréchet distance on CLIP features"

    def __init__(self, clip, src, trg):
        self.clip, self.features = clip, Features()
        self.direction, self.bare = clip.direction(src, trg), clip.direction(src, trg, templates=False)

    def before(self, original, reconstruction):
        self.original, self.reconstruction = map(self.clip.encode_images, (original, reconstruction))
        self.features.add("original", self.original)
        return {}

    def after(self, label, edited):
        features = self.clip.encode_images(edited)
        self.features.add(label, features)
        return {
            "S_dir": metrics.s_dir(self.original, features, self.direction),
            "S_dir, no templates": metrics.s_dir(self.original, features, self.bare),
            "S_dir from the reconstruction": metrics.s_dir(self.reconstruction, features, self.direction),
        }

    def distances(self):
        return self.features.distances("CLIP")


class Lpips:
    """LPIPS with AlexNet: the loss of the inversion, and the change by the edit."""

    name = "LPIPS"

    def __init__(self, device):
        self.distance = load_lpips().to(device)

    def before(self, original, reconstruction):
        self.reconstruction = reconstruction
        return {"LPIPS to the original": self.distance(original, reconstruction).flatten()}

    def after(self, label, edited):
        return {"LPIPS to the reconstruction": self.distance(self.reconstruction, edited).flatten()}


class Fidelity:
    """PSNR (dB) and SSIM of the reconstruction."""

    name = "PSNR and SSIM"

    def __init__(self):
        load("torchmetrics", self.name)

    def before(self, original, reconstruction):
        return {"PSNR in dB": metrics.psnr(reconstruction, original), "SSIM": metrics.ssim(reconstruction, original)}

    def after(self, label, edited):
        return {}


class Identity:
    """Cosine of IR-SE50 embeddings with those of the original: 1 for the same face."""

    name = "identity"

    def __init__(self, device):
        self.recogniser = IdLoss(weights_of(IR_SE50), device)

    def before(self, original, reconstruction):
        self.original = self.recogniser.embed(original)
        return self.after("reconstruction", reconstruction)

    def after(self, label, edited):
        return {"identity": (self.original * self.recogniser.embed(edited)).sum(1)}


class Segments:
    """Segmentation consistency with the original."""

    name = "segmentation consistency"

    def __init__(self, segment):
        self.segment = segment

    def before(self, original, reconstruction):
        self.original = self.segment(original)
        return self.after("reconstruction", reconstruction)

    def after(self, label, edited):
        overlap, accuracy = metrics.segment_agreement(self.original, self.segment(edited))
        return {"segments kept, mean IoU": overlap, "segments kept, pixels": accuracy}


class Judged:
    """The judge of the default stack, on images that do not yet have the attribute.

    aim: (label, class) that the edit should produce. kept: labels that it should not change.
    """

    name = "judge"

    def __init__(self, judge, aim, kept):
        self.judge, (self.label, self.wanted) = judge, aim
        self.kept = [label for label in kept if label != self.label]
        self.changes = "judge: change of the logit aimed at", "judge: change of the other logits"
        self.score = f"judge: probability of {self.label} {self.wanted}"

    def before(self, original, reconstruction):
        read = self.judge.read(original)
        self.truth = self.judge.named(read)
        self.logits = self._logits(read)
        return self.after("reconstruction", reconstruction)

    def _logits(self, read):
        """Output of `Judge.read` -> (logit of the aim (B,), logits of the original's class for every other label (B,
        labels))."""
        labels, rest = self.judge.labels, []
        for label in labels:
            if label != self.label:
                shown = torch.tensor([labels[label].index(value) for value in self.truth[label]], device=read[label].device)
                rest.append(read[label].gather(1, shown[:, None]))
        aim = read[self.label][:, labels[self.label].index(self.wanted)]
        return metrics.log_odds(aim), metrics.log_odds(torch.cat(rest, 1)) if rest else None

    def after(self, label, edited):
        read = self.judge.read(edited)
        found = self.judge.named(read)
        position = self.judge.labels[self.label].index(self.wanted)
        lacking = [value != self.wanted for value in self.truth[self.label]]
        values = {self.score: read[self.label][:, position].tolist()}
        values[f"judge: {self.label} {self.wanted}"] = [float(value == self.wanted) for value in found[self.label]]
        for name, before, after in zip(self.changes, self.logits, self._logits(read), strict=True):
            if before is not None:
                values[name] = (after - before).abs().reshape(len(edited), -1).mean(1).tolist()
        for name in self.kept:
            values[f"judge: {name} kept"] = [float(a == b) for a, b in zip(self.truth[name], found[name], strict=True)]
        return {
            name: [x if lacks else None for x, lacks in zip(column, lacking, strict=True)] for name, column in values.items()
        }


class Inception:
    """FID: the Fréchet distance between the sets on features of torch-fidelity's Inception network."""

    name = "FID"

    def __init__(self, device):
        load("torch_fidelity", self.name)
        distance = load("torchmetrics.image.fid", self.name).FrechetInceptionDistance
        path = weights_of(FID_INCEPTION)
        tensors.load(path)  # checks that it contains only tensors, because the library would run any code in the file
        try:
            metric = distance(feature_extractor_weights_path=str(path))
        except RuntimeError as error:
            raise UserError(f"{path} does not contain torch-fidelity's Inception: delete it and download it again") from error
        self.inception, self.features = metric.inception.to(device), Features()

    def _features(self, images):
        return self.inception(images.clamp(-1, 1).add(1).mul(127.5).round().byte())

    def before(self, original, reconstruction):
        self.features.add("original", self._features(original))
        return {}

    def after(self, label, edited):
        self.features.add(label, self._features(edited))
        return {}

    def distances(self):
        return self.features.distances("Inception (FID)", kernel=False)


# ---- gauges of a config -----------------------------------------------------------------------------------------------------


def openers(config, clip, prompts, segmenter, device):
    """{name of the metrics: function without arguments -> a gauge}; the function raises UserError if it is not available.

    clip: function without arguments -> ClipLoss. prompts: (source, target). segmenter: see segmenter.py, or None.
    """
    found = {
        Clip.name: lambda: Clip(clip(), *prompts),
        Lpips.name: lambda: Lpips(device),
        Fidelity.name: Fidelity,
        Segments.name: lambda: _open_segments(segmenter, device),
        Identity.name: lambda: Identity(device),
        Inception.name: lambda: Inception(device),
    }
    if config.judge is not None:
        found[Judged.name] = lambda: _open_judged(config.judge, prompts, device)
    return found


def _open_segments(segmenter, device):
    if segmenter is None:
        raise UserError("give --segmenter, a TorchScript file or a torchvision model name")
    return Segments(open_segmenter(segmenter, device))


def _open_judged(about, prompts, device):
    """The judge, for the attribute with these prompts."""
    aims = {PROMPTS[attribute]: aim for attribute, aim in about.aims.items() if attribute in PROMPTS}
    if tuple(prompts) not in aims:
        raise UserError(f"it only judges {', '.join(about.aims)}, and none of them has these prompts")
    aim = aims[tuple(prompts)]
    return Judged(load_judge(ROOT / about.weights, device, [aim], about.kept), aim, about.kept)
