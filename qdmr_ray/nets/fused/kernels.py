"""Triton kernels for channels-last images on GPUs; ``norm`` and ``discriminator`` launch them.

An image is a matrix of rows (its pixels, line by line) and channels; a reduction splits an image's
rows into chunks, one per program. Kernels compute in float32 whatever they read and write, and use
no atomic additions, so runs are repeatable.
"""

# Triton reads these functions' source, so their arguments have no Python types.
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

import triton
import triton.language as tl


@triton.jit
def tile_of(first, last, start, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Returns offsets of the tile from row ``start`` on, and a mask of those inside the image."""
    row = start + tl.arange(0, ROWS)
    channel = tl.arange(0, CHANNELS)
    inside = (row < last)[:, None] & (channel < channels)[None, :]
    return (first + row.to(tl.int64))[:, None] * channels + channel[None, :], inside


@triton.jit
def norm_moments(
    x, means, squares, rows, rows_each, channels,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Computes each channel's mean and sum of squared deviations over a chunk of rows.

    Each place of the tile uses Welford's recurrence, and Chan's formula combines the places: sums
    of squares would lose deviations that are small beside the mean.
    """
    chunk, image = tl.program_id(0), tl.program_id(1)
    first = chunk * rows_each
    last = tl.minimum(first + rows_each, rows)
    channel = tl.arange(0, CHANNELS)
    mean = tl.zeros((ROWS, CHANNELS), tl.float32)
    square = tl.zeros((ROWS, CHANNELS), tl.float32)
    count = 0.0
    for start in range(first, last, ROWS):
        at, inside = tile_of(image.to(tl.int64) * rows, last, start, channels, ROWS, CHANNELS)
        value = tl.load(x + at, inside, 0.0).to(tl.float32)
        count += 1.0
        before = value - mean
        mean = tl.where(inside, mean + before / count, mean)
        square = tl.where(inside, square + before * (value - mean), square)
    # The number of values that each place has seen: the last tile may be cut off.
    place = tl.arange(0, ROWS)
    seen = tl.maximum((last - first - place + ROWS - 1) // ROWS, 0).to(tl.float32)[:, None]
    whole = tl.sum(mean * seen, 0) / (last - first)
    apart = mean - whole[None, :]
    out = (image * tl.num_programs(0) + chunk) * channels + channel
    tl.store(means + out, whole, channel < channels)
    tl.store(squares + out, tl.sum(square + seen * apart * apart, 0), channel < channels)


@triton.jit
def norm_statistics(
    means, squares, bias, weight, offset, channel_mean, mean, rstd, scale, shift,
    chunks, rows, rows_each, channels, groups, eps,
    CHUNKS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Computes mean and 1 / standard deviation of one group of one image from its chunks' moments,
    and its channels' scale and shift: ``norm(x + bias) = x * scale + shift``."""
    image, group = tl.program_id(0), tl.program_id(1)
    width = channels // groups
    chunk, place = tl.arange(0, CHUNKS), tl.arange(0, WIDTH)
    channel = group * width + place
    real = place < width
    at = (image * chunks + chunk)[:, None] * channels + channel[None, :]
    inside = (chunk < chunks)[:, None] & real[None, :]
    added = tl.load(bias + channel, real, 0.0).to(tl.float32)
    chunk_mean = tl.load(means + at, inside, 0.0) + added[None, :]
    count = tl.where(inside, tl.minimum(rows_each, rows - chunk * rows_each)[:, None], 0)
    count = count.to(tl.float32)
    own = tl.sum(chunk_mean * count, 0) / rows
    total = tl.sum(tl.where(real, own, 0.0), 0) / width
    apart = chunk_mean - total
    square = tl.load(squares + at, inside, 0.0) + count * apart * apart
    variance = tl.sum(tl.sum(square, 1), 0) / (rows * width)
    inverse = 1.0 / tl.sqrt(variance + eps)
    tl.store(mean + image * groups + group, total)
    tl.store(rstd + image * groups + group, inverse)
    out = image * channels + channel
    own_scale = tl.load(weight + channel, real, 0.0).to(tl.float32) * inverse
    own_offset = tl.load(offset + channel, real, 0.0).to(tl.float32)
    tl.store(channel_mean + out, own, real)
    tl.store(scale + out, own_scale, real)
    tl.store(shift + out, own_offset + (added - total) * own_scale, real)


@triton.jit
def norm_activate(x, scale, shift, y, rows, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Computes ``y = silu(x * scale + shift)``."""
    tile, image = tl.program_id(0), tl.program_id(1)
    at, inside = tile_of(image.to(tl.int64) * rows, rows, tile * ROWS, channels, ROWS, CHANNELS)
    channel = tl.arange(0, CHANNELS)
    own = image * channels + channel
    own_scale = tl.load(scale + own, channel < channels, 0.0)[None, :]
    own_shift = tl.load(shift + own, channel < channels, 0.0)[None, :]
    z = tl.load(x + at, inside, 0.0).to(tl.float32) * own_scale + own_shift
    tl.store(y + at, (z / (1.0 + tl.exp(-z))).to(y.dtype.element_ty), inside)


@triton.jit
def normalised_gradient(value, grad, own_scale, own_shift, mean, rstd):
    """Returns the gradient before the activation, and the value normalised without weight, bias."""
    z = value * own_scale + own_shift
    gate = 1.0 / (1.0 + tl.exp(-z))
    return grad * gate * (1.0 + z * (1.0 - gate)), (value - mean) * rstd


@triton.jit
def norm_constants(bias, scale, shift, mean, rstd, image, channels, groups, CHANNELS: tl.constexpr):
    """Returns arguments of ``normalised_gradient`` by channel of an image, (1, CHANNELS) each."""
    channel = tl.arange(0, CHANNELS)
    real = channel < channels
    own = image * channels + channel
    group = image * groups + channel // (channels // groups)
    own_scale = tl.load(scale + own, real, 0.0)[None, :]
    own_shift = tl.load(shift + own, real, 0.0)[None, :]
    added = tl.load(bias + channel, real, 0.0).to(tl.float32)
    centre = (tl.load(mean + group, real, 0.0) - added)[None, :]
    inverse = tl.load(rstd + group, real, 0.0)[None, :]
    return own_scale, own_shift, centre, inverse


@triton.jit
def norm_gradient_sums(
    x, dy, bias, scale, shift, mean, rstd, sums, products, rows, rows_each, channels, groups,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Sums by channel, over a chunk of rows, the gradient before the activation and its products
    with the normalised values."""
    chunk, image = tl.program_id(0), tl.program_id(1)
    first = chunk * rows_each
    last = tl.minimum(first + rows_each, rows)
    channel = tl.arange(0, CHANNELS)
    real = channel < channels
    own_scale, own_shift, centre, inverse = norm_constants(
        bias, scale, shift, mean, rstd, image, channels, groups, CHANNELS
    )
    one = tl.zeros((ROWS, CHANNELS), tl.float32)
    two = tl.zeros((ROWS, CHANNELS), tl.float32)
    for start in range(first, last, ROWS):
        at, inside = tile_of(image.to(tl.int64) * rows, last, start, channels, ROWS, CHANNELS)
        value = tl.load(x + at, inside, 0.0).to(tl.float32)
        grad = tl.load(dy + at, inside, 0.0).to(tl.float32)
        dz, normal = normalised_gradient(value, grad, own_scale, own_shift, centre, inverse)
        one += dz
        two += dz * normal
    out = (image * tl.num_programs(0) + chunk) * channels + channel
    tl.store(sums + out, tl.sum(one, 0), real)
    tl.store(products + out, tl.sum(two, 0), real)


@triton.jit
def norm_gradient_statistics(
    sums, products, weight, channel_mean, mean, rstd, whole, mean_sum, mean_product,
    chunks, rows, channels, groups, images,
    CHUNKS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Computes for one group of one image the two means that its gradients subtract, and its
    channels' gradients of weight, offset and bias, written to ``whole`` (3, images, channels)."""
    image, group = tl.program_id(0), tl.program_id(1)
    width = channels // groups
    chunk, place = tl.arange(0, CHUNKS), tl.arange(0, WIDTH)
    channel = group * width + place
    real = place < width
    at = (image * chunks + chunk)[:, None] * channels + channel[None, :]
    inside = (chunk < chunks)[:, None] & real[None, :]
    one = tl.sum(tl.load(sums + at, inside, 0.0), 0)
    two = tl.sum(tl.load(products + at, inside, 0.0), 0)
    own_weight = tl.load(weight + channel, real, 0.0).to(tl.float32)
    size = rows * width
    a = tl.sum(own_weight * one, 0) / size
    b = tl.sum(own_weight * two, 0) / size
    tl.store(mean_sum + image * groups + group, a)
    tl.store(mean_product + image * groups + group, b)
    inverse = tl.load(rstd + image * groups + group)
    own = tl.load(channel_mean + image * channels + channel, real, 0.0)
    normal = (own - tl.load(mean + image * groups + group)) * inverse
    out = image * channels + channel
    layer = images * channels
    tl.store(whole + out, two, real)
    tl.store(whole + layer + out, one, real)
    # The bias's gradient is the sum of the gradients of x.
    tl.store(whole + 2 * layer + out, inverse * (own_weight * one - rows * (a + normal * b)), real)


@triton.jit
def norm_gradient(
    x, dy, bias, scale, shift, mean, rstd, mean_sum, mean_product, dx, rows, channels, groups,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Computes the gradient of ``x``."""
    tile, image = tl.program_id(0), tl.program_id(1)
    at, inside = tile_of(image.to(tl.int64) * rows, rows, tile * ROWS, channels, ROWS, CHANNELS)
    channel = tl.arange(0, CHANNELS)
    real = channel < channels
    group = image * groups + channel // (channels // groups)
    own_scale, own_shift, centre, inverse = norm_constants(
        bias, scale, shift, mean, rstd, image, channels, groups, CHANNELS
    )
    a = tl.load(mean_sum + group, real, 0.0)[None, :]
    b = tl.load(mean_product + group, real, 0.0)[None, :]
    value = tl.load(x + at, inside, 0.0).to(tl.float32)
    grad = tl.load(dy + at, inside, 0.0).to(tl.float32)
    dz, normal = normalised_gradient(value, grad, own_scale, own_shift, centre, inverse)
    out = dz * own_scale - inverse * (a + normal * b)
    tl.store(dx + at, out.to(dx.dtype.element_ty), inside)


@triton.jit
def leaky(x, scales, added, y, size, leak, BLOCK: tl.constexpr, ADDED: tl.constexpr):
    """Computes ``y = leaky_relu(x * scale) + added``, with one scale for each pass in the batch."""
    block, pass_number = tl.program_id(0), tl.program_id(1)
    place = block * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    at = pass_number.to(tl.int64) * size + place
    z = tl.load(x + at, inside, 0.0).to(tl.float32) * tl.load(scales + pass_number)
    z = tl.where(z > 0, z, z * leak)
    if ADDED:
        z += tl.load(added + at, inside, 0.0).to(tl.float32)
    tl.store(y + at, z.to(y.dtype.element_ty), inside)


@triton.jit
def leaky_gradient(x, dy, scales, dx, sums, size, leak, BLOCK: tl.constexpr):
    """Computes the gradient of ``x``, and by block the sums for each pass's scale gradient."""
    block, pass_number = tl.program_id(0), tl.program_id(1)
    place = block * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    at = pass_number.to(tl.int64) * size + place
    value = tl.load(x + at, inside, 0.0).to(tl.float32)
    grad = tl.load(dy + at, inside, 0.0).to(tl.float32)
    scale = tl.load(scales + pass_number)
    grad = tl.where(value * scale > 0, grad, grad * leak)
    tl.store(dx + at, (grad * scale).to(dx.dtype.element_ty), inside)
    tl.store(sums + pass_number * tl.num_programs(0) + block, tl.sum(grad * value, 0))


@triton.jit
def pixels(height, width, PIXELS: tl.constexpr):
    """Returns a program's rows and columns of the smaller map, and a mask of those inside it."""
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    return pixel // width, pixel % width, pixel < height * width


@triton.jit
def offsets_of(image, row, column, height, width, channels, CHANNELS: tl.constexpr):
    """Returns offsets (pixels, channels) in a channels-last map."""
    pixel = (image.to(tl.int64) * height + row) * width + column
    return pixel[:, None] * channels + tl.arange(0, CHANNELS)[None, :]


@triton.jit
def double(x, y, height, width, channels, PIXELS: tl.constexpr, CHANNELS: tl.constexpr):
    """Doubles the size bilinearly: four pixels of ``y`` for each pixel of ``x``."""
    image = tl.program_id(1)
    row, column, real = pixels(height, width, PIXELS)
    inside = real[:, None] & (tl.arange(0, CHANNELS) < channels)[None, :]
    for down in tl.static_range(2):
        # The second row that contributes lies above for upper pixels and below for lower ones.
        other = tl.minimum(tl.maximum(row + 2 * down - 1, 0), height - 1)
        near = offsets_of(image, row, column, height, width, channels, CHANNELS)
        far = offsets_of(image, other, column, height, width, channels, CHANNELS)
        middle = 0.75 * tl.load(x + near, inside, 0.0).to(tl.float32)
        middle += 0.25 * tl.load(x + far, inside, 0.0).to(tl.float32)
        for right in tl.static_range(2):
            aside = tl.minimum(tl.maximum(column + 2 * right - 1, 0), width - 1)
            near = offsets_of(image, row, aside, height, width, channels, CHANNELS)
            far = offsets_of(image, other, aside, height, width, channels, CHANNELS)
            side = 0.75 * tl.load(x + near, inside, 0.0).to(tl.float32)
            side += 0.25 * tl.load(x + far, inside, 0.0).to(tl.float32)
            out = offsets_of(
                image, 2 * row + down, 2 * column + right, 2 * height, 2 * width, channels,
                CHANNELS,
            )  # fmt: skip
            value = 0.75 * middle + 0.25 * side
            tl.store(y + out, value.to(y.dtype.element_ty), inside)


@triton.jit
def double_weight(place, size, STEP: tl.constexpr):
    """Returns the weight of line ``place`` in the larger map's line ``2 * place + STEP``: 1/4, 3/4,
    3/4, 1/4 for STEP from -1 to 2; at an edge the line also counts for the one beyond."""
    if STEP < 1:
        within = place > 0
    else:
        within = place < size - 1
    if STEP * (1 - STEP) == 0:
        weight = tl.where(within, 0.75, 1.0)
    else:
        weight = tl.where(within, 0.25, 0.0)
    return weight


@triton.jit
def double_gradient(dy, dx, height, width, channels, PIXELS: tl.constexpr, CHANNELS: tl.constexpr):
    """Computes the gradient of ``double``'s input: each pixel gathers 4 x 4 pixels of ``dy``."""
    image = tl.program_id(1)
    row, column, real = pixels(height, width, PIXELS)
    inside = real[:, None] & (tl.arange(0, CHANNELS) < channels)[None, :]
    total = tl.zeros((PIXELS, CHANNELS), tl.float32)
    for i in tl.static_range(4):
        vertical = double_weight(row, height, i - 1)
        line = tl.minimum(tl.maximum(2 * row + i - 1, 0), 2 * height - 1)
        for j in tl.static_range(4):
            weight = vertical * double_weight(column, width, j - 1)
            place = tl.minimum(tl.maximum(2 * column + j - 1, 0), 2 * width - 1)
            at = offsets_of(image, line, place, 2 * height, 2 * width, channels, CHANNELS)
            total += weight[:, None] * tl.load(dy + at, inside, 0.0).to(tl.float32)
    at = offsets_of(image, row, column, height, width, channels, CHANNELS)
    tl.store(dx + at, total.to(dx.dtype.element_ty), inside)
