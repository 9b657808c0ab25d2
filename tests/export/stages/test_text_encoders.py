"""Both text encoders of Stable Diffusion XL as one graph, against the embeddings of diffusers' pipeline."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch")

from diffusers import StableDiffusionXLPipeline  # noqa: E402

from ebca.engines.contract.accuracy import relative_l2  # noqa: E402
from ebca.export.checkpoint.tiny_xl import TINY_XL, save_tiny_xl  # noqa: E402
from ebca.export.graph.component import IR_VERSION  # noqa: E402
from ebca.export.graph.modules import text_encoders_graph, text_encoders_layers_graph  # noqa: E402
from ebca.export.parity import open_graph  # noqa: E402

LENGTH = 77
PROMPT, PROMPT_2 = "a photo of a red cat", "a blue house, night"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline.from_pretrained(save_tiny_xl(tmp_path_factory.mktemp("xl")))


def ids(pipeline: StableDiffusionXLPipeline) -> dict[str, np.ndarray]:
    def padded(tokenizer: object, text: str) -> np.ndarray:
        made = tokenizer(text, padding="max_length", max_length=LENGTH, return_tensors="np")  # type: ignore[operator]
        return np.asarray(made.input_ids, np.int64)

    found = {"input_ids": padded(pipeline.tokenizer, PROMPT), "input_ids_2": padded(pipeline.tokenizer_2, PROMPT_2)}
    assert found["input_ids"][0, -1] == pipeline.tokenizer.eos_token_id and found["input_ids_2"][0, -1] == 0
    return found


def run(graph: ir.Graph, folder: Path, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    ir.save(ir.Model(graph, ir_version=IR_VERSION), folder / "graph.onnx")
    return open_graph(folder / "graph.onnx")(feeds)


@pytest.mark.parametrize("skip", [None, 1])
def test_they_return_what_the_pipeline_reads(
    pipeline: StableDiffusionXLPipeline, tmp_path: Path, skip: int | None
) -> None:
    checkpoint = TINY_XL.build()
    assert checkpoint.text_encoder is not None and checkpoint.text_encoder_2 is not None
    made = text_encoders_graph if skip is None else text_encoders_layers_graph
    graph = made(checkpoint.text_encoder, checkpoint.text_encoder_2, LENGTH)
    more = {} if skip is None else {"skip": np.array([skip], np.int64)}
    found = run(graph, tmp_path, ids(pipeline) | more)
    with torch.no_grad():
        embeds, _, pooled, _ = pipeline.encode_prompt(
            PROMPT, PROMPT_2, do_classifier_free_guidance=False, clip_skip=skip
        )
    # float32 in two engines; measured 4e-7.
    assert relative_l2(found["hidden_states"], embeds.numpy()) < 5e-6
    assert relative_l2(found["pooled"], pooled.numpy()) < 5e-6


def test_the_layers_have_the_weights_of_the_others() -> None:
    """So one file serves both components. The first encoder's last layer is never read."""
    checkpoint = TINY_XL.build()
    assert checkpoint.text_encoder is not None and checkpoint.text_encoder_2 is not None
    last, layers = (
        make(checkpoint.text_encoder, checkpoint.text_encoder_2, LENGTH).initializers
        for make in (text_encoders_graph, text_encoders_layers_graph)
    )
    large = {
        name for name, value in layers.items() if value.const_value is not None and value.const_value.nbytes > 1024
    }
    assert large <= {*last}
    assert not any("first" in name and "layers.2." in name for name in last)
    assert any("second" in name and "layers.3." in name for name in last)
