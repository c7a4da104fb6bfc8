"""A task's loss and scores as a run computes them: in its precision, and compiled where that was asked for."""

import time
from contextlib import contextmanager, nullcontext

import torch

from ..cluster.agreement import from_all
from ..errors import BadInput, first_line
from .batchnorm import untouched


def settle_precision(settings, topology, device, stored):
    """Settle run.precision for all ranks, and switch TF32 on or off. Collective over all ranks.

    A run that goes on stays with what the checkpoint `stored` was made in, unless it is told otherwise. Raises BadInput
    for tf32 on a CPU.
    """
    run, on_cpu = settings.run, device.type == "cpu"
    if run.precision == "auto":
        before = stored.manifest["settings"]["run"].get("precision") if stored else None
        mine = precision_on(device) if before in (None, "tf32" if on_cpu else None) else before
        wanted = from_all(topology.world, mine)
        # the least of what the ranks can do
        run.precision = next(precision for precision in ("fp32", "tf32", "bf16") if precision in wanted)
    if run.precision == "tf32" and on_cpu:
        raise BadInput("--run.precision tf32: is of a GPU's matrix products; take fp32 or bf16 on a CPU")
    switch_tf32(run.precision == "tf32")


def precision_on(device):
    """What `auto` means on a device: bf16 on a GPU that computes in it, else fp32.

    Some CPUs compute in it too, up to a third faster; but on CPUs of several kinds a run shall give the same.
    """
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16"
    return "fp32"


def switch_tf32(on):
    """Whether matrix products and convolutions of float32 may round their factors to TF32, on a GPU that can."""
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        # torch before 2.9
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on
        return
    for backend in (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn):
        backend.fp32_precision = "tf32" if on else "ieee"


class Computing:
    """The loss and the scores of a network's mini-batches.

    Weights, their gradients and states are float32 in any precision; bf16 is autocast around forward and loss.

    Args:
        task: Task.
        model: the network.
        device: of the network.
        precision: fp32, tf32 or bf16.
    """

    def __init__(self, task, model, device, precision="fp32"):
        self.task, self.model, self.device, self._half = task, model, device, precision == "bf16"
        self.by_operation()

    def _loss(self, batch):
        return self.task.loss(self.model, batch)

    def _values(self, batch):
        return self.task.loss(self.model, batch), self.task.scores(self.model, batch)

    def _autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16) if self._half else nullcontext()

    def loss(self, batch):
        """The loss of a mini-batch that is trained with, shape (), with its graph."""
        with self._autocast():
            return self._training(batch)

    def values(self, samples, batch):
        """(Loss, {name: a score for each sample}) of a batch of so many samples, without gradients."""
        with self._autocast():
            if samples in self._sizes:
                return self._evaluation(batch)
            with remembered(self.model):
                return self._values(batch)

    def forward(self, batch):
        """Call the network, for what it keeps of a batch, as BatchNorm does."""
        with self._autocast():
            self._loss(batch)

    def compile(self, parts, evaluated):
        """Compile for batches of these shapes, each (samples, batch); why that is not possible, or None.

        The network is as it was afterwards, bit for bit, and so are the generators. Batches of other sizes are
        evaluated as they were, so that nothing is compiled again for the last of a set.

        Args:
            parts: of a mini-batch that is trained with, on the device.
            evaluated: those that are evaluated.
        """
        # a GPU's kernels are started together, as a CUDA graph, unless gradients are summed over parts
        mode = "reduce-overhead" if self.device.type == "cuda" and len(parts) == 1 else None
        self._training = torch.compile(self._loss, dynamic=False, mode=mode)
        self._evaluation = torch.compile(self._values, dynamic=False)
        self._sizes = {samples for samples, _ in evaluated}
        try:
            with tried(self.model, self.device):
                self.model.train()
                for _ in range(3):  # a CUDA graph is recorded in the second
                    for _, batch in parts:
                        self.loss(batch).backward()
                    self.model.zero_grad()
                self.model.eval()
                with torch.no_grad():
                    for samples, batch in evaluated:
                        self.values(samples, batch)
        except Exception as error:
            inner = getattr(error, "inner_exception", error)
            return f"{type(inner).__name__}: {first_line(inner)}"
        return None

    def by_operation(self):
        """Compute operation by operation, without anything that was compiled."""
        self._training, self._evaluation, self._sizes = self._loss, self._values, ()


def compiled(computing, parts, evaluated, topology):
    """Compile on all ranks, or on none; the line that says how that went. Collective over all ranks.

    Args:
        computing: Computing.
        parts, evaluated: as its `compile` has them.
    """
    started = time.perf_counter()
    problems = from_all(topology.world, computing.compile(parts, evaluated))
    found = next((problem for problem in problems if problem), None)
    if found is None:
        return f"the network is compiled, in {time.perf_counter() - started:.0f} s"
    computing.by_operation()
    return f"the network is not compiled, and computes as without --run.compile: {found}"


@contextmanager
def tried(model, device):
    """Whatever the body computes, the model and the generators are as they were after, without gradients."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []), untouched(model):
        try:
            yield
        finally:
            model.zero_grad()


@contextmanager
def remembered(model):
    """Inside, a network that is called with the same objects as just before gives what it gave.

    So `loss` and `scores` of a task may each call it. Without gradients and in evaluation mode alone.
    """
    run, last = model.forward, None

    def forward(*given, **named):
        nonlocal last
        called = [*given, *named, *named.values()]
        if last is None or len(called) != len(last[0]) or any(a is not b for a, b in zip(called, last[0], strict=True)):
            last = called, run(*given, **named)
        return last[1]

    had = "forward" in vars(model)
    model.forward = forward
    try:
        yield
    finally:
        if had:
            model.forward = run
        else:
            del model.forward
