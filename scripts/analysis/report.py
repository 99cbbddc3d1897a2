"""Write report.json and report.md, updated after each claim."""

import json
import logging
import math

from analysis import figures
from analysis.claims import CLAIMS
from analysis.measures import Result

from asyrp.evaluation.metrics import Summary
from utils.files import set_aside, write_text

log = logging.getLogger(__name__)


def plain(value):
    """Results as plain data for JSON; nan and infinity (a fraction of zero gain) become null."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, Summary):
        return plain(vars(value))
    if isinstance(value, Result):
        return plain({name: getattr(value, name) for name in ("holds", "because", "table", "curves")})
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read(path, settings):
    """The claims of a report with the same settings, to be kept; {} if there is none.

    A damaged report is renamed with a warning."""
    if not path.is_file():
        return {}
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        if report["settings"] != plain(settings):
            return {}
        as_markdown(report)  # fails if it is damaged
        return report["claims"]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        log.warning("%s is damaged: it was renamed to %s and its claims are measured again", path, set_aside(path).name)
        return {}


def verdict(results):
    """{subject name: {"holds": ...}} -> a few words."""
    yes = [name for name, result in results.items() if result["holds"]]
    no = [name for name in results if name not in yes]
    if not (yes and no):
        return "**holds**" if yes else "**does not hold**"
    return f"**holds for {', '.join(yes)}; does not hold for {', '.join(no)}**"


def cell(value):
    """The text of a table cell."""
    if isinstance(value, dict):
        return "undefined" if None in value.values() else str(Summary(**value))
    return str(value)


def as_table(rows):
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([cell(row[name]) for name in names] for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def as_markdown(report):
    """A table of verdicts, followed by a section per claim."""
    s = report["settings"]
    lines = [f"# The paper's claims on {s['config']}", ""]
    lines += [
        f"Made by `python scripts/analyze.py`: {s['n']} images of {s['images']} without the attribute, {s['n']} others as "
        f"donors of delta_h; {s['steps']} timesteps; t_boost {s['t_boost']}; seed {s['seed']}. ± is one standard error over "
        "images; LPIPS is AlexNet's. All settings: `report.json`.",
        "",
        "| direction | checkpoint | t_edit | score |",
        "| --- | --- | --- | --- |",
    ]
    lines += [f"| {name} | {d['checkpoint']} | {d['t_edit']} | {d['score']} |" for name, d in s["directions"].items()]
    lines += ["", "| claim | what the paper says | it holds here when | verdict | n |", "| --- | --- | --- | --- | --- |"]
    for number, c in report["claims"].items():
        title = f"[{number} {c['name']}](#{number}-{c['name']})"
        lines.append(f"| {title} | {c['says']} | {c['criterion']} | {verdict(c['results'])} | {s['n']} |")
    for number, c in report["claims"].items():
        lines += ["", f"## {number} {c['name']}", "", f"The paper: {c['says']} Criterion: {c['criterion']}", ""]
        lines += [f"![{c['name']}]({c['figure']})"]
        for name, result in c["results"].items():
            held = "holds" if result["holds"] else "does not hold"
            lines += ["", f"**{name}: {held}.** {result['because'][0].upper()}{result['because'][1:]}.", ""]
            lines += [*as_table(result["table"]), "", f"![{name}]({result['faces']})"]
    return "\n".join([*lines, "", *([s["credit"], ""] if s["credit"] else [])])


def add(report, number, results, seconds, out):
    """Draw claim `number`, measured on subjects (name -> Result), into the folder `out`, and write the report with it."""
    claim = CLAIMS[number]
    stem = f"{number}_{claim.name}"
    figures.save_plot(claim.draw, results, f"{number} {claim.name}", out / f"{stem}.png")
    entries = {}
    for name, result in results.items():
        faces = f"{stem}_{name.replace(' + ', '_')}.png"
        figures.save_faces(result, out / faces)
        entries[name] = plain(result) | {"faces": faces}
    report["claims"][str(number)] = {
        "name": claim.name,
        "says": claim.says,
        "criterion": claim.criterion,
        "seconds": round(seconds),
        "figure": f"{stem}.png",
        "results": entries,
    }
    report["claims"] = dict(sorted(report["claims"].items()))
    for name, text in (("report.json", json.dumps(plain(report), indent=1) + "\n"), ("report.md", as_markdown(report))):
        write_text(out / name, text)
