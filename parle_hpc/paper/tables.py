"""Tables of runs, beside the paper's: headers and rows of text."""

import numpy as np

from ..settings import DATA_PARALLEL
from . import numbers
from .records import ALGORITHM_NAMES, spread

# settings whose effect is a figure of its own, and their names there
VARIED = {"replicas": "replicas n", "algorithm.gamma0": "gamma_0", "algorithm.rho0": "rho_0"}


def measured(values, digits=2):
    """Mean and, of several, standard deviation, e.g. 0.56 ± 0.02."""
    if not len(values):
        return "–"
    mean = f"{np.mean(values):.{digits}f}"
    return f"{mean} ± {spread(values):.{digits}f}" if len(values) > 1 else mean


def published(result):
    """A number of the paper in the same form."""
    return f"{result.error:g}" + (f" ± {result.std:g}" if result.std is not None else "")


def runs_and_seeds(groups):
    """How many runs, and of which seeds, e.g. 3 runs, seeds 0, 1, 2."""
    records = [record for group in groups for record in group.records]
    seeds = sorted({record.settings.run.seed for record in records})
    runs, which = ("run" + "s" * (len(records) > 1), "seed" + "s" * (len(seeds) > 1))
    return f"{len(records)} {runs}, {which} {', '.join(map(str, seeds))}"


def beside_the_paper(groups, reference, row):
    """Headers and rows of one of the paper's tables: the paper's row, and below it ours of the same kind.

    reference: {key: (the paper's label, {algorithm: Result})}. row: group -> key, or None where it has none.
    """
    columns = [a for a in ALGORITHM_NAMES if any(a in results for _, results in reference.values())]
    headers = [""] + [f"{ALGORITHM_NAMES[a]} {what}" for a in columns for what in ("error %", "min")]
    rows = []
    for key, (label, results) in reference.items():
        mine = [group for group in groups if row(group) == key and group.finished and group.algorithm in columns]
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
            part = "" if key in (1.0, *numbers.TABLE_1) else f", {100 * key:g} % of the data"
            rows.append([f"here: {subject}, n = {n}{part}, {steps} mini-batches a replica", *cells])
    return headers, rows


def cell(groups):
    """Error and minutes of the one group that belongs into a cell; of several, that they are told apart below."""
    if len(groups) > 1:
        return "see all runs", ""
    if not groups:
        return "", ""
    minutes = np.mean([record.minutes for record in groups[0].finished])
    return measured(groups[0].values("val")), f"{minutes:.1f}"


def all_runs(groups):
    """Headers and rows: a row for each group."""
    what, unit = ("error", " %") if all(group.percent for group in groups) else ("score", "")
    headers = ["network", "algorithm", "mini-batches a replica", "passes", "seeds", "ranks", f"validation {what}{unit}"]
    headers += [
        f"training {what}{unit}",
        f"each replica alone{unit}",
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
        couples = group.algorithm not in DATA_PARALLEL
        ratios = [f"{np.mean([getattr(r, k) for r in done]):.2f}" if couples else "" for k in ("coupling", "waited")]
        known = couples and not group.settings.task.file and group.settings.task.name != "language"
        expected = numbers.COUPLING.get(group.settings.model.name, numbers.COUPLING["wrn"]) if known else ""
        errors = [measured(group.values(part), 2 if group.percent else 4) for part in ("val", "train", "replica")]
        minutes = f"{np.mean([record.minutes for record in done]):.1f}"
        unfinished = len(group.records) - len(group.finished)
        seeds = f"{len(group.finished)}" + (f" (+ {unfinished} unfinished)" if unfinished else "")
        rows.append([group.subject, group.label, f"{group.steps:,}", f"{passes:.1f}", seeds, ranks, *errors])
        rows[-1] += [minutes, *ratios, str(expected)]
    return headers, rows


def at_equal_cost(groups):
    """Headers and rows: the validation score of each group when it had spent what the thriftiest one spent in all.

    Of a group that had not been validated by then there is none. The learning rates are then still on their way.
    """
    budgets = {
        measure: min(record.progress[measure][-1] for group in groups for record in group.finished)
        for measure in groups[0].records[0].progress
    }
    shown = {
        "mini-batches": "{:,.0f} mini-batches a replica",
        "gradients": "{:.2f} million gradients",
        "MB": "{:.1f} MB sent a rank",
        "minutes": "{:.1f} min",
    }
    headers = ["algorithm", "at the end", *(f"at {shown[name].format(value)}" for name, value in budgets.items())]
    rows = [
        [g.label, measured(g.values("val"))] + [measured(scores_within(g, *b)) for b in budgets.items()] for g in groups
    ]
    return headers, rows


def scores_within(group, measure, budget):
    """The last validation score of each finished run of a group within a budget; none where a run has none."""
    found = []
    for record in group.finished:
        within = np.flatnonzero(record.progress[measure] <= budget * (1 + 1e-9))
        if not len(within):
            return []
        found.append(record.validations[within[-1]][f"val_{group.score}"])
    return found


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
    mine = group.percent and group.settings.model.name == network and group.fraction == 1
    return group.settings.data.name if mine else None


def row_of_table_2(group):
    """The part of CIFAR-10 that a replica sees, for any network but the wide ones."""
    return group.fraction if group.settings.data.name == "cifar10" and group.settings.model.name != "wrn" else None


def analysis_rows(name, results):
    """What there is to tell about one group of networks, as (what, value) in the order of section 1.2."""
    scores, unit = results["scores"], " %" if "ensemble" in results else ""
    mean = {key: np.mean(list(results[key].values())) for key in ("overlap", "aligned_overlap")}
    rows = [(f"{name}: each of {len(scores)} networks", f"{measured(scores)}{unit}")]
    if "ensemble" in results:
        rows += [
            (f"{name}: ensemble", f"{results['ensemble']:.2f} %"),
            (f"{name}: correlation of two networks' softmax", f"{results['correlation']:.4f}"),
        ]
    return [
        *rows,
        (f"{name}: average of the weights", f"{results['average']:.2f}{unit}"),
        (f"{name}: average after alignment", f"{results['aligned_average']:.2f}{unit}"),
        (f"{name}: overlap, mean over layers", f"{mean['overlap']:.3f}"),
        (f"{name}: overlap after alignment", f"{mean['aligned_overlap']:.3f}"),
    ]
