"""The paper's claims about h-space. Each is a measurement on a `Subject` with a verdict.

A measurement is a function of a subject -> Result. CLAIMS has the text of each claim and its criterion.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch
from analysis import figures
from analysis.measures import ALIKE, CERTAIN, Gains, Result, compared, r_squared, ratio, row, summary, surely
from analysis.subject import FIXED, RandomDirection, rms, with_rms_of

from asyrp import hspace, process
from asyrp.calibration import Calibration

STRENGTHS = (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)
CANCELLED = 0.5  # largest remaining fraction of the effect of editing P alone
ONE_PASS = "P and D edited at every timestep (Haas et al.)"
LINEAR = 0.9  # R^2 of a straight line
REAL = 1.25  # largest denoising error of a realistic image relative to the plain one; two blended faces have 2


# ---- 1 ----------------------------------------------------------------------------------------------------------------------


def asymmetry(subject):
    """Theorem 1: the same shift of eps in P and in D cancels."""
    plain, plain_steps = trajectory(subject, "")
    moved, table, pictures, curves = {}, [], {"original": subject.images.x_0, "plain": plain}, {}
    for label, where in (("P edited", "P"), ("P and D edited", "PD"), ("D edited", "D")):
        x_0, steps = trajectory(subject, where)
        moved[where] = rms(x_0 - plain)
        curves[label] = {t: rms(P_t - plain_steps[t]).mean().item() for t, P_t in steps.items()}
        table.append(row(subject, label, x_0) | {"RMS to plain": summary(moved[where])})
        pictures[label] = x_0
    pictures[ONE_PASS] = one_pass(subject)
    table.append(row(subject, ONE_PASS, pictures[ONE_PASS]) | {"RMS to plain": summary(rms(pictures[ONE_PASS] - plain))})
    left = ratio(moved["PD"], moved["P"])
    gains = Gains(subject, whole=pictures["P edited"])
    gained = gains.share(pictures["P and D edited"])
    holds = surely(gains.whole) and left.mean < CANCELLED and gained.mean < CANCELLED
    because = (
        f"editing both moves the image {left} times as far as editing P alone and gains {gained} of its score; a shift of eps "
        f"that is the same at every step would be left with {left_of_constant_shift(subject):.2f}"
    )
    return Result(holds, because, table, pictures, curves)


def trajectory(subject, where):
    """The process with the edit in P, in D, or in both (the letters of `where`) -> (x_0, {t: P_t})."""
    steps = {t: [] for t in subject.steps}

    def predict(rows):
        edit = subject.edit()

        def both(frozen, t):
            eps_edit = process.edited_branch(subject.unet, frozen, edit, t) if where else None
            return [eps_edit if name in where else frozen.eps for name in "PD"]

        return both

    x_0 = subject.walk(predict, lambda t, P_t: steps[t].append(P_t.cpu()))
    return x_0, {t: subject.together(chunks) for t, chunks in steps.items()}


def one_pass(subject):
    """The symmetric form of Haas et al. (2023, arXiv 2303.11073): one U-Net pass per step with h edited at every timestep, and
    eps~ in both P and D -> x_0."""

    def run(x_T, rows):
        return process.generate(AlwaysEdited(subject.unet, subject.edit()), x_T, subject.schedule, subject.steps)

    return subject.batched(run, subject.images)


class AlwaysEdited:
    """Wraps a U-Net so that its h is always edited before decoding. All images of a batch must have the same timestep."""

    def __init__(self, unet, edit):
        self.unet, self.edit = unet, edit

    def encode(self, x, t):
        h, skips, emb = self.unet.encode(x, t)
        return self.edit(h, emb, int(t[0])), skips, emb

    def decode(self, h, skips, emb):
        return self.unet.decode(h, skips, emb)


def left_of_constant_shift(subject):
    """The fraction of a constant shift's effect that remains when P and D are edited, if the U-Net ignored the change of x_t.

    In x / sqrt(alpha_bar), with s = sqrt(1 / alpha_bar - 1), a step adds -s_t delta_eps by P and s_next delta_eps by D.
    """
    down = [*reversed(subject.steps), process.END]
    s = {t: math.sqrt(1 / subject.schedule.alpha_bar(t) - 1) for t in down}
    edited = [(s[t], s[t_next]) for t, t_next in pairwise(down) if t >= subject.t_edit]
    return abs(sum(after - before for before, after in edited)) / sum(before for before, _ in edited)


# ---- 2 ----------------------------------------------------------------------------------------------------------------------


def linearity(subject):
    """The score over the strength of delta_h; for a calibrated direction also over steps of equal change."""

    @cache
    def at(strength):
        known = {0.0: "plain", 1.0: "edited"}
        if strength in known:
            return getattr(subject, known[strength])
        return subject.generate(lambda rows: subject.edit(strength=strength))

    [attribute] = subject.attributes
    ways, table, graded, fits = {"strength": STRENGTHS}, [], {}, {}
    if calibration := Calibration.of_record(getattr(attribute.direction, "record", {}), attribute.name):
        ways["change"] = calibration.spaced(STRENGTHS[0], STRENGTHS[-1], len(STRENGTHS))
    for steps, strengths in ways.items():
        graded[steps] = [attribute.score.graded(at(strength), subject.plain) for strength in strengths]
        fits[steps] = r_squared(range(len(strengths)), [values.mean().item() for values in graded[steps]])
        for strength, values in zip(strengths, graded[steps], strict=True):
            found = {"strength": strength, "score": summary(subject.score(at(strength))), "graded score": summary(values)}
            found["LPIPS to plain"] = summary(subject.lpips(at(strength), subject.plain))
            table.append(({"steps of equal": steps} if calibration else {}) | found)
    values = graded["strength"]
    falls = [f"{STRENGTHS[i]:+g} to {STRENGTHS[i + 1]:+g}" for i in range(len(values) - 1) if surely(values[i] - values[i + 1])]
    holds = not falls and fits["strength"] >= LINEAR and surely(values[-1] - values[0])
    where = f"from {', '.join(falls)}" if falls else "nowhere"
    because = f"a straight line explains {fits['strength']:.2f} of the mean graded score's variance; it falls {where}"
    if calibration:
        because += f"; over steps of equal change ({calibration.measure}) a straight line explains {fits['change']:.2f}"
    return Result(holds, because, table, {f"{strength:+g}": at(strength) for strength in STRENGTHS})


# ---- 3 ----------------------------------------------------------------------------------------------------------------------


class Replay:
    """A direction with a separate delta_h per image: deltas {t: (B, C, h, w)}."""

    def __init__(self, deltas):
        self.deltas = deltas

    def __call__(self, h, emb, t):
        return self.deltas[t].to(h)


def homogeneity(subject):
    """The delta_h of other images, and their mean, applied to images that they were not computed from."""
    mean = mean_direction(subject)
    pictures = {
        "plain": subject.plain,
        "own": subject.edited,
        f"mean of {subject.n} others": subject.generate(lambda rows: subject.edit(mean)),
        "another's": subject.generate(lambda rows: subject.edit(Replay({t: d[rows] for t, d in subject.donated.items()}))),
    }
    result = compared(subject, pictures, "own")
    alike = cosines(subject.donated)
    result.curves["cosine with the mean of the others"] = alike
    result.because += f"; cosine of one delta_h with the mean of the others: {sum(alike.values()) / len(alike):.2f}"
    return result


def mean_direction(subject, over_timesteps=False):
    """The global direction: the donors' mean delta_h, per timestep or over all timesteps."""
    means = {t: deltas.mean(0, keepdim=True) for t, deltas in subject.donated.items()}
    if over_timesteps:
        means = {None: torch.stack(list(means.values())).mean(0)}
    return hspace.GivenDirection(means).to(subject.device).requires_grad_(False)


def cosines(deltas):
    """{t: (n, C, h, w)} -> {t: mean cosine between one image's delta_h and the mean of the others}."""
    found = {}
    for t, each in deltas.items():
        each = each.flatten(1)
        others = (each.sum(0) - each) / (len(each) - 1)
        found[t] = torch.cosine_similarity(each, others).mean().item()
    return found


# ---- 4 ----------------------------------------------------------------------------------------------------------------------


def robustness(subject):
    """A random direction, the same at every timestep, with the norm (RMS) of delta_h: added to h, or to eps (in P). For
    comparison, noise in eps with the norm of the edit's own change of eps, and two blended images as an unrealistic image."""

    def in_h(rows):
        return subject.edit(RandomDirection(subject.attributes[0].direction, subject.noise(rows)))

    def in_eps(length):
        def predict(rows):
            edit, noise = subject.edit(), subject.noise(rows)

            def noisy(frozen, t):
                z = noise(FIXED, frozen.eps.shape).to(frozen.eps)
                return frozen.eps + with_rms_of(z, length(frozen, edit, t)), frozen.eps

            return noisy

        return subject.walk(predict)

    def as_edit(frozen, edit, t):
        return process.edited_branch(subject.unet, frozen, edit, t) - frozen.eps

    def as_delta_h(frozen, edit, t):
        return edit(frozen.h, frozen.emb, t) - frozen.h

    pictures = {
        "plain": subject.plain,
        "edit": subject.edited,
        "noise in h": subject.generate(in_h),
        "noise in eps": in_eps(as_delta_h),
        "as long as the edit's": in_eps(as_edit),
        "two blended": (subject.plain + subject.plain.roll(1, 0)) / 2,
    }
    errors = {label: subject.denoising_error(images) for label, images in pictures.items()}
    table = [row(subject, label, images) | {"denoising error": summary(errors[label])} for label, images in pictures.items()]
    worse = {label: ratio(errors[label], errors["plain"]) for label in pictures}
    holds = worse["noise in h"].mean <= REAL < worse["noise in eps"].mean
    holds &= surely(errors["noise in eps"] - errors["noise in h"])
    because = "denoising error, as a multiple of the plain images': " + ", ".join(
        f"{label} {value}" for label, value in worse.items() if label != "plain"
    )
    distorts = worse["as long as the edit's"].mean > REAL
    because += (
        f"; noise in eps that is only as long as the edit's own change of eps {'distorts too' if distorts else 'does not'}"
    )
    return Result(holds, because, table, pictures)


# ---- 5 ----------------------------------------------------------------------------------------------------------------------


def consistency(subject):
    """One mean delta_h for all timesteps, compared with one mean per timestep."""
    each = mean_direction(subject)
    single = mean_direction(subject, over_timesteps=True)
    pictures = {
        "plain": subject.plain,
        "one per timestep": subject.generate(lambda rows: subject.edit(each)),
        "one for all": subject.generate(lambda rows: subject.edit(single)),
    }
    return compared(subject, pictures, "one per timestep")


# ---- 6 ----------------------------------------------------------------------------------------------------------------------


def intervals(subject):
    """A sweep of t_edit and t_boost around the chosen values: gain in score against change of the images."""
    chosen, top = subject.t_edit, subject.steps[-1]
    t_edits = sorted({0, chosen // 2, chosen, *(chosen + (top - chosen) * k // 4 for k in (1, 2, 3))})
    t_boosts = sorted({subject.t_boost, chosen // 4, chosen // 2, chosen, chosen + (top - chosen) // 4} - {0})
    swept = {(t_edit, 0): subject.generate(lambda rows: subject.edit(), t_edit) for t_edit in t_edits}
    swept |= {(chosen, t_boost): subject.generate(lambda rows: subject.edit(), chosen, t_boost) for t_boost in t_boosts}
    table = [
        {"t_edit": t_edit, "t_boost": t_boost}
        | row(subject, "chosen" if (t_edit, t_boost) == (chosen, subject.t_boost) else "", images)
        | {"denoising error": summary(subject.denoising_error(images))}
        for (t_edit, t_boost), images in swept.items()
    ]
    score = {t_edit: subject.score(swept[t_edit, 0]) for t_edit in t_edits}
    change = {t_edit: subject.lpips(swept[t_edit, 0], subject.plain) for t_edit in t_edits}
    best = max(t_edits, key=lambda t_edit: score[t_edit].mean())
    of_best, of_chosen = Gains(subject, whole=swept[best, 0]), Gains(subject, whole=swept[chosen, 0])
    reached = of_best.share(swept[chosen, 0])
    boosted = of_chosen.share(swept[chosen, subject.t_boost])
    better = [t for t in t_edits if surely(score[t] - score[chosen]) and surely(change[chosen] - change[t])]
    holds = of_best.enough(reached) and not better and of_chosen.enough(boosted)
    because = f"the chosen t_edit, {chosen}, reaches {reached} of the best gain (at {best}); more gain with less change: " + (
        f"at {', '.join(map(str, better))}" if better else "nowhere"
    )
    because += f"; boosting below t_boost {subject.t_boost} keeps {boosted} of the gain" if subject.t_boost else "; no boosting"
    return Result(holds, because, table, {f"{t_edit} / {t_boost}": images for (t_edit, t_boost), images in swept.items()})


# ---- 7 ----------------------------------------------------------------------------------------------------------------------


def composition(subject):
    """The sum of two directions, each in its own interval; and as in `main.py --multiple_attr`, divided by the square root of
    two."""
    directions = [attribute.direction for attribute in subject.attributes]
    scales = [attribute.scale for attribute in subject.attributes]
    shared = hspace.coefficients(1.0, len(directions), 1, 1, scales)
    alone = {
        f"{a.name} alone": subject.generate(lambda rows, a=a: hspace.Edit([a.direction], [a.scale]), a.t_edit)
        for a in subject.attributes
    }
    t_edits = [attribute.t_edit for attribute in subject.attributes]

    def together(coefficients):
        return subject.generate(lambda rows: hspace.Edit(directions, coefficients, t_edits=t_edits), min(t_edits))

    pictures = {
        "plain": subject.plain,
        **alone,
        "together": together(scales),
        "as --multiple_attr": together(shared),
    }
    gains = [Gains(subject, a, whole) for a, whole in zip(subject.attributes, alone.values(), strict=True)]
    shares = {label: [found.share(pictures[label]) for found in gains] for label in ("together", "as --multiple_attr")}
    table = [
        {"condition": label}
        | {f"score: {a.name}": summary(subject.score(images, a)) for a in subject.attributes}
        | {"LPIPS to plain": summary(subject.lpips(images, subject.plain))}
        for label, images in pictures.items()
    ]
    holds = all(found.enough(share) for found, share in zip(gains, shares["together"], strict=True))
    because = "; ".join(
        f"{label}: " + ", ".join(f"{share} of the gain of {a.name}" for a, share in zip(subject.attributes, found, strict=True))
        for label, found in shares.items()
    )
    return Result(holds, because, table, pictures)


# ---- the claims -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """says: the claim of the paper. criterion: when it counts as true for one subject. draw(axes, result): its figure.

    together: measured on pairs of attributes instead of one.
    """

    name: str
    says: str
    criterion: str
    measure: Callable
    draw: Callable
    together: bool = False


CLAIMS = {
    1: Claim(
        "asymmetry",
        "Theorem 1: a shift of eps in P and in D alike cancels; in P alone it does not.",
        f"Editing both moves the image (RMS) less than {CANCELLED:g} times as far as editing P alone, and gains less than "
        f"{CANCELLED:g} of its score.",
        asymmetry,
        figures.trajectories,
    ),
    2: Claim(
        "linearity",
        "Scaling delta_h scales the change of the attribute, also backwards.",
        f"From strength {STRENGTHS[0]:+g} to {STRENGTHS[-1]:+g} the mean graded score rises, falls nowhere by more than "
        f"{CERTAIN} standard errors, and a straight line explains {LINEAR:g} of its variance.",
        linearity,
        figures.strengths,
    ),
    3: Claim(
        "homogeneity",
        "The same delta_h does the same to other images.",
        f"The mean delta_h of other images, and one other image's, gain {ALIKE:g} of what an image's own gains, and end nearer "
        "(LPIPS) to the image's own edit than the plain image is.",
        homogeneity,
        figures.conditions,
    ),
    4: Claim(
        "robustness",
        "Random changes of h as long as delta_h leave realistic images; in eps-space they distort.",
        f"The denoising error of images with noise in h is at most {REAL:g} times that of the plain images; with noise in eps "
        f"of the same root mean square it is more than {REAL:g} times that, and higher than with noise in h by {CERTAIN} "
        "standard errors.",
        robustness,
        figures.denoising,
    ),
    5: Claim(
        "consistency",
        "One delta_h for all timesteps does what one per timestep does.",
        f"The mean delta_h of other images, averaged over timesteps too, gains {ALIKE:g} of what it gains with a mean for each "
        "timestep, and ends nearer (LPIPS) to its result than the plain image is.",
        consistency,
        figures.conditions,
    ),
    6: Claim(
        "intervals",
        "The chosen t_edit and t_boost are a good trade of editing against preserving.",
        f"The chosen t_edit reaches {ALIKE:g} of the best gain of the sweep, no other one gains more and changes less (LPIPS), "
        f"each by {CERTAIN} standard errors, and boosting below the chosen t_boost keeps {ALIKE:g} of the gain.",
        intervals,
        figures.trade,
    ),
    7: Claim(
        "composition",
        "Directions add up.",
        f"Two directions added, each in its own interval, gain {ALIKE:g} of what each gains alone.",
        composition,
        figures.conditions,
        together=True,
    ),
}
