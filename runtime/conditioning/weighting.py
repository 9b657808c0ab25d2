"""Weights of a text on its embeddings, as the common web UI applies them.

The embeddings of each token are multiplied by its weight; then those of the whole row, start, end and padding included,
are multiplied by one number that gives them their former mean. The mean is of one prompt's row, so that an image does
not depend on what else is encoded with it.
"""

import numpy as np

from ebca.runtime.schema import parameters as rules


def weigh(embeddings: np.ndarray, weights: np.ndarray, name: str) -> np.ndarray:
    """Apply weights. Rows in which all weights are 1 keep their bits.

    Args:
        embeddings: [r,T,D] float32.
        weights: [r,T] float32.
        name: of the prompt, for messages.

    Returns:
        [r,T,D] float32, a copy if anything changed.

    Raises:
        ParameterError: weights that make the mean zero.
    """
    rows = np.flatnonzero((weights != 1).any(axis=1))
    if not rows.size:
        return embeddings
    weighted = embeddings.copy()
    for row in rows:
        # The mean is much smaller than the values that it is of, so float64.
        plain = embeddings[row].astype(np.float64)
        scaled = plain * weights[row].astype(np.float64)[:, None]
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            weighted[row] = scaled * (_total(plain) / _total(scaled))
        if not np.isfinite(weighted[row]).all():
            raise rules.PROMPT_WEIGHTS_CANCEL.error(name=name)
    return weighted


def _total(array: np.ndarray) -> np.float64:
    """The sum of all elements in their order, which the C library repeats bit by bit."""
    return np.float64(np.cumsum(array.reshape(-1))[-1])
