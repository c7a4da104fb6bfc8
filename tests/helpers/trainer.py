"""A run of the trainer: how it is started, and what it leaves."""

import json

import torch

TRAIN = ("-m", "parle_hpc.train")


def wrong(replicas, *settings):
    """The program that prints what every rank is told of each of these settings."""
    return ("wrong.py", replicas, json.dumps([list(map(str, given)) for given in settings]))


def events(folder, name):
    """The events of that name in a run's metrics, in their order."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == name]


def weights(folder):
    """The reference, a state dict."""
    return torch.load(folder / "reference.pt", weights_only=True)


def equal(one, other):
    """Whether two runs have the same reference, bit for bit."""
    one, other = weights(one), weights(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
