"""Triton kernels of the attention inside windows; ``attention`` launches them.

A program takes windows of one head. It finds their tokens in the map by itself, rolled or not, and
holds a window's matrix of logits in registers. Sums and the softmax are float32, and no addition is
atomic, so runs are repeatable.
"""

# Triton reads these functions' source, so their arguments have no Python types.
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

import triton
import triton.language as tl


@triton.jit
def band(place, size, WINDOW: tl.constexpr, SHIFT: tl.constexpr):
    """Returns which of an axis' three bands a place of the rolled map lies in: all but the last
    window, the rest of it up to the shift, or what the roll has brought there."""
    return (place >= size - WINDOW).to(tl.int32) + (place >= size - SHIFT).to(tl.int32)


@triton.jit
def tokens_of(
    window, height, width,
    WINDOW: tl.constexpr, TOKENS: tl.constexpr, SHIFT: tl.constexpr,
):  # fmt: skip
    """Returns the pixel of the batch that each token of a window is, and its pair of bands."""
    across = width // WINDOW
    each = across * (height // WINDOW)
    place, token = window % each, tl.arange(0, TOKENS)
    row = place // across * WINDOW + token // WINDOW
    column = place % across * WINDOW + token % WINDOW
    region = band(row, height, WINDOW, SHIFT) * 3 + band(column, width, WINDOW, SHIFT)
    line = (window // each).to(tl.int64) * height + (row + SHIFT) % height
    return line * width + (column + SHIFT) % width, region


@triton.jit
def attention_of(
    q, k, bias, head, region, scale, masked, TOKENS: tl.constexpr, SHIFT: tl.constexpr
):  # fmt: skip
    """Returns the softmax of a window's logits, float32 (queries, keys)."""
    token = tl.arange(0, TOKENS)
    at = (head * TOKENS + token[:, None]) * TOKENS + token[None, :]
    logits = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    logits += tl.load(bias + at).to(tl.float32)
    if SHIFT:
        logits += tl.where(region[:, None] == region[None, :], 0.0, masked)
    weights = tl.exp(logits - tl.max(logits, 1)[:, None])
    return weights / tl.sum(weights, 1)[:, None]


@triton.jit
def attention(
    qkv, bias, y, height, width, channels, scale, masked,
    WINDOW: tl.constexpr, TOKENS: tl.constexpr, DIM: tl.constexpr, SHIFT: tl.constexpr,
):  # fmt: skip
    """Computes one head of one window from the map (pixels, 3 * channels) of q, k and v."""
    window, head = tl.program_id(0), tl.program_id(1)
    pixel, region = tokens_of(window, height, width, WINDOW, TOKENS, SHIFT)
    own = head * DIM + tl.arange(0, DIM)[None, :]
    at = pixel[:, None] * (3 * channels) + own
    q, k = tl.load(qkv + at), tl.load(qkv + at + channels)
    weights = attention_of(q, k, bias, head, region, scale, masked, TOKENS, SHIFT)
    v = tl.load(qkv + at + 2 * channels)
    out = tl.dot(weights.to(v.dtype), v, input_precision="ieee")
    tl.store(y + pixel[:, None] * channels + own, out.to(y.dtype.element_ty))


@triton.jit
def attention_gradient(
    qkv, bias, dy, dqkv, dbias, windows, windows_each, height, width, channels, scale, masked,
    WINDOW: tl.constexpr, TOKENS: tl.constexpr, DIM: tl.constexpr, SHIFT: tl.constexpr,
):  # fmt: skip
    """Computes the gradients of q, k and v for one head of a chunk of windows, and the sum of the
    bias' over the chunk."""
    chunk, head = tl.program_id(0), tl.program_id(1)
    own = head * DIM + tl.arange(0, DIM)[None, :]
    total = tl.zeros((TOKENS, TOKENS), tl.float32)
    first = chunk * windows_each
    for window in range(first, tl.minimum(first + windows_each, windows)):
        pixel, region = tokens_of(window, height, width, WINDOW, TOKENS, SHIFT)
        at = pixel[:, None] * (3 * channels) + own
        q, k = tl.load(qkv + at), tl.load(qkv + at + channels)
        v = tl.load(qkv + at + 2 * channels)
        grad = tl.load(dy + pixel[:, None] * channels + own)
        weights = attention_of(q, k, bias, head, region, scale, masked, TOKENS, SHIFT)
        dv = tl.dot(tl.trans(weights.to(v.dtype)), grad, input_precision="ieee")
        tl.store(dqkv + at + 2 * channels, dv.to(dqkv.dtype.element_ty))
        dweights = tl.dot(grad, tl.trans(v), input_precision="ieee")
        dlogits = weights * (dweights - tl.sum(weights * dweights, 1)[:, None])
        total += dlogits
        narrow = dlogits.to(q.dtype)
        dq = tl.dot(narrow, k, input_precision="ieee") * scale
        tl.store(dqkv + at, dq.to(dqkv.dtype.element_ty))
        dk = tl.dot(tl.trans(narrow), q, input_precision="ieee") * scale
        tl.store(dqkv + at + channels, dk.to(dqkv.dtype.element_ty))
    token = tl.arange(0, TOKENS)
    line = (chunk * tl.num_programs(1) + head) * TOKENS + token[:, None]
    tl.store(dbias + line * TOKENS + token[None, :], total)
