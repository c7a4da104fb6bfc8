"""The numbers of the paper, to print beside ours."""

from typing import NamedTuple

from ..training.summary import PAPERS_COUPLING

ALGORITHMS = ("parle", "entropy_sgd", "elastic_sgd", "sgd")  # that it compares


class Result(NamedTuple):
    """Validation error in percent, its standard deviation over 3 runs (None: one run), and minutes."""

    error: float
    std: float | None
    minutes: float


# Table 1, by data set
TABLE_1 = {
    "mnist": (
        "LeNet (MNIST, n = 6)",
        {
            "parle": Result(0.44, 0.01, 4.24),
            "elastic_sgd": Result(0.48, 0.01, 5),
            "entropy_sgd": Result(0.49, 0.01, 6.5),
            "sgd": Result(0.5, 0.01, 5.6),
        },
    ),
    "cifar10": (
        "WRN-28-10 (CIFAR-10, n = 3)",
        {
            "parle": Result(3.24, 0.1, 400),
            "elastic_sgd": Result(4.38, None, 289),
            "entropy_sgd": Result(4.23, None, 400),
            "sgd": Result(4.29, None, 355),
        },
    ),
    "cifar100": (
        "WRN-28-10 (CIFAR-100, n = 3)",
        {
            "parle": Result(17.64, None, 325),
            "elastic_sgd": Result(21.36, None, 317),
            "entropy_sgd": Result(19.05, 0.03, 400),
            "sgd": Result(18.85, None, 355),
        },
    ),
    "svhn": (
        "WRN-16-4 (SVHN)",
        {
            "parle": Result(1.68, 0.01, 592),
            "elastic_sgd": Result(1.57, None, 429),
            "entropy_sgd": Result(1.64, None, 481),
            "sgd": Result(1.62, None, 457),
        },
    ),
}

# Table 2, by the part of CIFAR-10 that a replica sees; SGD sees a random part alone
TABLE_2 = {
    1.0: (
        "All-CNN (full data)",
        {"parle": Result(5.18, 0.06, 75), "elastic_sgd": Result(5.76, 0.07, 44), "sgd": Result(6.15, 0.05, 37)},
    ),
    0.5: (
        "All-CNN (n = 3, 50 % data)",
        {"parle": Result(5.89, 0.01, 34), "elastic_sgd": Result(6.51, 0.09, 36), "sgd": Result(7.86, 0.12, 20)},
    ),
    0.25: (
        "All-CNN (n = 6, 25 % data)",
        {"parle": Result(6.08, 0.05, 19), "elastic_sgd": Result(6.8, 0.05, 20), "sgd": Result(10.96, 0.17, 10)},
    ),
}

# Section 4.1: time of (8c) and (8d) over that of the mini-batches between, in percent
COUPLING = {"wrn": PAPERS_COUPLING, "allcnn": 0.43}

# Section 1.2, All-CNN on CIFAR-10, validation error in percent
MOTIVATION = {"networks": 6, "each": (8.04, 0.16), "ensemble": 7.84, "average": 89.9, "aligned_average": 18.7}
