"""A container definition executed where there is no Apptainer: its %post in a tree of debootstrap, then what it is for.

    python tests/containers/tree.py [containers/cpu.def] [--keep FOLDER]

Needs root, debootstrap and Slurm (make slurm), and the network. A tree of the same Debian stands for the image that
the definition begins from, and tests/containers/apptainer for `apptainer exec`: a read-only image, and the caller's own
folder. There, as nobody, %test is run, mpirun and horovodrun train on digits; then the host's srun asks the doctor on 2
x 2 tasks, and slurm/lenet_digits.sbatch trains with PARLE_HPC_RUN=container. Each step says how long it took; the
first that fails ends it with status 1. With --keep the tree stays, and a later call starts from it.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from containers.definition import ROOT, copy_files, read
from helpers import slurm_cluster

SUITES = {"debian:12": "bookworm"}
NOBODY = 65534
APPTAINER = Path(__file__).resolve().parent / "apptainer"
# a mount space of its own ends with the command, and what is mounted in it
INSIDE = """
mount --bind {tree} {tree}; mount --rbind /dev {tree}/dev; mount -t proc proc {tree}/proc
{bind}
exec chroot {tree} /bin/sh -e
"""


def stop(message):
    print(f"tree.py: {message}", file=sys.stderr)
    sys.exit(1)


def step(what, *command, shows=10, **options):
    """Run a command; its output, of which the last lines are shown."""
    started = time.monotonic()
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, **options}
    done = subprocess.run(list(map(str, command)), **options)
    print(f"== {what}: {'ok' if not done.returncode else f'status {done.returncode}'}, ", end="")
    print(f"{time.monotonic() - started:.0f} s", flush=True)
    print("\n".join(done.stdout.splitlines()[-(40 if done.returncode else shows) :]), flush=True)
    if done.returncode:
        stop(f"{what} failed")
    return done.stdout


def bootstrap(header, tree):
    """The image of the header as a folder, from Debian's packages."""
    suite = next((suite for image, suite in SUITES.items() if header["From"].startswith(image)), None)
    if suite is None:
        stop(f"{header['From']} is not one of {', '.join(SUITES)}, of which debootstrap makes a tree")
    step(f"debootstrap {suite}", "debootstrap", "--variant=minbase", suite, tree, shows=1)
    # what the machine needs to reach a package index, the site's own certificates too, it needs in the tree
    shutil.copy("/etc/resolv.conf", tree / "etc" / "resolv.conf")
    certificates = "usr/local/share/ca-certificates"
    shutil.copytree(f"/{certificates}", tree / certificates, dirs_exist_ok=True)


def build(path, header, sections, tree):
    """%files, %post and %environment, as `apptainer build` does it."""
    bootstrap(header, tree)
    copy_files(sections, tree)
    wheels = [folder for folder in os.environ.get("PIP_FIND_LINKS", "").split() if Path(folder).is_dir()]
    bind = "\n".join(f"mkdir -p {tree}{folder}; mount --bind {folder} {tree}{folder}" for folder in wheels)
    script = INSIDE.format(tree=tree, bind=bind)
    known = {name: value for name, value in os.environ.items() if name.lower().startswith(("pip_", "http", "no_proxy"))}
    environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", **known}
    inside = ["unshare", "--mount", "--pid", "--fork", "sh", "-ec", script]
    step(f"%post of {path.name}", *inside, input=sections["post"], env=environment)
    environment = tree / ".singularity.d" / "env" / "90-environment.sh"
    environment.parent.mkdir(parents=True)
    environment.write_text(sections["environment"])


def try_alone(sections, tree):
    """%test, and both launchers, as nobody in a folder of nobody's."""
    with tempfile.TemporaryDirectory(prefix="container-") as folder:
        os.chown(folder, NOBODY, NOBODY)
        inside = [APPTAINER, "exec", "--pwd", folder, tree]
        usual = {"PATH": os.environ["PATH"]}
        step("%test as nobody", *inside, "sh", "-c", sections["test"], shows=40, env=usual)
        for launcher in (("mpirun", "-np", 4), ("horovodrun", "-np", 2)):
            out = Path(folder) / launcher[0]
            command = [*launcher, "python", "-m", "parle_hpc.train", "--replicas", 2, "--out", out]
            step(" ".join(map(str, launcher)), *inside, *command, env=usual)
            if not (out / "reference.pt").exists():
                stop(f"{launcher[0]} left no reference")
        step("the image is read-only", *inside, "sh", "-c", "! touch /opt/parle_hpc/here", shows=1, env=usual)


def try_under_slurm(tree):
    """The hybrid model: the host's srun, the image's MPI."""
    with slurm_cluster.SlurmCluster(2) as cluster, tempfile.TemporaryDirectory(prefix="container-") as folder:
        shared = cluster.environment()
        shared["PATH"] = os.pathsep.join([str(APPTAINER.parent), shared["PATH"]])
        login = [*cluster.login.enter, "env", f"--chdir={folder}"]
        two_by_two = ["--nodes=2", "--ntasks-per-node=2"]
        image = ["apptainer", "exec", "--pwd", folder, tree]
        doctor = ["python", "-m", "parle_hpc.doctor", "--out", folder]
        step("srun ... doctor", *login, "srun", "--mpi=pmix", *two_by_two, *image, *doctor, shows=40, env=shared)
        shared.update(PARLE_HPC_ROOT=str(ROOT), PARLE_HPC_RUN="container", PARLE_HPC_IMAGE=str(tree))
        shared.update(PARLE_HPC_LOCAL="/dev/shm", SBATCH_GPUS_PER_NODE="0")
        sbatch = ["sbatch", "--wait", *two_by_two, "--cpus-per-task=1", ROOT / "slurm" / "lenet_digits.sbatch"]
        try:
            step("sbatch slurm/lenet_digits.sbatch in the image", *login, *sbatch, env=shared)
        finally:
            for output in Path(folder).glob("*.out"):
                print(output.read_text()[-2000:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("definition", nargs="?", type=Path, default=ROOT / "containers" / "cpu.def")
    parser.add_argument("--keep", type=Path, help="the folder of the tree, which stays")
    arguments = parser.parse_args()
    missing = [tool for tool in ("debootstrap", "unshare", "chroot") if shutil.which(tool) is None]
    if os.geteuid() or missing:
        stop(f"needs root{' and ' + ', '.join(missing) if missing else ''}")
    if reason := slurm_cluster.why_not():
        stop(reason)
    header, sections = read(arguments.definition)
    tree = arguments.keep or Path(tempfile.mkdtemp(prefix="tree-"))
    try:
        if not (tree / "opt" / "parle_hpc").exists():
            tree.mkdir(parents=True, exist_ok=True)
            build(arguments.definition, header, sections, tree)
        tree.chmod(0o755)
        try_alone(sections, tree)
        try_under_slurm(tree)
    finally:
        if not arguments.keep:
            shutil.rmtree(tree)


if __name__ == "__main__":
    main()
