"""The tensors of exclusive attention, and what may be in them.

Letters: m evaluations, L source layers, R rows, S contexts, G groups of tokens, h x w the grid of the maps, N = h w.
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ebca.errors import ParameterError


class Tensor(NamedTuple):
    """dtype and shape. A dimension is a number or a letter of the module docstring."""

    dtype: str
    shape: tuple[str | int, ...]


TENSORS: Final[Mapping[str, Tensor]] = {
    "step": Tensor("int32", (1,)),
    "subjects": Tensor("int32", ("R",)),
    "strengths": Tensor("float32", ("m", 2)),
    "fixed": Tensor("int32", ("R", "G")),
    "beyond": Tensor("float32", ("R", "G", "N")),
    "near": Tensor("int32", ("h", "w")),
    "outside": Tensor("float32", ("h", "w")),
    "maps": Tensor("float32", ("L", "R", "G", "N")),
    "averages": Tensor("float32", ("R", "G", "N")),
    "bias": Tensor("float32", ("R", "S", "G", "N")),
}
"""All tensors, modified in place.

step: index of the evaluation that made `maps`. At 0 the averages begin.
subjects: a row's subjects are its first groups, so many; 0 in every unconditional row. The bias of a row is zero if it
    has none, or one that is not fixed.
strengths: lambda and mu of the bias that an evaluation makes, so those of the next evaluation.
fixed: 1 for a subject whose place is given.
beyond: how far a position is outside of that place, 0 to 1; not read for other subjects.
near, outside: of `tables`.
maps: of the source layers, in the order in which they run.
averages: kept from one evaluation to the next; not read at step 0.
bias: of the next evaluation. Written for context 0; what the others have is left alone.
"""

EXCLUDE: Final = "exclude"
"""The kernel, enqueued after an evaluation and before the step is advanced."""

MAX_STRENGTH: Final = 1000.0
"""Of lambda and mu each: their sum stays below the largest bias that energy attention takes."""


def sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The sizes by letter, from the shapes of all tensors.

    Raises ParameterError, naming the tensor, if one is missing or the shapes contradict each other.
    """
    if missing := [name for name in TENSORS if name not in shapes]:
        raise ParameterError(f"exclusive attention lacks {', '.join(missing)}", "pass every tensor of TENSORS")
    found: dict[str | int, int] = {}
    for name, tensor in TENSORS.items():
        given: list[str | int] = list(shapes[name])
        wanted: list[str | int] = list(tensor.shape)
        if len(given) == len(wanted):
            pairs = zip(tensor.shape, shapes[name], strict=True)
            wanted = [dim if isinstance(dim, int) else found.setdefault(dim, n) for dim, n in pairs]
        if given != wanted or 0 in given:
            raise ParameterError(f"{name} of exclusive attention has shape {given}", f"it must be {wanted}, none empty")
        if name == "outside":
            found["N"] = found["h"] * found["w"]
    return {str(letter): size for letter, size in found.items()}


def check_strengths(away: ArrayLike, boost: ArrayLike) -> NDArray[np.float32]:
    """The tensor `strengths` from lambda (`away`) and mu (`boost`), numbers or one per evaluation.

    Raises ParameterError for one outside 0..MAX_STRENGTH.
    """
    columns = np.atleast_1d(np.asarray(away, np.float64)), np.atleast_1d(np.asarray(boost, np.float64))
    for name, values in zip(("lambda", "mu"), columns, strict=True):
        wrong = values[~((values >= 0) & (values <= MAX_STRENGTH))]
        if wrong.size:
            raise ParameterError(f"{name} of exclusive attention is {wrong[0]:g}", f"pass 0 to {MAX_STRENGTH:g}")
    return np.stack(np.broadcast_arrays(*columns), 1).astype(np.float32)


def check_subjects(subjects: ArrayLike, groups: int) -> NDArray[np.int32]:
    """The tensor `subjects` from the number of subjects of each row.

    Raises ParameterError, naming the row, for numbers that are not whole or outside 0..groups.
    """
    counts: NDArray[Any] = np.asarray(subjects)
    if counts.ndim != 1 or counts.dtype.kind not in "iu":
        raise ParameterError(f"subjects are {counts.dtype} of shape {counts.shape}", "pass one whole number per row")
    for row, count in enumerate(counts):
        if not 0 <= count <= groups:
            raise ParameterError(f"row {row} has {count} subjects", f"pass 0 to {groups}, the groups of tokens")
    return counts.astype(np.int32)
