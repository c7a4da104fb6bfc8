"""Section 1.2: how far apart independent networks are, what their average is worth, and what alignment changes.

    python -m parle_hpc.analysis RUN_DIR RUN_DIR ... [--replicas RUN_DIR] [--out DIR]

Each RUN_DIR is a finished run of the same network on the same data, with a seed of its own. For them it gives the
error of each, of their ensemble, of their average ("one-shot averaging") and of their average after each was aligned to
the first, and for each layer the overlap of Figure 1 before and after. --replicas does the same for the replicas that
one run of Parle kept (--run.save_replicas true). Every average gets BatchNorm statistics of its own.
"""

from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate

from .evaluate import Validation, load_weights, open_run
from .failure import BAD_INPUT, BadInput, Parser, leave
from .report import analysis_rows, open_folder, write_analysis

NORM_STATE = ("weight", "bias", "running_mean", "running_var")


def permuted(state, symmetry, order):
    """The state dict with channel order[i] in place i of all layers of a Symmetry; what it computes is the same."""
    state = dict(state)
    for name in symmetry.filters:
        for key in (f"{name}.weight", f"{name}.bias"):
            if key in state:
                state[key] = state[key][order]
    for name in symmetry.norms:
        for key in NORM_STATE:
            state[f"{name}.{key}"] = state[f"{name}.{key}"][order]
    for name in symmetry.readers:
        weight = state[f"{name}.weight"]
        inputs = weight.unflatten(1, (len(order), weight.shape[1] // len(order)))
        state[f"{name}.weight"] = inputs[:, order].flatten(1, 2)
    return state


def similarity(a, b):
    """Cosines between the filters of two weights of one shape: (filters of a, filters of b)."""
    a, b = (torch.nn.functional.normalize(w.flatten(1).double(), dim=1) for w in (a, b))
    return a @ b.T


def greedy(similarity):
    """order[i] = j: the most similar pair (i, j) first, then the most similar of what is left, and so on."""
    count = len(similarity)
    order, free = [-1] * count, [True] * count
    for pair in similarity.flatten().argsort(descending=True, stable=True).tolist():
        i, j = divmod(pair, count)
        if order[i] < 0 and free[j]:
            order[i], free[j] = j, False
    return torch.tensor(order)


def align(state, to, symmetries):
    """The state dict with its channels permuted, layer by layer from the input on, so as to resemble those of `to`."""
    for symmetry in symmetries:
        name = f"{symmetry.filters[0]}.weight"
        state = permuted(state, symmetry, greedy(similarity(to[name], state[name])))
    return state


def overlap(a, b):
    """For each layer with weights the mean cosine between filters in the same place; {name: overlap}."""
    layers = [key for key, tensor in a.items() if key.endswith(".weight") and tensor.dim() > 1]
    return {key.removesuffix(".weight"): similarity(a[key], b[key]).diagonal().mean().item() for key in layers}


def average(states):
    """The mean of state dicts; BatchNorm statistics of it mean nothing until they are computed anew."""
    return {
        key: torch.stack([state[key].double() for state in states]).mean(0).to(first.dtype)
        for key, first in states[0].items()
    }


class Study:
    """Networks of one kind on one data set, as state dicts with their statistics.

    Args:
        model: network that can hold each of the states.
        validation: Validation of this model.
        states: state dicts, the first being that to which the others are aligned.
    """

    def __init__(self, model, validation, states):
        self.model, self.validation, self.states = model, validation, states

    def averaged_error(self, states):
        """Validation error of the mean of the weights, with statistics over the whole training set, in percent."""
        self.model.load_state_dict(average(states))
        self.validation.refresh()
        return self.validation.test().error

    @torch.no_grad()
    def predictions(self):
        """Softmax of each network on each test image (networks, images, classes), and the labels."""
        found = []
        for state in self.states:
            self.model.load_state_dict(state)
            self.model.eval()
            batches = [
                (self.model(images).double().softmax(1), labels) for images, labels in self.validation.test_batches()
            ]
            found.append(torch.cat([outputs for outputs, _ in batches]))
        return torch.stack(found).cpu(), torch.cat([labels for _, labels in batches]).cpu()

    def results(self):
        """Errors in percent, the mean correlation of two networks' softmax, and overlaps to the first by layer."""
        symmetries, first = self.model.symmetries(), self.states[0]
        aligned = [first] + [align(state, first, symmetries) for state in self.states[1:]]
        softmax, labels = self.predictions()  # of each network with the statistics that it has
        flat = np.corrcoef(softmax.flatten(1).numpy())
        return {
            "errors": (100 * (softmax.argmax(2) != labels).double().mean(1)).tolist(),
            "ensemble": 100 * (softmax.mean(0).argmax(1) != labels).double().mean().item(),
            "correlation": flat[np.triu_indices(len(flat), 1)].mean().item(),
            "average": self.averaged_error(self.states),
            "aligned_average": self.averaged_error(aligned),
            "overlap": by_layer(first, self.states[1:]),
            "aligned_overlap": by_layer(first, aligned[1:]),
        }


def by_layer(first, others):
    """Overlap of each of `others` with `first`: {layer: [overlap, ...]}."""
    found = [overlap(first, other) for other in others]
    return {layer: [values[layer] for values in found] for layer in found[0]}


def study(runs):
    """The Study of finished runs' references. Raises BadInput where they are not alike."""
    runs = list({Path(folder).resolve(): folder for folder in runs}.values())
    opened = [open_run(folder) for folder in runs]
    settings, data, model = opened[0]
    for folder, (other, _, _) in zip(runs, opened, strict=True):
        if (other.model, other.data.name) != (settings.model, settings.data.name):
            raise BadInput(
                f"{folder} is not the network and data of {runs[0]}: {other.model.name} on {other.data.name}"
            )
    if len(runs) < 2:
        raise BadInput(f"{runs[0]}: one network has nothing to be compared with; give two runs or more")
    return make(settings, data, model, [snapshot(network) for _, _, network in opened])


def study_of_replicas(run):
    """The Study of the replicas that a finished run kept. Raises BadInput where it kept none."""
    settings, data, model = open_run(run)
    # by number
    paths = sorted((Path(run) / "replicas").glob("*.pt"), key=lambda path: (len(path.stem), path.stem))
    if len(paths) < 2:
        raise BadInput(f"{run} kept fewer than two replicas; train two or more with --run.save_replicas true")
    states = []
    for path in paths:
        load_weights(model, path)
        states.append(snapshot(model))
    return make(settings, data, model, states)


def snapshot(model):
    """Its state dict as it is now, which the model no longer shares."""
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def make(settings, data, model, states):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    states = [{key: tensor.to(device) for key, tensor in state.items()} for state in states]
    validation = Validation(model.to(device), data, settings.data.batch_size, device)
    return Study(model, validation, states)


def main():
    parser = Parser(prog="python -m parle_hpc.analysis", description="section 1.2 for finished runs")
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="independent runs that differ by seed")
    parser.add_argument("--replicas", metavar="RUN_DIR", help="a run of Parle that kept its replicas")
    parser.add_argument("--out", default="reports/analysis", help="folder for the table and Figure 1")
    try:
        arguments = parser.parse_args()
        open_folder(arguments.out)
        # everything that may be wrong before anything that takes long
        replicas = study_of_replicas(arguments.replicas) if arguments.replicas is not None else None
        groups = {"independent": study(arguments.runs).results()}
        if replicas:
            groups["replicas of Parle"] = replicas.results()
        page = write_analysis(groups, arguments.out)
    except BadInput as error:
        leave(str(error), BAD_INPUT)
    told = [pair for name, results in groups.items() for pair in analysis_rows(name, results)]
    print(tabulate(told, tablefmt="plain", disable_numparse=True))
    print(f"written {page}")


if __name__ == "__main__":
    main()
