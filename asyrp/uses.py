"""The directions of a run: their files, and the t_edit and scale of each."""

import logging

import numpy as np

from asyrp import directions, hspace, settings
from asyrp.calibration import Calibration
from asyrp.editing import Use
from utils.errors import UserError
from utils.files import shown
from utils.text_dic import PROMPTS

log = logging.getLogger(__name__)


def find_directions(s, experiment):
    """Read the directions that the settings name -> list of Stored. Needs no network yet.

    Raises UserError for one that is missing, damaged, or of another kind than the flags say.
    """
    names = (s.multiple_attr or "").split() or [s.manual_checkpoint_name or s.load_from_checkpoint or experiment.base]
    category, chosen = s.config.data.category, s.choose_checkpoint_num
    found = [directions.read(directions.find(name, category, experiment.suffix, chosen)) for name in names]
    for stored in found:
        log.info("direction: %s", shown(stored.path))
        _check_kind(s, stored)
    return found


def _check_kind(s, stored):
    """Raise UserError if flags contradict the kind of direction in the file."""
    kinds = {"delta_block": s.train_delta_block, "delta_h": s.train_delta_h}
    if any(kinds.values()) and not kinds[stored.kind]:
        raise UserError(f"{stored.path} was trained with {directions.FLAG[stored.kind]}: use that flag instead")
    trained = stored.record.get("ignore_timesteps")
    # With --num_mean_of_delta_hs, --ignore_timesteps chooses how to average.
    if s.ignore_timesteps and trained is False and not s.num_mean_of_delta_hs:
        raise UserError(f"{stored.path} was trained without --ignore_timesteps: leave that flag out")


def uses_of(s, found, prompts, curve, cosine):
    """Directions -> (list of Use, each with its own t_edit and scale; t_boost as a Value).

    prompts: the (source, target) pairs of the flags; curve, cosine: see `settings.decide_t_edit`.
    """
    named = (s.multiple_attr or "").split() or [None] * len(found)
    asked = [_asked(name, direction, prompts, len(found)) for name, direction in zip(named, found, strict=True)]
    t_edits = settings.decide_t_edit(s, asked, curve, cosine)
    t_boost = settings.decide_t_boost(s, [(d.name, d.record) for d in found], curve)
    if idle := settings.without_boosting(s):
        flags = ", ".join(f"--{name}" for name in idle)
        log.warning("%s: no effect, because --inversion ddpm adds noise at every step", flags)
    uses = []
    for direction, t_edit in zip(found, t_edits, strict=True):
        flag = s.source("n_train_step") == "flag"
        trained = (not flag and direction.record.get("n_train_step")) or s.steps("n_train_step")
        scale = hspace.coefficients(1.0, len(found), trained, s.steps("n_test_step"))[0]
        uses.append(Use(direction, t_edit, scale))
        for line in settings.differences(s, direction.name, direction.record, t_edit):
            log.warning(line)
    return uses, t_boost


def _asked(name, direction, flags, n):
    """(name, record, prompts) of a direction, for `decide_t_edit`. A single direction uses the prompts of the flags, several
    use their own."""
    own = direction.record.get("prompts") or PROMPTS.get(name)
    own = own and tuple(own)
    if n > 1 or not flags:
        return direction.name, direction.record, own
    if own and own != flags[0]:
        said = '%s was trained for "%s" to "%s", but the given prompts are "%s" to "%s"'
        log.warning(said, direction.name, *own, *flags[0])
    return direction.name, direction.record, flags[0]


def strip_axes(s, uses, each, conditions):
    """The strengths of a strip -> one list per direction. each: one factor per direction, or []; conditions: of the run, see
    `Parts.conditions`.

    Those of a calibrated direction are spaced by equal changes of the image unless --equal_steps 0 is given; this is logged.
    """
    low, high, n = s.min_delta, s.max_delta, s.num_delta
    axes = []
    for use, factor in zip(uses, each or [1.0] * len(uses), strict=True):
        name, effective = use.direction.name, s.hs_coeff_delta_h * factor / len(uses) ** 0.5
        calibration = Calibration.of_record(use.direction.record, name) if s.equal_steps and effective else None
        if calibration is None:
            axes.append(np.linspace(low, high, n).tolist())
            continue
        axes.append([strength / effective for strength in calibration.spaced(low * effective, high * effective, n)])
        log.info("%s: steps of equal change (%s); use --equal_steps 0 for equal strengths", name, calibration.measure)
        for what, here in (conditions | {"t_edit": use.t_edit.value}).items():
            there = calibration.about.get(what, here)
            if there != here and not (what == "t_edit" and there is None):  # None: the t_edit of the record
                said = "%s was calibrated with %s %s, but here it is %s: steps may differ in size; --calibrate measures again"
                log.warning(said, name, what, there, here)
        for limit in calibration.beyond(*sorted((low * effective, high * effective))):
            log.warning("%s saturates at strength %+g: beyond it the image changes little", name, limit)
    return axes


def tell(uses, t_boost, s, region=None):
    """Log the decided settings -> the same as plain data, for settings_*.yml. region: a Region, or None."""
    strength, steps = s.hs_coeff_delta_h, s.get("n_test_step")
    for use in uses:
        log.info(
            "t_edit %s · %d steps (%s) · strength %+g = coefficient %.3g",
            use.t_edit,
            s.steps("n_test_step"),
            steps.source,
            strength,
            strength * use.scale,
        )
        trained_in = use.direction.record.get("training", {}).get("region")
        if trained_in and (region is None or trained_in != region.about):
            log.warning("%s was trained in a region (%s), but here it acts in another one", use.direction.name, trained_in)
    log.info("t_boost %s", t_boost)
    each = [
        {"name": use.direction.name, "t_edit": str(use.t_edit), "scale": use.scale, "record": use.direction.record}
        for use in uses
    ]
    return {"t_boost": str(t_boost), "directions": each, "region": region and region.about}


def common_t_edit(uses):
    """The t_edit of a run for its results: a number, a list if several directions differ, None without a direction."""
    t_edits = [use.t_edit.value for use in uses]
    return (t_edits[0] if len(set(t_edits)) == 1 else t_edits) if t_edits else None
