"""Settings and where they come from. Each setting has one value, decided here in this order:

    a flag that was given > the direction's own record > the section `editing` of the YAML > the default

--edit_image and --export bring their own values (OF_ONE_IMAGE, OF_EXPORT), which override the YAML.

t_edit and t_boost may come from a number, a record or an LPIPS curve: see `decide_t_edit` and `decide_t_boost`.
"""

from dataclasses import dataclass

from asyrp import intervals
from asyrp.options import DEFAULTS, FLAGS
from asyrp.parsing import check_values
from utils.errors import UserError

# Settings of a run that the record of its direction decides.
FROM_RECORD = ("t_0", "n_inv_step", "n_train_step")


@dataclass(frozen=True)
class Value:
    """A value and where it comes from, in a few words."""

    value: object
    source: str

    def __str__(self):
        return f"{self.value} ({self.source})"


# Defaults for --edit_image: many large training steps on the one image with weak regularisation, a single checkpoint at the
# end, and a strip. Chosen by eye on faces of the default stack.
OF_ONE_IMAGE = {
    "n_iter": 12,
    "scheduler_step_size": 12,
    "lr_training": 0.5,
    "l1_loss_w": 1.0,
    "n_train_img": 1,
    "n_test_img": 1,
    "save_checkpoint_only_last_iter": True,
    "save_train_image": 0,
    "delta_interpolation": True,
    "max_delta": 1.5,
    "num_delta": 4,
}


# The strip that --export draws, unless the run draws one anyway.
OF_EXPORT = {"delta_interpolation": True, "min_delta": -1.0, "max_delta": 1.5, "num_delta": 6}


class Settings:
    """`settings.n_test_step` is the value of the flag --n_test_step; `settings.source("n_test_step")` is where it comes from.

    given: {flag: value}, as `parsing.parse_args` returns it. config: a Config. record, name: those of the direction that the
    run uses, if any.
    """

    def __init__(self, given, config, record=None, name=None):
        self.given, self.config = dict(given), config
        recorded = {key: record[key] for key in FROM_RECORD if record.get(key) is not None} if record else {}
        one_image = OF_ONE_IMAGE | {"train_delta_block": "train_delta_h" not in given} if "edit_image" in given else {}
        export = OF_EXPORT if "export" in given and not (given.get("delta_interpolation") or one_image) else {}
        self._layers = [
            ("flag", self.given),
            (name, recorded),
            ("--edit_image", one_image),
            ("--export", export),
            (config.path.name, config.editing.given()),
            ("default", DEFAULTS),
        ]

    def with_record(self, record, name):
        """The same settings, for a run that uses this direction."""
        return Settings(self.given, self.config, record, name)

    def get(self, name):
        """A setting's Value."""
        for source, layer in self._layers:
            if name in layer:
                return Value(layer[name], source)
        raise AttributeError(f"there is no setting {name}")

    def source(self, name):
        return self.get(name).source

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return self.get(name).value

    def values(self):
        """{name: value} of all settings."""
        return {name: self.get(name).value for name in FLAGS}

    def sources(self):
        """{name: source} of the settings that are not defaults."""
        return {name: source for name in FLAGS if (source := self.source(name)) != "default"}

    def steps(self, name):
        """A number of steps, with 0 replaced by the number of all timesteps."""
        return getattr(self, name) or self.t_0 + 1


def check_settings(settings, T):
    """Raise UserError for inconsistent settings, whatever their source. T: number of timesteps of the model's schedule."""
    try:
        check_values(settings.config.editing.given())
    except UserError as error:
        raise UserError(f"{settings.config.path.name}, section editing: {error}") from error
    t_0 = settings.t_0
    if not 1 <= t_0 < T:
        raise UserError(f"--t_0 {t_0}: {settings.config.path.name} has {T} timesteps, numbered from 0: give 1 to {T - 1}")
    for name in ("n_inv_step", "n_train_step", "n_test_step"):
        n = getattr(settings, name)
        if n == 1 or n > t_0 + 1:
            raise UserError(
                f"--{name} {n} ({settings.source(name)}): must be 2 to {t_0 + 1}, or 0 for every timestep up to t_0"
            )
    if settings.delta_interpolation and settings.min_delta == settings.max_delta:
        raise UserError(
            f"--min_delta and --max_delta are both {settings.min_delta:g}, which makes no strip: change --max_delta"
        )
    for name in ("user_defined_t_edit", "user_defined_t_addnoise"):
        t = getattr(settings, name)
        if t is not None and t > T:
            raise UserError(f"--{name} {t}: must be 0 to {T}")
    if (settings.run_train or settings.fit_direction == "clip_pca") and not settings.just_precompute:
        if settings.use_id_loss != (settings.id_loss_w != 0):
            raise UserError("the identity loss needs both --use_id_loss and --id_loss_w above 0")
        if settings.fit_direction == "clip_pca" and settings.clip_loss_w == 0:
            raise UserError("--fit_direction clip_pca trains with the CLIP loss, but --clip_loss_w is 0: set it above 0")
        if settings.clip_loss_w == settings.l1_loss_w == settings.id_loss_w == 0:
            raise UserError("all loss weights are 0, so nothing would be trained: set --clip_loss_w")


def check_noise_maps(settings):
    """Raise UserError if a test would not run the same process that --inversion ddpm computed the noise maps for."""
    if settings.inversion != "ddpm":
        return
    inversion, test = settings.get("n_inv_step"), settings.get("n_test_step")
    if settings.steps("n_inv_step") != settings.steps("n_test_step"):
        raise UserError(
            f"--inversion ddpm has one noise map per step, but n_inv_step is {inversion} and n_test_step is {test}: set "
            "--n_inv_step and --n_test_step to the same number"
        )
    if settings.dt_lambda != 1:
        raise UserError(f"--inversion ddpm needs --dt_lambda 1, not {settings.get('dt_lambda')}")


# ---- intervals --------------------------------------------------------------------------------------------------------------


def decide_t_edit(settings, uses, curve, cosine):
    """The t_edit of each direction that a run uses or trains -> list of Value.

    uses: list of (name, record, prompts); record is {} for one to be trained, prompts (source, target) or None. curve: function
    without arguments -> the LPIPS Curve; cosine: function (source, target) -> their cosine. Both are called only if a t_edit
    must be chosen from the curve. Several such directions share the t_edit of the largest cosine, as in the 2023 release.
    """
    by_flag = settings.source("user_defined_t_edit") == "flag"
    threshold_by_flag = settings.source("lpips_edit_th") == "flag"
    found, by_curve = [], []
    for i, (name, record, prompts) in enumerate(uses):
        if by_flag:
            found.append(Value(settings.user_defined_t_edit, "flag"))
        elif record.get("t_edit") is not None and not threshold_by_flag:
            found.append(Value(record["t_edit"], name))
        elif settings.user_defined_t_edit is not None and not threshold_by_flag:
            found.append(settings.get("user_defined_t_edit"))
        else:
            if prompts is None:
                raise UserError(
                    f"t_edit of {name} is unknown: give --edit_attr (or --src_txts and --trg_txts), or --user_defined_t_edit"
                )
            found.append(None)
            by_curve.append(i)
    if by_curve:
        largest = max(cosine(*uses[i][2]) for i in by_curve)
        threshold = settings.get("lpips_edit_th")
        t_edit = intervals.choose_t_edit(curve(), largest, threshold.value)
        for i in by_curve:
            found[i] = Value(
                t_edit, f"LPIPS curve at {threshold.value:g} x cosine {largest:.3f}; threshold: {threshold.source}"
            )
    return found


def decide_t_boost(settings, records, curve):
    """The t_boost of a run -> Value. records: list of (name, record) of the directions it uses; curve: as in `decide_t_edit`.

    Ancestral sampling (--sample_type ddpm) and noise maps (--inversion ddpm) add noise at every step, so there is nothing to
    boost.
    """
    if settings.inversion == "ddpm":
        return Value(0, "--inversion ddpm")
    if settings.source("user_defined_t_addnoise") == "flag":
        return settings.get("user_defined_t_addnoise")
    if settings.sample_type == "ddpm":
        return Value(0, "--sample_type ddpm")
    if not {"lpips_addnoise_th", "add_noise_from_xt"} & settings.given.keys():
        recorded = [Value(record["t_boost"], name) for name, record in records if record.get("t_boost") is not None]
        if recorded:
            return max(recorded, key=lambda value: value.value)
        if settings.user_defined_t_addnoise is not None:
            return settings.get("user_defined_t_addnoise")
    threshold = settings.get("lpips_addnoise_th")
    t_boost = intervals.choose_t_boost(curve(), threshold.value, settings.add_noise_from_xt)
    return Value(t_boost, f"LPIPS curve at {threshold.value:g}; threshold: {threshold.source}")


def without_boosting(settings):
    """The given flags for quality boosting that have no effect because --inversion ddpm adds noise at every step."""
    if settings.inversion != "ddpm":
        return []
    flags = ("user_defined_t_addnoise", "lpips_addnoise_th", "add_noise_from_xt", "origin_process_addnoise")
    return [name for name in flags if settings.given.get(name)]  # --user_defined_t_addnoise 0 means no boosting either


def differences(settings, name, record, t_edit):
    """One line per flag that differs from what a direction was trained with. t_edit: the Value that the run uses."""
    lines, every = [], settings.t_0 + 1
    for key in FROM_RECORD:
        value, trained = getattr(settings, key), record.get(key)
        if settings.source(key) == "flag" and trained is not None and (value or every) != (trained or every):
            lines.append(f"{name} was trained with {key} {trained}; using --{key} {value}")
    if record.get("t_edit") not in (None, t_edit.value):
        lines.append(f"{name} was trained with t_edit {record['t_edit']}; using t_edit {t_edit}")
    return lines
