"""From the texts of a generation to embeddings, all of them in one run of the text encoder.

A text is a pair: what the first text encoder reads, and what the second does; a model with one encoder ignores the
second. Both have one vocabulary, so a token has the same position in both. Its context is what the first encoder makes
of it, followed by what the second does.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ebca.runtime.components import Components, TextEmbeddings
from ebca.runtime.conditioning.weighting import weigh
from ebca.runtime.schema import parameters as rules
from ebca.runtime.text.chunks import Reading
from ebca.runtime.text.tokenizer import Encoded, Tokenizer
from ebca.runtime.validation import warn

# How much of a text a warning shows.
_SHOWN = 100


class TextPair(NamedTuple):
    """What each of two text encoders reads."""

    first: str
    second: str


Texts = Mapping[str, Sequence[TextPair]]
"""The texts of each prompt, by its name: one per image."""


class TextReader:
    """Reads texts with the tokenizers of an engine.

    Args:
        components: tokenizer and text encoder.
        reading: how texts are read.

    Attributes:
        max_length: tokens of a row.

    Raises:
        EngineError: a UNet-only directory.
    """

    def __init__(self, components: Components, reading: Reading) -> None:
        self._components = components
        self._long = reading.long
        first = components.tokenizer.reading(reading)
        self._tokenizers: list[Tokenizer] = [first, *([first.second] if first.second else [])]
        self.max_length = first.max_length

    def rows(self, texts: Texts) -> int:
        """Rows of the longest text; of a pair, those of the longer one. Raises ParameterError for wrong syntax."""
        pairs = _distinct(texts)
        return max(t.rows(text) for pair in pairs for t, text in zip(self._tokenizers, pair, strict=False))

    def encode(self, texts: Texts, clip_skip: int, tokens: int) -> dict[str, TextEmbeddings]:
        """Encode the texts, which all get as many tokens as the longest.

        Args:
            texts: by name of the prompt; none for no embeddings.
            clip_skip: layers of the text encoder to leave out at its end.
            tokens: of embeddings that are given beside them, which the texts are lengthened to.

        Raises:
            ParameterError: wrong syntax of weights, or weights that cancel.
            EngineError: the text encoder is missing, or does not have that clip skip.
        """
        if not texts:
            return {}
        pairs = _distinct(texts)
        # Rows of an empty text lengthen the others.
        each = [t.encode([*(pair[side] for pair in pairs), ""]) for side, t in enumerate(self._tokenizers)]
        _warn_of_dropped(texts, pairs, each, self.max_length)
        counts = [max(encoded.rows[index] for encoded in each) for index in range(len(pairs))]
        rows = max(*counts, tokens // self.max_length if self._long else 0)
        read = [_filled(encoded, [*counts, 1] if min(counts) < rows else counts) for encoded in each]
        made = self._components.encode(*(ids for ids, _ in read), clip_skip=clip_skip)
        # Half a gigabyte at SD 1.5 size that sampling does not need; reopening takes a fraction of a step.
        self._components.release_text_encoder()
        names = {pair: name for name in reversed(list(texts)) for pair in texts[name]}
        found: dict[TextPair, np.ndarray] = {}
        pooled: dict[TextPair, np.ndarray] = {}
        for index, pair in enumerate(pairs):
            of = slice(sum(counts[:index]), sum(counts[: index + 1]))
            weighted = self._weighted(made.contexts[of], [weights[of] for _, weights in read], names[pair])
            found[pair] = _joined(weighted, made.contexts[-1], rows)
            if made.pooled is not None:
                # Weights do not act on it, nor what follows the first chunk.
                pooled[pair] = made.pooled[of.start]
        return {
            name: TextEmbeddings(
                np.stack([found[pair] for pair in of_images]),
                np.stack([pooled[pair] for pair in of_images]) if pooled else None,
            )
            for name, of_images in texts.items()
        }

    def _weighted(self, contexts: np.ndarray, weights: Sequence[np.ndarray], name: str) -> np.ndarray:
        """[r,T,D] with the weights [r,T] of each encoder's text on its own part."""
        if len(weights) == 1:
            return weigh(contexts, weights[0], name)
        spec = self._components.manifest.text_encoder
        assert spec is not None and spec.first_hidden_size is not None
        width = spec.first_hidden_size
        first = weigh(contexts[..., :width], weights[0], name)
        second = weigh(contexts[..., width:], weights[1], f"second {name}")
        return np.concatenate([first, second], -1)


def _distinct(texts: Texts) -> list[TextPair]:
    return list(dict.fromkeys(pair for each in texts.values() for pair in each))


def _filled(encoded: Encoded, counts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and weights [r,T] of the first texts, each with so many rows; the last text is the empty one."""
    empty = encoded.of(len(encoded.rows) - 1)
    parts = []
    for index, count in enumerate(counts):
        parts += [encoded.of(index), *[empty] * (count - encoded.rows[index])]
    return np.concatenate([encoded.ids[of] for of in parts]), np.concatenate([encoded.weights[of] for of in parts])


def _joined(contexts: np.ndarray, empty: np.ndarray, rows: int) -> np.ndarray:
    """Rows [r,T,D] of a text and the row [T,D] of an empty one -> [rows T,D]."""
    missing = [empty] * (rows - len(contexts))
    return np.concatenate([*contexts, *missing]) if len(contexts) + len(missing) > 1 else contexts[0]


def _warn_of_dropped(texts: Texts, pairs: Sequence[TextPair], each: Sequence[Encoded], max_length: int) -> None:
    """Warn of texts that are longer than a row, if they are cut."""
    for name, of_images in texts.items():
        for pair in dict.fromkeys(of_images):
            for side, encoded in enumerate(each):
                dropped = encoded.truncated[pairs.index(pair)].strip()
                if not dropped or (side and pair.second == pair.first):
                    continue
                shown, label = rules.shortened(dropped, _SHOWN), f"second {name}" if side else name
                warn(rules.PROMPT_TRUNCATED.text(name=label, limit=max_length - 2, dropped=shown))
