"""Parle between hosts: what it sends, and that a run may stop while a reduction is under way."""

import json

import pytest
from helpers.mpi import mpirun
from helpers.namespaces import Cluster, why_not

pytestmark = pytest.mark.cluster
needs_hosts = pytest.mark.skipif(why_not() is not None, reason=f"no hosts as network namespaces: {why_not()}")


@needs_hosts
def test_hosts_have_names_and_shared_memory_of_their_own():
    with Cluster(2) as cluster:
        result = cluster.mpirun(4, "hosts.py")
        assert result.returncode == 0, result.stderr
        ranks = json.loads(result.stdout)
        assert [name for _, name, _ in ranks] == ["host1", "host1", "host2", "host2"]
        assert not set(ranks[0][2]) & set(ranks[2][2])
        # a megabyte over a link of 8 Mbit/s takes a second; Python sends it, since nothing else is sure to be there
        cluster.shape("8mbit")
        sends = "import socket; s = socket.create_server(('', 9999)); c = s.accept()[0]; c.sendall(bytes(2**20))"
        gets = """
import socket, time
for _ in range(600):
    try:
        s = socket.create_connection(("host1", 9999))
        break
    except ConnectionRefusedError:  # the other one has yet to listen
        time.sleep(0.1)
while s.recv(2**16):
    pass
"""
        before = cluster.bytes_sent()
        with cluster.start(0, "-c", sends):
            cluster.hosts[1](cluster.python, "-c", gets)
        assert cluster.bytes_sent() - before >= 2**20
        assert "8Mbit" in cluster.hosts[0]("tc", "qdisc", "show", "dev", "e0").stdout


@needs_hosts
@pytest.mark.parametrize(("n", "m"), [(2, 1), (3, 1), (2, 2)])
def test_what_leaves_the_hosts_in_a_round(n, m):
    """All hosts together at most 1.1 times 2 (n - 1) 4 N bytes, with a replica of m ranks on each host."""
    with Cluster(n) as cluster:
        result = cluster.mpirun(n * m, "traffic.py", n)
    assert result.returncode == 0, result.stderr
    counted = json.loads(result.stdout.splitlines()[-1])
    least = 2 * (n - 1) * 4 * counted["N"]
    assert least <= counted["counted_a_round"] <= 1.1 * least
    assert counted["payload_a_round"] == pytest.approx(least, rel=1e-4)


def test_a_run_that_stops_in_the_middle_of_a_round_leaves_nothing_that_hangs():
    result = mpirun(2, "stops.py", timeout=120)
    assert result.returncode == 0, result.stderr
    # two ranks, whose lines mpirun may join
    assert "".join(result.stdout.split()) == "ended" * 2
