"""The GPU kernels in Triton's interpreter, with the launches of a GPU. Runs in a separate process."""

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def interpret() -> None:
    """Select the interpreter for this process, before Triton is imported."""
    os.environ["TRITON_INTERPRET"] = "1"


def run(variant: str, dtype: str, heads: int, case: dict[str, Array], capability: tuple[int, int]) -> dict[str, Array]:
    """Outputs of a variant as float32. Scratch and outputs start as NaN: what is read must have been written.

    Call it in a process that called `interpret`.
    """
    assert os.environ.get("TRITON_INTERPRET") == "1"
    import torch

    from ebca.plugins.energy_attention import guided_kernels, kernels
    from ebca.plugins.energy_attention.contract import signature
    from ebca.plugins.energy_attention.launches import OpShape, launches
    from ebca.plugins.kernels.binaries import KernelSet

    _multiply_bfloat16_as_float32()
    B, N, channels = case["q"].shape
    _, S, T, _ = case["k"].shape
    G = case["bias"].shape[2]
    shape = OpShape(B, N, S, T, heads, channels // heads, G)
    planned = launches(KernelSet.load(), variant, capability, dtype, shape)
    storage = getattr(torch, dtype)
    sizes = {"batch": B, "positions": N, "contexts": S, "tokens": T, "groups": G}
    tensors: dict[str, Any] = {}
    for name, spec in signature(variant, heads, channels // heads).inputs.items():
        value = torch.from_numpy(np.ascontiguousarray(case[name], dtype=spec.dtype))
        tensors[name] = value.to(storage) if name in ("q", "k", "v") else value
    for name, spec in signature(variant, heads, channels // heads).outputs.items():
        shape = [sizes.get(str(dim), dim) for dim in spec.shape]
        tensors[name] = torch.full(shape, torch.nan, dtype=storage if name == "out" else torch.float32)
    scratch = torch.full((planned.scratch_bytes + 1,), -1, dtype=torch.uint8)  # all bits one is NaN in every format
    for name, offset in planned.scratch.items():
        kind = storage if name == "partial" else torch.float32
        ends = [*sorted(planned.scratch.values()), planned.scratch_bytes]
        tensors[name] = scratch[offset : ends[ends.index(offset) + 1]].view(kind)
    nothing = torch.zeros(1)
    for launch in planned.launches:
        own = kernels if hasattr(kernels, launch.binary.kernel) else guided_kernels
        function = getattr(own, launch.binary.kernel)
        arguments = {
            name: tensors[value] if isinstance(value, str) else nothing if name.endswith("_ptr") else value
            for name, value in launch.values.items()
            if name in function.arg_names
        }
        function[launch.grid](**arguments, **launch.binary.constants)
    return {name: tensors[name].float().numpy() for name in signature(variant, heads, 1).outputs}


def _multiply_bfloat16_as_float32() -> None:
    """Triton's interpreter (3.9) multiplies the raw bits of bfloat16 in `tl.dot`."""
    import triton.language as tl
    from triton.runtime import interpreter

    def widen(x: Any) -> Any:
        if x.dtype.scalar != tl.bfloat16 or x.data.dtype != np.uint16:
            return x
        return interpreter.TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    builder = interpreter.InterpreterBuilder
    plain = builder.create_dot
    if getattr(plain, "widened", False):
        return

    def create_dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        return plain(self, widen(a), widen(b), d, *rest)

    create_dot.widened = True  # type: ignore[attr-defined]
    builder.create_dot = create_dot
