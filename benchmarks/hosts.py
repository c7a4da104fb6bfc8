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


def on_hosts(count, rate, arguments, *names):
    """What this program, given --worker and the named arguments, prints on two ranks over hosts with links of a rate.

    rate None: as fast as memory. Ends where the program fails.
    """
    handed_on = [part for name in names for part in (f"--{name}", getattr(arguments, name))]
    with Cluster(count) as cluster:
        cluster.shape(rate)
        done = cluster.mpirun(2, Path(sys.argv[0]).resolve(), "--worker", *handed_on, timeout=3600)
    if done.returncode:
        sys.exit(f"{count} hosts, {rate}: {done.stdout}{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])
