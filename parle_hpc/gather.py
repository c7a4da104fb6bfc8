"""The reference of all members of a mailbox, validated and written; at any time, also while they train.

    python -m parle_hpc.gather DIR [--data.path FILE]

It is the mean of the newest x^a of the members that live or have done their rounds, in DIR/reference.pt; DIR is then a
finished run, as parle_hpc.evaluate and parle_hpc.export take it.
"""

import os
from pathlib import Path

import torch

from .algorithms.layout import Layout
from .cluster.waiting import leave
from .errors import BAD_INPUT, BadInput, Parser
from .paths import as_path
from .training.finished import DATA_PATH, opened, validation_of
from .training.membership import reference_of
from .training.summary import shown
from .training.validator import save


def gather(folder, data_path=None):
    """(Validation Score, training Score, {member: its rounds}, Task) of the reference, which is written."""
    if not os.path.isfile(folder / "config.toml") or not os.path.isfile(folder / "experiment.json"):
        raise BadInput(f"{folder} is no mailbox: give what the members have as --coupling.folder")
    settings, sources, model = opened(folder, data_path)
    layout = Layout([{"params": list(model.parameters())}])
    rounds, x = reference_of(folder, layout.zeros().numpy())
    with torch.no_grad():
        layout.unpack(torch.from_numpy(x))
    test, train, state = validation_of(settings, sources, model, torch.device("cpu")).validate()
    try:
        save(state, folder)
    except OSError as error:
        raise BadInput(str(error)) from None
    return test, train, rounds, sources.task


def main():
    parser = Parser(prog="python -m parle_hpc.gather", description="the reference of all members of a mailbox")
    parser.add_argument("folder", type=as_path, metavar="DIR", help="folder of the mailbox")
    parser.add_argument("--data.path", type=as_path, metavar="FILE", dest="data_path", help=DATA_PATH)
    try:
        given = parser.parse_args()
        folder = Path(given.folder)
        test, train, rounds, task = gather(folder, given.data_path)
    except BadInput as error:
        leave(error, BAD_INPUT)
    told = ", ".join(f"{member} after {round} rounds" for member, round in rounds.items())
    print(f"members    {told}")
    print(f"reference  validation {shown(test, task.units)}; training {shown(train, task.units)}")
    print(f"written    {folder / 'reference.pt'}")


if __name__ == "__main__":
    main()
