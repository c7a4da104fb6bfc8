"""How Horovod's wheel is built: its source, patched, in a folder and with variables with which CMake can work."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from pathlib import Path

from machine import first_error, pip, room, run_pip, said, starts, stop

VERSION = "0.28.1"
SDIST_SHA256 = "92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0"
BUILD_TOOLS = ["setuptools>=68,<81", "wheel<1", "cmake>=3.18,<4", "packaging"]
ROOM, MEMORY = 1e9, 2e9  # bytes: of a build, and of one compiler that is at work
# what of Horovod's own variables is the user's to say: the rest is decided here
OF_NCCL = ["HOROVOD_NCCL_HOME", "HOROVOD_NCCL_INCLUDE", "HOROVOD_NCCL_LIB", "HOROVOD_NCCL_LINK"]
OF_USERS = [*OF_NCCL, "HOROVOD_BUILD_CUDA_CC_LIST", "HOROVOD_BUILD_ARCH_FLAGS"]
OF_BUILDS = re.compile(r"HOROVOD_(WITH|GPU|CPU_OPERATIONS|CUDA|ROCM|NCCL|NVTX|SKIP|CMAKE|DEBUG|ALLOW|BUILD)")
# CMake and the compilers' wrappers take lists apart at such characters
ODD = re.compile(r"[^A-Za-z0-9_./+@=-]")


def check_sdist(sdist):
    """The archive is Horovod's own. Ends with a line where not."""
    try:
        found = hashlib.sha256(sdist.read_bytes()).hexdigest()
    except OSError as error:
        stop(f"{sdist}: {error.strerror}; horovod-{VERSION}.tar.gz is wanted, as PyPI has it")
    if found != SDIST_SHA256:
        stop(f"{sdist} is not the source archive of Horovod {VERSION}: its SHA-256 is not {SDIST_SHA256[:16]}...")


def fetch_sdist(folder, environment):
    command = ["download", "-q", "--no-deps", "--no-build-isolation", "--no-binary", "horovod"]
    command = pip(sys.executable, *command, f"horovod=={VERSION}", "-d", folder)
    answer = subprocess.run(command, env=environment, capture_output=True, text=True)
    found = folder / f"horovod-{VERSION}.tar.gz"
    if not found.exists():
        stop(
            f"Horovod's source could not be downloaded: {first_error(answer.stdout + answer.stderr)}; bring it by "
            f"hand: --sdist horovod-{VERSION}.tar.gz{said('PIP_')}"
        )
    return found


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


def memory():
    """Bytes that this process may still take: of the machine, and of the control groups that it is in."""
    found = [int(re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())[1]) * 1024]
    group = re.search(r"^0::(/.*)$", Path("/proc/self/cgroup").read_text(), re.MULTILINE)
    for folder in [Path(group[1]), *Path(group[1]).parents] if group else []:
        path = Path("/sys/fs/cgroup", *folder.parts[1:])
        try:
            found.append(int((path / "memory.max").read_text()) - int((path / "memory.current").read_text()))
        except (OSError, ValueError):
            continue  # "max", or none
    return min(found)


def jobs():
    """How many compilers at a time: the cores allow it, and the memory, which is small on many a login node."""
    return max(1, min(len(os.sched_getaffinity(0)), int(memory() / MEMORY)))


def unused(cuda):
    """NAME=VALUE of what the shell says to Horovod's build and is not heeded."""
    heeded = OF_USERS if cuda else ["HOROVOD_BUILD_ARCH_FLAGS"]
    names = [name for name in sorted(os.environ) if OF_BUILDS.match(name) and name not in heeded]
    return [f"{name}={os.environ[name]}" for name in names]


def build_environment(tools):
    """The shell's variables without those that would make another Horovod, and with those that make ours."""
    environment = {name: value for name, value in os.environ.items() if not OF_BUILDS.match(name) or name in OF_USERS}
    for name in ("CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH"):
        # it stands before what mpicxx says
        folders = environment.pop(name, "").split(os.pathsep)
        folders = [folder for folder in folders if not Path(folder, "mpi.h").exists()]
        environment.update({name: os.pathsep.join(folders)} if any(folders) else {})
    for name in ("AR", "MPI_HOME", "I_MPI_ROOT", "PYTHONWARNINGS", "PYTHONOPTIMIZE"):
        environment.pop(name, None)
    environment.update(
        HOROVOD_WITH_PYTORCH="1",
        HOROVOD_WITHOUT_TENSORFLOW="1",
        HOROVOD_WITHOUT_MXNET="1",
        HOROVOD_WITH_MPI="1",
        HOROVOD_WITHOUT_GLOO="1",
        HOROVOD_CMAKE=str(tools / "bin" / "cmake"),
        PYTHONPATH=os.pathsep.join(filter(None, [str(tools), os.environ.get("PYTHONPATH")])),
        TMPDIR=str(tools.parent),
        CCACHE_DISABLE="1",
    )
    flags = environment.get("MAKEFLAGS", "")
    if not re.search(r"(^|\s)-?\w*j\s*\d", flags):
        environment["MAKEFLAGS"] = f"{flags} -j{jobs()}".strip()
    return environment


# what CMake asks a compiler's wrapper, answered with the links' names
MPICXX = """#!{python}
import subprocess, sys
answer = subprocess.run([{mpicxx!r}, *sys.argv[1:]], stdout=subprocess.PIPE, text=True)
for name, link in {links!r}.items():
    answer.stdout = answer.stdout.replace(name, link)
print(answer.stdout, end="")
sys.exit(answer.returncode)
"""


def plain(environment, work):
    """The Python to build with, all by names that CMake takes: links where this environment's or MPI's own is odd.

    environment: of the build, which is changed.
    """
    mpicxx = Path(shutil.which("mpicxx", path=environment["PATH"]))
    # a wrapper may know itself by the name without links
    folders = [Path(sys.prefix), Path(sys.prefix).resolve(), mpicxx.parent.parent, mpicxx.resolve().parent.parent]
    odd = filter(ODD.search, dict.fromkeys(map(str, folders)))
    links = {name: str(work / f"link-{i}") for i, name in enumerate(odd)}
    if not links:
        return sys.executable
    for name, link in links.items():
        os.symlink(name, link)
    link = links.get(sys.prefix)
    python = f"{link}/bin/{Path(sys.executable).name}" if link else sys.executable
    if link and "HOROVOD_NCCL_INCLUDE" in environment:
        environment["HOROVOD_NCCL_INCLUDE"] = environment["HOROVOD_NCCL_INCLUDE"].replace(sys.prefix, link)
    wrapper = work / "bin" / "mpicxx"
    wrapper.parent.mkdir()
    wrapper.write_text(MPICXX.format(python=python, mpicxx=str(mpicxx), links=links))
    wrapper.chmod(0o755)
    # beside which CMake looks for the compiler first
    wrapper.with_name("mpiexec").symlink_to(mpicxx.with_name("mpiexec"))
    environment["PATH"] = f"{wrapper.parent}{os.pathsep}{environment['PATH']}"
    return python


def check_nccl():
    """The NCCL that the shell names, if it names one, is there. Ends with a line where not."""
    for name, header in (
        ("HOROVOD_NCCL_HOME", "include/nccl.h"),
        ("NCCL_HOME", "include/nccl.h"),
        ("HOROVOD_NCCL_INCLUDE", "nccl.h"),
    ):
        if os.environ.get(name) and not Path(os.environ[name], header).exists():
            stop(f"{name}={os.environ[name]}: no {header} there; unset {name}, and the NCCL that torch brings is taken")


def cuda_environment(folder, toolkit):
    """Point the build at the toolkit and at the NCCL that torch itself uses, unless the user names another one."""
    chosen = {"HOROVOD_GPU_OPERATIONS": "NCCL", "HOROVOD_NCCL_LINK": os.environ.get("HOROVOD_NCCL_LINK", "SHARED")}
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


def unfit(place):
    """Why nothing can be built in a folder, or None."""
    if ODD.search(str(place)):
        return "its name has a character that CMake does not take"
    return starts(place) or room(place, ROOM)


def work_folder(cache):
    """A folder to build in, in which programs start and there is room. Ends with a line where there is none."""
    reasons = {}
    for place in map(Path, filter(None, [os.environ.get("TMPDIR"), "/tmp", cache, "/var/tmp", "/dev/shm"])):
        reasons[place] = unfit(place)
        if not reasons[place]:
            return tempfile.TemporaryDirectory(prefix="horovod-build-", dir=place)
    found = "; ".join(f"{place}: {reason}" for place, reason in reasons.items())
    stop(f"there is no folder to build Horovod in ({found}); TMPDIR=FOLDER names one")


def build(work, log_path, sdist, cuda, standard, mpi_home):
    """Build the wheel in the folder `work`; its path. Ends with a line where that fails."""
    tools = work / "tools"
    what = "the build tools could not be installed, which are " + ", ".join(BUILD_TOOLS)
    run_pip(sys.executable, what, "install", "-q", "--target", tools, *BUILD_TOOLS)
    environment = build_environment(tools)
    sdist = sdist or fetch_sdist(tools, environment)
    check_sdist(sdist)
    with tarfile.open(sdist) as archive:
        archive.extractall(work)
    source = work / f"horovod-{VERSION}"
    rpath = mpi_home and f"\\\\$ORIGIN/../../torch/lib:{mpi_home.replace('$', chr(92) * 2 + '$')}"
    patch(source, standard, cuda, rpath)
    if cuda:
        environment.update(cuda_environment(work, cuda))
    command = ["wheel", "-v", "--no-build-isolation", "--no-deps", "--no-cache-dir", "-w", work / "out", source]
    command = pip(plain(environment, work), *command)
    with open(log_path, "w") as log:
        code = subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=work).returncode
    wheel = next((work / "out").glob("horovod-*.whl"), None)
    if code or not wheel:
        reason = first_error(log_path.read_text(errors="replace"))
        advice = "; memory ran out: MAKEFLAGS=-j1 and once more" if "Killed" in reason else ""
        stop(
            f"the build failed: {reason}; whole log: {log_path}{advice}{said('CXX', 'CXXFLAGS', 'LDFLAGS', *OF_USERS)}"
        )
    return wheel
