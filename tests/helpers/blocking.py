"""The coupling that is not hidden, to compare with."""

from parle_hpc.coupling.compressed import CompressedReference
from parle_hpc.coupling.reference import MPIReference


class Blocking(MPIReference):
    """The same reduction, over before the next mini-batch begins."""

    def start(self, xa):
        super().start(xa)
        self.collect()


class BlockingCompressed(CompressedReference):
    """The same with half the payload."""

    def start(self, xa):
        super().start(xa)
        self._arrive()
