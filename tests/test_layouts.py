"""A tiny instance of every dataset layout, and errors that say what is there instead."""

import logging

import pytest
import yaml
from coloured import numbered, which, write_files, write_lmdb
from tiny_world import DDPM, SIZE

import main
from asyrp.config import load_config
from asyrp.data.datasets import open_folder
from asyrp.data.layouts import check_image_settings, open_split
from utils.errors import UserError


def config_of(folder, dataset, category):
    settings = {"data": {"dataset": dataset, "category": category, "image_size": SIZE}, "model": DDPM}
    (folder / "some.yml").write_text(yaml.safe_dump(settings))
    return load_config(str(folder / "some.yml"))


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """opened(dataset, category, split, ...) -> the dataset of a configuration whose folder is tmp_path / "data"."""

    def opened(dataset, category, split, folder=None, class_number=None):
        return open_split(config_of(tmp_path, dataset, category), split, folder, class_number)

    for name in (
        "CELEBA_HQ",
        "BEDROOM",
        "CHURCH",
        "AFHQ_DOG",
        "AFHQ_DOG_P2",
        "FFHQ",
        "FFHQ_P2",
        "METFACE",
        "CUB",
        "FLOWER",
        "IMAGENET",
        "CUSTOM",
    ):
        monkeypatch.setenv(f"ASYRP_DATA_{name}", str(tmp_path / "data"))
    opened.folder = tmp_path / "data"
    return opened


# ---- layouts ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "category", "train", "test"),
    [
        ("CelebA_HQ", "CelebA_HQ", "LMDB_train", "LMDB_test"),
        ("LSUN", "bedroom", "bedroom_train_lmdb", "bedroom_val_lmdb"),
        ("LSUN", "church_outdoor", "church_outdoor_train_lmdb", "church_outdoor_val_lmdb"),
        ("AFHQ", "dog", "train/dog", "test/dog"),
        ("AFHQ", "dog", "train/dog", "val/dog"),
        ("AFHQ_P2", "dog_P2", "train/dog", "val/dog"),
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


@pytest.mark.parametrize(("dataset", "category"), [("FFHQ", "FFHQ"), ("FFHQ_P2", "FFHQ_P2"), ("MetFACE", "metfaces")])
def test_one_folder_whose_last_500_are_for_testing(opened, dataset, category):
    for sub in ("00000", "01000"):
        write_files(opened.folder / sub, *range(251))
    train, test = opened(dataset, category, "train"), opened(dataset, category, "test")
    assert (len(train), len(test)) == (2, 500)
    assert [train.name(i) for i in range(2)] == ["00000/00000.png", "00000/00001.png"]
    assert (test.name(0), test.name(499)) == ("00000/00002.png", "01000/00250.png")


@pytest.mark.parametrize("places", [["images"], ["images/00000", "images/01000"]])
def test_metfaces_as_published(opened, places):
    """Only the images in the folder of that name are used."""
    for k, place in enumerate(places):
        write_files(opened.folder / place, *range(250 * k, 250 * k + (502 if len(places) == 1 else 251)))
    write_files(opened.folder, 7)
    write_files(opened.folder / "unprocessed", 8)
    train, test = opened("MetFACE", "metfaces", "train"), opened("MetFACE", "metfaces", "test")
    assert (len(train), len(test)) == (2, 500)
    assert train.folder == opened.folder / "images"
    assert not {*train.names} & {*test.names}
    assert sorted(train.names + test.names) == train.names + test.names


@pytest.mark.parametrize(
    ("dataset", "category", "places"),
    [("CUB", "bird", ["images/001.Black_footed_Albatross", "images/200.Common_Yellowthroat"]), ("Flower", "flower", ["jpg"])],
)
def test_birds_and_flowers_as_published(opened, dataset, category, places):
    for place in places:
        write_files(opened.folder / place, *range(502 // len(places)), suffix="jpg")
    write_files(opened.folder / "segmentations", 8)
    train, test = opened(dataset, category, "train"), opened(dataset, category, "test")
    assert (len(train), len(test)) == (2, 500)
    assert train.folder == opened.folder / places[0].split("/")[0]


def test_too_few_images_to_split(opened):
    write_files(opened.folder, 1, 2)
    with pytest.raises(UserError, match="has 2 images, and the last 500 are for testing"):
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
        assert which(opened("IMAGENET", "IMAGENET", split, class_number=wanted)) == found


def test_folder_given_by_flag_wins(opened, tmp_path):
    write_files(opened.folder / "train", 1)
    write_files(tmp_path / "mine", 5, 6)
    assert which(opened("CelebA_HQ", "CelebA_HQ", "train", folder=tmp_path / "mine")) == [5, 6]


@pytest.mark.parametrize(
    ("dataset", "category", "said"),
    [
        ("CelebA_HQ", "CelebA_HQ", ["train, LMDB_train", "ASYRP_DATA_CELEBA_HQ", "--custom_train_dataset_dir"]),
        ("LSUN", "bedroom", ["bedroom_train_lmdb", "ASYRP_DATA_BEDROOM"]),
        ("FFHQ", "FFHQ", ["the folder itself (its last 500 images are for testing)"]),
        ("MetFACE", "metfaces", ["images, the folder itself (its last 500 images are for testing)", "there is no such folder"]),
    ],
)
def test_no_images_names_every_place(opened, dataset, category, said):
    with pytest.raises(UserError) as caught:
        opened(dataset, category, "train")
    assert all(word in str(caught.value) for word in said)


@pytest.mark.parametrize(
    ("dataset", "category", "train", "test", "class_number", "align", "message"),
    [
        ("FFHQ", "FFHQ", None, None, "3", 0, "--target_class_num chooses a class of ImageNet"),
        ("IMAGENET", "IMAGENET", "a", "b", "3", 0, "--target_class_num chooses a class of ImageNet"),
        ("IMAGENET", "CUSTOM", None, None, "3", 0, "--target_class_num chooses a class of ImageNet"),
        ("IMAGENET", "IMAGENET", "a", None, "3", 0, None),
        ("FFHQ", "FFHQ", None, None, None, 1, "--align_face is for"),
        ("FFHQ", "FFHQ", None, "mine", None, 1, None),
        ("FFHQ", "CUSTOM", None, None, None, 1, None),
    ],
)
def test_settings_that_do_not_fit(tmp_path, dataset, category, train, test, class_number, align, message):
    config = config_of(tmp_path, dataset, category)
    if message is None:
        check_image_settings(config, train, test, class_number, align)
    else:
        with pytest.raises(UserError, match=message):
            check_image_settings(config, train, test, class_number, align)


# ---- what is there instead --------------------------------------------------------------------------------------------------


def test_error_describes_other_content_of_folder(tmp_path):
    write_files(tmp_path / "classes" / "n01440764", 1)
    write_files(tmp_path / "classes" / "n02099601", 1)
    write_lmdb(tmp_path / "above" / "LMDB_train", numbered(1))
    (tmp_path / "empty").mkdir()
    (tmp_path / "images.zip").write_bytes(b"PK")
    for name, said in (
        ("classes", "it contains the folders n01440764, n02099601"),
        ("classes/n01440764/00001.png", "it is a file, not a folder"),
        ("above", r"it contains the folder LMDB_train \(an LMDB\)"),
        ("images.zip", "it is a file, not a folder"),
        ("empty", "it contains no images and no folders"),
        ("nothing", "there is no such folder"),
    ):
        with pytest.raises(UserError, match=rf"/{name} is not a folder of images \(.*\): {said}; give the folder") as caught:
            open_folder(tmp_path / name, SIZE)
        assert str(caught.value).isprintable()


def test_error_describes_dataset_folder(opened):
    write_files(opened.folder, 1, 2)
    write_files(opened.folder / "n02099601", 1)
    with pytest.raises(
        UserError, match=r"data \(it contains 2 images and the folder n02099601\): put .* in one of train/n02099601;"
    ):
        opened("IMAGENET", "IMAGENET", "train", class_number="207")
    write_lmdb(opened.folder / "train", numbered(1))
    with pytest.raises(UserError, match=r"the folders n02099601, train \(an LMDB\)"):
        opened("IMAGENET", "IMAGENET", "train", class_number="207")


def test_lmdb_in_place_of_the_dataset_is_named(opened):
    write_lmdb(opened.folder, numbered(1))
    with pytest.raises(UserError, match=r"it is an LMDB.*pass --custom_test_dataset_dir"):
        opened("CelebA_HQ", "CelebA_HQ", "test")


# ---- a whole run -------------------------------------------------------------------------------------------------------------


def test_run_on_one_class_of_imagenet(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.root, "handlers", [])  # a run logs to the stderr of its own test
    settings = yaml.safe_load((tiny.folder / "ddpm.yml").read_text())
    settings["data"] |= {"dataset": "IMAGENET", "category": "IMAGENET"}
    (tmp_path / "imagenet.yml").write_text(yaml.safe_dump(settings))
    write_files(tmp_path / "train" / "n02099601", 1, 2)
    write_files(tmp_path / "val" / "n02099601", 3)
    write_files(tmp_path / "val" / "n01440764", 4)
    monkeypatch.setenv("ASYRP_DATA_IMAGENET", str(tmp_path))
    capsys.readouterr()
    flags = ["--config", "imagenet.yml", "--model_path", str(tiny.folder / "ddpm.pt"), "--device", "cpu", "--exp", "runs/one"]
    flags += ["--n_inv_step", "4", "--target_class_num", "207", "--n_precomp_img", "9"]
    assert main.main(["--just_precompute", *flags]) == 0
    said = capsys.readouterr().err
    assert "train: 2 latents ready" in said
    assert "test: 1 latents ready" in said
