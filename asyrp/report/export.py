"""--export: a direction as a folder to share: the direction with its record, a strip of test images, and a card.

`hf upload USER/REPO <folder>` puts it on the Hugging Face hub, and `hf:USER/REPO` names it from then on.
"""

import html
from pathlib import Path

import jinja2
import yaml

from asyrp import directions
from asyrp.config import CONFIGS
from asyrp.directions import FILE, Direction
from asyrp.evaluation import evaluation
from asyrp.report import page, pictures
from utils.digests import digest
from utils.errors import UserError
from utils.files import write_text
from utils.text import printable

CARD, STRIP = "README.md", "strip.png"
ROWS = 4  # test images in the strip
TAGS = ["asyrp", "h-space", "image-editing", "diffusion"]
SIGNED = "\n<!-- written by --export: {} -->\n"  # so that a card that was changed by hand is not written over


def cell(text):
    """A text of any origin, as it stands in a table of Markdown."""
    return html.escape(printable(text), quote=False).replace("|", "\\|")


TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    undefined=jinja2.StrictUndefined,
)
TEMPLATES.filters["cell"] = cell


def prepare(folder):
    """Make the folder of an export, before anything is computed for it. Raises UserError where it holds something else than an
    earlier export, or a card that was changed since."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(path.name for path in folder.iterdir())
    remedy = "give another folder, or move it away"
    if others := [name for name in names if name not in (CARD, STRIP, FILE)]:
        raise UserError(f"--export {folder}: it holds {printable(others[0])}, which is no part of an export; {remedy}")
    if names and not (CARD in names and is_signed((folder / CARD).read_text(encoding="utf-8", errors="replace"))):
        raise UserError(f"--export {folder}: its {CARD} is missing or was changed by hand; {remedy}")


def signed(text):
    return text + SIGNED.format(digest(text))


def is_signed(text):
    """Whether a card is as `signed` made it."""
    begins, ends = SIGNED.split("{}")
    body, mark, _ = text.rpartition(begins)
    return bool(mark) and text == signed(body) and text.endswith(ends)


class Export:
    """The part of a test's results that becomes a folder to share (see `results.TestResults`).

    experiment: an Experiment, with the settings of the run. use: the Use of its one direction. prompts: (source, target) or
    None. t_boost: of the run.
    """

    def __init__(self, experiment, use, prompts, t_boost):
        self.experiment, self.settings, self.use, self.t_boost = experiment, experiment.settings, use, t_boost
        self.folder, self.rows, self.labels = Path(self.settings.export), [], []
        self.prompts = use.direction.record.get("prompts") or prompts

    def add(self, batch, before, edited):
        """A Batch and its pictures, as `Editor.pictures_of` returns them."""
        self.keep(self.see(batch, before, edited, len(self.rows)))

    def see(self, batch, before, edited, place):
        """The pictures of a batch, the first of whose images is number `place` of the test -> what `keep` takes, of this
        process or of another: plain data and tensors."""
        columns = edited if batch.x_0 is None else [("original", batch.x_0), *edited]
        room = max(0, ROWS - place)
        rows = [[images[i].cpu() for _, images in columns] for i in range(min(len(batch.indices), room))]
        return [label for label, _ in columns], rows

    def keep(self, seen):
        """What `see` returned, in the order of the images."""
        self.labels, rows = seen
        self.rows += rows

    def save(self):
        """Write the three files -> what to print. The card comes first: without it the others are nobody's."""
        direction = self.direction()
        write_text(self.folder / CARD, signed(self.card(direction)))
        pictures.save_grid(self.folder / STRIP, self.rows, self.labels)
        directions.save(direction, self.folder / FILE)
        return f"direction, strip and card: {self.folder}; hf upload USER/REPO {self.folder} shares them"

    def direction(self):
        """The direction; its record says what this run has worked with, so that whoever loads it gets the strip's edits."""
        s, direction = self.settings, self.use.direction
        record = direction.record | {"t_edit": self.use.t_edit.value, "t_0": s.t_0}
        record |= {name: s.steps(name) for name in ("n_inv_step", "n_train_step")}
        record |= {"prompts": list(self.prompts)} if self.prompts else {}
        return Direction(direction.function, record, direction.name)

    def card(self, direction):
        """The model card, as text."""
        s, config = self.settings, self.settings.config
        on_hub = bool(config.pipeline and config.pipeline.on_hub)
        front = {"tags": TAGS, "pipeline_tag": "image-to-image"} | ({"base_model": config.pipeline.name} if on_hub else {})
        facts, training = directions.facts(direction.kind, direction.record)
        return TEMPLATES.get_template("card.md.j2").render(
            front=yaml.safe_dump(front, sort_keys=False, allow_unicode=True),
            title=printable(self.experiment.base),
            prompts=self.prompts and [cell(prompt) for prompt in self.prompts],
            images=f"{len(self.rows)} test image{'s' if len(self.rows) > 1 else ''}",
            inversion=page.inversion_of({"inversion": s.inversion}),
            n_steps=s.steps("n_test_step"),
            n_inv_step=s.steps("n_inv_step"),
            t_edit=self.use.t_edit.value,
            t_boost=self.t_boost,
            boost=f", t_boost={self.t_boost}" if self.t_boost else "",
            t_0="" if s.t_0 == config.diffusion.num_diffusion_timesteps - 1 else f", t_0={s.t_0}",
            credit=config.data.credit,
            config=config.pipeline.name if on_hub else printable(config.path.name),
            published=on_hub or config.path.parent == CONFIGS,
            size=config.data.image_size,
            facts=facts,
            training=training,
            evaluation=self.evaluation(),
        )

    def evaluation(self):
        """What --evaluate has measured in this run, as the report shows it; None without it."""
        if not self.settings.evaluate:
            return None
        path = self.experiment.folder / f"{evaluation.NAME}.json"
        found = page.metrics_of(path.read_text(encoding="utf-8"))
        clip = Path(found["clip"])  # a file's folder is nobody's business
        return found | {"clip": clip.name if clip.suffix else found["clip"]}
