"""Settings with a source: each has one value, decided here, in this order:

    a flag that was given > the direction's own record > the section `editing` of the YAML > the default

--edit_image and --export bring values of their own (OF_ONE_IMAGE, OF_EXPORT), which stand above those of the YAML.

t_edit and t_boost, which a number, a record or an LPIPS curve can give, are decided in `decide_t_edit` and `decide_t_boost`.
"""

from dataclasses import dataclass

from asyrp import intervals
from asyrp.options import DEFAULTS, FLAGS
from asyrp.parsing import check_values
from utils.errors import UserError

# What a direction's record decides about a run that uses it.
FROM_RECORD = ("t_0", "n_inv_step", "n_train_step")


@dataclass(frozen=True)
class Value:
    """A value and where it is from, in a few words."""

    value: object
    source: str

    def __str__(self):
        return f"{self.value} ({self.source})"


# What --edit_image means where no flag says otherwise: enough steps on the one picture, long ones, with little to hold them
# back; one checkpoint at the end, and a strip. Chosen by eye on faces of the default stack.
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


# A direction is shared with a strip, unless the run has one anyway.
OF_EXPORT = {"delta_interpolation": True, "min_delta": -1.0, "max_delta": 1.5, "num_delta": 6}


class Settings:
    """`settings.n_test_step` is a value, by the name of its flag; `settings.source("n_test_step")` says where it is from.

    given: {flag: value}, as `parsing.parse_args` returns it. config: a Config of config.py. record, name: of the direction that
    the run uses, if it uses one.
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
        """The same settings for a run that uses this direction."""
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
        """{name: value} of all settings, as a report shows them."""
        return {name: self.get(name).value for name in FLAGS}

    def sources(self):
        """{name: source} of the settings that are not by default."""
        return {name: source for name in FLAGS if (source := self.source(name)) != "default"}

    def steps(self, name):
        """A number of steps, with 0 as the number of all of them."""
        return getattr(self, name) or self.t_0 + 1


def check_settings(settings, T):
    """Raise UserError for settings that do not fit together, whatever their source. T: timesteps of the model's schedule."""
    try:
        check_values(settings.config.editing.given())
    except UserError as error:
        raise UserError(f"{settings.config.path.name}, section editing: {error}") from error
    t_0 = settings.t_0
    if not 1 <= t_0 < T:
        raise UserError(f"--t_0 {t_0}: {settings.config.path.name} has {T} timesteps, numbered from 0; give 1 to {T - 1}")
    for name in ("n_inv_step", "n_train_step", "n_test_step"):
        n = getattr(settings, name)
        if n == 1 or n > t_0 + 1:
            raise UserError(
                f"--{name} {n} ({settings.source(name)}): must be 2 to {t_0 + 1}, or 0 for every timestep up to t_0"
            )
    if settings.delta_interpolation and settings.min_delta == settings.max_delta:
        raise UserError(f"--delta_interpolation from {settings.min_delta:g} to the same is no strip: change --max_delta")
    for name in ("user_defined_t_edit", "user_defined_t_addnoise"):
        t = getattr(settings, name)
        if t is not None and t > T:
            raise UserError(f"--{name} {t}: must be 0 to {T}")
    if (settings.run_train or settings.fit_direction == "clip_pca") and not settings.just_precompute:
        if settings.use_id_loss != (settings.id_loss_w != 0):
            raise UserError("the identity loss needs both --use_id_loss and --id_loss_w above 0")
        if settings.fit_direction == "clip_pca" and settings.clip_loss_w == 0:
            raise UserError("--fit_direction clip_pca knows a component by the CLIP loss alone: set --clip_loss_w")
        if settings.clip_loss_w == settings.l1_loss_w == settings.id_loss_w == 0:
            raise UserError("all weights of the loss are 0: nothing would be trained; set --clip_loss_w")


def check_noise_maps(settings):
    """Raise UserError for a test whose process is not the one that --inversion ddpm makes its noise maps for."""
    if settings.inversion != "ddpm":
        return
    inversion, test = settings.get("n_inv_step"), settings.get("n_test_step")
    if settings.steps("n_inv_step") != settings.steps("n_test_step"):
        raise UserError(
            f"--inversion ddpm has a noise map for each step, but n_inv_step is {inversion} and n_test_step is {test}: give "
            "--n_inv_step and --n_test_step the same number"
        )
    if settings.dt_lambda != 1:
        raise UserError(f"--inversion ddpm takes its steps as they are: give --dt_lambda 1, not {settings.get('dt_lambda')}")


# ---- intervals --------------------------------------------------------------------------------------------------------------


def decide_t_edit(settings, uses, curve, cosine):
    """t_edit of each direction that a run uses or trains -> list of Value.

    uses: list of (name, record, prompts); record is {} for one to be trained, prompts (source, target) or None. curve: function
    without arguments -> the LPIPS Curve; cosine: function (source, target) -> their cosine. Both are called only where a curve
    decides. Where it decides for several, t_edit is that of the largest cosine among them (reference: 2023 release).
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
                    f"t_edit of {name} is not known: give --edit_attr (or --src_txts and --trg_txts), or --user_defined_t_edit"
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
    """t_boost of a run -> Value. records: list of (name, record) of the directions it uses; curve: as in `decide_t_edit`.

    Ancestral steps (--sample_type ddpm) and those with noise maps (--inversion ddpm) are noisy throughout: there is nothing to
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
    """The flags about quality boosting that are given where --inversion ddpm has noise in every step anyway."""
    if settings.inversion != "ddpm":
        return []
    flags = ("user_defined_t_addnoise", "lpips_addnoise_th", "add_noise_from_xt", "origin_process_addnoise")
    return [name for name in flags if settings.given.get(name)]  # --user_defined_t_addnoise 0 says the same


def differences(settings, name, record, t_edit):
    """Lines that say where flags differ from what a direction was trained with. t_edit: the Value the run uses."""
    lines, every = [], settings.t_0 + 1
    for key in FROM_RECORD:
        value, trained = getattr(settings, key), record.get(key)
        if settings.source(key) == "flag" and trained is not None and (value or every) != (trained or every):
            lines.append(f"{name} was trained with {key} {trained}; --{key} {value} is used")
    if record.get("t_edit") not in (None, t_edit.value):
        lines.append(f"{name} was trained with t_edit {record['t_edit']}; t_edit {t_edit} is used")
    return lines
