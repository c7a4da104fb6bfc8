"""Options of the task language."""

from typing import Literal

from pydantic import Field

from .sections import Section


class Language(Section):
    depth: int = Field(4, ge=1, le=1000, description="blocks of the transformer")
    width: int = Field(128, ge=1, le=100_000, description="numbers that stand for a token")
    heads: int = Field(4, ge=1, le=10_000, description="of attention, among which the width divides")
    context: int = Field(64, ge=1, le=1_000_000, description="tokens that the network sees at most")
    dropout: float = Field(0.0, ge=0, lt=1, description="probability that a number is dropped")
    positions: Literal["rotary", "learned"] = Field(
        "rotary", description="how it knows where a token stands: by angles that it turns, or by weights of each place"
    )
    tied: bool = Field(True, description="the weights of the output are those of the embedding")
