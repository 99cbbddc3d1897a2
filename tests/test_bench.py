"""bench.py: a rehearsal in the tiny world, the plain schedule it compares with, and what it counts without computing."""

import copy
import sys

import pytest
import torch
import torch.nn.functional as F
from golden_unets import golden_unet, needs_channels_last
from tiny_world import smooth_images

from asyrp import process, training
from asyrp.acceleration import winograd
from asyrp.acceleration.fast_unet import layout_for
from asyrp.config import load_config
from asyrp.data.pairs import Batch
from asyrp.hspace import BlockDirection
from asyrp.origin import PlainTrajectories
from losses.clip_loss import ClipLoss
from models import build_unet
from utils.errors import UserError
from utils.files import ROOT
from utils.terminal import guarded

sys.path.insert(0, str(ROOT / "scripts"))
sys.path.insert(0, str(ROOT / "scripts" / "bench"))

import bench
import plain_schedule
from bench_report import write_section
from counting import Hollow, LiveBytes, gigamacs, recomputes_without_data

needs_recomputing = pytest.mark.skipif(
    not recomputes_without_data(), reason="this PyTorch is too old to count the memory of a training step"
)


@pytest.fixture
def tables(tiny, tmp_path, monkeypatch):
    """tables(*flags) -> bench.py's tables, each a list of rows, a row a list of cells."""
    monkeypatch.setattr(sys, "argv", ["bench.py"])

    def tables(*flags):
        given = ["--config", tiny.folder / "ddpm.yml", "--model_path", tiny.folder / "ddpm.pt", "--clip_model_name", tiny.clip]
        given += ["--steps", "4", "--rounds", "1", "--warmup", "0", "--device", "cpu", "--out", tmp_path / "b.md"]
        bench.main([str(flag) for flag in [*given, *flags]])
        paragraphs = (tmp_path / "b.md").read_text().split("\n\n")
        return [[line.strip("| ").split(" | ") for line in p.splitlines()] for p in paragraphs if p.startswith("|")]

    return tables


@needs_channels_last
def test_short_run(tables, tiny, tmp_path):
    flags = ("--precision", "fp32", "bf16", "fp16", "--batch", "1", "2", "--layout", "channels_last", "contiguous")
    work, speed, wanted = tables("--images", tiny.test, *flags)
    # Two of four steps are edited.
    counted = {row[0]: row[1:4] + row[5:8] for row in work[2:]}
    assert counted["invert"] == ["3", "3", "0", "3", "3", "0"]
    assert counted["edit"] == ["4", "6", "0", "4", "8", "0"]
    assert counted["first epoch"] == ["3", "5", "3", "4", "6", "4"]
    assert counted["further epoch"] == ["2", "4", "2", "4", "6", "4"]
    assert all(float(row[-1]) >= 1 for row in work[2:])
    assert [row[:4] for row in speed[3:5]] == [["fp32", "off", "channels_last", "1"], ["fp32", "off", "channels_last", "2"]]
    assert len(speed) == 3 + 3 * 2 * 2
    differences = {row[0]: int(row[-2]) for row in speed[3:]}
    assert differences["fp32"] <= 1
    assert differences["bf16"] > 0
    assert [row[0] for row in wanted[2:]] == ["invert and edit, fp32", "further epoch, fp32"]
    text = (tmp_path / "b.md").read_text()
    assert "Weights: trained; images: a folder; 4 steps, of which 2 are edited" in text


@needs_recomputing
def test_cpu_report_has_ratios_and_no_folders_of_this_machine(tables, tiny, tmp_path, monkeypatch):
    given = ["--config", f"{tiny.folder}/ddpm.yml", f"--model_path={tiny.folder}/ddpm.pt", "--images", f"{ROOT}/examples"]
    monkeypatch.setattr(sys, "argv", ["bench.py", *given])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    _, speed, _ = tables()
    text = (tmp_path / "b.md").read_text()
    assert speed[2][4:9] == ["1x"] * 5
    assert all(cell.strip("*")[-1] == "x" for cell in speed[3][4:9])
    assert text.startswith("# Benchmarks\n\n## ddpm.yml on ")
    assert "`OMP_NUM_THREADS=1 python scripts/bench.py --config ddpm.yml --model_path=ddpm.pt --images examples`" in text
    assert str(tmp_path) not in text and str(tiny.folder) not in text


@pytest.mark.skipif(recomputes_without_data(), reason="this PyTorch is new enough")
def test_torch_that_is_too_old_is_one_line(tables):
    with pytest.raises(UserError, match="too old to count the memory of a training step: upgrade torch"):
        tables()


def test_without_out_the_report_is_printed_only(capsys, monkeypatch):
    monkeypatch.setattr(bench, "write_section", lambda *_: pytest.fail("nobody asked for a file"))
    bench.publish("## a section", bench.parse_args([]).out)
    assert capsys.readouterr().out == "## a section\n"


@needs_recomputing
def test_layout_is_the_one_of_main_by_default(tables):
    _, speed, _ = tables()
    assert [row[:4] for row in speed[3:]] == [["fp32", "off", layout_for("cpu"), "1"]]


@pytest.mark.skipif(not winograd.available(), reason="no NNPACK in this PyTorch, or no processor for it")
@needs_channels_last
def test_winograds_convolutions_are_named():
    world = bench.World(
        bench.parse_args(["--config", "avatar.yml", "--device", "cpu", "--layout", "contiguous", "channels_last"])
    )
    data = {"dataset": "TINY", "category": "CUSTOM", "image_size": 32}
    wide = {"type": "ddpm", "ch": 64, "ch_mult": [1], "num_res_blocks": 1, "attn_resolutions": []}
    world.unet = build_unet({"data": data, "model": wide})
    layouts = [contestant.case.layout for contestant in bench.contestants(world)[1:]]
    assert layouts == ["contiguous, Winograd", "channels_last"]


def test_direction_that_ships_is_edited_with(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where none of the user's own has that name
    world = bench.World(bench.parse_args(["--config", "avatar.yml", "--direction", "smiling", "--device", "cpu"]))
    learned = torch.load(ROOT / "pretrained/avatar/directions/smiling.pth", weights_only=True)["0"]
    assert all(torch.equal(tensor, learned[name].float()) for name, tensor in world.direction.block.state_dict().items())
    assert not all(torch.equal(*pair) for pair in zip(world.direction.parameters(), world.new_block.parameters(), strict=True))


def test_contestants_invert_alike_whatever_the_config_prefers():
    """avatar.yml prefers fixed-point inversion; the plain schedule is DDIM."""
    flags = ["--config", "avatar.yml", "--device", "cpu", "--steps", "4", "--batch", "1"]
    world = bench.World(bench.parse_args(flags))
    plain, ours = bench.contestants(world)[:2]
    assert ours.model.inversion == "fixed_point"
    assert (plain.invert(world.images[:1]) - ours.invert(world.images[:1])).abs().max() < 1e-3


def test_missing_weights_are_random(monkeypatch):
    """Weights, images, and a CLIP of the size that is named."""
    monkeypatch.setenv("ASYRP_MODEL_AVATAR", "nowhere.pt")
    world = bench.World(bench.parse_args(["--config", "avatar.yml", "--clip_model_name", "ViT-B/32", "--batch", "1", "3"]))
    assert not world.trained
    assert world.images.shape == (3, 3, 32, 32)
    assert world.clip.image_size == 224
    assert world.towards.shape == (1, 512)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--config", "nowhere.yml"), "--config nowhere.yml: no such file"),
        (("--model_path", "nowhere.pt"), "nowhere.pt: no such file"),
        (("--clip_model_name", "ViT-Q/7"), "--clip_model_name ViT-Q/7: neither a file nor"),
        (("--direction", "nobody"), "no direction nobody: looked for"),
        (("--precision", "tf32", "--device", "cpu"), "--precision tf32 is only for CUDA devices"),
    ],
)
def test_refused_arguments(flags, message, capsys):
    assert guarded(bench.main, ["--steps", "2", *flags]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {message}")


def plain_and_ours(train):
    """The delta block after an image has been trained on by the plain schedule, and by asyrp.training."""
    unet, (block, _) = golden_unet("ddpm")
    x_0, x_T = smooth_images(1, size=32), torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    weights = torch.randn(16, 48, generator=torch.Generator().manual_seed(3))
    towards = F.normalize(weights[:1, :16], dim=-1)

    def encode(images):
        return F.normalize(F.adaptive_avg_pool2d(images, 4).flatten(1) @ weights.T, dim=-1)

    block = copy.deepcopy(block).requires_grad_()
    train(unet, x_0, x_T, block, torch.optim.SGD(block.parameters(), lr=0.1), encode, towards)
    return torch.cat([p.detach().flatten() for p in block.parameters()])


def test_plain_schedule_computes_the_same():
    schedule, steps = process.Schedule.linear(), process.timesteps(4, 999)
    alpha_bars = [*schedule.alpha_bars.tolist(), 1.0]

    def plain(unet, x_0, x_T, block, optimizer, encode, towards):
        plain_schedule.train(unet, x_0, x_T, alpha_bars, steps, block, 500, optimizer, encode, towards)

    def ours(unet, x_0, x_T, block, optimizer, encode, towards):
        loss = training.EditLoss(encode, towards, 1.0, training.Weights(clip=1, l1=1))
        batch, edited = Batch([0], ["0"], x_0, x_T), training.edit_steps(steps, 500)
        training.train_batch(
            unet, BlockDirection(block), batch, schedule, edited, loss, optimizer, PlainTrajectories(), torch.device("cpu")
        )

    before = plain_and_ours(lambda *args: None)
    learned = [plain_and_ours(train) - before for train in (plain, ours)]
    assert learned[0].norm() > 1e-3
    assert torch.allclose(*learned, rtol=1e-3, atol=1e-6)


# ---- what is counted ----------------------------------------------------------------------------------------------------


def test_multiply_adds_of_a_convolution():
    conv = torch.nn.Conv2d(3, 8, 3, padding=1, device="meta")
    assert gigamacs(lambda: conv(torch.empty(2, 3, 10, 10, device="meta"))) == 2 * 8 * 3 * 9 * 100 / 1e9


def test_live_bytes_peak():
    with LiveBytes() as memory:
        a = torch.empty(1000)
        b = a + 1  # two of them
        c = b.view(10, 100)  # no memory of its own
        del a, b
        d = c * 2
        del c, d
        e = torch.empty(1500)
    assert memory.peak == 2 * 4000
    assert memory.live == e.nbytes


@needs_recomputing
def test_checkpoint_decoder_reduces_training_peak():
    hollow = Hollow(load_config("avatar.yml"), ClipLoss(ROOT / "pretrained" / "avatar" / "clip.json"))
    assert hollow.training_peak(recompute=True) < hollow.training_peak(recompute=False)
    costs = hollow.passes()
    assert costs["decode"] < costs["decode and back"] < 2.2 * costs["decode"]


def test_training_at_256_px_fits_into_6_gib():
    """celeba.yml with a CLIP ViT-B/16, in float32, and room for the kernels' workspaces."""
    settings = {"embed_dim": 512, "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16}}
    with torch.device("meta"):
        clip = bench.open_clip.CLIP(**settings, text_cfg={"width": 512, "heads": 8, "layers": 12})
    mean = std = (0.5, 0.5, 0.5)
    hollow = Hollow(load_config("celeba.yml"), ClipLoss((clip, mean, std), "meta"))
    assert hollow.training_peak(recompute=False) < 4 * 2**30


def test_section_with_same_heading_is_replaced(tmp_path):
    path = tmp_path / "docs" / "b.md"
    for text in ("## a\n\none", "## b\n\ntwo", "## a\n\nthree"):
        write_section(path, text)
    assert path.read_text() == "# Benchmarks\n\n## a\n\nthree\n\n## b\n\ntwo\n"
