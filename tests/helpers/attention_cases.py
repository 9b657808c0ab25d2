"""Random inputs of energy attention for the float64 reference, with everything the contract has."""

from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ebca.plugins.energy_attention import EnergyAttentionResult, energy_attention, tie_matrix

Array = NDArray[Any]
Feed = dict[str, Array]

# Reordered float64 sums differ by a few units of 1e-16 times the size of a softmax's argument, about 10 here.
SAME: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}

properties = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def make_case(
    seed: int,
    *,
    B: int = 2,
    S: int = 3,
    T: int = 5,
    N: int = 12,
    H: int = 2,
    d: int = 4,
    scale: float = 1.0,
    G: int = 2,
) -> Feed:
    """Random float64 inputs for the whole contract; the weights keep |sum w| / sum |w| at 1/5 or more."""
    rng = np.random.default_rng(seed)
    weights = np.ones((B, S))
    if S > 1:
        weights[:, 1:] = rng.uniform(-2 / 3, 2 / 3, (B, S - 1)) / (S - 1)
    return {
        "q": rng.standard_normal((B, N, H * d)) * scale,
        "k": rng.standard_normal((B, S, T, H * d)) * scale,
        "v": rng.standard_normal((B, S, T, H * d)),
        "weights": weights,
        "gamma_attn": rng.uniform(-1, 1, (B, S, T)),
        "gamma_norm": rng.uniform(-1, 1, (B, S)),
        "norm_factor": np.array(1.0),
        "tie": tie_matrix(B, S, B // 2).astype(np.float64),
        "mask": rng.uniform(0, 1, (B, S, N)),
        "bias": rng.uniform(-3, 3, (B, S, G, N)),
        "token_groups": rng.integers(-1, G, (B, S, T)),
    }


def reference(case: Feed, heads: int = 2, **changes: Any) -> EnergyAttentionResult:
    """The reference on a case, with some inputs replaced or (None) left out."""
    merged: dict[str, Any] = {**case, **changes}
    options = {name: value for name, value in merged.items() if name not in ("q", "k", "v") and value is not None}
    return energy_attention(merged["q"], merged["k"], merged["v"], heads=heads, **options)


cases = st.builds(
    make_case,
    seed=st.integers(0, 2**32 - 1),
    B=st.integers(1, 3),
    S=st.integers(1, 4),
    T=st.integers(1, 7),
    N=st.integers(1, 20),
    d=st.integers(1, 6),
    G=st.integers(1, 3),
)
