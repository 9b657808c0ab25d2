"""Random graphs with the anatomy of a UNet, and two ways to run them: whole, and cut.

The op between the cuts is a stand-in that reads all of q, k, v:

    out = 2 q + mean over contexts and tokens of v        g = k / 2 + mean over positions of q
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeVar

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from hypothesis import strategies as st
from onnx import helper

from ebca.export.graph.component import IR_VERSION
from ebca.export.graph.op_node import OP_DOMAIN, OP_TYPE, OPSET
from ebca.export.graph.segments import Split
from ebca.export.graph.symbols import Symbols

Shape = tuple[int | str, ...]
Op = Callable[..., Sequence[np.ndarray]]
T = TypeVar("T")

# torch's names for the dynamic sizes, as a traced graph has them.
SYMBOLS = {"batch": "s0", "contexts": "s1", "tokens": "s2", "height": "s3", "width": "s4"}
_HALF = ("((s3 - 1)//2) + 1", "((s4 - 1)//2) + 1")
_SPATIAL = (("s3", "s4"), _HALF)
_POSITIONS = ("s3*s4", "(((s3 - 1)//2) + 1)*(((s4 - 1)//2) + 1)")
_CHANNELS = (2, 4, 6)
_MOST_CHANNELS = 8


@dataclass
class GraphMaker:
    """Builds one graph; values are kept by kind so that any of them can be read again later."""

    choose: Callable[[list[int]], int]
    nodes: list[ir.Node] = field(default_factory=list)
    initializers: list[ir.Value] = field(default_factory=list)
    inputs: list[ir.Value] = field(default_factory=list)
    images: list[tuple[ir.Value, int]] = field(default_factory=list)  # [batch, C, *_SPATIAL[scale]], scale
    sequences: list[tuple[ir.Value, int]] = field(default_factory=list)  # [batch, _POSITIONS[scale], C], scale
    embeddings: list[ir.Value] = field(default_factory=list)  # [batch, C]
    contexts: list[ir.Value] = field(default_factory=list)  # [batch, contexts, tokens, C]
    _number: "count[int]" = field(default_factory=count)

    @classmethod
    def start(cls, choose: Callable[[list[int]], int]) -> "GraphMaker":
        """A maker with the inputs of a UNet."""
        maker = cls(choose)
        sample, timestep = _input("sample", "s0", 2, "s3", "s4"), _input("timestep", "s0", 2)
        contexts = _input("contexts", "s0", "s1", "s2", 4)
        maker.inputs = [sample, timestep, contexts]
        maker.images, maker.embeddings, maker.contexts = [(sample, 0)], [timestep], [contexts]
        return maker

    @staticmethod
    def shape_of(value: ir.Value) -> Shape:
        return shape(value)

    def pick(self, values: list[T]) -> T:
        return values[self.choose(list(range(len(values))))]

    def node(
        self, op_type: str, inputs: list[ir.Value | None], shape: Shape, *attributes: ir.Attr, int64: bool = False
    ) -> ir.Value:
        number = next(self._number)
        dtype = ir.DataType.INT64 if int64 else ir.DataType.FLOAT
        out = ir.Value(name=f"value_{number}", shape=ir.Shape(shape), type=ir.TensorType(dtype))
        self.nodes.append(ir.Node("", op_type, inputs, attributes, outputs=[out], name=f"node_{number}"))
        return out

    def constant(self, array: np.ndarray) -> ir.Value:
        name = f"weight_{next(self._number)}"
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.initializers.append(value)
        return value

    def dynamic_shape(self, pieces: list[int | tuple[ir.Value, int]]) -> ir.Value:
        """An int64 shape computed in the graph, as exporters write it: Shape, Concat."""
        parts: list[ir.Value | None] = []
        for piece in pieces:
            if isinstance(piece, int):
                parts.append(self.constant(np.array([piece], np.int64)))
            else:
                value, axis = piece
                attributes = (ir.AttrInt64("start", axis), ir.AttrInt64("end", axis + 1))
                parts.append(self.node("Shape", [value], (1,), *attributes, int64=True))
        return self.node("Concat", parts, (len(pieces),), ir.AttrInt64("axis", 0), int64=True)

    # What may stand between two ops. Each adds one value that later steps can read.

    def unary(self) -> None:
        pools: list[list[Any]] = [self.images, self.sequences, self.embeddings, self.contexts]
        pool = self.pick([p for p in pools if p])
        item = self.pick(pool)
        value, scale = item if isinstance(item, tuple) else (item, None)
        out = self.node(self.pick(["Relu", "Tanh", "Sigmoid", "Neg"]), [value], shape(value))
        pool.append(out if scale is None else (out, scale))

    def binary(self) -> None:
        pools: list[list[Any]] = [self.images, self.sequences, self.embeddings, self.contexts]
        pool = self.pick([p for p in pools if p])
        a = self.pick(pool)
        left, scale = a if isinstance(a, tuple) else (a, None)
        others = [v[0] if isinstance(v, tuple) else v for v in pool]
        right = self.pick([v for v in others if shape(v) == shape(left)])
        out = self.node(self.pick(["Add", "Sub"]), [left, right], shape(left))
        pool.append(out if scale is None else (out, scale))

    def project(self) -> None:
        pool: list[Any] = self.pick([p for p in (self.sequences, self.embeddings, self.contexts) if p])
        item = self.pick(pool)
        value, scale = item if isinstance(item, tuple) else (item, None)
        out = self.linear(value, self.pick(list(_CHANNELS)))
        pool.append(out if scale is None else (out, scale))

    def linear(self, value: ir.Value, channels: int) -> ir.Value:
        given = int(shape(value)[-1])
        array = np.random.default_rng(next(self._number)).standard_normal((given, channels), np.float32) / given
        return self.node("MatMul", [value, self.constant(array)], (*shape(value)[:-1], channels))

    def concatenate(self) -> None:
        value, scale = self.pick(self.images)
        other, _ = self.pick([(v, s) for v, s in self.images if s == scale])
        channels = int(shape(value)[1]) + int(shape(other)[1])
        if channels <= _MOST_CHANNELS:
            dims = ("s0", channels, *_SPATIAL[scale])
            self.images.append((self.node("Concat", [value, other], dims, ir.AttrInt64("axis", 1)), scale))

    def flatten(self) -> None:
        """[batch, C, h, w] -> [batch, h*w, C], the shape computed in the graph."""
        value, scale = self.pick(self.images)
        channels = shape(value)[1]
        target = self.dynamic_shape([(value, 0), (value, 1), -1])
        flat = self.node("Reshape", [value, target], ("s0", channels, _POSITIONS[scale]))
        self.sequences.append((self.transpose(flat), scale))

    def transpose(self, value: ir.Value) -> ir.Value:
        a, b, c = shape(value)
        return self.node("Transpose", [value], (a, c, b), ir.AttrInt64s("perm", [0, 2, 1]))

    def unflatten(self) -> None:
        """[batch, h*w, C] -> [batch, C, h, w] onto an image, as at the end of a transformer block."""
        value, scale = self.pick(self.sequences) if self.sequences else (None, 0)
        images = [v for v, s in self.images if s == scale and value is not None and shape(v)[1] == shape(value)[2]]
        if value is None or not images:
            return
        image = self.pick(images)
        target = self.dynamic_shape([(value, 0), (value, 2), (image, 2), (image, 3)])
        folded = self.node("Reshape", [self.transpose(value), target], shape(image))
        self.images.append((self.node("Add", [folded, image], shape(image)), scale))

    def downsample(self) -> None:
        value = self.pick([v for v, s in self.images if s == 0])
        strides = (ir.AttrInt64s("kernel_shape", [1, 1]), ir.AttrInt64s("strides", [2, 2]))
        self.images.append((self.node("AveragePool", [value], (*shape(value)[:2], *_HALF), *strides), 1))

    def upsample(self) -> None:
        """Resize to the size of a skip connection and join it."""
        small = [v for v, s in self.images if s == 1]
        if not small:
            return
        value, skip = self.pick(small), self.pick([v for v, s in self.images if s == 0])
        channels = int(shape(value)[1]) + int(shape(skip)[1])
        if channels > _MOST_CHANNELS:
            return
        target = self.dynamic_shape([(value, 0), (value, 1), (skip, 2), (skip, 3)])
        attributes = [ir.AttrString("mode", "nearest"), ir.AttrString("coordinate_transformation_mode", "asymmetric")]
        attributes.append(ir.AttrString("nearest_mode", "floor"))
        dims = (*shape(value)[:2], *shape(skip)[2:])
        wide = self.node("Resize", [value, None, None, target], dims, *attributes)
        joined = (dims[0], channels, *dims[2:])
        self.images.append((self.node("Concat", [wide, skip], joined, ir.AttrInt64("axis", 1)), 0))

    def embed(self) -> None:
        """Add an embedding to every position of an image: by broadcasting, or by an explicit Expand."""
        value = self.pick(self.embeddings)
        images = [(v, s) for v, s in self.images if shape(v)[1] == shape(value)[1]]
        if not images:
            return
        image, scale = self.pick(images)
        axes = self.constant(np.array([2, 3], np.int64))
        wide = self.node("Unsqueeze", [value, axes], (*shape(value), 1, 1))
        if self.choose([0, 1]):
            wide = self.node("Expand", [wide, self.dynamic_shape([(image, axis) for axis in range(4)])], shape(image))
        self.images.append((self.node("Add", [wide, image], shape(image)), scale))

    def attend(self, layer: int) -> None:
        """The op on any sequence and contexts so far, and what a layer does around it."""
        if not self.sequences:
            self.flatten()
        value, scale = self.pick(self.sequences)
        channels = self.pick(list(_CHANNELS))
        context = self.pick(self.contexts)
        q, k, v = (self.linear(x, channels) for x in (value, context, context))
        out = ir.Value(name=f"out_{layer}", shape=q.shape, type=ir.TensorType(ir.DataType.FLOAT))
        g = ir.Value(name=f"g_{layer}", shape=k.shape, type=ir.TensorType(ir.DataType.FLOAT))
        attributes = [ir.AttrInt64("layer", layer), ir.AttrInt64("num_heads", 2)]
        self.nodes.append(ir.Node(OP_DOMAIN, OP_TYPE, [q, k, v], attributes, outputs=[out, g], name=f"op_{layer}"))
        self.sequences.append((out, scale))
        step = self.linear(g, int(shape(context)[-1]))
        self.contexts.append(self.node("Add", [context, step], shape(context)))

    def finish(self) -> ir.Model:
        """Outputs that everything in the last level has a part in, like a UNet's."""
        value, scale = self.sequences[-1]
        channels = int(shape(self.images[0][0])[1])
        self.sequences.append((self.linear(value, channels), scale))
        flat = self.sequences[-1][0]
        result = self.node("Tanh", [flat], shape(flat))
        image = self.node("Relu", [self.images[-1][0]], shape(self.images[-1][0]))
        context = self.node("Neg", [self.contexts[-1]], shape(self.contexts[-1]))
        result.name, image.name, context.name = "noise", "last_image", "contexts_out"
        graph = ir.Graph(
            self.inputs,
            [result, image, context],
            nodes=self.nodes,
            initializers=self.initializers,
            opset_imports={"": OPSET, OP_DOMAIN: 1},
            name="whole",
        )
        return ir.Model(graph, ir_version=IR_VERSION)


def shape(value: ir.Value) -> Shape:
    assert value.shape is not None
    return tuple(d if isinstance(d, int) else str(d.value) for d in value.shape)


def _input(name: str, *dims: int | str) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(dims), type=ir.TensorType(ir.DataType.FLOAT))


@st.composite
def models(draw: st.DrawFn, max_layers: int = 4, max_steps: int = 8) -> ir.Model:
    """A traced UNet of random anatomy."""
    maker = GraphMaker.start(lambda options: draw(st.sampled_from(options)))
    steps = ["unary", "binary", "project", "concatenate", "flatten", "unflatten", "downsample", "upsample", "embed"]
    for layer in range(draw(st.integers(1, max_layers))):
        for step in draw(st.lists(st.sampled_from(steps), max_size=max_steps)):
            getattr(maker, step)()
        maker.attend(layer)
    for step in draw(st.lists(st.sampled_from(steps), max_size=max_steps)):
        getattr(maker, step)()
    return maker.finish()


def symbols_of(model: ir.Model) -> Symbols:
    sample, timestep, contexts = model.graph.inputs
    return Symbols(
        [
            (sample, {0: "batch", 2: "height", 3: "width"}),
            (timestep, {0: "batch"}),
            (contexts, {0: "batch", 1: "contexts", 2: "tokens"}),
        ]
    )


def feeds_for(model: ir.Model, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    values = {symbol: sizes[name] for name, symbol in SYMBOLS.items()}
    return {
        str(v.name): rng.standard_normal([d if isinstance(d, int) else values[d] for d in shape(v)], np.float32)
        for v in model.graph.inputs
    }


def run_whole(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The full graph in ONNX Runtime, the op as a function of the model."""
    proto = ir.to_proto(model)
    proto.functions.append(_stand_in_function())
    return _run(proto, feeds)


def stand_in(layer: int, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """See the module's text."""
    return 2 * q + v.mean((1, 2))[:, None, :], k / 2 + q.mean(1)[:, None, None, :]


def run_split(split: Split, feeds: Mapping[str, np.ndarray], op: Op = stand_in) -> dict[str, np.ndarray]:
    """All tensors by name after running the plan. A read before a write is a KeyError."""
    tensors = dict(feeds)
    for segment in split.segments:
        proto = ir.to_proto(ir.Model(segment.graph, ir_version=IR_VERSION))
        tensors |= _run(proto, {name: tensors[name] for name in segment.inputs})
        for call in segment.ops:
            results = op(call.layer, *(tensors[name] for name in call.inputs))
            tensors |= dict(zip(call.outputs, results, strict=True))
    return tensors


def _run(proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    known = {i.name for i in session.get_inputs()}
    return dict(zip(names, session.run(names, {n: a for n, a in feeds.items() if n in known}), strict=True))


def _stand_in_function() -> onnx.FunctionProto:
    nodes = [
        helper.make_node("Constant", [], ["two"], value_float=2.0),
        helper.make_node("Constant", [], ["axes"], value_ints=[1, 2]),
        helper.make_node("Constant", [], ["one"], value_ints=[1]),
        helper.make_node("Mul", ["q", "two"], ["doubled"]),
        helper.make_node("ReduceMean", ["v", "axes"], ["v_mean"], keepdims=0),
        helper.make_node("Unsqueeze", ["v_mean", "one"], ["v_wide"]),
        helper.make_node("Add", ["doubled", "v_wide"], ["out"]),
        helper.make_node("Div", ["k", "two"], ["halved"]),
        helper.make_node("ReduceMean", ["q", "one"], ["q_mean"], keepdims=0),
        helper.make_node("Unsqueeze", ["q_mean", "axes"], ["q_wide"]),
        helper.make_node("Add", ["halved", "q_wide"], ["g"]),
    ]
    return helper.make_function(
        OP_DOMAIN,
        OP_TYPE,
        ["q", "k", "v"],
        ["out", "g"],
        nodes,
        [helper.make_opsetid("", OPSET)],
        ["layer", "num_heads"],
    )
