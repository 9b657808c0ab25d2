"""Trace the full UNet as one ONNX graph, with a custom node on each cross-attention layer.

The UNet's code is not rewritten, so one trace serves every architecture that diffusers has: its attention processors
are the only hook. Every `attn2` gets a processor that emits one `ebca::EnergyCrossAttention` node and adds `g Wk` to
the contexts that the next layer reads; every `attn1` emits one standard `Attention` node.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import onnx_ir as ir
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from ebca.export.graph.op_node import OP_DOMAIN, OP_TYPE, OPSET, OUTPUTS
from ebca.export.quiet import quiet


@dataclass(frozen=True)
class Layer:
    """One cross-attention layer, in order of execution."""

    name: str
    heads: int
    head_dim: int


class AttentionOp(Protocol):
    """Cross attention between the cuts: (layer, q [B,N,C], k [B,S,T,C], v [B,S,T,C]) -> (out [B,N,C], g [B,S,T,C])."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]: ...


class _Cascade:
    """The contexts, handed from layer to layer."""

    def __init__(self, op: AttentionOp) -> None:
        self.op = op
        self.contexts: Tensor | None = None
        self.layer = 0

    def start(self, contexts: Tensor) -> None:
        self.contexts, self.layer = contexts, 0

    def finish(self) -> Tensor:
        contexts, self.contexts = self.contexts, None
        assert contexts is not None
        return contexts


class _CrossAttention:
    """Processor of an `attn2`: project, call the op, update the contexts."""

    def __init__(self, cascade: _Cascade) -> None:
        self.cascade = cascade

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        contexts = self.cascade.contexts
        assert contexts is not None
        q, k, v = attn.to_q(hidden_states), attn.to_k(contexts), attn.to_v(contexts)
        out, g = self.cascade.op(self.cascade.layer, q, k, v)
        self.cascade.layer += 1
        self.cascade.contexts = contexts + torch.matmul(g, attn.to_k.weight)
        return attn.to_out[0](out)


class _SelfAttention:
    """Processor of an `attn1`: one standard ONNX Attention node instead of transposes around a 4-D one."""

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        q, k, v = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        out = torch.onnx.ops.attention(q, k, v, q_num_heads=attn.heads, kv_num_heads=attn.heads, scale=attn.scale)[0]
        return attn.to_out[0](out)


class EnergyUNet(nn.Module):
    """A diffusers UNet whose cross-attention runs `op`: (sample, timestep, contexts) -> (noise, contexts)."""

    def __init__(self, unet: UNet2DConditionModel, op: AttentionOp) -> None:
        super().__init__()
        self.unet = unet
        self.cascade = _Cascade(op)

    def forward(self, sample: Tensor, timestep: Tensor, contexts: Tensor) -> tuple[Tensor, Tensor]:
        self.cascade.start(contexts)
        noise = self.unet(sample, timestep, contexts[:, 0], return_dict=False)[0]
        return noise, self.cascade.finish()


@contextmanager
def energy_unet(unet: UNet2DConditionModel, op: AttentionOp, *, tracing: bool = False) -> Iterator[EnergyUNet]:
    """`unet` with its cross-attention handed to `op`; its own processors are restored at the end of the block."""
    original = unet.attn_processors
    upsamplers = unet.num_upsamplers
    module = EnergyUNet(unet, op)
    cross = _CrossAttention(module.cascade)
    processors: dict[str, Any] = {
        name: cross if ".attn2." in name else (_SelfAttention() if tracing else processor)
        for name, processor in original.items()
    }
    unet.set_attn_processor(processors)
    if tracing:
        # diffusers passes the skip's size to an upsampler only if the latents are not a multiple of
        # 2^num_upsamplers. Passing it is right for every latent size, so the trace must always take that branch.
        unet.num_upsamplers = 40
    try:
        yield module
    finally:
        unet.num_upsamplers = upsamplers
        unet.set_attn_processor(original)


def layers_of(unet: UNet2DConditionModel) -> list[Layer]:
    """The cross-attention layers in order of execution (down, mid, up)."""
    modules = dict(unet.named_modules())
    names = [name.removesuffix(".processor") for name in unet.attn_processors if ".attn2." in name]
    order = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
    names.sort(key=lambda name: order[name.split(".")[0]])
    return [Layer(n, modules[n].heads, modules[n].inner_dim // modules[n].heads) for n in names]


def context_width(unet: UNet2DConditionModel) -> int:
    """The width D of the text context [B, T, D]. The configuration may say it once, or for each block."""
    modules = dict(unet.named_modules())
    return int(modules[layers_of(unet)[0].name].to_k.in_features)


def native_side(unet: UNet2DConditionModel) -> int:
    """The side of the latents that the UNet is made for, which the configuration may say for height and width."""
    value = unet.config.sample_size
    return int(value[0] if isinstance(value, list | tuple) else value)


def trace(unet: UNet2DConditionModel) -> ir.Model:
    """Export the full UNet; no weights are copied.

    Returns:
        A graph with inputs sample [batch,C,height,width], timestep [batch], contexts [batch,contexts,tokens,D] and
        outputs noise, contexts_out. Dimensions are torch's symbols; see `ebca.export.graph.symbols`.
    """
    config = unet.config
    with energy_unet(unet, _symbolic_op(layers_of(unet)), tracing=True) as module, torch.no_grad(), quiet():
        # No size may be 0 or 1, and no two may be equal: torch would specialise or merge them.
        size = 2 ** len(config.block_out_channels) + 1
        example = (
            torch.zeros(2, config.in_channels, size, size + 2),
            torch.zeros(2),
            torch.zeros(2, 3, 7, context_width(unet)),
        )
        dynamic = torch.export.Dim.DYNAMIC
        shapes = ({0: dynamic, 2: dynamic, 3: dynamic}, {0: dynamic}, {0: dynamic, 1: dynamic, 2: dynamic})
        program = torch.export.export(module, example, dynamic_shapes=shapes, strict=False)
        exported = torch.onnx.export(program, dynamo=True, opset_version=OPSET, optimize=True, verbose=False)
    assert exported is not None
    model = exported.model
    for value, name in zip(model.graph.outputs, OUTPUTS, strict=True):
        value.name = name
    return model


def _symbolic_op(layers: list[Layer]) -> AttentionOp:
    def op(layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        out, g = torch.onnx.ops.symbolic_multi_out(
            f"{OP_DOMAIN}::{OP_TYPE}",
            (q, k, v),
            {"layer": layer, "num_heads": layers[layer].heads},
            dtypes=(q.dtype, k.dtype),
            shapes=(q.shape, k.shape),
            version=1,
        )
        return out, g

    return op
