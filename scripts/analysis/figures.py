"""One plot per claim, with one panel per subject, drawn from its Result."""

from asyrp.report import pictures as drawing

FACES = 4  # most images in a picture


def trajectories(axes, result):
    """The distance of P_t from that of the plain process, over timesteps."""
    for label, curve in result.curves.items():
        axes.plot(list(curve), list(curve.values()), label=label)
    axes.set(xlabel="timestep t", ylabel="RMS of P_t (edited) - P_t (plain)")
    axes.invert_xaxis()
    axes.legend()


def strengths(axes, result):
    """Score, and graded score on a second axis, over the strength."""
    rows = sorted(result.table, key=lambda row: row["strength"])
    x = [row["strength"] for row in rows]
    errorbars(axes, x, [row["score"] for row in rows], "tab:blue", "score")
    axes.set(xlabel="strength of delta_h", ylabel="score")
    if any(row["graded score"] != row["score"] for row in rows):
        other = axes.twinx()
        errorbars(other, x, [row["graded score"] for row in rows], "tab:orange", "log-odds")
        other.set_ylabel("log-odds", color="tab:orange")


def conditions(axes, result, prefix="score"):
    """A bar per condition for each column whose name starts with `prefix`."""
    columns = [name for name in result.table[0] if name.startswith(prefix)]
    width = 0.8 / len(columns)
    for i, column in enumerate(columns):
        x = [k + (i - (len(columns) - 1) / 2) * width for k in range(len(result.table))]
        values = [row[column] for row in result.table]
        axes.bar(x, [v.mean for v in values], width, yerr=[v.standard_error for v in values], capsize=3, label=column)
    labels = [row["condition"] for row in result.table]
    axes.set_xticks(range(len(labels)), labels, rotation=20, ha="right")
    axes.set_ylabel(f"{prefix}, mean ± standard error")
    if len(columns) > 1:
        axes.legend()


def denoising(axes, result):
    conditions(axes, result, "denoising error")


def trade(axes, result):
    """Score against change, one point per setting, with the chosen one marked."""
    for label, colour, wanted in (("t_edit", "tab:blue", lambda t_boost: t_boost == 0), ("t_boost", "tab:green", bool)):
        rows = [row for row in result.table if wanted(row["t_boost"])]
        x, y = ([row[name] for row in rows] for name in ("LPIPS to plain", "score"))
        axes.errorbar(
            [v.mean for v in x],
            [v.mean for v in y],
            [v.standard_error for v in y],
            [v.standard_error for v in x],
            "o-",
            color=colour,
            label=label,
        )
        for row in rows:
            at = (row["LPIPS to plain"].mean, row["score"].mean)
            axes.annotate(str(row[label]), at, xytext=(4, 4), textcoords="offset points", color=colour, fontsize=8)
    [chosen] = [row for row in result.table if row["condition"]]
    axes.plot(chosen["LPIPS to plain"].mean, chosen["score"].mean, "r*", markersize=14, label="chosen")
    axes.set(xlabel="LPIPS to plain", ylabel="score")
    axes.legend()


def errorbars(axes, x, values, colour, label):
    axes.errorbar(
        x, [v.mean for v in values], [v.standard_error for v in values], color=colour, marker="o", capsize=3, label=label
    )


def save_plot(draw, results, title, path):
    """results: subject name -> Result."""
    # Imported here because it takes a second.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(results), 4.2), layout="constrained")
    for axes, (name, result) in zip(figure.subplots(1, len(results), squeeze=False)[0], results.items(), strict=True):
        draw(axes, result)
        axes.set_title(name)
    figure.suptitle(title)
    drawing.save_figure(figure, path, dpi=100)


def save_faces(result, path):
    """Draw the first images of every condition."""
    columns = list(result.pictures)
    n = min(FACES, len(result.pictures[columns[0]]))
    drawing.save(drawing.labelled_grid([[result.pictures[c][i] for c in columns] for i in range(n)], columns), path)
