"""The operator on a GPU: three Triton kernels, compiled ahead of time by compile.py. Letters as in README.md.

    ebca_forward   out, and per tile of positions what the step needs of it
    ebca_combine   joins the tiles into g
    ebca_energies  the two energies, from the same pieces

Everything between a load and a store is float32. Scores are in base 2: `scale` is log2(e) / sqrt(d). Sizes and
strides (in elements; the last axis has stride 1) are run-time arguments, so that one binary serves every layer:
the head size too, in one or two blocks of channels (`D1`, `D2`) that are wide enough for it. Per call, and per
(row, context, head), ebca_forward leaves in scratch memory

    partial  [B, S, H, tiles, T, d]  storage dtype  A (m . q) of the tile, as if the tile were all positions
    column   [B, S, H, tiles, 2, T]  float32        base-2 maximum over the tile's scores of a token, and the sum of
                                                    exp2(score - maximum)
    norm2    [B, S, H, T]            float32        ||k||^2 of the head
"""

# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

# Stands for minus infinity where two of them could be subtracted.
_FLOOR = tl.constexpr(-1e30)
_LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def ebca_forward(
    q_ptr, k_ptr, v_ptr, weights_ptr, mask_ptr, out_ptr, partial_ptr, column_ptr, norm2_ptr,
    N, T, S, d,
    q_batch, q_position, k_batch, k_context, k_token, out_batch, out_position,
    mask_batch, mask_context, mask_positions, scale,
    BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    UPDATE: tl.constexpr, SINGLE: tl.constexpr,
):  # fmt: skip
    """One program per (tile of BLOCK_N positions, head, row): grid (tiles, H, B).

    S_s = q k_s^T / sqrt(d);  out = sum_s w_s softmax_T(S_s) v_s / sum_s w_s;  if UPDATE: e = exp(S - column maximum),
    partial = e^T (m . q) / sum e. q stays on chip; the tokens of each context come in blocks of BLOCK_T, and each block
    of scores is used for both softmaxes, each with its own maximum (README, large scores).
    SINGLE is for one context without a mask: its weight cancels, so `weights`, `mask` and S are not read.
    """
    tile = tl.program_id(0)
    h = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    tiles = tl.num_programs(0)
    heads = tl.num_programs(1)
    dtype = q_ptr.dtype.element_ty

    n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = n < N
    c1 = tl.arange(0, D1)
    ok1 = c1 < d
    q_ptr += b * q_batch + h * d
    q1 = tl.load(q_ptr + n[:, None] * q_position + c1[None, :], mask=inside[:, None] & ok1[None, :], other=0.0)
    if D2 > 0:
        c2 = D1 + tl.arange(0, D2)
        ok2 = c2 < d
        q2 = tl.load(q_ptr + n[:, None] * q_position + c2[None, :], mask=inside[:, None] & ok2[None, :], other=0.0)
    # Added with the scale in one instruction: positions past the end weigh nothing in a column.
    past = tl.where(inside, 0.0, _FLOOR)

    out1 = tl.zeros([BLOCK_N, D1], tl.float32)
    if D2 > 0:
        out2 = tl.zeros([BLOCK_N, D2], tl.float32)
    if SINGLE:
        S = 1
    else:
        total = 0.0
        for s in range(S):
            total += tl.load(weights_ptr + b * S + s)

    for s in range(S):
        k_base = k_ptr + b * k_batch + s * k_context + h * d
        v_base = v_ptr + b * k_batch + s * k_context + h * d
        group = (b * S + s) * heads + h
        partial_base = partial_ptr + (group * tiles + tile) * T * d
        column_base = column_ptr + (group * tiles + tile) * 2 * T
        row_max = tl.full([BLOCK_N], _FLOOR, tl.float32)
        row_sum = tl.zeros([BLOCK_N], tl.float32)
        if not SINGLE:
            # A first pass for the rows' softmax, so that all contexts add up in one accumulator: with an accumulator
            # per context beside it, d = 160 spills 200 bytes and d = 64 takes 240 registers instead of 180.
            for t0 in range(0, T, BLOCK_T):
                t = t0 + tl.arange(0, BLOCK_T)
                okt = t < T
                k1 = tl.load(k_base + t[:, None] * k_token + c1[None, :], mask=okt[:, None] & ok1[None, :], other=0.0)
                x = tl.dot(q1, tl.trans(k1))
                if D2 > 0:
                    at = k_base + t[:, None] * k_token + c2[None, :]
                    x = tl.dot(q2, tl.trans(tl.load(at, mask=okt[:, None] & ok2[None, :], other=0.0)), x)
                y = tl.where(okt[None, :], x * scale, float("-inf"))
                new_max = tl.maximum(row_max, tl.max(y, 1))
                row_sum = row_sum * tl.exp2(row_max - new_max) + tl.sum(tl.exp2(y - new_max[:, None]), 1)
                row_max = new_max
            share = tl.load(weights_ptr + b * S + s) / (total * row_sum)
            if UPDATE:
                # mask_positions is N, or 0 without a mask.
                m_base = mask_ptr + b * mask_batch + s * mask_context
                m = tl.load(m_base + n, mask=n < mask_positions, other=1.0)

        for t0 in range(0, T, BLOCK_T):
            t = t0 + tl.arange(0, BLOCK_T)
            okt = t < T
            k1 = tl.load(k_base + t[:, None] * k_token + c1[None, :], mask=okt[:, None] & ok1[None, :], other=0.0)
            v1 = tl.load(v_base + t[:, None] * k_token + c1[None, :], mask=okt[:, None] & ok1[None, :], other=0.0)
            x = tl.dot(q1, tl.trans(k1))  # [BLOCK_N, BLOCK_T]
            if D2 > 0:
                k2 = tl.load(k_base + t[:, None] * k_token + c2[None, :], mask=okt[:, None] & ok2[None, :], other=0.0)
                v2 = tl.load(v_base + t[:, None] * k_token + c2[None, :], mask=okt[:, None] & ok2[None, :], other=0.0)
                x = tl.dot(q2, tl.trans(k2), x)
            x = x * scale + past[:, None]

            # Rows before columns: the other order needs about a third more registers.
            y = tl.where(okt[None, :], x, float("-inf"))
            if SINGLE:
                new_max = tl.maximum(row_max, tl.max(y, 1))
                p = tl.exp2(y - new_max[:, None])
                shrink = tl.exp2(row_max - new_max)
                row_max = new_max
                row_sum = row_sum * shrink + tl.sum(p, 1)
                out1 *= shrink[:, None]
                if D2 > 0:
                    out2 *= shrink[:, None]
            else:
                p = tl.exp2(y - row_max[:, None]) * share[:, None]
            out1 = tl.dot(p.to(dtype), v1, out1)
            if D2 > 0:
                out2 = tl.dot(p.to(dtype), v2, out2)

            if UPDATE:
                top = tl.max(x, 0)
                e = tl.exp2(x - top[None, :])
                mass = tl.sum(e, 0)
                if not SINGLE:
                    e *= m[:, None]
                e = e.to(dtype)
                tl.store(column_base + t, top, mask=okt)
                tl.store(column_base + T + t, mass, mask=okt)
                # As q^T e: with the wide side on the matrix unit's rows no warp repeats another's work.
                per_mass = (1.0 / mass)[None, :]
                a1 = tl.trans(tl.dot(tl.trans(q1), e) * per_mass)  # [BLOCK_T, D1]
                at = partial_base + t[:, None] * d
                tl.store(at + c1[None, :], a1.to(dtype), mask=okt[:, None] & ok1[None, :])
                if D2 > 0:
                    a2 = tl.trans(tl.dot(tl.trans(q2), e) * per_mass)
                    tl.store(at + c2[None, :], a2.to(dtype), mask=okt[:, None] & ok2[None, :])
                if tile == 0:
                    kk = tl.sum(k1.to(tl.float32) * k1.to(tl.float32), 1)
                    if D2 > 0:
                        kk += tl.sum(k2.to(tl.float32) * k2.to(tl.float32), 1)
                    tl.store(norm2_ptr + group * T + t, kk, mask=okt)
        if SINGLE:
            out1 = out1 / row_sum[:, None]
            if D2 > 0:
                out2 = out2 / row_sum[:, None]

    out_ptr += b * out_batch + h * d
    tl.store(out_ptr + n[:, None] * out_position + c1[None, :], out1.to(dtype), mask=inside[:, None] & ok1[None, :])
    if D2 > 0:
        tl.store(out_ptr + n[:, None] * out_position + c2[None, :], out2.to(dtype), mask=inside[:, None] & ok2[None, :])


@triton.jit
def _squared_norms(norm2_ptr, group, t, okt, T, heads, BLOCK_H: tl.constexpr):
    """||k_t||^2 over all heads of the (row, context) whose first head is `group`."""
    total = tl.zeros_like(t).to(tl.float32)
    for h0 in range(0, heads, BLOCK_H):
        h = h0 + tl.arange(0, BLOCK_H)
        at = norm2_ptr + (group + h)[:, None] * T + t[None, :]
        total += tl.sum(tl.load(at, mask=(h < heads)[:, None] & okt[None, :], other=0.0), 0)
    return total


@triton.jit
def _norm_logsumexp(norm2_ptr, group, factor, T, heads, BLOCK_T: tl.constexpr, BLOCK_H: tl.constexpr):
    """(maximum, sum of exp(. - maximum)) over the tokens of factor ||k||^2."""
    top = float("-inf")
    total = 0.0
    for t0 in range(0, T, BLOCK_T):
        t = t0 + tl.arange(0, BLOCK_T)
        okt = t < T
        x = tl.where(okt, factor * _squared_norms(norm2_ptr, group, t, okt, T, heads, BLOCK_H), float("-inf"))
        new_top = tl.maximum(top, tl.max(x, 0))
        total = total * tl.exp(top - new_top) + tl.sum(tl.exp(x - new_top), 0)
        top = new_top
    return top, total


@triton.jit
def _join_columns(column_base, t, okt, T, tiles, BLOCK_I: tl.constexpr):
    """(maximum, sum of exp2(. - maximum)) over all positions, per token; (floor, 0) past the last token."""
    top = tl.zeros_like(t).to(tl.float32) + _FLOOR
    total = tl.zeros_like(top)
    for i0 in range(0, tiles, BLOCK_I):
        i = i0 + tl.arange(0, BLOCK_I)
        ok = (i < tiles)[:, None] & okt[None, :]
        at = column_base + i[:, None] * (2 * T) + t[None, :]
        tile_top = tl.load(at, mask=ok, other=_FLOOR)
        mass = tl.load(at + T, mask=ok, other=0.0)
        new_top = tl.maximum(top, tl.max(tile_top, 0))
        total = total * tl.exp2(top - new_top) + tl.sum(mass * tl.exp2(tile_top - new_top[None, :]), 0)
        top = new_top
    return top, total


@triton.jit
def ebca_combine(
    partial_ptr, column_ptr, norm2_ptr, k_ptr, gamma_attn_ptr, gamma_norm_ptr, norm_factor_ptr, tie_ptr, g_ptr,
    tiles, T, S, d, k_batch, k_context, k_token,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_I: tl.constexpr, UNROLL: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """One program per (BLOCK_T tokens and BLOCK_D channels, head, row and context).

    g_s = sum_z tie[s,z] ( gamma_attn[z,t] A_z (m . q)  -  gamma_norm[z] r_z,t k_z,t ), float32 [B, S, T, H d].
    Grid (ceil(T / BLOCK_T) * ceil(d / BLOCK_D), H, B S).
    """
    blocks = tl.cdiv(d, BLOCK_D)
    t = tl.program_id(0) // blocks * BLOCK_T + tl.arange(0, BLOCK_T)
    c = tl.program_id(0) % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    h = tl.program_id(1)
    heads = tl.num_programs(1)
    row = tl.program_id(2).to(tl.int64)
    b = row // S
    okt = t < T
    ok = okt[:, None] & (c < d)[None, :]
    factor = tl.load(norm_factor_ptr)

    g = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
    for z in range(S):
        share = tl.load(tie_ptr + row * S + z)
        # Most of `tie` is zeros: a context that takes no part is not read.
        if share != 0.0:
            source = b * S + z
            group = source * heads
            column_base = column_ptr + (group + h) * tiles * 2 * T
            partial_base = partial_ptr + (group + h) * tiles * T * d
            top, total = _join_columns(column_base, t, okt, T, tiles, BLOCK_I)
            attn = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
            for i0 in range(0, tiles, UNROLL):
                for j in tl.static_range(UNROLL):
                    i = tl.zeros_like(t) + (i0 + j)
                    here = okt & (i < tiles)
                    tile_top = tl.load(column_base + i * (2 * T) + t, mask=here, other=_FLOOR)
                    mass = tl.load(column_base + i * (2 * T) + T + t, mask=here, other=0.0)
                    at = partial_base + (i * T + t)[:, None] * d + c[None, :]
                    part = tl.load(at, mask=ok & here[:, None], other=0.0).to(tl.float32)
                    attn += part * (mass * tl.exp2(tile_top - top))[:, None]
            step = tl.load(gamma_attn_ptr + source * T + t, mask=okt, other=0.0) / tl.where(okt, total, 1.0)

            norm_top, norm_total = _norm_logsumexp(norm2_ptr, group, factor, T, heads, BLOCK_L, BLOCK_H)
            r = tl.exp(factor * _squared_norms(norm2_ptr, group, t, okt, T, heads, BLOCK_H) - norm_top) / norm_total
            at = k_ptr + b * k_batch + z * k_context + h * d + t[:, None] * k_token + c[None, :]
            k = tl.load(at, mask=ok, other=0.0).to(tl.float32)
            pull = tl.load(gamma_norm_ptr + source) * r
            g += share * (step[:, None] * attn - pull[:, None] * k)
    tl.store(g_ptr + (row * T + t[:, None]) * (heads * d) + h * d + c[None, :], g, mask=ok)


@triton.jit
def ebca_energies(
    column_ptr, norm2_ptr, energy_attn_ptr, energy_norm_ptr, tiles, T, heads,
    BLOCK_T: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """energy_attn and energy_norm, float32 [B, S]; one program per row and context: grid (B S)."""
    row = tl.program_id(0)
    group = row.to(tl.int64) * heads
    energy = 0.0
    for h in range(heads):
        for t0 in range(0, T, BLOCK_T):
            t = t0 + tl.arange(0, BLOCK_T)
            okt = t < T
            top, total = _join_columns(column_ptr + (group + h) * tiles * 2 * T, t, okt, T, tiles, BLOCK_I)
            energy -= tl.sum(tl.where(okt, top + tl.log2(tl.where(okt, total, 1.0)), 0.0), 0)
    tl.store(energy_attn_ptr + row, energy * _LN2 / heads)
    top, total = _norm_logsumexp(norm2_ptr, group, 0.5, T, heads, BLOCK_T, BLOCK_H)
    tl.store(energy_norm_ptr + row, top + tl.log(total))
