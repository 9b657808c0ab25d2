"""What a graph needs at least inside: tensors of the nodes that need the most, in the language of the manifest."""

import onnx_ir as ir
import pytest

from ebca.engines.contract.tensors import TensorSpec
from ebca.export.graph.scratch import _in_language, scratch

FLOAT = ir.TensorType(ir.DataType.FLOAT)


def value(name: str, *shape: int | str) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=FLOAT)


def test_the_heaviest_node_at_each_size_is_kept_without_inputs_outputs_and_weights() -> None:
    x, y = value("x", "batch", 4, "height", "width"), value("y", "batch", 3, "2*height", "2*width")
    weight = value("w", 8, 4, 3, 3)
    hidden, wide = value("h", "batch", 8, "height", "width"), value("u", "batch", 8, "((16*height)//8)", "2*(width)")
    keys, projected = value("k", "batch", "tokens", 8), value("p", "batch", "tokens", 8)
    nodes = [
        ir.Node("", "Conv", [x, weight], outputs=[hidden]),
        ir.Node("", "Resize", [hidden], outputs=[wide]),
        # In place, or a part of another node, in some library.
        ir.Node("", "Add", [wide, wide], outputs=[value("s", "batch", 800, "2*height", "2*width")]),
        ir.Node("", "MatMul", [keys, weight], outputs=[projected]),
        ir.Node("", "Conv", [wide, weight], outputs=[y]),
    ]
    graph = ir.Graph([x], [y], nodes=nodes)
    tensors = {
        "h": TensorSpec("float32", ("batch", 8, "height", "width")),
        "u": TensorSpec("float32", ("batch", 8, "2*height", "2*width")),
        "kp": TensorSpec("float32", ("batch", "tokens", 8)),
    }
    # 4096 tokens beside 8 x 8 latents need more than the image.
    assert set(scratch(graph)) == {(tensors["h"], tensors["u"]), (tensors["kp"], tensors["kp"])}


def test_a_graph_of_unknown_shapes_needs_nothing_that_is_known() -> None:
    x, y = value("x", "batch", 4), value("y", "batch", 4)
    hidden = ir.Value(name="h", type=FLOAT)
    nodes = [ir.Node("", "MatMul", [x, x], outputs=[hidden]), ir.Node("", "MatMul", [hidden, x], outputs=[y])]
    assert scratch(ir.Graph([x], [y], nodes=nodes)) == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("height_2*width_2", "height_2*width_2"),
        ("2*(height)", "2*height"),
        ("((8*height)//2)", "4*height"),
        ("(((8*width)//8))*(((8*height)//8))", "height*width"),
        ("s53", None),
        ("height + 1", None),
        ("__import__('os')", None),
    ],
)
def test_expressions_become_products(text: str, expected: str | None) -> None:
    assert _in_language(text) == expected
