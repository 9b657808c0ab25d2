"""The operator on a GPU: three Triton kernels, compiled ahead of time by compile.py. Letters as in README.md.

    ebca_forward   out; per range of positions what the step needs of it; and the norms of the keys
    ebca_combine   joins the ranges into g
    ebca_energies  the two energies, from the same pieces

Everything between a load and a store is float32. Scores are in base 2: `scale` is log2(e) / sqrt(d). Sizes and
strides (in elements; the last axis has stride 1) are run-time arguments, so that one binary serves every layer:
the head size too, in one or two blocks of channels (`D1`, `D2`) that are wide enough for it. The positions are cut into
`splits` ranges of `span`. For each, ebca_forward leaves in scratch memory

    partial  [B, S, H, splits, T, d]  storage dtype  A (m . q) of the range, as if it were all positions
    column   [B, S, H, splits, 2, T]  float32        base-2 maximum over the range's scores of a token, and the sum of
                                                     exp2(score - maximum)
    norm2    [B, S, T]                float32        ||k||^2, over all heads
"""

# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

# Stands for minus infinity where two of them could be subtracted.
_FLOOR = tl.constexpr(-1e30)
_LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _load(base, rows, ok, stride, d, FIRST: tl.constexpr, WIDTH: tl.constexpr):
    """[rows, WIDTH] channels from FIRST on; zeros where not ok, and past the last channel."""
    c = FIRST + tl.arange(0, WIDTH)
    at = base + rows[:, None] * stride + c[None, :]
    return tl.load(at, mask=ok[:, None] & (c < d)[None, :], other=0.0)


@triton.jit
def _store(base, rows, ok, stride, d, value, FIRST: tl.constexpr, WIDTH: tl.constexpr):
    c = FIRST + tl.arange(0, WIDTH)
    at = base + rows[:, None] * stride + c[None, :]
    tl.store(at, value.to(base.dtype.element_ty), mask=ok[:, None] & (c < d)[None, :])


@triton.jit
def _product(a1, a2, b1, b2, D2: tl.constexpr):
    """a b^T over both blocks of channels."""
    x = tl.dot(a1, tl.trans(b1))
    if D2 > 0:
        x = tl.dot(a2, tl.trans(b2), x)
    return x


@triton.jit
def _attend_round(
    q1, q2, k_base, v_base, top, mass, a1, a2, t0, T, d, k_token, scale,
    T1: tl.constexpr, T2: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, EAGER: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    """Add tokens [t0, t0 + T1 + T2) to rows' (maximum, sum of exp2, sum of exp2 v); the FIRST round starts them.

    Both blocks of scores are there before the first exponential, so a prompt that fits in one round rescales nothing.
    """
    t = t0 + tl.arange(0, T1)
    u = t0 + T1 + tl.arange(0, T2)
    okt = t < T
    oku = u < T
    k1 = _load(k_base, t, okt, k_token, d, 0, D1)
    l1 = _load(k_base, u, oku, k_token, d, 0, D1)
    k2 = _load(k_base, t, okt, k_token, d, D1, D2) if D2 > 0 else k1
    l2 = _load(k_base, u, oku, k_token, d, D1, D2) if D2 > 0 else l1
    if EAGER:  # in flight with k, if registers and shared memory are enough for both
        v1 = _load(v_base, t, okt, k_token, d, 0, D1)
        w1 = _load(v_base, u, oku, k_token, d, 0, D1)
    x = _product(q1, q2, k1, k2, D2)  # [BLOCK_N, T1]
    y = _product(q1, q2, l1, l2, D2)  # [BLOCK_N, T2]
    x = tl.where(okt[None, :], x, float("-inf"))
    y = tl.where(oku[None, :], y, float("-inf"))
    new_top = tl.maximum(tl.max(x, 1), tl.max(y, 1)) * scale
    if not FIRST:
        new_top = tl.maximum(top, new_top)
        shrink = tl.exp2(top - new_top)
        mass *= shrink
        a1 *= shrink[:, None]
        if D2 > 0:
            a2 *= shrink[:, None]
    p = tl.exp2(x * scale - new_top[:, None])
    r = tl.exp2(y * scale - new_top[:, None])
    mass += tl.sum(p, 1) + tl.sum(r, 1)
    p = p.to(q1.dtype)
    r = r.to(q1.dtype)
    if not EAGER:
        v1 = _load(v_base, t, okt, k_token, d, 0, D1)
        w1 = _load(v_base, u, oku, k_token, d, 0, D1)
    a1 = tl.dot(r, w1, tl.dot(p, v1, a1))
    if D2 > 0:
        a2 = tl.dot(p, _load(v_base, t, okt, k_token, d, D1, D2), a2)
        a2 = tl.dot(r, _load(v_base, u, oku, k_token, d, D1, D2), a2)
    return new_top, mass, a1, a2


@triton.jit
def _attend(
    q_ptr, k_ptr, v_ptr, weights_ptr, out_ptr, tile, h, b, N, T, S, d,
    q_batch, q_position, k_batch, k_context, k_token, out_batch, out_position, scale,
    BLOCK_N: tl.constexpr, T1: tl.constexpr, T2: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    EAGER: tl.constexpr, SINGLE: tl.constexpr,
):  # fmt: skip
    """out = sum_s w_s softmax_T(S_s) v_s / sum_s w_s of BLOCK_N positions.

    The tokens come in pairs of blocks, T1 + T2, which is less waste for 77 than any power of two.
    """
    n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = n < N
    q1 = _load(q_ptr + b * q_batch + h * d, n, inside, q_position, d, 0, D1)
    q2 = _load(q_ptr + b * q_batch + h * d, n, inside, q_position, d, D1, D2) if D2 > 0 else q1
    zero1 = tl.zeros([BLOCK_N, D1], tl.float32)
    zero2 = tl.zeros([BLOCK_N, D2], tl.float32) if D2 > 0 else zero1
    out1 = zero1
    out2 = zero2
    total = 0.0
    if not SINGLE:
        for s in range(S):
            total += tl.load(weights_ptr + b * S + s)

    for s in range(S):
        k_base = k_ptr + b * k_batch + s * k_context + h * d
        v_base = v_ptr + b * k_batch + s * k_context + h * d
        top = tl.full([BLOCK_N], _FLOOR, tl.float32)
        mass = tl.zeros([BLOCK_N], tl.float32)
        a1 = zero1
        a2 = zero2
        if SINGLE:
            top, mass, a1, a2 = _attend_round(
                q1, q2, k_base, v_base, top, mass, a1, a2, 0, T, d, k_token, scale, T1, T2, D1, D2, EAGER, True
            )
        # One stage: there is rarely a further round, and prefetching it would double the shared memory.
        for t0 in tl.range((T1 + T2) * SINGLE, T, T1 + T2, num_stages=1):
            top, mass, a1, a2 = _attend_round(
                q1, q2, k_base, v_base, top, mass, a1, a2, t0, T, d, k_token, scale, T1, T2, D1, D2, EAGER, False
            )
        if SINGLE:  # its weight cancels
            share = 1.0 / mass
            out1 = a1 * share[:, None]
            out2 = a2 * share[:, None]
        else:
            share = tl.load(weights_ptr + b * S + s) / (total * mass)
            out1 += a1 * share[:, None]
            out2 += a2 * share[:, None]

    _store(out_ptr + b * out_batch + h * d, n, inside, out_position, d, out1, 0, D1)
    if D2 > 0:
        _store(out_ptr + b * out_batch + h * d, n, inside, out_position, d, out2, D1, D2)


@triton.jit
def _pull(
    q_ptr, k_ptr, mask_ptr, partial_ptr, column_ptr, t0, split, s, h, b, heads, N, T, S, d, splits, span,
    q_batch, q_position, k_batch, k_context, k_token, mask_batch, mask_context, mask_positions, scale,
    ROWS: tl.constexpr, BLOCK_P: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, SINGLE: tl.constexpr,
):  # fmt: skip
    """A (m . q) of ROWS tokens over one range of positions, with the maxima and sums of its softmax.

    It is attention of the tokens to the positions: with the tokens as rows, no sum or maximum crosses the rows of a
    matrix instruction, which costs several times as much as computing the scores twice.
    """
    t = t0 + tl.arange(0, ROWS)
    okt = t < T
    k_base = k_ptr + b * k_batch + s * k_context + h * d
    q_base = q_ptr + b * q_batch + h * d
    k1 = _load(k_base, t, okt, k_token, d, 0, D1)
    k2 = _load(k_base, t, okt, k_token, d, D1, D2) if D2 > 0 else k1
    top = tl.full([ROWS], _FLOOR, tl.float32)
    mass = tl.zeros([ROWS], tl.float32)
    a1 = tl.zeros([ROWS, D1], tl.float32)
    if D2 > 0:
        a2 = tl.zeros([ROWS, D2], tl.float32)
    end = tl.minimum(N, (split + 1) * span)
    for n0 in range(split * span, end, BLOCK_P):
        n = n0 + tl.arange(0, BLOCK_P)
        inside = n < end
        q1 = _load(q_base, n, inside, q_position, d, 0, D1)
        q2 = _load(q_base, n, inside, q_position, d, D1, D2) if D2 > 0 else q1
        if not SINGLE:
            # mask_positions is N, or 0 without a mask.
            m = tl.load(mask_ptr + b * mask_batch + s * mask_context + n, mask=n < mask_positions, other=1.0)
        x = _product(k1, k2, q1, q2, D2)  # [ROWS, BLOCK_P]
        if n0 + BLOCK_P > end:
            x = tl.where(inside[None, :], x, float("-inf"))
        new_top = tl.maximum(top, tl.max(x, 1) * scale)
        shrink = tl.exp2(top - new_top)
        top = new_top
        e = tl.exp2(x * scale - top[:, None])
        mass = mass * shrink + tl.sum(e, 1)
        if not SINGLE:
            e *= m[None, :]
        e = e.to(q1.dtype)
        a1 = tl.dot(e, q1, a1 * shrink[:, None])
        if D2 > 0:
            a2 = tl.dot(e, q2, a2 * shrink[:, None])

    at = ((b * S + s) * heads + h) * splits + split
    tl.store(column_ptr + at * 2 * T + t, top, mask=okt)
    tl.store(column_ptr + at * 2 * T + T + t, mass, mask=okt)
    per_mass = (1.0 / mass)[:, None]
    _store(partial_ptr + at * T * d, t, okt, d, d, a1 * per_mass, 0, D1)
    if D2 > 0:
        _store(partial_ptr + at * T * d, t, okt, d, d, a2 * per_mass, D1, D2)


@triton.jit
def _square(
    k_ptr, norm2_ptr, index, b, channels, T, S, k_batch, k_context, k_token,
    NORM_T: tl.constexpr, NORM_C: tl.constexpr,
):  # fmt: skip
    """||k_t||^2 of block `index` of the NORM_T-token blocks of all contexts."""
    blocks = tl.cdiv(T, NORM_T)
    s = index // blocks
    if s < S:
        t = index % blocks * NORM_T + tl.arange(0, NORM_T)
        total = tl.zeros([NORM_T], tl.float32)
        for c0 in range(0, channels, NORM_C):
            base = k_ptr + b * k_batch + s * k_context + c0
            k = _load(base, t, t < T, k_token, channels - c0, 0, NORM_C).to(tl.float32)
            total += tl.sum(k * k, 1)
        tl.store(norm2_ptr + (b * S + s) * T + t, total, mask=t < T)


@triton.jit
def ebca_forward(
    q_ptr, k_ptr, v_ptr, weights_ptr, mask_ptr, out_ptr, partial_ptr, column_ptr, norm2_ptr,
    N, T, S, d, splits, span,
    q_batch, q_position, k_batch, k_context, k_token, out_batch, out_position,
    mask_batch, mask_context, mask_positions, scale,
    BLOCK_N: tl.constexpr, T1: tl.constexpr, T2: tl.constexpr, ROWS: tl.constexpr, TAIL: tl.constexpr,
    BLOCK_P: tl.constexpr, NORM_T: tl.constexpr, NORM_C: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    EAGER: tl.constexpr, SINGLE: tl.constexpr,
):  # fmt: skip
    """Grid (places, H, B). The places of a head are, in order:

        for each context and range, one program per ROWS tokens and, for the rest, one per TAIL tokens (_pull)
        one program per BLOCK_N positions (_attend)
        programs for the norms, of which each head takes its share (_square)

    Without a step, splits is 0 and the grid ends after the positions: there are programs of the second kind alone.
    SINGLE is for one context without a mask: its weight cancels, so `weights`, `mask` and S are not read.
    """
    place = tl.program_id(0)
    h = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    heads = tl.num_programs(1)
    if SINGLE:
        S = 1
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
                mask_batch, mask_context, mask_positions, scale, ROWS, BLOCK_P, D1, D2, SINGLE,
            )  # fmt: skip
        elif ROWS > TAIL:
            _pull(
                q_ptr, k_ptr, mask_ptr, partial_ptr, column_ptr, wide * ROWS + (row - wide) * TAIL, split, s, h, b,
                heads, N, T, S, d, splits, span, q_batch, q_position, k_batch, k_context, k_token,
                mask_batch, mask_context, mask_positions, scale, TAIL, BLOCK_P, D1, D2, SINGLE,
            )  # fmt: skip
    elif place < pulls + tiles:
        _attend(
            q_ptr, k_ptr, v_ptr, weights_ptr, out_ptr, place - pulls, h, b, N, T, S, d,
            q_batch, q_position, k_batch, k_context, k_token, out_batch, out_position, scale,
            BLOCK_N, T1, T2, D1, D2, EAGER, SINGLE,
        )  # fmt: skip
    else:
        _square(
            k_ptr, norm2_ptr, (place - pulls - tiles) * heads + h, b, heads * d, T, S,
            k_batch, k_context, k_token, NORM_T, NORM_C,
        )  # fmt: skip


@triton.jit
def _norm_logsumexp(norm2_ptr, factor, T, BLOCK_L: tl.constexpr):
    """(maximum, sum of exp(. - maximum)) over the tokens of factor ||k||^2."""
    top = float("-inf")
    total = 0.0
    for t0 in range(0, T, BLOCK_L):
        t = t0 + tl.arange(0, BLOCK_L)
        x = factor * tl.load(norm2_ptr + t, mask=t < T, other=0.0)
        x = tl.where(t < T, x, float("-inf"))
        new_top = tl.maximum(top, tl.max(x, 0))
        total = total * tl.exp(top - new_top) + tl.sum(tl.exp(x - new_top), 0)
        top = new_top
    return top, total


@triton.jit
def _columns(column_ptr, t, okt, T, splits, SPLITS: tl.constexpr):
    """Maxima and sums of all ranges, [SPLITS, tokens]; (floor, 0) past the last range and token."""
    i = tl.arange(0, SPLITS)
    ok = (i < splits)[:, None] & okt[None, :]
    at = column_ptr + i[:, None] * (2 * T) + t[None, :]
    return tl.load(at, mask=ok, other=_FLOOR), tl.load(at + T, mask=ok, other=0.0)


@triton.jit
def _own_step(
    partial_ptr, column_ptr, norm2_ptr, k_ptr, gamma_attn_ptr, gamma_norm_ptr, factor, z, b, h, heads, t, c,
    T, S, d, splits, k_batch, k_context, k_token, SPLITS: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """g0_z of tokens t and channels c of a head, [tokens, channels]."""
    okt = t < T
    ok = okt[:, None] & (c < d)[None, :]
    source = b * S + z
    group = source * heads + h
    # All loads first: they depend on nothing, so the program waits for memory once.
    i = tl.arange(0, SPLITS)
    at = (partial_ptr + group * splits * T * d) + (i[:, None, None] * T + t[None, :, None]) * d + c[None, None, :]
    part = tl.load(at, mask=(i < splits)[:, None, None] & ok[None, :, :], other=0.0)
    tops, masses = _columns(column_ptr + group * splits * 2 * T, t, okt, T, splits, SPLITS)
    at = k_ptr + b * k_batch + z * k_context + h * d + t[:, None] * k_token + c[None, :]
    k = tl.load(at, mask=ok, other=0.0)
    norm2 = tl.load(norm2_ptr + source * T + t, mask=okt, other=0.0)
    gamma_attn = tl.load(gamma_attn_ptr + source * T + t, mask=okt, other=0.0)
    gamma_norm = tl.load(gamma_norm_ptr + source)
    norm_top, norm_total = _norm_logsumexp(norm2_ptr + source * T, factor, T, BLOCK_L)

    masses *= tl.exp2(tops - tl.max(tops, 0)[None, :])
    shares = masses * (gamma_attn / tl.where(okt, tl.sum(masses, 0), 1.0))[None, :]
    pull = gamma_norm * tl.exp(factor * norm2 - norm_top) / norm_total
    return tl.sum(part.to(tl.float32) * shares[:, :, None], 0) - pull[:, None] * k.to(tl.float32)


@triton.jit
def ebca_combine(
    partial_ptr, column_ptr, norm2_ptr, k_ptr, gamma_attn_ptr, gamma_norm_ptr, norm_factor_ptr, tie_ptr, g_ptr,
    T, S, d, splits, k_batch, k_context, k_token,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, SPLITS: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """One program per (BLOCK_T tokens and BLOCK_D channels, head, row and context).

    g_s = sum_z tie[s,z] ( gamma_attn[z,t] A_z (m . q)  -  gamma_norm[z] r_z,t k_z,t ), float32 [B, S, T, H d].
    Grid (ceil(T / BLOCK_T) * ceil(d / BLOCK_D), H, B S). SPLITS is the largest number of ranges.
    """
    blocks = tl.cdiv(d, BLOCK_D)
    t = tl.program_id(0) // blocks * BLOCK_T + tl.arange(0, BLOCK_T)
    c = tl.program_id(0) % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    h = tl.program_id(1)
    heads = tl.num_programs(1)
    row = tl.program_id(2).to(tl.int64)
    b = row // S
    s = row % S
    factor = tl.load(norm_factor_ptr)
    # The context itself always takes part, so nothing waits to learn that.
    own = tl.load(tie_ptr + row * S + s)
    g = own * _own_step(
        partial_ptr, column_ptr, norm2_ptr, k_ptr, gamma_attn_ptr, gamma_norm_ptr, factor, s, b, h, heads, t, c,
        T, S, d, splits, k_batch, k_context, k_token, SPLITS, BLOCK_L,
    )  # fmt: skip
    for z in range(S):
        # Most of `tie` is zeros: another context that takes no part is not read.
        if z != s:
            share = tl.load(tie_ptr + row * S + z)
            if share != 0.0:
                g += share * _own_step(
                    partial_ptr, column_ptr, norm2_ptr, k_ptr, gamma_attn_ptr, gamma_norm_ptr, factor, z, b, h, heads,
                    t, c, T, S, d, splits, k_batch, k_context, k_token, SPLITS, BLOCK_L,
                )  # fmt: skip
    ok = (t < T)[:, None] & (c < d)[None, :]
    tl.store(g_ptr + (row * T + t[:, None]) * (heads * d) + h * d + c[None, :], g, mask=ok)


@triton.jit
def ebca_energies(
    column_ptr, norm2_ptr, energy_attn_ptr, energy_norm_ptr, T, heads, splits,
    BLOCK_T: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """energy_attn and energy_norm, float32 [B, S]; one program per row and context: grid (B S)."""
    row = tl.program_id(0).to(tl.int64)
    energy = 0.0
    for h in range(heads):
        for t0 in range(0, T, BLOCK_T):
            t = t0 + tl.arange(0, BLOCK_T)
            okt = t < T
            tops, masses = _columns(column_ptr + (row * heads + h) * splits * 2 * T, t, okt, T, splits, SPLITS)
            top = tl.max(tops, 0)
            total = tl.sum(masses * tl.exp2(tops - top[None, :]), 0)
            energy -= tl.sum(tl.where(okt, top + tl.log2(tl.where(okt, total, 1.0)), 0.0), 0)
    tl.store(energy_attn_ptr + row, energy * _LN2 / heads)
    top, total = _norm_logsumexp(norm2_ptr + row * T, 0.5, T, BLOCK_T)
    tl.store(energy_norm_ptr + row, top + tl.log(total))
