"""The figures: readable in grey, since every line has a dash, a marker and a lightness of its own."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from .records import spread

# colour, dashes, marker: from dark to light
STYLES = [
    ("#000000", "-", "o"),
    ("#9e2a2b", "--", "s"),
    ("#1f6f8b", "-.", "^"),
    ("#7a7a7a", ":", "D"),
    ("#d08c2f", (0, (5, 1)), "v"),
    ("#5f4b8b", (0, (3, 1, 1, 1)), "P"),
    ("#4f9d69", (0, (1, 1)), "X"),
    ("#b8b8b8", (0, (8, 2)), "<"),
    ("#3b3b3b", (0, (2, 2)), ">"),
    ("#c45a84", (0, (6, 1, 1, 1)), "p"),
    ("#2f5d50", (0, (4, 3)), "h"),
    ("#8ab0d8", (0, (1, 3)), "*"),
]
plt.rcParams.update(
    {"font.size": 9, "axes.grid": True, "grid.color": "0.9", "axes.axisbelow": True, "pdf.fonttype": 42}
)


def style(i):
    colour, dashes, marker = STYLES[i % len(STYLES)]
    return {"color": colour, "linestyle": dashes, "marker": marker, "markersize": 4, "linewidth": 1.4}


def curves(groups, title):
    """Validation and training score of the reference against passes and against wall-clock: means and deviations.

    groups: of one score.
    """
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.4), layout="constrained", sharey="row", sharex="col")
    figure.get_layout_engine().set(wspace=0.05)
    for row, (key, name) in enumerate((("val", "validation"), ("train", "training"))):
        for column, (x, label) in enumerate((("passes", "passes over what a replica sees"), ("seconds", "minutes"))):
            ax = axes[row, column]
            for i, group in enumerate(groups):
                across, mean, deviation = group.curve(key, x)
                ax.plot(across, mean, label=group.label, markevery=max(1, len(mean) // 8), **style(i))
                ax.fill_between(across, mean - deviation, mean + deviation, color=style(i)["color"], alpha=0.15, lw=0)
            ax.set_ylim(*limits([group.curve(key, x)[1] for group in groups], groups[0].percent))
            ax.set_xlim(left=0)
            if row:
                ax.set_xlabel(label)
            if not column:
                ax.set_ylabel(f"{name} {in_words(groups[0])}")
    seeds = {len(group.records) for group in groups}
    count = f"{max(seeds)} seeds" if len(seeds) == 1 else "mean over seeds"
    what = "1 seed" if seeds == {1} else f"{count}, band: standard deviation"
    figure.suptitle(f"{title}: {groups[0].score} of the reference ({what})", fontsize=10)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    # a line holds about 120 letters, of which a name's dash and the room around it take 9
    columns = min(4, len(groups), max(1, 120 // (9 + max(map(len, labels)))))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    return figure


def in_words(group):
    """The score of a group, as an axis has it."""
    return f"{group.score} (%)" if group.percent else group.score


def limits(series, percent):
    """Where the later two thirds of all curves lie, with room: the first rounds would hide the rest. Percent from 0."""
    late = np.concatenate([values[len(values) // 3 :] for values in series])
    if not percent:
        room = 0.25 * float(late.max() - late.min()) or 0.1
        return float(late.min()) - room, float(late.max()) + room
    return 0, max(1.25 * float(late.max()), 0.1)


def against(groups, values, name, title):
    """Final validation score against one setting: means and deviations."""
    figure, ax = plt.subplots(figsize=(4.5, 3.4), layout="constrained")
    for i, (what, key) in enumerate((("reference", "val"), ("each replica", "replica"))):
        errors = [group.values(key) for group in groups]
        ax.errorbar(values, [e.mean() for e in errors], [spread(e) for e in errors], label=what, capsize=3, **style(i))
    if max(values) / min(values) > 10:
        ax.set_xscale("log")
    ax.set_xticks(values)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel(name)
    ax.set_ylabel(f"validation {in_words(groups[0])}")
    ax.set_title(title, fontsize=10)
    ax.legend(frameon=False)
    return figure


def overlaps(groups):
    """Figure 1: overlap of each network with the first, layer by layer, before and after alignment."""
    figure, ax = plt.subplots(figsize=(6, 3.8), layout="constrained")
    i = 0
    for name, results in groups.items():
        for key, what in (("overlap", "as trained"), ("aligned_overlap", "aligned")):
            values = np.array(list(results[key].values()))
            layers = np.arange(1, len(values) + 1)
            ax.errorbar(layers, values.mean(1), spread(values.T), label=f"{name}, {what}", capsize=3, **style(i))
            i += 1
    ax.set_xlabel("layer with weights")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_ylabel("overlap with the first network")
    ax.set_ylim(-0.15, 1.05)
    ax.legend(frameon=False)
    return figure


def save(figure, path):
    """The figure as path.png and path.pdf."""
    figure.savefig(path.with_suffix(".png"), dpi=160)
    figure.savefig(path.with_suffix(".pdf"))
    plt.close(figure)
