"""Hosts on one machine: network namespaces with names, addresses and shaped links of their own. Needs root.

    with Cluster(2) as cluster:
        cluster.shape("25mbit")
        cluster.mpirun(2, "program.py")          # a rank on each host
        cluster.bytes_sent()                      # what left the hosts so far

A host is the first process of a network, a mount, a name and a process space; nothing of the machine itself is
changed. There is one more, the login host, where the switch is and mpirun runs. Every host has its own /dev/shm, or
shared memory would join what the network should. What runs on a host ends with it, and a host with whoever made it.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from helpers.mpi import ENVIRONMENT, of_rank

NETWORK, INTERFACE = "10.77.0", "e0"
SPACES = ("--net", "--mount", "--uts", "--pid")
# nsenter leaves a child in the other process space, which is to end with it
INSIDE = ("--", "setpriv", "--pdeathsig", "KILL", "--")
# mpirun hands over one line for the other host's shell
AGENT = f'exec nsenter --target "$pid" {" ".join((*SPACES, *INSIDE))} sh -c "$*"'
TOOLS = ("ip", "tc", "nsenter", "setpriv", "unshare")


def why_not():
    """Why there can be no cluster here, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} missing: apt install iproute2 util-linux"
    probe = subprocess.run(["unshare", *SPACES, "--fork", "true"], capture_output=True, text=True)
    return f"namespaces are not allowed here: {probe.stderr.strip()}" if probe.returncode else None


def link_bytes(process="self"):
    """Bytes that have left through the link of the host on which a process runs; 0 where there is no link."""
    for line in Path(f"/proc/{process}/net/dev").read_text().splitlines():
        if line.strip().startswith(f"{INTERFACE}:"):
            return int(line.split(":")[1].split()[8])
    return 0


class Host:
    """One host: `enter` is the command that goes before another to run it there, `pid` the process that is the host.

    login: the login host, None for itself.
    """

    def __init__(self, name, number, folder, login=None):
        self.name, self.address = name, f"{NETWORK}.{number}"
        # The first process of a space ends all others there when it ends, and inherits what they leave: a shell that
        # waits for the end of its standard input. A process space can be entered only from one that it lies in, so
        # the login host's holds the others, and a host has a number there and one in the machine's /proc.
        script = (
            f"hostname {name}; mount --make-rprivate /; [ -e {folder}/proc/1 ] || mount --bind /proc {folder}/proc; "
            f"read -r outside _ < {folder}/proc/self/stat; read -r inside _ < /proc/self/stat; "
            "mount -t proc proc /proc; mount -t tmpfs tmpfs /dev/shm; "
            f"mount --bind {folder}/hosts /etc/hosts; ip link set lo up; "
            "echo $outside $inside; exec 3<&0 >/dev/null; cat <&3 & wait"
        )
        command = [*(login.enter if login else []), "unshare", *SPACES, "--fork", "--", "sh", "-ec", script]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.started = [self.process]
        answer = self.process.stdout.readline().split()
        if not answer:
            raise RuntimeError(f"host {name} did not start")
        self.pid, self.pid_on_login = answer
        self.enter = ["nsenter", "--target", self.pid, *SPACES, *INSIDE]

    def __call__(self, *command, check=True, cwd="/", **options):
        """Run a command on this host; its CompletedProcess with text."""
        options = {"capture_output": True, "text": True, **options}
        # who enters a mount space is at its root
        return subprocess.run([*self.enter, "env", f"--chdir={cwd}", *map(str, command)], check=check, **options)

    def start(self, *command, **options):
        """A command started on this host; its Popen."""
        self.started.append(subprocess.Popen([*self.enter, *map(str, command)], **options))
        return self.started[-1]

    def end(self):
        """End the host and all that runs on it."""
        self.process.stdin.close()
        for process in self.started:
            process.wait()
        self.process.stdout.close()

    def bytes_sent(self):
        """Bytes that have left through the link since the start."""
        return link_bytes(self.pid)


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
        (self.folder / "proc").mkdir()
        everyone = []
        try:
            for name, number in names:
                everyone.append(Host(name, number, self.folder, *everyone[:1]))
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
            (self.folder / f"{host.name}.pid").write_text(host.pid_on_login)
            port = ["ip", "link", "add", host.name, "type", "veth", "peer", "name", INTERFACE]
            self.login(*port, "netns", host.pid_on_login)
            self.login("ip", "link", "set", host.name, "master", INTERFACE, "up")
        for host in (self.login, *self.hosts):
            host("ip", "address", "add", f"{host.address}/24", "dev", INTERFACE)
            host("ip", "link", "set", INTERFACE, "up")
            # Linux's own, whatever this machine was set to
            host("ip", "route", "change", f"{NETWORK}.0/24", "dev", INTERFACE, "src", host.address, "congctl", "cubic")

    def __exit__(self, *_):
        self._end([self.login, *self.hosts])

    def _end(self, everyone):
        for host in reversed(everyone):
            host.end()
        shutil.rmtree(self.folder)

    def shape(self, rate):
        """Limit every link, in both directions, to a rate such as "25mbit"; None: as fast as memory."""
        for host in self.hosts:
            for where, device in ((host, INTERFACE), (self.login, host.name)):
                where("tc", "qdisc", "del", "dev", device, "root", check=False)
                if rate:
                    # tbf cuts up what exceeds a burst, and TCP hands over 64 KB at once: work that a network card does,
                    # and not the core of a rank
                    limit = ["rate", rate, "burst", "128kb", "latency", "400ms"]
                    where("tc", "qdisc", "add", "dev", device, "root", "tbf", *limit)

    def lose(self, host):
        """End a host, by its number from 0, as a loss of power would: nothing leaves it any more."""
        self.login("ip", "link", "set", self.hosts[host].name, "down")
        self.hosts[host].end()

    def bytes_sent(self):
        """Bytes that have left all hosts so far."""
        return sum(host.bytes_sent() for host in self.hosts)

    def environment(self, **more):
        """Of a program on the hosts: MPI and gloo keep to the link, and temporary files to the cluster's folder."""
        usual = {
            "OMPI_MCA_btl_tcp_if_include": INTERFACE,
            "OMPI_MCA_oob_tcp_if_include": INTERFACE,
            "OMPI_MCA_plm_rsh_agent": str(self.folder / "agent"),
            "GLOO_SOCKET_IFNAME": INTERFACE,
            "TMPDIR": str(self.folder),
        }
        return {**os.environ, **ENVIRONMENT, **usual, **more}

    def start(self, host, *arguments):
        """A Python started on a host, by its number from 0; its Popen."""
        return self.hosts[host].start(self.python, *arguments)

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
        return self.login(*start, *of_rank(command), check=False, timeout=timeout, env=environment)
