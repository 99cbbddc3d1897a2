"""Draw results: labelled grids, animations, and plots of LPIPS curves."""

import math
import textwrap
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageDraw, ImageFont
from torchvision.transforms.functional import to_pil_image

from utils.files import replacing
from utils.text import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from asyrp.intervals import Curve

Row = Sequence[torch.Tensor | None]
SMALLEST_CELL = 96  # pixels; smaller images are enlarged by a whole factor, so that labels fit and pixels stay sharp
GAP = 4
EXACT = 17  # significant digits that distinguish any two float64 numbers
FRAME = 300  # milliseconds per strength in an animation


def to_pil(image: torch.Tensor) -> Image.Image:
    """Tensor (3, H, W) in [-1, 1] (clipped) -> 8-bit PIL image."""
    return to_pil_image(image.detach().float().cpu().clamp(-1, 1).add(1).div(2).mul(255).round().div(255))


def enlarged(image: torch.Tensor, least: int = SMALLEST_CELL) -> Image.Image:
    """Square tensor (3, H, W) in [-1, 1] -> PIL image, enlarged by a whole factor to at least `least` pixels per side."""
    side = image.shape[-1] * max(1, -(-least // image.shape[-1]))
    return to_pil(image).resize((side, side), Image.Resampling.NEAREST)


def labelled_grid(
    rows: Sequence[Row], columns: Sequence[str], names: Sequence[str] | None = None, least: int = SMALLEST_CELL
) -> Image.Image:
    """Rows of images -> one PIL image, with a label above each column and, if given, a name before each row.

    rows: list of lists of tensors (3, H, W) in [-1, 1], all of the same size, or None for an empty cell; columns: list of str;
    names: list of str. least: smallest side of an image in pixels.
    """
    cell = enlarged(next(image for row in rows for image in row if image is not None), least).width
    font = ImageFont.load_default(12)
    labels = [textwrap.fill(printable(text), max(8, cell // 7)) for text in columns]
    names = names and [printable(name) for name in names]
    top = 8 + 15 * max(label.count("\n") + 1 for label in labels)
    left = 8 + max((int(font.getlength(name)) for name in names), default=0) if names else GAP
    canvas = Image.new("RGB", (left + len(columns) * (cell + GAP), top + len(rows) * (cell + GAP)), "white")
    draw = ImageDraw.Draw(canvas)
    for x, label in enumerate(labels):
        middle = left + x * (cell + GAP) + cell // 2
        draw.multiline_text((middle, top - 4), label, "black", font, anchor="md", align="center", spacing=2)
    for y, row in enumerate(rows):
        upper = top + y * (cell + GAP)
        if names:
            draw.text((left - 6, upper + cell // 2), names[y], "black", font, anchor="rm")
        for x, image in enumerate(row):
            if image is not None:
                canvas.paste(enlarged(image, least), (left + x * (cell + GAP), upper))
    return canvas


def in_rows(before: list[torch.Tensor], edited: list[torch.Tensor], width: int) -> list[Row]:
    """Arrange pictures for `labelled_grid`: `width` edits per row, with the unedited pictures `before` in the first row."""
    rows = [edited[i : i + width] for i in range(0, len(edited), width)]
    return [[*(before if i == 0 else [None] * len(before)), *row] for i, row in enumerate(rows)]


def save(picture: Image.Image, path: Path | str) -> None:
    """Write a PIL image, creating its folder."""
    with replacing(path) as temporary:
        picture.save(temporary, kind_of(path))


def kind_of(path: Path | str) -> str:
    """Pillow's name of the format for a file name."""
    return Image.registered_extensions()[Path(path).suffix.lower()]


def save_grid(path: Path | str, rows: Sequence[Row], columns: Sequence[str], names: Sequence[str] | None = None) -> None:
    """Draw and write a `labelled_grid`."""
    save(labelled_grid(rows, columns, names), path)


def save_animation(strips: Sequence[Sequence[torch.Tensor]], labels: Sequence[str], path: Path | str) -> None:
    """Strips of edited images -> an animation (GIF or WebP, by suffix) over the strengths and back, in a loop.

    strips: per image a list of tensors (3, H, W) in [-1, 1], one per strength; several images are shown side by side.
    labels: of the strengths, list of str.
    """
    columns = math.ceil(math.sqrt(len(strips)))
    frames = []
    for k, label in enumerate(labels):
        images = [strip[k] for strip in strips]
        rows = [images[i : i + columns] for i in range(0, len(images), columns)]
        frames.append(labelled_grid(rows, [label] * columns))
    rest = frames[1:] + frames[-2:0:-1]
    # Only used by WebP. Enlarged pixels are stored losslessly, which compresses well.
    quality = {"lossless": strips[0][0].shape[-1] < SMALLEST_CELL, "quality": 90}
    with replacing(path) as temporary:
        frames[0].save(temporary, kind_of(path), save_all=True, append_images=rest, duration=FRAME, loop=0, **quality)


def plot_curves(curve: "Curve", path: Path | str, title: str, t_edit: int | None = None, t_boost: int | None = None) -> None:
    """Plot the two LPIPS curves with their standard deviations, and mark t_edit and t_boost (ints, or None)."""
    # Imported here because it takes a second and most runs draw no plot.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    series = (
        (curve.lpips_x_t, curve.lpips_x_t_std, "LPIPS(x₀, x_t)", "tab:gray"),
        (curve.lpips_x0_t, curve.lpips_x0_t_std, "LPIPS(x₀, P_t)", "tab:blue"),
    )
    for mean, std, label, colour in series:
        axes.plot(curve.t, mean, color=colour, label=label)
        axes.fill_between(curve.t, mean - std, mean + std, color=colour, alpha=0.2, linewidth=0)
    for t, label, colour in ((t_edit, "t_edit", "tab:red"), (t_boost, "t_boost", "tab:green")):
        if t is not None:
            axes.axvline(t, color=colour, linestyle="--", label=f"{label} = {t}")
    axes.set(xlabel="timestep t", ylabel="LPIPS (AlexNet), mean ± std", title=title, xlim=(0, curve.t[-1]), ylim=(0, None))
    axes.legend()
    save_figure(figure, path, dpi=120)


def save_figure(figure: "Figure", path: Path | str, dpi: int) -> None:
    """Write a matplotlib figure, in the format of the file name. A character that its font lacks is drawn as a box."""
    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        figure.savefig(temporary, dpi=dpi, format=Path(path).suffix[1:])


# ---- labels -----------------------------------------------------------------------------------------------------------------


def strength_labels(values: Iterable[float]) -> list[str]:
    """Strengths of one run -> labels such as "+1", "+0", "-0.5", with two significant digits, or more if needed to distinguish
    different numbers. Numbers that differ from 0 only by rounding are shown as +0."""
    values = [float(value) for value in values]
    for digits in range(2, EXACT):
        labels = [_signed(value, digits, values) for value in values]
        if len(set(labels)) == len(set(values)):
            return labels
    return [f"{value + 0.0:+}".removesuffix(".0") for value in values]


def _signed(value: float, digits: int, values: Sequence[float]) -> str:
    """One strength with this many significant digits, or at least all digits before the point."""
    if abs(value) < max(map(abs, values)) * 10.0 ** (-7 - digits):
        value = 0.0
    return f"{value + 0.0:+.{max(digits, len(f'{abs(value):.0f}'))}g}"


def point_labels(points: Sequence[Sequence[float]]) -> list[str]:
    """Strengths of several directions, a sequence of numbers per picture -> labels such as "+1, -0.5"."""
    return [", ".join(labels) for labels in zip(*map(strength_labels, zip(*points, strict=True)), strict=True)]
