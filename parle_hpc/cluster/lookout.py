"""Ranks that wait for one another, in calls that do not fit, are found in seconds, and told apart from slow ones.

A rank that waits for long tells rank 0 in which call, and which calls it has come to so far; so does one whose script
has ended. A rank can go on where everyone that it waits for has come to the same call, or can go on. Where some cannot,
rank 0 asks them once more, and when all of them are still in the same waits, which therefore were all at the same time,
nothing will ever move them: rank 0 says so in one line and ends the job. No network, however slow, makes that true.
"""

import atexit
import os
import sys
import threading
import time
import traceback
from itertools import count

from ..errors import BAD_INPUT, BadInput, Disagreement, say
from .fingerprint import compare
from .waiting import OTHERS_WAIT, calls_so_far, leave, now_waits, numbered, waits

LONG, FIRST = 3.0, 2.0  # seconds: a wait that is worth telling, and for rank 0 to speak
LOOK, AT_THE_END = 0.25, 0.02  # seconds between two looks
REPORT, QUESTION = 1, 2  # tags
ENDED = "at the end of the script"

settle_first = []  # called at the end of a script, before this rank says that it has ended


class State:
    """What a rank told of itself: that it waits (`wait`), or has ended (None), and the calls it has come to."""

    def __init__(self, wait, calls):
        self.wait, self.calls = wait, calls

    def lacks(self, call):
        """Whether the rank has not come to a Call."""
        return self.calls.get(call[:2], 0) < call.number


def cannot_go_on(states):
    """Of {rank: State} the ranks that no one can set free; ranks that are not in it may come to any call."""
    free = {rank for rank, state in states.items() if state.wait and state.wait.call is None}
    while True:
        stuck = {rank for rank in states if rank not in free}
        more = {
            rank
            for rank in stuck
            if states[rank].wait
            and not any(other in stuck and states[other].lacks(states[rank].wait.call) for other in whom(states, rank))
        }
        if not more:
            return {rank for rank in stuck if states[rank].wait}
        free |= more


def whom(states, rank):
    """The other ranks that take part in the call in which a rank waits."""
    return [other for other in states[rank].wait.call.members if other != rank]


def in_words(states, stuck):
    """The line about ranks that cannot go on."""
    awaited = {
        other
        for rank in stuck
        for other in whom(states, rank)
        if other in states and states[other].lacks(states[rank].wait.call)
    }
    ways = {}
    for rank in sorted(stuck | awaited):
        ways.setdefault(what_it_does(states[rank]), []).append(rank)
    told = "; ".join(f"{numbered(ranks)} {way}" for way, ranks in ways.items())
    return f"no rank can go on: {told}; every rank must call the same functions, equally often"


def what_it_does(state):
    if state.wait is None:
        return ENDED
    return f"waiting for {state.wait.what} (number {state.wait.call.number})"


def one_line(kind, error, trace):
    """What Python is to do with an exception that nobody caught, before there is a Lookout: BadInput is one line."""
    if isinstance(error, BadInput):
        leave(error, BAD_INPUT)
    sys.__excepthook__(kind, error, trace)


class Lookout:
    """Watches the waits of this rank, and on rank 0 those of all. Made on all ranks of `world`, which it copies."""

    def __init__(self, world):
        with waits("the start of other ranks"):
            self._comm = world.Dup()
        self._rank, self._size = world.Get_rank(), world.Get_size()
        self._states, self._answers, self._asked, self._told = {}, {}, None, None
        self._questions = count()
        self._ended, self._over = threading.Event(), False
        self._thread = threading.Thread(target=self._watch, name="lookout", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def close(self):
        """This rank is at the end of its script; rank 0 stays until all are. MPI may end after it."""
        for settle in settle_first:
            settle()
        self._ended.set()
        self._thread.join()
        atexit.unregister(self.close)

    def _watch(self):
        while not self._over:
            if self._rank:
                self._report()
            else:
                self._listen()
                self._judge()
            if self._ended.is_set():
                time.sleep(AT_THE_END)
            else:
                self._ended.wait(LOOK)

    def _mine(self):
        """State of this rank, or None where there is nothing to tell."""
        wait = now_waits()
        if self._ended.is_set():
            return State(None, calls_so_far())
        if wait is None or time.monotonic() < wait.since + LONG:
            return None
        return State(wait, calls_so_far())

    def _report(self):
        mine = self._mine()
        told = mine and (ENDED if mine.wait is None else mine.wait.serial)
        if told != self._told:
            self._comm.send(mine, 0, REPORT)
            self._told = told
        while self._comm.Iprobe(0, QUESTION):
            question, wait = self._comm.recv(source=0, tag=QUESTION), now_waits()
            self._comm.send((question, wait and wait.serial), 0, QUESTION)
        self._over = told == ENDED

    def _listen(self):
        for tag in (REPORT, QUESTION):
            for rank in range(1, self._size):
                while self._comm.Iprobe(rank, tag):
                    told = self._comm.recv(source=rank, tag=tag)
                    if tag == QUESTION:
                        self._answers[rank] = told
                    elif told is None:
                        self._states.pop(rank, None)
                    else:
                        self._states[rank] = told
        mine = self._mine()
        self._states.pop(0, None)
        if mine is not None:
            self._states[0] = mine
        ended = sum(state.wait is None for state in self._states.values())
        self._over = self._ended.is_set() and ended == self._size
        if self._over:
            self._compare()

    def _compare(self):
        """End the job where ranks have ended that did not do everything equally often."""
        calls = [self._states[rank].calls for rank in range(self._size)]
        for kind, members in sorted({key for each in calls for key in each}):
            name = f"the number of {kind}"
            rows = [[calls[rank].get((kind, members), 0)] for rank in members or range(self._size)]
            try:
                compare([name], rows, members, "the script has ended", shown=[name])
            except Disagreement as error:
                self.end_all(str(error), BAD_INPUT)

    def _judge(self):
        stuck = cannot_go_on(self._states)
        serials = {rank: self._states[rank].wait.serial for rank in stuck}
        if not stuck:
            self._asked = None
        elif self._asked is None or self._asked[1] != serials:
            self._asked = question, _ = next(self._questions), serials
            for rank in stuck - {0}:
                self._comm.send(question, rank, QUESTION)
        elif all(self._answers.get(rank) == (self._asked[0], serials[rank]) for rank in stuck - {0}):
            self.end_all(in_words(self._states, stuck))

    def end_all(self, line, status=1):
        """End the job with one line."""
        say(line)
        self._abort(status)

    def _abort(self, status):
        # an MPI that does not come back from its own end must not keep this rank
        timer = threading.Timer(5.0, os._exit, [status])
        timer.daemon = True
        timer.start()
        self._comm.Abort(status)

    def failed(self, kind, error, trace):
        """What Python is to do with an exception that nobody caught: without it this rank would wait for the others.

        BadInput and Disagreement are one line from the rank that speaks, with exit status 2; the rest is a traceback.
        """
        sys.stdout.flush()
        if isinstance(error, BadInput | Disagreement):
            if self._rank != getattr(error, "speaker", 0):
                time.sleep(OTHERS_WAIT)
            elif self._rank:
                time.sleep(FIRST)  # rank 0 may have the like to say
            self.end_all(str(error), BAD_INPUT)
        traceback.print_exception(kind, error, trace)
        sys.stderr.flush()
        self._abort(1)
