"""Section 1.2 for finished runs: how far apart their networks are, and what their average is worth."""

from pathlib import Path

import numpy as np
import torch

from ..errors import BadInput
from ..tasks.images import Images
from ..training.finished import load_weights, open_run, validation_of
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

    def averaged_score(self, states):
        """First score of the mean of the weights, with statistics over the whole training set."""
        self.model.load_state_dict(average(states))
        self.validation.refresh()
        return self.validation.test().first[1]

    @torch.no_grad()
    def predictions(self):
        """Softmax of each network on each test image (networks, images, classes), and the labels."""
        found = []
        for state in self.states:
            self.model.load_state_dict(state)
            self.model.eval()
            batches = [
                (self.model(images).double().softmax(1), labels)
                for _, (images, labels) in self.validation.test_batches()
            ]
            found.append(torch.cat([outputs for outputs, _ in batches]))
        return torch.stack(found).cpu(), torch.cat([labels for _, labels in batches]).cpu()

    def results(self):
        """First scores, overlaps to the first by layer; of images the ensemble, and the mean correlation of softmaxes.

        Errors are in percent.
        """
        symmetries, first = self.model.symmetries(), self.states[0]
        aligned = [first] + [align(state, first, symmetries) for state in self.states[1:]]
        return {
            **(self.of_images() if isinstance(self.validation.task, Images) else self.of_any()),
            "average": self.averaged_score(self.states),
            "aligned_average": self.averaged_score(aligned),
            "overlap": by_layer(first, self.states[1:]),
            "aligned_overlap": by_layer(first, aligned[1:]),
        }

    def of_any(self):
        """First score of each network, with the statistics that it has."""
        found = []
        for state in self.states:
            self.model.load_state_dict(state)
            found.append(self.validation.test().first[1])
        return {"scores": found}

    def of_images(self):
        """Error of each network and of their mean softmax in percent, and the mean correlation of two of them."""
        softmax, labels = self.predictions()
        flat = np.corrcoef(softmax.flatten(1).numpy())
        return {
            "scores": (100 * (softmax.argmax(2) != labels).double().mean(1)).tolist(),
            "ensemble": 100 * (softmax.mean(0).argmax(1) != labels).double().mean().item(),
            "correlation": flat[np.triu_indices(len(flat), 1)].mean().item(),
        }


def by_layer(first, others):
    """Overlap of each of `others` with `first`: {layer: [overlap, ...]}."""
    found = [overlap(first, other) for other in others]
    return {layer: [values[layer] for values in found] for layer in found[0]}


def study(runs, data_path=None):
    """The Study of finished runs' references; data_path as open_run has it. BadInput where they are not alike."""
    runs = list({Path(folder).resolve(): folder for folder in runs}.values())
    opened = [open_run(folder, data_path) for folder in runs]
    settings = opened[0][0]
    for folder, (other, _, _) in zip(runs, opened, strict=True):
        if kind(other) != kind(settings):
            raise BadInput(f"{folder} is not the network and data of {runs[0]}: {kind(other)}")
    if len(runs) < 2:
        raise BadInput(f"{runs[0]}: one network has nothing to be compared with; give two runs or more")
    return make(runs[0], opened[0], [snapshot(network) for _, _, network in opened])


def study_of_replicas(run, data_path=None):
    """The Study of the replicas that a finished run kept; data_path as open_run has it. BadInput where it kept none."""
    opened = open_run(run, data_path)
    model = opened[2]
    # by number
    paths = sorted((Path(run) / "replicas").glob("*.pt"), key=lambda path: (len(path.stem), path.stem))
    if len(paths) < 2:
        raise BadInput(f"{run} kept fewer than two replicas; train two or more with --run.save_replicas true")
    states = []
    for path in paths:
        load_weights(model, path)
        states.append(snapshot(model))
    return make(run, opened, states)


def kind(settings):
    """What is trained, in words."""
    s = settings
    task = s.task.model_dump(exclude={"checksum"})
    if s.task.file:
        return str(task)
    return f"{s.model.name if task['name'] in ('', 'images') else task} on {s.data.name}"


def snapshot(model):
    """Its state dict as it is now, which the model no longer shares."""
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def make(run, opened, states):
    """The Study of networks of the run that is `opened`. Raises BadInput where its network tells no symmetries."""
    settings, sources, model = opened
    if not hasattr(model, "symmetries"):
        raise BadInput(
            f"{run}: {type(model).__name__} does not say which of its units may change places; give it symmetries(), "
            "as the networks of parle_hpc.models have"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    states = [{key: tensor.to(device) for key, tensor in state.items()} for state in states]
    return Study(model, validation_of(settings, sources, model.to(device), device), states)
