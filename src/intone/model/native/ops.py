"""The CPU kernels as differentiable functions of tensors; each says which plain PyTorch it equals"""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from intone.model.native.build import Variant, has_own_products, library

# rows of logits at a time: 16 MiB at 8,192 entries stay in the last cache, 15.3 us a row (LOG.md)
HEAD_ROWS = 1024
HEAD_ROWS_FLOAT32 = 512
PARTS = 64  # of the sums in intone_norm_backward
PACKED = 2048  # values of a product's sum whose right side is packed at a time, as in product_avx2.cpp


class Shape(ctypes.Structure):
    """struct Shape of attention.h."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            *("rows", "positions", "heads", "kv_heads", "width"),
            *("q_row", "q_position", "kv_row", "kv_position", "d_row", "d_position"),
        )
    ]


def call(
    name: str, *arguments: Tensor | int | float | ctypes.Structure | None, variant: Variant = "avx512_bf16"
) -> None:
    """Calls a kernel: tensors as pointers, ints as int64, floats as float32; the number of threads goes last."""
    words: list[Any] = []
    for value in arguments:
        if value is None:
            words.append(ctypes.c_void_p(0))
        elif isinstance(value, Tensor):
            words.append(ctypes.c_void_p(value.data_ptr()))
        elif isinstance(value, ctypes.Structure):
            words.append(ctypes.byref(value))
        else:
            words.append(ctypes.c_int64(value) if isinstance(value, int) else ctypes.c_float(value))
    getattr(library(variant), name)(*words, torch.get_num_threads())


def of(x: Tensor) -> Variant:
    """The kernels that compute in x's dtype."""
    return "avx2" if x.dtype == torch.float32 else "avx512_bf16"


def product(
    a: Tensor, b: Tensor, out: Tensor, *, add: bool = False, squared: bool = False, slope: Tensor | None = None
) -> Tensor:
    """out (M, N) = or += a (M, K) @ b (K, N), all of one dtype; returns out.

    On our own kernel in float32 where has_own_products() says so and N is a multiple of 16, else torch.mm(). Only where
    runs_own() holds: squared, max(a, 0) squared in the place of a; slope, laid out as out, out times 2 max(slope, 0).
    """
    if not runs_own(a, b, out):
        assert not squared and slope is None, "torch.mm() does neither"
        return out.addmm_(a, b) if add else torch.mm(a, b, out=out)
    return own_product(a, b, out, add=add, squared=squared, slope=slope)


def own_product(
    a: Tensor, b: Tensor, out: Tensor, *, add: bool = False, squared: bool = False, slope: Tensor | None = None
) -> Tensor:
    """product() on our own kernel in any case: float32, N a multiple of 16, one stride of a and one of b is 1."""
    assert slope is None or (not add and slope.stride() == out.stride()), "a slope lies as the result does"
    (m, k), n = a.shape, b.shape[1]
    turned = a.stride(1) != 1
    call(
        "intone_product", a, b, out, m, n, k, a.stride(1 if turned else 0), int(turned), *b.stride(), out.stride(0),
        int(add), int(squared), slope, variant="avx2",
    )  # fmt: skip
    return out


def packed_bytes(n: int, k: int) -> int:
    """What our product with b (K, N) packs of b at a time; the calling thread keeps the memory for its next ones."""
    return 4 * n * min(k, PACKED)


def runs_own(a: Tensor, b: Tensor, out: Tensor) -> bool:
    """Whether product() computes this on our own kernel."""
    along = (1 in a.stride()) and (1 in b.stride()) and out.stride(1) == 1
    return a.dtype == torch.float32 and has_own_products() and b.shape[1] % 16 == 0 and along


def first_visible(documents: Tensor | None, rows: int, positions: int, window: int) -> Tensor:
    """(B, T) int32: the first key that each query sees: its window's begin or its document's, whichever is later.

    documents (B, T) numbers the segments of each row, which lie one after the other; None: a row is one document.
    """
    place = torch.arange(positions, dtype=torch.int32)
    first = (place - (window - 1)).clamp_min(0).expand(rows, positions)
    if documents is not None:
        starts = torch.zeros(rows, positions, dtype=torch.int32)
        starts[:, 1:] = torch.where(documents[:, 1:] != documents[:, :-1], place[1:], 0)
        first = torch.maximum(first, starts.cummax(1).values)
    return first.contiguous()


class Attend(torch.autograd.Function):
    """heads (B, T, H + 2 K, C), queries, keys and values side by side -> (N, H, C) of N = B * T queries.

    taken (N,) int64: only these of the B * T, in ascending order; None: all. Query t sees keys first[b, t] to t of its
    row; first never falls along a row. K divides H, C is a multiple of 16.
    Equals attention.attend() under attention.packed_mask(), with sums and softmax in float32.
    """

    @staticmethod
    def forward(ctx: Any, heads: Tensor, first: Tensor, kv_heads: int, taken: Tensor | None = None) -> Tensor:
        rows, positions, total, width = heads.shape
        shape = Shape(rows, positions, total - 2 * kv_heads, kv_heads, width, *heads.stride()[:2] * 3)
        places = starts = None  # of the wanted queries: positions in their rows, and where each row's begin
        if taken is not None:
            places = (taken % positions).int()
            starts = torch.searchsorted(taken, torch.arange(rows + 1) * positions)
        q, k, v = heads.split((shape.heads, kv_heads, kv_heads), dim=2)
        num_queries = rows * positions if taken is None else len(taken)
        out = torch.empty(num_queries, shape.heads, width, dtype=heads.dtype)
        log_sum = torch.empty(num_queries, shape.heads)
        call(
            "intone_attention_forward", q, k, v, first, places, starts, out, log_sum, shape, width**-0.5,
            variant=of(heads),
        )  # fmt: skip
        ctx.save_for_backward(heads, first, places, starts, out, log_sum)
        ctx.shape = shape
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, None, None, None]:
        heads, first, places, starts, out, log_sum = ctx.saved_tensors
        parts = (ctx.shape.heads, ctx.shape.kv_heads, ctx.shape.kv_heads)
        d_heads = torch.empty_like(heads)
        call(
            "intone_attention_backward", *heads.split(parts, dim=2), first, places, starts, out, d_out.contiguous(),
            log_sum, *d_heads.split(parts, dim=2), ctx.shape, ctx.shape.width**-0.5, variant=of(heads),
        )  # fmt: skip
        return d_heads, None, None, None


class Heads(torch.autograd.Function):
    """qkv (B, T, H + 2 K, C) -> the same shape: queries and keys rotated, normed, times qk_scale; values plus
    gate (B, T, K) float32 times value (B, T, K * C), both or neither None.

    cos and sin (T, C / 2) float32. Equals gpt.Attention between its first product and attend(), computed in float32.
    """

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, gate: Tensor | None, value: Tensor | None, cos: Tensor, sin: Tensor, kv_heads: int,
        qk_scale: float, eps: float,
    ) -> Tensor:  # fmt: skip
        rows, positions, total, width = qkv.shape
        num_heads = total - 2 * kv_heads
        heads = torch.empty_like(qkv)
        scale = torch.empty(rows, positions, num_heads + kv_heads)
        ctx.sizes = (rows * positions, positions, num_heads, kv_heads, width, qk_scale)
        call("intone_heads_forward", qkv, cos, sin, gate, value, heads, scale, *ctx.sizes, eps, variant=of(qkv))
        ctx.save_for_backward(heads, cos, sin, gate, value, scale)
        return heads

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_heads: Tensor) -> tuple[Tensor | None, ...]:
        heads, cos, sin, gate, value, scale = ctx.saved_tensors
        # attention has just made this gradient and nobody else holds it
        d_gate, d_value = (None, None) if value is None else (torch.empty_like(gate), torch.empty_like(value))
        call(
            "intone_heads_backward", heads, cos, sin, gate, value, scale, d_heads, d_gate, d_value, *ctx.sizes,
            variant=of(heads),
        )  # fmt: skip
        return d_heads, d_gate, d_value, None, None, None, None, None


class AddNorm(torch.autograd.Function):
    """x, h (..., D) -> (x + h, its norm)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, h: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        total, normed, scale = torch.empty_like(x), torch.empty_like(x), torch.empty(x.shape[:-1])
        width = x.shape[-1]
        ctx.sizes = (x.numel() // width, width)
        call("intone_norm_forward", x, h, None, 1.0, 0.0, total, None, normed, scale, *ctx.sizes, eps, variant=of(x))
        ctx.save_for_backward(total, scale)
        ctx.set_materialize_grads(False)
        return total, normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_total: Tensor | None, d_normed: Tensor) -> tuple[Tensor, Tensor, None]:
        total, scale = ctx.saved_tensors
        d_x = torch.empty_like(total)
        call(
            "intone_norm_backward", total, None, None, 1.0, 0.0, scale, d_normed.contiguous(), d_total, None, d_x, None,
            None, *ctx.sizes, variant=of(total),
        )  # fmt: skip
        return d_x, d_x, None


class MixNorm(torch.autograd.Function):
    """total = x + h (h None: x); mixed = a * total + b * x0 -> (total, mixed, its norm), all (..., D).

    a, b () float32. Equals gpt.scaled_sum() and gpt.norm() after the addition; total is None where h is.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, h: Tensor | None, x0: Tensor, a: Tensor, b: Tensor, eps: float
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        total = None if h is None else torch.empty_like(x)
        mixed, normed, scale = torch.empty_like(x), torch.empty_like(x), torch.empty(x.shape[:-1])
        width = x.shape[-1]
        ctx.sizes = (x.numel() // width, width)
        ctx.factors = (float(a), float(b))
        call("intone_norm_forward", x, h, x0, *ctx.factors, total, mixed, normed, scale, *ctx.sizes, eps, variant=of(x))
        ctx.save_for_backward(mixed, x if total is None else total, x0, scale)
        ctx.has_h = h is not None
        ctx.set_materialize_grads(False)
        return total, mixed, normed

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_total: Tensor | None, d_mixed: Tensor | None, d_normed: Tensor
    ) -> tuple[Tensor | None, ...]:
        mixed, total, x0, scale = ctx.saved_tensors
        d_x, d_x0 = torch.empty_like(mixed), torch.empty_like(mixed)
        sums = torch.zeros(PARTS, 2, dtype=torch.float64)  # of no rows nothing is written
        call(
            "intone_norm_backward", mixed, total, x0, *ctx.factors, scale, d_normed.contiguous(), d_mixed, d_total, d_x,
            d_x0, sums, *ctx.sizes, variant=of(mixed),
        )  # fmt: skip
        d_a, d_b = sums.sum(0).float()
        return d_x, d_x if ctx.has_h else None, d_x0, d_a, d_b, None


class ReluSquare(torch.autograd.Function):
    """x of a multiple of 16 values -> max(x, 0) squared."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        call("intone_relu_square_forward", x, out, x.numel(), variant=of(x))
        ctx.save_for_backward(x)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        d_x = d_out.contiguous()
        # in place: the product after it has just made this gradient and nobody else holds it
        call("intone_relu_square_backward", x, d_x, d_x, x.numel(), variant=of(x))
        return d_x


class NarrowLinear(torch.autograd.Function):
    """x (N, D) @ narrow (M, D) transposed -> (N, M); narrow holds the float32 weights (M_i, D) one below the other in
    x's dtype."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, narrow: Tensor, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(x, narrow)
        ctx.sizes = [len(weight) for weight in weights]
        return product(x, narrow.t(), x.new_empty(len(x), len(narrow)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        x, narrow = ctx.saved_tensors
        d_narrow = product(d_out.t(), x, torch.empty_like(narrow))
        d_x = product(d_out, narrow, torch.empty_like(x))
        return d_x, None, *(part.float() for part in d_narrow.split(ctx.sizes))


class ReluSquareLinear(torch.autograd.Function):
    """max(x, 0) squared (N, D) @ narrow (M, D) transposed -> (N, M), for float32 x where runs_own() holds.

    Equals ReluSquare and NarrowLinear after each other, without what is between them: that is computed anew from x.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, narrow: Tensor, _weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, narrow)
        return product(x, narrow.t(), x.new_empty(len(x), len(narrow)), squared=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        x, narrow = ctx.saved_tensors
        d_out = d_out.contiguous()
        # the wide side is read across, a row of it at a time, and the small result turned: 1.1 times as fast
        turned = product(x.t(), d_out, torch.empty(narrow.shape[1], narrow.shape[0]), squared=True)
        d_narrow = torch.empty_like(narrow)
        call("intone_turn", turned, d_narrow, *turned.shape, variant="avx2")
        d_x = product(d_out, narrow, torch.empty_like(x), slope=x)
        return d_x, None, d_narrow


class TakeRows(torch.autograd.Function):
    """x (N, D), rows (M,) int64, each at most once -> x[rows] (M, D); the gradient of the other rows is zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.size = len(x)
        return x.index_select(0, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        d_x = d_out.new_zeros(ctx.size, d_out.shape[1])
        d_x[rows] = d_out
        return d_x, None


class HeadLoss(torch.autograd.Function):
    """x (N, D), weight (V, D) float32, targets (N,) with -1 = not learned -> loss_sum () float32, nats.

    narrow is weight in x's dtype.

    The head, the softcap and the cross entropy in one: logits exist for HEAD_ROWS supervised rows at a time, and both
    gradients are computed on the way, so the backward pass only scales them. Rows that are not learned cost nothing.
    counts (N,) float32: what each row's loss counts in the sum; None: 1.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, narrow: Tensor, targets: Tensor, vocab_size: int, softcap: float,
        counts: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        learned = targets >= 0
        every = bool(learned.all())
        rows = x if every else x[learned]
        wanted = (targets if every else targets[learned]).to(torch.int32).contiguous()
        counted = counts if counts is None or every else counts[learned]
        losses = torch.empty(len(rows))
        d_rows = torch.empty_like(rows)
        d_weight = torch.zeros_like(weight)
        step = HEAD_ROWS_FLOAT32 if x.dtype == torch.float32 else HEAD_ROWS
        buffer = torch.empty(min(step, len(rows)), len(weight), dtype=x.dtype)
        for begin in range(0, len(rows), step):
            part = rows[begin : begin + step]
            logits = product(part, narrow.t(), buffer[: len(part)])
            call(
                "intone_cross_entropy", logits, wanted[begin:], losses[begin:], len(part), vocab_size, len(weight),
                float(softcap), variant=of(x),
            )  # fmt: skip
            if counted is not None:
                logits.mul_(counted[begin : begin + len(part), None])
            # a sum over the whole vocabulary: our own product is no faster there
            torch.mm(logits, narrow, out=d_rows[begin : begin + len(part)])
            if x.dtype == torch.float32:
                product(logits.t(), part, d_weight, add=True)
            else:
                call("intone_add_narrow", d_weight, logits.t() @ part, d_weight.numel())
        d_x = d_rows
        if not every:
            d_x = torch.zeros_like(x)
            d_x[learned] = d_rows
        ctx.save_for_backward(d_x, d_weight)
        return losses.sum() if counted is None else losses @ counted

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        d_x, d_weight = ctx.saved_tensors
        return d_x * d_loss.to(d_x.dtype), d_weight * d_loss, None, None, None, None, None


class NarrowWeights:
    """Master weights in the dtype of activations, converted once per update: a parameter's version says when it has
    changed."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, ...], tuple[torch.dtype, tuple[int, ...], Tensor]] = {}

    def __call__(self, *weights: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """The weights one below the other, (sum of M, D); one that is in dtype already is handed back as it is."""
        if len(weights) == 1 and weights[0].dtype == dtype:
            return weights[0].detach()
        key = tuple(map(id, weights))
        versions = tuple(weight._version for weight in weights)
        kept = self._kept.get(key)
        if kept is None or kept[:2] != (dtype, versions):
            with torch.no_grad():
                kept = (dtype, versions, torch.cat([weight.to(dtype) for weight in weights]))
            self._kept[key] = kept
        return kept[2]
