"""docs/case-study.md: the published case study row by row, beside what was measured here, and why they differ"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from intone.records import ResultRow
from intone.verbs import VERBS

PAGE = "docs.artemis.turintech.ai/use-cases/performance-system-optimization/nanochat"
NOT_MEASURED = "not measured yet"
SFT, BASE = "intone bench casestudy --parts sft", "intone bench casestudy --parts base"
GENERATION, COMPILE, AUTOBATCH = "intone bench inference", "intone bench compile", "intone bench autobatch"
GPU = "python -m intone.bench.gpu --out DIR --suite casestudy"


@dataclass(frozen=True)
class Claim:
    """A sentence or a table row of the page, as a fact in our words, and where ours comes from.

    ids: rows that hold our number. command: what makes them, or the verb that does the thing. says: what there is to
    say where the statement has no number; it needs the command's verb to exist.
    """

    theirs: str
    command: str
    ids: tuple[str, ...] = ()
    why: str = ""
    says: str = ""


SECTIONS: Mapping[str, tuple[Claim, ...]] = {
    "What it is about": (
        Claim("The project is nanochat, a small teaching pipeline for language models, end to end.", "intone run",
              says="the same stages in one command, sized to the machine",
              why="ours is a pipeline of its own that imports nanochat's checkpoints; speed beside nanochat is in "
                  "BENCH.md, under Training and Generation"),
        Claim("Goal: faster training and generation, less memory, a better use of the key-value cache.",
              "intone bench casestudy", ("cpu.casestudy.sft", "cpu.casestudy.base", "cpu.casestudy.inference"),
              why="memory stands beside every row of the tables; use of the cache is `cpu.infer.kv_used_share`"),
        Claim("Goal: before and after are measured by automatic profiling.", "intone bench A -- B",
              says="fresh processes in turns, an interval, one of five words; gates come before speed",
              why="a profile explains a difference and does not prove it"),
        Claim("Goal: a planner proposes and integrates features: samplers, profiling hooks, training settings.",
              "intone plan TEXT", says="a plan; for these three kinds a tested change too, without a model"),
        Claim("The published model has 178,520,064 parameters.", GPU, ("h200.casestudy.inference",),
              why="depth 12, width 768, 6 heads, 3 key heads and 65,536 entries give that number (a test counts them); "
                  "on a CPU a smaller model is the default"),
    ),
    "Workflows": (
        Claim("Add a target, let agents analyse it, detect bottlenecks, plan the fix.", "intone optimise TARGET",
              says="the same steps; findings are measured, a change is kept only with a verdict",
              why="a language model may propose there and never judges"),
        Claim("Find chances for new features with the planner's instruction for them.", "intone plan",
              says="lists what a code base lacks, with evidence and a bound where arithmetic gives one"),
        Claim("Scan for critical issues, then plan the fix.", "intone scan PATH",
              says="rules and probes, each finding with its place and its fix"),
    ),
    "The four changes": (
        Claim("Automatic micro-batch: low use of the GPU (about 35 %) is cured by an exponential search refined by "
              "bisection, with a margin for safety.", "intone tune base",
              ("cpu.tune.batch_quality", "cpu.tune.memory_error"),
              why="ours fits memory and time as lines in the micro-batch from two or three probes of the real step and "
                  "takes the fastest size, not the largest; their search is the second method"),
        Claim("Key-value cache: recomputing attention for every token is replaced by one pass over the prompt and a "
              "cache.", GENERATION, ("cpu.casestudy.inference.cache",),
              why="nanochat had a cache and an engine that all its scripts used from its first commit; what had none "
                  "was a reference function, and that is the baseline of their table"),
        Claim("Compiled code: overhead of Python and unfused kernels give way to code for one shape.", COMPILE,
              ("cpu.casestudy.compile",),
              why="nanochat compiled base and mid training from its first commit; only SFT was eager, because its rows "
                  "had many lengths"),
        Claim("First tokens: samples of one prompt began with the same token and are now drawn one by one.",
              "python -m intone.prove.gates.selftest",
              says="the gate on sampling rejects copied first tokens; they are planted in bench/casestudy_start.py",
              why="a fault of sampling for RL and evaluation; nanochat corrected it on 2025-12-28"),
    ),
    "Table: training": (
        Claim("Micro-batch: 1.90x in SFT, 47 % of the time saved.", AUTOBATCH, ("cpu.casestudy.sft.auto_batch",),
              why="there 4 became 93 rows, and with them 32 examples a step became at least 93: another recipe. Here "
                  "every row does the same optimizer steps; two CPU cores are full with 4 rows of 512 tokens"),
        Claim("Micro-batch: 1.04x in base and mid, 4 % saved.", AUTOBATCH, ("cpu.casestudy.base.auto_batch",),
              why="as above"),
        Claim("Compiled code: 1.67x, 40 % saved.", COMPILE, ("cpu.casestudy.compile",),
              why="measured there at one shape of 65,536 tokens and then used for SFT, whose rows have many lengths"),
        Claim("Everything in SFT: 3.17x, 68 % saved.", SFT, ("cpu.casestudy.sft", "h200.casestudy.sft"),
              why="theirs is 1.90 x 1.67, a product (95,337 x 1.67 = 159,213 tokens/s). Ours is measured together, in "
                  "supervised tokens a second, and counts no padding"),
        Claim("Everything in base and mid: 1.74x, 43 % saved.", BASE, ("cpu.casestudy.base", "h200.casestudy.base"),
              why="theirs is 1.04 x 1.67, over a baseline with the compiling taken out"),
        Claim("The gains compound.", "intone bench combined",
              ("cpu.casestudy.sft.without_auto_batch", "cpu.casestudy.sft.without_fast_code",
               "cpu.casestudy.sft.without_packing", "cpu.casestudy.base.without_fast_code"),
              why="what each change is worth within the whole is measured by taking it out: a change without a gain of "
                  "its own is named"),
    ),
    "Table: generation": (
        Claim("One text without a cache: 21.41 s, 81.4 tokens/s.", GENERATION,
              ("cpu.casestudy.inference.start.per_s",), why="another machine and another model; 1,743 tokens there"),
        Claim("93 texts with a cache: 2.04 s, 855.7 tokens/s, 10.5x, 90 % saved.", GENERATION,
              ("cpu.casestudy.inference.batch", "cpu.casestudy.inference", "h200.casestudy.inference"),
              why="two changes in one row there; here the cache and the batch have a row each"),
        Claim("The cache alone could give 88x for 200 tokens after 50.", GENERATION, ("cpu.casestudy.inference.cache",),
              why="a bound by counting: 29,900 passes of a token become 250, which would be 120x; a number that nobody "
                  "measured is not printed here"),
    ),
    "Figures in the text": (
        Claim("SFT in the new micro-batch: 95,337 tokens/s; with compiled code 159,213.", SFT,
              ("cpu.casestudy.sft.start.per_s", "cpu.casestudy.sft.everything.per_s"),
              why="theirs counts padding as tokens, the more so where rows are padded to the whole context"),
        Claim("100 steps take 64.4 s eager (101,654 tokens/s) and 38.6 s compiled (169,919).", COMPILE,
              ("cpu.casestudy.compile.start.per_s", "cpu.casestudy.compile.everything.per_s"),
              why="the seconds of compiling are left out there and stand beside ours, with the number of steps after "
                  "which they have paid"),
        Claim("The micro-batch went from 4 to 93.", AUTOBATCH, ("cpu.tune.batch_quality",),
              why="93 rows do not divide a step of 32 examples, nor one of 524,288 tokens: nanochat's own check stops "
                  "there. Ours divides the step, so that the recipe stays"),
        Claim("Use of the GPU rose from 35 % to 92 %.", GPU, ("h200.casestudy.gpu_busy",),
              why="the share of time in which any kernel runs says little about how much is computed; MFU stands "
                  "beside it (`h200.train.d24.mfu_bf16`)"),
        Claim("Finding the micro-batch takes about 20 s.", "intone tune base",
              ("cpu.tune.batch_search_s", "h200.tune.batch_search_s"), why="compiling that is needed anyway aside"),
        Claim("15 % of the memory are left free.", "intone tune base", ("cpu.tune.memory_error",),
              why="ours leaves what the error of its own fit asks for, and 15 % where that is unknown"),
        Claim("The micro-batch that was found is remembered.", "intone tune base", ("cpu.tune.batch_hit_s",),
              why="theirs by device and context; ours also by model, dtype, versions, code and free memory"),
        Claim("Corrected sampling brings more unique samples (23x), varied gradients and right accumulation.",
              "python -m intone.prove.gates.selftest",
              says="first tokens of many samples follow the model's own probabilities, or the gate rejects",
              why="the fault was in sampling and touched no gradient of SFT"),
        Claim("Training was not compiled and generation had no cache.", "intone bench casestudy",
              ("cpu.casestudy.base", "cpu.casestudy.inference"),
              why="both were there upstream (see above); the starting point is re-made here as published: 4 rows, "
                  "padded, eager, no cache, copied first tokens"),
    ),
}  # fmt: skip

HEAD = f"""# The case study, row by row

A published case study ({PAGE}) made nanochat faster with
an optimiser. Here is what it says, as facts in our words, and what the same thing gives with `intone`. Numbers are
made from `bench/results/*.jsonl` by `python -m intone.bench.results`; a test compares. "{NOT_MEASURED}" is what it
says. What "why" states about nanochat comes from its public history (commits 3a5e0bc, 01f5f10, 8f979a8) and from
pull request 355, which holds the study's code.

The starting point is our own pipeline with five faults put in on purpose (`bench/casestudy_start.py`): 4 rows at a
time, eager, one conversation a row padded to the longest of its four, no cache, and first tokens copied over the
samples of a request. It has the dtype, weights and optimizer steps of the tuned side, and its losses are compared
step by step. All rows: `intone bench casestudy` (a first look: `--quick`); on a GPU: `{GPU}`.

How near is that start to the real one? `intone bench casestudy --preset classic --nanochat CHECKOUT`, with a checkout
at 01f5f10, puts nanochat's own SFT step and its own GPT.generate into the tables: same conversations, same prompts.
"""


def page_text(newest: Mapping[str, ResultRow], words: Callable[[ResultRow], str], escape: Callable[[str], str]) -> str:
    """The whole page. words: a row's value for people; escape: text in which nothing is markup."""
    parts = [HEAD.strip()]
    for title, claims in SECTIONS.items():
        lines = ["| theirs | our command | our row | ours | why they differ |", "| :-- | :-- | :-- | :-- | :-- |"]
        for claim in claims:
            ids = ", ".join(f"`{name}`" for name in claim.ids) or "-"
            cells = (escape(claim.theirs), f"`{claim.command}`", ids, ours(claim, newest, words), claim.why or "-")
            lines.append(f"| {' | '.join(cells)} |")
        parts += [f"## {title}", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def ours(claim: Claim, newest: Mapping[str, ResultRow], words: Callable[[ResultRow], str]) -> str:
    """What there is of ours: values in the order of the ids, or what the verb does, where the verb exists."""
    if claim.ids:
        values = [words(newest[name]) if name in newest else NOT_MEASURED for name in claim.ids]
        return NOT_MEASURED if set(values) == {NOT_MEASURED} else "; ".join(values)
    return claim.says if command_exists(claim.command) else "not built yet"


def command_exists(command: str) -> bool:
    """Whether a command of ours can be typed: a module, or a verb in the table of verbs."""
    if command.startswith("python -m "):
        return True
    return command.split()[1] in VERBS
