"""The CLIP text encoder."""

from functools import partial

import numpy as np

from ebca.engines.contract.manifest import TextEncoderSpec
from ebca.export.graph.modules import TextEncoder, text_encoder_graph
from ebca.export.stages import component, traces
from ebca.export.stages.component import ComponentJob, measure_module
from ebca.export.stages.context import Context, StageResult
from ebca.export.weights import stored_bytes

NAME = "text_encoder"


def export(context: Context) -> StageResult:
    """Write the text encoder, if the checkpoint has one."""
    model = context.checkpoint.text_encoder
    if model is None:
        return StageResult()
    length = int(model.config.max_position_embeddings)
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, (2, length)).astype(np.int64)
    job = ComponentJob(
        NAME,
        NAME,
        "text encoder",
        stored_bytes(model.parameters(), context.options),
        partial(text_encoder_graph, model, length, traces.keeper(context, NAME)),
        measure_module(TextEncoder(model), ids),
        computes_half=context.options.computes_half,
        # Its result conditions every step, and it takes a fraction of a step: no engine may lower its precision.
        float32_only=True,
    )
    spec = TextEncoderSpec(NAME, length, int(model.config.hidden_size))
    return component.write(context, job).joined(StageResult(sections={"text_encoder": spec}))
