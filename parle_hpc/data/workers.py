"""Processes that fetch mini-batches ahead: torch's DataLoader, whose workers outlive signals, and nobody else.

A launcher sends a signal by which a rank is to save and end to every process of a step; a worker that dies of it would
keep its rank from coming to the end of its round. A rank, in turn, may end in any way, and no worker may stay.
"""

import atexit
import ctypes
import multiprocessing
import os
import signal
import threading
import warnings
from contextlib import contextmanager
from multiprocessing import resource_tracker

import torch
from torch.utils.data import DataLoader

from .fetch import Failure, Fetcher, Unpacker

ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)  # those that ask a rank for a saved end
GRACE = 3.0  # seconds for what ends by itself
PR_SET_PDEATHSIG = 1  # of prctl


@contextmanager
def held_back():
    """Inside it the signals wait, here and in processes that start here, until these set them free."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin(_):
    """What a worker does first, once torch has set its own handlers."""
    # torch looks at its parent between two fetches alone, and then waits for what it has not sent to it
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != multiprocessing.parent_process().pid:
        os._exit(1)
    for number in ASKING:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)


def as_it_is(fetched):
    return fetched


def end_of(process):
    """How a worker ended, in words."""
    code = process.exitcode
    if code == -signal.SIGKILL:
        how = "was killed, as is done where memory is full; take fewer workers, or more memory"
    elif code == -signal.SIGBUS:
        how = "found no room in /dev/shm, through which mini-batches travel; take fewer workers, or make it larger"
    elif code < 0:
        how = f"was ended by {signal.Signals(-code).name}"
    else:
        how = f"ended by itself, with status {code}; what it wrote is above"
    return f"a worker that loads data, process {process.pid}, {how}"


class Workers:
    """An iterator over the mini-batches of `keys`, in their order, which `count` processes fetch ahead.

    They end at once with the thread that makes this, so it must be one that stays, as the main thread does.

    Args:
        source: as Loader has it.
        keys: iterable of Key, without end.
        count: number of processes.
        pinned: bring tensors into pinned memory.

    Raises what the source raises, and RuntimeError where a worker has died.
    """

    def __init__(self, source, keys, count, pinned):
        self._iterator, self._processes = None, []
        # started before the workers: it sets SIGTERM and SIGINT free in this thread, and keeps the others held back
        with held_back():
            resource_tracker.ensure_running()
        others, handler = multiprocessing.active_children(), signal.getsignal(signal.SIGCHLD)
        threads = threading.enumerate()
        try:
            with held_back(), warnings.catch_warnings():
                # of cores: how many workers there shall be is the user's to say
                warnings.simplefilter("ignore")
                loader = DataLoader(
                    Fetcher(source),
                    batch_size=None,
                    sampler=keys,
                    num_workers=count,
                    collate_fn=as_it_is,
                    pin_memory=pinned,
                    worker_init_fn=begin,
                    multiprocessing_context="spawn",
                    # or it would draw from the one that dropout draws from
                    generator=torch.Generator(),
                )
                self._iterator = iter(loader)
        finally:
            self._processes = [process for process in multiprocessing.active_children() if process not in others]
            self._threads = [thread for thread in threading.enumerate() if thread not in threads]
            # before multiprocessing's own, which asks them by SIGTERM and waits
            atexit.register(self._kill)
            # torch's own raises wherever this process happens to be
            if threading.current_thread() is threading.main_thread() and handler is not None:
                signal.signal(signal.SIGCHLD, handler)

    @property
    def pids(self):
        """Those of the worker processes."""
        return [process.pid for process in self._processes]

    def __next__(self):
        """The next mini-batch."""
        try:
            with self._deaths_heard():
                self._raise_if_one_died()
                found = next(self._iterator)
        except RuntimeError:
            self._raise_if_one_died()
            raise
        if isinstance(found, Failure):
            found.again()
        return Unpacker(*found).load()

    def _raise_if_one_died(self):
        for process in self._processes:
            if process.exitcode is not None:
                raise RuntimeError(end_of(process)) from None

    @contextmanager
    def _deaths_heard(self):
        """Inside it the death of a worker raises at once: it may leave half a message, for whose end torch waits."""
        handler = signal.getsignal(signal.SIGCHLD)
        if threading.current_thread() is not threading.main_thread() or handler is None:
            yield
            return

        def hear(*arguments):
            if callable(handler):
                handler(*arguments)
            self._raise_if_one_died()

        signal.signal(signal.SIGCHLD, hear)
        try:
            yield
        finally:
            signal.signal(signal.SIGCHLD, handler)

    def close(self):
        """End the workers: those that do not end in GRACE seconds are killed."""
        # torch waits for each in turn, and without a bound for what one that was killed has left
        end = threading.Thread(target=self._iterator._shutdown_workers, name="end of workers", daemon=True)
        end.start()
        end.join(GRACE)
        self._kill()
        for thread in (end, *self._threads):
            # they hold semaphores, of which a process that ends at once would leave some
            thread.join(GRACE)
        atexit.unregister(self._kill)

    def _kill(self):
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join(GRACE)
