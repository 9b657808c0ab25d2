"""The CLIP text encoder: its last layer, and any other one for clip skip."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import CLIPTextModel

from ebca.engines.contract.accuracy import relative_l2
from ebca.engines.contract.manifest import Component, TextEncoderSpec
from ebca.export.graph.modules import TextEncoder, TextEncoderLayers, text_encoder_graph, text_encoder_layers_graph
from ebca.export.parity import open_graph
from ebca.export.stages import component, traces
from ebca.export.stages.component import ComponentJob, measure_module
from ebca.export.stages.context import Context, StageResult
from ebca.export.weights import stored_bytes

NAME = "text_encoder"
# Its weights are those of the other.
NAME_OF_LAYERS = "text_encoder_layers"


def export(context: Context) -> StageResult:
    """Write the text encoder, if the checkpoint has one."""
    model = context.checkpoint.text_encoder
    if model is None:
        return StageResult()
    length = int(model.config.max_position_embeddings)
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, (2, length)).astype(np.int64)
    # Its result conditions every step, and it takes a fraction of a step: no engine may lower its precision.
    last = ComponentJob(
        NAME,
        NAME,
        "text encoder",
        stored_bytes(model.parameters(), context.options),
        partial(text_encoder_graph, model, length, traces.keeper(context, NAME)),
        measure_module(TextEncoder(model), ids),
        computes_half=context.options.computes_half,
        float32_only=True,
    )
    layers = ComponentJob(
        NAME_OF_LAYERS,
        NAME_OF_LAYERS,
        "layers of the text encoder",
        0,
        partial(text_encoder_layers_graph, model, length, traces.keeper(context, NAME_OF_LAYERS)),
        partial(_error_of_layers, model, ids),
        computes_half=context.options.computes_half,
        float32_only=True,
        weights_of=NAME,
    )
    count = int(model.config.num_hidden_layers)
    spec = TextEncoderSpec(NAME, length, int(model.config.hidden_size), count, NAME_OF_LAYERS)
    return component.write_all(context, [last, layers]).joined(StageResult(sections={"text_encoder": spec}))


def _error_of_layers(model: CLIPTextModel, ids: np.ndarray, component: Component, folder: Path) -> float:
    """The largest error over all layers."""
    run, module = open_graph(folder / component.graph_for("onnxruntime")), TextEncoderLayers(model)
    errors = []
    for skip in range(model.config.num_hidden_layers):
        index = np.array([skip], np.int64)
        with torch.no_grad():
            expected = module(torch.from_numpy(ids), torch.from_numpy(index)).numpy()
        errors.append(relative_l2(run({"input_ids": ids, "skip": index})["hidden_states"], expected))
    return max(errors)
