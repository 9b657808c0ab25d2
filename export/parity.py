"""Does the engine compute what PyTorch computes? Measured while a segment is exported, kept in the manifest.

Each segment gets PyTorch's own op results at its input and is compared at its q, k, v (the last one at the noise):
its error alone, not that of the layers above. The same segments then run as a chain with the exported op: the error
of the whole UNet. PyTorch computes in float32 on the CPU, with energy steps on, two contexts, latents that are not
square. Graphs that compute in float16 run in the form that rounds as they do (`ebca.export.half.emulate`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from ebca.engines.contract.accuracy import LIMITS, relative_l2
from ebca.engines.contract.manifest import Component
from ebca.errors import ExportError
from ebca.export.split import OpCall, Segment
from ebca.export.torch_op import TorchEnergyAttention
from ebca.export.trace import Layer, energy_unet, layers_of
from ebca.plugins.energy_attention import signature, tie_matrix

LIMIT, HALF_LIMIT = LIMITS["fp32"], LIMITS["fp16"]

_ROWS, _CONTEXTS, _TOKENS = 2, 2, 77

_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}


def check(name: str, error: float, limit: float = LIMIT) -> float:
    """Raise ExportError where `error` is above the limit, or not a number."""
    if not error <= limit:
        raise ExportError(
            f"{name} differs from PyTorch by {error:.1e} (relative L2, limit {limit:.0e})",
            "the engine is not written. Please report the model and the versions of torch, onnx and onnxruntime",
        )
    return error


Feeds = Mapping[str, np.ndarray]


def open_graph(path: Path) -> Callable[[Feeds], dict[str, np.ndarray]]:
    """An ONNX file as a function, run with ONNX Runtime on the CPU; floats are cast to what its inputs are."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # For one or two runs, packed weights are not worth the memory of another copy.
    options.add_session_config_entry("session.disable_prepacking", "1")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    dtypes = {i.name: _DTYPES[i.type] for i in session.get_inputs()}
    names = [o.name for o in session.get_outputs()]

    def run(feeds: Feeds) -> dict[str, np.ndarray]:
        inputs = {n: np.asarray(a, dtypes[n]) for n, a in feeds.items() if n in dtypes}
        return dict(zip(names, session.run(names, inputs), strict=True))

    return run


def run_graph(path: Path, feeds: Feeds) -> dict[str, np.ndarray]:
    """Run an ONNX file once, see `open_graph`."""
    return open_graph(path)(feeds)


@dataclass
class UNetParity:
    """PyTorch's answer to one UNet call, and the running comparison of segments with it."""

    expected: dict[str, np.ndarray]
    isolated: dict[str, np.ndarray]
    chained: dict[str, np.ndarray]
    control: dict[str, np.ndarray]
    layers: list[Layer]
    sizes: dict[str, int]
    limit: float
    segments: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, unet: UNet2DConditionModel, limit: float = LIMIT) -> "UNetParity":
        """Run the reference. Segments and the whole are checked against `limit`."""
        config = unet.config
        side = min(int(config.sample_size), 32)
        sizes = {
            "batch": _ROWS, "contexts": _CONTEXTS, "tokens": _TOKENS, "height": side, "width": max(side * 3 // 4, 1),
        }  # fmt: skip
        rng = np.random.default_rng(0)

        def normal(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape, np.float32)

        inputs = {
            "sample": normal(_ROWS, config.in_channels, side, sizes["width"]),
            "timestep": np.full(_ROWS, 500.0, np.float32),
            "contexts": normal(_ROWS, _CONTEXTS, _TOKENS, config.cross_attention_dim),
        }
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
        with energy_unet(unet, op) as module, torch.no_grad():
            noise, contexts = module(*(torch.from_numpy(inputs[n]) for n in ("sample", "timestep", "contexts")))
        expected = {name: tensor.numpy() for name, tensor in op.record.items()}
        expected |= {"noise": noise.numpy(), "contexts_out": contexts.numpy()}
        return cls(expected, dict(inputs), dict(inputs), control, layers, sizes, limit)

    def segment(self, segment: Segment, component: Component, folder: Path, ops: Mapping[int, Path]) -> None:
        """Run a segment and the ops after it; note the worst error of what PyTorch also has.

        The time embedding has no q, k, v of its own: its error shows in every segment that reads it.

        Args:
            component: the written segment; its form for ONNX Runtime runs.
            ops: per layer, the exported op's "update" variant.
        """
        run = open_graph(folder / component.graph_for("onnxruntime"))
        result = run(self.isolated)
        self.chained |= run(self.chained)
        errors = [relative_l2(result[n], self.expected[n]) for n in segment.outputs if n in self.expected]
        self.isolated |= result
        for call in segment.ops:
            self.isolated |= {n: self.expected[n] for n in call.outputs}
            self.chained |= self._op(call, ops[call.layer])
        self._forget()
        if errors:
            self.segments[segment.name] = check(segment.name, max(errors), self.limit)

    def whole(self) -> dict[str, float]:
        """Error of the chain of all segments and ops: the noise, and the contexts after the last layer."""
        errors = {n: relative_l2(self.chained[n], self.expected[n]) for n in ("noise", "contexts_out")}
        return {name: check(f"the UNet's {name}", error, self.limit) for name, error in errors.items()}

    def vanilla(self, unet: UNet2DConditionModel, component: Component, folder: Path) -> float:
        """Error of the uncut UNet's noise against PyTorch's, with the first context."""
        feeds = {n: self.isolated[n] for n in ("sample", "timestep", "contexts")}
        sample, timestep, contexts = (torch.from_numpy(feeds[n]) for n in feeds)
        with torch.no_grad():
            expected = unet(sample, timestep, contexts[:, 0], return_dict=False)[0].numpy()
        result = run_graph(folder / component.graph_for("onnxruntime"), feeds)
        return check("the uncut UNet", relative_l2(result["noise"], expected), self.limit)

    def one_piece(self, component: Component, folder: Path) -> float:
        """Error of the uncut UNet with updates: the worse of its noise and its contexts after the last layer."""
        feeds = {n: self.isolated[n] for n in ("sample", "timestep", "contexts")} | self.control
        result = run_graph(folder / component.graph_for("onnxruntime"), feeds)
        errors = [relative_l2(result[n], self.expected[n]) for n in ("noise", "contexts_out")]
        return check("the UNet in one piece", max(errors), self.limit)

    def _op(self, call: OpCall, path: Path) -> dict[str, np.ndarray]:
        layer = self.layers[call.layer]
        names = signature("update", layer.heads, layer.head_dim)
        feeds = dict(zip(("q", "k", "v"), (self.chained[n] for n in call.inputs), strict=True)) | self.control
        result = run_graph(path, {n: feeds[n] for n in names.inputs})
        return {call.outputs[0]: result["out"], call.outputs[1]: result["g"]}

    def _forget(self) -> None:
        for values in (self.isolated, self.chained):
            for name in [n for n in values if n.endswith((".q", ".k", ".v"))]:
                del values[name]


def module_parity(
    name: str, module: nn.Module, component: Component, folder: Path, example: np.ndarray, limit: float = LIMIT
) -> float:
    """Worst error over the outputs of a single-input graph against its module."""
    with torch.no_grad():
        expected = module(torch.from_numpy(example))
    outputs = expected if isinstance(expected, tuple) else (expected,)
    result = run_graph(folder / component.graph_for("onnxruntime"), {next(iter(component.inputs)): example})
    errors = [relative_l2(result[n], e.numpy()) for n, e in zip(component.outputs, outputs, strict=True)]
    return check(name, max(errors), limit)
