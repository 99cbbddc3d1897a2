"""Images on disk -> tensors: every kind of file, LMDBs, and files that are skipped with a warning."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from coloured import colour, encoded, numbered, which, write_files, write_lmdb
from PIL import Image, features
from tiny_world import SIZE, SMILE, names, smooth_images

from asyrp.data import folders
from asyrp.data.datasets import ImageFolder, LmdbImages, UnreadableImage, load_batch, read_folder, read_image
from asyrp.report.pictures import labelled_grid, to_pil
from utils.errors import UserError
from utils.files import ROOT

# ---- one storage ------------------------------------------------------------------------------------------------------------


def test_lmdb_of_numbered_images(tmp_path):
    write_lmdb(tmp_path / "db", numbered(3))
    dataset = LmdbImages(tmp_path / "db", SIZE)
    assert (len(dataset), dataset.name(2), which(dataset)) == (3, f"{SIZE}-00002", [0, 1, 2])


def test_lmdb_of_arbitrary_keys_in_their_order(tmp_path):
    write_lmdb(tmp_path / "db", {key: encoded(colour(i), "WEBP") for i, key in ((2, "c"), (0, "a"), (1, "b"))})
    dataset = LmdbImages(tmp_path / "db", SIZE)
    assert len(dataset) == 3
    assert dataset.name(1) == "b"  # the walk begins in the middle, and goes on
    assert [dataset.name(i) for i in range(3)] == ["a", "b", "c"]
    assert dataset[2].shape == (3, SIZE, SIZE)


def test_lmdb_of_another_resolution(tmp_path):
    write_lmdb(tmp_path / "db", numbered(2, resolution=64) | numbered(2, resolution=128))
    with pytest.raises(UserError, match=f"only has images of 64, 128 px, but {SIZE} px are needed"):
        LmdbImages(tmp_path / "db", SIZE)


def test_lmdb_without_images(tmp_path):
    write_lmdb(tmp_path / "db", {"length": b"0"})
    with pytest.raises(UserError, match="has no images"):
        LmdbImages(tmp_path / "db", SIZE)


def test_folder_that_is_not_an_lmdb(tmp_path):
    (tmp_path / "data.mdb").write_bytes(b"nothing of the kind" * 1000)
    with pytest.raises(UserError, match="cannot be opened as an LMDB"):
        LmdbImages(tmp_path, SIZE)


def test_truncated_lmdb(tmp_path):
    write_lmdb(tmp_path / "db", {str(i): np.random.default_rng(i).bytes(20000) for i in range(20)})
    whole = (tmp_path / "db" / "data.mdb").read_bytes()
    (tmp_path / "db" / "data.mdb").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="this LMDB is truncated"):
        LmdbImages(tmp_path / "db", SIZE)


@pytest.mark.parametrize("length", [b"4", b"1000000000", b"9" * 18])
def test_lmdb_with_too_large_length(tmp_path, length):
    """At once, and without a list of that length."""
    write_lmdb(tmp_path / "db", numbered(3) | {"length": length})
    with pytest.raises(UserError, match=rf"`length` says {length.decode()} images, but {SIZE}-\d+ is missing"):
        LmdbImages(tmp_path / "db", SIZE)


@pytest.mark.parametrize("length", [b"three", b"-1", b"", b"9" * 19, b"9" * 5000])
def test_lmdb_with_invalid_length(tmp_path, length):
    write_lmdb(tmp_path / "db", numbered(3) | {"length": length})
    with pytest.raises(UserError, match=r"the value of the key `length` is b'.{0,30}', not a number of images"):
        LmdbImages(tmp_path / "db", SIZE)


@pytest.mark.parametrize("keys", ["numbered", "any"])
def test_lmdb_with_damaged_pages(tmp_path, keys):
    """The header is whole, so that it opens; each of its pages is emptied in turn."""
    write_lmdb(
        tmp_path / "db", numbered(60) if keys == "numbered" else {f"k{i:02d}": encoded(colour(i % 9)) for i in range(60)}
    )
    whole = (tmp_path / "db" / "data.mdb").read_bytes()
    refused = 0
    for page in range(2, len(whole) // 4096):
        folder = tmp_path / f"db{page}"
        folder.mkdir()
        (folder / "data.mdb").write_bytes(whole[: page * 4096] + bytes(4096) + whole[(page + 1) * 4096 :])
        try:
            dataset = LmdbImages(folder, SIZE)
            load_batch(dataset, range(len(dataset)))
        except UserError as error:
            assert str(error).startswith(f"{folder}: this LMDB is damaged (")
            assert "\n" not in str(error)
            refused += 1
    assert refused >= 2


def test_lmdb_values_that_are_not_images_are_named(tmp_path):
    write_lmdb(tmp_path / "db", numbered(3) | {f"{SIZE}-00001": b"no image"})
    good, images, messages = load_batch(LmdbImages(tmp_path / "db", SIZE), [0, 1, 2])
    assert (good, len(images)) == ([0, 2], 2)
    assert f"{SIZE}-00001 cannot be read as an image (unknown format)" in messages[0]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "I;16"])
def test_images_of_every_mode(tmp_path, mode):
    image = (
        Image.fromarray((np.arange(900).reshape(30, 30) * 70).astype(np.uint16)) if mode == "I;16" else colour(3).convert(mode)
    )
    image.save(tmp_path / f"x.{'jpg' if mode == 'CMYK' else 'png'}")
    [x] = ImageFolder(tmp_path, SIZE)
    assert x.shape == (3, SIZE, SIZE)
    assert -1 <= x.min() <= x.max() <= 1
    if mode == "I;16":
        assert x.std() > 0.1  # not clipped at 255


def test_any_size_is_resized_by_its_shorter_side_and_cropped(tmp_path):
    wide = torch.zeros(3, 30, 90) - 1
    wide[0, :, 30:60] = 1  # the middle third is red
    to_pil(wide).save(tmp_path / "wide.png")
    [x] = ImageFolder(tmp_path, SIZE)
    assert x[0, :, 2:-2].min() > 0.9
    assert x[1].max() < -0.9


def test_damaged_files_are_named(tmp_path):
    (tmp_path / "broken.png").write_bytes(encoded(colour(1))[:40])
    with pytest.raises(UnreadableImage, match=r"broken.png cannot be read"):
        ImageFolder(tmp_path, SIZE)[0]


# ---- what is left out -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["tif", "tiff", "jfif", "jpe", "gif", "bmp", "ppm", "tga", "jp2", "avif", "JPG"])
def test_images_of_every_kind_that_pillow_reads(tmp_path, suffix):
    if not features.check({"avif": "avif", "jp2": "jpg_2000"}.get(suffix, "jpg")):
        pytest.skip("this Pillow does not read them")
    write_files(tmp_path, 3, suffix=suffix)
    [x] = ImageFolder(tmp_path, SIZE)
    assert x[0].mean() == pytest.approx(30 / 127.5 - 1, abs=0.05)


def test_first_picture_of_an_animation_is_taken(tmp_path):
    colour(2).save(tmp_path / "moving.gif", save_all=True, append_images=[colour(9), colour(12)])
    assert which(ImageFolder(tmp_path, SIZE)) == [2]


def test_other_kinds_of_images_are_named_once(tmp_path, caplog):
    write_files(tmp_path, 1, 2)
    for name in ("a.heic", "b.HEIC", "c.svg", "notes.txt", "labels.json"):
        (tmp_path / name).write_bytes(b"?")
    assert [ImageFolder(tmp_path, SIZE).names for _ in range(3)] == [["00001.png", "00002.png"]] * 3
    [said] = caplog.messages
    assert f"{tmp_path}: skipped 2 .heic, 1 .svg, which Pillow cannot read here" in said


def test_kinds_that_pillow_does_not_read_here_are_named(tmp_path, caplog, monkeypatch):
    write_files(tmp_path, 1)
    (tmp_path / "x.webp").write_bytes(b"?")
    monkeypatch.setattr(folders, "EXTENSIONS", (".png",))
    assert folders.image_names(tmp_path) == ["00001.png"]
    assert "skipped 1 .webp" in caplog.text


def test_only_files_and_links_to_files_are_images(tmp_path, caplog):
    """A pipe would be waited for until somebody writes into it."""
    write_files(tmp_path / "real", 4)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("real/00004.png")
    (tmp_path / "pipe too.png").symlink_to("pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    (tmp_path / "nowhere.png").symlink_to("nothing.png")
    (tmp_path / "circle.png").symlink_to("circle.png")
    (tmp_path / "folder.png").mkdir()
    dataset = ImageFolder(tmp_path, SIZE)
    assert (dataset.names, which(dataset)) == (["link.png"], [4])
    assert "skipped names that are not files (circle.png, device.png, folder.png, ...)" in caplog.text


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparent_images_on_white(tmp_path, mode, caplog):
    """Half of the image is transparent, with black under it."""
    pixels = np.zeros((SIZE, SIZE, 4), np.uint8)
    pixels[:, : SIZE // 2] = (200, 200, 200, 255)
    image = Image.fromarray(pixels)
    if mode == "RGB":
        image = image.convert("RGB")
        image.info["transparency"] = (0, 0, 0)
    image.convert(mode).save(tmp_path / "x.png", **({"transparency": (0, 0, 0)} if mode == "RGB" else {}))
    image.convert(mode).save(tmp_path / "y.png", **({"transparency": (0, 0, 0)} if mode == "RGB" else {}))
    for x in (dataset := ImageFolder(tmp_path, SIZE)):
        assert x[:, :, : SIZE // 2].mean() == pytest.approx(200 / 127.5 - 1, abs=0.01)
        assert (x[:, :, SIZE // 2 :] == 1).all()
    assert len(dataset) == 2
    assert caplog.messages == [f"{tmp_path}: transparent images are shown on white"]


def test_opaque_image_is_taken_as_it_is(tmp_path, caplog):
    colour(3).convert("RGBA").save(tmp_path / "x.png")
    assert which(ImageFolder(tmp_path, SIZE)) == [3]
    assert not caplog.messages


def test_one_picture_is_read_as_those_of_a_folder_are(tmp_path):
    to_pil(smooth_images(1, size=24)[0]).convert("RGBA").save(tmp_path / "x.png")
    assert torch.equal(read_image(tmp_path / "x.png", SIZE), ImageFolder(tmp_path, SIZE)[0])
    (tmp_path / "y.png").write_bytes(b"nothing")
    for path, reason in ((tmp_path / "y.png", "unknown format"), (tmp_path / "gone.png", "No such file")):
        with pytest.raises(UserError, match=f"{path} cannot be read as an image .*{reason}"):
            read_image(str(path), SIZE)


def test_harmless_warnings_of_pillow_are_silent(tmp_path):
    to_pil(smooth_images(1, size=24)[0]).save(tmp_path / "x.png")
    code = "import sys; from PIL import Image; from asyrp.data.datasets import read_image; Image.MAX_IMAGE_PIXELS = 400; "
    done = subprocess.run(
        [sys.executable, "-c", f"{code}read_image(sys.argv[1], 16)", tmp_path / "x.png"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_32_bit_greyscale_is_refused(tmp_path):
    Image.fromarray(np.linspace(0, 1, SIZE * SIZE, dtype=np.float32).reshape(SIZE, SIZE)).save(tmp_path / "x.tif")
    Image.fromarray(np.full((SIZE, SIZE), 2**20, np.int32)).save(tmp_path / "y.tif")
    _, _, messages = load_batch(ImageFolder(tmp_path, SIZE), [0, 1])
    assert [message.endswith("(32-bit greyscale; save it with 8 or 16 bits)") for message in messages] == [True, True]


def test_folder_as_one_tensor(tmp_path):
    """Sorted by name; unreadable files are skipped."""
    for i in range(4):
        to_pil(smooth_images(1, seed=i)[0]).save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes(b"damaged")
    dataset = ImageFolder(tmp_path, SIZE)
    assert torch.equal(read_folder(tmp_path, SIZE), torch.stack([dataset[i] for i in (0, 2, 3)]))
    assert torch.equal(read_folder(str(tmp_path), SIZE, 2), torch.stack([dataset[i] for i in (0, 2)]))
    with pytest.raises(UserError, match="is not a folder of images"):
        read_folder(tmp_path / "nowhere", SIZE)


def test_file_names_that_are_not_utf_8(tmp_path):
    """A name that is no UTF-8, and one of two lines: both are listed and read, and messages stay one line of valid text."""
    for name in (b"caf\xe9.png", b"two\nlines.png", b"\xff.jpg"):
        with open(os.fsencode(tmp_path) + b"/" + name, "wb") as stream:
            stream.write(encoded(colour(5)) if name.endswith(b"png") else b"damaged")
    dataset = ImageFolder(tmp_path, SIZE)
    assert [os.fsencode(name) for name in dataset.names] == [b"caf\xe9.png", b"two\nlines.png", b"\xff.jpg"]
    good, _, [message] = load_batch(dataset, [0, 1, 2])
    assert good == [0, 1]
    assert message == rf"{tmp_path}/\xff.jpg cannot be read as an image (unknown format)"
    picture = labelled_grid([[dataset[0]], [dataset[1]]], [dataset.name(2)], dataset.names[:2])
    assert picture.width > 96


# ---- whole runs -------------------------------------------------------------------------------------------------------------


def test_run_over_lmdbs(run, tmp_path):
    for split in ("train", "test"):
        images = {f"{SIZE}-{i:05d}": encoded(to_pil(x)) for i, x in enumerate(smooth_images(3))}
        images[f"{SIZE}-00001"] = b"damaged"
        write_lmdb(tmp_path / "data" / split, images | {"length": b"3"})
    folders = ("--custom_train_dataset_dir", "data/train", "--custom_test_dataset_dir", "data/test", "--n_test_img", "3")
    assert run("--run_train", *SMILE, *folders) == 0
    [results] = (tmp_path / "runs").iterdir()
    assert names(results / "test_images" / "4") == ["000000.png", "000002.png", "all.png"]
