"""The directional CLIP loss, and loading of CLIP models.

Directional loss: Gal et al. 2021, "StyleGAN-NADA" (arXiv 2108.00946) eq. 2; prompt templates: Radford et al. 2021, "CLIP"
(arXiv 2103.00020) section 3.1.4. Models, tokenizer and templates come from open_clip.
"""

import json
import logging
import re
import warnings
import zipfile
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import open_clip
import torch
import torch.nn.functional as F
from open_clip.model import build_model_from_openai_state_dict
from open_clip.pretrained import download_pretrained, get_pretrained_cfg
from torch import nn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from utils import tensors
from utils.digests import digest
from utils.errors import UserError
from utils.text import one_line

log = logging.getLogger(__name__)

OPENAI_NAMES = ("ViT-B/16", "ViT-B/32", "ViT-L/14", "ViT-L/14@336px", "RN50", "RN101", "RN50x4", "RN50x16", "RN50x64")
FILE_SUFFIXES = {".json", ".safetensors", ".pt", ".pth", ".bin", ".ckpt"}
WEIGHT_SUFFIXES = (".safetensors", ".pt")
# File names that open_clip uses for a config and its weights.
CONFIG_OF_A_FOLDER = "open_clip_config.json"
WEIGHTS_OF_A_FOLDER = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
VOCABULARY = 49408  # size of CLIP's byte-pair vocabulary
TEMPLATES = tuple(t for t in open_clip.OPENAI_IMAGENET_TEMPLATES if t("") != "a photo of many .")
OPENAI_NORMALISATION = (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
# Errors that open_clip raises for invalid settings or tensors.
MISFITS = (KeyError, TypeError, ValueError, AttributeError, RuntimeError, AssertionError, ZeroDivisionError)


def directional_loss(source_features: torch.Tensor, edited_features: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """L_dir = 1 - cos(E_I(edited) - E_I(source), direction), one value per image, 0 (aligned) to 2 (opposite).

    source_features, edited_features: (B, D), normalised. direction: (1, D), normalised. -> (B,)
    """
    change = edited_features - source_features
    # 1e-7 keeps the first step finite, when nothing has changed yet.
    change = change / (change.norm(dim=-1, keepdim=True) + 1e-7)
    return 1 - (change * direction).sum(-1)


def clip_term(directional: torch.Tensor) -> torch.Tensor:
    """-log((2 - L_dir) / 2), elementwise: the CLIP term in the total loss of the 2023 release."""
    return -torch.log((2 - directional) / 2)


Loaded = tuple[nn.Module, Sequence[float], Sequence[float]]  # a CLIP, and the mean and std of its image normalisation


class ClipLoss(nn.Module):
    """The directional loss with a frozen CLIP in float32.

    model: an OpenAI name such as "ViT-B/16" (downloaded once, then cached); a weight file in OpenAI's layout; an open_clip
    config `name.json` with its weights next to it as `name.safetensors` or `name.pt`; or the result of `load_clip`. For a
    weight file with `name.json` or open_clip_config.json next to it, that config is used. Otherwise the activation is read from
    the code of a TorchScript archive; a plain state dict does not specify it and is loaded with QuickGELU and a warning.
    Raises UserError if there is no such model, or if its weights cannot be downloaded or do not fit.
    """

    def __init__(self, model: Path | str | Loaded, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.model: Any  # open_clip's models have no common type
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.model, mean, std = model if isinstance(model, tuple) else load_clip(model)
        self.model.float().eval().requires_grad_(False)
        image_size = self.model.visual.image_size
        self.image_size = image_size if isinstance(image_size, int) else min(image_size)
        self.tokenizer = open_clip.SimpleTokenizer(context_length=self.model.context_length)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(3, 1, 1))
        self._cosines: dict[tuple[str, str], float] = {}
        self._directions: dict[tuple[str, str, bool], torch.Tensor] = {}
        self._identity: str | None = None
        self.to(device)

    def identity(self) -> str:
        """A string that depends on the weights and every setting that the features depend on. Computed once."""
        if self._identity is None:
            settings = getattr(self.model, "described_as", str(self.model))
            self._identity = digest(settings, self.model.state_dict(), self.mean, self.std)
        return self._identity

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in [-1, 1], any size -> normalised features (B, D); differentiable."""
        images = (images.to(self.mean) + 1) / 2
        if min(images.shape[-2:]) != self.image_size:
            images = TF.resize(images, [self.image_size], interpolation=InterpolationMode.BICUBIC, antialias=True)
        images = TF.center_crop(images, [self.image_size])
        return F.normalize(self.model.encode_image((images - self.mean) / self.std).float(), dim=-1)

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> torch.Tensor:
        """List of N prompts -> normalised features (N, D). Raises UserError for a prompt that is too long."""
        # The tokenizer would truncate it silently. Two tokens are for the start and end marks.
        room = self.tokenizer.context_length - 2
        for prompt in prompts:
            if (length := len(self.tokenizer.encode(prompt))) > room:
                raise UserError(f'the prompt "{prompt}" has {length} tokens, but this CLIP reads at most {room}: shorten it')
        return F.normalize(self.model.encode_text(self.tokenizer(prompts).to(self.mean.device)), dim=-1)

    def cosine(self, src: str, trg: str) -> float:
        """Cosine of the two prompts' features, without templates -> float in [-1, 1]. Computed once per pair."""
        if (src, trg) not in self._cosines:
            source, target = self.encode_text([src, trg])
            self._cosines[src, trg] = torch.dot(source, target).item()
        return self._cosines[src, trg]

    def direction(self, src: str, trg: str, templates: bool = True) -> torch.Tensor:
        """The direction from prompt `src` to `trg` in CLIP space -> (1, D), normalised. Computed once per pair.

        Features are normalised per template, their differences averaged, and the mean normalised. Without `templates` the bare
        prompts are encoded. Raises UserError if the features of both prompts are equal.
        """
        if (src, trg, templates) not in self._directions:
            sentences = TEMPLATES if templates else [str]
            features = self.encode_text([sentence(prompt) for prompt in (src, trg) for sentence in sentences])
            source, target = features.chunk(2)
            change = (target - source).mean(0, keepdim=True)
            if change.norm() < 1e-5:
                raise UserError(f'CLIP sees no difference between the prompts "{src}" and "{trg}": change one of them')
            self._directions[src, trg, templates] = F.normalize(change, dim=-1)
        return self._directions[src, trg, templates]

    def directional(self, source_features: torch.Tensor, edited_images: torch.Tensor, src: str, trg: str) -> torch.Tensor:
        """L_dir per image -> (B,). `source_features` (B, D) from `encode_images`, so that many edits of one image share them.

        edited_images: (B, 3, H, W) in [-1, 1].
        """
        return directional_loss(source_features, self.encode_images(edited_images), self.direction(src, trg))

    def forward(self, source_images: torch.Tensor, src: str, edited_images: torch.Tensor, trg: str) -> torch.Tensor:
        """Mean L_dir over a batch, a scalar; images (B, 3, H, W) in [-1, 1]. Gradients reach the edited images only."""
        with torch.no_grad():
            source_features = self.encode_images(source_images)
        return self.directional(source_features, edited_images, src, trg).mean()


def load_clip(model: Path | str) -> Loaded:
    """Name or file of a model (see ClipLoss) -> (open_clip model on the CPU, mean, std of its image normalisation)."""
    config, weights, quick_gelu = _find(model)
    if config is not None:
        return from_config(config, weights)
    return from_openai_layout(weights, quick_gelu), *OPENAI_NORMALISATION


def files_of_clip(model: Path | str) -> list[Path]:
    """Name or file of a model -> paths of its files. OpenAI's weights are downloaded if missing. Raises UserError."""
    config, weights, _ = _find(model)
    return [path for path in (config, weights) if path is not None]


def _find(model: Path | str) -> tuple[Path | None, Path, bool | None]:
    """-> (config or None, weights, whether it uses QuickGELU, or None if the files determine that)."""
    path = Path(model)
    if path.suffix.lower() not in FILE_SUFFIXES and not path.is_file():
        return None, fetch_openai(str(model)), True
    if not path.is_file():
        raise UserError(f"{path}: no such file: check --clip_model_name")
    if path.suffix.lower() == ".json":
        return path, _weights_next_to(path), None
    return _config_next_to(path), path, None


def fetch_openai(name: str) -> Path:
    """An OpenAI name -> path of its weights, downloaded if they are not cached. Raises UserError."""
    known = {_open_clip_name(n): n for n in OPENAI_NAMES}
    if _open_clip_name(name) not in known:
        near = get_close_matches(name, OPENAI_NAMES, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"the names are {', '.join(OPENAI_NAMES)}"
        raise UserError(f"--clip_model_name {name}: neither a file nor an OpenAI CLIP model; {hint}")
    source = get_pretrained_cfg(_open_clip_name(name), "openai")
    try:
        try:
            # OpenAI's server first: it shares its cache with the `clip` package, and without a network it fails at once, while
            # the model hub is retried for most of a minute.
            return Path(download_pretrained(source, prefer_hf_hub=False))
        except HTTPError:
            return Path(download_pretrained(source))
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"the weights of CLIP {name} could not be downloaded ({one_line(error)}): check the network, or get "
            f"{source['url']} with a browser and pass the file as --clip_model_name"
        ) from error


def from_openai_layout(path: Path | str, quick_gelu: bool | None = None) -> nn.Module:
    """A file in OpenAI's layout (state dict or TorchScript archive; sizes follow from the tensors) -> model in float32.

    quick_gelu: whether the activation is QuickGELU rather than GELU; None: as in the file. Raises UserError if it does not fit.
    """
    state_dict = _state_dict(path)
    if quick_gelu is None:
        quick_gelu = _computes_quick_gelu(path)
    if quick_gelu is None:
        log.warning(
            f"{path} does not specify its activation: using QuickGELU, as in OpenAI's models; for GELU, put an "
            f"open_clip config next to it as {Path(path).with_suffix('.json').name}, or give one as --clip_model_name"
        )
        quick_gelu = True
    try:
        model = build_model_from_openai_state_dict(dict(state_dict), quick_gelu, cast_dtype=torch.float32).float()
    except MISFITS as error:
        hint = "if the weights have an open_clip config (.json), give that instead"
        raise UserError(f"{path} does not contain a CLIP in OpenAI's layout: {hint}") from error
    # Load the weights again, because open_clip has rounded them to half precision.
    tensors.load_strictly(model, state_dict, path, "OpenAI's CLIP")
    model.described_as = {"layout": "OpenAI", "quick_gelu": quick_gelu}
    return model


def _state_dict(path: Path | str) -> dict[str, torch.Tensor]:
    """The tensors of a state dict or a TorchScript archive, without the plain numbers in OpenAI's archives."""
    contents = _archived(path) if Path(path).is_file() and tensors.is_torchscript(path) else tensors.load(path)
    numbers = ("input_resolution", "context_length", "vocab_size")
    return {name: tensor for name, tensor in tensors.state_dict_of(contents, path).items() if name not in numbers}


def _archived(path: Path | str) -> dict[str, torch.Tensor]:
    try:
        with warnings.catch_warnings():  # TorchScript is deprecated, but it is the format that OpenAI publishes
            warnings.simplefilter("ignore", FutureWarning)
            return dict(torch.jit.load(path, map_location="cpu").state_dict())
    except tensors.UNREADABLE as error:
        raise UserError(f"{path} is a damaged TorchScript archive: download it again") from error


def _computes_quick_gelu(path: Path | str) -> bool | None:
    """Whether the code of a TorchScript archive computes QuickGELU (True) or GELU (False); None if unknown."""
    if not tensors.is_torchscript(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            files = [name for name in archive.namelist() if "/code/" in name and name.endswith(".py")]
            code = "\n".join(archive.read(name).decode() for name in files)
    except tensors.UNREADABLE as error:
        raise UserError(f"{path} is a damaged TorchScript archive: download it again") from error
    if re.search(r"torch\.gelu\([^)]*tanh", code):
        raise UserError(f"{path} uses the tanh form of GELU: give an open_clip config that says so as --clip_model_name")
    # QuickGELU is x * sigmoid(1.702 x).
    quick, exact = "torch.sigmoid(" in code, "torch.gelu(" in code
    return None if quick == exact else quick


def _config_next_to(path: Path) -> Path | None:
    """The open_clip config next to a weight file, or None."""
    for candidate in (path.with_suffix(".json"), path.with_name(CONFIG_OF_A_FOLDER)):
        if candidate.is_file() and not {"model_cfg", "embed_dim"}.isdisjoint(_read_settings(candidate)):
            return candidate
    return None


def _weights_next_to(path: Path) -> Path:
    """The weight file next to an open_clip config. Raises UserError if there is none."""
    names = [path.with_suffix(suffix).name for suffix in WEIGHT_SUFFIXES]
    names += WEIGHTS_OF_A_FOLDER if path.name == CONFIG_OF_A_FOLDER else ()
    weights = next((w for name in names if (w := path.with_name(name)).is_file()), None)
    if weights is None:
        raise UserError(f"{path}: its weights are missing: put {' or '.join(names)} next to it")
    return weights


def from_config(path: Path, weights: Path) -> Loaded:
    """An open_clip config, plain or with `model_cfg` and `preprocess_cfg`, and its weights -> (model, mean, std). Raises
    UserError."""
    settings = _read_settings(path)
    preprocess = settings.pop("preprocess_cfg", {})
    settings = settings.get("model_cfg", settings)
    try:
        if settings["text_cfg"].keys() & {"hf_model_name", "hf_tokenizer_name", "tokenizer_kwargs"}:
            raise ValueError("it needs another tokenizer than CLIP's own")
        model = open_clip.CLIP(**settings)
        if model.vocab_size < VOCABULARY:
            raise ValueError(f"vocab_size {model.vocab_size} is too small for CLIP's tokenizer")
    except MISFITS as error:
        raise UserError(f"{path} does not describe a CLIP that can be built: {one_line(error)}: correct it") from error
    state_dict = _state_dict(weights)
    computed = _computes_quick_gelu(weights)
    if computed not in (None, bool(settings.get("quick_gelu", False))):
        raise UserError(f"{path}: the archive {weights} uses quick_gelu {str(computed).lower()}: correct the config")
    tensors.load_strictly(model, state_dict, weights, f"the CLIP of {path.name}")
    model.described_as = settings
    return model, preprocess.get("mean", OPENAI_NORMALISATION[0]), preprocess.get("std", OPENAI_NORMALISATION[1])


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {one_line(error)}: correct it") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path} is not an open_clip config: it must be an object with embed_dim, vision_cfg and text_cfg")
    return settings


def _open_clip_name(name: str) -> str:
    return name.replace("/", "-").replace("@336px", "-336")
