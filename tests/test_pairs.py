"""(image, latent) pairs: what finds a latent again, what does not, and what interrupts it."""

import pytest
import torch
from tiny_world import SIZE, open_tiny, smooth_images, stored

from asyrp import process
from asyrp.data.datasets import ImageFolder
from asyrp.data.pairs import InvertedPairs, SampledPairs
from asyrp.report.pictures import to_pil
from asyrp.store import Store
from utils.digests import digest
from utils.errors import UserError


@pytest.fixture(scope="module")
def model(tiny):
    return open_tiny(tiny)


@pytest.fixture
def images(tmp_path, monkeypatch):
    """A folder of three images, and an empty store in the current folder."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "images"
    folder.mkdir()
    for i, image in enumerate(smooth_images(3)):
        to_pil(image).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def pairs(images, model):
    """A function -> the pairs of those images."""

    def new(n=4, t_0=999, model=model):
        return InvertedPairs(ImageFolder(images, SIZE), model, model.timesteps(n, t_0), Store())

    return new


@pytest.fixture
def inverted(monkeypatch):
    """The sizes of the batches that were inverted."""
    sizes, invert = [], process.invert

    def counted(unet, x_0, *rest, **more):
        sizes.append(len(x_0))
        return invert(unet, x_0, *rest, **more)

    monkeypatch.setattr(process, "invert", counted)
    return sizes


def filled(pairs, batch_size=2):
    pairs.fill([0, 1, 2], batch_size)
    return pairs


def latents(pairs, indices=(0, 1, 2)):
    return torch.cat([batch.x_T for batch in pairs.batches(list(indices), 3)])


def test_pairs_of_image_and_latent(pairs, model):
    [first, last] = filled(pairs()).batches([0, 1, 2], 2)
    assert (first.indices, first.names, last.indices, last.names) == ([0, 1], ["0.png", "1.png"], [2], ["2.png"])
    assert torch.allclose(first.x_0, smooth_images(3)[:2], atol=0.01)
    assert torch.allclose(last.x_T, model.invert(last.x_0, 4).cpu(), atol=1e-5)


def test_requested_order_is_kept(pairs):
    x_T = latents(filled(pairs()))
    assert torch.equal(latents(pairs(), [2, 0, 1]), x_T[[2, 0, 1]])


def test_latents_are_reused(pairs, inverted):
    filled(pairs())
    assert inverted == [2, 1]
    filled(pairs())
    assert inverted == [2, 1]


def test_re_precompute_inverts_all(pairs, inverted):
    filled(pairs())
    pairs().fill([0, 1, 2], 3, again=True)
    assert inverted == [2, 1, 3]


@pytest.mark.parametrize("change", [{"n": 5}, {"t_0": 900}], ids=["steps", "t_0"])
def test_other_timesteps_are_other_latents(pairs, inverted, change):
    filled(pairs())
    filled(pairs(**change))
    assert inverted == [2, 1, 2, 1]
    assert len(stored("latent")) == 6


def test_another_model_has_other_latents(pairs, inverted, tiny):
    x_T = latents(filled(pairs()))
    other = latents(filled(pairs(model=open_tiny(tiny, "adm"))))
    assert inverted == [2, 1, 2, 1]
    assert not torch.allclose(x_T, other, atol=0.01)


def test_other_pixels_miss_and_other_names_do_not(images, pairs, inverted):
    filled(pairs())
    (images / "0.png").rename(images / "0a.png")
    to_pil(smooth_images(1, seed=5)[0]).save(images / "1.png")
    inverted.clear()
    pairs().fill([0, 1, 2], 1)
    assert inverted == [1]


def test_group_is_inverted_as_a_whole(pairs, inverted):
    """A latent must not depend on which of its neighbours a killed run had finished; those that were there stay."""
    x_T = latents(filled(pairs()))
    [lost] = [key for key, found in stored("latent").items() if torch.equal(found["x_T"], x_T[0])]
    Store().path("latent", lost).unlink()
    then = {key: Store().path("latent", key).stat().st_mtime_ns for key in stored("latent")}
    inverted.clear()
    assert torch.equal(latents(filled(pairs())), x_T)
    assert inverted == [2]
    assert len(then) == 2
    assert all(Store().path("latent", key).stat().st_mtime_ns == written for key, written in then.items())


def test_batch_size_changes_nothing(images, pairs, monkeypatch):
    found = []
    for n in (1, 2, 3):
        (images.parent / str(n)).mkdir()
        monkeypatch.chdir(images.parent / str(n))
        found.append(latents(filled(pairs(), n)))
    assert torch.allclose(found[0], found[1], atol=1e-5)
    assert torch.allclose(found[0], found[2], atol=1e-5)


@pytest.mark.parametrize("damage", [lambda whole: whole[:100], lambda whole: whole[:-1] + b"?", lambda whole: b"<html>"])
def test_damaged_latent_is_reported_and_recomputed(pairs, inverted, caplog, damage):
    x_T = latents(filled(pairs()))
    key, other, last = stored("latent")
    for name in (key, other, last):
        path = Store().path("latent", name)
        path.write_bytes(damage(path.read_bytes()))
    assert torch.equal(latents(filled(pairs())), x_T)
    assert inverted == [2, 1, 2, 1]
    assert caplog.text.count("it was removed and will be recomputed") == 3


def test_latent_that_is_damaged_after_fill(pairs, caplog):
    x_T = latents(filled(pairs()))
    used = filled(pairs())
    for key in stored("latent"):
        Store().path("latent", key).write_bytes(b"no latent")
    assert torch.allclose(latents(used), x_T, atol=1e-5)
    assert caplog.text.count("is damaged") == 3


def test_latent_that_is_not_finite_is_an_error(pairs, monkeypatch):
    monkeypatch.setattr(process, "invert", lambda unet, x_0, *rest, **more: x_0 / 0)
    with pytest.raises(UserError, match="inf or nan: use --precision fp32, and check the weights"):
        filled(pairs())
    assert stored("latent") == {}


def test_unreadable_image_is_skipped_and_named_once(images, pairs, caplog):
    (images / "1.png").write_bytes(b"no image")
    found = filled(pairs())
    [batch] = found.batches([0, 1, 2], 3)
    assert batch.names == ["0.png", "2.png"]
    assert len(found.names_of_content([0, 1, 2])) == 2
    assert caplog.text.count("1.png cannot be read as an image") == 1
    assert "1 of 3 images could not be read and were skipped" in caplog.text


def test_last_images_are_inverted_even_if_unreadable_ones_follow(images, pairs):
    (images / "2.png").write_bytes(b"no image")
    [batch] = filled(pairs(), 8).batches([0, 1, 2], 8)
    assert batch.indices == [0, 1]


def test_no_readable_image_is_an_error(images, pairs):
    (images / "1.png").write_bytes(b"no image")
    (images / "2.png").write_bytes(b"no image")
    found = filled(pairs())
    found.fill([0], 1)  # one that can be read is enough, whatever was left out before
    with pytest.raises(UserError, match="none of the 2 images could be read"):
        found.fill([1, 2], 1)


def test_names_of_content_are_pixel_digests(images, pairs):
    before = pairs().names_of_content([0, 1, 2])
    assert filled(pairs()).names_of_content([2, 0]) == [before[2], before[0]]
    assert before[0] == digest(ImageFolder(images, SIZE)[0])
    to_pil(smooth_images(1, seed=5)[0]).save(images / "1.png")
    after = pairs().names_of_content([0, 1, 2])
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]


# ---- x_T drawn from noise ------------------------------------------------------------------------------------------------


@pytest.fixture
def drawn(model, tmp_path, monkeypatch):
    """drawn(seed, indices) -> batches of noise."""
    monkeypatch.chdir(tmp_path)

    def new(seed, indices, batch_size=1, images=True, keep=False):
        return list(SampledPairs(seed, model, model.timesteps(4), Store(), images, keep).batches(indices, batch_size))

    return new


def test_noise_belongs_to_seed_and_image(drawn, model):
    [both] = drawn(1, [3, 7], 2)
    [three], [seven], [other] = drawn(1, [3]), drawn(1, [7]), drawn(2, [3])
    assert torch.equal(both.x_T, torch.cat([three.x_T, seven.x_T]))
    assert not torch.equal(three.x_T, seven.x_T)
    assert not torch.equal(three.x_T, other.x_T)
    assert both.names == ["noise 3", "noise 7"]
    assert abs(both.x_T.mean()) < 0.2
    assert abs(both.x_T.std() - 1) < 0.2
    assert torch.allclose(both.x_0, model.generate(both.x_T, 4).cpu(), atol=1e-5)


def test_images_of_drawn_latents_are_sampled_once_and_only_if_wanted(drawn, monkeypatch):
    sampled, generate = [], process.generate
    monkeypatch.setattr(
        process, "generate", lambda unet, x_T, *a, **b: sampled.append(len(x_T)) or generate(unet, x_T, *a, **b)
    )
    [first] = drawn(1, [3])
    [both] = drawn(1, [7, 3], 2)
    assert sampled == [1, 1]
    assert torch.equal(both.x_0[1], first.x_0[0])
    assert drawn(1, [8], images=False)[0].x_0 is None
    assert sampled == [1, 1]


def test_saved_noise_is_reused_for_any_seed(drawn):
    [first], [other] = drawn(1, [3], images=False, keep=True), drawn(2, [3], images=False, keep=True)
    assert torch.equal(first.x_T, other.x_T)
    assert len(stored("noise")) == 1
    assert not torch.equal(first.x_T, drawn(2, [3], images=False)[0].x_T)


def test_damaged_noise_is_redrawn(drawn, caplog):
    [first] = drawn(1, [3], images=False, keep=True)
    [key] = stored("noise")
    Store().path("noise", key).write_bytes(b"no noise")
    [again] = drawn(1, [3], images=False, keep=True)
    assert torch.equal(first.x_T, again.x_T)
    assert caplog.text.count("is damaged") == 1
