"""Alignment of portraits: its geometry on given landmarks, and runs with a landmark library of our own."""

import numpy as np
import pytest
from PIL import Image
from tiny_world import TEST, names, pixels

import utils.align
from asyrp.data.datasets import ImageFolder, UnreadableImage
from utils.align import FaceAligner, align, face_square

SIDE = 128


def landmarks(centre=(64.0, 60.0), eyes=20.0, turn=0.0):
    """68 landmarks of a face: eyes `eyes` apart, the mouth as far below them, turned about its centre by `turn` degrees."""
    points = np.zeros((68, 2))
    points[36:42], points[42:48] = (-eyes / 2, 0), (eyes / 2, 0)
    points[[48, 54]] = (-eyes / 4, eyes), (eyes / 4, eyes)
    angle = np.radians(turn)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return points @ rotation.T + centre


def portrait(turn=0.0):
    """Grey with a red square for the left eye, a green one for the right one and a blue one for the mouth."""
    image = np.full((SIDE, SIDE, 3), 128, np.uint8)
    points = landmarks(turn=turn)
    for point, channel in ((points[36], 0), (points[42], 1), (points[[48, 54]].mean(0), 2)):
        x, y = point.round().astype(int)
        image[y - 3 : y + 4, x - 3 : x + 4] = 0
        image[y - 3 : y + 4, x - 3 : x + 4, channel] = 255
    return Image.fromarray(image)


def test_face_square_of_upright_face():
    """Half a side is twice the distance of the eyes; the centre lies a tenth of the way from the eyes to the mouth."""
    square = face_square(landmarks(eyes=20))
    assert np.allclose(square, [(24, 22), (24, 102), (104, 102), (104, 22)])


def test_face_square_follows_rotation_and_scale():
    turned = face_square(landmarks(turn=90))
    assert np.allclose(turned[3] - turned[0], (0, 80))
    assert np.allclose(face_square(landmarks(eyes=10, centre=(0, 0))) * 2, face_square(landmarks(centre=(0, 0))))


@pytest.mark.parametrize("turn", [0, 30, -90])
def test_align_puts_eyes_and_mouth_at_fixed_positions(turn):
    aligned = np.asarray(align(portrait(turn), landmarks(turn=turn), 64)).astype(int)
    for place, channel in (((24, 30), 0), ((40, 30), 1), ((32, 46), 2)):
        x, y = place
        others = [k for k in range(3) if k != channel]
        assert aligned[y, x, channel] > 180 > 100 > aligned[y, x, others].max()


def test_face_at_border_is_padded_by_reflection():
    image = portrait().crop((40, 40, SIDE, SIDE))
    aligned = np.asarray(align(image, landmarks(centre=(24, 20)), 64)).astype(int)
    assert aligned.shape == (64, 64, 3)
    assert aligned[0, 0].min() > 60  # not black, as what lies outside would be


def test_large_face_is_downscaled_first():
    image = portrait().resize((1024, 1024), Image.Resampling.NEAREST)
    small = np.asarray(align(portrait(), landmarks(), 16)).astype(int)
    large = np.asarray(align(image, landmarks() * 8 + 3.5, 16)).astype(int)
    assert np.abs(small - large).mean() < 6


# ---- with a landmark library ------------------------------------------------------------------------------------------------


@pytest.fixture
def library(monkeypatch):
    """A library that finds a face in colourful portraits, and none in grey ones. -> list of the sizes it was asked about."""
    asked = []

    def find(image):
        asked.append(image.size)
        return landmarks() if np.ptp(np.asarray(image), axis=2).max() > 0 else None

    monkeypatch.setattr(utils.align, "find_spec", lambda name: name)
    monkeypatch.setattr(utils.align, "find_landmarks", find)
    return asked


def test_aligned_faces_are_cached(library, tmp_path):
    portrait().save(tmp_path / "a.png")
    Image.new("RGB", (SIDE, SIDE), "grey").save(tmp_path / "b.png")
    dataset = ImageFolder(tmp_path, 64, align=FaceAligner(tmp_path / "aligned", 64))
    first, again = dataset[0], dataset[0]
    assert first.shape == (3, 64, 64)
    assert (first == again).all()
    assert library == [(SIDE, SIDE)]
    with pytest.raises(UnreadableImage, match=r"b.png cannot be aligned: no face was found"):
        dataset[1]


def test_main_with_align_face(run_learned, library, tmp_path):
    (tmp_path / "mine").mkdir()
    portrait().save(tmp_path / "mine" / "a.png")
    folder = ("--custom_test_dataset_dir", "mine", "--n_test_img", "1", "--save_x0", "--use_x0_tensor")
    assert run_learned(*TEST, *folder) == 0
    [results] = (tmp_path / "runs").glob("smile_*")
    cut = pixels(results / "test_images" / "4" / "000000.png")
    assert run_learned(*TEST, *folder, "--align_face") == 0
    assert names(tmp_path / "precomputed" / "aligned")
    assert (pixels(results / "test_images" / "4" / "000000.png") != cut).any()


def test_align_face_without_library_exits_2(run, monkeypatch):
    monkeypatch.setattr(utils.align, "find_spec", lambda name: None)
    said = '--align_face needs face_alignment: pip install -e ".[align]"'
    assert said in run.error(*TEST, "--align_face")
