"""From an EnergyControl to arrays; masks are resized as in the authors' code."""

import numpy as np
import pytest

import ebca
from ebca.engines.contract.manifest import LayerSpec
from ebca.runtime.execution.control import ControlArrays, resize_mask, resolve

SIZES = {"batch": 4, "contexts": 3, "tokens": 5, "height": 9, "width": 6}
LAYERS = tuple(
    LayerSpec(f"layer{i}", "op", 2, 4, f"height{suffix}", f"width{suffix}")
    for i, suffix in enumerate(("", "_1", "_1", ""))
)


def arrays(**values: object) -> ControlArrays:
    return resolve(ebca.EnergyControl(**values), LAYERS, SIZES)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((16, 16), (8, 8)),
        ((9, 13), (5, 7)),
        ((8, 24), (2, 6)),
        ((64, 64), (64, 64)),
        ((5, 5), (1, 1)),
        ((1, 7), (1, 4)),
    ],
    ids=str,
)
def test_masks_are_resized_as_torch_does(source: tuple[int, int], target: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    mask = (np.random.default_rng(0).random((2, 1, *source)) < 0.5).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(mask).double(), target, mode="bilinear", align_corners=True
    )
    # Computed in float64 on both sides, rounded to float32 here.
    assert np.allclose(resize_mask(mask, *target), expected[:, 0].numpy(), rtol=0, atol=1e-7)


def test_resized_masks_equal_those_of_the_authors_code() -> None:
    from pathlib import Path

    with np.load(Path(__file__).parents[2] / "golden" / "tiny" / "d_mask.npz") as z:
        mask, expected = z["mask_latent"], {side: z[f"mask_{side}"] for side in (16, 8)}
    for side, values in expected.items():
        assert np.allclose(resize_mask(mask, side, side)[0], values, rtol=0, atol=1e-6)


def test_a_mask_applies_only_to_the_main_context() -> None:
    mask = np.zeros((1, 1, 9, 6), np.float32)
    mask[..., :4, :] = 1
    masks = arrays(mask=mask).masks
    assert {size: m.shape for size, m in masks.items()} == {(9, 6): (4, 3, 54), (5, 3): (4, 3, 15)}
    for size, values in masks.items():
        assert np.array_equal(values[:, 1:], np.ones_like(values[:, 1:]))
        for row in values[:, 0]:
            assert np.array_equal(row, resize_mask(mask, *size).reshape(-1))


def test_a_mask_may_differ_by_row() -> None:
    mask = np.random.default_rng(0).random((4, 1, 9, 6)).astype(np.float32)
    assert np.array_equal(arrays(mask=mask).masks[9, 6][:, 0], mask.reshape(4, -1))


def test_numbers_and_short_arrays_are_broadcast() -> None:
    result = arrays(gamma_attn=[1, 2, 3, 4, 5], gamma_norm=[0.1, 0.2, 0.3], weights=2)
    assert np.array_equal(result.gamma_attn, np.broadcast_to(np.arange(1, 6, dtype=np.float32), (4, 3, 5)))
    assert np.array_equal(result.gamma_norm, np.broadcast_to(np.float32([0.1, 0.2, 0.3]), (4, 3)))
    assert np.array_equal(result.weights, np.full((4, 3), 2, np.float32))
    for array in (result.gamma_attn, result.gamma_norm, result.weights, result.tie, result.norm_factor):
        assert array.dtype == np.float32 and array.flags.c_contiguous


def test_the_first_half_of_the_rows_is_tied() -> None:
    tie = arrays().tie
    shared = np.array([[1, 0, 0], [0, 0.5, 0.5], [0, 0.5, 0.5]], np.float32)
    assert np.array_equal(tie, np.stack([shared, shared, np.eye(3), np.eye(3)]))
    assert np.array_equal(arrays(tie_unconditional=False).tie, np.stack([np.eye(3)] * 4))


def test_a_single_row_is_conditional() -> None:
    tie = resolve(ebca.EnergyControl(), LAYERS, SIZES | {"batch": 1}).tie
    assert np.array_equal(tie, np.eye(3)[None])


@pytest.mark.parametrize(
    ("value", "shape"), [(np.zeros(4), r"\(4,\)"), (np.zeros((4, 3, 6)), r"\(4, 3, 6\)"), ([[1, 2], [3]], r"\(2,\)")]
)
def test_the_error_about_a_wrong_shape_shows_the_right_one(value: object, shape: str) -> None:
    with pytest.raises(ebca.ParameterError, match=rf"gamma_attn has shape {shape}; .*= \[4, 3, 5\]"):
        arrays(gamma_attn=value)


def test_the_error_about_weights_that_cancel_names_the_row() -> None:
    weights = np.ones((4, 3))
    weights[2] = [1, -1.5, 0.5]
    with pytest.raises(ebca.ParameterError, match=r"weights of row 2, \[1.0, -1.5, 0.5\], sum to 0"):
        arrays(weights=weights)
