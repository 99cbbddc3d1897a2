"""--export: a folder for sharing a direction: the direction with its record, a strip of test images, and a model card.

`hf upload USER/REPO <folder>` uploads it to the Hugging Face hub, where its name is `hf:USER/REPO`.
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
ROWS = 4  # number of test images in the strip
TAGS = ["asyrp", "h-space", "image-editing", "diffusion"]
SIGNED = "\n<!-- written by --export: {} -->\n"  # to detect a card that was edited by hand, which must not be overwritten


def cell(text):
    """Escape any text for a Markdown table."""
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
    """Create the folder of an export, before anything is computed. Raises UserError if it contains anything but an earlier
    export, or a card that was edited."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(path.name for path in folder.iterdir())
    remedy = "give another folder, or move that file"
    if others := [name for name in names if name not in (CARD, STRIP, FILE)]:
        raise UserError(f"--export {folder} contains {printable(others[0])}, which is not part of an export: {remedy}")
    if names and not (CARD in names and is_signed((folder / CARD).read_text(encoding="utf-8", errors="replace"))):
        raise UserError(f"--export {folder}: its {CARD} is missing or was edited by hand: {remedy}")


def signed(text):
    return text + SIGNED.format(digest(text))


def is_signed(text):
    """Whether a card is unchanged since `signed` produced it."""
    begins, ends = SIGNED.split("{}")
    body, mark, _ = text.rpartition(begins)
    return bool(mark) and text == signed(body) and text.endswith(ends)


class Export:
    """The part of `results.TestResults` that writes the folder to share.

    experiment: an Experiment, with the settings of the run. use: the Use of its only direction. prompts: (source, target) or
    None. t_boost: of the run.
    """

    def __init__(self, experiment, use, prompts, t_boost):
        self.experiment, self.settings, self.use, self.t_boost = experiment, experiment.settings, use, t_boost
        self.folder, self.rows, self.labels = Path(self.settings.export), [], []
        self.prompts = use.direction.record.get("prompts") or prompts

    def add(self, batch, before, edited):
        """Take a Batch and its pictures, as `Editor.pictures_of` returns them."""
        self.keep(self.see(batch, before, edited, len(self.rows)))

    def see(self, batch, before, edited, place):
        """The pictures of a batch, whose first image is number `place` of the test -> plain data and tensors for `keep`, in
        this process or another."""
        columns = edited if batch.x_0 is None else [("original", batch.x_0), *edited]
        room = max(0, ROWS - place)
        rows = [[images[i].cpu() for _, images in columns] for i in range(min(len(batch.indices), room))]
        return [label for label, _ in columns], rows

    def keep(self, seen):
        """Add the result of `see`. Call it in the order of the images."""
        self.labels, rows = seen
        self.rows += rows

    def save(self):
        """Write the three files -> a summary to print. The card comes first, because it marks the folder as an export."""
        direction = self.direction()
        write_text(self.folder / CARD, signed(self.card(direction)))
        pictures.save_grid(self.folder / STRIP, self.rows, self.labels)
        directions.save(direction, self.folder / FILE)
        return f"direction, strip and card: {self.folder}; share them with hf upload USER/REPO {self.folder}"

    def direction(self):
        """The direction, with a record of this run's settings, so that loading it reproduces the edits of the strip."""
        s, direction = self.settings, self.use.direction
        record = direction.record | {"t_edit": self.use.t_edit.value, "t_0": s.t_0}
        record |= {name: s.steps(name) for name in ("n_inv_step", "n_train_step")}
        record |= {"prompts": list(self.prompts)} if self.prompts else {}
        return Direction(direction.function, record, direction.name)

    def card(self, direction):
        """The text of the model card."""
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
        """The results of --evaluate in this run, as in the report, or None."""
        if not self.settings.evaluate:
            return None
        path = self.experiment.folder / f"{evaluation.NAME}.json"
        found = page.metrics_of(path.read_text(encoding="utf-8"))
        clip = Path(found["clip"])  # do not publish the folder of a local file
        return found | {"clip": clip.name if clip.suffix else found["clip"]}
