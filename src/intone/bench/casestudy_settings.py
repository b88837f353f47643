"""What a person can ask of `intone bench casestudy` and of its parts, each a word of its own"""

from dataclasses import dataclass
from typing import Literal

from intone.config import Preset
from intone.fields import Checked, flag_of, setting, shown
from intone.resolving import named_fields
from intone.settings import Auto

Part = Literal["sft", "base", "inference"]
SIZES = {"depth": (4, 2), "vocab_size": (4096, 2048), "batch_tokens": (4096, 2048)}  # by quick
# settings that a row's command does not repeat
LEFT_OUT = ("data", "sft", "out", "json", "quick", "new", "transformers_python", "nanochat", "nanochat_python")


@dataclass(frozen=True, kw_only=True)
class CaseSettings(Checked):
    """What all parts have in common: the model, its data, and how our side computes."""

    # three rounds, a smaller model, no row kept: a first look of six to eight minutes on two cores
    quick: bool = setting(False, aside=True)
    # text: starter, files, folders
    data: tuple[str, ...] = ("starter",)
    # conversations; the tokenizer learns from them and from the text
    sft: tuple[str, ...] = ("starter",)
    # number of blocks; auto: 4, with --quick 2
    depth: int | Auto = setting("auto", least=1)
    # longest row in tokens
    context: int = setting(512, least=16)
    # entries of the tokenizer; auto: 4,096, with --quick 2,048
    vocab_size: int | Auto = setting("auto", least=265)
    # architecture: modern or classic
    preset: Preset = "modern"
    # positions per optimizer step, a power of two, the same in every row; auto: 4,096, with --quick 2,048
    batch_tokens: int | Auto = setting("auto", least=1)
    # order of the data and starting weights
    seed: int = setting(1337, least=0)
    # number format of both sides; auto: as intone train chooses it, like the four below
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    # CPU threads of both sides
    threads: int | Auto = setting("auto", least=1)
    # operations of our tuned training step
    kernels: Literal["auto", "torch", "native"] = "auto"
    # compile our tuned training step; off: nothing here is compiled
    compile: Literal["auto", "on", "off"] = "auto"
    # rows that go through our tuned model at once
    device_batch: int | Auto = setting("auto", least=1)
    # file that rows are appended to; none given: bench/results/casestudy.jsonl of this checkout
    out: str | None = None

    def settled(self, name: Literal["depth", "vocab_size", "batch_tokens"]) -> int:
        """The size that was asked for, else the default."""
        asked = getattr(self, name)
        return int(SIZES[name][self.quick] if asked == "auto" else asked)


@dataclass(frozen=True, kw_only=True)
class Replicated(Checked):
    """How much a table measures."""

    # fresh processes of each side, which narrow the intervals; auto: 3, with --quick 1
    replicates: int | Auto = setting("auto", least=1)

    @property
    def asked_replicates(self) -> int | None:
        """None: the table's own number."""
        return None if self.replicates == "auto" else int(self.replicates)


@dataclass(frozen=True, kw_only=True)
class AutobatchSettings(CaseSettings, Replicated):
    """`intone bench autobatch`: what the micro-batch that is settled here is worth, in SFT and in base training."""


@dataclass(frozen=True, kw_only=True)
class CombinedSettings(CaseSettings, Replicated):
    """`intone bench combined`: all changes measured together, and what each is worth within the whole."""


@dataclass(frozen=True, kw_only=True)
class CompileSettings(CaseSettings):
    """`intone bench compile`: the same steps with and without compiled code."""

    # steps of each side; with --quick 30
    steps: int = setting(100, least=10)


@dataclass(frozen=True, kw_only=True)
class InferenceSettings(CaseSettings):
    """`intone bench inference`: generation without a cache, with one, for many texts at once, and as it is here."""

    # texts that are generated together
    rows: int = setting(93, least=2)
    # tokens of every prompt
    prompt_tokens: int = setting(50, least=1)
    # new tokens of every text
    new_tokens: int = setting(200, least=2)
    # checkout of nanochat at 01f5f10, which becomes a row of its own; needs --preset classic
    nanochat: str | None = None
    # Python that can import it; none: the one that runs intone
    nanochat_python: str | None = None


@dataclass(frozen=True, kw_only=True)
class CasestudySettings(InferenceSettings, Replicated):
    """`intone bench casestudy`: the published tables again, every total measured on this machine."""

    # tables to measure
    parts: tuple[Part, ...] = ("sft", "base", "inference")


@dataclass(frozen=True, kw_only=True)
class OptimiseSettings(InferenceSettings):
    """`intone bench optimise`: the starting point handed to `optimise`, which must find its faults and mend them."""

    # what the start does: SFT with three of the faults, generation with two
    parts: tuple[Literal["sft", "inference"], ...] = ("sft", "inference")
    # fewer pairs, a smaller model, no row kept: a first look; it says how long it takes once it has measured
    quick: bool = setting(False, aside=True)
    # begin a new round even where an unfinished one of these settings could go on
    new: bool = setting(False, aside=True)
    # begin no further change after this many minutes
    minutes: float | None = setting(None, least=0.1)
    # number of blocks; in larger models 4 rows fill two cores, and are no fault there
    depth: int | Auto = setting(2, least=1)
    # longest row in tokens
    context: int = setting(256, least=16)
    # texts that are generated together
    rows: int = setting(16, least=2)


@dataclass(frozen=True, kw_only=True)
class TransformersSettings(CaseSettings):
    """`intone bench transformers`: our training step beside that of transformers' NanoChatForCausalLM."""

    # architecture; transformers knows classic
    preset: Preset = "classic"
    # Python that can import transformers; none: the one that runs intone
    transformers_python: str | None = None


def command_line(verb: str, settings: CaseSettings) -> str:
    """The command that makes a row again, with TEXT and TALK for paths."""
    words = [f"intone bench {verb}"]
    for name, entry in named_fields(type(settings)).items():
        value = getattr(settings, name)
        if name not in LEFT_OUT and value != entry.default:
            words += [flag_of(entry), shown(value)]
    for flag, path in (("data", "TEXT"), ("sft", "TALK")):
        words += [f"--{flag}", path] if getattr(settings, flag) != ("starter",) else []
    words += ["--nanochat", "NANOCHAT"] if getattr(settings, "nanochat", None) else []
    return " ".join(words)
