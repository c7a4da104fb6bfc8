"""The paper's tables and figures as lists of runs, at the paper's size and at one for a laptop.

At the paper's size a run is its recipe. A laptop takes the networks of LAPTOP, and is made shorter in one of two ways:
by fewer training images, which leaves everything that is counted in epochs, scoping too, as the recipe has it; or by
fewer rounds on all images, equally many for every algorithm, with the drops of the learning rate at the same fractions.
"""

import math
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from ..settings import DATA_PARALLEL, ROUNDS, load
from . import numbers

SAMPLES = {"mnist": 60_000, "cifar10": 50_000, "cifar100": 50_000, "svhn": 604_388}
SIZES = ("paper", "laptop")
BATCH = 128
SMALL_WRN = ("--model.depth", "10", "--model.widen", "1")
SMALL_CIFAR = ("--model.name", "lenet", "--model.dropout", "0.25", "--data.preprocessing", "standardize")
SMALL_CIFAR += ("--data.augment", "false", "--schedule.lr", "0.1")
CORES = 2  # of the laptop


class Laptop(NamedTuple):
    """How a family of recipes is made small.

    arguments: settings. rounds, samples: of these one is given. seconds: a mini-batch takes on one core, as measured.
    """

    arguments: tuple
    seconds: float
    rounds: int | None = None
    samples: int | None = None


LAPTOP = {
    "lenet": Laptop((), 0.025, rounds=300),
    "wrn": Laptop(SMALL_WRN, 0.18, rounds=80),
    "allcnn": Laptop(SMALL_CIFAR, 0.028, samples=10_000),
}


@lru_cache
def recipe_settings(recipe, algorithm):
    """A recipe's Settings for an algorithm, read once and for reading alone."""
    return load(["--recipe", recipe, "--algorithm.name", algorithm])


class Spec(NamedTuple):
    """One run: what distinguishes it, and the arguments of parle_hpc.train that make it."""

    recipe: str
    algorithm: str
    n: int
    seed: int
    size: str
    rounds: int | None = None  # other than the size's own
    extra: tuple = ()  # further settings
    suffix: str = ""  # names them

    @property
    def group(self):
        """The name without the seed."""
        replicas = "" if self.algorithm in DATA_PARALLEL else f"-n{self.n}"
        return f"{self.recipe}-{self.algorithm}{replicas}{self.suffix}"

    @property
    def name(self):
        """Name of the run's folder."""
        return f"{self.group}-seed{self.seed}"

    @property
    def settings(self):
        """The recipe's Settings for this algorithm."""
        return recipe_settings(self.recipe, self.algorithm)

    @property
    def laptop(self):
        return LAPTOP[self.recipe.partition("_")[0]]

    @property
    def ranks(self):
        """One a replica; Remark 4: SGD and Entropy-SGD are data-parallel over all that Parle has, 3, or 2 cores."""
        if self.algorithm in DATA_PARALLEL:
            return 3 if self.size == "paper" else CORES
        return self.n

    @property
    def length(self):
        """Rounds of 25 mini-batches; None: as many as the recipe has."""
        return self.rounds or (None if self.size == "paper" else self.laptop.rounds)

    @property
    def steps(self):
        """Mini-batches a replica."""
        if self.length:
            return 25 * self.length
        return math.ceil(self.settings.schedule.epochs * self._steps_per_epoch())

    def _steps_per_epoch(self):
        data = self.settings.data
        samples = (self.laptop.samples if self.size == "laptop" else None) or SAMPLES[data.name]
        B = math.ceil(data.fraction * samples) // self.batch_size
        return B * 25 if self.algorithm in ROUNDS else B

    @property
    def batch_size(self):
        """128, or the next number that divides among the ranks of a replica."""
        share = self.ranks if self.algorithm in DATA_PARALLEL else 1
        return math.ceil(BATCH / share) * share

    @property
    def arguments(self):
        """What follows `python -m parle_hpc.train`, but for data, seed and output."""
        given = ["--recipe", self.recipe, "--algorithm.name", self.algorithm, "--replicas"]
        given += ["1" if self.algorithm in DATA_PARALLEL else str(self.n)]
        if self.batch_size != BATCH:
            given += ["--data.batch_size", str(self.batch_size)]
        if self.size == "laptop":
            given += self.laptop.arguments
            if self.laptop.samples:
                given += ["--data.samples", str(self.laptop.samples)]
        if self.length:
            schedule = self.settings.schedule
            epochs = 25 * self.length / self._steps_per_epoch()
            drops = ",".join(f"{drop / schedule.epochs * epochs:.4g}" for drop in schedule.drops)
            given += ["--schedule.epochs", up(epochs), "--schedule.drops", drops]
            given += ["--schedule.max_rounds", str(self.length)]
        if self.size == "laptop" or self.length:
            given += ["--run.validate_every", str(max(1, self.steps // 25 // 15))]
        return given + list(self.extra)

    @property
    def cost(self):
        """Mini-batches of all replicas, and what is known of the time that they take."""
        batches = self.steps * (1 if self.algorithm in DATA_PARALLEL else self.n)
        if self.size == "laptop":
            return batches, f"{batches * self.laptop.seconds / CORES / 60:.0f} min on {CORES} cores"
        took = published(self)
        return batches, f"{took.minutes:g} min on the paper's 3 GPUs" if took else "not in the paper"


def up(value):
    """Four significant digits, not below the value."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 3)
    return f"{math.ceil(value / unit - 1e-9) * unit:.4g}"


def published(spec):
    """The paper's Result of a run like this at its size; None where it has none."""
    if spec.suffix or spec.length:
        return None
    s = spec.settings
    table = numbers.TABLE_2.get(s.data.fraction) if s.model.name == "allcnn" else numbers.TABLE_1.get(s.data.name)
    return table[1].get(spec.algorithm) if table else None


def grid(recipes, algorithms, seeds, size, rounds, n=3):
    return [Spec(r, a, n, s, size, rounds) for r in recipes for s in range(seeds) for a in algorithms]


def mnist(seeds, size, rounds):
    """The MNIST row of Table 1 and Figure 2; three replicas as section 4.2 has it, and six as the table says."""
    specs = grid(["lenet_mnist"], numbers.ALGORITHMS, seeds, size, rounds)
    return specs + grid(["lenet_mnist"], ["parle"], seeds, size, rounds, n=6)


def wide(*data):
    def specs(seeds, size, rounds):
        return grid([f"wrn_{name}" for name in data], numbers.ALGORITHMS, seeds, size, rounds)

    return specs


def table1(seeds, size, rounds):
    return mnist(seeds, size, rounds) + wide("cifar10", "cifar100", "svhn")(seeds, size, rounds)


def table2(seeds, size, rounds):
    """Section 5: all data, half of it for each of three, a quarter for each of six; SGD on as much."""
    parts = (("allcnn_cifar10", 3), ("allcnn_cifar10_split3", 3), ("allcnn_cifar10_split6", 6))
    algorithms = ("sgd", "parle", "elastic_sgd")
    return [Spec(r, a, n, s, size, rounds) for a in algorithms for r, n in parts for s in range(seeds)]


def figure1(seeds, size, rounds):
    """Six independent networks, and a run of Parle that keeps its replicas; `seeds` does not matter."""
    recipe = "allcnn_cifar10" if size == "paper" else "lenet_mnist"
    networks = grid([recipe], ["sgd"], numbers.MOTIVATION["networks"], size, rounds)
    keep = ("--run.save_replicas", "true")
    return [*networks, Spec(recipe, "parle", 3, 0, size, rounds, keep, "-kept")]


def replicas(seeds, size, rounds):
    """Section 4.3: more than three replicas gain little."""
    recipe = "wrn_cifar10" if size == "paper" else "lenet_mnist"
    return [Spec(recipe, "parle", n, s, size, rounds) for s in range(seeds) for n in (1, 2, 3, 6, 8)]


def sensitivity(seeds, size, rounds):
    """Section 3.1: gamma_0 and rho_0, each times 1/10 to 10, hardly matter."""
    recipe = "wrn_cifar10" if size == "paper" else "lenet_mnist"
    specs = []
    for seed in range(seeds):
        specs.append(Spec(recipe, "parle", 3, seed, size, rounds))
        for name, usual in (("gamma0", 100.0), ("rho0", 1.0)):
            for factor in (0.1, 0.3, 3.0, 10.0):
                value = f"{usual * factor:g}"
                extra = (f"--algorithm.{name}", value)
                specs.append(Spec(recipe, "parle", 3, seed, size, rounds, extra, f"-{name}-{value}"))
    return specs


# name: (what it is, its runs for seeds, size and rounds)
EXPERIMENTS = {
    "table1": ("Table 1: four networks, four algorithms", table1),
    "table2": ("Table 2: the data split between replicas", table2),
    "fig1": ("Figure 1 and section 1.2: independent networks, their average, alignment", figure1),
    "fig2": ("Figure 2: LeNet on MNIST", mnist),
    "fig3": ("Figure 3: WRN-28-10 on CIFAR-10 and CIFAR-100", wide("cifar10", "cifar100")),
    "fig4": ("Figure 4: WRN-16-4 on SVHN", wide("svhn")),
    "fig5": ("Figure 5: training error", wide("cifar10", "cifar100", "svhn")),
    "fig6": ("Figure 6: validation error with split data", table2),
    "replicas": ("Section 4.3: the number of replicas", replicas),
    "sensitivity": ("Section 3.1: gamma_0 and rho_0", sensitivity),
}


def folder(runs, spec):
    """Where a run lies."""
    return Path(runs) / (spec.size if spec.rounds is None else f"{spec.size}-{spec.rounds}") / spec.name
