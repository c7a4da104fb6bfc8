"""n replicas in one process: a thread for each, and a communicator between them with what the references use of MPI.

It is stricter than MPI: a reduction whose buffers overlap, or whose input changes while it is under way, fails.
"""

import threading

import numpy as np


class ThreadComm:
    """Rank `rank` of `size` threads; sums are in the order of the ranks."""

    class Shared:
        def __init__(self):
            self.lock, self.sent, self.copies = threading.Lock(), {}, {}
            self.messages = {}  # by sender and receiver a list of [values, whether they were received]

    def __init__(self, shared, rank, size):
        self._shared, self._rank, self._size, self._calls, self._copies = shared, rank, size, 0, 0
        self._received = {}

    def Get_size(self):
        return self._size

    def Get_rank(self):
        return self._rank

    def Dup(self):
        self._copies += 1
        with self._shared.lock:
            shared = self._shared.copies.setdefault(self._copies, ThreadComm.Shared())
        return ThreadComm(shared, self._rank, self._size)

    def Idup(self):
        return self.Dup(), self

    def Test(self):
        return True

    def Iallgather(self, send, receive):
        assert not np.shares_memory(send, receive), "a reduction would overwrite what it reduces"
        call, self._calls = self._calls, self._calls + 1
        with self._shared.lock:
            self._shared.sent[call, self._rank] = send.copy()
        return Request(self._shared, call, self._rank, self._size, send, receive)

    def Isend(self, send, dest):
        messages = self._between(self._rank, dest)
        messages.append([send.copy(), False])
        return Sent(send, messages[-1])

    def Irecv(self, receive, source):
        messages, number = self._between(source, self._rank), self._received.get(source, 0)
        self._received[source] = number + 1
        return Received(receive, messages, number)

    def _between(self, source, dest):
        with self._shared.lock:
            return self._shared.messages.setdefault((source, dest), [])


class Request:
    def __init__(self, shared, call, rank, size, send, receive):
        self._shared, self._call, self._rank, self._size = shared, call, rank, size
        self._send, self._receive = send, receive

    def Test(self):
        with self._shared.lock:
            parts = [self._shared.sent.get((self._call, rank)) for rank in range(self._size)]
        if any(part is None for part in parts):
            return False
        assert np.array_equal(self._send, parts[self._rank]), "what is being reduced was changed meanwhile"
        self._receive[...] = np.concatenate(parts)
        return True


class Sent:
    def __init__(self, send, message):
        self._send, self._message = send, message

    def Test(self):
        values, received = self._message
        assert np.array_equal(self._send, values), "what is being sent was changed meanwhile"
        return received


class Received:
    def __init__(self, receive, messages, number):
        self._receive, self._messages, self._number = receive, messages, number

    def Test(self):
        if len(self._messages) <= self._number:
            return False
        message = self._messages[self._number]
        if not message[1]:
            self._receive[...] = message[0]
            message[1] = True
        return True


class Alone:
    """A world of one rank."""

    def Get_rank(self):
        return 0

    def Get_size(self):
        return 1

    def bcast(self, value):
        return value

    def allgather(self, value):
        return [value]


def run(n, replica):
    """[replica(a, comm) for a in range(n)], all at the same time."""
    shared, results, errors = ThreadComm.Shared(), [None] * n, []

    def body(a):
        try:
            results[a] = replica(a, ThreadComm(shared, a, n))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=body, args=(a,), daemon=True) for a in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads)
    return results
