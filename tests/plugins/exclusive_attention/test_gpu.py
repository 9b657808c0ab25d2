"""The kernel of exclusive attention on a GPU against numpy. Skipped without a GPU."""

from typing import Any

import numpy as np
import pytest

from ebca.plugins.exclusive_attention import TENSORS, check_strengths, tables
from ebca.plugins.exclusive_attention.launches import KERNEL, launch
from ebca.plugins.exclusive_attention.windows import exclude
from ebca.plugins.kernels.launch import CudaLauncher, KernelLibrary

pytestmark = pytest.mark.gpu


def case(seed: int, h: int, w: int, subjects: list[int], layers: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    rows, groups = len(subjects), max(2, *subjects)
    near, outside = tables(h, w)
    fixed = (rng.random((rows, groups)) < 0.2) & (np.arange(groups) < np.reshape(subjects, (-1, 1)))
    return {
        "step": np.zeros(1, np.int32),
        "subjects": np.array(subjects, np.int32),
        "strengths": check_strengths([1.0, 0.5, 0.25], [1.5, 0.5, 0.125]),
        "fixed": fixed.astype(np.int32),
        "beyond": rng.random((rows, groups, h * w), np.float32),
        "near": near,
        "outside": outside,
        "maps": rng.random((layers, rows, groups, h * w), np.float32) ** 3,
        "averages": np.full((rows, groups, h * w), np.nan, np.float32),
        "bias": np.full((rows, 1, groups, h * w), np.nan, np.float32),
    }


@pytest.mark.parametrize(
    ("h", "w", "subjects", "layers"),
    [(8, 8, [0, 3, 2, 1], 2), (16, 16, [0, 0, 4, 16], 3), (24, 16, [5], 3), (32, 32, [2, 31], 1), (1, 2, [3], 1)],
)
def test_the_kernel_equals_numpy(launcher: CudaLauncher, h: int, w: int, subjects: list[int], layers: int) -> None:
    """Averages to the bit. Bias: the compiler may fuse a product and a sum, so to the last bits of lambda + mu."""
    from cuda.bindings import driver

    def do(answer: tuple[Any, ...]) -> Any:
        status, *values = answer
        assert status == driver.CUresult.CUDA_SUCCESS, status
        return values[0] if values else None

    expected = case(1, h, w, subjects, layers)
    do(driver.cuCtxSetCurrent(do(driver.cuDevicePrimaryCtxRetain(do(driver.cuDeviceGet(0))))))
    stream = int(do(driver.cuStreamCreate(1)))
    pointers = {}
    for name, array in expected.items():
        pointers[name] = int(do(driver.cuMemAlloc(array.nbytes)))
        do(driver.cuMemcpyHtoD(pointers[name], array.ctypes.data, array.nbytes))
    planned = launch({name: array.shape for name, array in expected.items()})
    bound = KernelLibrary(launcher).bind_kernel(KERNEL, planned.blocks, planned.values, pointers)
    made = {name: np.empty_like(expected[name]) for name in ("averages", "bias")}
    for step in range(3):
        expected["step"][0] = step
        do(driver.cuMemcpyHtoD(pointers["step"], expected["step"].ctypes.data, 4))
        bound(stream)
        do(driver.cuStreamSynchronize(stream))
        exclude(expected)
        for name, array in made.items():
            do(driver.cuMemcpyDtoH(array.ctypes.data, pointers[name], array.nbytes))
        np.testing.assert_array_equal(made["averages"], expected["averages"])
        np.testing.assert_allclose(made["bias"], expected["bias"], rtol=0, atol=1e-6)
    for pointer in pointers.values():
        do(driver.cuMemFree(pointer))
    do(driver.cuStreamDestroy(stream))
    assert set(pointers) == set(TENSORS)
