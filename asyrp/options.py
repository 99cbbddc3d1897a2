"""Every flag of the command line: its group, default, range and help text. Needs only the standard library.

parsing.py reads the command line; settings.py decides each value (flag, direction's record, YAML or default).
"""

from dataclasses import dataclass

# Flags of the 2023 release, and of DiffusionCLIP on which it was based, that nothing reads. Old scripts that pass them still
# run, with a line saying that they have no effect. For the release's other flags there is --ignore_unknown_flags.
WITHOUT_EFFECT = {
    "clip_finetune",
    "clip_finetune_eff",
    "clip_latent_optim",
    "comment",
    "deterministic_inv",
    "dt_end",
    "edit_images_from_dataset",
    "edit_one_image",
    "edit_one_image_eff",
    "eta",
    "fast_noising_train",
    "hybrid_noise",
    "image_space_noise",
    "image_space_noise_optim",
    "img_path",
    "lr_clip_finetune",
    "lr_clip_lat_opt",
    "model_ratio",
    "ni",
    "unseen2unseen",
    "use_mask",
    "warigari",
}
MODES = ("lpips", "just_precompute", "run_train", "fit_direction", "calibrate", "run_test", "evaluate")
MANY = 10**9  # stands for "no upper limit"


@dataclass(frozen=True)
class Flag:
    """One flag. kind: int, float, str, "switch" (no value) or "zero_one" (0 or 1; without a value, 1). low, high: its range."""

    name: str
    kind: object
    default: object
    text: str
    group: str
    low: float | None = None
    high: float | None = None
    choices: tuple | None = None
    many: bool = False
    metavar: str | None = None
    alone: object = None  # its value when the flag is given without one

    def holds(self, value):
        """Whether a number is in the range; inf and nan never are."""
        return self.low <= value <= self.high

    def range(self, value):
        """The range in words, for an error message about `value`."""
        # A value that is too small needs only the lower limit.
        return f"{self.low} or more" if self.high >= MANY and not value > self.high else f"{self.low} to {self.high}"


FLAGS: dict[str, "Flag"] = {}


class Group:
    """Collects the flags of one group of --help."""

    def __init__(self, title):
        self.title = title

    def _add(self, name, *args, **more):
        FLAGS[name] = Flag(name, *args, self.title, **more)

    def value(self, name, kind, default, text, low=None, high=None, **more):
        self._add(name, kind, default, text, low=low, high=high, **more)

    def switch(self, name, text):
        self._add(name, "switch", False, text)

    def zero_one(self, name, default, text):
        """A switch that the 2023 scripts write with a value: `--do_train 1`; without a value it is 1."""
        self._add(name, "zero_one", default, text)


g = Group("mode (at least one)")
g.switch("lpips", "measure the LPIPS curves from which t_edit and t_boost are chosen")
g.switch("just_precompute", "invert the images of the training and test sets and stop")
g.switch("run_train", "learn a direction")
text = (
    "compute directions: from labels (two folders, a table, or CLIP's scores for the prompts); or from unlabelled images, as "
    "principal components of h (seconds) or of CLIP features (one training per component)"
)
g.value("fit_direction", str, None, text, choices=("labels", "h_pca", "clip_pca"))
text = "measure how far a direction moves training images at each strength, by lpips (default) or s_dir; writes to its file"
g.value("calibrate", str, None, text, choices=("lpips", "s_dir"), alone="lpips")
g.switch("run_test", "edit test images with a direction")
g.switch("evaluate", "measure the effect of a direction on test images: metrics as a table, JSON and CSV")

g = Group("run")
text = "the model (required): a YAML file (a path, or a name in configs/), or a diffusers pipeline (a folder, or a hub name)"
g.value("config", str, None, text, metavar="YAML")
g.value("exp", str, "./runs/", "folder for results; its last part names the experiment and its checkpoints")
g.value("edit_attr", str, None, "attribute in utils/text_dic.py that defines the prompts")
g.value("src_txts", str, None, "source prompt(s), instead of --edit_attr", many=True)
g.value("trg_txts", str, None, "target prompt(s), instead of --edit_attr", many=True)
g.value("seed", int, 1234, "seed for initial weights, noise and shuffling", 0, 2**63 - 1)
g.value("sh_file_name", str, None, "script to copy into the results folder, if it exists")
g.value("model_path", str, None, "weights of the U-Net, instead of those in configs/paths_config.py")
g.switch("ignore_unknown_flags", "ignore unknown flags, such as those of old scripts, and list them")
g.value("verbose", str, "info", "log level", choices=("debug", "info", "warning", "error"))
g.value("device", str, None, "cpu, cuda or cuda:N; cuda by default if available")

g = Group("intervals (paper section 3.3)")
g.value("user_defined_t_edit", int, None, "t_edit, 0 to t_0, instead of choosing it from the curve", 0, MANY)
g.value("user_defined_t_addnoise", int, None, "t_boost, 0 (never) or more, instead of choosing it from the curve", 0, MANY)
g.value("lpips_edit_th", float, 0.33, "t_edit: first t at which LPIPS(x_0, P_t) reaches this times the prompts' cosine", 0, 10)
g.value("lpips_addnoise_th", float, 0.1, "t_boost: first t at which LPIPS reaches this; the paper's 1.2 is for x_t", 0, 10)
g.switch("add_noise_from_xt", "choose t_boost from LPIPS(x_0, x_t) instead of LPIPS(x_0, P_t)")
g.switch("origin_process_addnoise", "apply quality boosting to the unedited image too")
text = "name of the LPIPS curves to write and to read; by default those measured on this model, else the published ones"
g.value("custom_dataset_name", str, None, text)

g = Group("steps")
g.value("t_0", int, 999, "timestep at which inversion ends and generation starts, at most the model's last", 1, MANY)
g.value("n_inv_step", int, 40, "timesteps for inversion; 0: all", 0, MANY)
g.value("n_train_step", int, 6, "timesteps for generation during training; 0: all", 0, MANY)
g.value("n_test_step", int, 40, "timesteps for generation during testing; 0: all", 0, MANY)
text = "ddim; fixed_point: reconstructs better, costs three times as much; ddpm (tests only): noise maps, one per step"
g.value("inversion", str, "ddim", text, choices=("ddim", "fixed_point", "ddpm"))
g.value("sample_type", str, "ddim", "ddim, or ddpm (ancestral sampling at every step)", choices=("ddim", "ddpm"))
g.value("dt_lambda", float, 1.0, "factor for eps in the direction term D of the first step (t = T - 1)", 0, 2)

g = Group("data")
g.value("custom_train_dataset_dir", str, None, "folder (or LMDB) of training images, instead of the config's")
g.value("custom_test_dataset_dir", str, None, "folder (or LMDB) of test images, instead of the config's")
g.value("target_class_num", str, None, "ImageNet class: number (0 to 999) or WordNet id; all classes by default")
g.zero_one("align_face", 0, "align and crop the faces in your own images as FFHQ does (needs the package face_alignment)")
g.value("n_train_img", int, 50, "number of training images, also used by --lpips", 1, MANY)
g.value("n_test_img", int, 10, "number of test images", 1, MANY)
g.value("n_calibrate_img", int, 32, "number of training images for --calibrate", 1, MANY)
g.value("n_precomp_img", int, 100, "number of images per split that --just_precompute inverts", 1, MANY)
g.value("bs_train", int, 1, "batch size for training", 1, 65536)
g.value("bs_test", int, 1, "batch size for testing", 1, 65536)
g.value("bs_precompute", int, 8, "batch size for inversion and --lpips", 1, 65536)
g.zero_one("do_train", 1, "with --just_precompute: invert the training images; with --run_train: train")
g.zero_one("do_test", 1, "with --just_precompute: invert the test images; with --run_train: edit test images after training")
g.zero_one("shuffle_train_dataloader", 0, "shuffle the training images in every epoch")
g.switch("re_precompute", "recompute latents that are already in the store")
g.switch("load_random_noise", "sample x_T from noise instead of inverting images")
g.switch("saved_random_noise", "with --load_random_noise: keep the sampled noise and reuse it, whatever the seed")
g.value("target_image_id", str, None, 'use only these images, as numbers in one string ("3 7")')
g.value("start_image_id", int, 0, "number of the first image to use", 0, MANY)

g = Group("training")
g.switch("train_delta_block", "learn a delta block, the implicit function f_t")
g.switch("train_delta_h", "learn delta_h directly, the same for every image")
g.switch("ignore_timesteps", "one direction for all timesteps: a delta block without time embedding, or a single delta_h")
g.value("get_h_num", int, None, "number of delta blocks: 1 to train; one per attribute to combine (default)", 0, 1000)
g.value("n_iter", int, 1, "epochs", 1, 10**6)
g.value("lr_training", float, 0.2, "learning rate of SGD", 0, 1000)
g.value("scheduler_step_size", int, 3, "epochs between reductions of the learning rate", 1, MANY)
g.value("sch_gamma", float, 0.1, "factor by which the learning rate is reduced", 0, 10)
g.value("clip_loss_w", float, 3.0, "weight of the directional CLIP loss", 0, 10_000)
g.value("l1_loss_w", float, 0.0, "weight of |P_edit - P_plain|, times the prompts' cosine", 0, 10_000)
g.value("id_loss_w", float, 0.0, "weight of the identity loss", 0, 10_000)
g.switch("use_id_loss", "use the face identity loss (needs the IR-SE50 weights)")
text = "reference image of the directional loss: x0, or origin (the unedited P_t)"
g.value("clip_source", str, "x0", text, choices=("x0", "origin"))
text = (
    "CLIP: an OpenAI name, a file, or an open_clip config (.json) with weights next to it; default: the config's, or ViT-B/16"
)
g.value("clip_model_name", str, None, text)
g.zero_one("retrain", 0, "ignore existing checkpoints instead of resuming from them")
g.value("start_iter_when_you_use_pretrained", int, 0, "number of the first epoch", 0, 10**6)
g.switch("save_checkpoint_only_last_iter", "write a checkpoint only after the last epoch")
g.switch("save_checkpoint_during_iter", "also write checkpoints within an epoch")
g.value("save_checkpoint_step", int, 200, "images between two such checkpoints", 1, MANY)

g = Group("fitting (directions from labels or from unlabelled images)")
g.value(
    "fit_by",
    str,
    "svm",
    "from labels: svm, the normal of a linear SVM; mean, the difference of the class means",
    choices=("svm", "mean"),
)
g.value("positive", str, None, "folder of images with the attribute")
g.value("negative", str, None, "folder of images without it")
g.value("labels", str, None, "table of labels: a CSV with a column `file` and one column per label", metavar="CSV")
g.value("label", str, None, "label of the table that splits the images into two classes", metavar="NAME=VALUE")
g.value("n_examples", int, 100, "most images per class; without labels, those that CLIP scores highest and lowest", 2, MANY)
g.value("hold", str, None, 'fitted directions to project out, in one string ("beard long_hair")')
g.value("n_components", int, 5, "number of principal components; each becomes a direction, <exp>_pc1 and so on", 1, 1000)
text = "text file of names for components, one per line; by default the attributes of the model's category"
g.value("words", str, None, text, metavar="FILE")

g = Group("speed")
text = "precision of the networks (the sampler stays in float32). bf16 and fp16 halve the memory; fp16 cannot train"
g.value("precision", str, "fp32", text, choices=("fp32", "tf32", "bf16", "fp16"))
g.switch(
    "compile", "compile the U-Net (takes minutes once); CUDA graphs for single images; on a CPU only useful for small networks"
)
g.switch("checkpoint_decoder", "training: less memory, at the cost of one more decoder pass per step")
text = (
    "where training keeps the unedited trajectories for later epochs: ram (up to --cache_origin_gib), disk (in precomputed/, "
    "reused for other prompts too), off, or auto: ram, then disk, and off for a single epoch"
)
g.value("cache_origin", str, "auto", text, choices=("auto", "ram", "disk", "off"))
g.value("cache_origin_gib", float, 2.0, "memory for these trajectories; one 256 px image takes 16 MB for 20 steps", 0, 10**6)
g.value(
    "cache_origin_disk_gib",
    float,
    20.0,
    "disk space for these trajectories, including those of earlier runs; the rest is recomputed",
    0,
    10**6,
)
g.switch("cache_origin_half", "keep these trajectories in half precision")

g = Group("several processes (torchrun needs no flag: docs/scaling.md)")
text = "run as one task of a Slurm array, on its share of the images: for --just_precompute, --run_test and --evaluate"
g.switch("slurm_array", text)
g.switch("collect", "combine the results of the tasks of a test, each started with RANK and WORLD_SIZE or --slurm_array")

g = Group("inference")
text = "edit this one image: learns a direction from the prompts on it (and on --custom_train_dataset_dir, if given)"
g.value("edit_image", str, None, text, metavar="FILE")
g.value("hs_coeff_delta_h", float, 1.0, "strength of the edit: factor for delta_h", -1000, 1000)
g.value("hs_coeff_origin_h", float, 1.0, "factor for h itself", -10, 10)
g.switch("delta_interpolation", "a strip of strengths from --min_delta to --max_delta")
g.value("max_delta", float, 1.0, "highest strength of the strip", -1000, 1000)
g.value("min_delta", float, 0.0, "lowest strength of the strip", -1000, 1000)
g.value("num_delta", int, 5, "number of images in the strip", 2, 1000)
text = "space the strip of a calibrated direction by equal changes of the image; 0: by equal strengths"
g.zero_one("equal_steps", 1, text)
g.value("multiple_attr", str, None, 'combine these experiments or attributes, in one string ("smiling beard")')
g.value("multiple_hs_coeff", str, None, 'their strengths, in one string ("1 0.5")')
g.value("num_mean_of_delta_hs", int, 0, "edit with the mean delta_h over this many images, one global direction", 0, MANY)
g.value("load_from_checkpoint", str, None, "use the direction of this other experiment")
text = "checkpoint to use: a path, a name in checkpoint/, or hf:USER/REPO on the Hugging Face hub"
g.value("manual_checkpoint_name", str, None, text)
g.value("choose_checkpoint_num", int, None, "use the checkpoint written within an epoch after this many images", 1, MANY)
g.switch("pass_editing", "generate without any edit")

g = Group("region (outside of it, the image is not edited)")
g.value("edit_mask", str, None, "an image: white where the edit acts", metavar="PNG")
g.value("edit_region", str, None, 'segments to edit, found by --segmenter, in one string ("hair", "mouth eyes")')
g.value(
    "edit_threshold", float, None, "edit where the change is largest: above this quantile of |eps~ - eps| at each step", 0, 1
)
g.value("region_dilation", int, None, "pixels by which segments are enlarged; by default 1/32 of the image size", 0, 10_000)
g.value(
    "region_smoothing",
    int,
    None,
    "pixels over which the edge of a region is blurred; by default 1/32 of the image size",
    0,
    10_000,
)

g = Group("sharing")
text = (
    "write the direction with its record, a strip of test images (strengths -1 to 1.5, or those of --delta_interpolation) and "
    "a model card to this folder; share it with hf upload USER/REPO DIR, use it as hf:USER/REPO"
)
g.value("export", str, None, text, metavar="DIR")

g = Group("evaluation")
text = "segmentation model for metrics and regions: a TorchScript file or a torchvision model name; default: the config's"
g.value("segmenter", str, None, text)

g = Group("output")
g.switch("save_x0", "with --use_x0_tensor: put the original image first in each picture")
g.switch("use_x0_tensor", "see --save_x0")
g.switch("save_x_origin", "put the unedited reconstruction before the edits")
g.zero_one("save_train_image", 1, "save images during training")
g.value("save_train_image_step", int, 4, "save every N-th training image", 1, MANY)
g.value("save_train_image_iter", int, 1, "save training images in every N-th epoch", 1, MANY)
text = "also log the losses there while training; tables, and TensorBoard if it is installed, are always written"
g.value("track", str, None, text, choices=("wandb", "trackio"))
g.switch("save_process_origin", "save x_t and P_t of every step of the unedited process")
g.switch("save_process_delta_h", "save x_t and P_t of every step of the edited process")
g.switch("save_precomputed_images", "save the reconstructions of the inverted images")
text = "with --delta_interpolation: also save an animation over the strengths and back, per image and for all"
g.value("save_animation", str, None, text, choices=("gif", "webp"))
g.value("save_to_folder", str, None, "folder for the images of training, instead of training_images/")

DEFAULTS = {name: flag.default for name, flag in FLAGS.items()}
