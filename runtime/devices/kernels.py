"""The kernels of this package on a GPU, bound to the device's stream."""

from typing import Any

import numpy as np

from ebca.engines.backends.protocol import Arrays, Call
from ebca.engines.contract.manifest import LayerSpec
from ebca.engines.machine.memory import address
from ebca.plugins.energy_attention import tensorrt_plugin
from ebca.plugins.energy_attention.launches import EnergyAttention, OpShape
from ebca.plugins.exclusive_attention import launches as exclusion
from ebca.plugins.exclusive_attention.launches import ExclusionLaunch
from ebca.plugins.kernels.binaries import DTYPES
from ebca.plugins.kernels.launch import KernelLibrary
from ebca.plugins.sampling import launches
from ebca.plugins.sampling.launches import SamplingLaunch
from ebca.runtime.devices.driver import CudaDriver


class CudaKernels:
    """See `ebca.runtime.devices.cuda.Kernels`. Binaries are loaded on first use."""

    def __init__(self, driver: CudaDriver) -> None:
        self._driver = driver
        self._library = KernelLibrary(driver)
        self._operator = EnergyAttention(self._library)

    def operator(self, variant: str, layer: LayerSpec, dtype: np.dtype[Any]) -> "OperatorRunner | None":
        if dtype.name not in DTYPES:
            return None
        return OperatorRunner(self._operator, self._driver.stream, variant, layer, dtype.name)

    def sampling(self, kernel: str, arrays: Arrays) -> Call:
        planned = launches.launch(kernel, {name: array.shape for name, array in arrays.items()})
        return self._bound(f"ebca_{kernel}", planned, arrays)

    def _bound(self, kernel: str, planned: SamplingLaunch | ExclusionLaunch, arrays: Arrays) -> Call:
        pointers = {name: address(arrays[name]) for name in planned.tensors}
        bound = self._library.bind_kernel(kernel, planned.blocks, planned.values, pointers)
        stream, keep = self._driver.stream, dict(arrays)

        def call(_keep: object = keep) -> None:
            bound(stream)

        return call

    def exclude(self, arrays: Arrays, layer_stride: int) -> Call:
        planned = exclusion.launch({name: array.shape for name, array in arrays.items()}, layer_stride)
        return self._bound(exclusion.KERNEL, planned, arrays)

    def register(self, trt: Any, registry: Any) -> object:
        return tensorrt_plugin.register(trt, registry, self._operator)


class OperatorRunner:
    """Energy cross attention of one variant and layer; see `ebca.engines.backends.protocol.Runner`."""

    def __init__(self, operator: EnergyAttention, stream: int, variant: str, layer: LayerSpec, dtype: str) -> None:
        self._operator = operator
        self._stream = stream
        self._variant = variant
        self._layer = layer
        self._dtype = dtype

    def workspace_bytes(self, inputs: Arrays, outputs: Arrays) -> int:
        return self._operator.launches(self._variant, self._dtype, self._shape(inputs)).scratch_bytes

    def bind(self, inputs: Arrays, outputs: Arrays, workspace: int = 0, once: bool = False) -> Call:
        pointers = {name: address(array) for name, array in (*inputs.items(), *outputs.items())}
        bound = self._operator.bind(self._variant, self._dtype, self._shape(inputs), pointers, workspace)
        stream, keep = self._stream, (dict(inputs), dict(outputs))

        def call(_keep: object = keep) -> None:
            bound(stream)

        return call

    def _shape(self, inputs: Arrays) -> OpShape:
        batch, positions, _ = inputs["q"].shape
        _, contexts, tokens, _ = inputs["k"].shape
        groups = inputs["bias"].shape[2] if "bias" in inputs else 0
        return OpShape(batch, positions, contexts, tokens, self._layer.heads, self._layer.head_dim, groups)
