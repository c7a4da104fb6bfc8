"""Moments of a run at which a program of tests strikes."""

import time


def until(true):
    """Wait for what must come."""
    while not true():
        time.sleep(0.002)


def until_written(session):
    """Wait for the checkpoint under way, so that it is certain which one is complete at the next round's end."""
    until(lambda: not session._saving.under_way or session._saver.written)
