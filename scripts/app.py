"""A web page for interactive editing: an image, a slider per direction, and new directions from two prompts.

    python scripts/app.py [--config avatar.yml] [--weights FILE] [--images FOLDER] [--host 127.0.0.1] [--port 7860]

It needs gradio: pip install -e ".[app]". See docs/app.md.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.terminal import catch_signals_early, guarded, plain_line

if __name__ == "__main__":
    catch_signals_early()

import argparse
import html
import json
import logging
import os
import re
import shutil
import tempfile
import threading
import time
from functools import partial, wraps

import torch

import asyrp
from asyrp import directions
from asyrp.data.datasets import first_images, read_image, to_unit_range
from asyrp.data.layouts import open_split
from asyrp.evaluation.segmenter import open_segmenter
from asyrp.report import pictures
from asyrp.session import REACH, Session
from utils.arguments import whole
from utils.errors import UserError
from utils.extras import load
from utils.files import write_text

FACES = 8  # number of test faces to choose from
SHOWN, CELL = 384, 160  # smallest size of a picture in pixels: under the slider, elsewhere
REST = 0.2  # seconds without movement of a slider before drawing


def faces(model, folder, split, n):
    """The first n images of a folder, or of the config's "train" or "test" images, (n, 3, H, W). Faces of the default stack are
    rendered."""
    if folder is not None or model.config.data.dataset != "AVATAR":
        return first_images(open_split(model.config, split, folder), n)
    from avatar.render import render_face

    return torch.stack([to_unit_range(render_face(split, i, model.image_size)[0], model.image_size) for i in range(n)])


class Visit(Session):
    """A Session of one open page, with a temporary folder. files: downloads, {name: path}."""

    def __init__(self, model, folder):
        super().__init__(model)
        self.folder, self.files, self.stopped = Path(tempfile.mkdtemp(dir=folder)), {}, threading.Event()

    def offer(self, name, write, *content):
        path = Path(tempfile.mkdtemp(dir=self.folder)) / name  # a new path each time, because browsers cache files
        write(*content, path)
        self.files[name] = str(path)

    def close(self):
        self.stopped.set()
        shutil.rmtree(self.folder, ignore_errors=True)


def page(gr, model, images, folder):
    """Build the page for a Model -> gr.Blocks. images: a folder of images, or None; folder: for temporary files of visits."""
    config, own, visits, shelf = model.config, Session(model).settings, {}, []
    segments = open_segmenter(config.segmenter_path(), model.device).names if config.segmenter else []
    try:
        shelf = faces(model, images, "test", FACES)
    except UserError as error:
        logging.warning("there are no test images to choose from, give --images: %s", error)

    def told(function):
        """Show errors that the user can fix as a toast, with the same line as in the terminal."""

        @wraps(function)
        def called(*args):
            try:
                return function(*args)
            except Exception as error:
                if (line := plain_line(error)) is None:
                    raise
                line = re.sub(rf"{re.escape(folder)}/\w+/", "", line)  # show only the name of an uploaded file
                raise gr.Error(html.escape(line), print_exception=False) from error

        return called

    warnings = logging.Handler(logging.WARNING)
    warnings.emit = lambda record: gr.Warning(html.escape(record.getMessage()))
    for package in ("asyrp", "losses", "models", "utils"):
        logging.getLogger(package).addHandler(warnings)

    def start(request: gr.Request):
        visit = visits[request.session_hash] = Visit(model, folder)
        visit.image = shelf[0] if len(shelf) else None
        return visit, time.monotonic()

    def close(request: gr.Request):
        if visit := visits.pop(request.session_hash, None):
            visit.close()

    def choose(visit, event: gr.SelectData):
        visit.image = shelf[event.index]

    def upload(visit, path):
        visit.image = read_image(path, model.image_size)

    def apply(visit, n_steps, t_edit, t_boost, seed, *region):
        if t_edit and not t_edit.isdecimal():
            raise UserError(f"t_edit {t_edit}: must be a whole number, 0 or more, or empty")
        visit.set_region(*region)
        visit.settings = {"n_steps": n_steps or own["n_steps"], "t_edit": int(t_edit) if t_edit else None}
        visit.settings |= {"t_boost": t_boost or 0, "seed": seed or 0}

    def follow(visit, name, position):
        visit.positions[name] = position or 0  # None while a number is being typed

    def draw_at(visit, name, position):
        follow(visit, name, position)
        time.sleep(REST)
        return draw(visit) if visit.positions[name] == position else [gr.skip()] * 3

    def draw(visit):
        sides = visit.sides()
        _, *pair = (pictures.enlarged(image, SHOWN) for image in sides.values())
        visit.offer("edit.png", pictures.save, pictures.to_pil([*sides.values()][-1]))
        visit.offer("edit.json", lambda text, path: write_text(path, text), json.dumps(visit.about(), indent=1))
        return pair, pictures.labelled_grid([[*sides.values()]], [*sides], least=CELL), [*visit.files.values()]

    def draw_strip(visit):
        strip = visit.strip()
        picture = pictures.labelled_grid([[*strip.values()]], [*strip], least=CELL)
        visit.offer("strip.png", pictures.save, picture)
        return picture, [*visit.files.values()]

    def learn(visit, src, trg, n, progress=gr.Progress()):  # noqa: B008 - how gradio hands it over
        def report(done, total):
            if visit.stopped.is_set():
                raise UserError("training was cancelled: the new direction was not kept")
            progress((done, total), desc="training")

        visit.stopped.clear()
        made = visit.learn(faces(model, images, "train", n), src, trg, progress=report)
        visit.offer(re.sub(r"\W+", "_", made.name)[:80] + ".safetensors", directions.save, made)
        return time.monotonic(), html.escape(f"Learned: {made.name}")

    queue = {"concurrency_id": "model", "concurrency_limit": 1}  # one model call at a time
    small, number = [pictures.enlarged(face, CELL) for face in shelf], partial(gr.Number, precision=0, minimum=0)
    drawn = partial(gr.Image, show_label=False, format="png", interactive=False, buttons=["fullscreen"])
    with gr.Blocks(title="Asyrp", analytics_enabled=False, delete_cache=(3600, 86400)) as demo:
        visit, renewed = gr.State(), gr.State(0)
        gr.Markdown(f"## Edits in h-space: {config.path.stem}")
        with gr.Row():
            with gr.Column(scale=2):
                file = gr.File(label="Your own image", file_types=["image"], height=140)
                gallery = gr.Gallery(small, label="Test faces", columns=4, height=240, allow_preview=False, buttons=[])

                @gr.render([visit, renewed], [renewed.change])
                def sliders(visit_now, _):
                    for name in visit_now.directions:
                        at = gr.Slider(-REACH, REACH, visit_now.positions.get(name, 0), step=0.05, label=name, interactive=True)
                        given = [visit, gr.State(name), at]
                        at.change(follow, given, None, queue=False, trigger_mode="multiple", show_progress="hidden")
                        at.change(told(draw_at), given, shown, trigger_mode="always_last", **queue)

            with gr.Column(scale=3):
                pair = gr.ImageSlider(label="Reconstruction and edit", format="png", interactive=False, elem_id="pair")
                sides = drawn(elem_id="sides")
                strip_button = gr.Button("Draw a strip")
                strip = drawn(elem_id="strip")
                files = gr.File(label="Downloads", interactive=False, elem_id="files")
        with gr.Accordion("Settings", open=False):
            with gr.Row():
                settings = [number(own["n_steps"], label="Steps", maximum=model.T)]
                settings += [gr.Textbox(label="t_edit (empty: that of each direction)")]
                settings += [number(own["t_boost"], label="t_boost", maximum=model.T), number(0, label="Seed")]
            with gr.Row():
                settings += [gr.Dropdown(segments, value=[], multiselect=True, label="Region: segments")]
                settings += [gr.File(label="Region: mask image, white where to edit", file_types=["image"], height=140)]
                settings += [gr.Slider(0, 0.95, 0, step=0.05, label="Region: largest changes, above this quantile")]
            apply_button = gr.Button("Apply")
        with gr.Accordion("Learn a new direction from two prompts", open=False):
            with gr.Row():
                what = [gr.Textbox("face", label="Source prompt"), gr.Textbox(label="Target prompt")]
                what += [gr.Slider(2, 200, 24, step=1, label="Training images")]
                learn_button, cancel_button = gr.Button("Learn", variant="primary"), gr.Button("Cancel")
            learned = gr.Markdown(container=True, min_height=60)
        gr.Markdown(config.data.credit)

        shown = [pair, sides, files]
        for change in (
            demo.load(start, None, [visit, renewed]),
            gallery.select(choose, visit),
            file.upload(told(upload), [visit, file], None, **queue),
            apply_button.click(told(apply), [visit, *settings], None, **queue),
            learn_button.click(told(learn), [visit, *what], [renewed, learned], **queue),
        ):
            change.success(told(draw), visit, shown, **queue)
        strip_button.click(told(draw_strip), visit, [strip, files], **queue)
        cancel_button.click(lambda visit: visit.stopped.set(), visit, None, queue=False)
        demo.unload(close)
    return demo


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--config", default="avatar.yml", help="a name under configs/ or a path (avatar.yml)")
    add("--weights", help="weights of the U-Net (default: those of the config)")
    add("--images", type=Path, help="folder of images to choose from and to train on (default: the config's)")
    add("--device", help="cpu, cuda or cuda:N (default: cuda if available)")
    add("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: only this machine)")
    add("--port", type=whole(1, 65535), default=7860)
    args = parser.parse_args(argv)
    logging.basicConfig(level="WARNING", format="%(message)s")
    with tempfile.TemporaryDirectory(prefix="asyrp-app-", ignore_cleanup_errors=True) as folder:
        # Uploads go there too. Nothing is sent elsewhere, and the browser keeps no history.
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "False"}
        gradio = load("gradio", "the page")
        demo = page(gradio, asyrp.open_model(args.config, args.weights, args.device), args.images, folder)
        how = {"share": False, "max_file_size": "20mb", "footer_links": [], "quiet": True, "prevent_thread_lock": True}
        try:
            demo.launch(server_name=args.host, server_port=args.port, **how)
        except OSError as error:
            raise UserError(f"--port {args.port} of {args.host} is not available: give another --port") from error
        print(f"http://{args.host}:{args.port} (press Ctrl-C to stop)", flush=True)
        try:
            threading.Event().wait()
        finally:
            demo.close(verbose=False)


if __name__ == "__main__":
    sys.exit(guarded(main))
