"""The pictures of a test: one labelled PNG per image (and an animation, if requested), and one overview."""

from pathlib import Path

from asyrp.report import pictures as drawing
from utils.text import printable

OVERVIEW_ROWS = 64  # most rows in the overview


class Album:
    """Draws and writes the pictures of a test in the background, by `later`.

    columns, row_names: labels of the edits; row_names is None unless they form a grid. strengths: the label of each edit.
    animation: "gif", "webp" or None.
    """

    def __init__(self, folder, later, columns, row_names, strengths, animation=None):
        self.folder, self.later, self.animation = Path(folder), later, animation
        self.columns, self.row_names, self.strengths = columns, row_names, strengths
        self.rows, self.names, self.strips, self.labels = [], [], [], []

    def add(self, batch, before, edited):
        """Take a Batch and its pictures, as `Editor.pictures_of` returns them."""
        self.keep(self.see(batch, before, edited, len(self.strips)))

    def see(self, batch, before, edited, place):
        """Draw the pictures of a batch, whose first image is number `place` of the test -> plain data and tensors for `keep`,
        in this process or another."""
        labels, first = [label for label, _ in before] + self.columns, []
        for i, index in enumerate(batch.indices):
            pictures = [column[i] for _, column in edited]
            grid = drawing.in_rows([column[i] for _, column in before], pictures, len(self.columns))
            self.later(drawing.save_grid, self.folder / f"{index:06d}.png", grid, labels, self.row_names)
            if self.animation:
                path = self.folder / f"{index:06d}.{self.animation}"
                self.later(drawing.save_animation, [pictures], self.strengths, path)
            if (place + i) * len(grid) < OVERVIEW_ROWS:
                first.append((printable(Path(batch.names[i]).stem), grid, pictures))
        return labels, first

    def keep(self, seen):
        """Add the result of `see`. Call it in the order of the images."""
        self.labels, first = seen
        for stem, grid, pictures in first:
            self.strips.append(pictures)
            self.rows += grid
            self.names += [f"{stem} {name}".strip() for name in self.row_names or [""]]

    def save(self):
        """Write the overview -> a summary to print."""
        if self.animation:
            self.later(drawing.save_animation, self.strips, self.strengths, self.folder / f"all.{self.animation}")
        overview = self.folder / "all.png"
        self.later(drawing.save_grid, overview, self.rows, self.labels, self.names)
        self.later.wait()
        return f"edited pictures: {overview}"


def axes(labels, names):
    """Labels of the edits -> (column labels, row labels or None). names: of two directions, whose edits form a grid."""
    if len(names) != 2:
        return labels, None
    first, second = zip(*(label.split(", ") for label in labels), strict=True)
    side = round(len(labels) ** 0.5)
    return [f"{names[1]} {strength}" for strength in second[:side]], [f"{names[0]} {strength}" for strength in first[::side]]
