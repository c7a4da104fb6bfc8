"""A decoder-only transformer, as GPT-2 is, for tokens; not of the paper."""

import torch
from torch import nn
from torch.nn.functional import gelu, linear, scaled_dot_product_attention

POSITIONS = ("rotary", "learned")
BASE = 10_000  # of rotary angles


class GPT(nn.Module):
    """Blocks of causal attention and two layers of 4 x width, each behind a LayerNorm; no biases.

    12 depth width^2 + (2 depth + 1) width + vocabulary width parameters; vocabulary width more where the output has
    weights of its own, and context width more where positions are learned.

    Args:
        vocabulary: number of different tokens.
        context: how many tokens it sees at most.
        depth, width, heads: blocks, numbers a token, and attention's heads, each of width / heads.
        dropout: probability, of the embedded tokens, of attention, and of what each block adds.
        positions: "rotary", of which scores know relative ones alone, or "learned".
        tied: the output's weights are the embedding's.

    Raises ValueError where the heads do not divide the width, or rotary has no pairs to turn.
    """

    def __init__(self, vocabulary, context, depth, width, heads, dropout=0.0, positions="rotary", tied=True):
        super().__init__()
        if width % heads:
            raise ValueError(f"a width of {width} does not divide among {heads} heads")
        if positions not in POSITIONS:
            raise ValueError(f"positions {positions!r}; known: {', '.join(POSITIONS)}")
        if positions == "rotary" and width // heads % 2:
            raise ValueError(f"heads of {width // heads} numbers, and rotary positions turn pairs: take an even number")
        self.context = context
        self.embedding = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width) if positions == "learned" else None
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width, bias=False)
        self.head = None if tied else nn.Linear(width, vocabulary, bias=False)
        # known from the arguments: in no checkpoint
        self.register_buffer("turns", turns(context, width // heads) if positions == "rotary" else None, False)
        self._initialise(depth)

    def _initialise(self, depth):
        """GPT-2's: standard deviation 0.02, and less where 2 depth branches add up."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
        for block in self.blocks:
            for last in (block.attention.out, block.down):
                nn.init.normal_(last.weight, std=0.02 / (2 * depth) ** 0.5)

    def forward(self, tokens):
        """Logits (batch, T, vocabulary) of the tokens that follow, of int64 (batch, T), T at most context."""
        length = tokens.shape[1]
        if length > self.context:
            raise ValueError(f"{length} tokens, and the context is {self.context}")
        x = self.embedding(tokens)
        if self.positions is not None:
            x = x + self.positions.weight[:length]
        x = self.dropout(x)
        angles = None if self.turns is None else self.turns[:, :length]
        for block in self.blocks:
            x = block(x, angles)
        weight = self.embedding.weight if self.head is None else self.head.weight
        return linear(self.norm(x), weight)


class Block(nn.Module):
    """x + attention, then x + two layers."""

    def __init__(self, width, heads, dropout):
        super().__init__()
        self.before_attention = nn.LayerNorm(width, bias=False)
        self.attention = Attention(width, heads, dropout)
        self.before_layers = nn.LayerNorm(width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, angles):
        x = x + self.dropout(self.attention(self.before_attention(x), angles))
        return x + self.dropout(self.down(gelu(self.up(self.before_layers(x)))))


class Attention(nn.Module):
    """Causal attention; a token sees itself and those before it."""

    def __init__(self, width, heads, dropout):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.into = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x, angles):
        query, key, value = self.into(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if angles is not None:
            query, key = rotate(query, angles), rotate(key, angles)
        dropout = self.dropout if self.training else 0.0
        seen = scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        return self.out(seen.transpose(1, 2).flatten(2))


def turns(context, size):
    """Cosine and sine of the angle of each position and pair of numbers, (2, context, size / 2)."""
    rates = BASE ** (-torch.arange(0, size, 2) / size)
    angles = torch.outer(torch.arange(context), rates)
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x, angles):
    """Pairs of numbers, one of each half of the last axis, turned by their position's angle; x is (..., T, size)."""
    cos, sin = angles
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
