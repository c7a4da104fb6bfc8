"""A real Slurm on the hosts of namespaces.py. Needs root and Debian's packages slurm-wlm, munge and libpmix-dev.

    with SlurmCluster(2) as cluster:
        job = cluster.sbatch("--nodes=2", "slurm/lenet_digits.sbatch", "--schedule.max_rounds", 4)
        cluster.wait(job)["JobState"]             # COMPLETED

slurmctld and munged run on the login host, a slurmd on each of the others, all of them with their keys, state and logs
in the cluster's folder, so that they end and go with it. Hosts claim many cores, whatever the machine has.
"""

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from helpers import namespaces
from helpers.namespaces import Cluster

DAEMONS = ("munged", "slurmctld", "slurmd", "srun")
START, POLL = 90, 0.2  # seconds
ENDED = ("COMPLETED", "CANCELLED", "FAILED", "NODE_FAIL", "TIMEOUT", "BOOT_FAIL", "OUT_OF_MEMORY")

# cred_expire is also how long a requeued job waits. TmpFS is where PMIx works, which must not be one folder for two
# hosts. Root alone can use cgroups, and not inside every container: so processes are found by their parents.
CONFIGURATION = """
ClusterName=tests
SlurmctldHost=login({login})
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
TmpFS={folder}/tmp.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1
MailProg=/bin/true
MpiDefault=none
ReturnToService=2
MessageTimeout=30
SlurmdTimeout=10
KillWait=5
NodeName=host[1-{count}] CPUs=64
PartitionName=all Nodes=ALL Default=YES State=UP
"""


def why_not():
    """Why there can be no Slurm here, or None."""
    missing = [tool for tool in DAEMONS if shutil.which(tool) is None]
    # Slurm's plugin looks for the name without a version, which only the development package has
    if not list(Path("/usr/lib").glob("*/pmix2/lib/libpmix.so")):
        missing.append("libpmix.so")
    return namespaces.why_not() or (f"{', '.join(missing)} missing: make slurm" if missing else None)


_missing = why_not()
# in CI a Slurm that cannot start is a failure
needs_slurm = pytest.mark.skipif(
    _missing is not None and "PARLE_HPC_CI" not in os.environ, reason=f"no Slurm on this machine: {_missing}"
)


class SlurmCluster(Cluster):
    """`count` hosts, host1, host2, ..., under a Slurm whose commands are given on the login host.

    different: lines of its configuration that are to be others, such as TaskPlugin="task/affinity".
    """

    def __init__(self, count, **different):
        super().__init__(count)
        self.different = different

    def __enter__(self):
        super().__enter__()
        try:
            self._start_munge()
            self._start_slurm()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start_munge(self):
        # nobody else reads the folder, which munged therefore takes for a mistake
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        files = {"key": key, "seed": self.folder / "munge.seed", "log": self.folder / "munged.log"}
        options = [f"--{name}-file={path}" for name, path in files.items()]
        socket = self.folder / "munge.socket"
        options += [f"--pid-file={self.folder}/munged.pid", f"--socket={socket}"]
        self.login.start("munged", "--foreground", "--force", *options, stderr=subprocess.DEVNULL)
        self.until(socket.exists, "munged's socket")

    def _start_slurm(self):
        configuration = CONFIGURATION.format(login=self.login.address, folder=self.folder, count=self.count)
        for name, value in self.different.items():
            configuration, found = re.subn(rf"^{name}=.*", f"{name}={value}", configuration, flags=re.MULTILINE)
            assert found == 1
        (self.folder / "slurm.conf").write_text(configuration)
        (self.folder / "state").mkdir()
        for host in self.hosts:
            (self.folder / f"spool.{host.name}").mkdir()
            (self.folder / f"tmp.{host.name}").mkdir()
        environment = self.environment()
        # what they write goes to their logs too
        quiet = {"env": environment, "stderr": subprocess.DEVNULL}
        self.login.start("slurmctld", "-D", "-i", **quiet)
        for host in self.hosts:
            host.start("slurmd", "-D", "-N", host.name, **quiet)
        self.until(lambda: self.nodes() == ["idle"] * self.count, "every host idle")

    def until(self, true, what, timeout=START):
        """Wait until true(); the logs' ends where it does not come."""
        end = time.monotonic() + timeout
        while not true():
            if time.monotonic() > end:
                logs = sorted(self.folder.glob("*.log"))
                ends = "\n".join(f"{log.name}: ...{log.read_text()[-2000:]}" for log in logs)
                raise TimeoutError(f"{what}: not within {timeout} s\n{ends}")
            time.sleep(POLL)

    def environment(self, **more):
        """Of a command on the login host, and so of the jobs that it starts."""
        # PMIx has no security of its own here, and says so unless it is told to; of the other two slurm/common.sh tells
        mine = {"SLURM_CONF": str(self.folder / "slurm.conf"), "PMIX_MCA_psec": "native"}
        mine |= {"PMIX_MCA_gds": "hash", "SLURM_PMIX_FENCE": "ring"}
        return super().environment(**mine, **more)

    def command(self, *command, check=True, timeout=60, cwd="/", **environment):
        """The finished command, given on the login host."""
        environment = self.environment(**environment)
        return self.login(*command, check=check, timeout=timeout, cwd=cwd, env=environment)

    def nodes(self):
        """The state of each host that answers to sinfo, in their order."""
        return self.command("sinfo", "--noheader", "--Node", "--format=%T", check=False).stdout.split()

    def processes(self):
        """Names of all that runs on the hosts, besides Slurm's own daemon and what makes them hosts."""
        usual = ["cat", "ps", "sh", "slurmd"]
        found = [sorted(host("ps", "-e", "-o", "comm=").stdout.split()) for host in self.hosts]
        return [names for names in found if names != usual]

    def sbatch(self, *arguments, cwd, **environment):
        """The number of a job that `sbatch arguments...` has queued, as text."""
        return self.command("sbatch", "--parsable", *arguments, cwd=cwd, **environment).stdout.strip()

    def job(self, job):
        """What scontrol knows of a job: {"JobState": "RUNNING", ...}."""
        shown = self.command("scontrol", "--oneliner", "show", "job", job).stdout
        return dict(part.split("=", 1) for part in shown.split() if "=" in part)

    def wait(self, job, states=ENDED, timeout=200):
        """Wait until a job is in one of the states; what scontrol knows of it then."""
        self.until(lambda: self.job(job)["JobState"] in states, f"job {job} {' or '.join(states)}", timeout)
        return self.job(job)
