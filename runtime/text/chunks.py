"""How the tokens of a prompt fill rows of the text encoder.

A row is a start token, up to T - 2 tokens, an end token and padding; T is 77, so a chunk is what fits a row, up to 75
tokens. A prompt of several chunks is encoded row by row, and the embeddings are joined along the tokens.

The common web UI is followed: text between weights is tokenized on its own, BREAK begins a new chunk, and a chunk that
would end within a phrase ends behind a comma instead if one is among its last 20 tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ebca.runtime.text.weighted import Weighted, parse, unweighted

# How far back a chunk may end behind a comma.
_COMMA_WITHIN = 20


@dataclass(frozen=True)
class Reading:
    """How prompts are read.

    Attributes:
        weighting: brackets and BREAK are syntax, see `ebca.runtime.text.weighted`.
        long: prompts may have any number of chunks. Else tokens beyond the first T - 2 are dropped, and BREAK only
            separates words.
    """

    weighting: bool = False
    long: bool = False

    def of(self, prompt: str) -> Weighted:
        """The prompt, read. Raises ParameterError for wrong syntax."""
        return parse(prompt) if self.weighting else unweighted(prompt)


@dataclass(frozen=True)
class Pieces:
    """The tokens of a prompt without start, end and padding.

    Attributes:
        text: the plain text.
        ids, weights: of each token.
        spans: its characters in the text.
        words: the word that a token is a part of: number of the segment, and of the word in it.
        parts: how many BREAKs stand before it.
        chunks: the tokens of each chunk, as indices; at least one chunk. Without those that do not fit.
        row: tokens of a row, T.
    """

    text: str
    ids: list[int]
    weights: list[float]
    spans: list[tuple[int, int]]
    words: list[tuple[int, int | None]]
    parts: list[int]
    chunks: list[range]
    row: int

    @property
    def kept(self) -> int:
        """How many tokens fit."""
        return self.chunks[-1].stop

    @property
    def positions(self) -> list[int]:
        """The position of each token that fits, in all rows."""
        return [row * self.row + 1 + index for row, chunk in enumerate(self.chunks) for index in range(len(chunk))]


def chunked(ids: Sequence[int], parts: Sequence[int], count: int, comma: int | None, room: int) -> list[range]:
    """The tokens of each chunk.

    Args:
        ids: of the tokens.
        parts: how many BREAKs stand before each.
        count: of parts.
        comma: the id of a comma; None: chunks end anywhere.
        room: tokens of a chunk.
    """
    chunks: list[range] = []
    begin = part = 0
    last_comma: int | None = None
    for index, token in enumerate(ids):
        while part < parts[index]:
            chunks.append(range(begin, index))
            begin, part, last_comma = index, part + 1, None
        full = index - begin == room
        if token == comma:
            last_comma = index
        elif full and last_comma is not None and index - last_comma <= _COMMA_WITHIN:
            chunks.append(range(begin, last_comma + 1))
            begin, last_comma = last_comma + 1, None
            full = False
        if full:
            chunks.append(range(begin, index))
            begin, last_comma = index, None
    # What follows the last BREAK is a chunk only if there is something.
    while part < count - 1:
        chunks.append(range(begin, len(ids)))
        begin, part = len(ids), part + 1
    if begin < len(ids) or not chunks:
        chunks.append(range(begin, len(ids)))
    return chunks
