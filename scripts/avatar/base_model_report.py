"""How good a base model is: what it predicts from true noisy images, what it reconstructs, and what it draws from noise.

    python scripts/avatar/base_model_report.py --train data/avatar/train --test data/avatar/test --out docs/avatar/base_model

- Mean colour: spatial mean of P_t - spatial mean of x_0, with P_t from the true x_t, over channels and images: the mean of its
  absolute values, and the root of the mean of its squares. At the last timestep x_t says nothing of the image, and the best
  guess is the mean of all: the data's own spread is the best possible.
- Reconstruction: inversion and plain generation of test images, PSNR.
- Samples from noise: a contact sheet. Where the config names a judge, also the Fréchet distance on the judge's features to
  test images, beside that of two sets of real images of the same size, and how often each label is judged in both.

For any model: --config, and --weights where they lie elsewhere than the config says. The figures are printed, and written as
report.json and report.md beside samples.png.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.terminal import catch_signals_early, guarded

if __name__ == "__main__":
    catch_signals_early()

import argparse
import json
import logging

import torch
from tqdm import tqdm

from asyrp import process
from asyrp.data.datasets import first_images, open_folder
from asyrp.evaluation.metrics import frechet_distance, psnr, summary
from asyrp.model import open_model
from asyrp.report.pictures import in_rows, labelled_grid, save
from models.judge import load_judge
from utils.arguments import whole
from utils.errors import UserError
from utils.files import ROOT, shown, write_text

TIMESTEPS = (999, 900, 800, 700, 500, 300)  # of a thousand
RECONSTRUCTION_STEPS, SAMPLE_STEPS = 40, 100
LARGEST_SHEET = 96  # samples shown
WIDTH = 12  # of the sheet


def colour_errors(model, images, batch_size, seed=0):
    """How far the mean colour of P_t is off, P_t predicted from the true x_t of images (N, 3, H, W) -> {t: (mean distance, root
    mean square)}, over channels."""
    schedule, errors = model.schedule, {}
    for t in sorted({round(t * (model.T - 1) / 999) for t in TIMESTEPS}, reverse=True):
        found = []
        for start in range(0, len(images), batch_size):
            x_0 = images[start : start + batch_size]
            eps = process.image_noise(seed, range(start, start + len(x_0)))(t, x_0.shape)
            alpha_bar = schedule.alpha_bar(t)
            x_t = (alpha_bar**0.5 * x_0 + (1 - alpha_bar) ** 0.5 * eps).to(model.device)
            prediction, _ = process.split_prediction(model.unet(x_t, process.time_batch(x_t, t)))
            P_t = process.predict_x0(x_t, prediction, t, schedule).cpu()
            found.append(P_t.mean((2, 3)) - x_0.mean((2, 3)))
        errors[t] = mean_and_rms(torch.cat(found))
    return errors


def colour_spread(images):
    """How far the mean colour of an image is off the mean of all -> (mean distance, root mean square), over channels."""
    colours = images.mean((2, 3))
    return mean_and_rms(colours - colours.mean(0))


def mean_and_rms(differences):
    """-> (mean of the absolute values, root of the mean of the squares)."""
    return differences.abs().mean().item(), differences.square().mean().sqrt().item()


def in_batches(function, n, batch_size, text):
    """`function(start, end)` over 0..n, its tensors joined."""
    starts = tqdm(range(0, n, batch_size), desc=text)
    return torch.cat([function(start, min(start + batch_size, n)).cpu() for start in starts])


def draw_samples(model, n, batch_size, seed):
    """n samples from noise, which belongs to each one's number -> (n, 3, H, W)."""
    size = model.image_size

    def draw(start, end):
        noise = process.image_noise(seed, range(start, end))(-1, (end - start, 3, size, size))
        return model.generate(noise.to(model.device), SAMPLE_STEPS)

    return in_batches(draw, n, batch_size, "samples")


def reconstruct(model, images, batch_size):
    """Images after inversion and plain generation."""
    steps = RECONSTRUCTION_STEPS
    return in_batches(
        lambda start, end: model.generate(model.invert(images[start:end], steps), steps),
        len(images),
        batch_size,
        "reconstructions",
    )


def judged(judge, images):
    """-> (features (N, D), {label: share of each class, (classes,)})."""
    kept = []
    hook = judge.features.register_forward_hook(lambda module, given, found: kept.append(found))
    answers = judge.read(images)
    hook.remove()
    shares = {}
    for label, p in answers.items():
        shares[label] = torch.bincount(p.argmax(1), minlength=p.shape[1]).double() / len(images)
    return torch.cat(kept), shares


def judge_samples(judge, samples, real):
    """Samples (n, 3, H, W) and real images (2n, 3, H, W) -> what the judge says of both."""
    n = len(samples)
    features, shares = judged(judge, samples)
    real_features, real_shares = judged(judge, real)
    labels = {}
    for label, names in judge.labels.items():
        pairs = zip(shares[label].tolist(), real_shares[label].tolist(), strict=True)
        labels[label] = {name: {"samples": 100 * a, "data": 100 * b} for name, (a, b) in zip(names, pairs, strict=True)}
    differences = [abs(share["samples"] - share["data"]) for classes in labels.values() for share in classes.values()]
    return {
        "n": n,
        "frechet": frechet_distance(features, real_features[:n]),
        "frechet_real": frechet_distance(real_features[n:], real_features[:n]),
        "largest_difference": max(differences),
        "labels": labels,
    }


def numbers(errors):
    return " | ".join(f"{value:.3f}" for value in errors.values())


def as_markdown(report):
    settings, colour, reconstruction = (report[key] for key in ("settings", "colour", "reconstruction"))
    errors = colour["off_by"]
    lines = [
        f"{settings['config']}, weights {settings['weights']} ({settings['identity']}). Images are in [-1, 1].",
        "",
        "| t | " + " | ".join(map(str, errors)) + " |",
        "|" + " --- |" * (1 + len(errors)),
        f"| mean colour of P_t off by ({colour['n']} training images) | {numbers(errors)} |",
        f"| its root mean square | {numbers(colour['off_by_rms'])} |",
        "",
        f"Best possible at t = {next(iter(errors))}, the data's own spread: {colour['spread']:.3f}, root mean square "
        f"{colour['spread_rms']:.3f}.",
        "",
        f"Reconstruction of {reconstruction['n']} test images over {reconstruction['steps']} steps: "
        f"{reconstruction['psnr']:.1f} dB (± {reconstruction['standard_error'] or 0:.1f}).",
    ]
    if "samples" in report:
        s = report["samples"]
        lines += [
            "",
            f"{s['n']} samples from noise over {s['steps']} steps: Fréchet distance on the judge's features "
            f"{s['frechet']:.3g} to as many test images; of two sets of as many test images {s['frechet_real']:.3g}. Largest "
            f"difference of a label's share {s['largest_difference']:.1f} points.",
            "",
            "| judged | samples | data |",
            "| --- | --- | --- |",
        ]
        for label, classes in s["labels"].items():
            for name, share in classes.items():
                lines.append(f"| {label}: {name} | {share['samples']:.1f} % | {share['data']:.1f} % |")
    return "\n".join([*lines, "", *([settings["credit"]] if settings["credit"] else [])]) + "\n"


def measure(args):
    """-> (the figures, samples (n, 3, H, W))."""
    model = open_model(args.config, args.weights, args.device)
    size, judged_by = model.image_size, model.config.judge
    train = first_images(open_folder(args.train, size, recursive=True), args.n_colour)
    test = first_images(open_folder(args.test, size, recursive=True), max(args.n_reconstructed, 2 * args.n if judged_by else 0))
    if judged_by and len(test) < 2 * args.n:
        raise UserError(f"{args.test} has {len(test)} images, and two sets of {args.n} are compared: lower --n, or add images")
    rebuilt = reconstruct(model, test[: args.n_reconstructed], args.batch_size)
    quality = summary(psnr(rebuilt, test[: args.n_reconstructed]))
    samples = draw_samples(model, args.n, args.batch_size, args.seed)
    errors = colour_errors(model, train, args.batch_size, args.seed)
    spread, spread_rms = colour_spread(train)
    report = {
        "settings": {
            "config": args.config,
            "weights": str(shown(args.weights.resolve())) if args.weights else "the config's",
            "identity": model.identity,
            "seed": args.seed,
            "torch": str(torch.__version__),
            "device": str(model.device),
            "credit": model.config.data.credit,
        },
        "colour": {
            "n": len(train),
            "off_by": {t: mean for t, (mean, _) in errors.items()},
            "off_by_rms": {t: rms for t, (_, rms) in errors.items()},
            "spread": spread,
            "spread_rms": spread_rms,
        },
        "reconstruction": {
            "n": len(rebuilt),
            "steps": RECONSTRUCTION_STEPS,
            "psnr": quality.mean,
            "standard_error": quality.standard_error,
        },
    }
    if judged_by:
        judge = load_judge(ROOT / judged_by.weights)
        report["samples"] = {"steps": SAMPLE_STEPS, **judge_samples(judge, samples, test[: 2 * args.n])}
    return report, samples


def run(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--config", default="avatar.yml", help="a name under configs/ or a path (avatar.yml)")
    add("--weights", type=Path, help="weights of the U-Net (default: those of the config)")
    add("--train", type=Path, default=ROOT / "data/avatar/train", help="images that the model was trained on")
    add("--test", type=Path, default=ROOT / "data/avatar/test", help="images that it was not trained on")
    add("--n", type=whole(1), default=500, help="samples from noise (500); twice as many test images are needed")
    add("--n_colour", type=whole(1), default=64, help="training images for the mean colour (64)")
    add("--n_reconstructed", type=whole(1), default=64, help="test images that are reconstructed (64)")
    add("--batch_size", type=whole(1), default=50)
    add("--seed", type=whole(0), default=0)
    add("--device", help="cpu, cuda or cuda:N (default: cuda when there is one)")
    add("--out", type=Path, default=Path("runs/base_model_report"), help="folder for the report and the picture")
    args = parser.parse_args(argv)
    logging.basicConfig(level="WARNING", format="%(message)s", force=True)
    for name, least in (("n", 2), ("n_colour", 1), ("n_reconstructed", 1), ("batch_size", 1)):
        if getattr(args, name) < least:
            raise UserError(f"--{name} {getattr(args, name)}: must be {least} or more")
    with torch.no_grad():
        report, samples = measure(args)
    table, width = as_markdown(report), min(WIDTH, len(samples))
    rows = in_rows([], list(samples[:LARGEST_SHEET]), width)
    rows[-1] += [None] * (width - len(rows[-1]))
    args.out.mkdir(parents=True, exist_ok=True)
    save(labelled_grid(rows, [""] * width), args.out / "samples.png")
    for name, text in (("report.json", json.dumps(report, indent=1)), ("report.md", table)):
        write_text(args.out / name, text)
    print(table)
    print(f"report and samples: {args.out}")


def main(argv=None):
    """-> exit status."""
    return guarded(run, argv)


if __name__ == "__main__":
    sys.exit(main())
