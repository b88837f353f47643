"""What a person can ask of `intone bench infer`"""

from dataclasses import dataclass
from typing import Literal

from intone.fields import Checked, setting

Case = Literal["b1", "b16", "eval200", "transformers", "litgpt", "cold", "cache", "bpb", "grid"]


@dataclass(frozen=True, kw_only=True)
class BenchInferSettings(Checked):
    """`intone bench infer`: how fast the engine answers, alone and beside other engines, with random weights."""

    # b1, b16, eval200: beside nanochat; transformers, litgpt; cold, cache, grid: alone; bpb: cost of 8 bits
    cases: tuple[Case, ...] = ("grid",)
    # run whose weights bpb looks at: NAME, NAME/STAGE, a path, or latest
    from_run: str = setting("latest", flag="from")
    # checkout of nanochat at 92d63d4
    nanochat: str | None = None
    # Python that can import it; none: the one that runs intone
    nanochat_python: str | None = None
    # Python that has transformers; none: the one that runs intone
    transformers_python: str | None = None
    # Python that has litgpt; none: the one that runs intone
    litgpt_python: str | None = None
    # number of blocks; 12 is 768 wide with 110M numbers in matrices
    depth: int = setting(12, least=1)
    # entries of the vocabulary
    vocab_size: int = setting(32_768, least=265)
    # longest text in tokens
    context: int = setting(2048, least=64)
    # number format of our side
    dtype: Literal["fp32", "bf16"] = "bf16"
    # how our matrices are stored; auto: in dtype
    weights: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    # number format of transformers and litgpt, and of our side beside them
    their_dtype: Literal["fp32", "bf16"] = "fp32"
    # CPU threads of every side; 0: each side's own choice
    threads: int = setting(0, least=0)
    # where the grid runs
    device: Literal["cpu", "cuda"] = "cpu"
    # rounds, each with new prompts: one block of every side, in turns
    rounds: int = setting(5, least=5)
    # file that rows are appended to; none given: bench/results/infer.jsonl of this checkout
    out: str | None = None
    # folder that the grid's plot and numbers are written to; none given: next to the rows
    plots: str | None = None
