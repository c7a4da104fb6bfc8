"""Curves of utilisation from 2 to 4,096 replicas, computed by the planner's model, and its simulator beside it.

    python benchmarks/scaling.py [--figure docs/figures/scaling.png] [--json FILE]

One rank a node. WRN-28-10 at 128 images a step of 0.1 s, and a transformer of 125 million weights at 32,768 tokens a
step of 0.2 s (6 operations a weight and token at 1.2e14 a second), both with 2 % of noise, on links of 1, 10 and 100
Gbit/s of which nine tenths arrive and a message takes 50 us. Parle has L = 25; DiLoCo H = 100, and waits; SGD averages
gradients at every step in a ring, during the backward pass. Nothing of it is measured.
"""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from bench import command_line, write

from parle_hpc.planning import model
from parle_hpc.planning.simulator import Scenario, simulate

MODELS = {"WRN-28-10": (36_479_194, 0.1), "transformer, 125 M": (125_000_000, 0.2)}
RATES = (1, 10, 100)  # Gbit/s
REPLICAS = [2**k for k in range(1, 13)]
NOISE, BUCKET = 0.02, 1e6
WAYS = ("Parle, hidden", "Parle, blocking", "DiLoCo, H = 100", "SGD, Horovod")


def link_of(rate):
    return model.Link(50e-6, 0.9 * rate * 1e9 / 8)


def utilisation(way, n, N, step, rate):
    """Of n replicas of N weights: seconds computed over all seconds."""
    link, size = link_of(rate), 4 * N
    if way == "SGD, Horovod":
        last = model.ring(n, BUCKET, link)
        computed, waited = model.step(step, model.ring(n, size, link), last, NOISE, n)
        return model.one_round(25, computed, waited, 0.0).utilisation
    L = 100 if way.startswith("DiLoCo") else 25
    mean = model.coupling(n, 1, size, link, link)
    late = model.lateness(n, L, step, NOISE)
    how = "hidden" if "hidden" in way else "waited"
    return model.one_round(L, step, 0.0, mean, way=how, late=late).utilisation


def simulated(n, N, step, rate):
    """The same of Parle, hidden, by the simulator."""
    link = link_of(rate)
    travels = model.coupling(n, 1, 4 * N, link, link)
    return simulate(Scenario(n, 100, 25, step, noise=NOISE, travels=travels)).utilisation


def main():
    parser = command_line(__doc__)
    parser.add_argument("--figure", default="docs/figures/scaling.png", help="(default: docs/figures/scaling.png)")
    arguments = parser.parse_args()
    figure, rows = plt.subplots(len(MODELS), len(RATES), figsize=(12, 6.5), sharex=True, sharey=True)
    results = {}
    for axes, (name, (N, step)) in zip(rows, MODELS.items(), strict=True):
        for axis, rate in zip(axes, RATES, strict=True):
            found = {way: [utilisation(way, n, N, step, rate) for n in REPLICAS] for way in WAYS}
            found["simulated"] = [simulated(n, N, step, rate) for n in REPLICAS]
            results[f"{name}, {rate} Gbit/s"] = found
            draw(axis, found, f"{name}, {rate} Gbit/s")
            for way, values in found.items():
                shown = ", ".join(f"{n}: {100 * u:.1f}" for n, u in zip(REPLICAS, values, strict=True))
                print(f"{name}, {rate} Gbit/s, {way}: {shown} %", flush=True)
    rows[0][0].legend(fontsize=7)
    for axis in rows[-1]:
        axis.set_xlabel("replicas")
    figure.tight_layout()
    figure.savefig(arguments.figure, dpi=110)
    write({"replicas": REPLICAS, "utilisation": results}, arguments.json)


def draw(axis, found, title):
    for way, values in found.items():
        marks = {"marker": "o", "linestyle": "", "color": "C0", "markersize": 3} if way == "simulated" else {}
        axis.semilogx(REPLICAS, [100 * u for u in values], base=2, label=way, **marks)
    axis.set_title(title, fontsize=9)
    axis.set_ylim(0, 102)
    axis.set_ylabel("utilisation, %", fontsize=8)
    axis.grid(alpha=0.3)


if __name__ == "__main__":
    main()
