"""How the model learns left from right.

Noise prediction alone does not teach a model of this size what "left of" means, no matter how many such images it sees:
until the text model marks the things with their sides, the UNet has nothing to read, and until the UNet reads marks,
the text model gains nothing by writing them. So at first we add the marks to the embeddings of both things' words,
large enough that the UNet learns to read them. Then the marks of the first thing fade: a causal text model could never
write them, since the relation comes after the words of that thing. Then those of the second thing fade, which the text
model has learned to write by then.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ebca.bench.alignment.scenes import RELATIONS, Scene

_LOUD, _QUIET = 11.0, 6.0
# Progress at which the marks of the first thing begin to fade, at which they are gone, and at which the second's are
# gone.
_BOTH, _SECOND, _NONE = 0.1, 0.25, 0.35


class Sides:
    """Marks for the words of things in a relation.

    Args:
        scenes: the scenes of all images; the words of a thing are its colour and its shape.
        length: tokens of a caption.
        width: size of an embedding.
        seed: determines the two directions of the marks in the embedding, for right and down.
    """

    def __init__(self, scenes: Sequence[Scene], length: int, width: int, seed: int, device: torch.device) -> None:
        axes = np.linalg.qr(np.random.default_rng((seed, 7)).standard_normal((width, 2)))[0]
        self._axes = torch.from_numpy(axes.astype(np.float32)).to(device)
        marks = np.zeros((2, len(scenes), length, 2), np.float32)
        for i, scene in enumerate(scenes):
            if scene.relation:
                # Token 0 begins the caption, token 1 is the article.
                end = 1 + len(scene.caption().split())
                marks[0, i, 2:4] = RELATIONS[scene.relation]
                marks[1, i, end - 2 : end] = -marks[0, i, 2:4]
        self._marks = torch.from_numpy(marks).to(device)

    def mark(self, hidden: Tensor, chosen: Tensor, captioned: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        """Embeddings with the marks for this progress, and the error of the text model in writing those of the second
        thing.

        Args:
            hidden: [n,T,D], the output of the text model.
            chosen: [n], indices of the scenes, on the same device.
            captioned: [n] bool; a dropped caption has no marks.
            progress: progress of the stage, 0 to 1.

        Returns:
            The embeddings [n,T,D], and the mean squared error, a scalar.
        """
        fading = _fall(progress, _BOTH, _SECOND)
        loudness = _QUIET + (_LOUD - _QUIET) * fading
        marks = self._marks[:, chosen]
        marked = (marks != 0).any(-1, keepdim=True) & captioned[:, None, None]
        written = hidden @ self._axes
        missing = (loudness * marks - written) * marked
        put = fading * missing[0] + _fall(progress, _SECOND, _NONE) * missing[1]
        error = (_QUIET * marks[1] - written).square() * marked[1]
        return hidden + put @ self._axes.T, error.sum() / (2 * marked[1].sum()).clamp(min=1)


def _fall(progress: float, begin: float, end: float) -> float:
    """1 before `begin`, 0 after `end`."""
    return 1 - min(max((progress - begin) / (end - begin), 0.0), 1.0)
