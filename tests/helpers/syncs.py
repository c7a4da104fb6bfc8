"""What waits for a device, or copies between two, counted; and tensors kept to the device where they belong.

On a CPU nothing waits, but the calls are the same: `t.cpu()`, which does nothing there, is counted as on a GPU. A copy
with non_blocking=True is not.
"""

import sys
from collections import Counter
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

TORCH = str(Path(torch.__file__).parent)
READS = {"item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__"}
FROM_LISTS = {"tensor", "as_tensor"}  # where they are put on the device
MOVES = {"to", "cuda"}  # where they name a device
OPERATIONS = {"_local_scalar_dense", "item", "equal", "is_nonzero", "nonzero", "masked_select", "_unique2"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}  # where an index is a mask
COPIES = {"_to_copy", "copy_", "_foreach_copy_"}  # where they are between devices


class Syncs(TorchFunctionMode):
    """Counts each such call once while it is entered, also those that torch makes by itself.

    Args:
        device: type of the device whose tensors must not be read.
        answer: what each number of the meta device, which has none, is taken to be, so that what asks for it goes on.

    Attributes:
        calls: Counter by what was called and the line outside torch that did: "item in algorithms/outside.py:120".
    """

    def __init__(self, device="cpu", answer=0):
        super().__init__()
        self.calls, self._device, self._answer, self._inside = Counter(), device, answer, False
        self._operations = Operations(self)

    def __enter__(self):
        self._operations.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._operations.__exit__(*error)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        # torch's own name the device on which they have a tensor already
        moves = name in MOVES and not sys._getframe(1).f_code.co_filename.startswith(TORCH)
        waits = (name in READS and self.reads(args)) or (moves and names_device(name, args, kwargs))
        waits = waits or (name in FROM_LISTS and self._device == str(kwargs.get("device")).partition(":")[0])
        return self.count(name, func, args, kwargs) if waits else func(*args, **kwargs)

    def reads(self, args):
        return any(t.device.type == self._device for t in tensors_in(args))

    def count(self, name, func, args, kwargs):
        """func(*args, **kwargs), in which nothing more is counted."""
        if self._inside:
            return func(*args, **kwargs)
        self.calls[f"{name} in {caller()}"] += 1
        if any(t.is_meta for t in tensors_in(args)):
            with _disable_current_modes():
                made_up = tree_map_only(torch.Tensor, lambda t: torch.full_like(t, self._answer, device="cpu"), args)
                return func(*made_up, **kwargs)
        self._inside = True
        try:
            return func(*args, **kwargs)
        finally:
            self._inside = False


class Operations(TorchDispatchMode):
    """The operations below torch's functions, for Syncs."""

    def __init__(self, syncs):
        super().__init__()
        self._syncs = syncs

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        waits = name in OPERATIONS or (name in INDEXING and any(t.dtype is torch.bool for t in tensors_in(args[1])))
        waits = (waits and self._syncs.reads(args)) or (name in COPIES and between_devices(args, kwargs))
        return self._syncs.count(name, func, args, kwargs) if waits else func(*args, **kwargs)


class Only(TorchDispatchMode):
    """Fails where a tensor that goes into or comes out of an operation is not on a device of this type.

    numbers: let pass operations of nothing but tensors of shape () on the CPU, with which optimisers of torch's count.
    """

    def __init__(self, device, numbers=False):
        super().__init__()
        self._device, self._numbers = device, numbers

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        tensors = tensors_in((args, kwargs, found))
        if not (self._numbers and all(t.device.type == "cpu" and t.dim() == 0 for t in tensors)):
            away = {t.device.type for t in tensors} - {self._device}
            assert not away, f"{func} on {away} in {caller()}"
        return found


def names_device(name, args, kwargs):
    named = [a for a in (*args[1:], kwargs.get("device")) if isinstance(a, (str, torch.device, torch.Tensor))]
    return not kwargs.get("non_blocking") and (name == "cuda" or bool(named))


def between_devices(args, kwargs):
    found = {t.device.type for t in tensors_in(args)}
    if kwargs.get("device") is not None:
        found.add(torch.device(kwargs["device"]).type)
    return len(found) > 1 and not kwargs.get("non_blocking") and args[-1] is not True


def tensors_in(tree):
    return [t for t in tree_leaves(tree) if isinstance(t, torch.Tensor)]


def caller():
    """The line outside torch and this file that is being executed."""
    frame = sys._getframe(1)
    while frame.f_back and (frame.f_code.co_filename == __file__ or frame.f_code.co_filename.startswith(TORCH)):
        frame = frame.f_back
    path = Path(frame.f_code.co_filename)
    return f"{path.parent.name}/{path.name}:{frame.f_lineno}"
