"""Ranks that begin with torch loaded: forks of a process that has loaded it once, which takes a second of a core.

    python -S -I warm.py ADDRESS ARGUMENTS...   # what is started in place of python ARGUMENTS...
    python warm.py ADDRESS                      # the process that is forked; ends with its standard input

What was started stands for the rank: it hands on its arguments, environment, folder, cores and streams, and ends as the
rank ends; where it is killed so is the rank. Both are of one process group, which is what mpirun sends its signals to.
Of what this project writes nothing is loaded beforehand.
"""

import contextlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys

PRELOADED = ("torch", "numpy", "h5py", "pydantic_settings", "tomlkit", "mpi4py")
MOST = 1 << 20  # bytes of what is told
OF_THE_RANK = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def stand_for(address, arguments):
    """A rank with the arguments of a Python; ends as it does."""
    for number in OF_THE_RANK:
        signal.signal(number, signal.SIG_IGN)
    told = {
        "arguments": arguments,
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "cores": sorted(os.sched_getaffinity(0)),
        "group": os.getpgid(0),
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
        line.connect(address)
        socket.send_fds(line, [json.dumps(told).encode()], [0, 1, 2])
        status = int(line.recv(16) or 1)
    if status < 0:
        # SIGKILL has no other handler
        with contextlib.suppress(OSError):
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


def serve(address):
    """Fork for each rank that is asked for, until the input ends: returns in the forks alone, what each was told."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, selectors.DefaultSelector() as selector:
        listener.bind(address)
        listener.listen()
        selector.register(listener, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        print("ready", flush=True)
        while True:
            # one event at a time: the next one may be of what this one closes
            key, _ = selector.select()[0]
            if key.fileobj is sys.stdin:
                sys.exit()
            if key.fileobj is not listener:
                settle(selector, key)
                continue
            line, _ = listener.accept()
            told = b""
            with contextlib.suppress(ConnectionError):
                told, streams, _, _ = socket.recv_fds(line, MOST, 3)
            if not told:
                # killed before it had asked
                line.close()
                continue
            pid = os.fork()
            if not pid:
                for other in [line, *(key.fileobj for key in selector.get_map().values() if key.data)]:
                    close(other)
                return json.loads(told), streams
            for stream in streams:
                os.close(stream)
            rank = os.pidfd_open(pid)
            # whichever of the two ends
            for end in (line, rank):
                selector.register(end, selectors.EVENT_READ, (pid, line, rank))


def settle(selector, key):
    """A rank has ended, or what stands for it has."""
    pid, line, rank = key.data
    selector.unregister(line)
    selector.unregister(rank)
    if key.fileobj is line:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    # who is to hear of it may be gone as well
    with contextlib.suppress(ConnectionError):
        line.send(str(os.waitstatus_to_exitcode(status)).encode())
    close(line)
    close(rank)


def close(thing):
    """A socket, or the number of a file."""
    os.close(thing) if isinstance(thing, int) else thing.close()


def become(told, streams):
    """This process as a Python that was started as it was told."""
    os.setpgid(0, told["group"])
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(told["environment"])
    os.chdir(told["folder"])
    os.sched_setaffinity(0, told["cores"])
    import random

    import numpy as np
    import torch

    # of processes that were started each draws other numbers
    random.seed()
    np.random.seed()
    chosen = os.environ.get("OMP_NUM_THREADS", "")
    loaded = torch.get_num_threads()
    threads = int(chosen) if chosen.isdigit() else min(loaded, len(told["cores"]))
    if threads != loaded:
        # starts threads, to which a signal may go
        torch.set_num_threads(threads)
    sys.path[1:1] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


def run(arguments):
    """What Python does with its arguments."""
    first, *others = arguments
    if first == "-m":
        sys.argv, sys.path[0] = others, os.getcwd()
        runpy.run_module(others[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv, sys.path[0] = ["-c", *others[1:]], ""
        exec(compile(others[0], "<string>", "exec"), sys.modules["__main__"].__dict__)
    else:
        sys.argv, sys.path[0] = arguments, os.path.dirname(first)
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    if sys.flags.no_site:
        stand_for(sys.argv[1], sys.argv[2:])
    for name in PRELOADED:
        __import__(name)
    told, streams = serve(sys.argv[1])
    become(told, streams)
    run(told["arguments"])
