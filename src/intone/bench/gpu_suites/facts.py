"""What a device reaches: copying, matrix products by dtype, attention by shape and backend."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from intone.bench.gpu_suites.bench import Bench, time_groups
from intone.log import say
from intone.model.attention import packed_mask
from intone.rates import waiter

COPY_BYTES = {False: 2**32, True: 2**22}  # by is_tiny; 4 GiB: far beyond any cache
SIZES = {False: (2048, 4096, 8192), True: (64,)}
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
DOCUMENT_TOKENS = 500  # mean length of a document in a packed row: web text has about as many
ONE_S = 3.0  # of one measured thing: warm-up, first compile of a kernel, nine groups (guess)


@dataclass(frozen=True)
class Shape:
    """Rows, positions, heads and head width of an attention."""

    rows: int
    positions: int
    heads: int
    head_width: int


# depth 12 at width 768: heads as ours, and as nanochat's
SHAPES = {
    False: {"12x64": Shape(16, 2048, 12, 64), "6x128": Shape(16, 2048, 6, 128)},
    True: {"2x16": Shape(2, 32, 2, 16)},
}


def facts(bench: Bench) -> None:
    """Rows facts.copy_bytes_per_s, facts.products.DTYPE_SIZE and facts.attention.SHAPE.WAY.BACKEND_ms."""
    device = torch.device(bench.device)
    torch.manual_seed(0)
    with bench.quiet():
        copying(bench, device)
        products(bench, device)
        for name, shape in SHAPES[bench.is_tiny].items():
            attention(bench, device, name, shape)


def copying(bench: Bench, device: torch.device) -> None:
    """Bytes read and written per second by a copy inside the device's memory."""
    name = "facts.copy_bytes_per_s"
    if not bench.may("copying", name, seconds=ONE_S):
        return
    size = COPY_BYTES[bench.is_tiny]
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    times = time_groups(lambda: target.copy_(source), waiter(device))
    bench.median_row(name, times, "bytes/s", of=lambda seconds: 2 * size / seconds)


def products(bench: Bench, device: torch.device) -> None:
    """Operations per second of square products of random numbers: zeros run faster than any model's numbers."""
    for size in SIZES[bench.is_tiny]:
        for kind, make in product_kinds(device).items():
            name = f"facts.products.{kind}_{size}"
            if not bench.may(f"{kind} product of side {size:,}", name, seconds=ONE_S):
                continue
            try:
                work = make(size)
                with rounding(kind == "tf32"):
                    times = time_groups(work, waiter(device))
            except (RuntimeError, TypeError, AttributeError) as error:  # this device, or this torch, cannot
                say(f"{kind}: not here: {str(error).splitlines()[0]}")
                continue
            bench.median_row(name, times, "FLOP/s", of=lambda seconds, n=size: 2 * n**3 / seconds)  # type: ignore[misc]


def product_kinds(device: torch.device) -> dict[str, Callable[[int], Callable[[], object]]]:
    """Name of a product -> what makes its operands and returns the call to time."""

    def plain(dtype: torch.dtype) -> Callable[[int], Callable[[], object]]:
        def make(size: int) -> Callable[[], object]:
            a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
            out = torch.empty_like(a)
            return lambda: torch.mm(a, b, out=out)

        return make

    def fp8(size: int) -> Callable[[], object]:
        a, b = (torch.randn(size, size, device=device).to(torch.float8_e4m3fn) for _ in range(2))
        one = torch.ones((), device=device)
        b = b.t()  # the second operand must lie column by column
        return lambda: torch._scaled_mm(a, b, one, one, out_dtype=torch.bfloat16, use_fast_accum=True)

    kinds = {"fp32": plain(torch.float32), "bf16": plain(torch.bfloat16)}
    if device.type == "cuda":
        kinds |= {"tf32": plain(torch.float32), "fp16": plain(torch.float16), "fp8": fp8}
    return kinds


@contextlib.contextmanager
def rounding(allowed: bool) -> Iterator[None]:
    """Lets fp32 products on a GPU round their operands to 10 bits of mantissa (TF32), or not."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def attention(bench: Bench, device: torch.device, shape_name: str, shape: Shape) -> None:
    """Milliseconds of attention, forward and backward, for each way to mask and each backend that can do it."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    q, k, v = (
        torch.randn(shape.rows, shape.heads, shape.positions, shape.head_width, device=device, dtype=dtype)
        .requires_grad_()
        for _ in range(3)
    )
    grad = torch.randn_like(q)
    for way, mask in masks(shape, device):
        for backend in BACKENDS:
            name = f"facts.attention.{shape_name}.{way}.{backend}_ms"
            if not bench.may(f"attention {shape_name}, {way}, {backend}", name, seconds=ONE_S):
                continue
            try:
                times = time_groups(lambda m=mask, b=backend: both_ways(q, k, v, grad, m, b), waiter(device))  # type: ignore[misc]
            except RuntimeError as error:  # the backend does not do this here
                say(f"{backend}: not here: {str(error).splitlines()[0]}")
                continue
            bench.median_row(name, times, "ms", of=lambda seconds: 1e3 * seconds)


def both_ways(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, mask: Tensor | None, backend: str) -> None:
    """One forward and one backward pass in one backend. Raises RuntimeError where it cannot."""
    with sdpa_kernel([BACKENDS[backend]]):
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
    torch.autograd.grad(out, (q, k, v), grad)


def masks(shape: Shape, device: torch.device) -> Iterator[tuple[str, Tensor | None]]:
    """The ways our blocks mask: causal without a mask, a window, and documents inside a packed row with a window."""
    positions = shape.positions
    yield "causal", None
    window = max(1, positions // 4)
    yield "window", packed_mask(None, positions, window, device)
    length = min(DOCUMENT_TOKENS, max(1, positions // 3))
    documents = (torch.arange(positions, device=device) // length).expand(shape.rows, -1)
    yield "documents", packed_mask(documents, positions, positions, device)


