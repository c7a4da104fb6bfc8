"""What both scripts share: what they believe of the shell's variables, what they ask of the machine, how they end."""

import ctypes
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

FATAL = re.compile(r"(\berror\b[:\s]|CMake Error|fatal error|undefined reference|No such file)", re.IGNORECASE)
# why pip reached nothing stands in its warnings; its error says that it found nothing
UNREACHED = re.compile(r"(connection broken by|Could not fetch URL) .*")
PASSING = "parle_hpc-"  # begins the names of files that are gone at once
LONGEST = 600  # characters of a line
NO_ROOM = re.compile(r"No space left on device|quota exceeded|Errno 28\b|Errno 122\b", re.IGNORECASE)
# Options of pip that say what it does, where to, and for which Python; where packages come from is the user's to say
OF_PIP = ["TARGET", "PREFIX", "ROOT", "PYTHON", "PYTHON_VERSION", "PLATFORM", "IMPLEMENTATION", "ABI", "DRY_RUN"]
OF_PIP += ["NO_DEPS", "NO_DEPENDENCIES", "REQUIREMENT", "EDITABLE", "IGNORE_INSTALLED", "QUIET", "VERBOSE"]
# make's own, for the make that CMake starts
OF_MAKE = ["MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES"]
OF_COMPILERS = ["CXX", "CXXFLAGS", "CPPFLAGS", "LDFLAGS", "CPATH", "CPLUS_INCLUDE_PATH", "LIBRARY_PATH"]
OF_COMPILERS += ["COMPILER_PATH", "GCC_EXEC_PREFIX", "OMPI_CXX", "OMPI_CXXFLAGS", "OMPI_LDFLAGS", "OPAL_PREFIX"]
OF_COMPILERS += ["MPICH_CXX", "I_MPI_CXX"]
PROXIES = ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"]


def stop(message):
    """End with one line of the script's own, status 2."""
    line = " ".join(message.split())
    if len(line) > LONGEST:
        line = f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"
    print(f"install/{Path(sys.argv[0]).name}: {line}", file=sys.stderr)
    sys.exit(2)


def run_script(main):
    """main(), whose interruption, or file that cannot be read or written, is a line too."""
    try:
        main()
    except KeyboardInterrupt:
        stop("interrupted; the same command begins again")
    except OSError as error:
        stop(f"{error}; a full disk, a quota or a file system that is away?")


def first_error(log):
    """The line of an output that says what went wrong: the first that names an error, or the last."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    error = next((line for line in lines if FATAL.search(line)), lines[-1] if lines else "(nothing was printed)")
    unreached = next(filter(None, map(UNREACHED.search, lines)), None)
    # without what it is of Python's
    return f"{error} ({re.sub('<[^>]*>:? ?', '', unreached[0])[:200]})" if unreached else error


def forget(environment, user_site=False):
    """Take out of the shell's variables what would make pip and the compilers do something else than they are told.

    user_site: an installation into the user's own folder, `pip install --user`, is seen by this Python.
    """
    dropped = [f"PIP_{name}" for name in OF_PIP]
    if "MAKELEVEL" in environment:
        dropped += OF_MAKE
    for name in [name for name in environment if name in dropped or name.startswith("CMAKE_")]:
        del environment[name]
    environment["PIP_REQUIRE_VIRTUALENV"] = "0"
    if not user_site:
        environment["PIP_USER"] = "0"


def said(*names):
    """What the shell says in variables of these names, or beginnings that end in _, for the end of a line."""
    ours = ("PIP_USER", "PIP_REQUIRE_VIRTUALENV")
    found = [name for name in sorted(os.environ) if os.environ[name] and name not in ours]
    beginnings = tuple(name for name in names if name.endswith("_"))
    found = [
        f"{name}={os.environ[name]}" for name in found if name in names or (beginnings and name.startswith(beginnings))
    ]
    # a password may stand in an address
    return f"; set in this shell: {re.sub('//[^/@ ]*@', '//...@', ', '.join(found))}" if found else ""


def pip(python, *arguments):
    """The command that is `python -m pip arguments`."""
    return [str(python), "-m", "pip", *map(str, arguments)]


def fails(command):
    """Whether a command, run in silence, cannot start or does not end well."""
    try:
        return subprocess.run(list(map(str, command)), capture_output=True).returncode != 0
    except OSError:
        return True


def pip_failed(what, log):
    """End with a line that says what could not be done, why, how to mend it, and what the shell has to do with it."""
    advice = "; the disk, or your quota, is full" if NO_ROOM.search(log) else ""
    if "externally-managed-environment" in log:
        advice = "; this Python is the system's own: python3 -m venv FOLDER, source FOLDER/bin/activate, and once more"
    stop(f"{what}: {first_error(log)}{advice}{said('PIP_', 'MPI', 'TORCH', *PROXIES)}")


def run_pip(python, what, *arguments):
    """`python -m pip arguments`, done in silence. Ends with a line where it fails: what could not be done."""
    answer = subprocess.run(pip(python, *arguments), capture_output=True, text=True)
    if answer.returncode:
        pip_failed(what, answer.stdout + answer.stderr)


def check_python():
    """Python is new enough and can compile against itself. Ends with a line where not."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < (3, 10):
        stop(f"Python 3.10 or newer is needed, {sys.executable} is {version}; try make PYTHON=python3.12")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        stop(
            f"Python.h is missing for {sys.executable} ({version}); install Python's headers (Debian: apt install "
            "python3-dev), or take another Python"
        )


def check_pip(python):
    """This Python has a pip, and no file tells it to install elsewhere. Ends with a line where not."""
    answer = subprocess.run(pip(python, "config", "list"), capture_output=True, text=True)
    if answer.returncode:
        reason = first_error(answer.stderr)
        stop(f"{python} has no working pip ({reason}); {shlex.quote(str(python))} -m ensurepip, or uv venv --seed")
    names = "|".join(name.lower().replace("_", "-") for name in OF_PIP)
    for line in answer.stdout.splitlines():
        found = re.match(rf"(\w[\w-]*\.(?:{names}))=(.*)", line)
        if found and found[1].partition(".")[2] not in ("quiet", "verbose"):
            stop(
                f"a configuration file of pip says {found[1]} = {found[2]}, which would install elsewhere; "
                f"python -m pip config unset {found[1]}, or begin the command with env PIP_CONFIG_FILE=/dev/null"
            )


def compiler():
    """The C++ compiler, as a list of words: $CXX, or what is on PATH. Ends with a line where there is none."""
    words = shlex.split(os.environ.get("CXX", "")) or [shutil.which("c++") or shutil.which("g++") or ""]
    if not words[0]:
        stop("no C++ compiler found; install g++ (Debian: apt install g++), or load a compiler module")
    if not shutil.which(words[0]):
        stop(f"CXX={os.environ['CXX']}: {words[0]} is not there; unset CXX, or load the module that has it")
    return words


def compiles(command, source, folder, *flags):
    """(shared library, None) if this compiler makes one of the source, with the shell's flags; else (None, reason)."""
    file, library = folder / "few_lines.cc", folder / "few_lines.so"
    file.write_text(source)
    words = [
        *command,
        *shlex.split(os.environ.get("CXXFLAGS", "")),
        *flags,
        "-shared",
        "-fPIC",
        str(file),
        "-o",
        str(library),
    ]
    words += shlex.split(os.environ.get("LDFLAGS", ""))
    answer = subprocess.run(words, capture_output=True, text=True)
    return (None, first_error(answer.stderr + answer.stdout)) if answer.returncode else (library, None)


def check_compilers(folder, standard="17"):
    """C++ of this standard compiles against Python, and, where there is an mpicxx, against MPI.

    Returns the library made of a few lines of MPI, in the folder, or None. Ends with a line where one fails.
    """
    command = compiler()
    source = "#include <Python.h>\n#include <string_view>\nstd::string_view parle_hpc() { return Py_GetVersion(); }\n"
    include = f"-I{sysconfig.get_path('include')}"
    _, reason = compiles(command, source, folder, include, f"-std=c++{standard}")
    if reason:
        stop(
            f"the C++ compiler {shlex.join(command)} cannot compile a few lines of C++{standard}: {reason}; unset what "
            f"is left over, or load a newer compiler (GCC 11 knows all that torch asks for){said(*OF_COMPILERS)}"
        )
    mpicxx = shutil.which("mpicxx")
    if not mpicxx:
        return None
    source = '#include <mpi.h>\nextern "C" int parle_hpc() { int yes; return MPI_Initialized(&yes); }\n'
    library, reason = compiles([mpicxx], source, folder)
    if reason:
        stop(
            f"{mpicxx} cannot compile a few lines of MPI: {reason}; unset what is left over, load one MPI module, "
            f"or name a compiler that is there: OMPI_CXX=g++ (Open MPI), MPICH_CXX=g++ (MPICH){said(*OF_COMPILERS)}"
        )
    return library


def starts(folder):
    """Why a program that lies in this folder does not start, or None."""
    try:
        with tempfile.TemporaryDirectory(prefix=PASSING, dir=folder) as inside:
            script = Path(inside, "script")
            script.write_text("#!/bin/sh\n")
            script.chmod(0o700)
            return "no program starts there; is it mounted noexec?" if fails([script]) else None
    except OSError as error:
        return error.strerror


def room(folder, size):
    """Why a file of `size` bytes does not fit into the folder, or None. Sees a quota where the file system can tell."""
    total, _, free = shutil.disk_usage(folder)
    if free < size and total:
        return f"{size / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB free"
    with tempfile.TemporaryFile(prefix=PASSING, dir=folder) as file:
        ctypes.set_errno(0)
        libc = ctypes.CDLL(None, use_errno=True)
        failed = libc.fallocate(file.fileno(), 0, ctypes.c_int64(0), ctypes.c_int64(int(size))) != 0
        reason = os.strerror(ctypes.get_errno())
    return f"{size / 1e9:.1f} GB are needed: {reason}" if failed and NO_ROOM.search(reason) else None
