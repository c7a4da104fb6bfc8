"""A Python that has loaded torch once, and runs a program of ours in a fork of itself for each case.

    with Server() as server:
        server.run("parle_hpc.evaluate", ["RUN_DIR"], folder)

What runs is the program's own main(), with a command line, a stderr and an exit status of its own, and at most
MEMORY bytes, so that a bomb in a file cannot take the machine with it.
"""

import contextlib
import importlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

NAMES = ("train", "data.prepare", "evaluate", "export", "report", "analysis", "reproduce")
PROGRAMS = [f"parle_hpc.{name}" for name in NAMES]
MEMORY = 3 << 30
HANGS = 90.0  # seconds after which a program is killed


class Outcome(NamedTuple):
    """Exit status (negative: the signal that ended it), what it wrote, and how long it took.

    works: it was stopped because it had begun its work, or it ended by itself with status 0.
    """

    status: int
    works: bool
    stdout: str
    stderr: str
    seconds: float


class Server:
    """The warm Python, as a context manager."""

    def __enter__(self):
        self._scratch = tempfile.mkdtemp(prefix="fuzz-server-")
        # what MPI leaves for a process that is killed is to go with the server
        environment = {**os.environ, "TMPDIR": self._scratch, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
        # nothing is downloaded
        environment.update(http_proxy="http://127.0.0.1:9", https_proxy="http://127.0.0.1:9")
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait(HANGS)
        shutil.rmtree(self._scratch)

    def run(self, program, arguments, folder, begun=None):
        """The Outcome of one of PROGRAMS in `folder`.

        begun: (a pattern of files in the folder, text): it has begun its work, and is stopped, as soon as one of them
            holds the text.
        """
        request = {"program": program, "arguments": arguments, "folder": str(folder), "begun": begun}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Outcome(*json.loads(self._process.stdout.readline()))


def serve():
    for program in PROGRAMS:
        importlib.import_module(program)
    for name in (
        "parle_hpc.training.setup",
        "horovod.torch",
        "h5py",
        "scipy.io",
        "sklearn.datasets",
        "sklearn.model_selection",
    ):
        importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            started = time.monotonic()
            pid = os.fork()
            if pid == 0:
                enter(request, stdout.fileno(), stderr.fileno())
                sys.exit(sys.modules[request["program"]].main())
            status, works = wait(pid, Path(request["folder"]), request["begun"])
            seconds = time.monotonic() - started
            written = []
            for stream in (stdout, stderr):
                stream.seek(0)
                written.append(stream.read().decode(errors="replace"))
        print(json.dumps([status, works, *written, seconds]), flush=True)


def enter(request, stdout, stderr):
    """Make this process look like one that was started for the request."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    os.chdir(request["folder"])
    sys.argv = [f"{request['program']}", *request["arguments"]]


def wait(pid, folder, begun):
    """(status, works) of a process, which is killed as soon as it has begun its work, or after HANGS seconds."""
    end = time.monotonic() + HANGS
    pause = 0.002
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            status = os.waitstatus_to_exitcode(status)
            return status, status == 0
        works = begun is not None and has_begun(folder, *begun)
        if works or time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return -signal.SIGKILL, works
        time.sleep(pause)
        pause = min(2 * pause, 0.05)


def has_begun(folder, pattern, text):
    for path in folder.glob(pattern):
        with contextlib.suppress(OSError):
            if text.encode() in path.read_bytes():
                return True
    return False


if __name__ == "__main__":
    serve()
