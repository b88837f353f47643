"""What intone sets out to reach: for every measured value that counts, what it means and which numbers are good."""

from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Literal

from intone.records import ResultRow


@dataclass(frozen=True)
class Target:
    """One value with its bounds: op says which side is good, must is the least, aim is what we want."""

    id: str  # device.area.case
    op: Literal[">=", "<="]
    must: float
    aim: float
    unit: str  # of the bounds, and of the rows; x: a factor, share: 0 to 1
    what: str  # what is measured, in words; `code` in it is marked up

    def reached(self, row: ResultRow) -> Literal["aim", "must", "short"]:
        """How far a row gets, judged by the end of its interval that hurts; by its value where it has none."""
        end = row.low if self.op == ">=" else row.high
        judged = row.value if end is None else end
        for name, bound in (("aim", self.aim), ("must", self.must)):
            if judged >= bound if self.op == ">=" else judged <= bound:
                return name  # type: ignore[return-value]
        return "short"


# area -> its heading, in the order of BENCH.md
AREAS = {
    "run": "The default run",
    "casestudy": "Case study",
    "train": "Training",
    "infer": "Generation",
    "tune": "Tuning",
    "prove": "Proof",
    "data": "Data",
    "evals": "Evaluation",
    "serve": "Serving",
    "scan": "Scan",
    "optimise": "Optimise",
    "cli": "Command line",
    "decode": "Decoding, step by step",
    "facts": "Facts about the machine",
    "smoke": "Smoke test",
}

TARGETS: tuple[Target, ...] = (
    Target("cpu.casestudy.base", ">=", 1.74, 3, "x",
           "base training, tokens/s: everything tuned over the published starting point"),
    Target("cpu.casestudy.inference", ">=", 30, 88, "x",
           "generation, tokens/s: cache, batch and all over one row without a cache (prompts of 50 tokens, 200 new "
           "ones)"),
    Target("cpu.casestudy.sft", ">=", 3.17, 6, "x",
           "SFT, supervised tokens/s: everything tuned over the published starting point (same dtype, rows padded to "
           "the longest of a batch of 4, eager), losses beside it"),
    Target("cpu.cli.help_s", "<=", 0.3, 0.15, "s", "`intone --help`, from the keys to the last line"),
    Target("cpu.data.dropped_share", "<=", 0.01, 0.001, "share",
           "tokens of the data that no training row holds (nanochat drops 34.6%)"),
    Target("cpu.data.encode_mb_per_s", ">=", 8, 20, "MB/s",
           "text to token shards on two cores, MB of UTF-8 a second, 32,768 entries"),
    Target("cpu.data.loader_tokens_per_s", ">=", 10_000_000, 50_000_000, "tokens/s",
           "packed batches with masks out of token shards on two cores, tokens/s"),
    Target("cpu.data.padded_share", "<=", 0.01, 0.001, "share",
           "positions of training rows that hold padding, the worst of base and SFT"),
    Target("cpu.evals.core.vs_nanochat", ">=", 10, 30, "x",
           "CORE by the clock, over nanochat's loop of one question at a time, with the same scores"),
    Target("cpu.infer.b1.vs_nanochat", ">=", 2, 6, "x",
           "one row, about 100M parameters, tokens/s over nanochat's Engine"),
    Target("cpu.infer.b1.vs_transformers", ">=", 2, 4, "x",
           "one row, tokens/s over generate() of transformers' NanoChatForCausalLM with the same weights and dtype"),
    Target("cpu.infer.b16_prompts.vs_nanochat", ">=", 12, 25, "x",
           "16 different prompts together, over nanochat's one after the other"),
    Target("cpu.infer.cold_start_s", "<=", 5, 2, "s", "from the start of the process to the first token"),
    Target("cpu.infer.eval200.vs_one_by_one", ">=", 10, 20, "x",
           "200 short greedy prompts by the clock, over one after the other"),
    Target("cpu.infer.int8_bpb_loss", "<=", 0.002, 0.0005, "bits per byte",
           "bits per byte that 8-bit weights cost a trained model on its validation text"),
    Target("cpu.infer.kv_used_share", ">=", 0.85, 0.95, "share",
           "bytes of the key-value cache in use over those allocated, under a load of mixed lengths"),
    Target("cpu.infer.prefill_ratio", "<=", 1.05, 1.01, "x",
           "prompt tokens computed over distinct prefix tokens, under a load that shares prefixes"),
    Target("cpu.prove.aa_false_positives", "<=", 0, 0, "times",
           "times that 20 comparisons of a thing with itself were called faster"),
    Target("cpu.prove.power_30pct", ">=", 0.95, 1.0, "share",
           "planted slow-downs of 30% that were called slower within 10 pairs on this machine"),
    Target("cpu.prove.power_sim", ">=", 0.95, 0.99, "share",
           "rounds of a simulation with 1% noise in which a change of 5% was found within 10 pairs"),
    Target("cpu.prove.seconds_per_verdict", "<=", 180, 60, "s", "a comparison of two tiny trainings, to its verdict"),
    Target("cpu.run.minutes", "<=", 12, 8, "min", "the default `intone run` on two cores, by the clock"),
    Target("cpu.run.peak_gib", "<=", 3.0, 1.5, "GiB",
           "largest memory of all processes of the default run together (proportional set size)"),
    Target("cpu.run.starter_skills", ">=", 0.8, 0.95, "share",
           "mean of the held-out starter skills after the default run"),
    Target("cpu.run.starter_skills_worst", ">=", 0.5, 0.85, "share",
           "the weakest held-out starter skill after the default run"),
    Target("cpu.scan.precision", ">=", 0.8, 0.95, "share",
           "findings in other people's repositories that hold when judged by hand"),
    Target("cpu.scan.recall", ">=", 0.9, 1.0, "share",
           "planted bugs that were found, planted by another hand than the rules'"),
    Target("cpu.serve.hostile_wrong_status", "<=", 0, 0, "times",
           "answers with another status than the right one among 10,000 mixed requests"),
    Target("cpu.serve.streams256_share", ">=", 0.5, 0.8, "share",
           "tokens/s of 256 HTTP streams over those of the engine alone"),
    Target("cpu.train.bpb_10min.minus_nanochat_bf16", "<=", -0.05, -0.15, "bits per byte",
           "bits per byte after 10 minutes of steps minus nanochat's in bf16: same text, vocabulary size and "
           "context, one evaluator"),
    Target("cpu.train.bpb_equal_tokens.minus_nanochat", "<=", 0.0, -0.03, "bits per byte",
           "bits per byte after the same 10M tokens minus nanochat's, parameters within 1%"),
    Target("cpu.train.d4.vs_nanochat", ">=", 3.0, 6.0, "x",
           "tokens/s over nanochat's as shipped (fp32), depth 4, width 256"),
    Target("cpu.train.d6.vs_nanochat", ">=", 3.0, 6.0, "x",
           "tokens/s over nanochat's as shipped (fp32), depth 6, width 384, context 512, 8,192 entries, 16,384 "
           "tokens a step, loss at step 50 within 1% (with lower rates of scalars on both sides, see LOG.md)"),
    Target("cpu.train.d6.vs_nanochat_bf16", ">=", 1.25, 2.0, "x", "the same shapes over nanochat's in bf16"),
    Target("cpu.train.first_50_steps.vs_nanochat", "<=", 0.4, 0.2, "share",
           "from launch to the end of step 50 at depth 4, as a share of nanochat's"),
    Target("cpu.tune.batch_hit_s", "<=", 2, 0.5, "s", "an answer about the micro-batch that is known already"),
    Target("cpu.tune.batch_quality", ">=", 0.98, 0.995, "share",
           "tokens/s of the chosen micro-batch over the best of all, in 8 or more rounds by turns"),
    Target("cpu.tune.batch_search_s", "<=", 20, 8, "s",
           "finding the micro-batch, beyond the compiling that is needed anyway"),
    Target("cpu.tune.memory_error", "<=", 0.1, 0.03, "share",
           "how far the predicted growth of memory is off, as a share of it"),
    Target("h200.casestudy.base", ">=", 1.74, 3, "x",
           "base training, tokens/s: everything tuned over the published starting point"),
    Target("h200.casestudy.gpu_busy", ">=", 0.92, 0.98, "share",
           "share of the time in which the GPU computes, in tuned SFT (published: 0.35 before, 0.92 after)"),
    Target("h200.casestudy.inference", ">=", 88, 500, "x",
           "generation with the published model (178,520,064 parameters), 93 sequences with everything over one "
           "without a cache"),
    Target("h200.casestudy.sft", ">=", 3.17, 10, "x",
           "SFT, supervised tokens/s: everything tuned over the published starting point"),
    Target("h200.infer.d12.b1.vs_nanochat", ">=", 8, 20, "x",
           "one row at depth 12, time per token of nanochat over ours"),
    Target("h200.infer.d24.b1.mbu", ">=", 0.3, 0.45, "share",
           "one row at depth 24: bytes that must be read over 4.3 TB/s"),
    Target("h200.infer.d24.b1.vs_nanochat", ">=", 5, 10, "x",
           "one row at depth 24, time per token of nanochat over ours"),
    Target("h200.infer.gsm8k_loop.vs_nanochat", ">=", 100, 400, "x",
           "1,319 greedy prompts by the clock, over nanochat's loop"),
    Target("h200.infer.idle_share", "<=", 0.05, 0.01, "share",
           "share of the time in which the GPU waits, in steady decoding"),
    Target("h200.train.d12.peak_gib.vs_nanochat", "<=", 0.7, 0.5, "share",
           "peak memory at the same micro-batch as a share of nanochat's, depth 12"),
    Target("h200.train.d12.vs_nanochat_a", ">=", 1.6, 1.95, "x",
           "base tokens/s over nanochat's as shipped, offline, depth 12"),
    Target("h200.train.d12.vs_nanochat_b", ">=", 1.15, 1.28, "x",
           "base tokens/s over nanochat's with full attention in every block (`--window-pattern L`), ours alike, "
           "depth 12"),
    Target("h200.train.d24.mfu_bf16", ">=", 0.52, 0.59, "share",
           "operations in nanochat's count over 989 TFLOP/s, bf16, depth 24"),
    Target("h200.train.d24.vs_nanochat_a", ">=", 1.5, 1.75, "x",
           "base tokens/s over nanochat's as shipped, offline, depth 24"),
    Target("h200.train.d24.vs_nanochat_b", ">=", 1.08, 1.2, "x",
           "base tokens/s over nanochat's with full attention in every block, ours alike, depth 24"),
    Target("h200.tune.batch_quality", ">=", 0.98, 0.995, "share",
           "tokens/s of the chosen micro-batch over the best of all"),
    Target("h200.tune.batch_search_s", "<=", 20, 8, "s",
           "finding the micro-batch, beyond the compiling that is needed anyway"),
    Target("h200.tune.memory_error", "<=", 0.03, 0.01, "share",
           "how far the predicted growth of memory is off, as a share of it"),
)  # fmt: skip

# what measured values mean that have no target: pattern of ids -> words; the first that fits counts
MEANINGS = (
    ("*.optimise.*mended", "faults of the case study's starting point that `optimise` found and mended"),
    ("*.optimise.*.without_*", "case study's start: all that `optimise` kept, over all without this one change"),
    ("*.optimise.*", "case study's start: everything that `optimise` kept, measured together over the start"),
    ("*.smoke.checks", "checks of a first look at the machine that passed: training, resume, generation"),
    ("*.casestudy.*.without_*", "case study: everything over everything without this one change"),
    ("*.casestudy.*.per_s", "case study: what a row itself reaches"),
    ("*.casestudy.compile", "case study: compiled base steps over eager ones, compiling aside"),
    ("*.casestudy.*.*", "case study: this row over the starting point"),
    ("*.tune.bisect.search_s", "the published search for the micro-batch (double, halve), seconds"),
    ("*.tune.bisect.oom", "how often memory ran out in the published search"),
    ("*.tune.bisect.batch_quality", "tokens/s of the published search's choice over the best of all"),
    ("*.tune.bisect.vs_line", "tokens/s of the published search's choice over that of ours"),
    ("*.tune.search_oom*", "how often memory ran out in our searches"),
    ("*.tune.line_memory_error.*", "how far the line's prediction was off before the choice was measured"),
    ("*.tune.batch_quality.*", "tokens/s of the chosen micro-batch over the best of all, one case"),
    ("*.tune.batch_search_s.*", "finding the micro-batch, one case"),
    ("*.tune.batch_hit_s.*", "an answer that is known already, one case"),
    ("*.tune.memory_error.*", "how far the predicted growth of memory is off, one case"),
    ("*.facts.copy_bytes_per_s", "copying inside the device's memory, bytes read and written"),
    ("*.facts.products.*", "square matrix products of random numbers, by dtype and side"),
    ("*.facts.attention.*", "attention forward and backward, by shape, way and backend; median of a call"),
    ("*.infer.b1.vs_litgpt", "one row, tokens/s over litgpt's generate, as many numbers in matrices, same dtype"),
    ("cpu.scan.precision_unseen", "the same in repositories that no rule was made with, counted once before any was "
     "changed for them"),
    ("*.train.*.vs_transformers", "tokens/s of our training step over transformers' NanoChatForCausalLM, same weights, "
     "rows and dtype, its faster way (eager or compiled, AdamW)"),
    ("*.train.d4.vs_nanochat_bf16", "the same shapes over nanochat's in bf16"),
    ("*.train.*.tokens_per_s", "our training step, by depth, micro-batch, eager or compiled"),
    ("*.train.*.peak_gib", "the most memory that it had allocated on the device"),
    ("*.train.*.mfu_bf16", "operations in nanochat's count over the maker's number for bf16"),
    ("*.infer.cold_start_s", "from the launch of a process to its first token, depth 12, nothing cached"),
    ("*.decode.*.tokens_per_s", "tokens/s of the engine with this many rows, prompts of 64 tokens, greedy"),
)


def meaning(name: str) -> str:
    """What an id measures, in words; empty where nobody has said it."""
    for target in TARGETS:
        if target.id == name:
            return target.what
    return next((words for pattern, words in MEANINGS if fnmatch(name, pattern)), "")
