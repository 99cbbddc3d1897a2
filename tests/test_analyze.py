"""scripts/analyze.py: each claim on a toy model whose answer is known. The whole script: test_analyze_script.py."""

import json
import math
import re
import sys

import pytest
import torch
from golden_unets import relative_l2
from tiny_world import smooth_images
from torch import nn

from asyrp import hspace, process
from asyrp.calibration import STRENGTHS, Calibration
from models.judge import load_judge
from utils.files import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

from analysis import claims, measures, report
from analysis import subject as lab

SCHEDULE = process.Schedule.linear()
STEPS = process.timesteps(4, 999)  # 0, 333, 666, 999
N, SIZE = 4, 8


class Toy(nn.Module):
    """A model of flat images that predicts no noise in generation: what an edit adds to h is what eps is shifted by.

    h is x_t itself. At the levels of the denoising error all but the mean of each channel is taken for noise. averaging: an
    edit of h reaches eps as the mean of each channel.
    """

    def __init__(self, averaging=False):
        super().__init__()
        self.averaging, self.anchor = averaging, nn.Parameter(torch.zeros(1))

    def encode(self, x, t):
        return x, (x,), t

    def decode(self, h, skips, emb):
        [x], t = skips, int(emb[0])
        shift = h - x
        if self.averaging:
            shift = shift.mean((2, 3), keepdim=True).expand_as(x)
        if t in lab.NOISE_LEVELS:
            return (x - x.mean((2, 3), keepdim=True)) / math.sqrt(1 - SCHEDULE.alpha_bar(t)) + shift
        return shift


class Score:
    """How much brighter (in some channels) an image has become; `measure` makes another score of the change."""

    name = graded_name = "brightness"
    kept = None

    def __init__(self, measure=lambda change: change.mean((1, 2, 3))):
        self.measure = measure

    def __call__(self, images, reference):
        return self.measure(images - reference)

    graded = __call__


def brighter(h, emb, t):
    """A lower eps is a brighter P_t."""
    return torch.full_like(h[:1], -0.01)


def make_subject(direction=brighter, t_edit=500, score=None, averaging=False, batch_size=32, second=None, t_boost=0):
    x_T = 0.1 * torch.randn(2 * N, 3, 1, 1, generator=torch.Generator().manual_seed(0)).expand(-1, -1, SIZE, SIZE)
    images = [lab.Images(list(range(i, i + N)), x_T[i : i + N], x_T[i : i + N]) for i in (0, N)]
    attributes = [lab.Attribute("bright", direction, t_edit, 1.0, score or Score())]
    if second:
        attributes.append(lab.Attribute("second", *second))

    def distance(a, b):
        return (a - b).abs().mean((1, 2, 3), keepdim=True)

    return lab.Subject(Toy(averaging), SCHEDULE, STEPS, attributes, *images, distance, t_boost, batch_size=batch_size)


def s(t):
    return math.sqrt(1 / SCHEDULE.alpha_bar(t) - 1)


def column(result, name, key="condition"):
    return {row[key]: row[name].mean for row in result.table}


# ---- the process with the edit in P, in D, or in both -----------------------------------------------------------------------


def test_edit_in_P_alone_is_the_asymmetric_process(unet):
    block = unet.new_delta_block()
    edit, x_T = hspace.Edit([lambda h, emb, t: block(h, emb)], [1.0]), torch.randn(2, 3, 16, 16)

    def predict(frozen, t):
        return process.edited_branch(unet, frozen, edit, t), frozen.eps

    with torch.no_grad():
        expected = process.generate(unet, x_T, SCHEDULE, STEPS, edit=edit, t_edit=500)
        assert torch.equal(lab.walk(unet, x_T, SCHEDULE, STEPS, predict, 500), expected)


def test_theorem_1_remainder_matches_coefficients():
    """For a shift of eps that is the same at every step and does not feed back, all three sums are known."""
    result = claims.asymmetry(make_subject())
    moved = column(result, "RMS to plain")
    assert moved["P edited"] == pytest.approx(0.01 * (s(999) + s(666)), rel=1e-3)
    assert moved["D edited"] == pytest.approx(0.01 * (s(666) + s(333)), rel=1e-3)
    assert moved["P and D edited"] == pytest.approx(0.01 * (s(999) - s(333)), rel=1e-3)
    # Edited to the end, where s is 0: every shift but the first is taken back by the next.
    assert moved[claims.ONE_PASS] == pytest.approx(0.01 * s(999), rel=1e-3)
    # Four steps are too few for the sums to cancel: the claim fails here and says what was left.
    left = (s(999) - s(333)) / (s(999) + s(666))
    assert claims.left_of_constant_shift(make_subject()) == pytest.approx(left)
    assert not result.holds
    assert f"{measures.Summary(left, 0.0, N)!s}".split(" ")[0] in result.because


def test_haas_et_al_uses_one_unet_pass_per_step(unet):
    """And it is the process with the edit in P and in D at every timestep."""
    passes = {"encode": 0, "decode": 0}
    x_T, attribute = torch.randn(3, 3, 16, 16), lab.Attribute("a", lambda h, emb, t: h.roll(1, 1), 500, 2.0, None)

    class Counting:
        def encode(self, x, t):
            passes["encode"] += len(x)
            return unet.encode(x, t)

        def decode(self, h, skips, emb):
            passes["decode"] += len(h)
            return unet.decode(h, skips, emb)

        def parameters(self):
            return unet.parameters()

    images = lab.Images([0, 1, 2], x_T, x_T)
    subject = lab.Subject(Counting(), SCHEDULE, STEPS, [attribute], images, images, None, batch_size=2)
    found = claims.one_pass(subject)
    assert passes == {"encode": 3 * 4, "decode": 3 * 4}

    def predict(frozen, t):
        eps_edit = process.edited_branch(unet, frozen, subject.edit(), t)
        return eps_edit, eps_edit

    with torch.no_grad():
        assert relative_l2(lab.walk(unet, x_T, SCHEDULE, STEPS, predict, 0), found) < 1e-5
        assert relative_l2(lab.walk(unet, x_T, SCHEDULE, STEPS, predict, 500), found) > 1e-4


def test_theorem_1_holds_for_short_steps():
    subject = make_subject()
    subject.steps = process.timesteps(100, 999)
    result = claims.asymmetry(subject)
    assert result.holds
    assert column(result, "score")["P edited"] > 2 * column(result, "score")["P and D edited"] > 0
    # Along the process P_t of the symmetric edit stays near the plain one as well.
    assert all(result.curves["P and D edited"][t] < result.curves["P edited"][t] for t in subject.steps if t < 900)


# ---- the other claims, each where it holds and where it does not ------------------------------------------------------------


def linear(change):
    return change.mean((1, 2, 3))


def test_linearity():
    result = claims.linearity(make_subject())
    assert result.holds
    scores = column(result, "score", "strength")
    assert scores[-1.5] == pytest.approx(-1.5 * scores[1.0], rel=1e-4)
    assert "explains 1.00" in result.because
    # A score that sees the size of a change alone falls from -1.5 to 0; one that jumps is no straight line.
    falling = claims.linearity(make_subject(score=Score(lambda change: linear(change).abs())))
    assert not falling.holds
    assert "-1.5 to -1" in falling.because
    jumping = claims.linearity(make_subject(score=Score(lambda change: (linear(change) > 0.01).double())))
    assert not jumping.holds
    assert "nowhere" in jumping.because


def test_linearity_of_a_calibrated_direction():
    """A score that is the square of the change, signed: in steps of equal change by that measure it is a straight line."""

    class Calibrated:
        record = {"calibration": Calibration.of(STRENGTHS, [s**2 for s in STRENGTHS], "lpips").record()}
        __call__ = staticmethod(brighter)

    score = Score(lambda change: linear(change) * linear(change).abs() * 1e4)
    result = claims.linearity(make_subject(Calibrated(), score=score))
    before, after = (float(found) for found in re.findall(r"explains (\d\.\d+)", result.because))
    assert before < 0.95 < 0.99 < after
    rows = [row for row in result.table if row["steps of equal"] == "change"]
    assert [rows[0]["strength"], rows[-1]["strength"]] == [-1.5, 1.5]
    assert len(rows) == len(result.table) / 2 == len(claims.STRENGTHS)


def by_sign(h, emb, t):
    """An image's own delta_h: up for one, down for the next."""
    signs = torch.tensor([1.0, -1.0]).repeat(len(h) // 2).view(-1, 1, 1, 1)
    return 0.01 * signs * torch.ones_like(h)


def test_homogeneity():
    subject = make_subject(batch_size=3)
    result = claims.homogeneity(subject)
    assert result.holds
    assert column(result, "score")["another's"] == pytest.approx(column(result, "score")["own"], rel=1e-4)
    assert all(value == pytest.approx(1) for value in result.curves["cosine with the mean of the others"].values())
    # Directions of both signs: the mean is zero, and does nothing.
    size = Score(lambda change: change.abs().mean((1, 2, 3)))
    result = claims.homogeneity(make_subject(by_sign, score=size))
    assert not result.holds
    assert column(result, "score")["own"] > 0.1
    assert column(result, "score")[f"mean of {N} others"] == pytest.approx(0, abs=1e-5)
    assert all(value < 0 for value in result.curves["cosine with the mean of the others"].values())


def test_homogeneity_pairs_images_with_donors():
    """Each image gets the delta_h of its own donor, also across batches."""

    def by_size(h, emb, t):
        return -h.mean((1, 2, 3), keepdim=True).expand_as(h)

    for batch_size in (3, 32):
        subject = make_subject(by_size, batch_size=batch_size, score=Score())
        edited = claims.homogeneity(subject).pictures["another's"]
        expected = (s(999) * subject.donated[999] + s(666) * subject.donated[666]).mean((1, 2, 3))
        assert torch.allclose(-(edited - subject.plain).mean((1, 2, 3)), expected, rtol=1e-3)
        assert expected.unique().numel() == N


def test_robustness():
    subject = make_subject(averaging=True)
    result = claims.robustness(subject)
    assert result.holds
    errors = column(result, "denoising error")
    assert errors["noise in h"] == pytest.approx(errors["plain"], rel=0.02)
    assert errors["noise in eps"] > 2 * errors["plain"]
    # Noise is as long as the edit's own change: in h ...
    direction = lab.RandomDirection(brighter, subject.noise(slice(None)))
    h = torch.zeros(N, 3, SIZE, SIZE)
    assert torch.allclose(lab.rms(direction(h, None, 999)), torch.full((N,), 0.01))
    assert torch.equal(direction(h, None, 999), direction(h, None, 666))
    # ... and in eps, where what it leaves in x_0 is known.
    left = lab.rms(result.pictures["noise in eps"] - subject.plain)
    assert torch.allclose(left, torch.full((N,), 0.01 * (s(999) + s(666))), rtol=1e-3)
    # Where h is no better than eps, the claim fails.
    assert not claims.robustness(make_subject(averaging=False)).holds


def test_consistency():
    result = claims.consistency(make_subject())
    assert result.holds
    assert column(result, "score")["one for all"] == pytest.approx(column(result, "score")["one per timestep"], rel=1e-4)

    def turning(h, emb, t):
        return brighter(h, emb, t) * (1 if t > 700 else -1)

    result = claims.consistency(make_subject(turning))
    assert not result.holds
    assert column(result, "score")["one for all"] == pytest.approx(0, abs=1e-6)


def test_intervals():
    result = claims.intervals(make_subject(t_boost=250))
    assert result.holds
    [chosen] = [row for row in result.table if row["condition"]]
    assert (chosen["t_edit"], chosen["t_boost"]) == (500, 250)
    assert [row["t_edit"] for row in result.table if not row["t_boost"]] == [0, 250, 500, 624, 749, 874]
    gained = {row["t_edit"]: row["score"].mean for row in result.table if not row["t_boost"]}
    assert gained[500] == pytest.approx(0.01 * (s(999) + s(666)), rel=1e-3)
    assert gained[749] == pytest.approx(0.01 * s(999), rel=1e-3)

    # The chosen interval ends before the edit begins to act.
    def late(h, emb, t):
        return brighter(h, emb, t) * (t < 400)

    assert not claims.intervals(make_subject(late)).holds
    # A shorter interval gains more and changes less.
    result = claims.intervals(make_subject(score=Score(lambda change: 1 - 10 * (linear(change) - 0.01 * s(999)).abs())))
    assert not result.holds
    assert "less change: at 749, 874" in result.because


def channel(i):
    def direction(h, emb, t):
        delta = torch.zeros_like(h[:1])
        delta[:, i] = -0.01
        return delta

    return direction, Score(lambda change: change[:, i].mean((1, 2)))


def test_composition():
    (red, sees_red), (green, sees_green) = channel(0), channel(1)
    result = claims.composition(make_subject(red, 500, sees_red, second=(green, 900, 1.0, sees_green)))
    assert result.holds
    reds, greens = column(result, "score: bright"), column(result, "score: second")
    assert (reds["second alone"], greens["bright alone"]) == (0, 0)
    # Each in its own interval; main.py divides by the square root of two.
    assert reds["together"] == pytest.approx(0.01 * (s(999) + s(666)), rel=1e-3)
    assert greens["together"] == pytest.approx(0.01 * s(999), rel=1e-3)
    assert reds["as --multiple_attr"] == pytest.approx(0.01 * (s(999) + s(666)) / math.sqrt(2), rel=1e-3)
    assert greens["as --multiple_attr"] == pytest.approx(0.01 * s(999) / math.sqrt(2), rel=1e-3)

    def darker(h, emb, t):
        return -brighter(h, emb, t)

    dark = Score(lambda change: -linear(change))
    result = claims.composition(make_subject(second=(darker, 500, 1.0, dark)))
    assert not result.holds
    assert column(result, "score: second")["second alone"] > 0.1


# ---- figures of merit -------------------------------------------------------------------------------------------------------


def test_ratio_of_means_and_its_standard_error():
    generator = torch.Generator().manual_seed(0)
    draws = []
    for _ in range(500):
        wholes = 2 + 0.2 * torch.randn(50, generator=generator)
        draws.append(measures.ratio(0.5 * wholes + 0.1 * torch.randn(50, generator=generator), wholes))
    means = torch.tensor([draw.mean for draw in draws])
    assert means.mean() == pytest.approx(0.5, abs=0.01)
    assert sum(draw.standard_error for draw in draws) / 500 == pytest.approx(means.std().item(), rel=0.15)
    some = measures.summary(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert (some.mean, some.standard_error, some.n) == (2.5, pytest.approx(1.29099 / 2, rel=1e-4), 4)


def test_share_of_zero_gain_is_not_enough():
    subject = make_subject(lambda h, emb, t: torch.zeros_like(h[:1]))
    for claim in (claims.homogeneity, claims.consistency, claims.intervals, claims.asymmetry):
        result = claim(subject)
        assert not result.holds
        json.dumps(report.plain(result), allow_nan=False)


def test_judge_score_and_kept_labels():
    judge = load_judge(ROOT / "pretrained" / "avatar" / "judge.pt")
    score, faces = lab.JudgeScore(judge, "expression", "smiling", ("hair", "skin", "beard")), smooth_images(6, size=32)
    probabilities, graded = score(faces, None), score.graded(faces, None)
    assert torch.allclose(graded.sigmoid().float(), probabilities.clamp(1e-6, 1 - 1e-6), atol=1e-6)
    assert len(score.lacking(faces)) == 6
    assert torch.equal(score.kept(faces, faces), torch.ones(6, dtype=torch.float64))
    assert (score.kept(faces, faces.roll(1, 0)) < 1).any()


def test_verdicts():
    def of(**held):
        return report.verdict({name: {"holds": value} for name, value in held.items()})

    assert of(a=True, b=True) == "**holds**"
    assert of(a=False) == "**does not hold**"
    assert of(a=True, b=False) == "**holds for a; does not hold for b**"
