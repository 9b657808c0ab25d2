"""Does the engine compute what PyTorch computes? Measured while components are written, kept in the manifest.

Each segment gets PyTorch's own op results at its input and is compared at its q, k, v (the last one at the noise). This
is its error alone, not that of the layers above. The same segments then run as a chain with the exported op, which
gives the error of the full UNet. PyTorch computes in float32 on the CPU, with energy steps on, two contexts, latents
that are not square. Graphs that compute in float16 run in the form that rounds as they do
(`ebca.export.graph.emulate`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import onnxruntime as ort
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from ebca.engines.contract import dims
from ebca.engines.contract.accuracy import LIMITS, relative_l2
from ebca.engines.contract.dims import Dim
from ebca.engines.contract.entries import ADDED_INPUTS
from ebca.engines.contract.manifest import Component
from ebca.errors import ExportError
from ebca.export.graph.op_node import OUTPUTS
from ebca.export.graph.segments import OpCall, Segment
from ebca.export.graph.torch_op import TorchEnergyAttention
from ebca.export.graph.trace import (
    Layer,
    added_conditions,
    context_width,
    energy_unet,
    input_names,
    layers_of,
    native_side,
    pooled_width,
)
from ebca.plugins.energy_attention import signature, tie_matrix

LIMIT, HALF_LIMIT = LIMITS["fp32"], LIMITS["fp16"]

_ROWS, _CONTEXTS, _TOKENS = 2, 2, 77
_TIMESTEP = 500.0
# Sizes whose sinusoids are wrong if they are rounded to float16 (above 2048) or bfloat16 (above 256).
_TIME_IDS = ((1024, 1001, 0, 33, 1024, 768), (2731, 4095, 129, 0, 896, 1152))
# Larger latents tell no more and take longer.
_LARGEST_SIDE = 32

_ONNXRUNTIME_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}

Feeds = Mapping[str, np.ndarray]


_REPORT = "the engine is not written. Please report the model and the versions of torch, onnx and onnxruntime"


def check(name: str, error: float, limit: float = LIMIT, overflow: str | None = None) -> float:
    """Raise ExportError if `error` is above the limit or not a number; else return it.

    Args:
        name: of what is compared.
        error: to check.
        limit: of the error.
        overflow: what to do if it is not finite; None: nothing is known.
    """
    if not error <= limit:
        remedy = _REPORT if overflow is None or np.isfinite(error) else overflow
        raise ExportError(f"{name} differs from PyTorch by {error:.1e} (relative L2, limit {limit:.0e})", remedy)
    return error


def open_graph(path: Path) -> Callable[[Feeds], dict[str, np.ndarray]]:
    """An ONNX file as a function, run with ONNX Runtime on the CPU; floats are cast to the dtypes of its inputs."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # For one or two runs, weights that are packed, or widened ahead, are not worth the memory of another copy.
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    # Results that are kept would keep the arena of their session, 6 GB in all for Stable Diffusion XL.
    options.enable_cpu_mem_arena = False
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    dtypes = {i.name: _ONNXRUNTIME_DTYPES[i.type] for i in session.get_inputs()}
    names = [o.name for o in session.get_outputs()]

    def run(feeds: Feeds) -> dict[str, np.ndarray]:
        inputs = {n: np.asarray(a, dtypes[n]) for n, a in feeds.items() if n in dtypes}
        return dict(zip(names, session.run(names, inputs), strict=True))

    return run


def run_graph(path: Path, feeds: Feeds) -> dict[str, np.ndarray]:
    """Run an ONNX file once, see `open_graph`."""
    return open_graph(path)(feeds)


def run_component(component: Component, folder: Path, feeds: Feeds) -> dict[str, np.ndarray]:
    """Run a written component once, in its form for ONNX Runtime on the CPU."""
    return run_graph(folder / component.graph_for("onnxruntime"), feeds)


@dataclass(frozen=True)
class UNetReference:
    """One UNet call in PyTorch: its inputs, its controls, and every tensor that an export is compared with.

    Attributes:
        inputs: those of the UNet, and the residuals of ControlNets if it takes any.
        control: what the op reads beside q, k and v.
        expected: noise, contexts_out, and each layer's q, k, v, out, g; names as in a split.
        sizes: of the call, in the names of `ebca.engines.contract.dims`.
    """

    inputs: Feeds
    control: Feeds
    expected: Feeds
    layers: list[Layer]
    sizes: dict[str, int]

    @classmethod
    def of(cls, unet: UNet2DConditionModel, controls: Mapping[str, Sequence[Dim]] | None = None) -> Self:
        """Run the UNet with energy updates on random inputs, always the same.

        Args:
            unet: the UNet.
            controls: shapes of the residuals that ControlNets add, by name, in the UNet's order.
        """
        side = min(native_side(unet), _LARGEST_SIDE)
        sizes = {
            "batch": _ROWS, "contexts": _CONTEXTS, "tokens": _TOKENS, "height": side, "width": max(side * 3 // 4, 1),
        }  # fmt: skip
        rng = np.random.default_rng(0)
        inputs = {
            "sample": rng.standard_normal((_ROWS, unet.config.in_channels, side, sizes["width"]), np.float32),
            "timestep": np.full(_ROWS, _TIMESTEP, np.float32),
            "contexts": rng.standard_normal((_ROWS, _CONTEXTS, _TOKENS, context_width(unet)), np.float32),
        }
        if (width := pooled_width(unet)) is not None:
            values = rng.standard_normal((_ROWS, width), np.float32), np.array(_TIME_IDS, np.float32)
            inputs |= dict(zip(ADDED_INPUTS, values, strict=True))
        control = {
            "weights": np.array([[1.0, -0.4], [1.0, 0.7]], np.float32),
            "gamma_attn": rng.uniform(0.005, 0.02, (_ROWS, _CONTEXTS, _TOKENS)).astype(np.float32),
            "gamma_norm": rng.uniform(0.005, 0.02, (_ROWS, _CONTEXTS)).astype(np.float32),
            "norm_factor": np.array(1.0, np.float32),
            "tie": tie_matrix(_ROWS, _CONTEXTS, 0),
        }
        layers = layers_of(unet)
        tensors = {name: torch.from_numpy(control[name]) for name in ("weights", "gamma_attn", "gamma_norm")}
        op = TorchEnergyAttention([layer.heads for layer in layers], **tensors, keep=True)
        residuals = {
            name: rng.standard_normal(dims.shape(shape, sizes), np.float32) for name, shape in (controls or {}).items()
        }
        inputs |= residuals
        with (
            energy_unet(unet, op, [torch.from_numpy(one) for one in residuals.values()]) as module,
            torch.no_grad(),
        ):
            results = module(*(torch.from_numpy(inputs[name]) for name in input_names(unet)))
        tensors = {**op.record, **dict(zip(OUTPUTS, results, strict=True))}
        return cls(inputs, control, {name: tensor.numpy() for name, tensor in tensors.items()}, layers, sizes)

    def full_unet_error(self, unet: UNet2DConditionModel, component: Component, folder: Path) -> float:
        """Error of the full UNet's noise against PyTorch's, with the first context."""
        sample, timestep, contexts, *added = (torch.from_numpy(self.inputs[name]) for name in input_names(unet))
        more = added_conditions(added)
        with torch.no_grad():
            expected = unet(sample, timestep, contexts[:, 0], added_cond_kwargs=more, return_dict=False)[0].numpy()
        return relative_l2(run_component(component, folder, self.inputs)["noise"], expected)

    def full_unet_updates_error(self, component: Component, folder: Path) -> float:
        """Error of the full UNet with updates: the worse of its noise and its contexts after the last layer."""
        result = run_component(component, folder, {**self.inputs, **self.control})
        return max(relative_l2(result[name], self.expected[name]) for name in OUTPUTS)


@dataclass
class SegmentParity:
    """Runs segments one after the other and compares each with the reference.

    Attributes:
        limit: of the error of each segment, and of all of them as a chain.
        segments: error by segment, of those compared so far.
    """

    reference: UNetReference
    limit: float
    segments: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # What segments read: PyTorch's results of the ops before, or the exported ops' own.
        self._isolated: dict[str, np.ndarray] = dict(self.reference.inputs)
        self._chained: dict[str, np.ndarray] = dict(self.reference.inputs)

    def run(self, segment: Segment, component: Component, folder: Path, ops: Mapping[int, Path]) -> None:
        """Run a segment and the ops after it; record its largest error over the tensors that PyTorch has too.

        The time embedding has no q, k, v of its own: its error shows in every segment that reads it.

        Args:
            component: the written segment; its form for ONNX Runtime runs.
            ops: per layer, the exported op's "update" variant.

        Raises:
            ExportError: the error is above the limit.
        """
        expected = self.reference.expected
        run = open_graph(folder / component.graph_for("onnxruntime"))
        result = run(self._isolated)
        self._chained |= run(self._chained)
        errors = [relative_l2(result[n], expected[n]) for n in segment.outputs if n in expected]
        self._isolated |= result
        for call in segment.ops:
            self._isolated |= {n: expected[n] for n in call.outputs}
            self._chained |= self._op(call, ops[call.layer])
        self._drop_op_inputs()
        if errors:
            self.segments[segment.name] = check(segment.name, max(errors), self.limit)

    def chain(self) -> dict[str, float]:
        """Error of all segments and ops as a chain: of the noise, and of the contexts after the last layer.

        Raises:
            ExportError: one is above the limit.
        """
        errors = {n: relative_l2(self._chained[n], self.reference.expected[n]) for n in OUTPUTS}
        return {name: check(f"the UNet's {name}", error, self.limit) for name, error in errors.items()}

    def _op(self, call: OpCall, path: Path) -> dict[str, np.ndarray]:
        layer = self.reference.layers[call.layer]
        names = signature("update", layer.heads, layer.head_dim)
        qkv = zip(("q", "k", "v"), (self._chained[n] for n in call.inputs), strict=True)
        feeds = {**dict(qkv), **self.reference.control}
        result = run_graph(path, {n: feeds[n] for n in names.inputs})
        return {call.outputs[0]: result["out"], call.outputs[1]: result["g"]}

    def _drop_op_inputs(self) -> None:
        """Only the ops of this segment read q, k and v."""
        for values in (self._isolated, self._chained):
            for name in [n for n in values if n.endswith((".q", ".k", ".v"))]:
                del values[name]


def module_error(module: nn.Module, component: Component, folder: Path, example: np.ndarray) -> float:
    """Largest error over the outputs of a single-input graph against its module."""
    with torch.no_grad():
        expected = module(torch.from_numpy(example))
    outputs = expected if isinstance(expected, tuple) else (expected,)
    result = run_component(component, folder, {next(iter(component.inputs)): example})
    return max(relative_l2(result[n], e.numpy()) for n, e in zip(component.outputs, outputs, strict=True))
