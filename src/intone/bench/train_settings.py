"""What a person can ask of `intone bench train`"""

from dataclasses import dataclass
from typing import Literal

from intone.fields import Checked, flag_of, setting, shown
from intone.resolving import named_fields
from intone.settings import Auto

# settings that a row's command does not repeat: paths of one machine, and what does not change the number
LEFT_OUT = ("nanochat", "nanochat_python", "cases", "data", "val", "nice", "again", "fresh", "out", "json")


@dataclass(frozen=True, kw_only=True)
class BenchTrainSettings(Checked):
    """`intone bench train`: our training against nanochat's, on the same text and machine."""

    # checkout of nanochat at 92d63d4
    nanochat: str | None = None
    # Python that can import it; none: the one that runs intone
    nanochat_python: str | None = None
    # allow another commit of nanochat; its rows say so
    any_revision: bool = False
    # d4, d6: tokens/s at a depth; first50: launch to step 50; bpb10: after minutes; tokens: after equal tokens
    cases: tuple[Literal["d4", "d6", "first50", "bpb10", "tokens"], ...] = ("d4", "d6")
    # text to train on: starter, or files and folders
    data: tuple[str, ...] = ("starter",)
    # validation text; none given: val* files of the data, or its last 1 %
    val: tuple[str, ...] = ()
    # number of blocks in first50, bpb10 and tokens
    depth: int = setting(4, least=1)
    # longest row in tokens
    context: int = setting(512, least=16)
    # entries of the tokenizer that both sides use
    vocab_size: int = setting(8192, least=265)
    # tokens per optimizer step in d4, d6 and first50
    batch_tokens: int = setting(16_384, least=1)
    # number formats of nanochat: fp32 is what it ships for a CPU, bf16 its switch; tokens uses the
    # first, bpb10 bf16 where it is asked for
    their_dtypes: tuple[Literal["fp32", "bf16"], ...] = ("fp32", "bf16")
    # rows per pass to try for nanochat, the fastest counts
    their_rows: tuple[int, ...] = (8, 16, 32)
    # tokens per step to try for nanochat in bpb10 and tokens, the best counts; none given: 16,384 and ours
    their_batch_tokens: tuple[int, ...] = ()
    # most rounds in d4 and d6: each is a pair of blocks of every side, there and back
    pairs: int = setting(10, least=5)
    # three or four fresh processes a side and short blocks: enough for large differences
    quick: bool = False
    # factor on nanochat's rates of scalars and gates in d4 and d6, for both sides alike; for sizes at which its
    # own make the loss jump within the 50 steps, and rounding decides when
    scalar_rates: float = setting(1.0, least=0.001, most=1.0)
    # train our own fp32 for 50 steps too, to compare losses with
    fp32_check: bool = True
    # pairs of launches in first50
    launches: int = setting(5, least=2)
    # compiled code at a launch: cold has to be made, warm is there from the launch before
    launch_cache: Literal["cold", "warm"] = "cold"
    # minutes of training steps in bpb10
    minutes: float = setting(10.0, least=0.01)
    # pairs of runs in bpb10, each with a seed of its own
    run_pairs: int = setting(2, least=1)
    # tokens of each run in tokens
    tokens: int = setting(10_000_000, least=1)
    # tokens of validation text behind every bpb
    val_tokens: int = setting(262_144, least=1)
    # number format of our side; auto: as intone train chooses it, like the four below
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    # our CPU threads
    threads: int | Auto = setting("auto", least=1)
    # operations of our training step
    kernels: Literal["auto", "torch", "native"] = "auto"
    # compile our training step
    compile: Literal["auto", "on", "off"] = "auto"
    # rows that go through our model at once
    device_batch: int | Auto = setting("auto", least=1)
    # how much to give way to other programs, 0 to 19; only for tokens, where no time is measured
    nice: int = setting(0, least=0, most=19)
    # measure cases again that this code has rows for
    again: bool = setting(False, aside=True)
    # forget nanochat's fastest way, our fp32 losses and the parts of an unfinished case, and measure all of it
    fresh: bool = setting(False, aside=True)
    # file that rows are appended to; none given: bench/results/train.jsonl of this checkout
    out: str | None = None


def command_line(settings: BenchTrainSettings, case: str) -> str:
    """The command that makes a row again, with NANOCHAT, TRAIN and VAL for paths."""
    words = ["intone bench train --nanochat NANOCHAT --cases", case]
    for name, entry in named_fields(type(settings)).items():
        value = getattr(settings, name)
        if name in LEFT_OUT or value == entry.default:
            continue
        if isinstance(value, bool):
            words.append(flag_of(entry) if value else flag_of(entry).replace("--", "--no-", 1))
        else:
            words += [flag_of(entry), shown(value)]
    if settings.data != ("starter",):
        words.append("--data TRAIN" + (" --val VAL" if settings.val else ""))
    return " ".join(words)
