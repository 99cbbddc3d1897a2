"""A frozen diffusion model: its U-Net and schedule on a device, and the identity that results made with it refer to."""

import logging
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from asyrp import hspace, process
from asyrp.acceleration.fast_unet import FastUNet, set_tf32
from asyrp.blending import InRegion, MaskOfChange
from asyrp.config import CONFIGS, Config, load_config
from asyrp.noise_maps import noise_maps, replayed
from configs.paths_config import weight_place
from models import build_unet
from models.convert import is_diffusers, read_weights_of
from models.unet import UNet
from utils import tensors
from utils.devices import find_device, to_device
from utils.digests import digest
from utils.download import weights_at
from utils.errors import UserError

if TYPE_CHECKING:
    from asyrp.directions import Direction

log = logging.getLogger(__name__)


def open_model(
    config: Config | Path | str,
    weights: Path | str | None = None,
    device: torch.device | str | None = None,
    precision: str = "fp32",
    compiled: bool = False,
    recompute: bool = False,
) -> "Model":
    """Open a model that can invert, generate and edit -> Model.

        config: a name under configs/ ("celeba.yml"), the path of a YAML file, the folder of a diffusers pipeline or its name on
        the Hugging Face hub ("google/ddpm-celebahq-256"), or a Config. weights: a file; by default the pipeline's, or the one
        in configs/paths_config.py, which is downloaded if it is missing and published. device: "cpu", "cuda", "cuda:1"; by
        default cuda if available. precision of the networks: "fp32", "tf32", "bf16" or "fp16"; this sets PyTorch's global
        switches for TF32. compiled, recompute: see FastUNet.

        Raises UserError for an invalid YAML file, for weights that are missing, damaged or of another architecture, and for a
    device that is not available.
    """
    config = config if isinstance(config, Config) else load_config(config)
    device = find_device(device)
    set_tf32(precision, device)  # before looking for the weights, so that a wrong flag is reported first
    path = Path(weights) if weights is not None else weights_of(config)
    return model_of(config, load_unet(config, path), device, precision, compiled, recompute)


def weights_of(config: Config) -> Path:
    """A Config -> path of its weights, which are downloaded if they are missing and published. Raises UserError."""
    return config.pipeline.weights() if config.pipeline else weights_at(weight_place(config))


def model_of(
    config: Config,
    unet: UNet,
    device: torch.device | str | None = None,
    precision: str = "fp32",
    compiled: bool = False,
    recompute: bool = False,
    layout: str | None = None,
) -> "Model":
    """A Config and a U-Net with its weights loaded -> Model, which takes over the U-Net.

    The other arguments are those of `open_model`. layout: see FastUNet.
    """
    device = find_device(device)
    set_tf32(precision, device)
    architecture, identity = name_of(unet, config)
    fast = FastUNet(unet.to(device), precision, compiled, recompute, layout)
    return Model(config, fast, process.Schedule.of(config.diffusion), device, precision, architecture, identity)


def load_unet(config: Config, path: Path | str) -> UNet:
    """A Config and a weight file -> frozen U-Net on the CPU, in eval mode. Raises UserError if the weights do not fit."""
    with torch.device("meta"):
        # Allocate no memory for initial weights, which are replaced below.
        unet = build_unet(config)
    state_dict = read_weights_of(unet, path)
    try:
        tensors.load_strictly(unet, state_dict, path, f"the U-Net of {config.path.name}")
    except tensors.Misfit as error:
        raise UserError(f"{error.fault}; {_remedy(error.state_dict)}") from error
    return unet


def name_of(unet: UNet, config: Config) -> tuple[str, str]:
    """-> (architecture, identity), two strings. The architecture depends on every setting of the network; the identity also
    depends on the weights and the noise schedule."""
    kind = f"{unet.settings['type']}-{config.data.image_size}"
    architecture = digest(unet.settings)
    schedule = process.Schedule.of(config.diffusion)
    return f"{kind}-{architecture}", f"{kind}-{digest(architecture, schedule.betas, dict(unet.state_dict()))}"


class Model:
    """A frozen model: `unet` (a FastUNet: encode, decode), `schedule`, `image_size`, `identity`, `architecture`, `device`.

    Images are (B, 3, image_size, image_size) in [-1, 1]. `n_steps` counts timesteps evenly spaced from 0 to t_0; 0 means every
    timestep. t_0=None is the last timestep, T - 1.
    """

    def __init__(
        self,
        config: Config,
        unet: FastUNet,
        schedule: process.Schedule,
        device: torch.device,
        precision: str,
        architecture: str,
        identity: str,
    ) -> None:
        self.config, self.unet, self.schedule = config, unet, schedule
        self.device, self.precision = device, precision
        self.architecture, self.identity = architecture, identity
        self.image_size = config.data.image_size
        self.inversion = config.inversion

    @property
    def T(self) -> int:
        return len(self.schedule.betas)

    def timesteps(self, n_steps: int = 40, t_0: int | None = None) -> list[int]:
        """Ascending timesteps (list of int). Raises UserError for a t_0 or a number of steps outside the schedule."""
        t_0 = self.T - 1 if t_0 is None else t_0
        if not 1 <= t_0 < self.T:
            raise UserError(f"--t_0 {t_0}: this model has {self.T} timesteps, 0 to {self.T - 1}; give 1 to {self.T - 1}")
        if n_steps == 1 or not 0 <= n_steps <= t_0 + 1:
            raise UserError(f"{n_steps} steps: must be 2 to {t_0 + 1}, or 0 for every timestep up to t_0 {t_0}")
        return process.timesteps(n_steps, t_0)

    def invert(
        self,
        images: torch.Tensor,
        n_steps: int = 40,
        t_0: int | None = None,
        callback: process.Observer | None = None,
        inversion: str | None = None,
    ) -> torch.Tensor:
        """x_0 (B, 3, H, W) in [-1, 1] -> x_T (B, 3, H, W) on the model's device, by DDIM inversion. callback: see
        `process.invert`. inversion: "ddim" or "fixed_point"; by default that of the config (section `editing`), or "ddim".
        """
        self._check(images)
        iterations, timesteps = process.ITERATIONS[inversion or self.inversion], self.timesteps(n_steps, t_0)
        return process.invert(self.unet, to_device(images, self.device), self.schedule, timesteps, callback, iterations)

    def noise_maps(
        self, images: torch.Tensor, n_steps: int = 40, t_0: int | None = None, seed: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x_0 -> (x_T, z), the edit-friendly DDPM inversion (see asyrp/noise_maps.py); pass z to `generate` and `edit` with the
        same number of steps. The noise is drawn from `seed` and each image's position in the batch."""
        self._check(images)
        noise, images = process.image_noise(seed, range(len(images))), to_device(images, self.device)
        return noise_maps(self.unet, images, self.schedule, self.timesteps(n_steps, t_0), noise)

    def generate(
        self, x_T: torch.Tensor, n_steps: int = 40, t_0: int | None = None, z: torch.Tensor | None = None
    ) -> torch.Tensor:
        """x_T -> x_0 (B, 3, H, W) by plain DDIM, or with the noise maps z."""
        self._check(x_T)
        timesteps = self.timesteps(n_steps, t_0)
        return self.run(x_T, timesteps, **self._replayed(z, timesteps))

    def edit(
        self,
        x_T: torch.Tensor,
        directions: "Direction | Sequence[Direction]",
        strengths: Sequence[float] | None = None,
        n_steps: int = 40,
        t_edit: int | None = None,
        t_boost: int = 0,
        seed: int = 0,
        t_0: int | None = None,
        mask: torch.Tensor | MaskOfChange | None = None,
        z: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """x_T -> edited x_0 by the asymmetric process (paper eq. 6 and 7).

        directions: a Direction or a list of them. strengths: one number per direction, 1 by default, which is the strength it
        was trained at, for any `n_steps`. t_edit: for all directions; by default each one uses the t_edit of its record.
        t_boost: below it noise is added back, drawn from `seed` and each image's position in the batch. mask: where the edit
        acts, 0 to 1, a tensor (B or 1, 1, H, W) or a function (see `blending.InRegion`); everywhere by default. z: the noise
        maps that `noise_maps` returned with this x_T; they replace drawn noise and quality boosting.

        Raises UserError if nothing would be edited, or if a t_edit is unknown.
        """
        self._check(x_T)
        used = list(directions) if isinstance(directions, Sequence) else [directions]
        if not used:
            raise UserError("no direction was given, so nothing would be edited: use `generate` for the unedited image")
        strengths = [1.0] * len(used) if strengths is None else [float(s) for s in strengths]
        if len(strengths) != len(used):
            raise UserError(f"{len(used)} directions but {len(strengths)} strengths: give one strength per direction")
        timesteps = self.timesteps(n_steps, t_0)
        t_edits = [interval_of(direction, t_edit) for direction in used]
        check_interval(timesteps, t_edits, [direction.name for direction in used])
        c = [s * d.scale(len(timesteps), len(used)) for s, d in zip(strengths, used, strict=True)]
        edit = hspace.Edit(used, c, t_edits=t_edits)
        noisy = {"t_boost": t_boost, "noise": process.image_noise(seed, range(len(x_T)))} | self._replayed(z, timesteps)
        return self.run(x_T, timesteps, edit, mask, t_edit=edit.t_edit, **noisy)

    def run(
        self,
        x_T: torch.Tensor,
        timesteps: Sequence[int],
        edit: process.EditOfH | None = None,
        mask: torch.Tensor | MaskOfChange | None = None,
        **settings: Any,
    ) -> torch.Tensor:
        """`process.generate` with this model's U-Net and schedule -> x_0. mask: as in `edit`; settings: t_edit, t_boost, noise
        and the other arguments of `process.generate`."""
        x_T = to_device(x_T, self.device)
        paired = mask is None and self.unet.pays_to_pair(len(x_T))
        return process.generate(self.within(mask), x_T, self.schedule, timesteps, edit=edit, paired=paired, **settings)

    def _replayed(self, z: torch.Tensor | None, timesteps: Sequence[int]) -> dict[str, Any]:
        if z is not None and z.shape[1] != len(timesteps):
            raise UserError(
                f"z has {z.shape[1]} steps, not {len(timesteps)}: use the n_steps that `noise_maps` was called with"
            )
        return replayed(z, timesteps)

    def within(self, mask: torch.Tensor | MaskOfChange | None) -> FastUNet | InRegion:
        """The U-Net, with edits restricted to `mask` if there is one."""
        return self.unet if mask is None else InRegion(self.unet, mask)

    def _check(self, images: torch.Tensor) -> None:
        shape, size = tuple(images.shape), self.image_size
        if len(shape) != 4 or shape[1:] != (3, size, size):
            raise UserError(f"this model takes tensors of shape (B, 3, {size}, {size}), not {shape}")


def interval_of(direction: "Direction", t_edit: int | None = None) -> int:
    """The t_edit of a direction: the given one, else the one in its record. Raises UserError if neither is known."""
    known = t_edit if t_edit is not None else direction.record.get("t_edit")
    if known is None:
        raise UserError(f"the record of {direction.name} has no t_edit: give one")
    return known


def check_interval(timesteps: Sequence[int], t_edits: Sequence[int], names: Sequence[str]) -> None:
    """Raise UserError for a direction whose editing interval contains no timestep: it would edit nothing."""
    for t_edit, name in zip(t_edits, names, strict=True):
        if t_edit > timesteps[-1]:
            raise UserError(
                f"t_edit {t_edit} of {name} is above every timestep (the highest is {timesteps[-1]}), so nothing would be "
                "edited: lower t_edit or raise t_0"
            )


# ---- weights that do not fit ------------------------------------------------------------------------------------------------


def fitting_configs(state_dict: dict[str, torch.Tensor]) -> list[str]:
    """The configs of the repository whose U-Net or delta block has exactly these names and shapes -> list of file names."""
    return [name for name, networks in _shipped_shapes().items() if _shapes(state_dict) in networks]


@cache
def _shipped_shapes() -> dict[str, list[dict[str, torch.Size]]]:
    shapes = {}
    for path in sorted(CONFIGS.glob("*.yml")):
        # A user's own file there may be invalid; that is not the error to report here.
        with suppress(UserError, ValueError), torch.device("meta"):
            unet = build_unet(load_config(str(path)))
            shapes[path.name] = [_shapes(module.state_dict()) for module in (unet, unet.new_delta_block())]
    return shapes


def _shapes(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in state_dict.items()}


def _remedy(state_dict: dict[str, torch.Tensor]) -> str:
    if names := fitting_configs(state_dict):
        return f"they would fit {', '.join(names)}"
    if "conv_in.weight" in state_dict and "down.0.block.0.conv1.weight" in state_dict:
        return f"these are DDPM++ weights with ch {state_dict['conv_in.weight'].shape[0]}: check the config's model section"
    if "input_blocks.0.0.weight" in state_dict:
        ch = state_dict["input_blocks.0.0.weight"].shape[0]
        return f"these are iDDPM/ADM weights with ch {ch}: check the config's model section"
    if is_diffusers(state_dict):
        return "these are weights of another UNet2DModel: pass the folder of their own pipeline as --config"
    if "0" in state_dict or "layer_0" in state_dict:
        return "this looks like a direction, not a U-Net: check --model_path"
    return "use the weight file that belongs to this config"
