"""What a LoRA file holds for one module, and the change of the weight that it stands for.

In the letters of the papers, with alpha / rank as the factor of each:

    LoRA     B A                     down is A [rank, in, ...], up is B [out, rank]
    LoCon    the same for a convolution; with mid M [rank, rank, h, w] between the two
    LoHa     (A1 B1) * (A2 B2)       elementwise
    LoKr     C (x) D                 Kronecker product; each is a matrix, or a product of two
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ebca.errors import ParameterError

Factors = Mapping[str, np.ndarray]
"""Role -> tensor, in float32: see `ebca.engines.adapters.lora`."""


def change(factors: Factors, shape: Sequence[int], alpha: float | None, *, rank_stabilized: bool = False) -> np.ndarray:
    """The change of a weight, in float32 and of the weight's shape.

    Args:
        factors: what the file has.
        shape: of the weight in PyTorch.
        alpha: None: the rank, for a factor of 1.
        rank_stabilized: alpha is divided by the rank's root instead of the rank.

    Raises:
        ParameterError: factors that are incomplete, do not fit each other or the weight, or have rank 0.
    """
    try:
        product, rank = _product(factors)
        # Convolutions of one position are matrices in other versions of the model.
        product = product.reshape(shape)
    except ParameterError:
        raise
    except (ValueError, IndexError):
        found = ", ".join(f"{role} {list(value.shape)}" for role, value in sorted(factors.items()))
        raise ParameterError(
            f"{found} do not fit a weight of shape {list(shape)}", "use a LoRA that was made for this architecture"
        ) from None
    if rank == 0:
        raise ParameterError("it has rank 0", "use another file")
    # Without a rank there is nothing that alpha could be relative to.
    factor = 1.0 if rank is None or alpha is None else alpha / (math.sqrt(rank) if rank_stabilized else rank)
    return np.multiply(product, np.float32(factor), dtype=np.float32)


def _product(factors: Factors) -> tuple[np.ndarray, int | None]:
    """The product, and its rank (None: it has none)."""
    roles = set(factors)
    if roles in ({"down", "up"}, {"down", "up", "mid"}):
        return _low_rank(factors)
    if roles in (_HADAMARD, _HADAMARD | {"hada_t1", "hada_t2"}):
        return _hadamard(factors)
    if roles and all(role.startswith("lokr_") for role in roles):
        return _kronecker(factors)
    raise ParameterError(
        f"it has only {' and '.join(sorted(roles)) or 'alpha'}", "the file is incomplete: download it again"
    )


def _low_rank(factors: Factors) -> tuple[np.ndarray, int]:
    down, up = factors["down"], factors["up"]
    rank = down.shape[0]
    if up.shape[1] != rank or math.prod(up.shape[2:]) != 1:
        raise ValueError
    wide = up.reshape(len(up), rank)
    if "mid" in factors:
        return _between(wide, factors["mid"], down.reshape(rank, -1)), rank
    return wide @ down.reshape(rank, math.prod(down.shape[1:])), rank


def _between(up: np.ndarray, mid: np.ndarray, down: np.ndarray) -> np.ndarray:
    return np.einsum("oa,abhw,bi->oihw", up, mid, down, optimize=True)


_HADAMARD = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}


def _hadamard(factors: Factors) -> tuple[np.ndarray, int]:
    halves = []
    for half in ("1", "2"):
        a, b = factors[f"hada_w{half}_a"], factors[f"hada_w{half}_b"]
        if f"hada_t{half}" in factors:
            # Here a is [rank, out].
            halves.append(_between(a.T, factors[f"hada_t{half}"], b))
        else:
            halves.append(a @ b)
    return halves[0] * halves[1], factors["hada_w1_b"].shape[0]


def _kronecker(factors: Factors) -> tuple[np.ndarray, int | None]:
    first, rank_1 = _kronecker_side(factors, "lokr_w1")
    second, rank_2 = _kronecker_side(factors, "lokr_w2")
    if second.ndim == 4:
        first = first.reshape(*first.shape, 1, 1)
    return np.kron(first, second), rank_1 if rank_2 is None else rank_2


def _kronecker_side(factors: Factors, name: str) -> tuple[np.ndarray, int | None]:
    if name in factors:
        return factors[name], None
    try:
        a, b = factors[f"{name}_a"], factors[f"{name}_b"]
    except KeyError:
        raise ParameterError(f"it lacks {name}", "the file is incomplete: download it again") from None
    if "lokr_t2" in factors and name == "lokr_w2":
        # Here a is [rank, out].
        return _between(a.T, factors["lokr_t2"], b), b.shape[0]
    return (a @ b.reshape(b.shape[0], -1)).reshape(a.shape[0], *b.shape[1:]), b.shape[0]
