"""asyrp/metrics.py against numbers that are known by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from tiny_world import smooth_images

from asyrp.evaluation import metrics


def test_summary():
    found = metrics.summary([1.0, 2.0, 3.0, 4.0])
    assert (found.mean, found.n) == (2.5, 4)
    assert found.standard_error == pytest.approx(math.sqrt(5 / 3) / 2)
    assert str(found) == "2.5 ± 0.65"
    assert metrics.summary(torch.tensor([0.25])) == metrics.Summary(0.25, None, 1)


def test_s_dir_is_the_cosine_of_the_change():
    before = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    after = torch.tensor([[0.0, 1.0], [0.6, 0.8], [1.0, 0.0], [0.0, -1.0]])
    direction = F.normalize(torch.tensor([[-1.0, 1.0]]))
    expected = [1.0, (0.4 + 0.8) / math.hypot(0.4, 0.8) / math.sqrt(2), 0.0, 0.0]
    assert metrics.s_dir(before, after, direction).tolist() == pytest.approx(expected, abs=1e-6)
    assert metrics.s_dir(before[:1], after[:1], -direction).item() == pytest.approx(-1, abs=1e-6)


def test_psnr_and_ssim():
    images = 0.5 * smooth_images(3, size=32)
    # An error of 0.02 in a range of 2.
    assert metrics.psnr(images + 0.02, images).tolist() == pytest.approx([40.0] * 3, abs=1e-3)
    assert metrics.ssim(images, images).tolist() == pytest.approx([1.0] * 3)
    worse = metrics.ssim(images + torch.tensor([0.1, 0.3, 0.9]).view(3, 1, 1, 1) * torch.randn(images.shape), images)
    assert worse.shape == (3,)
    assert 1 > worse[0] > worse[1] > worse[2]
    # What is out of range is clipped first, as in a picture.
    assert metrics.psnr(torch.full((1, 3, 16, 16), 3.0), torch.ones(1, 3, 16, 16)).isinf()


def test_segment_agreement():
    before = torch.tensor([[[0, 0], [1, 1]], [[2, 2], [2, 2]]])
    after = torch.tensor([[[0, 1], [1, 1]], [[2, 2], [2, 2]]])
    overlap, pixels = metrics.segment_agreement(before, after)
    assert pixels.tolist() == [0.75, 1]
    assert overlap.tolist() == pytest.approx([(1 / 2 + 2 / 3) / 2, 1])
    # A segment that has gone counts as 0.
    overlap, pixels = metrics.segment_agreement(before[:1], torch.zeros(1, 2, 2))
    assert (overlap.item(), pixels.item()) == (pytest.approx(0.25), 0.5)


def test_frechet_distance_of_two_gaussians():
    features = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0))
    assert metrics.frechet_distance(features, features) == pytest.approx(0, abs=1e-4)
    shift = torch.tensor([1.0, 2.0, 0.0])
    assert metrics.frechet_distance(features, features + shift) == pytest.approx(5, abs=1e-3)
    # |sigma_a - sigma_b|^2 for each of three dimensions.
    assert metrics.frechet_distance(features, 3 * features) == pytest.approx(4 * 3, rel=0.1)


def test_kernel_distance():
    generator = torch.Generator().manual_seed(0)
    a, b = (F.normalize(torch.randn(600, 8, generator=generator)) for _ in range(2))
    mean, deviation, size = metrics.kernel_distance(a, b)
    assert size == 300
    assert abs(mean) < deviation
    away = F.normalize(b + 1)
    mean, deviation, _ = metrics.kernel_distance(a, away)
    assert mean > 10 * deviation
    # The expectation of the cubic kernel, over the two sets whole.
    kernel = [(x @ y.T / 8 + 1) ** 3 for x, y in ((a, a), (away, away), (a, away))]
    whole = sum((k.sum() - k.trace()) / (600 * 599) for k in kernel[:2]) - 2 * kernel[2].mean()
    assert mean == pytest.approx(whole.item(), rel=0.05)
    before = torch.get_rng_state()
    assert metrics.kernel_distance(a, away)[0] == mean
    assert torch.equal(torch.get_rng_state(), before)


def test_monotone():
    assert metrics.monotone([0.0, 0.5, 0.498, 1.0])
    assert not metrics.monotone([0.2, 0.0, 1.0])
