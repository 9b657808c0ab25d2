"""The four kernels in Triton, compiled ahead of time with those of the op; what they compute stands in the package's
text. All are elementwise and small: a step spends a few microseconds here.

Sizes: images n, rows R, image = C h w elements of one image's latents, in_image = C_in h w of one row of the
UNet's input, contexts S, words = T D elements of one context, tokens T.
"""

# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl


@triton.jit
def ebca_begin(
    step_ptr, latents_ptr, input_scale_ptr, timesteps_ptr, controls_ptr,
    sample_ptr, timestep_ptr, weights_ptr, gamma_attn_ptr, gamma_norm_ptr,
    images, rows, image, in_image, contexts, tokens,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid: enough blocks for the larger of R * image and R S T."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    i = tl.load(step_ptr)
    row = at // image
    inside = row < rows
    source = (row % images) * image + at % image
    value = tl.load(latents_ptr + source, mask=inside, other=0.0) * tl.load(input_scale_ptr + i)
    tl.store(sample_ptr + row * in_image + at % image, value, mask=inside)
    tl.store(timestep_ptr + at, tl.load(timesteps_ptr + i + at * 0), mask=at < rows)
    cells = rows * contexts
    first = controls_ptr + i.to(tl.int64) * (cells * (tokens + 2))
    tl.store(weights_ptr + at, tl.load(first + at, mask=at < cells), mask=at < cells)
    attn = at < cells * tokens
    tl.store(gamma_attn_ptr + at, tl.load(first + cells + at, mask=attn), mask=attn)
    norm = tl.load(first + cells * (tokens + 1) + at, mask=at < cells)
    tl.store(gamma_norm_ptr + at, norm, mask=at < cells)


@triton.jit
def ebca_end(
    step_ptr, noise_ptr, start_ptr, coefficients_ptr, guidance_scale_ptr, carry_ptr, contexts_out_ptr,
    history_ptr, latents_ptr, contexts_ptr, bad_ptr,
    elements, room, guided, rows, contexts, words,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid: enough blocks for the larger of elements = n * image and R S T D. room: rows of the history."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    i = tl.load(step_ptr)
    inside = at < elements
    e = tl.load(noise_ptr + at, mask=inside, other=0.0)
    if guided != 0:
        conditional = tl.load(noise_ptr + elements + at, mask=inside, other=0.0)
        e = e + tl.load(guidance_scale_ptr) * (conditional - e)
    past = history_ptr + at
    row = coefficients_ptr + i * (room + 1)
    # Terms of opposite sign cancel in a multistep scheduler; in float64 only the result is rounded.
    total = tl.load(start_ptr + at, mask=inside, other=0.0).to(tl.float64) * tl.load(row)
    for j in range(i):
        noise = tl.load(past, mask=inside, other=0.0)
        total += noise.to(tl.float64) * tl.load(row + 1 + j)
        past += elements
    total += e.to(tl.float64) * tl.load(row + 1 + i)
    tl.store(past, e, mask=inside)
    latents = total.to(tl.float32)
    tl.store(latents_ptr + at, latents, mask=inside)

    updated = at < rows * contexts * words
    context = tl.load(contexts_out_ptr + at, mask=updated, other=0.0)
    if tl.load(carry_ptr) != 0:
        tl.store(contexts_ptr + at, context, mask=updated & (at // words % contexts > 0))
    # Not a number is not below infinity either.
    fine = (tl.abs(e) < float("inf")) & (tl.abs(latents) < float("inf")) & (tl.abs(context) < float("inf"))
    if tl.min(fine.to(tl.int32), 0) == 0:
        tl.atomic_cas(bad_ptr, 0, i + 1)


@triton.jit
def ebca_advance(step_ptr):
    """Grid: one program."""
    tl.store(step_ptr, tl.load(step_ptr) + 1)


@triton.jit
def ebca_embed(
    step_ptr, embeddings_ptr, embedding_base_ptr, embedding_stride_ptr,
    time_embeddings_ptr,
    words,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid: enough blocks for `words`, the size of time_embeddings. All tensors are int32."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < words
    base = tl.load(embedding_base_ptr + at, mask=inside, other=0)
    stride = tl.load(embedding_stride_ptr + at, mask=inside, other=0)
    word = tl.load(embeddings_ptr + base + tl.load(step_ptr) * stride, mask=inside, other=0)
    tl.store(time_embeddings_ptr + at, word, mask=inside)
