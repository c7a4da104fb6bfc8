"""What race.py found, as a table and a figure: pure functions of runs.

A run is a dict with rate, hosts, seed and rows; a row has racer, round, its seconds and bytes so far, and the error in
percent of what it would hand over, None where that was not looked at.
"""

import numpy as np

LABELS = {
    "sgd_horovod": "SGD, Horovod",
    "sgd_ddp": "SGD, DDP",
    "parle": "Parle",
    "entropy_sgd": "Entropy-SGD, Horovod",
    "elastic_sgd": "Elastic-SGD",
    "diloco": "DiLoCo",
    "diloco_overlap": "DiLoCo, overlapped",
    "local_sgd": "local SGD",
}
BASELINE = "sgd_horovod"


def racers_of(runs):
    """Those that have an error in all runs, in the order of LABELS."""
    return [name for name in LABELS if all(validated(run, name) for run in runs)]


def validated(run, racer):
    """The racer's rows that have an error."""
    return [row for row in run["rows"] if row["racer"] == racer and row["error"] is not None]


def reached(rows, error):
    """The first row whose error is at most that, None where none is."""
    return next((row for row in rows if row["error"] <= error), None)


def error_at(rows, seconds):
    """The last error that was there after so many seconds, None where there was none yet."""
    return next((row["error"] for row in reversed(rows) if row["seconds"] <= seconds), None)


def quickest(run):
    """Seconds after which the first racer was where it is now: for a run that is over, the end of its training."""
    return min({row["racer"]: row["seconds"] for row in run["rows"]}.values())


def summary(run, target=None, at=None):
    """{racer: {"best", "end", "at": errors; "seconds", "bytes": to the target}} of a run; None where there is none.

    Args:
        target: error in percent; None for the baseline's best.
        at: seconds of "at"; None for those of the quickest racer.
    """
    found, at = {name: validated(run, name) for name in racers_of([run])}, quickest(run) if at is None else at
    if target is None and BASELINE in found:
        target = min(row["error"] for row in found[BASELINE])
    result = {}
    for name, rows in found.items():
        first = None if target is None else reached(rows, target)
        result[name] = {
            "best": min(row["error"] for row in rows),
            "end": rows[-1]["error"],
            "at": error_at(rows, at),
            "seconds": first and first["seconds"],
            "bytes": first and first["bytes"],
        }
    return result


def shown(values, digits, none):
    """The mean of those that are there, their deviation, and how many they are where some are not; `none` for none."""
    from parle_hpc.paper.records import spread

    there = [value for value in values if value is not None]
    if not there:
        return none
    deviation = f" ± {spread(np.array(there)):.{digits}f}" if len(there) > 1 else ""
    count = f" ({len(there)} of {len(values)})" if len(there) < len(values) else ""
    return f"{np.mean(there):,.{digits}f}{deviation}{count}"


def cases(runs):
    """[((rate, hosts), runs)], in their order."""
    keys = dict.fromkeys((run["rate"], run["hosts"]) for run in runs)
    return [(key, [run for run in runs if (run["rate"], run["hosts"]) == key]) for key in keys]


def show(runs, target=None, at=None):
    """Print a line for each rate and racer: mean and deviation over the seeds. Arguments as summary's."""
    to = "SGD's best" if target is None else f"{target:g} %"
    for (rate, hosts), some in cases(runs):
        then = np.mean([quickest(run) for run in some]) if at is None else at
        print(f"{rate}, {hosts} hosts, {len(some)} seed{'s' * (len(some) > 1)}; errors in percent")
        print(line("", "best", "at the end", f"after {then:.1f} s", f"s to {to}", f"MB to {to}"))
        found = [summary(run, target, at) for run in some]
        for name in racers_of(some):
            mine = [of_run[name] for of_run in found]
            errors = [shown([each[key] for each in mine], 2, "-") for key in ("best", "end", "at")]
            costs = [[each["seconds"] for each in mine], [each["bytes"] and each["bytes"] / 1e6 for each in mine]]
            print(line(LABELS[name], *errors, *(shown(values, 1, "not reached") for values in costs)), flush=True)


def line(name, *values):
    return f"    {name:22}" + "".join(f"{value:>22}" for value in values)


def curve(runs, racer):
    """(Seconds, error, deviation of the error) at the rounds that every seed was validated at: means over the seeds."""
    from parle_hpc.paper.records import spread

    by_round = [{row["round"]: row for row in validated(run, racer)} for run in runs]
    rounds = sorted(set.intersection(*map(set, by_round)))
    seconds, errors = (np.array([[of[r][key] for r in rounds] for of in by_round]) for key in ("seconds", "error"))
    return seconds.mean(0), errors.mean(0), spread(errors)


def figure(runs):
    """Error against seconds, a panel for each rate, a line for each racer, a band for the deviation over the seeds."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    from parle_hpc.paper.plots import plt, style

    panels = cases(runs)
    drawn, axes = plt.subplots(
        1, len(panels), figsize=(1.5 + 3.6 * len(panels), 4), layout="constrained", sharey=True, squeeze=False
    )
    for ax, ((rate, hosts), some) in zip(axes[0], panels, strict=True):
        for name in racers_of(some):
            look = style(list(LABELS).index(name))
            seconds, error, deviation = curve(some, name)
            ax.plot(seconds, error, label=LABELS[name], markevery=max(1, len(error) // 8), **look)
            low = np.maximum(error - deviation, error / 2)
            ax.fill_between(seconds, low, error + deviation, color=look["color"], alpha=0.15, lw=0)
        ax.set(xscale="log", yscale="log", xlabel="seconds", title=f"{rate}, {hosts} hosts")
    axes[0, 0].set_ylabel("validation error (%)")
    for axis in (axes[0, 0].yaxis, *(ax.xaxis for ax in axes[0])):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    seeds = max(len(some) for _, some in panels)
    drawn.suptitle("1 seed" if seeds == 1 else f"{seeds} seeds, band: standard deviation", fontsize=10)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=1 + len(panels), frameon=False)
    return drawn
