"""A program whose every step is bounded from outside, by a process that does nothing but watch.

    step = supervised(rank)      # returns in a child process; the parent watches, and exits with its status
    step("the start of MPI", 60, "start every rank with one command")

A thread of the program cannot do this: a library that holds the interpreter, a system call that never returns, a crash
and an MPI that ends the process by itself all silence it.
"""

import ctypes
import os
import signal
import socket
import time
from multiprocessing import Pipe

from ...errors import say

OTHERS_WAIT = 5.0  # seconds in which rank 0 speaks first; should it be the dead one, another does
DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG
LAST = "the end"


def supervised(rank):
    """Fork, and return in the child what announces its steps: step(what, seconds, advice).

    Where a step takes longer than its seconds, or ends the process, the parent says so in one line that closes with the
    advice, ends the child and exits with status 1. After step(LAST, ...) the child may exit, and its status is the
    parent's. No thread may run yet.
    """
    reader, writer = Pipe(duplex=False)
    child = os.fork()
    if child:
        writer.close()
        _watch(child, reader, rank)
    reader.close()
    ctypes.CDLL(None).prctl(DIES_WITH_PARENT, signal.SIGKILL)
    return lambda *step: writer.send(step)


def _watch(child, reader, rank):
    what, seconds, advice = "the start", 60.0, "see its output"
    try:
        while reader.poll(seconds):
            what, seconds, advice = reader.recv()
    except EOFError:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if what == LAST and status >= 0:
            os._exit(status)
        ended = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        problem = f"{what} ended the process ({ended}), see what stands above"
    else:
        # not waited for: what hangs in a file system cannot be killed
        os.kill(child, signal.SIGKILL)
        problem = f"{what} did not end within {seconds:.0f} s"
    time.sleep(0 if rank == 0 else OTHERS_WAIT)
    say(f"rank {rank} on {socket.gethostname()}: {problem}; {advice}")
    os._exit(1)
