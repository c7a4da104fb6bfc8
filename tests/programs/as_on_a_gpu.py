"""A training on a CPU whose mini-batches come as on a GPU: one ahead, fetched by a thread, or from the device's memory.

as_on_a_gpu.py thread|resident SETTINGS of parle_hpc.train
"""

import sys

from parle_hpc import train
from parle_hpc.data import ahead, stream
from parle_hpc.data.threaded import FetchingThread
from parle_hpc.training import setup

used = []


class Stream(stream.Stream):
    def map(self, function, items):
        used.append("stream")
        return super().map(function, items)


class Thread(FetchingThread):
    def __next__(self):
        used.append("thread")
        return super().__next__()


def keep_on(device, sources, data, ranks):
    if way == "resident":
        sources.reside(device)
    return ["data are there"] if way == "resident" else []


def ahead_of(source, workers, device, thread):
    return ahead.Ahead(source, workers, False) if thread else None


way = sys.argv[1]
setup.stream_of, setup.keep_on, setup.ahead_of, ahead.FetchingThread = Stream, keep_on, ahead_of, Thread
train.main(sys.argv[2:])
print(used.count("stream"), "thread" in used)
