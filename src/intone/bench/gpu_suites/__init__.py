"""What `python -m intone.bench.gpu` measures: one function per suite, in the order of value per minute.

A suite is a function of a Bench (bench.py here): it measures, and hands over row by row what it found. To add one,
write the function and a line in SUITES; its process, its time limit, its log and the skipping of what is known
already come from bench.gpu.
"""

from typing import NamedTuple


class Suite(NamedTuple):
    """One suite: where its function is, about how many minutes it takes on one large GPU, and what it finds out."""

    target: str  # "module:function", imported in the suite's own process
    minutes: float
    about: str
    uses: tuple[str, ...] = ()  # inputs it can work with: data, nanochat


SUITES: dict[str, Suite] = {
    "smoke": Suite("intone.bench.gpu_suites.smoke:smoke", 0.5, "training, resuming, generating: do they work here"),
    "facts": Suite("intone.bench.gpu_suites.facts:facts", 1.5, "bandwidth, products by dtype, attention by backend"),
    "train": Suite("intone.bench.gpu_suites.train:train", 17.0, "base training beside nanochat's", ("nanochat",)),
    "infer": Suite(
        "intone.bench.gpu_suites.infer:infer", 5.5, "generation beside nanochat's, and bytes per step", ("nanochat",)
    ),
    "casestudy": Suite(
        "intone.bench.gpu_suites.casestudy:casestudy", 9.0, "the case study's SFT and generation, from its start on"
    ),
    "casestudy_base": Suite(
        "intone.bench.gpu_suites.casestudy:casestudy_base", 6.0, "the case study's base training, likewise"
    ),
    "optimise": Suite(
        "intone.bench.gpu_suites.optimise:optimise", 6.0, "the case study's start handed to optimise: what it mends"
    ),
    "tune": Suite("intone.bench.gpu_suites.tune:tune", 3.4, "the search for a micro-batch beside all sizes"),
    "decode": Suite("intone.bench.gpu_suites.decode:decode", 2.7, "the engine's tokens/s by rows, and its idle share"),
}
