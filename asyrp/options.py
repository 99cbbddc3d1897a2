"""Every flag of the command line: its group, default, range and meaning. Needs nothing but the standard library.

How they are read: parsing.py. What a run then works with (a flag, a direction's record, the YAML or the default): settings.py.
"""

from dataclasses import dataclass

# Flags of the 2023 release, and of DiffusionCLIP from which it grew, that nothing reads. Old scripts that pass them run on;
# one line says that they do nothing. The release had more: --ignore_unknown_flags is for those.
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
MANY = 10**9  # more than anybody means


@dataclass(frozen=True)
class Flag:
    """One flag. kind: int, float, str, "switch" (no value) or "zero_one" (0 or 1; alone, it is 1). low, high: its range."""

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
    alone: object = None  # its value where the flag has none

    def holds(self, value):
        """Whether a number lies in the range; one that is not finite lies in none."""
        return self.low <= value <= self.high

    def range(self, value):
        """The range in words, as it ends the message of an error about `value`."""
        # Nobody who gave too little wants to hear of the other end.
        return f"{self.low} or more" if self.high >= MANY and not value > self.high else f"{self.low} to {self.high}"


FLAGS = {}


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
        """A switch that the 2023 scripts write with a value: `--do_train 1`; alone, `--do_train` is 1."""
        self._add(name, "zero_one", default, text)


g = Group("mode (one at least)")
g.switch("lpips", "measure the LPIPS curves that t_edit and t_boost are read from")
g.switch("just_precompute", "invert the images of the training and test sets and stop")
g.switch("run_train", "learn a direction")
text = (
    "make one from labels (two folders, a table, or what CLIP reads from the prompts), or from images alone: the principal "
    "components of h, in seconds, or of CLIP's features, a training each"
)
g.value("fit_direction", str, None, text, choices=("labels", "h_pca", "clip_pca"))
text = "measure how far a direction moves training images at each strength, by lpips (the default) or s_dir; into its file"
g.value("calibrate", str, None, text, choices=("lpips", "s_dir"), alone="lpips")
g.switch("run_test", "edit test images with a direction")
g.switch("evaluate", "measure what a direction does to test images: metrics as a table, JSON and CSV")

g = Group("run")
text = "the model (required): a YAML, a name under configs/ or a path; or a pipeline of diffusers, folder or name on the hub"
g.value("config", str, None, text, metavar="YAML")
g.value("exp", str, "./runs/", "folder of results; its last part names the experiment and its checkpoints")
g.value("edit_attr", str, None, "attribute of utils/text_dic.py, which gives the prompts")
g.value("src_txts", str, None, "source prompt(s), instead of --edit_attr", many=True)
g.value("trg_txts", str, None, "target prompt(s), instead of --edit_attr", many=True)
g.value("seed", int, 1234, "seed of new weights, noise and order", 0, 2**63 - 1)
g.value("sh_file_name", str, None, "script to copy into the folder of results, if it exists")
g.value("model_path", str, None, "weights of the U-Net, instead of those in configs/paths_config.py")
g.switch("ignore_unknown_flags", "leave out flags that nothing knows, as an old script may have, and say which")
g.value("verbose", str, "info", "how much to tell", choices=("debug", "info", "warning", "error"))
g.value("device", str, None, "cpu, cuda or cuda:N; by default cuda when there is one")

g = Group("intervals (paper section 3.3)")
g.value("user_defined_t_edit", int, None, "t_edit, 0 to t_0, instead of reading it off the curve", 0, MANY)
g.value("user_defined_t_addnoise", int, None, "t_boost, 0 (never) and up, instead of reading it off the curve", 0, MANY)
g.value("lpips_edit_th", float, 0.33, "t_edit: first t with LPIPS(x_0, P_t) at this times the prompts' cosine", 0, 10)
g.value("lpips_addnoise_th", float, 0.1, "t_boost: first t with LPIPS at this; the paper's 1.2 is for x_t", 0, 10)
g.switch("add_noise_from_xt", "read t_boost off LPIPS(x_0, x_t) instead of LPIPS(x_0, P_t)")
g.switch("origin_process_addnoise", "boost the unedited picture as well")
text = "name of the LPIPS curves: to measure them under, and to read; by default those measured on this model, else published"
g.value("custom_dataset_name", str, None, text)

g = Group("steps")
g.value("t_0", int, 999, "timestep that inversion reaches and generation starts from, at most the model's last", 1, MANY)
g.value("n_inv_step", int, 40, "timesteps of the inversion; 0: every one", 0, MANY)
g.value("n_train_step", int, 6, "timesteps of the generation in training; 0: every one", 0, MANY)
g.value("n_test_step", int, 40, "timesteps of the generation in testing; 0: every one", 0, MANY)
text = "of images to test: ddim, or ddpm: edit-friendly noise maps, one a step, so n_inv_step and n_test_step must be equal"
g.value("inversion", str, "ddim", text, choices=("ddim", "ddpm"))
g.value("sample_type", str, "ddim", "ddim, or ddpm: ancestral steps throughout", choices=("ddim", "ddpm"))
g.value("dt_lambda", float, 1.0, "factor of eps in the direction term of the first step (t = T - 1)", 0, 2)

g = Group("data")
g.value("custom_train_dataset_dir", str, None, "folder (or LMDB) of training images, instead of the config's")
g.value("custom_test_dataset_dir", str, None, "folder (or LMDB) of test images, instead of the config's")
g.value("target_class_num", str, None, "class of ImageNet: its number, 0 to 999, or WordNet id; else all, in order")
g.zero_one("align_face", 0, "cut out faces as FFHQ did, in your own images (needs the library face_alignment)")
g.value("n_train_img", int, 50, "training images; also the images that --lpips measures", 1, MANY)
g.value("n_test_img", int, 10, "test images", 1, MANY)
g.value("n_calibrate_img", int, 32, "training images that --calibrate edits", 1, MANY)
g.value("n_precomp_img", int, 100, "images of each set that --just_precompute inverts", 1, MANY)
g.value("bs_train", int, 1, "images in a training batch", 1, 65536)
g.value("bs_test", int, 1, "images in a test batch", 1, 65536)
g.value("bs_precompute", int, 8, "images in a batch of the inversion and of --lpips", 1, 65536)
g.zero_one("do_train", 1, "with --just_precompute: the training images; with --run_train: train")
g.zero_one("do_test", 1, "with --just_precompute: the test images; with --run_train: edit test images at the end")
g.zero_one("shuffle_train_dataloader", 0, "draw the order of the training images anew for each epoch")
g.switch("re_precompute", "invert again what the store holds already")
g.switch("load_random_noise", "draw x_T from noise instead of inverting images")
g.switch("saved_random_noise", "with --load_random_noise: keep the draw, and find it again whatever the seed")
g.value("target_image_id", str, None, 'work on these images only, numbers in one string ("3 7")')
g.value("start_image_id", int, 0, "work on the images from this number on", 0, MANY)

g = Group("training")
g.switch("train_delta_block", "learn a delta block, the implicit function f_t")
g.switch("train_delta_h", "learn delta_h itself, the same for every image")
g.switch("ignore_timesteps", "one direction for all timesteps: no time embedding, or a single delta_h")
g.value("get_h_num", int, None, "number of delta blocks: 1 to train, as many as attributes to combine (the default)", 0, 1000)
g.value("n_iter", int, 1, "epochs", 1, 10**6)
g.value("lr_training", float, 0.2, "learning rate of SGD", 0, 1000)
g.value("scheduler_step_size", int, 3, "epochs after which the learning rate falls", 1, MANY)
g.value("sch_gamma", float, 0.1, "factor by which it falls", 0, 10)
g.value("clip_loss_w", float, 3.0, "weight of the directional CLIP loss", 0, 10_000)
g.value("l1_loss_w", float, 0.0, "weight of |P_edit - P_plain|, times the prompts' cosine", 0, 10_000)
g.value("id_loss_w", float, 0.0, "weight of the identity loss", 0, 10_000)
g.switch("use_id_loss", "keep the face's identity (needs the IR-SE50 weights)")
text = "image the change is counted from: x0, or origin: the plain P_t"
g.value("clip_source", str, "x0", text, choices=("x0", "origin"))
text = "CLIP: an OpenAI name, a file, or an open_clip config (.json) with weights beside it; else the config's, else ViT-B/16"
g.value("clip_model_name", str, None, text)
g.zero_one("retrain", 0, "ignore existing checkpoints instead of going on from them")
g.value("start_iter_when_you_use_pretrained", int, 0, "number of the first epoch", 0, 10**6)
g.switch("save_checkpoint_only_last_iter", "write no checkpoint before the last epoch")
g.switch("save_checkpoint_during_iter", "write checkpoints within an epoch as well")
g.value("save_checkpoint_step", int, 200, "images between two such checkpoints", 1, MANY)

g = Group("fitting (directions from labels, or from images alone)")
g.value("fit_by", str, "svm", "of labels: the normal of a linear SVM, or the difference of the means", choices=("svm", "mean"))
g.value("positive", str, None, "folder of images that have the attribute")
g.value("negative", str, None, "folder of images that do not")
g.value("labels", str, None, "table of labels: a CSV with a column `file` and one for each label", metavar="CSV")
g.value("label", str, None, "which label of the table divides the images", metavar="NAME=VALUE")
g.value("n_examples", int, 100, "images of each class, at most; without labels, those that the prompts tell best", 2, MANY)
g.value("hold", str, None, 'fitted directions to leave alone, in one string ("beard long_hair")')
g.value("n_components", int, 5, "principal components, the first ones; each is a direction, <exp>_pc1 and so on", 1, 1000)
text = "text file, a line each, of what components may be called; by default the attributes of the model's category"
g.value("words", str, None, text, metavar="FILE")

g = Group("speed")
text = "of the networks; the process stays in float32. bf16 and fp16: half the memory; fp16 cannot train"
g.value("precision", str, "fp32", text, choices=("fp32", "tf32", "bf16", "fp16"))
g.switch("compile", "compile the U-Net: minutes once; CUDA graphs for single images; on a CPU for small networks only")
g.switch("checkpoint_decoder", "training: less memory, for the time of one more decoder pass a step")
text = (
    "where training keeps the plain trajectory that later epochs use again: ram up to --cache_origin_gib, disk (under "
    "precomputed/, for other prompts too), off, or auto: ram, then disk, and off in a single epoch"
)
g.value("cache_origin", str, "auto", text, choices=("auto", "ram", "disk", "off"))
g.value("cache_origin_gib", float, 2.0, "memory for it; one 256 px image takes 16 MB in 20 steps", 0, 10**6)
g.value(
    "cache_origin_disk_gib",
    float,
    20.0,
    "room on the disk for it, former runs included; what does not fit is computed again",
    0,
    10**6,
)
g.switch("cache_origin_half", "keep it in half precision")

g = Group("several processes (torchrun needs no flag: docs/scaling.md)")
text = "be one task of a Slurm array, which works on its share of the images: with --just_precompute, --run_test, --evaluate"
g.switch("slurm_array", text)
g.switch("collect", "put together what a test's tasks have left, each started with RANK and WORLD_SIZE or --slurm_array")

g = Group("inference")
text = "edit this one picture: a direction is learned on it (and on --custom_train_dataset_dir, if given) from the prompts"
g.value("edit_image", str, None, text, metavar="FILE")
g.value("hs_coeff_delta_h", float, 1.0, "strength of the edit: factor of delta_h", -1000, 1000)
g.value("hs_coeff_origin_h", float, 1.0, "factor of h itself", -10, 10)
g.switch("delta_interpolation", "a strip of strengths from --min_delta to --max_delta")
g.value("max_delta", float, 1.0, "highest factor of the strip", -1000, 1000)
g.value("min_delta", float, 0.0, "lowest factor of the strip", -1000, 1000)
g.value("num_delta", int, 5, "pictures of the strip", 2, 1000)
text = "a strip of a calibrated direction, drawn or measured, moves by equal changes of the picture; 0: by equal strengths"
g.zero_one("equal_steps", 1, text)
g.value("multiple_attr", str, None, 'combine these experiments or attributes, in one string ("smiling beard")')
g.value("multiple_hs_coeff", str, None, 'their factors, in one string ("1 0.5")')
g.value("num_mean_of_delta_hs", int, 0, "edit with the mean delta_h of so many images, one global direction", 0, MANY)
g.value("load_from_checkpoint", str, None, "name of another experiment whose direction to use")
text = "checkpoint to use: a path, a name under checkpoint/, or hf:USER/REPO on the Hugging Face hub"
g.value("manual_checkpoint_name", str, None, text)
g.value("choose_checkpoint_num", int, None, "use the checkpoint written within an epoch after so many images", 1, MANY)
g.switch("pass_editing", "leave the edit out")

g = Group("region (outside of it, steps are those of the plain process)")
g.value("edit_mask", str, None, "a picture: white where the edit acts", metavar="PNG")
g.value("edit_region", str, None, 'segments of each image, by --segmenter, in one string ("hair", "mouth eyes")')
g.value("edit_threshold", float, None, "where the edit changes most: above this quantile of |eps~ - eps|, at each step", 0, 1)
g.value("region_dilation", int, None, "pixels by which segments are enlarged; by default 1/32 of the image's side", 0, 10_000)
g.value("region_smoothing", int, None, "pixels over which a region's edge is soft; by default 1/32 of the side", 0, 10_000)

g = Group("sharing")
text = (
    "write the direction with its record, a strip of test images (strengths -1 to 1.5, or those of --delta_interpolation) and "
    "a model card into this folder; hf upload USER/REPO DIR shares it, and hf:USER/REPO names it"
)
g.value("export", str, None, text, metavar="DIR")

g = Group("evaluation")
text = "segmentation model, for metrics and regions: a TorchScript file, or a name of torchvision's; else the config's"
g.value("segmenter", str, None, text)

g = Group("output")
g.switch("save_x0", "with --use_x0_tensor: put the original image first in each picture")
g.switch("use_x0_tensor", "see --save_x0")
g.switch("save_x_origin", "put the unedited result of the process before the edits")
g.zero_one("save_train_image", 1, "save pictures while training")
g.value("save_train_image_step", int, 4, "of every n-th image", 1, MANY)
g.value("save_train_image_iter", int, 1, "in every n-th epoch", 1, MANY)
text = "watch the losses there while training; they go into tables, and to TensorBoard where it is installed, in any case"
g.value("track", str, None, text, choices=("wandb", "trackio"))
g.switch("save_process_origin", "save x_t and P_t of every step of the plain process")
g.switch("save_process_delta_h", "save x_t and P_t of every step of the edited process")
g.switch("save_precomputed_images", "save what the inverted images are generated back to")
text = "with --delta_interpolation: save, for each image and all, an animation over the strengths and back"
g.value("save_animation", str, None, text, choices=("gif", "webp"))
g.value("save_to_folder", str, None, "folder for the training pictures, instead of training_images/")

DEFAULTS = {name: flag.default for name, flag in FLAGS.items()}
