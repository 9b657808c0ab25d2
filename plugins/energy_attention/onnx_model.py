"""The operator as an ONNX graph of standard operators, for every engine that has no kernel of its own.

    S   = q k^T / sqrt(d)                       all contexts side by side: [B, H, N, S*T]
    out = softmax_T(S) (w v) / sum w            one product sums over tokens and contexts
    A   = softmax_N(S^T)                        [B, H, S*T, N]
    g   = tie (gamma_attn A (m q) - gamma_norm softmax_T(norm_factor ||k||^2) k)

Why this form, measured on ONNX Runtime CPU (table in README.md): contexts side by side in the token axis
leave S = 1 as plain attention and need no broadcast of q and no sum over contexts; scaling k and folding w
into v touches the small tensors only; an explicit Transpose before Softmax over the last axis is quicker than
Softmax over an inner axis.
"""

import math

import onnx
from onnx import parser

from ebca.errors import ParameterError
from ebca.plugins.energy_attention.contract import GUIDED_VARIANTS, TENSOR_DOCS, TensorSpec, signature

OPSET = 20
IR_VERSION = 10

# The tensors whose dtype is the storage type.
_STORED = ("q", "k", "v", "out")

# In a Reshape target 0 copies the input's dimension.
_CONSTANTS = """
  int64[1] axis1 = {{1}}, int64[1] axis2 = {{2}}, int64[1] axis3 = {{3}}, int64[2] axes23 = {{2, 3}},
  int64[2] axes14 = {{1, 4}}, int64[1] keep_rest = {{-1}}, int64[1] head_dim = {{{d}}},
  int64[4] split_heads = {{0, -1, {H}, {d}}}, int64[3] join_last_of_4 = {{0, 0, -1}},
  int64[4] join_last_of_5 = {{0, 0, 0, -1}}, int64[2] copy2 = {{0, 0}}, int64[3] copy3 = {{0, 0, 0}},
  int64 zero = {{0}}, int64 one = {{1}}, float scale = {{{scale!r}}}, float half = {{0.5}}
"""

_SCORES = """
  q_split = Reshape(q, split_heads)
  q_heads = Transpose<perm = [0, 2, 1, 3]>(q_split)
  k_scaled = Mul(k, scale)
  k_split = Reshape(k_scaled, split_heads)
  k_heads = Transpose<perm = [0, 2, 3, 1]>(k_split)
  scores = MatMul(q_heads, k_heads)

  contexts_tokens = Shape<start = 1, end = 3>(k)
  apart_shape = Concat<axis = 0>(copy3, contexts_tokens)
  scores_apart = Reshape(scores, apart_shape)
"""

_SOFTMAX = """
  probs_apart = Softmax<axis = -1>(scores_apart)
"""

# Instead of _SOFTMAX. A token in no group has a row of zeros in `member`, and so no bias.
_GUIDED_SOFTMAX = """
  group_count = Shape<start = 2, end = 3>(bias)
  group_count_scalar = Squeeze(group_count)
  group_range = Range(zero, group_count_scalar, one)
  group_indices = Cast<to = 6>(group_range)
  token_groups_wide = Unsqueeze(token_groups, axis3)
  member_mask = Equal(token_groups_wide, group_indices)
  member = Cast<to = 1>(member_mask)

  bias_by_position = Transpose<perm = [0, 1, 3, 2]>(bias)
  member_t = Transpose<perm = [0, 1, 3, 2]>(member)
  token_bias = MatMul(bias_by_position, member_t)
  token_bias_t = Transpose<perm = [0, 2, 1, 3]>(token_bias)
  token_bias_wide = Unsqueeze(token_bias_t, axis1)
  scores_biased = Add(scores_apart, token_bias_wide)
  probs_apart = Softmax<axis = -1>(scores_biased)

  scores_main = Gather<axis = 3>(scores_apart, zero)
  probs_main = Softmax<axis = -1>(scores_main)
  probs_mean = ReduceMean<keepdims = 0>(probs_main, axis1)
  probs_mean_t = Transpose<perm = [0, 2, 1]>(probs_mean)
  member_main = Gather<axis = 1>(member_t, zero)
  maps = MatMul(member_main, probs_mean_t)
"""

_COMPOSITION = """
  probs = Reshape(probs_apart, join_last_of_5)

  weight_sum = ReduceSum<keepdims = 1>(weights, axis1)
  weights_normed = Div(weights, weight_sum)
  weights_wide = Unsqueeze(weights_normed, axes23)
  v_weighted = Mul(v, weights_wide)
  v_split = Reshape(v_weighted, split_heads)
  v_heads = Transpose<perm = [0, 2, 1, 3]>(v_split)

  out_heads = MatMul(probs, v_heads)
  out_split = Transpose<perm = [0, 2, 1, 3]>(out_heads)
  out = Reshape(out_split, join_last_of_4)
"""

_GRADIENT_WEIGHTS = """
  scores_t = Transpose<perm = [0, 1, 3, 2]>(scores)
  over_positions = Softmax<axis = -1>(scores_t)
"""

_ATTN_TERM = """
  attn_joined = MatMul(over_positions, q_heads)
  attn_shape = Concat<axis = 0>(copy2, contexts_tokens, head_dim)
  attn_heads = Reshape(attn_joined, attn_shape)
"""

# Each context has a mask of its own, so the contexts become a batch axis of this one product.
_ATTN_TERM_MASKED = """
  q_wide = Unsqueeze(q_heads, axis2)
  mask_wide = Unsqueeze(mask, axes14)
  q_masked = Mul(q_wide, mask_wide)
  positions_shape = Concat<axis = 0>(copy2, contexts_tokens, keep_rest)
  positions_apart = Reshape(over_positions, positions_shape)
  attn_heads = MatMul(positions_apart, q_masked)
"""

_STEP = """
  attn_split = Transpose<perm = [0, 2, 3, 1, 4]>(attn_heads)
  attn_flat = Reshape(attn_split, join_last_of_5)
  gamma_attn_wide = Unsqueeze(gamma_attn, axis3)
  attn_term = Mul(attn_flat, gamma_attn_wide)

  k_norm2 = ReduceSumSquare<keepdims = 0>(k, axis3)
  k_norm2_scaled = Mul(k_norm2, norm_factor)
  r = Softmax<axis = -1>(k_norm2_scaled)
  gamma_norm_wide = Unsqueeze(gamma_norm, axis2)
  r_step = Mul(r, gamma_norm_wide)
  r_wide = Unsqueeze(r_step, axis3)
  norm_term = Mul(r_wide, k)

  step = Sub(attn_term, norm_term)
  step_flat = Reshape(step, join_last_of_4)
  step_tied = MatMul(tie, step_flat)
  k_shape = Shape(k)
  g = Reshape(step_tied, k_shape)
"""

# Softmax keeps order, so A's maximum is exp(largest score - logsumexp): two maxima give the logsumexp,
# safely (A's is at least 1/N) and without another exponential over the large tensor.
_ENERGIES = """
  scores_max = ReduceMax<keepdims = 0>(scores_t, axis3)
  probs_max = ReduceMax<keepdims = 0>(over_positions, axis3)
  probs_max_log = Log(probs_max)
  attn_lse_joined = Sub(scores_max, probs_max_log)
  lse_shape = Concat<axis = 0>(copy2, contexts_tokens)
  attn_lse = Reshape(attn_lse_joined, lse_shape)
  attn_lse_heads = ReduceSum<keepdims = 0>(attn_lse, axis3)
  attn_lse_mean = ReduceMean<keepdims = 0>(attn_lse_heads, axis1)
  energy_attn = Neg(attn_lse_mean)

  k_norm2_half = Mul(k_norm2, half)
  norm_max = ReduceMax<keepdims = 1>(k_norm2_half, axis2)
  norm_centred = Sub(k_norm2_half, norm_max)
  norm_exp = Exp(norm_centred)
  norm_sum = ReduceSum<keepdims = 0>(norm_exp, axis2)
  norm_log = Log(norm_sum)
  norm_max_flat = Squeeze(norm_max, axis2)
  energy_norm = Add(norm_max_flat, norm_log)
"""

_BODIES = {
    "attention": (_COMPOSITION,),
    "update": (_COMPOSITION, _GRADIENT_WEIGHTS, _ATTN_TERM, _STEP),
    "update_masked": (_COMPOSITION, _GRADIENT_WEIGHTS, _ATTN_TERM_MASKED, _STEP),
    "energies": (_COMPOSITION, _GRADIENT_WEIGHTS, _ATTN_TERM_MASKED, _STEP, _ENERGIES),
}
"""What follows the softmax over tokens."""

STORAGES = ("float32", "float16")

_TYPES = {"float32": "float", "int32": "int32"}


def op_model(heads: int, head_dim: int, variant: str, storage: str = "float32") -> onnx.ModelProto:
    """The operator's ONNX model: opset 20, IR 10, standard operators only, no weights.

    Inputs and outputs are `signature(variant, heads, head_dim)`, in that order, with the symbolic dimensions
    batch, contexts, tokens, positions and groups. q, k, v and out have the dtype `storage`; token_groups is int32,
    everything else float32, and so is all that is computed. Every softmax subtracts its maximum: scores of any size are
    safe.
    The weights' sum, the bias and the groups are not checked here: the caller does that, with check_weights and
    check_guidance.
    Raises ParameterError for an unknown variant or storage, or heads or head_dim below 1.
    """
    if storage not in STORAGES:
        raise ParameterError(f"storage is '{storage}'", f"choose one of {', '.join(STORAGES)}")
    sig = signature(variant, heads, head_dim)
    softmax = _GUIDED_SOFTMAX if variant in GUIDED_VARIANTS else _SOFTMAX
    body = "".join((_SCORES, softmax, *_BODIES[variant.removesuffix("_guided")]))
    constants = _CONSTANTS.format(H=heads, d=head_dim, scale=1.0 / math.sqrt(head_dim))
    text = (
        f'<ir_version: {IR_VERSION}, opset_import: ["": {OPSET}], producer_name: "ebca">\n'
        f"energy_attention_{variant} ({_arguments(sig.inputs)}) => ({_arguments(sig.outputs)})\n"
        f"<{constants}>\n{{{body}}}"
    )
    model = parser.parse_model(text)
    graph = model.graph

    if storage == "float16":
        _store_half(graph)
    for node in graph.node:
        node.name = node.output[0]
    used = {name for node in graph.node for name in node.input}
    kept = [constant for constant in graph.initializer if constant.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for value in (*graph.input, *graph.output):
        value.doc_string = TENSOR_DOCS[value.name]
    graph.doc_string = __doc__
    model.doc_string = f"Energy-based cross attention, variant {variant}, {heads} heads of size {head_dim}."
    onnx.checker.check_model(model, full_check=True)
    return model


def _store_half(graph: onnx.GraphProto) -> None:
    """Let q, k, v come in as float16 and out leave as float16, with casts inside."""
    wide = {value.name: f"{value.name}_float32" for value in (*graph.input, *graph.output) if value.name in _STORED}
    for node in graph.node:
        node.input[:] = [wide.get(name, name) for name in node.input]
        node.output[:] = [wide.get(name, name) for name in node.output]
    for value in (*graph.input, *graph.output):
        if value.name in wide:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    nodes = list(graph.node)
    widen = [
        onnx.helper.make_node("Cast", [v.name], [wide[v.name]], to=onnx.TensorProto.FLOAT)
        for v in graph.input
        if v.name in wide
    ]
    round_off = onnx.helper.make_node("Cast", [wide["out"]], ["out"], to=onnx.TensorProto.FLOAT16)
    del graph.node[:]
    graph.node.extend([*widen, *nodes, round_off])


def _arguments(specs: dict[str, TensorSpec]) -> str:
    return ", ".join(
        f"{_TYPES[spec.dtype]}[{', '.join(map(str, spec.shape))}] {name}"
        if spec.shape
        else f"{_TYPES[spec.dtype]} {name}"
        for name, spec in specs.items()
    )
