"""Tables and figures of finished runs, beside the paper's.

    python -m parle_hpc.report RUN_DIR ... --out DIR

Runs that differ by seed alone are one group: means and standard deviations are over them. DIR gets index.html, one page
that needs no network; each figure as PNG and PDF; each table as Markdown and LaTeX. Errors are those of the reference,
in percent; the training error is with dropout off and BatchNorm statistics computed anew, as section 4.5 needs it.
"""

import base64
import html
import tempfile
from pathlib import Path

import numpy as np
from tabulate import tabulate

from . import paper, plots
from .config import DATA_PARALLEL
from .failure import BAD_INPUT, BadInput, Parser, leave
from .records import ALGORITHM_NAMES, read_groups, spread

# settings whose effect is a figure of its own, and their names there
VARIED = {"replicas": "replicas n", "algorithm.gamma0": "gamma_0", "algorithm.rho0": "rho_0"}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em; color: #111 }
table { border-collapse: collapse; margin: 1em 0; font-size: 14px }
th, td { border: 1px solid #bbb; padding: .25em .6em }
th { background: #eee; text-align: left }
img { max-width: 100% }
h2 { margin-top: 2em }
"""


def open_folder(out):
    """The folder `out`, made where it is missing. Raises BadInput where nothing can be written there."""
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BadInput(f"--out {out}: cannot be written ({error.strerror}); give a folder that can") from None
    return folder


class Page:
    """What a report holds, in order: headings, paragraphs, tables and figures, which are files of their own as well."""

    def __init__(self, title, folder):
        self.title, self.folder, self._parts = title, open_folder(folder), []

    def text(self, text):
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def table(self, name, title, headers, rows):
        """A table as NAME.md and NAME.tex and on the page."""
        given = {"headers": headers, "disable_numparse": True}
        markdown = f"# {title}\n\n{tabulate(rows, tablefmt='github', **given)}\n"
        (self.folder / f"{name}.md").write_text(markdown, encoding="utf-8")
        (self.folder / f"{name}.tex").write_text(tabulate(rows, tablefmt="latex_booktabs", **given), encoding="utf-8")
        self._parts.append(f"<h2>{html.escape(title)}</h2>{tabulate(rows, tablefmt='html', **given)}")

    def figure(self, name, title, figure):
        """A figure as NAME.png and NAME.pdf and on the page."""
        path = self.folder / name
        plots.save(figure, path)
        picture = base64.b64encode(path.with_suffix(".png").read_bytes()).decode()
        title = html.escape(title)
        self._parts.append(f'<h2>{title}</h2><img alt="{title}" src="data:image/png;base64,{picture}">')

    def write(self):
        """index.html; its path."""
        title = html.escape(self.title)
        head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
        path = self.folder / "index.html"
        path.write_text(f"{head}<h1>{title}</h1>\n" + "\n".join(self._parts), encoding="utf-8")
        return path


def measured(values, digits=2):
    """Mean and, of several, standard deviation, e.g. 0.56 ± 0.02."""
    if not len(values):
        return "–"
    mean = f"{np.mean(values):.{digits}f}"
    return f"{mean} ± {spread(values):.{digits}f}" if len(values) > 1 else mean


def published(result):
    """A number of the paper in the same form."""
    return f"{result.error:g}" + (f" ± {result.std:g}" if result.std is not None else "")


def beside_the_paper(groups, reference, row):
    """Headers and rows of one of the paper's tables: the paper's row, and below it ours of the same kind.

    reference: {key: (the paper's label, {algorithm: Result})}. row: group -> key, or None where it has none.
    """
    columns = [a for a in ALGORITHM_NAMES if any(a in results for _, results in reference.values())]
    headers = [""] + [f"{ALGORITHM_NAMES[a]} {what}" for a in columns for what in ("error %", "min")]
    rows = []
    for key, (label, results) in reference.items():
        mine = [group for group in groups if row(group) == key and group.finished]
        if not mine:
            continue
        given = [(published(results[a]), f"{results[a].minutes:g}") if a in results else ("", "") for a in columns]
        rows.append([f"paper: {label}", *(text for pair in given for text in pair)])
        kinds = {(g.subject, g.settings.schedule.max_rounds, g.n): g for g in mine}
        coupled = {kind: g for kind, g in kinds.items() if g.algorithm not in DATA_PARALLEL}
        for subject, rounds, n in coupled or kinds:
            alike = [g for g in mine if (g.subject, g.settings.schedule.max_rounds) == (subject, rounds)]
            same = [g for g in alike if g.n == n or g.algorithm in DATA_PARALLEL]
            cells = [text for a in columns for text in cell([g for g in same if g.algorithm == a])]
            counts = [g.steps for g in same]
            steps = " to ".join(f"{count:,}" for count in sorted({min(counts), max(counts)}))
            part = "" if key in (1.0, *paper.TABLE_1) else f", {100 * key:g} % of the data"
            rows.append([f"here: {subject}, n = {n}{part}, {steps} mini-batches a replica", *cells])
    return headers, rows


def cell(groups):
    """Error and minutes of the one group that belongs into a cell; of several, that they are told apart below."""
    if len(groups) > 1:
        return "see all runs", ""
    if not groups:
        return "", ""
    minutes = np.mean([record.minutes for record in groups[0].finished])
    return measured(groups[0].values("val_error")), f"{minutes:.1f}"


def all_runs(groups):
    """Headers and rows: a row for each group."""
    headers = ["network", "algorithm", "mini-batches a replica", "passes", "seeds", "ranks", "validation error %"]
    headers += [
        "training error %",
        "each replica alone %",
        "minutes",
        "coupling / compute %",
        "waited %",
        "paper's ratio %",
    ]
    rows = []
    for group in groups:
        done = group.finished or group.records
        passes = np.mean([record.last["passes"] for record in done])
        ranks = ", ".join(sorted({str(record.ranks or "?") for record in done}))
        couples = group.algorithm in ("parle", "elastic_sgd")
        ratios = [f"{np.mean([getattr(r, k) for r in done]):.2f}" if couples else "" for k in ("coupling", "waited")]
        expected = paper.COUPLING.get(group.settings.model.name, paper.COUPLING["wrn"]) if couples else ""
        errors = [measured(group.values(key)) for key in ("val_error", "train_error", "replica_error")]
        minutes = f"{np.mean([record.minutes for record in done]):.1f}"
        unfinished = len(group.records) - len(group.finished)
        seeds = f"{len(group.finished)}" + (f" (+ {unfinished} unfinished)" if unfinished else "")
        rows.append([group.subject, group.label, f"{group.steps:,}", f"{passes:.1f}", seeds, ranks, *errors])
        rows[-1] += [minutes, *ratios, str(expected)]
    return headers, rows


def setting(group, name):
    """The value of a setting, given as section.key."""
    value = group.settings
    for part in name.split("."):
        value = getattr(value, part)
    return value


def varied(groups):
    """The settings of VARIED that take three values or more: [(name, values, the groups that differ in it alone)]."""
    groups = [group for group in groups if group.algorithm == "parle" and group.finished]
    found = []
    for name in VARIED:
        others = [other for other in VARIED if other != name]
        keys = [(tuple(setting(group, other) for other in others), group.fraction, group.steps) for group in groups]
        for key in dict.fromkeys(keys):
            mine = sorted((g for g, k in zip(groups, keys, strict=True) if k == key), key=lambda g: setting(g, name))
            values = [setting(group, name) for group in mine]
            if len(set(values)) == len(values) >= 3:
                found.append((name, values, mine))
    return found


def row_of_table_1(group):
    """The data set, where the network is the one, of whatever size, that Table 1 has for it."""
    network = "lenet" if group.settings.data.name == "mnist" else "wrn"
    return group.settings.data.name if group.settings.model.name == network and group.fraction == 1 else None


def row_of_table_2(group):
    """The part of CIFAR-10 that a replica sees, for any network but the wide ones."""
    return group.fraction if group.settings.data.name == "cifar10" and group.settings.model.name != "wrn" else None


def write(folders, out, title="Parle: report of runs"):
    """The report on the runs in `folders`, in the folder `out`; the path of its page. Raises BadInput."""
    groups = read_groups(folders)
    page = Page(title, out)
    seeds = ", ".join(sorted({str(r.settings.run.seed) for g in groups for r in g.records}, key=int))
    page.text(
        f"{sum(len(g.records) for g in groups)} runs, seeds {seeds}. Errors are those of the reference, mean ± sample "
        "standard deviation over seeds; minutes are wall-clock, validations included. The last training error is over "
        "all that was trained on, those before over some of it (run.statistics_batches)."
    )
    tables = (("table1", paper.TABLE_1, row_of_table_1), ("table2", paper.TABLE_2, row_of_table_2))
    for name, reference, row in tables:
        headers, rows = beside_the_paper(groups, reference, row)
        if rows:
            page.table(name, f"Table {name[-1]} of the paper, and here", headers, rows)
    studied = varied(groups)
    for name, values, mine in studied:
        file = f"{mine[0].settings.model.name}-{mine[0].settings.data.name}-{name.rpartition('.')[2]}"
        page.figure(
            file, f"{mine[0].subject}: {VARIED[name]}", plots.against(mine, values, VARIED[name], mine[0].subject)
        )
    for subject in dict.fromkeys(group.subject for group in groups):
        mine = [group for group in groups if group.subject == subject]
        shown = mine if len(mine) <= len(plots.STYLES) else [g for g in mine if not any(g in s[2] for s in studied)]
        if shown:
            file = f"{shown[0].settings.model.name}-{shown[0].settings.data.name}"
            page.figure(file, f"{subject}: error of the reference", plots.curves(shown, subject))
    page.table("runs", "All runs", *all_runs(groups))
    page.text("Coupling / compute: seconds of (8c) and (8d) over those of the mini-batches; section 4.1 gives 0.52 %.")
    page.text(f"Runs: {', '.join(str(record.folder) for group in groups for record in group.records)}")
    return page.write()


def analysis_rows(name, results):
    """What there is to tell about one group of networks, as (what, value) in the order of section 1.2."""
    errors = results["errors"]
    mean = {key: np.mean(list(results[key].values())) for key in ("overlap", "aligned_overlap")}
    return [
        (f"{name}: each of {len(errors)} networks", f"{measured(errors)} %"),
        (f"{name}: ensemble", f"{results['ensemble']:.2f} %"),
        (f"{name}: correlation of two networks' softmax", f"{results['correlation']:.4f}"),
        (f"{name}: average of the weights", f"{results['average']:.2f} %"),
        (f"{name}: average after alignment", f"{results['aligned_average']:.2f} %"),
        (f"{name}: overlap, mean over layers", f"{mean['overlap']:.3f}"),
        (f"{name}: overlap after alignment", f"{mean['aligned_overlap']:.3f}"),
    ]


def write_analysis(groups, out):
    """The page of section 1.2 for {name: results of analysis.Study}; its path."""
    page = Page("Section 1.2: independent networks, their average, and alignment", out)
    page.figure("figure1", "Figure 1: overlap with the first network, layer by layer", plots.overlaps(groups))
    known = paper.MOTIVATION
    page.table(
        "section12",
        "Validation errors and overlaps",
        ["", ""],
        [pair for name, r in groups.items() for pair in analysis_rows(name, r)],
    )
    page.text(
        f"The paper, {known['networks']} All-CNNs on CIFAR-10: each {known['each'][0]} ± {known['each'][1]} %, "
        f"ensemble {known['ensemble']} %, average of the weights {known['average']} %, after alignment "
        f"{known['aligned_average']} %."
    )
    return page.write()


def main():
    parser = Parser(prog="python -m parle_hpc.report", description="tables and figures of runs, beside the paper's")
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="output folders of runs")
    parser.add_argument("--out", required=True, help="folder for the page, the figures and the tables")
    try:
        arguments = parser.parse_args()
        page = write(arguments.runs, arguments.out)
    except BadInput as error:
        leave(str(error), BAD_INPUT)
    print(f"written {page}")


if __name__ == "__main__":
    main()
