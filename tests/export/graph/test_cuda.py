"""Graphs for ONNX Runtime's CUDA provider: which operators are fused, and that they compute the same.

The fused operators have no kernels on a CPU. Here each is expanded again, as for `.ort.onnx`, rounded as on a GPU, and
compared with the graph in float32. A float16 rounding is off by 2e-4, a handful of them by less than LIMIT; q, k, v in
the wrong order, or the wrong half of a gate, by more than 0.1.
"""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper, parser

from ebca.engines.contract.accuracy import relative_l2
from ebca.engines.contract.directory import open_directory
from ebca.engines.contract.tensors import TO_CHANNELS_LAST
from ebca.export.graph.cuda.channels_last import channels_last, is_image
from ebca.export.graph.cuda.expand import expand_fused
from ebca.export.graph.cuda.fuse import fuse_for_cuda
from ebca.export.graph.dtypes import FLOAT
from ebca.export.graph.emulate import emulate
from ebca.export.graph.half import to_half

LIMIT = 2e-3
Arrays = dict[str, np.ndarray]


def graph(text: str, **weights: np.ndarray) -> ir.Model:
    model = parser.parse_model(f'<ir_version: 11, opset_import: ["": 23]> {text}')
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in weights.items())
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


def copy(model: ir.Model) -> ir.Model:
    return ir.from_proto(ir.to_proto(model))


def run(model: ir.Model, inputs: Arrays) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    given = {
        i.name: inputs[i.name].astype(np.float16 if "float16" in i.type else np.float32) for i in session.get_inputs()
    }
    return [np.asarray(made, np.float64) for made in session.run(None, given)]


def fused(model: ir.Model) -> ir.Model:
    """A copy that computes in float16 with fused operators; inputs and outputs stay float32."""
    made = copy(model)
    names = [str(value.name) for value in made.graph.outputs]
    to_half(made.graph, dict.fromkeys((str(v.name) for v in made.graph.inputs), FLOAT), float32_outputs=names)
    made = copy(made)
    fuse_for_cuda(made)
    return made


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def error(model: ir.Model, inputs: Arrays) -> float:
    """Relative L2 error of the fused graph, rounded as on a GPU, against the graph in float32."""
    made = fused(model)
    onnx.checker.check_model(ir.to_proto(made))
    expand_fused(made)
    emulate(made)
    return max(relative_l2(a, b) for a, b in zip(run(made, inputs), run(model, inputs), strict=True))


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def conv_weight(channels: int) -> np.ndarray:
    return normal(channels, channels, 1, 1) / np.float32(np.sqrt(channels))


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([(8, 4), (32, 8), (24, 12), (48, 16), (12, 12)]),
    st.sampled_from(["alone", "time", "residual", "residual read again"]),
    st.booleans(),
)
def test_group_norm(sizes: tuple[int, int], total: str, silu: bool) -> None:
    channels, groups = sizes
    added = {"alone": "s = Identity(c)", "time": "s = Add(c, t)"}.get(total, "d = Conv(x, V) s = Add(c, d)")
    after = "z = Sigmoid(n) y = Mul(n, z)" if silu else "y = Identity(n)"
    again = "r = Conv(s, V)" if total == "residual read again" else "r = Conv(x, V)"
    model = graph(
        f"g (float[2,{channels},6,5] x, float[2,{channels},1,1] t) => (float[2,{channels},6,5] o, "
        f"float[2,{channels},6,5] r) {{ c = Conv(x, W) {added} "
        f"n = GroupNormalization<num_groups = {groups}>(s, a, b) {after} o = Conv(y, W) {again} }}",
        W=conv_weight(channels), V=conv_weight(channels)[::-1].copy(),
        a=1 + normal(channels) / 4, b=normal(channels, seed=1),
    )  # fmt: skip
    found = operators(fused(model))
    odd = channels // groups % 2
    assert found["GroupNormalization"] == found["InstanceNormalization"] == 0
    assert found["SkipGroupNorm"] == (total != "alone" and not odd)
    assert found["GroupNorm"] == (total == "alone" and not odd)
    assert found["Sigmoid"] == (silu and bool(odd))
    assert error(model, {"x": normal(2, channels, 6, 5, seed=2), "t": normal(2, channels, 1, 1, seed=3)}) < LIMIT


def test_a_sum_that_the_norm_alone_reads_is_not_stored() -> None:
    text = (
        "g (float[2,8,4,4] x) => (float[2,8,4,4] o) {{ c = Conv(x, W) d = Conv(x, V) s = Add(c, d) "
        "n = GroupNormalization<num_groups = 4>(s, a, b) o = Conv(n, W) {more} }}"
    )
    weights = {"W": conv_weight(8), "V": conv_weight(8), "a": np.ones(8, np.float32), "b": np.zeros(8, np.float32)}
    (norm,) = (n for n in fused(graph(text.format(more=""), **weights)).graph if n.op_type == "SkipGroupNorm")
    assert len(norm.outputs) == 1


def test_group_norm_of_a_sequence() -> None:
    """As before the attention of a VAE: [B,C,positions]."""
    model = graph(
        "g (float[2,16,12] x) => (float[2,12,16] o) { n = GroupNormalization<num_groups = 4>(x, a, b) "
        "t = Transpose<perm = [0,2,1]>(n) o = MatMul(t, W) }",
        W=normal(16, 16) / 4, a=1 + normal(16) / 4, b=normal(16, seed=1),
    )  # fmt: skip
    half = copy(model)
    # Only what is float16 is fused: a norm of a float32 input stays as it is.
    assert operators(fused(half))["GroupNormalization"] == 1
    model = graph(
        "g (float[2,16,3,4] x) => (float[2,12,16] o) { c = Conv(x, V) r = Reshape(c, flat) "
        "n = GroupNormalization<num_groups = 4>(r, a, b) t = Transpose<perm = [0,2,1]>(n) o = MatMul(t, W) }",
        V=conv_weight(16), W=normal(16, 16) / 4, a=1 + normal(16) / 4, b=normal(16, seed=1),
        flat=np.array([2, 16, 12]),
    )  # fmt: skip
    assert operators(fused(model))["GroupNorm"] == 1
    assert error(model, {"x": normal(2, 16, 3, 4)}) < LIMIT


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([(2, 8), (3, 4), (1, 16)]), st.sampled_from(["first", "second", "none"]), st.booleans())
def test_a_transformer_block(heads: tuple[int, int], bias: str, again: bool) -> None:
    """Packed self-attention, and the residual sum with its norm, in either order of the sum."""
    count, size = heads
    width = count * size
    linear = "l = Add(p, c)" if bias != "none" else "l = Identity(p)"
    total = "t = Add(l, x0)" if bias != "second" else "t = Add(x0, l)"
    model = graph(
        f"g (float[2,6,{width}] x) => (float[2,6,{width}] o, float[2,6,{width}] r) {{ x0 = MatMul(x, I) "
        "q = MatMul(x0, Q) k = MatMul(x0, K) v = MatMul(x0, V) "
        f"a = Attention<q_num_heads = {count}, kv_num_heads = {count}>(q, k, v) p = MatMul(a, P) {linear} {total} "
        f"n = LayerNormalization(t, s, b) o = MatMul(n, P) r = MatMul({'t' if again else 'x0'}, P) }}",
        I=np.eye(width, dtype=np.float32), c=normal(width, seed=5), s=1 + normal(width) / 4, b=normal(width, seed=1),
        **{name: normal(width, width, seed=i) / np.float32(np.sqrt(width)) for i, name in enumerate("QKVP", 10)},
    )  # fmt: skip
    made = fused(model)
    found = operators(made)
    assert found["MultiHeadAttention"] == found["SkipLayerNormalization"] == 1
    assert found["Attention"] == found["LayerNormalization"] == 0
    (attention,) = (node for node in made.graph if node.op_type == "MultiHeadAttention")
    assert len(attention.inputs) == 1 and attention.attributes["num_heads"].as_int() == count
    (norm,) = (node for node in made.graph if node.op_type == "SkipLayerNormalization")
    assert len(norm.inputs) == (4 if bias == "none" else 5)
    assert error(model, {"x": normal(2, 6, width, seed=7)}) < LIMIT


@pytest.mark.parametrize("inner, expected", [(1280, 1), (64, 0)])
def test_the_gate_is_fused_at_the_widths_that_the_kernel_has(inner: int, expected: int) -> None:
    model = graph(
        "g (float[1,3,16] x) => (float[1,3,16] o) { p = MatMul(x, W) l = Add(p, b) "
        "u, v = Split<axis = -1, num_outputs = 2>(l) e = Gelu(v) m = Mul(u, e) o = MatMul(m, P) }",
        W=normal(16, 2 * inner) / 4, b=normal(2 * inner, seed=1), P=normal(inner, 16) / np.float32(np.sqrt(inner)),
    )  # fmt: skip
    assert operators(fused(model))["BiasSplitGelu"] == expected
    assert error(model, {"x": normal(1, 3, 16, seed=2)}) < LIMIT


@pytest.mark.parametrize("width", [64, 512])
def test_wide_heads_compute_in_float32(width: int) -> None:
    """Scores of 1e5 overflow in float16, and the softmax of their infinities is not a number."""
    model = graph(
        f"g (float[1,4,{width}] x) => (float[1,4,{width}] o) {{ q = MatMul(x, Q) k = MatMul(x, K) v = MatMul(x, V) "
        "rq = Reshape(q, s) rk = Reshape(k, s) rv = Reshape(v, s) tq = Transpose<perm = [0,2,1,3]>(rq) "
        "tk = Transpose<perm = [0,2,1,3]>(rk) tv = Transpose<perm = [0,2,1,3]>(rv) "
        "a = Attention(tq, tk, tv) ta = Transpose<perm = [0,2,1,3]>(a) j = Reshape(ta, f) o = MatMul(j, V) }",
        Q=normal(width, width), K=normal(width, width, seed=1), V=normal(width, width, seed=2) / 8,
        s=np.array([0, 0, 1, width]), f=np.array([0, 0, width]),
    )  # fmt: skip
    made = fused(model)
    (attention,) = (node for node in made.graph if node.op_type == "MultiHeadAttention")
    assert (attention.outputs[0].dtype == FLOAT) == (width == 512)
    assert all(value.dtype == attention.outputs[0].dtype for value in attention.inputs if value is not None)
    assert operators(made)["Transpose"] == 0
    assert error(model, {"x": normal(1, 4, width, seed=3)}) < 10 * LIMIT


def test_attention_with_a_mask_stays() -> None:
    model = graph(
        "g (float[1,4,16] x, float[4,4] m) => (float[1,4,16] o) { q = MatMul(x, Q) "
        "a = Attention<q_num_heads = 2, kv_num_heads = 2>(q, q, q, m) o = MatMul(a, Q) }",
        Q=normal(16, 16) / 4,
    )
    assert operators(fused(model))["Attention"] == 1


def test_boundary_images_are_channels_last() -> None:
    model = graph(
        "g (float[2,4,6,5] a, float[2,3] b) => (float[2,4,6,5] y, float[2,3] z) { y = Conv(a, W) z = Identity(b) }",
        W=conv_weight(4),
    )
    moved = copy(model)
    channels_last(moved.graph, {"a", "y"})
    onnx.checker.check_model(ir.to_proto(moved), full_check=True)
    a, b = normal(2, 4, 6, 5), normal(2, 3)
    plain, last = run(model, {"a": a, "b": b}), run(moved, {"a": a.transpose(TO_CHANNELS_LAST), "b": b})
    assert np.array_equal(plain[0].transpose(TO_CHANNELS_LAST), last[0]) and np.array_equal(plain[1], last[1])
    assert [v.name for v in (*moved.graph.inputs, *moved.graph.outputs)] == ["a", "b", "y", "z"]


def test_what_an_image_is() -> None:
    assert is_image(("batch", 320, "height_1", "width_1"))
    assert not is_image(("batch", "contexts", "tokens", 320))
    assert not is_image(("batch", 320, 1, 1)) and not is_image(("batch", "height*width", 320))


def test_a_directory_names_its_images_and_its_graphs_agree(tiny_gpu_dir: Path) -> None:
    manifest = open_directory(tiny_gpu_dir).manifest
    last = manifest.unet.channels_last["onnxruntime-cuda"]
    assert any(name.startswith("skip_") for name in last) and any(name.startswith("hidden_") for name in last)
    for name in manifest.unet.segments:
        component = manifest.components[name]
        made = onnx.load(str(tiny_gpu_dir / component.lowered["onnxruntime-cuda"]), load_external_data=False).graph
        for value in (*made.input, *made.output):
            shape = tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim)
            canonical = {**component.inputs, **component.outputs}[value.name].shape
            expected = tuple(canonical[axis] for axis in TO_CHANNELS_LAST) if value.name in last else canonical
            assert shape == expected, (name, value.name)
        found = Counter(node.op_type for node in made.node)
        assert not found.keys() & {"GroupNormalization", "InstanceNormalization"}
