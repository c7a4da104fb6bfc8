"""Section 1.2 for finished runs: how far apart their networks are, and what their average is worth."""

from pathlib import Path

import numpy as np
import torch

from ..errors import BadInput
from ..training.finished import load_weights, open_run
from ..training.validation import Validation
from .alignment import align, average, overlap


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


def study(runs, data_path=None):
    """The Study of finished runs' references; data_path as open_run has it. BadInput where they are not alike."""
    runs = list({Path(folder).resolve(): folder for folder in runs}.values())
    opened = [open_run(folder, data_path) for folder in runs]
    settings, data, model = opened[0]
    for folder, (other, _, _) in zip(runs, opened, strict=True):
        if (other.model, other.data.name) != (settings.model, settings.data.name):
            raise BadInput(
                f"{folder} is not the network and data of {runs[0]}: {other.model.name} on {other.data.name}"
            )
    if len(runs) < 2:
        raise BadInput(f"{runs[0]}: one network has nothing to be compared with; give two runs or more")
    return make(settings, data, model, [snapshot(network) for _, _, network in opened])


def study_of_replicas(run, data_path=None):
    """The Study of the replicas that a finished run kept; data_path as open_run has it. BadInput where it kept none."""
    settings, data, model = open_run(run, data_path)
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
