"""The graph lowered for ONNX Runtime computes what the canonical one computes."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from ebca.engines.contract.dims import shape
from ebca.engines.contract.directory import open_directory
from ebca.export.parity import relative_l2, run_graph

# float32 in another order of operations: softmax and normalisation differ by units in the last place.
LIMIT = 5e-6
SIZES = {"batch": 2, "contexts": 2, "tokens": 11, "height": 9, "width": 13}


@pytest.mark.parametrize(
    "name", ["segment_00", "segment_03", "segment_07", "text_encoder", "vae_decoder", "vae_encoder"]
)
def test_same_result(tiny_engine_dir: Path, name: str) -> None:
    directory = open_directory(tiny_engine_dir)
    component = directory.manifest.components[name]
    rng = np.random.default_rng(0)
    feeds = {
        n: rng.standard_normal(shape(t.shape, SIZES)).astype(np.float32)
        if t.dtype == "float32"
        else rng.integers(0, 1000, shape(t.shape, SIZES))
        for n, t in component.inputs.items()
    }
    canonical = run_graph(directory.file(component.graph), feeds)
    lowered = run_graph(directory.file(component.lowered["onnxruntime"]), feeds)
    assert canonical.keys() == lowered.keys()
    for output in canonical:
        assert canonical[output].shape == shape(component.outputs[output].shape, SIZES)
        assert relative_l2(lowered[output], canonical[output]) <= LIMIT, output


def test_operators(tiny_engine_dir: Path) -> None:
    """Canonical graphs are standard ONNX; the lowered ones share their weights file."""
    directory = open_directory(tiny_engine_dir)
    kinds: dict[str, set[str]] = {"canonical": set(), "lowered": set()}
    for component in directory.manifest.components.values():
        canonical = onnx.load(str(directory.file(component.graph)), load_external_data=False)
        assert {node.domain for node in canonical.graph.node} <= {""}
        kinds["canonical"] |= {node.op_type for node in canonical.graph.node}
        if component.lowered:
            lowered = onnx.load(str(directory.file(component.lowered["onnxruntime"])), load_external_data=False)
            kinds["lowered"] |= {node.op_type for node in lowered.graph.node}
            places = [{e.value for e in t.external_data if e.key == "location"} for t in lowered.graph.initializer]
            assert set().union(*places) <= {Path(component.weights or "").name}
    assert {"Attention", "GroupNormalization"} <= kinds["canonical"]
    assert "MultiHeadAttention" in kinds["lowered"] and "GroupNormalization" not in kinds["lowered"]
