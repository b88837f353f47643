"""Whether the engine's step kernels compute what PyTorch does on this GPU, and how fast they read weights by their cut

As a program (`python -m intone.bench.gpu_suites.decode_kernels`) it checks the former and exits 1 where they do not: a
kernel that reads where it must not takes its whole process with it.
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
from intone.engine.fused_decoder import Blocks, FusedDecoder, StepRows, blocks_of, small_product
from intone.engine.kv import PageStore, page_groups
from intone.engine.pages import PAGE
from intone.log import say
from intone.model.gpt import GPT

CHECK_S = 90.0  # guess: three times what some forty kernels take to compile
# heads' width, heads per key head, rows
CHECKED = ((64, 1, 1), (64, 1, 8), (64, 1, 64), (128, 2, 1), (128, 2, 8))
CHECK_DEPTH = 4  # three blocks with a window, two that gate
# of the largest logit. bfloat16 has 8 bits, and both sides round at other places
ALLOWED = 0.04
# depth and columns of the products of a block, and of the head, at depths 12 and 24
PRODUCTS = ((768, 2304), (768, 3072), (3072, 768), (1536, 4608), (1536, 6144), (6144, 1536), (1536, 32_768))
# cuts to compare with the rule's: columns, depth, warps, turns in flight
ONE_ROW = (Blocks(2, 1024, 4), Blocks(4, 1024, 4), Blocks(8, 1024, 4), Blocks(4, 512, 2), Blocks(4, 2048, 8))
FEW_ROWS = (Blocks(16, 256, 4, 4), Blocks(16, 512, 8, 3), Blocks(32, 128, 4, 5), Blocks(32, 256, 4, 3))
ROTATED_BYTES = 200e6  # of copies of a weight that are read in turn: four times the cache of an H200
REPEATS = 5


def kernels_run(bench: Bench) -> bool:
    """Whether the check passes in a process of its own; where not, says the end of what it said."""
    if bench.device != "cuda":
        say("the engine's step kernels need a GPU")
        return False
    words = [sys.executable, "-m", "intone.bench.gpu_suites.decode_kernels"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=CHECK_S)
        lines, is_done = (done.stdout + done.stderr).splitlines(), done.returncode == 0
    except subprocess.TimeoutExpired:
        lines, is_done = [f"the check of the step kernels took more than {CHECK_S:g} s"], False
    for line in lines if is_done else lines[-25:]:
        say(f"  {line}")
    if not is_done:
        say("THE STEP KERNELS DO NOT WORK HERE: everything below is PyTorch's")
    return is_done


def check() -> int:
    """Compares logits of a step in every case of CHECKED -> exit status."""
    device, is_good = torch.device("cuda"), True
    for head_width, heads_per_key, rows in CHECKED:
        config = model_config("modern", depth=CHECK_DEPTH * head_width // 64, vocab_size=4096, context=2048,
                              head_width=head_width)  # fmt: skip
        config = replace(config, depth=CHECK_DEPTH, num_kv_heads=config.num_heads // heads_per_key)
        difference = apart(config, rows, device)
        print(f"heads of {head_width}, {heads_per_key} per key, {rows} rows: logits differ by {difference:.2%}")
        is_good = is_good and difference <= ALLOWED  # so that what is no number is not good
    return 0 if is_good else 1


def apart(config: ModelConfig, num_rows: int, device: torch.device) -> float:
    """The largest difference between the step kernels' logits and PyTorch's, of the largest logit; bfloat16."""
    dtype, generator = torch.bfloat16, torch.Generator(device).manual_seed(0)
    decoder = GPTDecoder.of(filled_model(config, device), device=device, dtype=dtype)
    groups, most_pages = page_groups(config, config.context), config.context // PAGE
    num_pages = [num_rows * most_pages] * len(groups)
    stores = [
        PageStore(config, groups, num_pages, dtype=dtype, device=device, has_spare=True) for _ in range(2)
    ]
    for one, other in zip(*(store.blocks for store in stores), strict=True):
        other.copy_(one.normal_(generator=generator))

    def drawn(end: int) -> Tensor:
        return torch.randint(0, end, (num_rows,), generator=generator, device=device)

    tables = [
        torch.randperm(num_rows * most_pages, generator=generator, device=device).view(num_rows, -1) for _ in groups
    ]
    rows = StepRows(drawn(config.vocab_size), drawn(config.vocab_size), drawn(config.context),
                    torch.ones(num_rows, dtype=torch.int64, device=device), tables)  # fmt: skip
    scale = config.qk_scale**2 * config.head_width**-0.5
    with torch.inference_mode():
        attention = FixedAttention(
            stores[0], tables, num_pages, rows.position, rows.running > 0, context=config.context, scale=scale,
            wide=dtype,
        )  # fmt: skip
        wanted = torch.arange(num_rows, device=device)
        expected = decoder.logits(Batch(rows.token, rows.before, rows.position, wanted, attention))
        fused = FusedDecoder(decoder, stores[1], trash=num_pages, scale=scale)
        found = fused.logits(rows, context=config.context)
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

    def all_copies() -> None:
        for weight in weights:
            small_product(x, weight, out, ending="store", norm_eps=1e-6, blocks=blocks)

    return Timed(blocks, timed_graph(all_copies) / count)


def timed_graph(work: Callable[[], None]) -> float:
    """Seconds of what a captured call of work takes, the median of REPEATS."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
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
    sys.exit(check())
