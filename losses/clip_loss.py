"""The directional CLIP loss, and the CLIP models it can be measured with.

Directional loss: Gal et al. 2021, "StyleGAN-NADA" (arXiv 2108.00946) eq. 2; prompt templates: Radford et al. 2021, "CLIP"
(arXiv 2103.00020) section 3.1.4. Models, tokenizer and templates are open_clip's.
"""

import json
import warnings
import zipfile
from difflib import get_close_matches
from pathlib import Path
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
from utils.errors import UserError

OPENAI_NAMES = ("ViT-B/16", "ViT-B/32", "ViT-L/14", "ViT-L/14@336px", "RN50", "RN101", "RN50x4", "RN50x16", "RN50x64")
FILE_SUFFIXES = {".json", ".safetensors", ".pt", ".pth", ".bin", ".ckpt"}
WEIGHT_SUFFIXES = (".safetensors", ".pt")
VOCABULARY = 49408  # of CLIP's byte-pair tokenizer
TEMPLATES = tuple(t for t in open_clip.OPENAI_IMAGENET_TEMPLATES if t("") != "a photo of many .")
# Whatever open_clip raises when settings or tensors make no model.
MISFITS = (KeyError, TypeError, ValueError, AttributeError, RuntimeError, AssertionError, ZeroDivisionError)


def directional_loss(source_features, edited_features, direction):
    """L_dir = 1 - cos(E_I(edited) - E_I(source), direction), one value per image, 0 (aligned) to 2 (opposite).

    source_features, edited_features: (B, D), normalised. direction: (1, D), normalised. -> (B,)
    """
    change = edited_features - source_features
    # 1e-7 keeps the first step finite when nothing has changed yet.
    change = change / (change.norm(dim=-1, keepdim=True) + 1e-7)
    return 1 - (change * direction).sum(-1)


def clip_term(directional):
    """-log((2 - L_dir) / 2), elementwise: the form in which the directional loss enters the total of the 2023 release."""
    return -torch.log((2 - directional) / 2)


class ClipLoss(nn.Module):
    """CLIP, frozen and in float32, as a judge of image changes.

    model: an OpenAI name such as "ViT-B/16" (fetched once, then cached); a file of weights in OpenAI's layout; or an
    open_clip config `name.json` with its weights beside it as `name.safetensors` or `name.pt`; or what `load_clip` returns.
    Raises UserError when there is no such model, or its weights cannot be fetched or do not fit.
    """

    def __init__(self, model, device="cpu"):
        super().__init__()
        self.model, mean, std = model if isinstance(model, tuple) else load_clip(model)
        self.model.float().eval().requires_grad_(False)
        image_size = self.model.visual.image_size
        self.image_size = image_size if isinstance(image_size, int) else min(image_size)
        self.tokenizer = open_clip.SimpleTokenizer(context_length=self.model.context_length)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(3, 1, 1))
        self._cosines, self._directions = {}, {}
        self.to(device)

    def identity(self):
        from utils.digests import digest

        return digest(dict(self.model.state_dict()))

    def encode_images(self, images):
        """(B, 3, H, W) in [-1, 1], any size -> normalised features (B, D); differentiable."""
        images = (images.to(self.mean) + 1) / 2
        if min(images.shape[-2:]) != self.image_size:
            images = TF.resize(images, [self.image_size], interpolation=InterpolationMode.BICUBIC, antialias=True)
        images = TF.center_crop(images, [self.image_size])
        return F.normalize(self.model.encode_image((images - self.mean) / self.std).float(), dim=-1)

    @torch.no_grad()
    def encode_text(self, prompts):
        """List of N prompts -> normalised features (N, D). Raises UserError for a prompt that CLIP cannot read to its end."""
        # The tokenizer itself would cut it without a word; two places go to the start and end marks.
        room = self.tokenizer.context_length - 2
        for prompt in prompts:
            if (length := len(self.tokenizer.encode(prompt))) > room:
                raise UserError(f'the prompt "{prompt}" has {length} tokens and this CLIP reads {room}: shorten it')
        return F.normalize(self.model.encode_text(self.tokenizer(prompts).to(self.mean.device)), dim=-1)

    def cosine(self, src, trg):
        """Cosine of the two prompts' features, without templates -> float in [-1, 1]. Computed once per pair."""
        if (src, trg) not in self._cosines:
            source, target = self.encode_text([src, trg])
            self._cosines[src, trg] = torch.dot(source, target).item()
        return self._cosines[src, trg]

    def direction(self, src, trg, templates=True):
        """The direction of an edit from prompt `src` to `trg` in CLIP's space -> (1, D), normalised. Computed once per pair.

        Features are normalised per template; their differences are averaged as they are, and the mean is normalised. Without
        `templates` the prompts are read as they are. Raises UserError when CLIP sees no difference between the prompts.
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

    def directional(self, source_features, edited_images, src, trg):
        """L_dir per image -> (B,). `source_features` (B, D) from `encode_images`, so that many edits of one image share them.

        edited_images: (B, 3, H, W) in [-1, 1].
        """
        return directional_loss(source_features, self.encode_images(edited_images), self.direction(src, trg))

    def forward(self, source_images, src, edited_images, trg):
        """Mean L_dir over a batch, a scalar; images (B, 3, H, W) in [-1, 1]. Gradients reach the edited images only."""
        with torch.no_grad():
            source_features = self.encode_images(source_images)
        return self.directional(source_features, edited_images, src, trg).mean()


def load_clip(model):
    """What names a model (see ClipLoss) -> (open_clip model on the CPU, mean, std of its image normalisation)."""
    path = Path(model)
    if path.suffix.lower() not in FILE_SUFFIXES and not path.is_file():
        path = fetch_openai(str(model))
    if path.suffix.lower() == ".json":
        return from_config(path)
    return from_openai_layout(path), open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD


def fetch_openai(name):
    """An OpenAI name -> path of its weights, from the cache or the network. Raises UserError."""
    known = {_open_clip_name(n): n for n in OPENAI_NAMES}
    if _open_clip_name(name) not in known:
        near = get_close_matches(name, OPENAI_NAMES, n=1, cutoff=0.4)
        hint = f"the nearest is {near[0]}" if near else f"the names are {', '.join(OPENAI_NAMES)}"
        raise UserError(f"--clip_model_name {name}: neither a file nor one of OpenAI's CLIP models; {hint}")
    source = get_pretrained_cfg(_open_clip_name(name), "openai")
    try:
        try:
            # OpenAI's own server first: its cache is the one that the `clip` package fills, and without a network it fails
            # at once, where the model hub is tried over and over for most of a minute.
            return Path(download_pretrained(source, prefer_hf_hub=False))
        except HTTPError:
            return Path(download_pretrained(source))
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"the weights of CLIP {name} could not be fetched ({_line(error)}): check the network, or get {source['url']} "
            "with a browser and give the file with --clip_model_name"
        ) from error


def from_openai_layout(path):
    """A file in OpenAI's layout (state dict or TorchScript archive; sizes are read off the tensors) -> model in float32."""
    state_dict = _openai_state_dict(path)
    for key in ("input_resolution", "context_length", "vocab_size"):  # plain numbers in OpenAI's archives
        state_dict.pop(key, None)
    try:
        model = build_model_from_openai_state_dict(dict(state_dict), cast_dtype=torch.float32).float()
    except MISFITS as error:
        hint = "where the weights have an open_clip config (.json), name that instead"
        raise UserError(f"{path} does not hold a CLIP in OpenAI's layout; {hint}") from error
    # open_clip has rounded the weights to half precision on the way in.
    tensors.load_strictly(model, state_dict, path, "OpenAI's CLIP")
    return model


def _openai_state_dict(path):
    if Path(path).is_file() and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            is_torchscript = any(name.endswith("/constants.pkl") for name in archive.namelist())
        if is_torchscript:
            with warnings.catch_warnings():  # torch calls TorchScript deprecated; OpenAI publishes nothing else
                warnings.simplefilter("ignore", FutureWarning)
                contents = dict(torch.jit.load(path, map_location="cpu").state_dict())
            return tensors.state_dict_of(contents, path)
    return tensors.state_dict_of(tensors.load(path), path)


def from_config(path):
    """An open_clip config, plain or with `model_cfg` and `preprocess_cfg`, and the weights beside it -> (model, mean, std)."""
    settings = _read_settings(path)
    preprocess = settings.pop("preprocess_cfg", {})
    settings = settings.get("model_cfg", settings)
    weights = next((w for suffix in WEIGHT_SUFFIXES if (w := path.with_suffix(suffix)).is_file()), None)
    if weights is None:
        names = " or ".join(path.with_suffix(suffix).name for suffix in WEIGHT_SUFFIXES)
        raise UserError(f"{path}: its weights are missing; put {names} beside it")
    try:
        if settings["text_cfg"].keys() & {"hf_model_name", "hf_tokenizer_name", "tokenizer_kwargs"}:
            raise ValueError("it wants another tokenizer than CLIP's own")
        model = open_clip.CLIP(**settings)
        if model.vocab_size < VOCABULARY:
            raise ValueError(f"vocab_size {model.vocab_size} is too small for CLIP's tokenizer")
    except MISFITS as error:
        raise UserError(f"{path} does not describe a CLIP that can be built here: {_line(error)}; correct it") from error
    state_dict = tensors.state_dict_of(tensors.load(weights), weights)
    tensors.load_strictly(model, state_dict, weights, f"the CLIP of {path.name}")
    return model, preprocess.get("mean", open_clip.OPENAI_DATASET_MEAN), preprocess.get("std", open_clip.OPENAI_DATASET_STD)


def _read_settings(path):
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path given as --clip_model_name")
    try:
        settings = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {_line(error)}; correct it") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path} is no open_clip config: an object with embed_dim, vision_cfg and text_cfg is expected")
    return settings


def _open_clip_name(name):
    return name.replace("/", "-").replace("@336px", "-336")


def _line(error):
    return " ".join(str(error).split()) or type(error).__name__
