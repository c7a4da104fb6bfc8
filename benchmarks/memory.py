"""Bytes that Parle keeps on each rank for WRN-28-10, buffer by buffer, with its state divided among m ranks and not.

    python benchmarks/memory.py [--ranks 1 2 4 8] [--json FILE]

The buffers are those of an optimiser that has taken a step, read from the tensors that live; the formula beside them is
2 + 3/m floats per parameter besides weight and gradient (`lagged` one share more).
"""

import torch
from bench import Pair, command_line, write

from parle_hpc import Parle, models


class First:
    """This rank's view of a replica of m ranks."""

    def __init__(self, m):
        self.m = m

    def Get_size(self):
        return self.m

    def Get_rank(self):
        return 0


def buffers(model, m, reference):
    """{name: bytes} of the state of one rank of m, weights and gradients first."""
    params = list(model.parameters())
    for p in params:
        p.grad = torch.zeros_like(p)
    settings = {"L": 25, "batches_per_epoch": 390, "reference": reference}
    optimizer = Parle(params, lr=0.1, comm=Pair(), replica=First(m) if m > 1 else None, **settings)
    optimizer.step()
    found = {"weights": sum(p.nbytes for p in params), "gradients": sum(p.grad.nbytes for p in params)}
    state = {
        "x^a": optimizer.x,
        "v_y": optimizer.v_y,
        "z": optimizer.z,
        "v_x": optimizer.v_x,
        "x": optimizer._mean.mean,
    }
    if reference == "lagged":
        state["x of the round before"] = optimizer.lagged
    found.update({name: tensor.untyped_storage().nbytes() for name, tensor in state.items()})
    return found


def main():
    parser = command_line(__doc__)
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 2, 4, 8], help="m (default: 1 2 4 8)")
    arguments = parser.parse_args()
    model = models.build("wrn", in_channels=3)
    N = sum(p.numel() for p in model.parameters())
    results = {}
    for reference in ("current", "lagged"):
        for m in arguments.ranks:
            found = buffers(model, m, reference)
            state = sum(found.values()) - found["weights"] - found["gradients"]
            formula = 2 + (3 + (reference == "lagged")) / m
            results[f"{reference}, m = {m}"] = {**found, "floats_per_parameter": state / 4 / N, "formula": formula}
            shown = ", ".join(f"{name} {size / 1e6:.0f}" for name, size in found.items())
            print(
                f"{reference:8} m = {m}: {state / 4 / N:.3f} floats per parameter (2 + 3/m: {formula:.3f}); MB: {shown}"
            )
    write(results, arguments.json)


if __name__ == "__main__":
    main()
