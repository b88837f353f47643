"""Whether the engine's step kernels compute what PyTorch does on this GPU, and how fast they read weights by their cut

As a program (`python -m intone.bench.gpu_suites.decode_kernels check`, or `overlap`) it checks the former and exits 1
where they do not: a kernel that reads where it must not takes its whole process with it.
"""

import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from intone.bench.gpu_suites.bench import Bench
from intone.config import ModelConfig, model_config
from intone.engine.decoder import Batch, GPTDecoder
from intone.engine.fixed import FixedAttention
from intone.engine.fused_decoder import Blocks, FusedDecoder, StepRows, blocks_of, launch_options, small_product
from intone.engine.kv import PageStore, page_groups
from intone.engine.pages import PAGE
from intone.log import say
from intone.model.gpt import GPT

CHILD_S = 60.0  # guess: three times what some forty kernels take to compile
# heads' width, heads per key head, rows
CHECKED = ((64, 1, 1), (64, 1, 8), (64, 1, 64), (128, 2, 1), (128, 2, 8))
OVERLAPPED = ((12, 1), (24, 1), (12, 8), (12, 64))  # depth and rows
CHECK_DEPTH = 4  # three blocks with a window, two that gate
# of the largest logit. PyTorch's bfloat16 logits are 0.4 % from its float32 ones (measured on a CPU), and both sides
# round at other places
ALLOWED = 0.02
# depth and columns of the products of a block, and of the head, at depths 12 and 24
PRODUCTS = ((768, 2304), (768, 3072), (3072, 768), (1536, 4608), (1536, 6144), (6144, 1536), (1536, 32_768))
# cuts to compare with the rule's: columns, depth, warps, turns in flight
ONE_ROW = (Blocks(2, 1024, 4), Blocks(4, 1024, 4), Blocks(8, 1024, 4), Blocks(4, 512, 2), Blocks(4, 2048, 8))
FEW_ROWS = (Blocks(8, 256, 4, 4), Blocks(16, 256, 4, 4), Blocks(16, 512, 8, 3), Blocks(32, 128, 4, 5))
ROTATED_BYTES = 200e6  # of copies of a weight that are read in turn: four times the cache of an H200
REPEATS = 5


def kernels_run(bench: Bench) -> bool:
    """Whether the check passes in a process of its own; where not, says the end of what it said. Where it passes,
    another one says what it is worth to let kernels overlap."""
    if bench.device != "cuda":
        say("the engine's step kernels need a GPU")
        return False
    if not child_ends_well("check"):
        say("THE STEP KERNELS DO NOT WORK HERE: everything below is PyTorch's")
        return False
    if not child_ends_well("overlap"):
        say("KERNELS THAT OVERLAP DO NOT WORK HERE: everything below is PyTorch's")
        return False
    return True


def child_ends_well(what: str) -> bool:
    """Whether a process of this module exits 0; says what it said."""
    words = [sys.executable, "-m", "intone.bench.gpu_suites.decode_kernels", what]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=CHILD_S)
        lines, is_done = (done.stdout + done.stderr).splitlines(), done.returncode == 0
    except subprocess.TimeoutExpired:
        lines, is_done = [f"{what} took more than {CHILD_S:g} s"], False
    for line in lines if is_done else lines[-25:]:
        say(f"  {line}")
    return is_done


def check() -> int:
    """Compares logits of a step in every case of CHECKED -> exit status."""
    is_good = True
    for head_width, heads_per_key, num_rows in CHECKED:
        config = narrowed(12 * head_width // 64, head_width=head_width, heads_per_key=heads_per_key)
        difference = apart(config, num_rows, torch.device("cuda"))
        print(f"heads of {head_width}, {heads_per_key} per key, {num_rows} rows: logits differ by {difference:.2%}")
        is_good = is_good and difference <= ALLOWED  # so that what is no number is not good
    return 0 if is_good else 1


def overlap() -> int:
    """Times steps whose kernels wait for each other, and overlapping ones -> exit status: 1 where bits differ."""
    is_good = True
    for depth, num_rows in OVERLAPPED:
        config = narrowed(depth)
        step = OneStep.drawn(config, num_rows, torch.device("cuda"))
        seconds, found = [], []
        for overlaps in (False, True):
            fused = FusedDecoder(step.decoder, step.stores[0], trash=step.trash, scale=step.scale, overlaps=overlaps)
            logits: list[Tensor] = []

            def work(fused: FusedDecoder = fused, logits: list[Tensor] = logits, step: OneStep = step) -> None:
                logits[:] = [fused.logits(step.rows, context=step.decoder.config.context)]

            with torch.inference_mode():
                seconds.append(timed_graph(work))
                found.append(logits[0].clone())
        is_equal = torch.equal(*found)
        alone, together = (f"{1e6 * value:.1f} us" for value in seconds)
        bits = "equal" if is_equal else "DIFFERENT"
        print(f"{CHECK_DEPTH} blocks as wide as depth {depth}'s and the head, {num_rows} rows: {alone}, overlapping "
              f"{together}, bits {bits}")  # fmt: skip
        is_good = is_good and is_equal
    return 0 if is_good else 1


def narrowed(depth: int, *, head_width: int = 64, heads_per_key: int = 1) -> ModelConfig:
    """The shape of a depth with CHECK_DEPTH blocks."""
    config = model_config("modern", depth=depth, vocab_size=32_768, context=2048, head_width=head_width)
    return replace(config, depth=CHECK_DEPTH, num_kv_heads=config.num_heads // heads_per_key)


@dataclass(frozen=True)
class OneStep:
    """A decoder, rows in the middle of their texts whose pages are in no order, and two stores of the same keys."""

    decoder: GPTDecoder
    rows: StepRows
    stores: tuple[PageStore, PageStore]
    trash: list[int]
    scale: float

    @classmethod
    def drawn(cls, config: ModelConfig, num_rows: int, device: torch.device) -> "OneStep":
        """All at random, in bfloat16."""
        dtype, generator = torch.bfloat16, torch.Generator(device).manual_seed(0)
        decoder = GPTDecoder.of(filled_model(config, device), device=device, dtype=dtype)
        groups, num_pages = page_groups(config, config.context), num_rows * config.context // PAGE
        sizes = [num_pages] * len(groups)
        one, other = (PageStore(config, groups, sizes, dtype=dtype, device=device, has_spare=True) for _ in range(2))
        for block, same in zip(one.blocks, other.blocks, strict=True):
            same.copy_(block.normal_(generator=generator))

        def drawn(end: int) -> Tensor:
            return torch.randint(0, end, (num_rows,), generator=generator, device=device)

        tables = [torch.randperm(num_pages, generator=generator, device=device).view(num_rows, -1) for _ in groups]
        running = torch.ones(num_rows, dtype=torch.int64, device=device)
        rows = StepRows(drawn(config.vocab_size), drawn(config.vocab_size), drawn(config.context), running, tables)
        return cls(decoder, rows, (one, other), sizes, config.qk_scale**2 * config.head_width**-0.5)


def apart(config: ModelConfig, num_rows: int, device: torch.device) -> float:
    """The largest difference between the step kernels' logits and PyTorch's, of the largest logit; bfloat16."""
    step = OneStep.drawn(config, num_rows, device)
    rows, context = step.rows, config.context
    with torch.inference_mode():
        attention = FixedAttention(
            step.stores[0], rows.tables, step.trash, rows.position, rows.running > 0, context=context,
            scale=step.scale, wide=step.decoder.dtype,
        )  # fmt: skip
        wanted = torch.arange(num_rows, device=device)
        expected = step.decoder.logits(Batch(rows.token, rows.before, rows.position, wanted, attention))
        fused = FusedDecoder(step.decoder, step.stores[1], trash=step.trash, scale=step.scale)
        found = fused.logits(rows, context=context)
        return float((found - expected).abs().max() / expected.abs().max())


def filled_model(config: ModelConfig, device: torch.device) -> GPT:
    """A model with random weights none of which is zero, drawn on the device: a start's zeros hide whole blocks."""
    with device:
        model = GPT(config)
    generator = torch.Generator(device).manual_seed(0)
    scalars = {"residual_scale": 1.05, "embedding_scale": 0.1, "smear_scale": 0.3, "backout_scale": 0.2}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name in scalars:
                weight.fill_(scalars[name])
            else:
                weight.normal_(std=1.0 if "embedding" in name else 0.5 * weight.shape[-1] ** -0.5, generator=generator)
    return model.eval().requires_grad_(False)


# --- cuts -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timed:
    """Seconds of a product under one cut."""

    blocks: Blocks
    seconds: float


def tune_products(bench: Bench) -> None:
    """Row decode.products.rule_over_best: how much longer the rule's cuts take than the best of some, over all."""
    ratios = []
    for num_rows, others in ((1, ONE_ROW), (8, FEW_ROWS)):
        for depth, columns in PRODUCTS:
            rule = blocks_of(num_rows, columns, depth)
            found = [timed_product(num_rows, depth, columns, cut) for cut in dict.fromkeys((rule, *others))]
            size = 2 * depth * columns
            cuts = ", ".join(
                f"{cut.blocks.columns}x{cut.blocks.depth}/{cut.blocks.num_warps}w{cut.blocks.num_stages}s "
                f"{1e6 * cut.seconds:.2f} us {size / cut.seconds / 1e9:,.0f} GB/s" for cut in found
            )  # fmt: skip
            say(f"  {num_rows} rows, {depth} -> {columns}, rule first: {cuts}")
            ratios.append(found[0].seconds / min(cut.seconds for cut in found))
    bench.row("decode.products.rule_over_best", statistics.geometric_mean(ratios), "x", low=min(ratios),
              high=max(ratios), n=len(ratios), baseline="the fastest of five or six cuts of each product")  # fmt: skip


def timed_product(num_rows: int, depth: int, columns: int, blocks: Blocks) -> Timed:
    """Seconds of one product in a captured graph over copies of a weight, so that none is found in a cache."""
    device, dtype = torch.device("cuda"), torch.bfloat16
    count = max(2, round(ROTATED_BYTES / (2 * depth * columns)))
    weights = torch.randn((count, columns, depth), dtype=dtype, device=device)
    x = torch.randn((num_rows, depth), dtype=dtype, device=device)
    out = torch.empty((num_rows, columns), dtype=dtype, device=device)

    options = launch_options(False)

    def all_copies() -> None:
        for weight in weights:
            small_product(x, weight, out, ending="store", options=options, norm_eps=1e-6, blocks=blocks)

    return Timed(blocks, timed_graph(all_copies) / count)


def timed_graph(work: Callable[[], None]) -> float:
    """Seconds of what a captured call of work takes, the median of REPEATS."""
    torch.cuda.synchronize()  # what is being drawn must be there before another stream reads it
    with torch.cuda.stream(torch.cuda.Stream()):
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    times: list[float] = []
    for _ in range(REPEATS + 1):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times[1:])


def kernel_table(names: Sequence[str], spans_us: Sequence[float], num_steps: int) -> list[str]:
    """Lines of a table: what each kernel takes of a step, the longest first."""
    total: dict[str, list[float]] = {}
    for name, span in zip(names, spans_us, strict=True):
        total.setdefault(name, []).append(span)
    lines = ["  us a step   each  times a step  kernel"]
    for name, spans in sorted(total.items(), key=lambda entry: -sum(entry[1]))[:24]:
        each = statistics.median(spans)
        lines.append(f"  {sum(spans) / num_steps:9.2f} {each:6.2f} {len(spans) / num_steps:13.2f}  {name[:90]}")
    return lines


if __name__ == "__main__":
    sys.exit({"check": check, "overlap": overlap}[sys.argv[1]]())
