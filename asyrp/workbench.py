"""What the modes of the command line work with, made from the flags and the configuration when first needed."""

import logging
from functools import cached_property
from pathlib import Path

import torch

from asyrp import checkpoints, intervals, process
from asyrp.acceleration.fast_unet import FastUNet, keep_freed_memory, set_tf32
from asyrp.config import ROOT
from utils.errors import UserError
from asyrp.experiment import Experiment
from asyrp.hspace import BlockDirection
from asyrp.data.pairs import Latents, SampledLatents, cache_folder
from asyrp.data.layouts import check_flags, open_split
from asyrp.origin import PlainTrajectories
from asyrp.acceleration.overlap import Background, to_device
from asyrp.evaluation.segmenter import find_segmenter
from configs.paths_config import weight_place
from losses.clip_loss import ClipLoss
from utils.align import FaceAligner
from utils.download import weights_at
from utils.text_dic import PROMPTS, prompts_for

log = logging.getLogger(__name__)

PRECOMPUTED = Path("precomputed")
MEASURED_CURVES = PRECOMPUTED / "lpips_curves"
PUBLISHED_CURVES = ROOT / "utils" / "lpips_curves"


class Workbench:
    """Settings (argparse namespace), a model's configuration, and the things they stand for."""

    def __init__(self, args, config):
        self.args, self.config = args, config
        check_flags(config, args)
        self.aligner = FaceAligner(PRECOMPUTED / "aligned", config.data.image_size) if args.align_face else None
        self.experiment = Experiment(args, config)
        d = config.diffusion
        self.schedule = process.Schedule.linear(d.beta_start, d.beta_end, d.num_diffusion_timesteps)
        if args.t_0 >= d.num_diffusion_timesteps:
            raise UserError(f"--t_0 {args.t_0}: {config.path} has {d.num_diffusion_timesteps} timesteps, numbered from 0")

    @cached_property
    def later(self):
        """Pictures are drawn and written here, beside the computation."""
        return Background()

    # ---- networks -------------------------------------------------------------------------------------------------------

    @cached_property
    def device(self):
        name = self.args.device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            return torch.empty(0, device=name).device
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"--device {name} cannot be used here ({str(error).splitlines()[0]}); try --device cpu") from error

    @cached_property
    def weights(self):
        """The U-Net's weight file; a published one that is missing is fetched first."""
        return Path(self.args.model_path) if self.args.model_path else weights_at(weight_place(self.config))

    @cached_property
    def fingerprint(self):
        """What is computed with these weights in this precision, and kept, is found under this."""
        digits = checkpoints.fingerprint(self.weights)
        return digits if self.args.precision == "fp32" else f"{digits} {self.args.precision}"

    @cached_property
    def unet(self):
        args = self.args
        set_tf32(args.precision, self.device)
        keep_freed_memory(self.device)
        unet = checkpoints.load_unet(self.config, self.weights, self.device)
        return FastUNet(unet, args.precision, args.compile, args.checkpoint_decoder)

    @cached_property
    def clip(self):
        name = self.clip_name
        return ClipLoss(str(ROOT / name) if name == self._clip_of_config else name, self.device)

    @property
    def clip_name(self):
        """What names the CLIP: the flag, else the configuration, else OpenAI's ViT-B/16."""
        return str(self.args.clip_model_name or self._clip_of_config or "ViT-B/16")

    @property
    def _clip_of_config(self):
        return self.config.clip.model if hasattr(self.config, "clip") else None

    @cached_property
    def segmenter(self):
        """What --segmenter names, or the configuration's; None without either."""
        if self.args.segmenter:
            return find_segmenter(self.args.segmenter)
        return ROOT / self.config.segmenter if hasattr(self.config, "segmenter") else None

    # ---- images and latents ---------------------------------------------------------------------------------------------

    def steps(self, n):
        """`n` timesteps up to --t_0, ascending."""
        return process.timesteps(n, self.args.t_0)

    def dataset(self, split):
        """The images of "train" or "test"."""
        return open_split(self.config, split, self.args, self.aligner)

    def indices(self, length, n):
        """Numbers of the images to work on: `n` from --start_image_id on, or those of --target_image_id."""
        if self.args.target_image_id:
            wanted = [int(word) for word in self.args.target_image_id.split()]
            if max(wanted) >= length:
                raise UserError(f"--target_image_id {max(wanted)}: there are {length} images, numbered from 0")
            return wanted
        start = self.args.start_image_id
        if start >= length:
            raise UserError(f"--start_image_id {start}: there are {length} images, numbered from 0")
        if start + n > length:
            log.warning("%d images asked for, %d are there: all of them are used", n, length - start)
        return list(range(start, min(start + n, length)))

    def pairs(self, split, n, images=True):
        """(image, latent) pairs of a split -> (pairs with `batches(indices, batch_size)`, indices).

        Images are inverted here unless the cache holds them already; --load_random_noise draws latents instead, and makes
        their images only if `images`.
        """
        args, size, category = self.args, self.config.data.image_size, self.config.data.category
        inversion = self.steps(args.n_inv_step)
        if args.load_random_noise:
            # The draws of the two splits must differ: one counts from 0, the other from a million.
            offset = 0 if split == "train" else 1_000_000
            indices = [offset + i for i in self.indices(1_000_000, n)]
            keep = PRECOMPUTED / f"{category}_noise_{size}" if args.saved_random_noise else None
            folder = cache_folder(PRECOMPUTED, category, "plain", self.fingerprint, self.schedule, inversion)
            latents = SampledLatents(args.seed, (3, size, size), self.plain_sample, folder if images else None, keep)
            latents.fill(indices)
            return latents, indices
        dataset = self.dataset(split)
        indices = self.indices(len(dataset), n)
        latents = Latents(dataset, PRECOMPUTED, category, self.unet, self.fingerprint, self.schedule, inversion, self.device)
        latents.fill(indices, args.bs_precompute, args.re_precompute)
        return latents, indices

    def plain_sample(self, x_T):
        """x_T -> x_0 of the plain process, over as many steps as an inversion."""
        return process.generate(self.unet, to_device(x_T, self.device), self.schedule, self.steps(self.args.n_inv_step))

    def plain_trajectories(self, epochs):
        """What --cache_origin keeps of the plain trajectories in a training of so many epochs."""
        args = self.args
        kept = args.cache_origin if args.cache_origin != "auto" or epochs > 1 else "off"
        dtype = torch.float16 if args.cache_origin_half else torch.float32
        budget = int(args.cache_origin_gib * 2**30) if kept in ("auto", "ram") else 0
        steps, category = self.steps(args.n_train_step), self.config.data.category
        folder = cache_folder(PRECOMPUTED, category, "origin", self.fingerprint, self.schedule, steps, dtype)
        return PlainTrajectories(budget, folder if kept in ("auto", "disk") else None, dtype)

    # ---- directions and prompts -----------------------------------------------------------------------------------------

    @cached_property
    def loaded(self):
        """The directions named by the flags, read from their checkpoints -> list of (direction, settings or {})."""
        args = self.args
        names = (args.multiple_attr or "").split() or [args.manual_checkpoint_name or args.load_from_checkpoint]
        loaded = []
        # All are found before the first is read, which takes the U-Net.
        for path in [self.experiment.find_direction(name) for name in names]:
            log.info("direction: %s", path)
            direction, contents = checkpoints.load_direction(path, self.unet, args.ignore_timesteps)
            settings = contents.get("settings", {})
            if checkpoints.trained_as(direction) != ("block" if args.train_delta_block else "delta_h"):
                right = "--train_delta_h" if args.train_delta_block else "--train_delta_block"
                raise UserError(f"{path} was trained with {right}: give that flag instead")
            if isinstance(direction, BlockDirection):
                self.check_timesteps(path, direction, settings)
            loaded.append((direction.requires_grad_(False), settings))
        return loaded

    def check_timesteps(self, path, block, settings):
        """A block that was trained without the time embedding has no use for it, and the other way round.

        With --num_mean_of_delta_hs, --ignore_timesteps says how to average, and the block is used as it was trained.
        """
        args = self.args
        trained = settings.get("flags", {}).get("ignore_timesteps", args.ignore_timesteps)
        if trained != args.ignore_timesteps and not args.num_mean_of_delta_hs:
            remedy = "give that flag too" if trained else "leave that flag out"
            raise UserError(f"{path} was trained {'with' if trained else 'without'} --ignore_timesteps: {remedy}")
        block.ignore_timesteps = trained

    @cached_property
    def prompts(self):
        """(source, target) pairs that the flags give; [] when they give none."""
        args = self.args
        if args.src_txts:
            return list(zip(args.src_txts, args.trg_txts, strict=True))
        # "attribute" is how the 2023 scripts say: see --multiple_attr.
        if args.edit_attr and args.edit_attr != "attribute":
            return [prompts_for(args.edit_attr)]
        return []

    # ---- intervals ------------------------------------------------------------------------------------------------------

    @property
    def curve_name(self):
        return intervals.CURVES.get(self.config.data.category, self.args.custom_dataset_name)

    @cached_property
    def curve(self):
        """The LPIPS curves of the dataset: one's own measurement before the published one."""
        for folder in (MEASURED_CURVES, PUBLISHED_CURVES):
            path = folder / f"{self.curve_name}.csv"
            if path.exists():
                log.info("LPIPS curves: %s", path)
                return intervals.Curve.read(path)
        raise UserError(
            f"no LPIPS curves named {self.curve_name}: measure them with --lpips, or set --user_defined_t_edit and "
            "--user_defined_t_addnoise"
        )

    def t_edit_of(self, prompts):
        """t_edit off the curve: that of the pair of prompts with the largest cosine."""
        cosine = max(self.clip.cosine(src, trg) for src, trg in prompts)
        return intervals.choose_t_edit(self.curve, cosine, self.args.lpips_edit_th)

    @cached_property
    def t_edit(self):
        """By the flag; else off the curve for the flags' prompts; else as the directions were trained.

        Of several directions the highest t_edit counts, which is that of the largest cosine.
        """
        if self.args.user_defined_t_edit is not None:
            return self.args.user_defined_t_edit
        if self.prompts:
            return self.t_edit_of(self.prompts)
        known = []
        if (self.args.run_test or self.args.evaluate) and not self.args.pass_editing:
            names = (self.args.multiple_attr or "").split() or [None]
            for name, (_, settings) in zip(names, self.loaded, strict=True):
                if "t_edit" in settings:
                    known.append(settings["t_edit"])
                elif name in PROMPTS:
                    known.append(self.t_edit_of([PROMPTS[name]]))
        if not known:
            raise UserError("t_edit is not known: give --edit_attr (or --src_txts and --trg_txts), or --user_defined_t_edit")
        return max(known)

    @cached_property
    def t_boost(self):
        """By the flag, else off the curve. Ancestral steps (--sample_type ddpm) are noisy throughout: nothing to boost."""
        if self.args.user_defined_t_addnoise is not None:
            return self.args.user_defined_t_addnoise
        if self.args.sample_type == "ddpm":
            return 0
        return intervals.choose_t_boost(self.curve, self.args.lpips_addnoise_th, self.args.add_noise_from_xt)
