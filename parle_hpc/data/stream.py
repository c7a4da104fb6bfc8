"""The next mini-batch is brought to the device and prepared there while this one trains."""

from concurrent.futures import Future

import torch


def stream_of(device):
    """The Stream of a GPU; None on a CPU, where nothing is gained."""
    return Stream(device) if device.type == "cuda" else None


class Stream:
    """Makes things on the device one ahead, on a stream of its own beside the one that trains; on a CPU, one ahead.

    What is made there is freed by whoever trains, and its memory is used there again. That is safe, also of tensors
    that only the task knows of, since each thing is begun behind all that the training stream was given before.
    """

    def __init__(self, device):
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def map(self, function, items):
        """As map(function, items), but that each item's is begun before the one before it is given out.

        What `function` raises is raised in its turn, and nothing is begun after it.
        """
        items = iter(items)
        following = self._begin(function, items)
        while following is not None:
            made, done = following.result()
            following = self._begin(function, items)
            if done is not None:
                torch.cuda.current_stream().wait_event(done)
            yield made

    def _begin(self, function, items):
        """A Future of what is made of the next item, and the event after it; None where there is none."""
        for item in items:
            begun = Future()
            try:
                begun.set_result(self._made(function, item))
            except Exception as error:
                begun.set_exception(error)
            return begun
        return None

    def _made(self, function, item):
        if self._stream is None:
            return function(item), None
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            return function(item), self._stream.record_event()
