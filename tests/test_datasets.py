"""Images as they lie on disk, in a tiny instance of every layout."""

import io
from types import SimpleNamespace

import lmdb
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny_world import SIZE, SMILE, names, smooth_images

from asyrp.config import load_config
from asyrp.data.datasets import ImageFolder, LmdbImages, UnreadableImage, load_batch
from utils.errors import UserError
from asyrp.report.pictures import to_pil
from asyrp.data.layouts import check_flags, open_split


def colour(i):
    """An image of one colour that says which one it is: red is 10 i."""
    return Image.new("RGB", (SIZE, SIZE), (10 * i, 0, 0))


def which(dataset):
    """The numbers of a dataset's images, by `colour`."""
    return [round(((dataset[i][0].mean().item() + 1) * 127.5) / 10) for i in range(len(dataset))]


def encoded(image, form="PNG"):
    stream = io.BytesIO()
    image.save(stream, form)
    return stream.getvalue()


def write_files(folder, *numbers, suffix="png"):
    folder.mkdir(parents=True, exist_ok=True)
    for i in numbers:
        colour(i).save(folder / f"{i:05d}.{suffix}")


def write_lmdb(folder, items):
    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=2**24) as handle, handle.begin(write=True) as txn:
        for key, value in items.items():
            txn.put(key.encode(), value)


def numbered(n, resolution=SIZE):
    """The items of an LMDB in the form of StyleGAN2 and DiffusionCLIP."""
    images = {f"{resolution}-{i:05d}": encoded(colour(i)) for i in range(n)}
    return images | {"length": str(n).encode()}


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """opened(dataset, category, split, **flags) -> the dataset of a configuration whose folder is tmp_path / "data"."""

    def opened(dataset, category, split, **flags):
        settings = {"data": {"dataset": dataset, "category": category, "image_size": SIZE}, "model": {"type": "ddpm"}}
        (tmp_path / "some.yml").write_text(yaml.safe_dump(settings))
        none = dict.fromkeys(("custom_train_dataset_dir", "custom_test_dataset_dir", "target_class_num", "align_face"))
        args = SimpleNamespace(**none | flags)
        config = load_config(str(tmp_path / "some.yml"))
        check_flags(config, args)
        return open_split(config, split, args)

    for name in ("CELEBA_HQ", "BEDROOM", "CHURCH", "AFHQ_DOG", "FFHQ", "METFACE", "IMAGENET", "CUSTOM"):
        monkeypatch.setenv(f"ASYRP_DATA_{name}", str(tmp_path / "data"))
    opened.folder = tmp_path / "data"
    return opened


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
    with pytest.raises(UserError, match=f"holds images at 64, 128 px only, and {SIZE} are needed"):
        LmdbImages(tmp_path / "db", SIZE)


def test_lmdb_without_images(tmp_path):
    write_lmdb(tmp_path / "db", {"length": b"0"})
    with pytest.raises(UserError, match="holds no image"):
        LmdbImages(tmp_path / "db", SIZE)


def test_lmdb_that_is_none(tmp_path):
    (tmp_path / "data.mdb").write_bytes(b"nothing of the kind" * 1000)
    with pytest.raises(UserError, match="cannot be opened as an LMDB"):
        LmdbImages(tmp_path, SIZE)


def test_lmdb_that_was_cut_off(tmp_path):
    write_lmdb(tmp_path / "db", {str(i): np.random.default_rng(i).bytes(20000) for i in range(20)})
    whole = (tmp_path / "db" / "data.mdb").read_bytes()
    (tmp_path / "db" / "data.mdb").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="the end of this LMDB is missing"):
        LmdbImages(tmp_path / "db", SIZE)


def test_values_that_are_no_images_are_named(tmp_path):
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


# ---- layouts ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "category", "train", "test"),
    [
        ("CelebA_HQ", "CelebA_HQ", "LMDB_train", "LMDB_test"),
        ("LSUN", "bedroom", "bedroom_train_lmdb", "bedroom_val_lmdb"),
        ("LSUN", "church_outdoor", "church_outdoor_train_lmdb", "church_outdoor_val_lmdb"),
        ("AFHQ", "dog", "train/dog", "test/dog"),
        ("AFHQ", "dog", "train/dog", "val/dog"),
        ("CelebA_HQ", "CelebA_HQ", "train", "test"),
        ("FFHQ", "FFHQ", "train", "test"),
        ("CelebA_HQ", "CUSTOM", "train", "test"),
    ],
)
@pytest.mark.parametrize("storage", ["lmdb", "folder"])
def test_published_layouts(opened, dataset, category, train, test, storage):
    for place, n in ((train, 3), (test, 2)):
        if storage == "lmdb":
            write_lmdb(opened.folder / place, numbered(n))
        else:
            write_files(opened.folder / place, *range(n), suffix="png" if place == train else "jpg")
    assert which(opened(dataset, category, "train")) == [0, 1, 2]
    assert len(opened(dataset, category, "test")) == 2


@pytest.mark.parametrize(("dataset", "category"), [("FFHQ", "FFHQ"), ("MetFACE", "metfaces")])
def test_one_folder_whose_last_500_are_for_testing(opened, dataset, category):
    for sub in ("00000", "01000"):
        write_files(opened.folder / sub, *range(251))
    train, test = opened(dataset, category, "train"), opened(dataset, category, "test")
    assert (len(train), len(test)) == (2, 500)
    assert [train.name(i) for i in range(2)] == ["00000/00000.png", "00000/00001.png"]
    assert (test.name(0), test.name(499)) == ("00000/00002.png", "01000/00250.png")


def test_too_few_to_divide(opened):
    write_files(opened.folder, 1, 2)
    with pytest.raises(UserError, match="holds 2 images, and the last 500 are for testing"):
        opened("FFHQ", "FFHQ", "train")


@pytest.mark.parametrize(
    ("wanted", "found"), [(None, [3, 4]), ("207", [4]), ("n02099601", [4]), ("n01440764", [3]), ("0", [3])]
)
def test_imagenet_by_class(opened, wanted, found):
    """Number 0 is the tench, 207 the golden retriever."""
    for split in ("train", "val"):
        write_files(opened.folder / split / "n01440764", 3)
        write_files(opened.folder / split / "n02099601", 4)
    for split in ("train", "test"):
        assert which(opened("IMAGENET", "IMAGENET", split, target_class_num=wanted)) == found


def test_a_folder_given_by_flag_wins(opened, tmp_path):
    write_files(opened.folder / "train", 1)
    write_files(tmp_path / "mine", 5, 6)
    assert which(opened("CelebA_HQ", "CelebA_HQ", "train", custom_train_dataset_dir=tmp_path / "mine")) == [5, 6]


@pytest.mark.parametrize(
    ("dataset", "category", "said"),
    [
        ("CelebA_HQ", "CelebA_HQ", ["train, LMDB_train", "ASYRP_DATA_CELEBA_HQ", "--custom_train_dataset_dir"]),
        ("LSUN", "bedroom", ["bedroom_train_lmdb", "ASYRP_DATA_BEDROOM"]),
        ("FFHQ", "FFHQ", ["the folder itself (its last 500 are for testing)"]),
    ],
)
def test_no_images_names_every_place(opened, dataset, category, said):
    with pytest.raises(UserError) as caught:
        opened(dataset, category, "train")
    assert all(word in str(caught.value) for word in said)


@pytest.mark.parametrize(
    ("flags", "message"),
    [({"target_class_num": "3"}, "--target_class_num picks a class of ImageNet"), ({"align_face": 1}, "--align_face is for")],
)
def test_flags_that_do_not_fit(opened, flags, message):
    with pytest.raises(UserError, match=message):
        opened("FFHQ", "FFHQ", "train", **flags)


# ---- whole runs -------------------------------------------------------------------------------------------------------------


def test_a_run_over_lmdbs(run, tmp_path):
    for split in ("train", "test"):
        images = {f"{SIZE}-{i:05d}": encoded(to_pil(x)) for i, x in enumerate(smooth_images(3))}
        images[f"{SIZE}-00001"] = b"damaged"
        write_lmdb(tmp_path / "data" / split, images | {"length": b"3"})
    folders = ("--custom_train_dataset_dir", "data/train", "--custom_test_dataset_dir", "data/test", "--n_test_img", "3")
    assert run("--run_train", *SMILE, *folders) == 0
    [results] = (tmp_path / "runs").iterdir()
    assert names(results / "test_images" / "4") == ["000000.png", "000002.png", "all.png"]


def test_a_run_on_one_class_of_imagenet(run, tiny, tmp_path, monkeypatch, capsys):
    settings = yaml.safe_load((tiny.folder / "ddpm.yml").read_text())
    settings["data"] |= {"dataset": "IMAGENET", "category": "IMAGENET"}
    (tmp_path / "imagenet.yml").write_text(yaml.safe_dump(settings))
    write_files(tmp_path / "train" / "n02099601", 1, 2)
    write_files(tmp_path / "val" / "n02099601", 3)
    write_files(tmp_path / "val" / "n01440764", 4)
    monkeypatch.setenv("ASYRP_DATA_IMAGENET", str(tmp_path))
    capsys.readouterr()
    flags = ("--config", "imagenet.yml", "--target_class_num", "207", "--n_precomp_img", "9")
    # The tiny world names folders of its own; empty names leave the choice to the configuration.
    folders = ("--custom_train_dataset_dir", "", "--custom_test_dataset_dir", "")
    assert run("--just_precompute", *flags, *folders) == 0
    said = capsys.readouterr().err
    assert "train: 2 latents ready" in said
    assert "test: 1 latents ready" in said
