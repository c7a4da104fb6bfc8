"""Benchmarks over hosts (tests/helpers/namespaces.py): a program starts itself there, and rank 0 of it prints JSON."""

import json
import sys
from pathlib import Path

from helpers.namespaces import Cluster, why_not


def need_hosts():
    """End with the reason where there can be no hosts."""
    if reason := why_not():
        print(f"skipped: {reason}")
        sys.exit()


def by_the_slowest(world, bodies, repeat):
    """{name: [its numbers, each the largest of all ranks], ...} of bodies in turn, after once to warm up.

    bodies: {name: function giving a list of numbers}, which all ranks of `world` begin together.
    """
    found = {name: [] for name in bodies}
    for i in range(repeat + 1):
        for name, body in bodies.items():
            world.Barrier()
            numbers = [max(of_all) for of_all in zip(*world.allgather(body()), strict=True)]
            if i:
                found[name].append(numbers)
    return found


def on_hosts(count, rate, arguments, *names, ranks=2, timeout=3600):
    """What this program, given --worker and the named arguments, prints on ranks over hosts with links of a rate.

    rate None: as fast as memory. timeout: in seconds. Ends where the program fails.
    """
    handed_on = []
    for name in names:
        value = getattr(arguments, name)
        handed_on += [f"--{name}", *(value if isinstance(value, list) else [value])]
    with Cluster(count) as cluster:
        cluster.shape(rate)
        done = cluster.mpirun(ranks, Path(sys.argv[0]).resolve(), "--worker", *handed_on, timeout=timeout)
    if done.returncode:
        sys.exit(f"{count} hosts, {rate}: {done.stdout}{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])
