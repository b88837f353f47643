"""What a person can ask of each verb: one flat dataclass per verb

The comment above a field is its help. "auto" is a word that tuning replaces, None means off.
Only the standard library is used here, so that `--help` and `--show` answer at once.
"""

from dataclasses import dataclass
from typing import Literal

from intone.config import Preset
from intone.errors import UserError
from intone.fields import Checked, setting

Auto = Literal["auto"]
Stage = Literal["base", "mid", "sft"]
Skill = Literal[
    "identity", "smalltalk", "arithmetic", "spelling", "counting", "sorting", "reversing", "dates", "units", "facts",
    "story",
]  # fmt: skip
# what only `intone train rl` asks for
ROLLOUT_SETTINGS = (
    "skills", "prompts", "samples", "max_tokens", "temperature", "top_k", "rate", "num_items", "num_slots"
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(Checked):
    """What `run` and `train` have in common."""

    # name of the run; without one it is d{depth}-{n}
    name: str | None = setting(None, aside=True)
    # start a new run even where an unfinished one with these settings could go on
    new: bool = setting(False, aside=True)
    # start afresh with the settled settings of this run
    like: str | None = None
    # file with settings, as `intone optimise` leaves one of what it kept; flags beside it win
    settings: str | None = setting(None, aside=True)
    # minutes of the whole run by the clock; auto: what suits the machine
    minutes: float | Auto = setting("auto", least=0.05)
    # number of blocks, the one dial for the size of the model
    depth: int | Auto = setting("auto", least=1, inherit=True)
    # longest row in tokens
    context: int | Auto = setting("auto", least=16, inherit=True)
    # entries of the tokenizer: 256 bytes, 9 special tokens and the merges
    vocab_size: int | Auto = setting("auto", least=265, inherit=True)
    # architecture: modern (mid-2026 nanochat) or classic (the one transformers knows as NanoChat)
    preset: Preset = setting("modern", inherit=True)
    # the same seed gives the same data order and the same starting weights
    seed: int = setting(1337, least=0, inherit=True)
    # where to compute
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    # number format of the matrix products; auto: the fastest that trains rightly, by measurement
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    # CPU threads; auto: the fastest number, by measurement
    threads: int | Auto = setting("auto", least=1)
    # processes that train together, one per GPU; auto: all GPUs, one process on a CPU
    devices: int | Auto = setting("auto", least=1, movable=True)
    # operations of a training step: PyTorch's or our own for CPUs; auto: the faster, by measurement
    kernels: Literal["auto", "torch", "native"] = "auto"
    # compile the training step; auto: where it saves more than it costs
    compile: Literal["auto", "on", "off"] = "auto"
    # rows that go through the model at once; never changes the mathematics
    device_batch: int | Auto = setting("auto", least=1)
    # tokens per optimizer step, a power of two; part of the recipe
    batch_tokens: int | Auto = setting("auto", least=1)
    # bitwise repeatable on a GPU too, slower
    deterministic: bool = False
    # seconds between saves
    save_every_s: float | Auto = setting("auto", least=0.1)
    # steps between evaluations; none: only at the end of a stage
    eval_every: int | Auto | None = setting("auto", least=1)
    # saved states kept per stage, besides the best
    keep: int = setting(2, least=1)
    # seconds without a sign of life after which a worker counts as hanging and starts again; none: never
    stall_s: float | None = setting(1800.0, least=1, movable=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        tokens = self.batch_tokens
        if isinstance(tokens, int) and tokens & (tokens - 1):
            below = 1 << (tokens.bit_length() - 1)
            raise UserError(
                f"batch_tokens {tokens:,} is not a power of two",
                value=tokens,
                fix=f"use --batch-tokens {below} or {2 * below}",
            )


@dataclass(frozen=True, kw_only=True)
class RunSettings(TrainingSettings):
    """`intone run`: text -> tokenizer -> base -> mid -> SFT -> evaluation."""

    # text: starter (made here), files, folders, public sets; NAME:0.7,PATH:0.3 mixes by tokens
    data: tuple[str, ...] = ("starter",)
    # validation text; none given: val* files of the data, or 1 % of it
    val: tuple[str, ...] = ()
    # conversations: starter, files with messages, or smoltalk; mixed as data
    sft: tuple[str, ...] = ("starter",)
    # validation conversations; none given: as for val
    sft_val: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TrainSettings(TrainingSettings):
    """`intone train STAGE`: one stage by itself."""

    # base (text), mid (text and conversations), sft (conversations), rl (answers that can be checked)
    stage: Literal["base", "mid", "sft", "rl"] = setting(positional=True)
    # run whose weights and model settings this stage starts from
    from_run: str | None = setting(None, flag="from")
    # text (sft: conversations; rl: questions): starter, files, folders, public sets; A:0.7,B:0.3 mixes
    data: tuple[str, ...] = ("starter",)
    # validation data; none given: val* files of the data, or 1 % of it; rl: one question in ten
    val: tuple[str, ...] = ()
    # conversations that stage mid sees beside the text: starter, files with messages, smoltalk
    sft: tuple[str, ...] = ("starter",)
    # optimizer steps; auto: from minutes
    steps: int | Auto = setting("auto", least=1)
    # rl: starter skills to ask about, such as sorting story; none given: all of them
    skills: tuple[Skill, ...] = ()
    # rl: questions per optimizer step
    prompts: int = setting(16, least=1)
    # rl: answers to each question; what is better than their mean is learned, what is worse unlearned
    samples: int = setting(8, least=2)
    # rl: longest answer in tokens; auto: 160 for starter, 256 for files
    max_tokens: int | Auto = setting("auto", least=1)
    # rl: how varied the answers are; 1: as the model has it, which is what the gradient assumes
    temperature: float = setting(1.0, least=0.01)
    # rl: draw among this many of the likeliest tokens; none: all, which is what the gradient assumes
    top_k: int | None = setting(None, least=1)
    # rl: learning rates at the start, as a share of the other stages'; they fall to 0
    rate: float = setting(0.05, least=0.0001, most=1)
    # rl: held-out questions of each kind (starter: of every skill), asked before and after
    num_items: int = setting(200, least=1)
    # rl: answers that are written at once; never changes what they say; auto: as suits the device
    num_slots: int | Auto = setting("auto", least=1)
    # write the job folder, say how to start it, and stop
    prepare: bool = setting(False, aside=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps != "auto" and self.minutes != "auto":
            raise UserError(
                f"both steps {self.steps:,} and minutes {self.minutes} are given",
                value=self.steps,
                fix="keep one of --steps and --minutes",
            )
        if self.stage != "mid" and self.sft != ("starter",):
            raise UserError(
                f"--sft is for train mid; train {self.stage} has one kind of data",
                value=" ".join(self.sft),
                fix=f"give it to --data of intone train {'sft' if self.stage == 'sft' else 'mid or sft'}",
            )
        if self.stage != "base" and self.from_run is None and self.like is None:
            raise UserError(
                f"train {self.stage} needs a run to start from",
                value=self.stage,
                fix="add --from RUN; `intone runs` lists them",
            )
        self._check_rollouts()

    def _check_rollouts(self) -> None:
        """Raises UserError for what only rl asks for beside another stage, and the other way round."""
        fields = type(self).__dataclass_fields__
        if self.stage != "rl":
            name = next((name for name in ROLLOUT_SETTINGS if getattr(self, name) != fields[name].default), None)
            if name is not None:
                flag, value = f"--{name.replace('_', '-')}", getattr(self, name)
                raise UserError(f"{flag} is for train rl, not for train {self.stage}", value=value, fix="leave it out")
            return
        if len(set(self.skills)) < len(self.skills):
            raise UserError("a skill is named twice", value=" ".join(self.skills), fix="name each once")
        if self.skills and self.data != ("starter",):
            raise UserError("--skills are the starter's, and --data names other questions", value=" ".join(self.data),
                            fix="keep one of --skills and --data")  # fmt: skip
        if self.batch_tokens != "auto":
            fix = "use --prompts and --samples: a step has as many tokens as their answers"
            raise UserError("--batch-tokens is not for train rl", value=self.batch_tokens, fix=fix)
        if self.compile == "on":
            fix = "leave it out: every step has another number of rows, and would be compiled anew"
            raise UserError("train rl is not compiled", value="on", fix=fix)
        if isinstance(self.devices, int) and self.devices > 1:
            raise UserError("train rl runs in one process", value=self.devices, fix="use --devices 1, or leave it out")


@dataclass(frozen=True, kw_only=True)
class ChatSettings(Checked):
    """`intone chat`: talk to a run in the terminal."""

    # run to talk to: NAME, NAME/STAGE, a path, or latest; with --url a model of that server
    from_run: str = setting("latest", flag="from")
    # talk to a server instead: intone serve, or another with OpenAI's API
    url: str | None = None
    # key for that server; better given as INTONE_API_KEY, which other users cannot see
    api_key: str | None = None
    # what stands before the first message
    system: str | None = None
    # answer this once and stop; text piped in does the same
    prompt: str | None = None
    # 0: always the likeliest token; higher: more varied
    temperature: float = setting(0.6, least=0)
    # sample among this many of the likeliest tokens; none: all
    top_k: int | None = setting(50, least=1)
    # sample among the likeliest tokens that make up this share; none: all
    top_p: float | None = setting(None, least=0.0, most=1)
    # longest answer in tokens
    max_tokens: int = setting(256, least=1)
    # tokens of text before an answer may end; 0: as the model has it, which may be no word at all
    min_tokens: int = setting(1, least=0)
    # the same seed gives the same answers
    seed: int = setting(0, least=0)
    # let the model use its calculator
    tools: bool = True
    # let it run Python as well, in a sandbox, where this machine has what contains it
    python: bool = False
    # where to compute
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    # how a CPU keeps matrices; auto: as trained, int8 where eval --weights int8 found it cheap
    weights: Literal["auto", "fp32", "bf16", "int8"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.url is not None and self.weights != "auto":
            raise UserError("--weights is for a run, not for a server", value=self.weights, fix="leave out --weights")
        if self.min_tokens > self.max_tokens:
            raise UserError(
                f"min_tokens {self.min_tokens:,} is more than max_tokens {self.max_tokens:,}",
                value=self.min_tokens,
                fix=f"use a min_tokens of {self.max_tokens:,} or less, or a larger max_tokens",
            )


@dataclass(frozen=True, kw_only=True)
class EvalSettings(Checked):
    """`intone eval RUN`: bits per byte and starter skills of a run."""

    # run to evaluate: NAME, NAME/STAGE, a path, or latest
    run: str = setting("latest", positional=True)
    # what to measure
    tasks: tuple[Literal["bpb", "starter"], ...] = ("bpb", "starter")
    # text for bits per byte; none given: the validation text of the run
    val: tuple[str, ...] = ()
    # held-out questions per skill
    num_items: int = setting(200, least=1)
    # where to compute; with --weights int8, which are a CPU's: cpu
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    # how a CPU keeps matrices for answers; int8: what 8 bits cost in bits per byte is measured too
    weights: Literal["auto", "fp32", "bf16", "int8"] = "auto"


@dataclass(frozen=True, kw_only=True)
class TuneSettings(TrainingSettings):
    """`intone tune STAGE`: settle every auto of a stage on this machine, and show the curve behind the micro-batch."""

    # stage to tune for: base, mid or sft
    stage: Stage | None = setting(None, positional=True)
    # print the facts of this machine with their sources, and stop
    facts: bool = False
    # measure again instead of reading what is kept
    fresh: bool = False
    # how the micro-batch is searched: by lines through two or three probes, or by doubling and halving
    method: Literal["line", "bisect"] = "line"
    # compute what fits from the shape of the model, without running anything
    dry_run: bool = False
    # memory that a dry run is for, such as 24GiB; none given: what this machine has free
    memory: str | None = None
    # run whose model and weights the stage starts from
    from_run: str | None = setting(None, flag="from")
    # text (sft: conversations): starter, files, folders, public sets
    data: tuple[str, ...] = ("starter",)
    # validation data, on which trials run; none given: as for train
    val: tuple[str, ...] = ()
    # conversations that stage mid sees beside the text
    sft: tuple[str, ...] = ("starter",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stage is None and not self.facts:
            fix = "intone tune base, mid or sft; intone tune --facts prints what this machine can do"
            raise UserError("say what to tune", fix=fix)
        if self.memory is not None and not self.dry_run:
            raise UserError("--memory is for a dry run", value=self.memory, fix="add --dry-run")
        if self.dry_run and self.depth == "auto" and self.from_run is None:
            raise UserError("a dry run needs a model", fix="add --depth, for example --depth 24")


@dataclass(frozen=True, kw_only=True)
class TokenizerSettings(Checked):
    """`intone tokenizer train|inspect`: make a tokenizer, or look at one."""

    # train: learn one from text; inspect: show what one does
    action: Literal["train", "inspect"] = setting(positional=True)
    # text to learn from, or to measure on: starter, files and folders, or public sets
    data: tuple[str, ...] = ("starter",)
    # entries: 256 bytes, 9 special tokens and the merges
    vocab_size: int = setting(4096, least=265)
    # tokenizer to inspect: a folder, or a run
    from_run: str = setting("latest", flag="from")
    # folder to write the tokenizer to; none given: under INTONE_HOME
    out: str | None = None
    # show the tokens of this text
    text: str | None = None


@dataclass(frozen=True, kw_only=True)
class DataSettings(Checked):
    """`intone data list|fetch|check|prepare`: look at data before training, fetch it or tokenise it ahead of time."""

    # list public sets, fetch them, check: read every row and say what is wrong, prepare: tokenise
    action: Literal["list", "fetch", "check", "prepare"] = setting(positional=True)
    # files and folders (.txt .md .jsonl .parquet, also compressed), public sets; token sets to check
    data: tuple[str, ...] = setting((), positional=True)
    # tokens a run will need: fetch (none: one file) and prepare (none: everything) do no more
    tokens: int | None = setting(None, least=1)
    # fetch all files of the sets
    all: bool = False
    # tokenizer for prepare: a folder, or a run
    tokenizer: str = "latest"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data and self.action != "list":
            raise UserError(
                f"DATA is missing after intone data {self.action}", fix="name files, folders or public sets"
            )
        if self.all and self.action != "fetch":
            raise UserError("--all is for intone data fetch", value=self.action, fix="leave it out")
        if self.tokens is not None and self.action not in ("fetch", "prepare"):
            raise UserError("--tokens is for intone data fetch and prepare", value=self.tokens, fix="leave it out")
        if self.all and self.tokens is not None:
            raise UserError("both --all and --tokens are given", value=self.tokens, fix="keep one of them")
        if self.data and self.action == "list":
            raise UserError("intone data list takes no DATA", value=" ".join(self.data), fix="leave it out")


@dataclass(frozen=True, kw_only=True)
class ImportSettings(Checked):
    """`intone import PATH`: a checkpoint of nanochat or transformers becomes a run."""

    # folder of a nanochat checkpoint, of transformers' NanoChatForCausalLM, or an export of intone
    path: str = setting(positional=True)
    # name of the run; without one it is d{depth}-{n}
    name: str | None = setting(None, aside=True)
    # step of a nanochat checkpoint; none given: the newest
    step: int | None = setting(None, least=0)
    # its tokenizer.pkl or tokenizer.json; none given: beside it, or where nanochat keeps its own
    tokenizer: str | None = None


@dataclass(frozen=True, kw_only=True)
class ExportSettings(Checked):
    """`intone export RUN --to DIR`: weights and tokenizer for other programs."""

    # run to export: NAME, NAME/STAGE, a path, or latest
    run: str = setting("latest", positional=True)
    # folder to write
    to: str = setting()
    # transformers (classic models) or safetensors (any); auto: transformers where it can
    format: Literal["auto", "transformers", "safetensors"] = "auto"
    # replace an export that is in that folder
    force: bool = False


@dataclass(frozen=True, kw_only=True)
class RunsSettings(Checked):
    """`intone runs [RUN]`: what is on disk."""

    # show this run in full: NAME, NAME/STAGE, a path, or latest
    run: str | None = setting(None, positional=True)


@dataclass(frozen=True, kw_only=True)
class ReportSettings(Checked):
    """`intone report [RUN]`: one page of a run or of measurements, as HTML, Markdown and JSON."""

    # run: NAME, NAME/STAGE, a path, or latest; or a .json or .jsonl file of comparisons or rows
    run: str = setting("latest", positional=True)
    # folder to write to; none given: the run's own, or that of the file
    out: str | None = None
