"""Products of factors against their formulas, element by element in float64."""

import numpy as np
import pytest

from ebca.engines.adapters.factors import change
from ebca.errors import ParameterError

RNG = np.random.default_rng(0)
# Sums of a few products of numbers around 1, in float32.
TOLERANCE = 2e-5


def array(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, np.float32)


def close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == np.float32 and found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE)


def exact(**factors: np.ndarray) -> dict[str, np.ndarray]:
    return {name: value.astype(np.float64) for name, value in factors.items()}


def test_alpha_and_rank() -> None:
    factors = {"down": array(4, 6), "up": array(5, 4)}
    product = exact(**factors)["up"] @ exact(**factors)["down"]
    close(change(factors, (5, 6), None), product)
    close(change(factors, (5, 6), 2.0), product / 2)
    close(change(factors, (5, 6), 2.0, rank_stabilized=True), product)
    # A convolution of one position is a matrix in other versions of the model.
    close(change(factors, (5, 6, 1, 1), None), product.reshape(5, 6, 1, 1))


def test_convolutions_with_and_without_a_middle() -> None:
    down, up = array(3, 4, 3, 3), array(5, 3, 1, 1)
    e = exact(down=down, up=up)
    close(
        change({"down": down, "up": up}, (5, 4, 3, 3), 3.0), np.einsum("or,rihw->oihw", e["up"][..., 0, 0], e["down"])
    )
    down, mid = array(3, 4, 1, 1), array(3, 3, 3, 3)
    e = exact(down=down, mid=mid, up=up)
    expected = np.einsum("oa,abhw,bi->oihw", e["up"][..., 0, 0], e["mid"], e["down"][..., 0, 0])
    close(change({"down": down, "mid": mid, "up": up}, (5, 4, 3, 3), 6.0), 2 * expected)


def test_loha() -> None:
    factors = {"hada_w1_a": array(5, 2), "hada_w1_b": array(2, 6), "hada_w2_a": array(5, 2), "hada_w2_b": array(2, 6)}
    e = exact(**factors)
    expected = np.empty((5, 6))
    for o in range(5):
        for i in range(6):
            expected[o, i] = (e["hada_w1_a"][o] @ e["hada_w1_b"][:, i]) * (e["hada_w2_a"][o] @ e["hada_w2_b"][:, i])
    close(change(factors, (5, 6), 1.0), expected / 2)


def test_loha_of_a_convolution() -> None:
    factors = {f"hada_w{half}_a": array(2, 5) for half in "12"}
    factors |= {f"hada_w{half}_b": array(2, 4) for half in "12"} | {f"hada_t{half}": array(2, 2, 3, 3) for half in "12"}
    e = exact(**factors)
    halves = [np.einsum("ao,abhw,bi->oihw", e[f"hada_w{h}_a"], e[f"hada_t{h}"], e[f"hada_w{h}_b"]) for h in "12"]
    close(change(factors, (5, 4, 3, 3), 2.0), halves[0] * halves[1])


def test_lokr() -> None:
    w1, w2, a, b = array(2, 3), array(4, 5), array(4, 2), array(2, 5)
    expected = np.empty((8, 15))
    for o in range(8):
        for i in range(15):
            expected[o, i] = np.float64(w1[o // 4, i // 5]) * w2[o % 4, i % 5]
    # Without a rank, alpha means nothing.
    close(change({"lokr_w1": w1, "lokr_w2": w2}, (8, 15), 7.0), expected)
    product = np.kron(w1.astype(np.float64), a.astype(np.float64) @ b)
    close(change({"lokr_w1": w1, "lokr_w2_a": a, "lokr_w2_b": b}, (8, 15), 1.0), product / 2)


def test_lokr_of_a_convolution() -> None:
    w1, w2 = array(2, 3), array(4, 5, 3, 3)
    expected = np.einsum("ab,oihw->aobihw", w1.astype(np.float64), w2.astype(np.float64)).reshape(8, 15, 3, 3)
    close(change({"lokr_w1": w1, "lokr_w2": w2}, (8, 15, 3, 3), None), expected)
    a, b = array(4, 2), array(2, 5, 3, 3)
    inner = np.einsum("or,rihw->oihw", a.astype(np.float64), b.astype(np.float64))
    expected = np.einsum("ab,oihw->aobihw", w1.astype(np.float64), inner).reshape(8, 15, 3, 3)
    close(change({"lokr_w1": w1, "lokr_w2_a": a, "lokr_w2_b": b}, (8, 15, 3, 3), 2.0), expected)


def test_incomplete_factors() -> None:
    for factors in ({"lokr_w1": array(2, 2)}, {"hada_w1_a": array(2, 2)}, {"up": array(2, 2)}, {"down": array(1, 1)}):
        with pytest.raises(ParameterError, match="download it again"):
            change(factors, (4, 4), None)
