"""How a mean travels: to the host and back on a side stream, and between the ranks while nobody asks."""

import atexit
import os
import threading
import time
from contextlib import nullcontext, suppress

import torch

from ..cluster.lookout import settle_first
from ..cluster.waiting import wait_for
from ..errors import say

SHORTEST, LONGEST = 5e-5, 0.003  # seconds between two looks at a request that travels: after a step, and in the end


class Staging:
    """Copies between a device and the host memory that MPI reads and writes: device pointers need a CUDA-aware MPI.

    With CUDA they run on a stream of their own, through pinned memory, so that neither direction holds up the training
    stream; on another device each is over at once. On a CPU the tensors are that memory, and nothing is copied.
    """

    def __init__(self, device):
        self._on_cpu = device.type == "cpu"
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def mirror(self, tensor):
        """Host memory of the shape and type of a tensor; the tensor itself on a CPU."""
        if self._on_cpu:
            return tensor
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=self._stream is not None)

    def beside(self):
        """Context in which work goes to the side stream."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def follow(self):
        """The side stream waits for all that the training stream was given so far."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream())

    def out(self, tensor, mirror):
        """Start to bring a tensor to the host's memory that MPI reads once `idle` is true."""
        if tensor is not mirror:
            self._copy(tensor, mirror)

    def back(self, mirror, tensor):
        """Start to bring to the device what MPI wrote."""
        if not self._on_cpu:
            self._copy(mirror, tensor)

    def _copy(self, source, target):
        with self.beside():
            target.copy_(source, non_blocking=self._stream is not None)

    def idle(self):
        """Whether everything that was started is over."""
        return self._stream is None or self._stream.query()

    def join(self):
        """The training stream waits, on the device, for the side stream."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)


class Travelling:
    """A reduction that moves by itself, to its end, also where nobody is left to ask for it.

    MPI moves a non-blocking collective only while somebody calls it, each time by what fits into the buffers of a
    connection; a mini-batch is too long to wait for the next call, and a rank that went away between two steps would
    leave the others waiting. So a thread takes the steps. The MPI must have been started with MPI_THREAD_MULTIPLE, as
    mpi4py does.

    Args:
        steps: a generator; each of its values is called, by one thread at a time, until it is true, and then the next
            step is taken. Nothing is called once the last is: MPI may have ended.
        call: cluster.waiting.Call of the reduction.
    """

    def __init__(self, steps, call=None):
        self._steps, self._lock, self._error = steps, threading.Lock(), None
        self._due = next(steps)
        if not self.over():
            thread = threading.Thread(target=self._move, name="travelling", daemon=True)
            thread.call = call
            thread.start()

    def over(self):
        """Take the steps that can be taken; whether all are. Raises what went wrong, in whichever thread."""
        if self._due is not None and self._lock.acquire(blocking=False):
            try:
                while self._error is None and self._due is not None and self._due():
                    self._due = next(self._steps, None)
            except Exception as error:
                self._error = error
            finally:
                self._lock.release()
        if self._error is not None:
            raise self._error
        return self._due is None

    def _move(self):
        pause, due = SHORTEST, None
        # what goes wrong is raised where the training asks as well
        with suppress(Exception):
            while not self.over():
                # the steps of a small vector follow each other; looks at a large one take time from the mini-batches
                pause, due = (min(2 * pause, LONGEST) if self._due is due else SHORTEST), self._due
                time.sleep(pause)


def arrive_before_the_end():
    """The memory that MPI writes to goes with the interpreter, and no thread may be in a call of MPI when it ends."""
    for thread in threading.enumerate():
        if thread.name == "travelling":
            try:
                wait_for(lambda thread=thread: not thread.is_alive(), "a mean under way at the end", call=thread.call)
            except TimeoutError as error:
                say(str(error))
                os._exit(1)


atexit.register(arrive_before_the_end)
settle_first.append(arrive_before_the_end)
