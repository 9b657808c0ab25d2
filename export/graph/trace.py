"""Trace the full UNet as one ONNX graph, with a custom node on each cross-attention layer.

The UNet's code is not rewritten, so one trace serves every architecture that diffusers has: its attention processors
are the only hook. Every `attn2` gets a processor that emits one `ebca::EnergyCrossAttention` node and adds `g Wk` to
the contexts that the next layer reads; every `attn1` emits one standard `Attention` node. For ControlNets, the UNet
gets its residuals as diffusers defines them: one for each skip, and one for the middle block. The UNet of Stable
Diffusion XL takes two more inputs, `ADDED_INPUTS`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import onnx_ir as ir
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn

from ebca.engines.contract.entries import ADDED_INPUTS, TIME_IDS
from ebca.export.graph.exporting import exported
from ebca.export.graph.late_input import LateInput, bring_in
from ebca.export.graph.op_node import INPUTS, OP_DOMAIN, OP_TYPE, OUTPUTS


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


class StandardAttention:
    """Processor of an `attn1`, or of an `attn2` without updates: one standard ONNX Attention node instead of transposes
    around a 4-D one."""

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source)
        out = torch.onnx.ops.attention(q, k, v, q_num_heads=attn.heads, kv_num_heads=attn.heads, scale=attn.scale)[0]
        return attn.to_out[0](out)


class EnergyUNet(nn.Module):
    """A diffusers UNet whose cross-attention runs `op`: (sample, timestep, contexts) -> (noise, contexts).

    A UNet that takes `ADDED_INPUTS` gets them after the contexts: text_embeds [B,P] and time_ids [B,6].
    `residuals` are what it adds for ControlNets, in the order of `residual_names`; none: nothing.
    """

    def __init__(self, unet: UNet2DConditionModel, op: AttentionOp, residuals: Sequence[Any] = ()) -> None:
        super().__init__()
        self.unet = unet
        self.cascade = _Cascade(op)
        self.residuals = residuals

    def forward(self, sample: Tensor, timestep: Tensor, contexts: Tensor, *added: Tensor) -> tuple[Tensor, Tensor]:
        self.cascade.start(contexts)
        for one in added:
            # Rows of both are joined, so a trace must know that there are as many.
            torch._check(one.shape[0] == timestep.shape[0])
        *down, middle = self.residuals or (None,)
        noise = self.unet(
            sample,
            timestep,
            contexts[:, 0],
            added_cond_kwargs=added_conditions(added),
            down_block_additional_residuals=tuple(down) or None,
            mid_block_additional_residual=middle,
            return_dict=False,
        )[0]
        return noise, self.cascade.finish()


@contextmanager
def energy_unet(
    unet: UNet2DConditionModel, op: AttentionOp, residuals: Sequence[Any] = (), *, tracing: bool = False
) -> Iterator[EnergyUNet]:
    """`unet` with its cross-attention handed to `op`; its own processors are restored at the end of the block."""
    original = unet.attn_processors
    upsamplers = unet.num_upsamplers
    module = EnergyUNet(unet, op, residuals)
    cross = _CrossAttention(module.cascade)
    processors: dict[str, Any] = {
        name: cross if ".attn2." in name else (StandardAttention() if tracing else processor)
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


def layers_of(unet: UNet2DConditionModel | ControlNetModel) -> list[Layer]:
    """The cross-attention layers in order of execution (down, mid, up)."""
    modules = dict(unet.named_modules())
    names = [name.removesuffix(".processor") for name in unet.attn_processors if ".attn2." in name]
    order = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
    names.sort(key=lambda name: order[name.split(".")[0]])
    return [Layer(n, modules[n].heads, modules[n].inner_dim // modules[n].heads) for n in names]


def context_width(unet: UNet2DConditionModel | ControlNetModel) -> int:
    """The width D of the text context [B, T, D]. The configuration may say it once, or for each block."""
    modules = dict(unet.named_modules())
    return int(modules[layers_of(unet)[0].name].to_k.in_features)


def pooled_width(unet: UNet2DConditionModel) -> int | None:
    """The width P of the pooled embedding that a UNet of Stable Diffusion XL takes; None for another UNet."""
    config = unet.config
    if config.addition_embed_type != "text_time":
        return None
    return int(config.projection_class_embeddings_input_dim) - TIME_IDS * int(config.addition_time_embed_dim)


def input_names(unet: UNet2DConditionModel) -> tuple[str, ...]:
    """Names of the UNet's inputs, in order, without the residuals of ControlNets."""
    return INPUTS if pooled_width(unet) is None else (*INPUTS, *ADDED_INPUTS)


def added_conditions(added: Sequence[Tensor]) -> dict[str, Tensor] | None:
    """What diffusers' UNet takes as `added_cond_kwargs`, from the values of `ADDED_INPUTS`; None for none."""
    return dict(zip(ADDED_INPUTS, added, strict=True)) if added else None


def native_side(unet: UNet2DConditionModel) -> int:
    """The side of the latents that the UNet is made for, which the configuration may say for height and width."""
    value = unet.config.sample_size
    return int(value[0] if isinstance(value, list | tuple) else value)


def residual_names(unet: UNet2DConditionModel) -> tuple[str, ...]:
    """Names of what ControlNets add to this UNet: `control_down_00` and so on for its skips, in the order in which they
    are made, and `control_mid`."""
    skips = 1 + sum(len(block.resnets) + len(block.downsamplers or ()) for block in unet.down_blocks)
    return (*(f"control_down_{index:02}" for index in range(skips)), "control_mid")


def trace(unet: UNet2DConditionModel, *, controlled: bool = False) -> ir.Model:
    """Export the full UNet; no weights are copied.

    Args:
        unet: the UNet.
        controlled: with the residuals of ControlNets as further inputs.

    Returns:
        A graph with inputs sample [batch,C,height,width], timestep [batch], contexts [batch,contexts,tokens,D],
        text_embeds [batch,P] and time_ids [batch,6] if the UNet takes them, those of `residual_names` if `controlled`,
        and outputs noise, contexts_out. Dimensions are torch's symbols; see `ebca.export.graph.symbols`.
    """
    config = unet.config
    residuals = [LateInput(name) for name in residual_names(unet)] if controlled else []
    op = _symbolic_op(layers_of(unet))
    with energy_unet(unet, op, residuals, tracing=True) as module:
        size = 2 ** len(config.block_out_channels) + 1
        example = [
            torch.zeros(2, config.in_channels, size, size + 2),
            torch.zeros(2),
            torch.zeros(2, 3, 7, context_width(unet)),
        ]
        dynamic = torch.export.Dim.DYNAMIC
        shapes: list[Any] = [{0: dynamic, 2: dynamic, 3: dynamic}, {0: dynamic}, {0: dynamic, 1: dynamic, 2: dynamic}]
        if (width := pooled_width(unet)) is not None:
            example += [torch.zeros(2, width), torch.zeros(2, TIME_IDS)]
            # They are one argument of the module.
            shapes.append(({0: dynamic}, {0: dynamic}))
        model = exported(module, tuple(example), tuple(shapes))
    for value, name in zip(model.graph.inputs, input_names(unet), strict=True):
        value.name = name
    for value, name in zip(model.graph.outputs, OUTPUTS, strict=True):
        value.name = name
    bring_in(model)
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
