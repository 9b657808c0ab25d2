"""The GPU kernels against the float64 reference in Triton's interpreter: arithmetic, tiling and grids, no GPU."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pytest
from helpers import interpreted_kernels
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ebca.engines.contract.accuracy import ENERGY_LIMIT, KERNEL_LIMITS
from ebca.plugins.energy_attention import GUIDED_VARIANTS, VARIANTS, energy_attention, signature, tie_matrix

pytest.importorskip("triton", reason="the interpreter is Triton's; pip install ebca[kernels]")
pytest.importorskip("torch", reason="Triton's interpreter takes PyTorch tensors")

Array = NDArray[Any]
Case = dict[str, Array]
Run = Callable[..., dict[str, Array]]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """`interpreted_kernels.run` in a child process; TRITON_INTERPRET is set only there."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=interpreted_kernels.interpret) as pool:

        def call(
            variant: str, dtype: str, heads: int, case: Case, capability: tuple[int, int] = (8, 9)
        ) -> dict[str, Array]:
            return pool.submit(interpreted_kernels.run, variant, dtype, heads, case, capability).result(timeout=600)

        yield call


def stored(x: Array, dtype: str) -> Array:
    """Rounded to a storage type and back."""
    if dtype == "float16":
        return x.astype(np.float16).astype(np.float64)
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32).astype(np.float64)


def make_case(
    seed: int,
    *,
    B: int,
    N: int,
    H: int,
    d: int,
    S: int = 1,
    T: int = 77,
    dtype: str = "float16",
    scale: float = 1.0,
    G: int = 2,
) -> Case:
    """Inputs with scores of standard deviation 0.4 sqrt(d) `scale`; q is off centre so that its means do not vanish."""
    rng = np.random.default_rng(seed)
    weights = np.ones((B, S))
    weights[:, 1:] = rng.uniform(-2 / 3, 2 / 3, (B, S - 1)) / max(S - 1, 1)
    return {
        "q": stored(rng.standard_normal((B, N, H * d)) * scale + 0.5, dtype),
        "k": stored(rng.standard_normal((B, S, T, H * d)) * 0.4, dtype),
        "v": stored(rng.standard_normal((B, S, T, H * d)), dtype),
        "weights": weights.astype(np.float32),
        "gamma_attn": rng.uniform(-1, 1, (B, S, T)).astype(np.float32),
        "gamma_norm": rng.uniform(-1, 1, (B, S)).astype(np.float32),
        # ||k||^2 varies by several units between tokens; this keeps its softmax from being one-hot.
        "norm_factor": np.array(4.0 / np.sqrt(H * d), np.float32),
        "tie": tie_matrix(B, S, B // 2),
        "mask": (rng.uniform(0, 1, (B, S, N)) > 0.4).astype(np.float32),
        "bias": rng.uniform(-5, 3, (B, S, G, N)).astype(np.float32),
        "token_groups": rng.integers(-1, G, (B, S, T)).astype(np.int32),
    }


def assert_equal_to_reference(run: Run, variant: str, dtype: str, heads: int, case: Case, **where: Any) -> None:
    """Errors relative to the L2 norm of the expected tensor, against KERNEL_LIMITS: twice the roundoff u.

    Rounded to the storage type: the softmax weights and the result in `out`; the column weights and the tile's result
    in g, whose norm term has no such rounding. Each rounding is off by u / sqrt(3) at most on average, about u in all.
    Weights that cancel magnify the error of `out` by sum |w| / |sum w|. The error of g is relative to its attention
    term, which the norm term may cancel. The energies never leave float32; the softmax behind `maps` is rounded to
    float16 for every storage type. (The interpreter truncates to bfloat16 instead of rounding, which uses up most of
    the limit.)
    """
    limit = KERNEL_LIMITS[dtype]
    options = {name: case[name] for name in signature(variant, heads, 1).inputs if name not in ("q", "k", "v")}
    expected = energy_attention(case["q"], case["k"], case["v"], heads=heads, **options)
    actual = run(variant, dtype, heads, case, **where)
    weights = (np.abs(case["weights"]).sum(axis=1) / np.abs(case["weights"].sum(axis=1))).max()
    limits = {"out": limit * weights, "g": limit, "energy_attn": ENERGY_LIMIT, "energy_norm": ENERGY_LIMIT}
    limits["maps"] = KERNEL_LIMITS["float16"]
    sizes = {name: float(np.linalg.norm(getattr(expected, name))) for name in actual}
    if "g" in actual:
        attention = energy_attention(case["q"], case["k"], case["v"], heads=heads, **{**options, "gamma_norm": 0.0})
        sizes["g"] = max(sizes["g"], float(np.linalg.norm(attention.g)))
    for name, value in actual.items():
        wanted = getattr(expected, name)
        assert value.shape == wanted.shape, name
        assert np.isfinite(value).all(), name
        error = float(np.linalg.norm(value - wanted)) / sizes[name]
        assert error <= limits[name], f"{name}: relative error {error:.1e} over {limits[name]:.1e}"


# heads, head_dim, positions of the layers
SD15 = [(8, 40, 4096), (8, 80, 1024), (8, 160, 256), (8, 160, 64)]
SD2 = [(5, 64, 4096), (20, 64, 64)]
SDXL = [(10, 64, 4096), (20, 64, 1024)]
BUNDLED = [(8, 4, 256), (8, 8, 64), (2, 48, 256), (2, 56, 64)]


@pytest.mark.parametrize("heads, head_dim", sorted({(h, d) for h, d, _ in SD15 + SD2 + SDXL + BUNDLED}))
def test_update_with_the_heads_of_every_layer(run: Run, heads: int, head_dim: int) -> None:
    case = make_case(heads + head_dim, B=1, N=70 if head_dim <= 80 else 40, H=heads, d=head_dim, T=20)
    assert_equal_to_reference(run, "update", "float16", heads, case)


@pytest.mark.parametrize("dtype", KERNEL_LIMITS)
@pytest.mark.parametrize("contexts", [1, 2, 3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_with_one_to_three_contexts(run: Run, variant: str, contexts: int, dtype: str) -> None:
    head_dim = {1: 40, 2: 80, 3: 160}[contexts]
    case = make_case(contexts, B=2, N=40, H=1, d=head_dim, S=contexts, T=17, dtype=dtype)
    assert_equal_to_reference(run, variant, dtype, 1, case)


@pytest.mark.parametrize("tokens", [1, 16, 77, 154])
@pytest.mark.parametrize("dtype", KERNEL_LIMITS)
def test_prompts_of_any_length(run: Run, tokens: int, dtype: str) -> None:
    case = make_case(tokens, B=1, N=70, H=1, d=40, S=2, T=tokens, dtype=dtype)
    assert_equal_to_reference(run, "energies", dtype, 1, case)


@pytest.mark.parametrize("tokens, head_dim", [(3, 40), (64, 40), (77, 40), (77, 80), (77, 160), (154, 40)])
def test_wide_and_narrow_blocks_of_tokens(run: Run, tokens: int, head_dim: int) -> None:
    """With the block sizes of 9.0, which differ from those of the other tests."""
    case = make_case(tokens, B=1, N=70, H=1, d=head_dim, T=tokens)
    assert_equal_to_reference(run, "update", "float16", 1, case, capability=(9, 0))


@pytest.mark.parametrize("variant, contexts, positions", [("update", 1, 4096 + 3), ("update_masked", 2, 700)])
def test_ranges_of_several_blocks_of_positions(run: Run, variant: str, contexts: int, positions: int) -> None:
    case = make_case(2, B=1, N=positions, H=1, d=40, S=contexts, T=3)
    assert_equal_to_reference(run, variant, "float16", 1, case)


def test_a_column_whose_maximum_grows_from_block_to_block(run: Run) -> None:
    """Two blocks to a range: the sums of the first are scaled down, by 2^-100 and more. Then in reverse order."""
    case = make_case(8, B=1, N=640, H=1, d=40, T=17)
    case["q"] = stored(case["q"] * np.repeat([0.1, 1, 10, 100, 300] * 2, 64)[None, :, None], "float16")
    assert_equal_to_reference(run, "update", "float16", 1, case)
    case["q"] = np.ascontiguousarray(case["q"][:, ::-1])
    assert_equal_to_reference(run, "update", "float16", 1, case)


def test_contexts_that_almost_cancel(run: Run) -> None:
    case = make_case(3, B=1, N=64, H=2, d=40, S=3, T=17)
    case["weights"] = np.array([[1.0, -1.3, 0.4]], np.float32)
    assert_equal_to_reference(run, "update", "float16", 2, case)


def test_small_steps_do_not_become_subnormal(run: Run) -> None:
    """A step of 1e-6 would be subnormal in float16, so g is float32."""
    case = make_case(4, B=1, N=64, H=2, d=40, S=2, T=17)
    case["gamma_attn"] *= 1e-7
    case["gamma_norm"] *= 1e-7
    assert_equal_to_reference(run, "update", "float16", 2, case)


@pytest.mark.parametrize("contexts", [1, 2])
def test_scores_in_the_hundreds(run: Run, contexts: int) -> None:
    """A maximum shared by rows and columns, or by the tile, would lose columns here."""
    case = make_case(5, B=1, N=130, H=2, d=40, S=contexts, T=17, scale=300.0)
    scores = np.einsum("bnhd,bsthd->bshnt", *(case[n].reshape(*case[n].shape[:-1], 2, 40) for n in "qk")) / np.sqrt(40)
    assert np.abs(scores).max() > 400
    assert_equal_to_reference(run, "energies" if contexts > 1 else "update", "float16", 2, case)


def test_a_mask_of_zeros_leaves_the_norm_term(run: Run) -> None:
    case = make_case(6, B=1, N=70, H=2, d=40, T=17)
    case["mask"][:] = 0.0
    assert_equal_to_reference(run, "update_masked", "float16", 2, case)


@settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 2**32 - 1),
    B=st.integers(1, 2),
    N=st.integers(1, 100),
    S=st.integers(1, 3),
    T=st.integers(1, 20),
    H=st.integers(1, 2),
    d=st.sampled_from([4, 12, 32, 72, 96]),
    G=st.integers(1, 16),
    variant=st.sampled_from((*VARIANTS, *GUIDED_VARIANTS)),
    dtype=st.sampled_from(sorted(KERNEL_LIMITS)),
)
def test_any_sizes(
    run: Run, seed: int, B: int, N: int, S: int, T: int, H: int, d: int, G: int, variant: str, dtype: str
) -> None:
    case = make_case(seed, B=B, N=N, S=S, T=T, H=H, d=d, G=G, dtype=dtype)
    assert_equal_to_reference(run, variant, dtype, H, case)


# ---- guidance


@pytest.mark.parametrize(
    ("variant", "contexts", "heads", "head_dim", "dtype"),
    [
        ("attention_guided", 1, 9, 8, "float16"),
        ("update_guided", 1, 2, 40, "float16"),
        ("update_masked_guided", 2, 1, 80, "bfloat16"),
        ("energies_guided", 3, 1, 160, "float16"),
    ],
)
def test_guided_variants_with_the_widths_of_every_layer(
    run: Run, variant: str, contexts: int, heads: int, head_dim: int, dtype: str
) -> None:
    """Nine heads take two rounds of `ebca_maps`, and 3 groups of 100 positions two of its programs."""
    rows = 2 if contexts < 3 else 1
    case = make_case(contexts, B=rows, N=100, H=heads, d=head_dim, S=contexts, T=17, G=3, dtype=dtype)
    assert_equal_to_reference(run, variant, dtype, heads, case)
    assert_equal_to_reference(run, variant, dtype, heads, case, capability=(9, 0))


@pytest.mark.parametrize("groups, tokens", [(1, 77), (16, 154)])
def test_guided_prompts_of_several_rounds(run: Run, groups: int, tokens: int) -> None:
    """Scores in the hundreds, so that both softmaxes rescale what earlier rounds have left."""
    case = make_case(tokens, B=1, N=70, H=1, d=40, T=tokens, G=groups, scale=300.0)
    assert_equal_to_reference(run, "attention_guided", "float16", 1, case)


def test_a_bias_of_zero_changes_no_bit(run: Run) -> None:
    case = make_case(9, B=1, N=70, H=2, d=40, S=2, T=60)
    case["bias"][:] = 0.0
    plain = run("update_masked", "float16", 2, case)
    guided = run("update_masked_guided", "float16", 2, case)
    for name, value in plain.items():
        np.testing.assert_array_equal(guided[name], value, err_msg=name)


def test_hidden_and_empty_groups(run: Run) -> None:
    """The first group has the largest scores by far, and -1e4 hides it; the second has no token."""
    case = make_case(10, B=1, N=40, H=1, d=40, T=60)
    case["token_groups"][:] = -1
    case["token_groups"][:, :, 50:] = 0
    case["k"][:, :, 50:] = stored(case["q"].mean() + case["k"][:, :, 50:], "float16") * 100
    case["bias"][:] = -1e4
    assert_equal_to_reference(run, "attention_guided", "float16", 1, case)
    before = run("attention_guided", "float16", 1, case)
    assert not before["maps"][:, 1].any() and before["maps"][:, 0].any()
    case["v"][:, :, 50:] += 1.0
    np.testing.assert_array_equal(run("attention_guided", "float16", 1, case)["out"], before["out"])


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("EBCA_SLOW_TESTS"), reason="takes minutes: set EBCA_SLOW_TESTS=1")
@pytest.mark.parametrize("heads, head_dim, positions", SD15 + SD2 + SDXL + BUNDLED)
def test_layers_at_full_size(run: Run, heads: int, head_dim: int, positions: int) -> None:
    case = make_case(7, B=1, N=positions, H=heads, d=head_dim)
    assert_equal_to_reference(run, "update", "float16", heads, case)
