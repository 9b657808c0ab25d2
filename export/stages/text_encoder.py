"""The CLIP text encoder, or both of Stable Diffusion XL: the output that the UNet reads, and any other one for clip
skip."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from ebca.engines.contract.accuracy import relative_l2
from ebca.engines.contract.manifest import Component, TextEncoderSpec
from ebca.export.graph.modules import (
    TextEncoder,
    TextEncoderLayers,
    TextEncoders,
    TextEncodersLayers,
    text_encoder_graph,
    text_encoder_layers_graph,
    text_encoders_graph,
    text_encoders_layers_graph,
)
from ebca.export.parity import open_graph
from ebca.export.stages import component, traces
from ebca.export.stages.component import ComponentJob
from ebca.export.stages.context import Context, StageResult
from ebca.export.weights import stored_bytes

NAME = "text_encoder"
# Its weights are those of the other.
NAME_OF_LAYERS = "text_encoder_layers"

_IDS = ("input_ids", "input_ids_2")


def export(context: Context) -> StageResult:
    """Write the text encoder, if the checkpoint has one; both of them as one component, if it has two."""
    checkpoint = context.checkpoint
    if checkpoint.text_encoder is None:
        return StageResult()
    made = (
        _one(checkpoint.text_encoder)
        if checkpoint.text_encoder_2 is None
        else _two(checkpoint.text_encoder, checkpoint.text_encoder_2)
    )
    # Its result conditions every step, and it takes a fraction of a step: no engine may lower its precision.
    last = ComponentJob(
        NAME,
        NAME,
        "text encoder",
        stored_bytes((p for model in made.models for p in model.parameters()), context.options),
        partial(made.graph, *made.models, made.length, traces.keeper(context, NAME)),
        partial(_error, made, made.module, (None,)),
        computes_half=context.options.computes_half,
        float32_only=True,
    )
    layers = ComponentJob(
        NAME_OF_LAYERS,
        NAME_OF_LAYERS,
        "layers of the text encoder",
        0,
        partial(made.layers_graph, *made.models, made.length, traces.keeper(context, NAME_OF_LAYERS)),
        # What chooses among them is one lookup, so the ends and one in between tell as much as all.
        partial(_error, made, made.layers_module, sorted({0, made.layers // 2, made.layers - 1})),
        computes_half=context.options.computes_half,
        float32_only=True,
        weights_of=NAME,
    )
    spec = TextEncoderSpec(
        NAME, made.length, sum(made.widths), made.layers, NAME_OF_LAYERS, made.pooled_size, made.first_width
    )
    return component.write_all(context, [last, layers]).joined(StageResult(sections={"text_encoder": spec}))


@dataclass(frozen=True)
class _Encoders:
    """The text encoders of one checkpoint, in the form in which they become a component.

    `layers` counts those that clip skip may choose from. `graph` and `layers_graph` take the models, their length, and
    what keeps the trace.
    """

    models: Sequence[CLIPTextModel | CLIPTextModelWithProjection]
    module: nn.Module
    layers_module: nn.Module
    graph: Callable[..., ir.Graph]
    layers_graph: Callable[..., ir.Graph]
    layers: int
    outputs: tuple[str, ...]
    pooled_size: int | None = None

    @property
    def length(self) -> int:
        return int(self.models[0].config.max_position_embeddings)

    @property
    def widths(self) -> list[int]:
        return [int(model.config.hidden_size) for model in self.models]

    @property
    def first_width(self) -> int | None:
        """That of the first encoder, if it is not the only one."""
        return self.widths[0] if len(self.models) > 1 else None


def _one(model: CLIPTextModel) -> _Encoders:
    return _Encoders(
        (model,),
        TextEncoder(model),
        TextEncoderLayers(model),
        text_encoder_graph,
        text_encoder_layers_graph,
        int(model.config.num_hidden_layers),
        ("hidden_states",),
    )


def _two(first: CLIPTextModel, second: CLIPTextModelWithProjection) -> _Encoders:
    return _Encoders(
        (first, second),
        TextEncoders(first, second),
        TextEncodersLayers(first, second),
        text_encoders_graph,
        text_encoders_layers_graph,
        # The UNet never reads the last one.
        min(int(model.config.num_hidden_layers) for model in (first, second)) - 1,
        ("hidden_states", "pooled"),
        int(second.config.projection_dim),
    )


def _error(made: _Encoders, module: nn.Module, skips: Sequence[int | None], written: Component, folder: Path) -> float:
    """The largest error of an output over these layers; None stands for a module that has no choice of layers."""
    run = open_graph(folder / written.graph_for("onnxruntime"))
    rng = np.random.default_rng(0)
    feeds: dict[str, Any] = {
        name: rng.integers(0, model.config.vocab_size, (2, made.length)).astype(np.int64)
        for name, model in zip(_IDS, made.models, strict=False)
    }
    for ids, model in zip(feeds.values(), made.models, strict=True):
        # The pooled embedding is that of the first one.
        ids[0, 5], ids[1, -1] = model.config.eos_token_id, model.config.eos_token_id
    errors = []
    for skip in skips:
        more = {} if skip is None else {"skip": np.array([skip], np.int64)}
        with torch.no_grad():
            expected = module(*(torch.from_numpy(value) for value in (feeds | more).values()))
        result = run(feeds | more)
        tensors = expected if isinstance(expected, tuple) else (expected,)
        errors += [relative_l2(result[n], tensor.numpy()) for n, tensor in zip(made.outputs, tensors, strict=True)]
    return max(errors)
