"""Hosts on one machine: network namespaces with names, addresses and shaped links of their own. Needs root.

    with Cluster(2) as cluster:
        cluster.shape("25mbit")
        cluster.mpirun(2, "program.py")          # a rank on each host
        cluster.bytes_sent()                      # what left the hosts so far

A host is a process that holds a network, a mount and a name space; nothing of the machine itself is changed. There is
one more, the login host, where the switch is and mpirun runs. Every host has its own /dev/shm, or shared memory would
join what the network should.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from mpi import ENVIRONMENT

NETWORK, INTERFACE = "10.77.0", "e0"
# mpirun hands over one line for the other host's shell
AGENT = 'exec nsenter --target "$pid" --net --mount --uts -- sh -c "$*"'
TOOLS = ("ip", "tc", "nsenter", "unshare")


def why_not():
    """Why there can be no cluster here, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} missing: apt install iproute2 util-linux"
    probe = subprocess.run(["unshare", "--net", "--mount", "--uts", "true"], capture_output=True, text=True)
    return f"namespaces are not allowed here: {probe.stderr.strip()}" if probe.returncode else None


def link_bytes(process="self"):
    """Bytes that have left through the link of the host on which a process runs; 0 where there is no link."""
    for line in Path(f"/proc/{process}/net/dev").read_text().splitlines():
        if line.strip().startswith(f"{INTERFACE}:"):
            return int(line.split(":")[1].split()[8])
    return 0


class Host:
    """One host: `enter` is the command that goes before another to run it there."""

    def __init__(self, name, number, folder):
        self.name, self.address = name, f"{NETWORK}.{number}"
        script = (
            f"hostname {name}; mount --make-rprivate /; mount -t tmpfs tmpfs /dev/shm; "
            f"mount --bind {folder}/hosts /etc/hosts; ip link set lo up; echo ready; exec sleep infinity"
        )
        command = ["unshare", "--net", "--mount", "--uts", "--", "sh", "-ec", script]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        if self.process.stdout.readline() != "ready\n":
            raise RuntimeError(f"host {name} did not start")
        (folder / f"{name}.pid").write_text(str(self.process.pid))
        self.enter = ["nsenter", "--target", str(self.process.pid), "--net", "--mount", "--uts", "--"]

    def __call__(self, *command, check=True, **options):
        """Run a command on this host; its CompletedProcess with text."""
        options = {"capture_output": True, "text": True, **options}
        return subprocess.run([*self.enter, *map(str, command)], check=check, **options)

    def bytes_sent(self):
        """Bytes that have left through the link since the start."""
        return link_bytes(self.process.pid)


class Cluster:
    """`count` hosts, host1, host2, ..., and the login host between them, as a context manager."""

    python = sys.executable

    def __init__(self, count):
        self.count = count

    def __enter__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="cluster-"))
        names = [("login", 254), *((f"host{i}", i) for i in range(1, self.count + 1))]
        hosts = "".join(f"{NETWORK}.{number} {name}\n" for name, number in names)
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost\n{hosts}")
        everyone = []
        try:
            for name, number in names:
                everyone.append(Host(name, number, self.folder))
            self.login, *self.hosts = everyone
            self._connect()
        except BaseException:
            self._end(everyone)
            raise
        agent = self.folder / "agent"
        agent.write_text(f"#!/bin/sh\npid=$(cat {self.folder}/$1.pid); shift\n{AGENT}\n")
        agent.chmod(0o755)
        return self

    def _connect(self):
        self.login("ip", "link", "add", INTERFACE, "type", "bridge")
        for host in self.hosts:
            port = ["ip", "link", "add", host.name, "type", "veth", "peer", "name", INTERFACE]
            self.login(*port, "netns", str(host.process.pid))
            self.login("ip", "link", "set", host.name, "master", INTERFACE, "up")
        for host in (self.login, *self.hosts):
            host("ip", "address", "add", f"{host.address}/24", "dev", INTERFACE)
            host("ip", "link", "set", INTERFACE, "up")

    def __exit__(self, *_):
        self._end([self.login, *self.hosts])

    def _end(self, everyone):
        for host in everyone:
            host.process.kill()
            host.process.wait()
        shutil.rmtree(self.folder)

    def shape(self, rate):
        """Limit every link, in both directions, to a rate such as "25mbit"; None: as fast as memory."""
        for host in self.hosts:
            for where, device in ((host, INTERFACE), (self.login, host.name)):
                where("tc", "qdisc", "del", "dev", device, "root", check=False)
                if rate:
                    limit = ["rate", rate, "burst", "64kb", "latency", "400ms"]
                    where("tc", "qdisc", "add", "dev", device, "root", "tbf", *limit)

    def bytes_sent(self):
        """Bytes that have left all hosts so far."""
        return sum(host.bytes_sent() for host in self.hosts)

    def environment(self, **more):
        """Of a program on the hosts: MPI and gloo keep to the link."""
        usual = {
            "OMPI_MCA_btl_tcp_if_include": INTERFACE,
            "OMPI_MCA_oob_tcp_if_include": INTERFACE,
            "OMPI_MCA_plm_rsh_agent": str(self.folder / "agent"),
            "GLOO_SOCKET_IFNAME": INTERFACE,
        }
        return {**os.environ, **ENVIRONMENT, **usual, **more}

    def start(self, host, *arguments):
        """A Python started on a host, by its number from 0; its Popen."""
        return subprocess.Popen([*self.hosts[host].enter, self.python, *arguments])

    def mpirun(self, ranks, *command, timeout=240, **environment):
        """The finished `mpirun -np ranks python command...` over the hosts in turn, neighbours on one host."""
        environment = self.environment(**environment)
        mpirun = shutil.which("mpirun", path=environment["PATH"])
        slots = -(-ranks // self.count)
        where = ",".join(f"{host.name}:{slots}" for host in self.hosts)
        exports = [
            part for name in environment if name.startswith(("OMPI_", "GLOO_", "PYTHON")) for part in ("-x", name)
        ]
        start = [mpirun, "-np", str(ranks), "-host", where, "--map-by", "slot", *exports, self.python]
        return self.login(*start, *command, check=False, timeout=timeout, env=environment)
