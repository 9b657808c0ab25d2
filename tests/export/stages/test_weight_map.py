"""Where weights lie: every matrix and convolution is found, in every graph that stores it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ebca.engines.contract import weights as stored
from ebca.engines.contract.directory import open_directory
from ebca.engines.contract.weights import Copy, StoredWeight
from ebca.export.checkpoint.tiny import build_tiny
from ebca.export.stages import weight_map


def test_every_weight_is_found(tiny_engine_dir: Path) -> None:
    tiny, engine = build_tiny(), open_directory(tiny_engine_dir)
    sizes = {name: record.size for name, record in engine.manifest.files.items()}
    found = stored.parse(engine.read("weights.json"), sizes)
    assert tiny.text_encoder is not None
    networks: dict[str, Any] = {"unet": tiny.unet, "text_encoder": tiny.text_encoder}
    for part, network in networks.items():
        wanted = {n.removeprefix("text_model."): p for n, p in network.named_parameters() if p.ndim in (2, 4)}
        # Added to each prompt as one constant.
        wanted.pop("embeddings.position_embedding.weight", None)
        assert {name.removeprefix("text_model.") for name in found[part]} == set(wanted)
        for name, weight in found[part].items():
            value = wanted[name.removeprefix("text_model.")].detach().numpy()
            assert weight.shape == value.shape
            assert len(weight.copies) == (2 if name.endswith("attn2.to_k.weight") else 1)
            for copy in weight.copies:
                expected = value.T if copy.transposed else value
                raw = np.fromfile(engine.file(copy.file), copy.dtype, value.size, offset=copy.offset)
                np.testing.assert_array_equal(raw.reshape(expected.shape), expected)


def test_equal_weights_are_told_by_their_names_and_others_are_left_out(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    from ebca.engines.contract.manifest import Component

    tiny = build_tiny()
    same, other = "down_blocks.0.attentions.0.proj_in.weight", "down_blocks.0.attentions.0.proj_out.weight"
    parameters = dict(tiny.unet.named_parameters())
    parameters[other].data.copy_(parameters[same].data)
    values = parameters[same].detach().numpy()

    def stored_as(*names: str) -> Any:
        (tmp_path / "g.data").write_bytes(values.tobytes() * len(names))
        tensors = []
        for index, name in enumerate(names):
            tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=values.shape)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", "g.data"), ("offset", str(index * values.nbytes))):
                tensor.external_data.add(key=key, value=value)
            tensors.append(tensor)
        onnx.save(helper.make_model(helper.make_graph([], "g", [], [], tensors)), tmp_path / "g.onnx")
        return weight_map.find(tiny, {"g": Component("g.onnx", {}, {}, weights="g.data")}, tmp_path).get("unet", {})

    found = stored_as(f"unet.{same}", f"unet.{other}")
    assert {name: weight.copies[0].offset for name, weight in found.items()} == {same: 0, other: values.nbytes}
    assert stored_as("val_1", "val_2") == {}


@pytest.mark.parametrize("rows", [10, 13])
def test_growing_moves_what_lies_behind(rows: int) -> None:
    table = StoredWeight((10, 4), (Copy("t.data", 100, "float16"),))
    weights = {
        "unet": {"u": StoredWeight((2, 2), (Copy("u.data", 500, "float32"),))},
        "text_encoder": {
            stored.EMBEDDINGS: table,
            "before": StoredWeight((2, 2), (Copy("t.data", 0, "float32"),)),
            "after": StoredWeight((2, 2), (Copy("t.data", 180, "float16"),)),
        },
    }
    grown = stored.with_rows(weights, rows)
    offsets = {n: w.copies[0].offset for named in grown.values() for n, w in named.items()}
    assert offsets == {"u": 500, stored.EMBEDDINGS: 100, "before": 0, "after": 180 + (rows - 10) * 4 * 2}
    assert grown["text_encoder"][stored.EMBEDDINGS].shape == (rows, 4)
    sizes = {"t.data": 1000, "u.data": 1000}
    assert stored.parse(stored.to_json(grown).encode(), sizes) == grown
