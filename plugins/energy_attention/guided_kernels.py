"""The guided variants on a GPU: attention with a bias per group of tokens, and each group's attention map.

    ebca_forward_guided   as ebca_forward, with the bias; and the maps of every head
    ebca_maps             their mean

Letters, layouts and the programs of the step are those of kernels.py; G is the number of groups. Which token belongs to
which group is a matrix of zeros and ones, `member`. A product with it takes a group's bias to its tokens, and another
one the tokens' softmax to their group, so that neither needs a further pass over q, k, or the scores. It leaves in
scratch memory

    head_maps  [B, H, G, N]  float32  softmax_T(S_0) summed over the tokens of a group
"""

# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from ebca.plugins.energy_attention.kernels import _FLOOR, _load, _product, _pull, _square, _store

_LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _member(token_groups_ptr, t, ok, GROUPS: tl.constexpr):
    """[GROUPS, tokens]: 1 where token t is in the group."""
    own = tl.load(token_groups_ptr + t, mask=ok, other=-1)
    return (tl.arange(0, GROUPS)[:, None] == own[None, :]).to(tl.float16)


@triton.jit
def _token_bias(high, low, member):
    """The bias of each token, [positions, tokens]. Every sum has one term that is not zero, so it is exact."""
    return tl.dot(low, member, tl.dot(high, member))


@triton.jit
def _guided_round(
    q1, q2, k_base, v_base, token_groups_ptr, high, low, top, mass, a1, a2, plain_top, plain_mass, maps, main,
    t0, T, d, k_token, scale,
    T1: tl.constexpr, T2: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """Add tokens [t0, t0 + T1 + T2) to the rows' two softmaxes, of which the one without bias is for the main context.

    Each has its own maximum: a bias that hides the largest scores would leave a shared one far above all others.
    """
    t = t0 + tl.arange(0, T1)
    u = t0 + T1 + tl.arange(0, T2)
    okt = t < T
    oku = u < T
    k1 = _load(k_base, t, okt, k_token, d, 0, D1)
    l1 = _load(k_base, u, oku, k_token, d, 0, D1)
    k2 = _load(k_base, t, okt, k_token, d, D1, D2) if D2 > 0 else k1
    l2 = _load(k_base, u, oku, k_token, d, D1, D2) if D2 > 0 else l1
    in_t = _member(token_groups_ptr, t, okt, GROUPS)
    in_u = _member(token_groups_ptr, u, oku, GROUPS)
    x = _product(q1, q2, k1, k2, D2)  # [BLOCK_N, T1]
    y = _product(q1, q2, l1, l2, D2)  # [BLOCK_N, T2]
    x = tl.where(okt[None, :], x, float("-inf"))
    y = tl.where(oku[None, :], y, float("-inf"))
    if main:
        new_top = tl.maximum(plain_top, tl.maximum(tl.max(x, 1), tl.max(y, 1)) * scale)
        shrink = tl.exp2(plain_top - new_top)
        plain_top = new_top
        p = tl.exp2(x * scale - new_top[:, None])
        r = tl.exp2(y * scale - new_top[:, None])
        plain_mass = plain_mass * shrink + tl.sum(p, 1) + tl.sum(r, 1)
        # float16 for every storage type: these are at most 1, and a map deserves its eleven bits.
        maps = tl.dot(p.to(tl.float16), tl.trans(in_t), maps * shrink[:, None])
        maps = tl.dot(r.to(tl.float16), tl.trans(in_u), maps)

    bx = _token_bias(high, low, in_t)
    by = _token_bias(high, low, in_u)
    new_top = tl.maximum(tl.max(x * scale + bx, 1), tl.max(y * scale + by, 1))
    new_top = tl.maximum(top, new_top)
    shrink = tl.exp2(top - new_top)
    # The difference first: with a bias of 0, this has the bits of ebca_forward.
    p = tl.exp2(x * scale + (bx - new_top[:, None]))
    r = tl.exp2(y * scale + (by - new_top[:, None]))
    mass = mass * shrink
    mass += tl.sum(p, 1) + tl.sum(r, 1)
    p = p.to(q1.dtype)
    r = r.to(q1.dtype)
    v1 = _load(v_base, t, okt, k_token, d, 0, D1)
    w1 = _load(v_base, u, oku, k_token, d, 0, D1)
    a1 = tl.dot(r, w1, tl.dot(p, v1, a1 * shrink[:, None]))
    if D2 > 0:
        a2 = tl.dot(p, _load(v_base, t, okt, k_token, d, D1, D2), a2 * shrink[:, None])
        a2 = tl.dot(r, _load(v_base, u, oku, k_token, d, D1, D2), a2)
    return new_top, mass, a1, a2, plain_top, plain_mass, maps


@triton.jit
def _attend_guided(
    q_ptr, k_ptr, v_ptr, weights_ptr, bias_ptr, token_groups_ptr, out_ptr, head_maps_ptr,
    tile, h, b, heads, N, T, S, d, groups,
    q_batch, q_position, k_batch, k_context, k_token, out_batch, out_position, scale,
    BLOCK_N: tl.constexpr, T1: tl.constexpr, T2: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    GROUPS: tl.constexpr,
):  # fmt: skip
    """out = sum_s w_s softmax_T(S_s + bias) v_s / sum_s w_s of BLOCK_N positions, and their maps of this head."""
    n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = n < N
    group = tl.arange(0, GROUPS)
    ok = inside[:, None] & (group < groups)[None, :]
    cell = group[None, :] * N + n[:, None]
    q1 = _load(q_ptr + b * q_batch + h * d, n, inside, q_position, d, 0, D1)
    q2 = _load(q_ptr + b * q_batch + h * d, n, inside, q_position, d, D1, D2) if D2 > 0 else q1
    zero1 = tl.zeros([BLOCK_N, D1], tl.float32)
    zero2 = tl.zeros([BLOCK_N, D2], tl.float32) if D2 > 0 else zero1
    out1 = zero1
    out2 = zero2
    total = 0.0
    for s in range(S):
        total += tl.load(weights_ptr + b * S + s)

    for s in range(S):
        bias = tl.load(bias_ptr + (b * S + s) * groups * N + cell, mask=ok, other=0.0) * _LOG2E
        # Two halves of float16 hold 22 bits.
        high = bias.to(tl.float16)
        low = (bias - high.to(tl.float32)).to(tl.float16)
        k_base = k_ptr + b * k_batch + s * k_context + h * d
        v_base = v_ptr + b * k_batch + s * k_context + h * d
        top = tl.full([BLOCK_N], _FLOOR, tl.float32)
        mass = tl.zeros([BLOCK_N], tl.float32)
        a1 = zero1
        a2 = zero2
        plain_top = top
        plain_mass = mass
        maps = tl.zeros([BLOCK_N, GROUPS], tl.float32)
        # One stage: there is rarely a further round, and prefetching it would double the shared memory.
        for t0 in tl.range(0, T, T1 + T2, num_stages=1):
            top, mass, a1, a2, plain_top, plain_mass, maps = _guided_round(
                q1, q2, k_base, v_base, token_groups_ptr + (b * S + s) * T, high, low,
                top, mass, a1, a2, plain_top, plain_mass, maps, s == 0, t0, T, d, k_token, scale,
                T1, T2, D1, D2, GROUPS,
            )  # fmt: skip
        if s == 0:
            at = head_maps_ptr + (b * heads + h) * groups * N + cell
            tl.store(at, maps * (1.0 / plain_mass)[:, None], mask=ok)
        share = tl.load(weights_ptr + b * S + s) / (total * mass)
        out1 += a1 * share[:, None]
        out2 += a2 * share[:, None]

    _store(out_ptr + b * out_batch + h * d, n, inside, out_position, d, out1, 0, D1)
    if D2 > 0:
        _store(out_ptr + b * out_batch + h * d, n, inside, out_position, d, out2, D1, D2)


@triton.jit
def ebca_forward_guided(
    q_ptr, k_ptr, v_ptr, weights_ptr, mask_ptr, bias_ptr, token_groups_ptr,
    out_ptr, partial_ptr, column_ptr, norm2_ptr, head_maps_ptr,
    N, T, S, d, splits, span, groups,
    q_batch, q_position, k_batch, k_context, k_token, out_batch, out_position,
    mask_batch, mask_context, mask_positions, scale,
    BLOCK_N: tl.constexpr, T1: tl.constexpr, T2: tl.constexpr, ROWS: tl.constexpr, TAIL: tl.constexpr,
    BLOCK_P: tl.constexpr, NORM_T: tl.constexpr, NORM_C: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    GROUPS: tl.constexpr,
):  # fmt: skip
    """Grid and places as in ebca_forward; at most GROUPS groups. One form for any number of contexts, mask or none."""
    place = tl.program_id(0)
    h = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    heads = tl.num_programs(1)
    wide = (T + TAIL - 1) // ROWS
    rows = wide + tl.cdiv(tl.maximum(T - wide * ROWS, 0), TAIL)
    pulls = S * splits * rows
    tiles = tl.cdiv(N, BLOCK_N)
    if place < pulls:
        row = place % rows
        split = place // rows % splits
        s = place // rows // splits
        if row < wide:
            _pull(
                q_ptr, k_ptr, mask_ptr, partial_ptr, column_ptr, row * ROWS, split, s, h, b, heads,
                N, T, S, d, splits, span, q_batch, q_position, k_batch, k_context, k_token,
                mask_batch, mask_context, mask_positions, scale, ROWS, BLOCK_P, D1, D2, False,
            )  # fmt: skip
        elif ROWS > TAIL:
            _pull(
                q_ptr, k_ptr, mask_ptr, partial_ptr, column_ptr, wide * ROWS + (row - wide) * TAIL, split, s, h, b,
                heads, N, T, S, d, splits, span, q_batch, q_position, k_batch, k_context, k_token,
                mask_batch, mask_context, mask_positions, scale, TAIL, BLOCK_P, D1, D2, False,
            )  # fmt: skip
    elif place < pulls + tiles:
        _attend_guided(
            q_ptr, k_ptr, v_ptr, weights_ptr, bias_ptr, token_groups_ptr, out_ptr, head_maps_ptr,
            place - pulls, h, b, heads, N, T, S, d, groups,
            q_batch, q_position, k_batch, k_context, k_token, out_batch, out_position, scale,
            BLOCK_N, T1, T2, D1, D2, GROUPS,
        )  # fmt: skip
    else:
        _square(
            k_ptr, norm2_ptr, (place - pulls - tiles) * heads + h, b, heads * d, T, S,
            k_batch, k_context, k_token, NORM_T, NORM_C,
        )  # fmt: skip


@triton.jit
def ebca_maps(head_maps_ptr, maps_ptr, heads, cells, BLOCK: tl.constexpr, HEADS: tl.constexpr):
    """maps [B, G, N] = mean over heads of head_maps. cells = G N; grid (ceil(cells / BLOCK), 1, B)."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b = tl.program_id(2).to(tl.int64)
    inside = at < cells
    total = tl.zeros([BLOCK], tl.float32)
    for h0 in range(0, heads, HEADS):
        h = h0 + tl.arange(0, HEADS)
        part = head_maps_ptr + (b * heads + h)[:, None] * cells + at[None, :]
        total += tl.sum(tl.load(part, mask=(h < heads)[:, None] & inside[None, :], other=0.0), 0)
    tl.store(maps_ptr + b * cells + at, total / heads, mask=inside)
