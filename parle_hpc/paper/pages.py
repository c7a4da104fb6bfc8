"""The pages: a report of runs, and section 1.2."""

import base64
import html
import re
import tempfile
from pathlib import Path

from tabulate import tabulate

from ..errors import BadInput
from . import numbers, plots
from .records import read_groups
from .tables import (
    VARIED,
    all_runs,
    analysis_rows,
    at_equal_cost,
    beside_the_paper,
    row_of_table_1,
    row_of_table_2,
    runs_and_seeds,
    varied,
)

# a telephone's window is as wide as it says it is
VIEWPORT = '<meta name="viewport" content="width=device-width, initial-scale=1">'
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 92em; margin: 2em auto; padding: 0 1em; color: #111 }
h2 { margin-top: 2em; break-after: avoid }
p { max-width: 62em; overflow-wrap: anywhere }
/* in a narrow window a wide table moves in its own box */
.table { overflow-x: auto; margin: 1em 0 }
table { border-collapse: collapse; font-size: 13px; line-height: 1.35 }
th, td { border: 1px solid #bbb; padding: .3em .35em; text-align: left }
th { background: #eee; vertical-align: bottom }
td { min-width: 6.5em }
tr { break-inside: avoid }
.number { min-width: 0; font-variant-numeric: tabular-nums }
img { display: block; max-width: 100%; break-inside: avoid }
@media (max-width: 1200px) { table { font-size: 12px } }
@page { size: landscape; margin: 12mm }
@media print {
  body { font-size: 8.5pt; max-width: none; margin: 0; padding: 0 }
  h2 { margin-top: 1em }
  table { font-size: 8pt; break-inside: avoid }
  img { font-size: 7.5pt }
  .table { overflow: visible }
}
"""


def open_folder(out, option="--out"):
    """The folder `out`, made where it is missing. Raises BadInput, of `option`, where it cannot be written."""
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BadInput(f"{option} {out}: cannot be written ({error.strerror}); give a folder that can") from None
    return folder


def words(text):
    """A cell's text as HTML, whose lines do not break at n = 3, 0.5 ± 0.1 or 50 %."""
    return re.sub(r" (?=[=±%])|(?<=[=±]) ", "&nbsp;", html.escape(text))


def cells(column):
    """A column's cells as HTML. Of numbers, the decimal points are below each other, whatever stands behind them."""
    wholes = [re.match(r"\d*(,\d{3})*", cell)[0] for cell in column]
    if not any(wholes):
        return [f"<td>{words(cell)}</td>" for cell in column]
    widths = [len(whole) - whole.count(",") / 2 for whole in wholes]  # a comma is half as wide as a digit
    indents = [f"text-indent: {max(widths) - width:g}ch" for width in widths]
    given = zip(indents, column, strict=True)
    return [f'<td class="number" style="{indent}">{words(cell)}</td>' for indent, cell in given]


def html_table(headers, rows):
    """A table as HTML, in a box of its own."""
    top = "".join(f"<th>{html.escape(header)}</th>" for header in headers)
    below = ["".join(row) for row in zip(*map(cells, zip(*rows, strict=True)), strict=True)]
    lines = [f"<thead><tr>{top}</tr></thead>" if any(headers) else "", *(f"<tr>{row}</tr>" for row in below)]
    return f'<div class="table"><table>{"".join(lines)}</table></div>'


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
        self._parts.append(f"<h2>{html.escape(title)}</h2>{html_table(headers, rows)}")

    def figure(self, name, title, figure):
        """A figure as NAME.png and NAME.pdf and on the page."""
        path = self.folder / name
        plots.save(figure, path)
        picture = base64.b64encode(path.with_suffix(".png").read_bytes()).decode()
        title = html.escape(title)
        # a figure's letters of 9 pt become as large as the page's
        width = f"width: {8 * figure.get_figwidth():g}em"
        self._parts.append(f'<h2>{title}</h2><img alt="{title}" style="{width}" src="data:image/png;base64,{picture}">')

    def write(self):
        """index.html; its path."""
        title = html.escape(self.title)
        head = f'<!doctype html><html lang="en"><meta charset="utf-8">{VIEWPORT}<title>{title}</title>'
        path = self.folder / "index.html"
        path.write_text(f"{head}<style>{STYLE}</style><h1>{title}</h1>\n" + "\n".join(self._parts), encoding="utf-8")
        return path


def write(folders, out, title="Parle: report of runs"):
    """The report on the runs in `folders`, in the folder `out`; the path of its page. Raises BadInput."""
    groups = read_groups(folders)
    page = Page(title, out)
    page.text(
        f"{runs_and_seeds(groups)}. Errors, or scores, are those of the reference, mean ± sample "
        "standard deviation over seeds; minutes are wall-clock, validations included. The last training one is over "
        "all that was trained on, those before over some of it (run.statistics_batches)."
    )
    tables = (("table1", numbers.TABLE_1, row_of_table_1), ("table2", numbers.TABLE_2, row_of_table_2))
    for name, reference, row in tables:
        headers, rows = beside_the_paper(groups, reference, row)
        if rows:
            page.table(name, f"Table {name[-1]} of the paper, and here", headers, rows)
    studied = varied(groups)
    for name, values, mine in studied:
        file = f"{mine[0].file}-{name.rpartition('.')[2]}"
        page.figure(
            file, f"{mine[0].subject}: {VARIED[name]}", plots.against(mine, values, VARIED[name], mine[0].subject)
        )
    for subject in dict.fromkeys(group.subject for group in groups):
        mine = [group for group in groups if group.subject == subject]
        shown = mine if len(mine) <= len(plots.STYLES) else [g for g in mine if not any(g in s[2] for s in studied)]
        if len({group.algorithm for group in mine if group.finished}) > 1 and all(g.finished for g in mine):
            title = f"{subject}: {mine[0].score} at equal cost"
            page.table(f"{mine[0].file}-equal", title, *at_equal_cost(mine))
        if shown:
            page.figure(shown[0].file, f"{subject}: {shown[0].score} of the reference", plots.curves(shown, subject))
    page.table("runs", "All runs", *all_runs(groups))
    page.text("Coupling / compute: seconds of (8c) and (8d) over those of the mini-batches; section 4.1 gives 0.52 %.")
    page.text(f"Runs: {', '.join(str(record.folder) for group in groups for record in group.records)}")
    return page.write()


def write_analysis(groups, out):
    """The page of section 1.2 for {name: results of analysis.Study}; its path."""
    page = Page("Section 1.2: independent networks, their average, and alignment", out)
    page.figure("figure1", "Figure 1: overlap with the first network, layer by layer", plots.overlaps(groups))
    known = numbers.MOTIVATION
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
