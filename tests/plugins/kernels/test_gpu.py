"""The GPU kernels on a GPU against the float64 reference, without PyTorch and Triton. Skipped without a GPU."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ebca.engines.contract.accuracy import ENERGY_LIMIT, KERNEL_LIMITS, relative_l2
from ebca.plugins.energy_attention import (
    GUIDED_VARIANTS,
    VARIANTS,
    EnergyAttentionResult,
    energy_attention,
    signature,
    tie_matrix,
)
from ebca.plugins.energy_attention.launches import EnergyAttention, OpShape
from ebca.plugins.kernels.launch import CudaLauncher, KernelLibrary

pytestmark = pytest.mark.gpu
Array = NDArray[Any]

# heads, head_dim, positions: SD 1.x, SD 2.x, SDXL, tiny, shapes, ragged
LAYERS = [
    *[(8, 40, 4096), (8, 80, 1024), (8, 160, 256), (8, 160, 64)],
    *[(5, 64, 9216), (20, 64, 144)],
    *[(10, 64, 4096), (20, 64, 1024)],
    *[(8, 4, 256), (8, 8, 64), (2, 48, 1024), (2, 56, 256)],
    *[(3, 40, 4099), (1, 96, 1)],
]


class Memory:
    """Arrays on the GPU, in its primary context."""

    def __init__(self) -> None:
        from cuda.bindings import driver

        self.driver: Any = driver
        context = self.do(driver.cuDevicePrimaryCtxRetain(self.do(driver.cuDeviceGet(0))))
        self.do(driver.cuCtxSetCurrent(context))
        self.stream = int(self.do(driver.cuStreamCreate(1)))
        self._pointers: list[int] = []

    def do(self, answer: tuple[Any, ...]) -> Any:
        status, *values = answer
        assert status == self.driver.CUresult.CUDA_SUCCESS, status
        return values[0] if values else None

    def put(self, array: Array) -> int:
        pointer = int(self.do(self.driver.cuMemAlloc(max(array.nbytes, 16))))
        self._pointers.append(pointer)
        self.do(self.driver.cuMemcpyHtoD(pointer, array.ctypes.data, array.nbytes))
        return pointer

    def get(self, pointer: int, like: Array) -> Array:
        self.do(self.driver.cuStreamSynchronize(self.stream))
        result = np.empty_like(like)
        self.do(self.driver.cuMemcpyDtoH(result.ctypes.data, pointer, result.nbytes))
        return result

    def close(self) -> None:
        for pointer in self._pointers:
            self.do(self.driver.cuMemFree(pointer))
        self.do(self.driver.cuStreamDestroy(self.stream))


def to_bits(x: Array, dtype: str) -> Array:
    if dtype == "float16":
        return x.astype(np.float16).view(np.uint16)
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bits(bits: Array, dtype: str) -> Array:
    if dtype == "float16":
        return bits.view(np.float16).astype(np.float64)
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


@dataclass(frozen=True, eq=False)
class Problem:
    """Inputs of one shape and the expected results, the same for every variant and storage type.

    expected: by whether there is a mask. attention_g: |g| without the norm term, likewise.
    """

    tensors: Mapping[str, Array]
    controls: Mapping[str, Array]
    expected: Mapping[bool, EnergyAttentionResult]
    attention_g: Mapping[bool, float]


def exact(x: Array, step: float) -> Array:
    """Multiples of `step`, at most 255 of them, which both storage types represent exactly."""
    return np.clip(np.round(x / step), -255, 255) * step


# The reference takes seconds at large shapes, so tests of the same shape follow each other and share it.
@lru_cache(maxsize=1)
def problem(heads: int, head_dim: int, positions: int, contexts: int) -> Problem:
    rng = np.random.default_rng(0)
    B, N, S, T, C = 2, positions, contexts, 77, heads * head_dim
    weights = np.ones((B, S), np.float32)
    weights[:, 1:] = [-0.6, 0.4][: S - 1]
    tensors = {
        "q": exact(rng.standard_normal((B, N, C)) + 0.5, 1 / 32),
        "k": exact(rng.standard_normal((B, S, T, C)) * 0.4, 1 / 64),
        "v": exact(rng.standard_normal((B, S, T, C)), 1 / 32),
    }
    controls = {
        "weights": weights,
        "gamma_attn": rng.uniform(-1, 1, (B, S, T)).astype(np.float32),
        "gamma_norm": rng.uniform(-1, 1, (B, S)).astype(np.float32),
        "norm_factor": np.array(4 / np.sqrt(C), np.float32),
        "tie": tie_matrix(B, S, 1),
        "mask": rng.integers(0, 2, (B, S, N)).astype(np.float32),
    }
    unmasked = {name: value for name, value in controls.items() if name != "mask"}
    expected = {
        masked: energy_attention(*tensors.values(), heads=heads, **(controls if masked else unmasked))
        for masked in (False, True)
    }
    # The norm term does not depend on the positions, so one of them is enough.
    one_position = (tensors["q"][:, :1], tensors["k"], tensors["v"])
    norm_g = energy_attention(*one_position, heads=heads, **{**unmasked, "gamma_attn": 0.0}).g
    attention_g = {masked: float(np.linalg.norm(result.g - norm_g)) for masked, result in expected.items()}
    return Problem(tensors, controls, expected, attention_g)


def launched(
    launcher: CudaLauncher, variant: str, dtype: str, shape: OpShape, arrays: Mapping[str, Array]
) -> dict[str, Array]:
    """The outputs of a variant after two calls; outputs and scratch start as NaN."""
    tensors = signature(variant, shape.heads, shape.head_dim)
    sizes = {name: getattr(shape, name) for name in ("batch", "positions", "contexts", "tokens", "groups")}
    inputs = {
        name: to_bits(arrays[name], dtype) if name in ("q", "k", "v") else np.asarray(arrays[name], spec.dtype)
        for name, spec in tensors.inputs.items()
    }
    outputs = {}
    for name, spec in tensors.outputs.items():
        empty = np.full([sizes.get(str(dim), dim) for dim in spec.shape], np.nan, np.float32)
        outputs[name] = to_bits(empty, dtype) if name == "out" else empty
    library = EnergyAttention(KernelLibrary(launcher))
    memory = Memory()
    try:
        pointers = {name: memory.put(array) for name, array in {**inputs, **outputs}.items()}
        nan = np.full(library.launches(variant, dtype, shape).scratch_bytes, 255, np.uint8)
        op = library.bind(variant, dtype, shape, pointers, memory.put(nan))
        op(memory.stream)
        op(memory.stream)  # a second call must not depend on what the first one left
        results = {name: memory.get(pointers[name], outputs[name]) for name in outputs}
    finally:
        memory.close()
    return {name: from_bits(value, dtype) if name == "out" else value for name, value in results.items()}


# The lowest decorator varies slowest.
@pytest.mark.parametrize("dtype", KERNEL_LIMITS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("contexts", [1, 3])
@pytest.mark.parametrize("heads, head_dim, positions", LAYERS)
def test_a_launch_equals_the_reference(
    launcher: CudaLauncher, heads: int, head_dim: int, positions: int, variant: str, contexts: int, dtype: str
) -> None:
    """Limits as in energy_attention/test_kernels.py, doubled for the energies: the hardware approximates exp2 and
    log2."""
    shape = OpShape(2, positions, contexts, 77, heads, head_dim)
    made = problem(heads, head_dim, positions, contexts)
    masked = "mask" in signature(variant, heads, head_dim).inputs
    expected = made.expected[masked]
    results = launched(launcher, variant, dtype, shape, {**made.tensors, **made.controls})
    limit, energy_limit = KERNEL_LIMITS[dtype], 2 * ENERGY_LIMIT
    weights = made.controls["weights"]
    amplified = float((np.abs(weights).sum(axis=1) / np.abs(weights.sum(axis=1))).max())
    limits = {"out": limit * amplified, "g": limit, "energy_attn": energy_limit, "energy_norm": energy_limit}
    for name, actual in results.items():
        wanted = getattr(expected, name)
        size = max(float(np.linalg.norm(wanted)), made.attention_g[masked] if name == "g" else 0.0)
        error = float(np.linalg.norm(actual - wanted)) / size
        assert error <= limits[name], f"{name}: relative error {error:.1e} over {limits[name]:.1e}"


@pytest.mark.parametrize("dtype", KERNEL_LIMITS)
@pytest.mark.parametrize("variant", GUIDED_VARIANTS)
@pytest.mark.parametrize("contexts", [1, 3])
@pytest.mark.parametrize("heads, head_dim, positions", [(8, 40, 1024), (8, 80, 256), (8, 160, 64), (9, 8, 67)])
def test_a_guided_launch_equals_the_reference(
    launcher: CudaLauncher, heads: int, head_dim: int, positions: int, variant: str, contexts: int, dtype: str
) -> None:
    """`out` and `maps` against the reference; a bias of zero against the variant without guidance, whose block sizes,
    and so whose sums, may be others."""
    rng = np.random.default_rng(3)
    shape = OpShape(2, positions, contexts, 77, heads, head_dim, groups=3)
    made = problem(heads, head_dim, positions, contexts)
    guidance = {
        "bias": rng.uniform(-5, 3, (2, contexts, 3, positions)).astype(np.float32),
        "token_groups": rng.integers(-1, 3, (2, contexts, 77)).astype(np.int32),
    }
    arrays = {**made.tensors, **made.controls, **guidance}
    results = launched(launcher, variant, dtype, shape, arrays)
    weights = made.controls["weights"]
    expected = energy_attention(*made.tensors.values(), heads=heads, weights=weights, **guidance)
    amplified = float((np.abs(weights).sum(axis=1) / np.abs(weights.sum(axis=1))).max())
    for name, limit in (("out", KERNEL_LIMITS[dtype] * amplified), ("maps", KERNEL_LIMITS["float16"])):
        assert relative_l2(results[name], getattr(expected, name)) <= limit, name
    plain = launched(launcher, variant.removesuffix("_guided"), dtype, shape, arrays)
    zero = launched(launcher, variant, dtype, shape, {**arrays, "bias": np.zeros_like(guidance["bias"])})
    np.testing.assert_array_equal(zero["maps"], results["maps"])
    for name, value in plain.items():
        assert relative_l2(zero[name], value) <= 2 * KERNEL_LIMITS[dtype] * amplified, name


def test_a_recorded_graph_takes_new_values_of_the_controls(launcher: CudaLauncher) -> None:
    """Doubling both gammas in device memory doubles g exactly: every product with them doubles."""
    rng = np.random.default_rng(2)
    shape = OpShape(2, 256, 2, 77, 8, 40)
    arrays = {
        "q": to_bits(rng.standard_normal((2, 256, 320)), "float16"),
        "k": to_bits(rng.standard_normal((2, 2, 77, 320)) * 0.4, "float16"),
        "v": to_bits(rng.standard_normal((2, 2, 77, 320)), "float16"),
        "weights": np.array([[1, -0.6], [1, 0.4]], np.float32),
        "gamma_attn": np.full((2, 2, 77), 0.25, np.float32),
        "gamma_norm": np.full((2, 2), 0.5, np.float32),
        "norm_factor": np.array(0.2, np.float32),
        "tie": tie_matrix(2, 2, 1),
        "out": np.zeros((2, 256, 320), np.uint16),
        "g": np.zeros((2, 2, 77, 320), np.float32),
    }
    library = EnergyAttention(KernelLibrary(launcher))
    memory = Memory()
    driver, do = memory.driver, memory.do
    try:
        pointers = {name: memory.put(array) for name, array in arrays.items()}
        scratch = memory.put(np.zeros(library.launches("update", "float16", shape).scratch_bytes, np.uint8))
        op = library.bind("update", "float16", shape, pointers, scratch)
        do(driver.cuStreamBeginCapture(memory.stream, driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL))
        op(memory.stream)
        graph = do(driver.cuGraphInstantiate(do(driver.cuStreamEndCapture(memory.stream)), 0))
        results = []
        for factor in (1, 2):
            for name in ("gamma_attn", "gamma_norm"):
                values = arrays[name] * np.float32(factor)
                do(driver.cuMemcpyHtoD(pointers[name], values.ctypes.data, values.nbytes))
            do(driver.cuGraphLaunch(graph, memory.stream))
            results.append(memory.get(pointers["g"], arrays["g"]))
        do(driver.cuGraphExecDestroy(graph))
    finally:
        memory.close()
    assert np.abs(results[0]).max() > 0
    np.testing.assert_array_equal(results[1], 2 * results[0])


@pytest.mark.parametrize("dtype", ["float16"])
def test_the_portable_ptx_loads_and_agrees(launcher: CudaLauncher, dtype: str) -> None:
    """PTX compiled by the driver gives the result of the cubin, up to the order of summation."""
    rng = np.random.default_rng(1)
    shape = OpShape(1, 1024, 1, 77, 8, 40)
    arrays = {
        "q": to_bits(rng.standard_normal((1, 1024, 320)), dtype),
        "k": to_bits(rng.standard_normal((1, 1, 77, 320)), dtype),
        "v": to_bits(rng.standard_normal((1, 1, 77, 320)), dtype),
        "weights": np.ones((1, 1), np.float32),
        "out": np.zeros((1, 1024, 320), np.uint16),
    }
    memory = Memory()
    try:
        pointers = {name: memory.put(array) for name, array in arrays.items()}
        results = []
        for capability in (launcher.capability, (launcher.capability[0], 99)):
            library = EnergyAttention(KernelLibrary(_Pretending(launcher, capability)))
            library.bind("attention", dtype, shape, pointers)(memory.stream)
            results.append(from_bits(memory.get(pointers["out"], arrays["out"]), dtype))
    finally:
        memory.close()
    assert np.abs(results[0]).max() > 0
    np.testing.assert_allclose(results[0], results[1], rtol=2.0**-9, atol=2.0**-12)


class _Pretending:
    """A launcher that reports another compute capability."""

    def __init__(self, launcher: CudaLauncher, capability: tuple[int, int]) -> None:
        self.capability = capability
        self.load, self.launch = launcher.load, launcher.launch
