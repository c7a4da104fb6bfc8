"""A network as those of Hugging Face: it takes a dict of input_ids and labels, and gives .loss and .logits.

    mpirun -np 4 python -m parle_hpc.train --task.file huggingface_style.py --schedule.max_rounds 20

`model` may as well give AutoModelForSequenceClassification.from_pretrained(...) of transformers, and `dataset` rows of
datasets; `loss` and `scores` stay as they are. The network runs once for both, since they call it with the same batch.
"""

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import nn
from torch.nn.functional import cross_entropy

from parle_hpc import Task

TOKENS = 32


@dataclass
class Output:
    loss: torch.Tensor | None
    logits: torch.Tensor


class Classifier(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, width)
        self.read = nn.GRU(width, width, batch_first=True)
        self.classify = nn.Linear(width, 2)

    def forward(self, input_ids, labels=None):
        states, _ = self.read(self.embedding(input_ids))
        logits = self.classify(states.mean(1))
        return Output(None if labels is None else cross_entropy(logits, labels), logits)


class Rows(torch.utils.data.Dataset):
    """Rows of tokens, and whether most of them are even."""

    def __init__(self, count, length, seed):
        self.tokens = torch.randint(TOKENS, (count, length), generator=torch.Generator().manual_seed(seed))

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        row = self.tokens[index]
        return {"input_ids": row, "labels": (row % 2 == 0).float().mean().gt(0.5).long()}


class Classification(Task):
    class Options(Task.Options):
        length: int = Field(15, ge=1, description="tokens in a row")
        width: int = Field(16, ge=1, description="of the network")

    units = {"error": "%"}

    def model(self):
        return Classifier(self.options.width)

    def dataset(self, part):
        count, seed = (2048, 0) if part == "train" else (512, 1)
        return Rows(count, self.options.length, seed)

    def loss(self, model, batch):
        return model(**batch).loss

    def scores(self, model, batch):
        return {"error": 100.0 * (model(**batch).logits.argmax(1) != batch["labels"])}
