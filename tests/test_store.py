"""The store: a key for everything that a content depends on, and files that are whole or computed again."""

import os
import time
from itertools import combinations
from types import SimpleNamespace

import pytest
import torch

from asyrp import store
from asyrp.store import NoRoom, NotFinite, Store

MODEL = {"identity": "ddpm-16-abc", "precision": "fp32"}
ONE, OTHER = torch.arange(6.0), torch.arange(6.0) + 1
# key function -> (its parts, {part: another value}); the model's identity and precision are parts of all but one.
KEYS = {
    "latent": (
        store.latent_key,
        {"timesteps": [0, 999], "pixels": "a", "iterations": 0},
        {"timesteps": [0, 500, 999], "pixels": "b", "iterations": 2},
    ),
    "noise_maps": (
        store.noise_maps_key,
        {"timesteps": [0, 999], "pixels": "a", "seed": 1, "number": 3},
        {"timesteps": [0, 500, 999], "pixels": "b", "seed": 2, "number": 4},
    ),
    "sample": (store.sample_key, {"timesteps": [0, 999], "x_T": ONE}, {"timesteps": [0, 998], "x_T": OTHER}),
    "trajectory": (
        store.trajectory_key,
        {"timesteps": [0, 999], "dtype": torch.float32, "x_T": ONE},
        {"timesteps": [0, 500, 999], "dtype": torch.float16, "x_T": OTHER},
    ),
    "mean": (
        store.mean_key,
        {
            "process": [[0, 999], 0, "ddim", 1.0, None],
            "directions": [{"0": ONE}],
            "coefficients": [1.0],
            "origin": 1.0,
            "t_edit": 500,
            "over_timesteps": False,
            "images": ["a", "b"],
        },
        {
            "process": [[0, 999], 200, "ddim", 1.0, 7],
            "directions": [{"0": OTHER}],
            "coefficients": [0.5],
            "origin": 0.9,
            "t_edit": 501,
            "over_timesteps": True,
            "images": ["b", "a"],
        },
    ),
    "curve": (
        store.curve_key,
        {"timesteps": [0, 999], "images": ["a", "b"], "name": "mine"},
        {"timesteps": [0, 500, 999], "images": ["a"], "name": "yours"},
    ),
}
CHANGES = [(kind, part) for kind, (_, parts, _) in KEYS.items() for part in (*MODEL, *parts)]


def key_of(kind, changed=()):
    function, parts, others = KEYS[kind]
    model = MODEL | {part: f"another {part}" for part in MODEL if part in changed}
    return function(SimpleNamespace(**model), **{part: others[part] if part in changed else parts[part] for part in parts})


@pytest.mark.parametrize(("kind", "part"), CHANGES)
def test_key_changes_with_each_of_its_parts(kind, part):
    assert key_of(kind, [part]) != key_of(kind)


@pytest.mark.parametrize("kind", KEYS)
def test_equal_parts_make_equal_keys(kind):
    """Also for a tensor with another memory layout; and a key is a valid file name."""
    function, parts, _ = KEYS[kind]
    copies = {part: value.clone() if isinstance(value, torch.Tensor) else value for part, value in parts.items()}
    assert function(SimpleNamespace(**MODEL), **copies) == key_of(kind)
    assert key_of(kind).isalnum()


def test_no_two_things_share_a_key():
    keys = [
        key_of(kind, changed) for kind, (_, parts, _) in KEYS.items() for n in (0, 1, 2) for changed in combinations(parts, n)
    ]
    assert len(set(keys)) == len(keys)
    assert store.key("latent", x=1) != store.key("sample", x=1)


def test_kept_draw_is_named_by_its_shape_and_number():
    assert store.noise_key((3, 4, 4), 7) == store.noise_key([3, 4, 4], 7)
    assert len({store.noise_key((3, 4, 4), 7), store.noise_key((3, 4, 4), 8), store.noise_key((3, 8, 8), 7)}) == 3


# ---- files ------------------------------------------------------------------------------------------------------------------

KEY = "ab0123"
SHAPES = {"x_T": (2, 3)}


@pytest.fixture
def kept(tmp_path):
    """A store with one latent."""
    found = Store(tmp_path / "precomputed")
    found.write("latent", KEY, {"x_T": torch.ones(2, 3)}, {"timesteps": [0, 999]})
    return found


@pytest.fixture
def path(kept):
    return kept.path("latent", KEY)


def test_written_and_read(kept, path):
    assert torch.equal(kept.read("latent", KEY, SHAPES)["x_T"], torch.ones(2, 3))
    assert kept.about("latent", KEY) == {"timesteps": [0, 999]}
    assert path == kept.root / "latent" / "ab" / f"{KEY}.safetensors"
    assert kept.read("sample", KEY) is kept.read("latent", "cd") is None


def test_mean_directions_are_in_checkpoint_latent(kept):
    assert kept.path("mean", KEY).parts == ("checkpoint_latent", "ab", f"{KEY}.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64])
def test_every_type_and_layout_comes_back(kept, dtype):
    tensor = torch.arange(6).view(2, 3).T.to(dtype)
    kept.write("trajectory", KEY, {"P_plain": tensor})
    found = kept.read("trajectory", KEY, {"P_plain": (None, 2)})["P_plain"]
    assert found.dtype == dtype
    assert torch.equal(found, tensor)


def healed(kept, path, caplog, shapes=SHAPES):
    """The file is not used, one line says so, and what is written in its place is found."""
    caplog.clear()
    assert kept.read("latent", KEY, shapes) is None
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert str(path) in record.message
    assert "\n" not in record.message
    assert "will be recomputed" in record.message
    assert not path.exists()
    assert kept.read("latent", KEY, shapes) is None
    assert len(caplog.records) == 1
    kept.write("latent", KEY, {"x_T": torch.ones(2, 3)})
    assert torch.equal(kept.read("latent", KEY, SHAPES)["x_T"], torch.ones(2, 3))
    return record.message


def test_truncated_at_any_byte(kept, path, caplog):
    whole = path.read_bytes()
    for n in range(len(whole)):
        path.write_bytes(whole[:n])
        healed(kept, path, caplog)


def test_any_flipped_bit_is_detected(kept, path, caplog):
    whole = path.read_bytes()
    for place in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        assert kept.read("latent", KEY, SHAPES) is None
        assert not path.exists()
    assert len(caplog.records) == 8 * len(whole)


@pytest.mark.parametrize("contents", [b"", b"no tensors", bytes(1000), b"\x00" * 8 + b"{", b"\xff" * 8 + b"{" + bytes(100)])
def test_file_of_another_kind(kept, path, caplog, contents):
    path.write_bytes(contents)
    healed(kept, path, caplog)


def test_file_without_a_checksum(kept, path, caplog):
    store.tensors.save_safetensors({"x_T": torch.ones(2, 3)}, path, {})
    assert "its checksum is wrong" in healed(kept, path, caplog)


def test_file_under_the_name_of_another_one(kept, path, caplog):
    kept.write("latent", "abcdef", {"x_T": torch.zeros(2, 3)})
    kept.path("latent", "abcdef").rename(path)
    assert "its checksum is wrong" in healed(kept, path, caplog)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"x_T": torch.ones(3, 2)}, "its x_T is 3 x 2"),
        ({"x_T": torch.ones(6)}, "its x_T is 6"),
        ({"x_0": torch.ones(2, 3)}, "it has no x_T"),
    ],
)
def test_file_of_another_shape(kept, path, caplog, tensors, said):
    kept.write("latent", KEY, tensors)
    assert said in healed(kept, path, caplog)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_tensors_are_neither_stored_nor_read(kept, path, caplog, value, monkeypatch):
    spoilt = {"x_T": torch.ones(2, 3).index_fill(1, torch.tensor([1]), value)}
    with pytest.raises(NotFinite, match="its x_T is not finite: check the weights, or use --precision fp32"):
        kept.write("latent", KEY, spoilt)
    assert torch.equal(kept.read("latent", KEY)["x_T"], torch.ones(2, 3))
    # A file that another program has put there, with a checksum.
    with monkeypatch.context() as patch:
        patch.setattr(torch, "isfinite", lambda tensor: torch.ones_like(tensor, dtype=torch.bool))
        kept.write("latent", KEY, spoilt)
    assert "its x_T is not finite" in healed(kept, path, caplog)


def test_folder_in_place_of_the_file(kept, path, caplog):
    path.unlink()
    (path / "deeper").mkdir(parents=True)
    healed(kept, path, caplog)


def test_unwritable_store(tmp_path):
    (tmp_path / "precomputed").write_text("a file")
    with pytest.raises(NoRoom, match=r"precomputed.*: Not a directory; .*: move it, or use another folder") as caught:
        Store(tmp_path / "precomputed").write("latent", KEY, {"x_T": torch.ones(2)})
    assert "\n" not in str(caught.value)


def test_interrupted_write_leaves_the_former_file(kept, path, monkeypatch):
    def dying(found, beside, metadata):
        beside.write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr("utils.tensors.save_file", dying)
    with pytest.raises(KeyboardInterrupt):
        kept.write("latent", KEY, {"x_T": torch.zeros(2, 3)})
    assert torch.equal(kept.read("latent", KEY)["x_T"], torch.ones(2, 3))
    assert list(path.parent.iterdir()) == [path]


def test_newest_valid_entry(kept, caplog):
    for i, key in enumerate(("aa", "bb", "cc", "dd")):
        kept.write("curve", key, {"t": torch.ones(1)}, {"name": "yours" if key == "dd" else "mine"})
        os.utime(kept.path("curve", key), (time.time() + i, time.time() + i))

    def mine(about):
        return about["name"] == "mine"

    assert kept.newest("curve", mine) == "cc"
    kept.path("curve", "cc").write_bytes(b"{}")
    os.utime(kept.path("curve", "cc"), (time.time() + 9, time.time() + 9))
    assert kept.newest("curve", mine) == "bb"
    assert "cc.safetensors is damaged" in caplog.text
    assert kept.newest("curve", lambda about: about["name"] == "nobody's") is None
    assert kept.newest("sample", mine) is None
