"""Image classification, the paper's task: its networks and data sets, or images of your own that `prepare` took."""

from torch.nn.functional import cross_entropy

from ..data.augment import PAD, augment, moves
from ..data.resident import Resident, upload
from ..data.store import open_dataset
from ..errors import BadInput
from .network import network
from .task import Task


class Images(Task):
    """The network of section `model` on the data set of section `data`.

    Raises BadInput where the data set's file is missing or wrong, or its images are too small to be shifted.
    """

    units = {"error": "%"}  # noqa: RUF012
    evaluation_batch = 500
    draws = False

    def __init__(self, settings):
        super().__init__()
        d, self._model = settings.data, settings.model
        self.data = open_dataset(d.path, d.name, d.preprocessing, d.samples, d.checksum, d.node_copy)
        self._augment = d.augment
        height, width = self.data.train.images.shape[2:]
        if d.augment and min(height, width) <= PAD:
            raise BadInput(
                f"--data.augment true: images of {height} x {width} cannot be shifted by {PAD}; leave it out"
            )

    def model(self):
        return network(self._model, self.data)

    def dataset(self, part):
        return Gathered(self.data.train if part == "train" else self.data.test)

    def collate(self, samples):
        """(uint8 (N, C, H, W), int64 (N,)), as Gathered gives them."""
        return samples

    def prepare(self, batch, draw):
        """Images as the network sees them, float32 (N, C, H, W), of section 4.3 where they are augmented."""
        images, labels = batch
        images = self.data.train.preprocess(images)
        if self._augment and draw is not None:
            images = augment(images, draw(moves))
        return images, labels

    def loss(self, model, batch):
        images, labels = batch
        return cross_entropy(model(images), labels)

    def scores(self, model, batch):
        images, labels = batch
        return {"error": 100.0 * (model(images).argmax(1) != labels).double()}


class Gathered:
    """A Part as a data set that gives many samples at once, from its memory map."""

    def __init__(self, part):
        self._part = part

    def __len__(self):
        return len(self._part)

    def __getitem__(self, index):
        return self._part.images[index], self._part.labels[index]

    def __getitems__(self, indices):
        return self._part.gather(indices)

    @property
    def nbytes(self):
        return self._part.images.nbytes + self._part.labels.nbytes

    def resident(self, device):
        """The same in the memory of a device."""
        images, labels = (upload(array, device) for array in self._part[:2])
        return Resident(len(labels), lambda at: (images[at], labels[at]), device)
