"""The paper's networks, by name.

build("lenet", num_classes=10, in_channels=1, dropout=0.25)
"""

from .lenet import LeNet

MODELS = {"lenet": LeNet}


def build(name, *, num_classes=10, in_channels=1, **options):
    """A new network of the registry.

    Args:
        name: one of MODELS.
        num_classes, in_channels: classes of the data and channels of its images.
        options: the model's own, e.g. dropout.

    Raises ValueError for an unknown name.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; known: {', '.join(MODELS)}")
    return MODELS[name](num_classes=num_classes, in_channels=in_channels, **options)
