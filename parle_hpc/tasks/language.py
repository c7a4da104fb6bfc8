"""Language: the next token of a text, by a transformer."""

import math

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from ..data.resident import Resident, upload
from ..errors import BadInput
from ..models.gpt import GPT
from ..settings.language import Language
from .task import Task


class LanguageModel(Task):
    """A GPT that learns a text, and is scored in bits for each byte of its test part.

    Args:
        options: Language.
        tokens: Tokens, as open_tokens gives them.

    Raises BadInput where a part is shorter than a sample.
    """

    Options = Language
    draws = False

    def __init__(self, options, tokens):
        super().__init__(options)
        self.data = tokens
        context = self.options.context
        for part, needed in (("train", 2 * context), ("test", context + 1)):
            found = len(getattr(tokens, part))
            if found < needed:
                fits = min(len(tokens.train) // 2, len(tokens.test) - 1)
                raise BadInput(
                    f"--task.context {context}: needs {needed} tokens, and the {part} part of {tokens.name} has "
                    f"{found}; take at most {fits}"
                )

    def model(self):
        """A new GPT for the text's vocabulary. Raises BadInput where the options do not fit together."""
        o = self.options
        try:
            return GPT(self.data.vocabulary, o.context, o.depth, o.width, o.heads, o.dropout, o.positions, o.tied)
        except ValueError as error:
            raise BadInput(f"--task.heads {o.heads}: {error}") from None

    def dataset(self, part):
        """Windows of a part, with T = context.

        train: 2 T tokens from each T-th on, of which `prepare` cuts T + 1, so that a pass is one over the text.
        validation: T + 1 tokens from each T-th on, so that each token but the first is predicted once; of a tail that
        is shorter than a window none is.
        """
        context = self.options.context
        if part == "train":
            return Windows(self.data.train, 2 * context, context)
        return Windows(self.data.test, context + 1, context)

    def collate(self, samples):
        """Windows as int64, (samples, length)."""
        # without the sign that Windows gave them
        return samples.long() & (1 << 8 * samples.itemsize) - 1

    def prepare(self, batch, draw):
        """(T tokens of each window, the tokens after them), from a place on drawn from 0 to T - 1; 0 without `draw`.

        Both int64 (samples, T).
        """
        context = self.options.context
        if draw is not None:
            offsets = draw(lambda generator, count: generator.integers(0, context, count))
            batch = batch.gather(1, offsets[:, None] + torch.arange(context + 1, device=batch.device))
        return batch[:, :context], batch[:, 1 : context + 1]

    def loss(self, model, batch):
        """Cross-entropy in nats, the mean over the tokens."""
        return self._nats(model, batch).mean()

    def scores(self, model, batch):
        """bits_per_byte: of each window, at the test part's number of tokens for a byte."""
        per_byte = len(self.data.test) / self.data.test_bytes
        return {"bits_per_byte": self._nats(model, batch).mean(1) * (per_byte / math.log(2))}

    def _nats(self, model, batch):
        """Cross-entropy of each token, (samples, T)."""
        seen, following = batch
        # classes last, as torch has them in rows: several times faster than (samples, classes, T)
        return cross_entropy(model(seen).flatten(0, 1), following.flatten(), reduction="none").view_as(following)


class Windows:
    """Runs of `length` tokens, each `stride` after the last, as rows; none reaches beyond the end.

    They are given as the signed integers of the same bits: of others torch knows little.
    """

    def __init__(self, tokens, length, stride):
        self._tokens, self._length, self._stride = tokens.view(f"i{tokens.itemsize}"), length, stride
        # a view of the memory map: nothing is read yet
        self._rows = np.lib.stride_tricks.sliding_window_view(self._tokens, length)[::stride]

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, index):
        return self.__getitems__([index])[0]

    def __getitems__(self, indices):
        return torch.from_numpy(self._rows[indices])

    @property
    def nbytes(self):
        return self._tokens.nbytes

    def resident(self, device):
        """The same in the memory of a device."""
        rows = upload(self._tokens, device).unfold(0, self._length, self._stride)
        return Resident(len(self), lambda at: rows[at], device)
