"""Published weights and their sources."""

from typing import NamedTuple

# Prefixes of sources that are downloaded with gdown and with huggingface_hub.
GOOGLE_DRIVE, HUB = "https://drive.google.com/uc?id=", "https://huggingface.co/"


class Published(NamedTuple):
    """A published weight file.

    page, file: web page and file name for a manual download. sources: URLs, tried in order. parameters: of the network; a file
    has at least four bytes for each. size (bytes), sha256 (hexadecimal), licence: if known.
    """

    page: str
    file: str
    sources: tuple[str, ...]
    parameters: int | None = None
    size: int | None = None
    sha256: str | None = None
    licence: str | None = None

    @property
    def least_size(self):
        """Smallest possible size of the file in bytes."""
        return self.size or 4 * (self.parameters or 0)


def _hub(repository, file):
    return f"{HUB}{repository}/resolve/main/{file}"


def _diffusers(repository):
    """The DDPM++ of Ho et al. with the tensor names of diffusers, which models/convert.py reads."""
    return tuple(_hub(repository, f"diffusion_pytorch_model.{suffix}") for suffix in ("safetensors", "bin"))


_DDPM, _ADM = 113_673_219, 93_563_910
_P2 = "https://github.com/jychoi118/P2-weighting"


def _on_drive(file, *ids, page=_P2):
    """A network of P2-weighting or ILVR, on Google Drive; both have the same architecture."""
    return Published(page, file, tuple(GOOGLE_DRIVE + name for name in ids), _ADM)


# Name of a Place in configs/paths_config.py -> its published file.
PUBLISHED = {
    "CELEBA_HQ": Published(
        page="https://huggingface.co/gwang-kim/DiffusionCLIP-CelebA_HQ",
        file="celeba_hq.ckpt",
        sources=(
            _hub("gwang-kim/DiffusionCLIP-CelebA_HQ", "celeba_hq.ckpt"),
            GOOGLE_DRIVE + "1wSoA5fm_d6JBZk4RZ1SzWLMgev4WqH21",
            *_diffusers("google/ddpm-ema-celebahq-256"),
        ),
        parameters=_DDPM,
    ),
    "BEDROOM": Published(
        page="https://huggingface.co/google/ddpm-ema-bedroom-256",
        file="diffusion_pytorch_model.bin",
        sources=_diffusers("google/ddpm-ema-bedroom-256"),
        parameters=_DDPM,
        licence="Apache-2.0",
    ),
    "CHURCH": Published(
        page="https://huggingface.co/google/ddpm-ema-church-256",
        file="diffusion_pytorch_model.bin",
        sources=_diffusers("google/ddpm-ema-church-256"),
        parameters=_DDPM,
        licence="Apache-2.0",
    ),
    "CELEBA_HQ_P2": _on_drive("celebahq_p2.pt", "1ag8JnvKGKo6L6avO_dTFEBNWJo2jZIDF", "1rJO1QSm1Rqp6JmHHNKcPni6maqbgKj0R"),
    "FFHQ_P2": _on_drive("ffhq_p2.pt", "1nlCPBqOqSeqAQ8F4noThbnmr4okriwTc"),
    "AFHQ_DOG_P2": _on_drive("afhq_p2.pt", "1f6_swzSPNJXs9FWf6AW585bv7dORzRWf"),
    "METFACE": _on_drive("metface_p2.pt", "1swjgSB1WFF9JnBR6W6Newnfzdyo1nPYf"),
    "CUB": _on_drive("cub_p2.pt", "13RKF9MLNR3zpMMNchW7JtsjktVMgS0rK"),
    "FLOWER": _on_drive("flower_p2.pt", "1d6DDKAEu_iwNzxlBaVrETHBcc6oF5jYf"),
    "FFHQ": _on_drive("ffhq_10m.pt", "117Y6Z6-Hg6TMZVIXMmgYbpZy7QvTXign", "1BGwhRWUoguF-D8wlZ65tf227gp3cDUDh"),
    "AFHQ_DOG": _on_drive("afhq_dog_4m.pt", "14OG_o3aa8Hxmfu36IIRyOgRwEP6ngLdo", page="https://github.com/jychoi118/ilvr_adm"),
    "IMAGENET": Published(
        page="https://github.com/openai/guided-diffusion",
        file="256x256_diffusion_uncond.pt",
        sources=("https://openaipublic.blob.core.windows.net/diffusion/jul-2021/256x256_diffusion_uncond.pt",),
        parameters=552_814_086,
    ),
    "FID_INCEPTION": Published(
        page="https://github.com/toshas/torch-fidelity/releases/tag/v0.2.0",
        file="weights-inception-2015-12-05-6726825d.pth",
        sources=(
            "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
        ),
        parameters=23_850_960,
    ),
    "IR_SE50": Published(
        page="https://github.com/TreB1eN/InsightFace_Pytorch",
        file="model_ir_se50.pth",
        sources=(_hub("lithiumice/insightface", "InsightFace_Pytorch+model_ir_se50.pth"),),
        parameters=43_797_696,
    ),
}

# The directions of the 2023 release. The folder is listed when they are downloaded.
DIRECTIONS_PAGE = "https://github.com/kwonminki/Asyrp_official"
DIRECTIONS_LISTING = "https://api.github.com/repos/kwonminki/Asyrp_official/contents/checkpoint"
