"""What main.py does about files that others publish: missing networks, and directions as the 2023 release saved them."""

from urllib.error import URLError

import pytest
import torch
import yaml
from golden_weights import filled
from local_server import serving
from tiny_world import DDPM, SIZE, SMILE

from asyrp.config import load_config
from configs import paths_config
from models import build_unet
from utils.weights import PUBLISHED, Published

TRAIN = ("--run_train", *SMILE, "--do_test", "0")
TEST = ("--run_test", *SMILE)


@pytest.fixture(autouse=True)
def default_places(tmp_path, monkeypatch):
    """An empty folder in place of the repository, as far as weights and images go."""
    monkeypatch.setattr(paths_config, "ROOT", tmp_path)
    for name in PUBLISHED:
        monkeypatch.delenv(f"ASYRP_MODEL_{name}", raising=False)


@pytest.fixture
def celeba(tmp_path):
    """Flags for a tiny U-Net that stands in for the published one."""
    data = {"dataset": "CelebA_HQ", "category": "CelebA_HQ", "image_size": SIZE}
    (tmp_path / "celeba.yml").write_text(yaml.safe_dump({"data": data, "model": DDPM}))
    return ("--config", tmp_path / "celeba.yml")


# ---- networks ---------------------------------------------------------------------------------------------------------------


def test_missing_unet_is_downloaded_once(run, tiny, celeba, tmp_path, monkeypatch, capsys):
    with serving() as server:
        server.files["/ddpm.pt"] = (tiny.folder / "ddpm.pt").read_bytes()
        monkeypatch.setitem(PUBLISHED, "CELEBA_HQ", Published("https://page", "file", (server.url("/ddpm.pt"),)))
        for _ in range(2):
            assert run("--just_precompute", "--n_precomp_img", "1", *celeba, weights=False) == 0
    assert len(server.asked) == 1
    said = capsys.readouterr().err
    assert said.count(f"downloading {tmp_path / 'pretrained' / 'celeba_hq.ckpt'} from {server.url('/ddpm.pt')}\n") == 1


def test_missing_unet_that_cannot_be_downloaded(run, celeba, tmp_path, monkeypatch):
    with serving() as server:
        monkeypatch.setitem(PUBLISHED, "CELEBA_HQ", Published("https://page", "file", (server.url("/gone"),)))
        message = run.error("--just_precompute", *celeba, weights=False)
    path = tmp_path / "pretrained" / "celeba_hq.ckpt"
    assert message.endswith(f"returned 404): get file from https://page and save it as {path}")


def test_given_paths_are_not_downloaded(run, celeba, closed, monkeypatch):
    monkeypatch.setitem(PUBLISHED, "CELEBA_HQ", Published("https://page", "file", (closed,)))
    assert "could not be downloaded" in run.error("--just_precompute", *celeba, weights=False)
    assert "mine.pt: no such file: check the path" in run.error(
        "--just_precompute", *celeba, "--model_path", "mine.pt", weights=False
    )
    monkeypatch.setenv("ASYRP_MODEL_CELEBA_HQ", "mine.ckpt")
    assert "mine.ckpt: no such file: check the path" in run.error("--just_precompute", *celeba, weights=False)


def test_unpublished_weights_are_a_missing_file(run):
    said = run.error("--just_precompute", "--config", "avatar.yml", weights=False)
    assert "avatar/ddpm.pt: no such file: check the path" in said
    assert "dataset TINY, category CUSTOM: pass --model_path" in run.error("--just_precompute", weights=False)


def test_missing_face_recogniser(run, hub, monkeypatch):
    """It is on the hub, which has not got it here."""
    hub.use_here(monkeypatch)
    message = run.error(*TRAIN, "--use_id_loss", "--id_loss_w", "1")
    assert (
        "model_ir_se50.pth could not be downloaded (lithiumice/insightface is not available from the Hugging Face hub"
        in message
    )
    assert "get model_ir_se50.pth from https://github.com/TreB1eN" in message
    assert any("lithiumice/insightface" in path for path, _ in hub.asked)


def test_clip_without_a_network(run, tmp_path, monkeypatch):
    def no_network(url):
        raise URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    monkeypatch.setenv("HOME", str(tmp_path))  # where a copy may lie
    message = run.error(*TRAIN, "--clip_model_name", "ViT-B/16")
    assert "the weights of CLIP ViT-B/16 could not be downloaded" in message
    assert "/ViT-B-16.pt with a browser and pass the file as --clip_model_name" in message


# ---- directions -------------------------------------------------------------------------------------------------------------

NAME = "smiling_LC_CUSTOM_t999_ninv4_ngen4_0.pth"
SCHEDULER = {"step_size": 3, "gamma": 0.1, "base_lrs": [0.5], "last_epoch": 1, "_step_count": 2, "verbose": False}
SCHEDULER |= {"_get_lr_called_within_step": False, "_last_lr": [0.5]}


@pytest.fixture(params=["ddpm", "adm"])
def release(request, tiny, tmp_path, monkeypatch):
    """A direction as the 2023 release saved it on its GPU, under checkpoint/ -> (name of the model, the direction)."""
    block = build_unet(load_config(tiny.folder / f"{request.param}.yml")).new_delta_block()
    weights = filled({key: value.shape for key, value in block.state_dict().items()})
    optimizer = torch.optim.SGD(block.parameters(), lr=0.5).state_dict()
    (tmp_path / "checkpoint").mkdir()
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    torch.save({"0": weights, "optimizer": optimizer, "scheduler": SCHEDULER}, tmp_path / "checkpoint" / NAME)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    return request.param, weights


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to load it to")
def test_file_is_one_of_a_gpu(release):
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(f"checkpoint/{NAME}", weights_only=True)


def test_published_direction_by_every_name(run, release, tmp_path):
    model, _ = release
    ways = {
        "file": ("--exp", "runs/file", "--manual_checkpoint_name", NAME),
        "path": ("--exp", "runs/path", "--manual_checkpoint_name", f"checkpoint/{NAME}"),
        "other": ("--exp", "runs/other", "--load_from_checkpoint", "smiling"),
        "smiling": ("--exp", "runs/smiling"),
        "combined": ("--exp", "runs/combined", "--multiple_attr", "smiling"),
        "plain": ("--exp", "runs/plain", "--pass_editing"),
    }
    pictures = {}
    for way, flags in ways.items():
        assert run(*TEST, *flags, model=model) == 0
        picture = tmp_path / f"runs/{way}_LC_CUSTOM_t999_ninv4_ngen4/test_images/4/all.png"
        pictures[way] = picture.read_bytes()
    assert pictures.pop("plain") not in pictures.values()
    assert len(set(pictures.values())) == 1


def test_training_resumes_from_published_direction(run, release):
    model, before = release
    assert run(*TRAIN, "--exp", "runs/smiling", "--n_iter", "2", model=model) == 0
    after = torch.load(f"checkpoint/{NAME.replace('_0.pth', '_1.pth')}", weights_only=True)
    assert after["0"].keys() == before.keys()
    assert any(not torch.equal(after["0"][key], before[key]) for key in before)
    assert after["optimizer"]["param_groups"][0]["lr"] == 0.5
    assert after["scheduler"]["last_epoch"] == 2  # one epoch further, and again before that epoch's step
