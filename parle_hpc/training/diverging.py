"""A loss that is not finite ends the run on all ranks, in the same round."""

from ..cluster.agreement import Agreement
from ..errors import Diverged


def trouble(losses, steps, rank, ranks):
    """The first step whose loss is not finite, joined with this rank in one number; else Agreement.NOTHING.

    losses: of this rank in the round, one for each of its mini-batches. steps: that it has done by now.
    """
    bad = (~losses.isfinite()).nonzero()
    if not len(bad):
        return Agreement.NOTHING
    return (steps - len(losses) + bad[0].item()) * ranks + rank


def stop_if_diverged(least, hosts, m, round, advice, older):
    """Raises Diverged where `least`, the smallest number that a rank gave as its trouble, is one.

    hosts: of the ranks, in their order. m: ranks in a replica. round: that they gave it after. advice: what to do.
    older: words on the checkpoint that stays.
    """
    if least == Agreement.NOTHING:
        return
    step, rank = divmod(least, len(hosts))
    raise Diverged(
        f"the loss became NaN or infinite in round {round + 1}, step {step}, replica {rank // m}, "
        f"rank {rank} on {hosts[rank]}; {advice}{older}"
    )
