"""The kernel in Triton, compiled ahead of time with those of the ops. It does what windows.py does, in the same order.

It takes a few microseconds between two evaluations, so it is kept simple: one program per row, the grid in registers.
"""

# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl


@triton.jit
def _across(line, left, x, right, inside):
    """(left + 2 middle) + right of one line of the grid."""
    a = tl.load(line + left, mask=inside, other=0.0)
    b = tl.load(line + x, mask=inside, other=0.0)
    c = tl.load(line + right, mask=inside, other=0.0)
    return (a + 2.0 * b) + c


@triton.jit
def _smoothed(base, y, x, height, width, inside):
    left = tl.maximum(x - 1, 0)
    right = tl.minimum(x + 1, width - 1)
    a = _across(base + tl.maximum(y - 1, 0) * width, left, x, right, inside)
    b = _across(base + y * width, left, x, right, inside)
    c = _across(base + tl.minimum(y + 1, height - 1) * width, left, x, right, inside)
    return ((a + 2.0 * b) + c) * 0.0625


@triton.jit
def _weakness(average, inside, strongest):
    """How much less than the strongest subject one attends, 0 to 1. average: addresses of its averages."""
    peak = tl.max(tl.load(average, mask=inside, other=0.0), 0)
    return tl.where(strongest > 0.0, (strongest - peak) / strongest, 0.0)


@triton.jit
def ebca_exclude(
    step_ptr, subjects_ptr, strengths_ptr, fixed_ptr, beyond_ptr, near_ptr, outside_ptr, maps_ptr,
    averages_ptr, bias_ptr,
    layers, layer_stride, contexts, groups, height, width,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid: one program per row. height * width is at most BLOCK, and there are at most 31 groups."""
    row = tl.program_id(0).to(tl.int64)
    cells = height * width
    n = tl.arange(0, BLOCK)
    inside = n < cells
    y = n // width
    x = n % width
    step = tl.load(step_ptr)
    begins = step == 0
    count = tl.load(subjects_ptr + row)
    averages = averages_ptr + row * groups * cells
    bias = bias_ptr + row * contexts * groups * cells
    beyond = beyond_ptr + row * groups * cells
    placed = 0  # a bit per group
    left = count
    blocked = tl.zeros([BLOCK], tl.int32)
    for g in range(count):
        if tl.load(fixed_ptr + row * groups + g) != 0:
            placed = placed | (1 << g)
            left -= 1
            far = tl.load(beyond + g * cells + n, mask=inside, other=1.0)
            blocked = blocked | (far < 0.5).to(tl.int32)
    acts = (count >= 2) | (placed != 0)
    strongest = 0.0
    for g in range(groups):
        average = tl.load(averages + g * cells + n, mask=inside, other=0.0)
        maps = maps_ptr + (row * groups + g) * cells
        for layer in range(layers):
            smoothed = _smoothed(maps, y, x, height, width, inside)
            average = tl.where(begins & (layer == 0), smoothed, (average + smoothed) * 0.5)
            maps += layer_stride
        tl.store(averages + g * cells + n, average, mask=inside)
        if g < count:
            strongest = tl.maximum(strongest, tl.max(tl.where(inside, average, 0.0), 0))
        if (g >= count) | (acts == 0):
            tl.store(bias + g * cells + n, tl.zeros([BLOCK], tl.float32), mask=inside)

    # Other threads may read what these have stored.
    tl.debug_barrier()
    if acts:
        away = tl.load(strengths_ptr + 2 * step)
        boost = tl.load(strengths_ptr + 2 * step + 1)
        for g in range(count):
            if (placed >> g) & 1 != 0:
                far = tl.load(beyond + g * cells + n, mask=inside, other=0.0)
                weakness = _weakness(averages + g * cells + n, inside, strongest)
                tl.store(bias + g * cells + n, boost * weakness - away * far, mask=inside)
        for _ in range(left):
            best = -3.0
            owner = 0
            centre = 0
            for g in range(count):
                if (placed >> g) & 1 == 0:
                    worth = tl.load(averages + g * cells + n, mask=inside, other=-2.0)
                    worth = tl.where(inside & (blocked != 0), -1.0, worth)
                    top = tl.max(worth, 0)
                    # The lowest position of equal ones; one inside the grid even if nothing is a number.
                    place = tl.min(tl.where(worth == top, n, cells - 1), 0)
                    owner = tl.where(top > best, g, owner)
                    centre = tl.where(top > best, place, centre)
                    best = tl.maximum(best, top)
            placed = placed | (1 << owner)
            distance = tl.abs(y - centre // width) * width + tl.abs(x - centre % width)
            blocked = blocked | tl.load(near_ptr + distance, mask=inside, other=0)
            outside = tl.load(outside_ptr + distance, mask=inside, other=0.0)
            weakness = _weakness(averages + owner * cells + n, inside, strongest)
            tl.store(bias + owner * cells + n, boost * weakness - away * outside, mask=inside)
