"""The cache of latents: what finds it again, what does not, and what interrupts it."""

import pytest
import torch
from tiny_world import SIZE, smooth_images

from asyrp import checkpoints, process
from asyrp.data.datasets import ImageFolder
from utils.errors import UserError
from asyrp.report.pictures import to_pil
from asyrp.data.pairs import Latents, SampledLatents, digest

SCHEDULE = process.Schedule.linear()


@pytest.fixture
def images(tmp_path):
    """A folder of three images."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i, image in enumerate(smooth_images(3)):
        to_pil(image).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def latents(images, tmp_path, unet):
    """A function -> the latents of those images, under tmp_path/cache."""

    def new(folder=images, cache="cache", weights="w", schedule=SCHEDULE, n=4, t_0=999):
        steps = process.timesteps(n, t_0)
        return Latents(ImageFolder(folder, SIZE), tmp_path / cache, "TINY", unet, weights, schedule, steps, "cpu")

    return new


@pytest.fixture
def inverted(monkeypatch):
    """The sizes of the batches that were inverted."""
    sizes, invert = [], process.invert

    def counted(unet, x_0, *rest):
        sizes.append(len(x_0))
        return invert(unet, x_0, *rest)

    monkeypatch.setattr(process, "invert", counted)
    return sizes


def filled(pairs, batch_size=2):
    pairs.fill([0, 1, 2], batch_size)
    return pairs


def test_pairs_of_image_and_latent(latents, unet):
    [first, last] = filled(latents()).batches([0, 1, 2], 2)
    assert (first.indices, first.names, last.indices, last.names) == ([0, 1], ["0.png", "1.png"], [2], ["2.png"])
    assert torch.allclose(first.x_0, smooth_images(3)[:2], atol=0.01)
    x_T = process.invert(unet, last.x_0, SCHEDULE, process.timesteps(4, 999))
    assert torch.allclose(last.x_T, x_T, atol=1e-5)


def test_found_again(latents, inverted):
    filled(latents())
    assert inverted == [2, 1]
    filled(latents())
    assert inverted == [2, 1]


def test_again_inverts_all(latents, inverted):
    filled(latents())
    latents().fill([0, 1, 2], 3, again=True)
    assert inverted == [2, 1, 3]


@pytest.mark.parametrize(
    "change",
    [{"weights": "v"}, {"n": 5}, {"t_0": 900}, {"schedule": process.Schedule.linear(beta_end=0.03)}],
    ids=["weights", "steps", "t_0", "schedule"],
)
def test_other_settings_miss_the_cache(latents, inverted, change):
    filled(latents())
    filled(latents(**change))
    assert inverted == [2, 1, 2, 1]


def test_other_pixels_miss_the_cache_and_other_names_do_not(images, latents, inverted):
    filled(latents())
    (images / "0.png").rename(images / "0a.png")
    to_pil(smooth_images(1, seed=5)[0]).save(images / "1.png")
    filled(latents())
    assert inverted == [2, 1, 1]


def test_the_batch_size_changes_nothing(latents):
    found = [torch.cat([b.x_T for b in filled(latents(cache=f"cache{n}"), n).batches([0, 1, 2], n)]) for n in (1, 2, 3)]
    assert torch.allclose(found[0], found[1], atol=1e-5)
    assert torch.allclose(found[0], found[2], atol=1e-5)


def test_killed_half_way_goes_on(latents, inverted, monkeypatch):
    """The write of the second image dies: no file is left of it, and only what is missing is computed later."""
    save, written = torch.save, []

    def dying(obj, path):
        save(obj, path)
        written.append(path)
        if len(written) == 2:
            path.write_bytes(path.read_bytes()[:10])
            raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", dying)
    pairs = latents()
    with pytest.raises(KeyboardInterrupt):
        filled(pairs, 1)
    assert len(list(pairs.folder.iterdir())) == 1
    monkeypatch.setattr(torch, "save", save)
    inverted.clear()
    filled(latents(), 1)
    assert inverted == [1, 1]


def test_a_file_is_complete_before_it_has_its_name(tmp_path, monkeypatch):
    """What a second process sees while the first one writes: nothing, or the former file."""
    path, save, seen = tmp_path / "x.pt", torch.save, []

    def watched(obj, beside):
        save(obj, beside)
        seen.append(checkpoints.load(path).item() if path.exists() else None)

    monkeypatch.setattr(torch, "save", watched)
    for value in (1.0, 2.0):
        checkpoints.save(torch.tensor(value), path)
    assert seen == [None, 1.0]
    assert checkpoints.load(path).item() == 2.0
    assert list(tmp_path.iterdir()) == [path]


def test_an_unreadable_image_is_left_out_and_named_once(images, latents, caplog):
    (images / "1.png").write_bytes(b"no image")
    pairs = filled(latents())
    [batch] = pairs.batches([0, 1, 2], 3)
    assert batch.names == ["0.png", "2.png"]
    assert caplog.text.count("1.png cannot be read as an image") == 1
    assert "1 of 3 images could not be read and are left out" in caplog.text


def test_the_last_images_are_inverted_even_if_unreadable_ones_follow(images, latents):
    (images / "2.png").write_bytes(b"no image")
    [batch] = filled(latents(), 8).batches([0, 1, 2], 8)
    assert batch.indices == [0, 1]


def test_no_readable_image_is_an_error(images, latents):
    for path in images.iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match="none of the 3 images could be read"):
        filled(latents())


def test_a_broken_latent_is_named(latents):
    pairs = filled(latents())
    path = next(pairs.folder.iterdir())
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=path.name):
        list(pairs.batches([0, 1, 2], 3))


def test_digest():
    one = torch.arange(6.0)
    assert digest(one, "a") == digest(one.clone(), "a")
    assert len({digest(one, "a"), digest(one + 1, "a"), digest(one, "b"), digest(one, "ab"), digest(one, "a", "b")}) == 5


# ---- x_T drawn from noise ------------------------------------------------------------------------------------------------


def drawn(seed, indices, batch_size=1, keep=None, images=None, sample=lambda x_T: 2 * x_T):
    sampled = SampledLatents(seed, (3, 4, 4), sample, images, keep)
    return list(sampled.batches(indices, batch_size))


def test_noise_belongs_to_seed_and_image(tmp_path):
    [both] = drawn(1, [3, 7], 2, images=tmp_path)
    [three], [seven], [other] = drawn(1, [3]), drawn(1, [7]), drawn(2, [3])
    assert torch.equal(both.x_T, torch.cat([three.x_T, seven.x_T]))
    assert not torch.equal(three.x_T, seven.x_T)
    assert not torch.equal(three.x_T, other.x_T)
    assert both.names == ["noise 3", "noise 7"]
    assert torch.equal(both.x_0, 2 * both.x_T)


def test_images_of_drawn_latents_are_sampled_once_and_only_if_wanted(tmp_path):
    sampled = []

    def sample(x_T):
        sampled.append(len(x_T))
        return 2 * x_T

    for indices in ([3], [3, 7], [7, 3]):
        [batch] = drawn(1, indices, 2, images=tmp_path, sample=sample)
        assert torch.equal(batch.x_0, 2 * batch.x_T)
    assert sampled == [1, 1]
    assert drawn(1, [8], sample=sample)[0].x_0 is None
    assert sampled == [1, 1]


def test_a_kept_draw_is_found_whatever_the_seed(tmp_path):
    [first], [other] = drawn(1, [3], keep=tmp_path / "draw"), drawn(2, [3], keep=tmp_path / "draw")
    assert torch.equal(first.x_T, other.x_T)
    assert [path.name for path in (tmp_path / "draw").iterdir()] == ["000003.pt"]
    assert not torch.equal(first.x_T, drawn(2, [3])[0].x_T)
