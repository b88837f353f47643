"""Triton kernels of one decoding step: products that carry their norm and sum with them, and attention over pages

Imported where they are launched only (engine/fused_decoder.py): this needs triton. Numbers are widened right after
each load: sums are float32 whatever is stored, and Triton's interpreter computes bfloat16 wrongly.
The stream is float32; beside it stands a copy in the weights' dtype, which the next product reads.
OVERLAPS (compute capability 9.0): a kernel may begin before the one before it has ended. Every kernel waits for that
end before it reads anything but weights and before it writes, so what is behind a kernel has waited for all before it.
"""

import triton
import triton.language as tl

PAD = tl.constexpr(16)  # rows of a tile of the tensor cores; fewer rows are filled up with zeros
FAR = tl.constexpr(-1.0e30)  # a score that nothing reaches; -inf - -inf would not be a number
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def embed_kernel(
    token, before, embedding, smear_weight, smear_scale, first, stream, copy, s0, s1, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, SMEAR: tl.constexpr, NORMED: tl.constexpr, OVERLAPS: tl.constexpr,
):  # fmt: skip
    """A program per row: first, the normed embedding with its smear; the stream that enters the first block; its copy.

    SMEAR: leading channels of the gate, 0: no smear. NORMED: the copy is normed.
    """
    _begun(OVERLAPS)
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    place = tl.load(token + row) * WIDTH + column
    x = _normed(tl.load(embedding + place, mask=inside, other=0.0).to(tl.float32), eps, WIDTH)
    if SMEAR > 0:
        previous = tl.load(before + row)
        place = tl.maximum(previous, 0) * WIDTH + column
        other = _normed(tl.load(embedding + place, mask=inside, other=0.0).to(tl.float32), eps, WIDTH)
        weight = tl.load(smear_weight + column, mask=column < SMEAR, other=0.0).to(tl.float32)
        gate = tl.sigmoid(tl.sum(x * weight, 0)) * tl.load(smear_scale)
        x += tl.where(previous >= 0, gate, 0.0) * other
    at = row * WIDTH + column
    tl.store(first + at, x, mask=inside)
    x = s0 * x + s1 * x
    tl.store(stream + at, x, mask=inside)
    if NORMED:
        x = _normed(x, eps, WIDTH)
    tl.store(copy + at, x, mask=inside)


@triton.jit
def one_row_kernel(
    x, weight, out, stream, base, keep, s0, s1, eps, cap, N,
    K: tl.constexpr, NORM: tl.constexpr, ENDING: tl.constexpr, KEEPS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, OVERLAPS: tl.constexpr,
):  # fmt: skip
    """out (N,) = ending(x (K,) @ weight (N, K)^T); each program has BLOCK_N columns and reads their weights once.

    NORM: of x / rms(x), whose square is summed beside the product. ENDING: see _finished.
    """
    begin = tl.program_id(0) * BLOCK_N
    n = tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    inside = begin + n < N
    own = weight + begin.to(tl.int64) * K
    total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    square = tl.zeros((BLOCK_K,), tl.float32)
    # written out, so that the loads of all turns can be on their way at once
    if OVERLAPS:
        tl.extra.cuda.gdc_launch_dependents()
    for start in tl.static_range(0, K, BLOCK_K):
        here = inside[:, None] & (start + k < K)[None, :]
        w = tl.load(own + n[:, None] * K + (start + k)[None, :], mask=here, other=0.0)
        if OVERLAPS and start == 0:
            tl.extra.cuda.gdc_wait()  # weights are nobody's to wait for
        a = tl.load(x + start + k, mask=start + k < K, other=0.0).to(tl.float32)
        total += w.to(tl.float32) * a[None, :]
        square += a * a
    y = tl.sum(total, 1)
    if NORM:
        y *= tl.rsqrt(tl.sum(square, 0) / K + eps)
    at = begin + n
    y = _finished(y, at, inside, stream, base, keep, s0, s1, cap, ENDING, KEEPS)
    tl.store(out + at, y, mask=inside)


@triton.jit
def few_rows_kernel(
    x, weight, out, stream, base, keep, s0, s1, eps, cap, N, rows,
    K: tl.constexpr, NORM: tl.constexpr, ENDING: tl.constexpr, KEEPS: tl.constexpr, WIDENS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SLICES: tl.constexpr, OVERLAPS: tl.constexpr,
):  # fmt: skip
    """The same for x (rows, K), at most PAD rows, on the tensor cores. WIDENS: the products are float32's.

    A turn's depth is cut into SLICES, one for each warp: sums of a warp wait for one another, so one warp that has all
    of the depth would be slower than the memory.
    """
    _begun(OVERLAPS)
    begin = tl.program_id(0) * BLOCK_N
    n = tl.arange(0, BLOCK_N)
    m = tl.arange(0, PAD)
    each: tl.constexpr = BLOCK_K // SLICES
    k = tl.arange(0, SLICES)[:, None] * each + tl.arange(0, each)[None, :]
    own = weight + begin.to(tl.int64) * K
    total = tl.zeros((SLICES, PAD, BLOCK_N), tl.float32)
    square = tl.zeros((SLICES, PAD, each), tl.float32)
    for start in range(0, K, BLOCK_K):
        at_k = start + k
        here = (m < rows)[None, :, None] & (at_k < K)[:, None, :]
        a = tl.load(x + m[None, :, None] * K + at_k[:, None, :], mask=here, other=0.0)
        here = (begin + n < N)[None, None, :] & (at_k < K)[:, :, None]
        w = tl.load(own + n[None, None, :] * K + at_k[:, :, None], mask=here, other=0.0)
        wide = a.to(tl.float32)
        if NORM:
            square += wide * wide
        total = tl.dot(wide, w.to(tl.float32), total, input_precision="ieee") if WIDENS else tl.dot(a, w, total)
    y = tl.sum(total, 0)
    if NORM:
        y *= tl.rsqrt(tl.sum(tl.sum(square, 2), 0) / K + eps)[:, None]
    inside = (m < rows)[:, None] & (begin + n < N)[None, :]
    at = m[:, None] * N + (begin + n)[None, :]
    y = _finished(y, at, inside, stream, base, keep, s0, s1, cap, ENDING, KEEPS)
    tl.store(out + at, y, mask=inside)


@triton.jit
def added_kernel(
    y, stream, base, keep, copy, s0, s1, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, KEEPS: tl.constexpr, OVERLAPS: tl.constexpr,
):  # fmt: skip
    """A program per row: y is added to the stream as _finished does, and the copy is the normed stream."""
    _begun(OVERLAPS)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    at = tl.program_id(0) * WIDTH + column
    x = tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
    x = _finished(x, at, inside, stream, base, keep, s0, s1, 1.0, "add", KEEPS)
    tl.store(copy + at, _normed(x, eps, WIDTH), mask=inside)


@triton.jit
def ending_kernel(
    x, out, cap, x_width, out_width, ENDING: tl.constexpr, BLOCK: tl.constexpr, OVERLAPS: tl.constexpr
):
    """out (rows, out_width) = ending(x (rows, x_width)), of its first columns; a grid of rows and blocks of columns."""
    _begun(OVERLAPS)
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < out_width
    y = tl.load(x + row * x_width + column, mask=inside, other=0.0).to(tl.float32)
    y = _finished(y, column, inside, x, x, x, 1.0, 0.0, cap, ENDING, False)
    tl.store(out + row * out_width + column, y, mask=inside)


@triton.jit
def attention_kernel(
    found, cos, sin, position, running, table, stored, values, token, out, parts, bounds, arrived,
    found_width, table_width, values_width, reach, trash, scale, eps,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, WIDTH: tl.constexpr, PAGE: tl.constexpr, SPLITS: tl.constexpr,
    GATED: tl.constexpr, OVERLAPS: tl.constexpr,
):  # fmt: skip
    """One new token of every row over the pages of its text; a grid of rows, heads and splits of what a row sees.

    found (rows, found_width): queries and keys, both with channels in pairs, values and, where GATED, their gates.
    table (rows, table_width): pages. stored: one block's (pages * PAGE, 2, KV_HEADS, WIDTH). values: this block's
    embeddings of tokens, values_width apart. A split reads whole pages, so splits without a page stop at once; that
    which has the row's own page writes the new key and value, which nobody reads here: they are in its registers.
    out (rows, HEADS * WIDTH). Where there are SPLITS, parts (rows, HEADS, SPLITS, WIDTH) and bounds (2, rows, HEADS,
    SPLITS), the largest score and the sum, are left for the split that comes last, which arrived (rows * HEADS) int32
    tells, all zeros before and after: it merges them in their own order, so no number depends on who it was.
    Every place of a page keeps a softmax of its own; they meet at the end, so no turn waits for a reduction.
    """
    _begun(OVERLAPS)
    row = tl.program_id(0)
    head = tl.program_id(1)
    split = tl.program_id(2)
    kv_head = head // (HEADS // KV_HEADS)
    c = tl.arange(0, WIDTH)
    here = tl.load(position + row).to(tl.int32)
    low = tl.maximum(here - reach, 0)
    own_page = here // PAGE
    per_split = (own_page - low // PAGE + SPLITS) // SPLITS
    first = low // PAGE + split * per_split
    last = tl.minimum(first + per_split, own_page + 1)
    is_own = (own_page >= first) & (own_page < last)

    pages = table + row * table_width
    at = stored + kv_head * WIDTH + c[None, :]
    # few programs: each page is on its way while the query is turned or the page before it is attended to. Many
    # programs hide each other's waits, and more of them fit with half the registers
    if SPLITS > 1:
        next_seen, next_key, next_value = _page(pages, first, last, at, low, here, KV_HEADS, WIDTH, PAGE)
    new = found + row.to(tl.int64) * found_width
    q = _turned(new + head * WIDTH, cos, sin, here, eps, WIDTH) * (scale * LOG2_E)
    largest = tl.full((PAGE,), FAR, tl.float32)
    total = tl.zeros((PAGE,), tl.float32)
    y = tl.zeros((PAGE, WIDTH), tl.float32)
    for page in range(first, last):
        if SPLITS > 1:
            seen, key, value = next_seen, next_key, next_value
            next_seen, next_key, next_value = _page(pages, page + 1, last, at, low, here, KV_HEADS, WIDTH, PAGE)
        else:
            seen, key, value = _page(pages, page, last, at, low, here, KV_HEADS, WIDTH, PAGE)
        score = tl.where(seen, tl.sum(key.to(tl.float32) * q[None, :], 1), FAR)
        before = largest
        largest = tl.maximum(before, score)
        fading = tl.exp2(before - largest)
        share = tl.where(seen, tl.exp2(score - largest), 0.0)
        total = total * fading + share
        y = y * fading[:, None] + share[:, None] * value.to(tl.float32)

    # what the row itself adds, rounded as it is stored
    kind = stored.dtype.element_ty
    key = _turned(new + (HEADS + kv_head) * WIDTH, cos, sin, here, eps, WIDTH).to(kind)
    value = tl.load(new + (HEADS + KV_HEADS + kv_head) * WIDTH + c).to(tl.float32)
    if GATED:
        gate = 3.0 * tl.sigmoid(tl.load(new + (HEADS + 2 * KV_HEADS) * WIDTH + kv_head).to(tl.float32))
        added = tl.load(values + tl.load(token + row) * values_width + kv_head * WIDTH + c)
        value += gate * added.to(tl.float32)
    value = value.to(kind)
    is_writer = is_own & (head % (HEADS // KV_HEADS) == 0)
    page = tl.where(tl.load(running + row) != 0, tl.load(pages + own_page), trash)
    at = stored + ((page * PAGE + here % PAGE) * (2 * KV_HEADS) + kv_head) * WIDTH + c
    tl.store(at, key, mask=is_writer)
    tl.store(at + KV_HEADS * WIDTH, value, mask=is_writer)

    score = tl.where(is_own, tl.sum(key.to(tl.float32) * q, 0), FAR)
    most = tl.maximum(tl.max(largest, 0), score)
    fading = tl.exp2(largest - most)
    share = tl.where(is_own, tl.exp2(score - most), 0.0)
    total_all = tl.sum(total * fading, 0) + share
    y_all = tl.sum(y * fading[:, None], 0) + share * value.to(tl.float32)
    at_head = row * HEADS + head
    if SPLITS == 1:
        tl.store(out + at_head * WIDTH + c, y_all / total_all)
    else:
        sums = bounds + tl.num_programs(0) * HEADS * SPLITS
        tl.store(parts + (at_head * SPLITS + split) * WIDTH + c, y_all)
        tl.store(bounds + at_head * SPLITS + split, most)
        tl.store(sums + at_head * SPLITS + split, total_all)
        tl.debug_barrier()  # all threads have written before one of them counts, which others then see
        if tl.atomic_add(arrived + at_head, 1, sem="acq_rel", scope="gpu") == SPLITS - 1:
            tl.store(arrived + at_head, 0)
            each = at_head * SPLITS + tl.arange(0, SPLITS)
            mosts = tl.load(bounds + each)
            weight = tl.exp2(mosts - tl.max(mosts, 0))
            whole = tl.sum(tl.load(parts + each[:, None] * WIDTH + c[None, :]) * weight[:, None], 0)
            tl.store(out + at_head * WIDTH + c, whole / tl.sum(tl.load(sums + each) * weight, 0))


@triton.jit
def _page(
    pages, page, last, at, low, here, KV_HEADS: tl.constexpr, WIDTH: tl.constexpr, PAGE: tl.constexpr
):
    """Which of a page's places a row sees, of those before its own, and their keys and values (PAGE, WIDTH); zeros for
    the others, and from page last on."""
    place = tl.arange(0, PAGE)
    at_position = page * PAGE + place
    seen = (at_position >= low) & (at_position < here) & (page < last)
    entry = tl.load(pages + page, mask=page < last, other=0) * PAGE + place
    own = at + entry[:, None] * (2 * KV_HEADS * WIDTH)
    key = tl.load(own, mask=seen[:, None], other=0.0)
    value = tl.load(own + KV_HEADS * WIDTH, mask=seen[:, None], other=0.0)
    return seen, key, value


@triton.jit
def likeliest_kernel(
    logits, state, stops, out, V, size, RUNNING: tl.constexpr, FINITE: tl.constexpr, DECIDED: tl.constexpr,
    MOST_STOPS: tl.constexpr, BLOCK: tl.constexpr, OVERLAPS: tl.constexpr,
):  # fmt: skip
    """A program per row: the first of its largest logits (V,), and what follows from it as in FixedSteps.

    state (7, size) int64: token, the one before, position, tokens left, whether it runs, and two that stay.
    stops (rows, MOST_STOPS) int64. out (3, size) float64: the token, and in its last row the flags.
    """
    _begun(OVERLAPS)
    row = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    place = tl.zeros((BLOCK,), tl.int32)
    broken = tl.zeros((BLOCK,), tl.int32)
    own = logits + row.to(tl.int64) * V
    for start in range(0, V, BLOCK):
        x = tl.load(own + start + lane, mask=start + lane < V, other=float("-inf"))
        is_better = x > best
        best = tl.where(is_better, x, best)
        place = tl.where(is_better, start + lane, place)
        broken += (x != x).to(tl.int32)
    largest = tl.max(best, 0)
    chosen = tl.min(tl.where(best == largest, place, V - 1), 0).to(tl.int64)
    is_finite = (tl.sum(broken, 0) == 0) & (tl.abs(largest) < float("inf"))

    at = state + row
    token, before = tl.load(at), tl.load(at + size)
    position, left, running = tl.load(at + 2 * size), tl.load(at + 3 * size), tl.load(at + 4 * size) > 0
    goes_on = running & is_finite
    stop = tl.load(stops + row * MOST_STOPS + tl.arange(0, MOST_STOPS))
    has_ended = (tl.sum((stop == chosen).to(tl.int32), 0) > 0) | (left <= 1)
    counted = goes_on.to(tl.int64)
    tl.store(at, tl.where(goes_on, chosen, token))
    tl.store(at + size, tl.where(goes_on, token, before))
    tl.store(at + 2 * size, position + counted)
    tl.store(at + 3 * size, left - counted)
    tl.store(at + 4 * size, tl.where(has_ended, 0, counted))
    flags = DECIDED + tl.where(running, RUNNING, 0) + tl.where(is_finite, FINITE, 0)
    tl.store(out + row, chosen.to(tl.float64))
    tl.store(out + 2 * size + row, flags.to(tl.float64))


@triton.jit
def _begun(OVERLAPS: tl.constexpr):
    """Lets the next kernel begin, and waits for the end of the one before."""
    if OVERLAPS:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@triton.jit
def _normed(x, eps, WIDTH: tl.constexpr):
    """x / rms(x) of one row; what fills it up is zero."""
    return x * tl.rsqrt(tl.sum(x * x, 0) / WIDTH + eps)


@triton.jit
def _finished(
    y, at, inside, stream, base, keep, s0, s1, cap, ENDING: tl.constexpr, KEEPS: tl.constexpr
):
    """What becomes of a product's numbers y, whose places in a row-by-row tensor are at.

    add: y + stream goes to keep (if KEEPS), s0 (y + stream) + s1 base to the stream, and is returned.
    square: max(0, y)^2. cap: cap tanh(y / cap). What is not finite stays so.
    """
    if ENDING == "add":
        y += tl.load(stream + at, mask=inside, other=0.0)
        if KEEPS:
            tl.store(keep + at, y, mask=inside)
        y = s0 * y + s1 * tl.load(base + at, mask=inside, other=0.0)
        tl.store(stream + at, y, mask=inside)
    if ENDING == "square":
        y = tl.where(y < 0, 0.0, y)
        y = y * y
    if ENDING == "cap":
        y = cap * (1.0 - 2.0 / (tl.exp(2.0 / cap * y) + 1.0))
    return y


@triton.jit
def _turned(x, cos, sin, position, eps, WIDTH: tl.constexpr):
    """A head's numbers at x, neighbours turned as pairs by minus the position's angle, then normed."""
    c = tl.arange(0, WIDTH)
    angle = position * (WIDTH // 2) + c // 2
    own = tl.load(x + c).to(tl.float32)
    neighbour = tl.load(x + (c ^ 1)).to(tl.float32)
    sign = tl.where(c % 2 == 0, 1.0, -1.0)
    return _normed(own * tl.load(cos + angle) + sign * neighbour * tl.load(sin + angle), eps, WIDTH)
