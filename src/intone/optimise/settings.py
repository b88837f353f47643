"""What a person can ask of `intone optimise`"""

from dataclasses import dataclass
from typing import Literal, get_args

from intone.config import Preset
from intone.errors import UserError, unknown_name
from intone.fields import Checked, setting
from intone.resolving import named_fields
from intone.settings import Auto, Stage

TRAINED = (*get_args(Stage), "rl")
WORDS = (*TRAINED, "infer", "serve", "pipeline")


@dataclass(frozen=True, kw_only=True)
class StageSettings(Checked):
    """A stage that is looked at or compared, and not trained to its end: its data, its model, and how it computes."""

    # run whose weights and model settings it starts from
    from_run: str | None = setting(None, flag="from")
    # text (sft: conversations): starter, files and folders
    data: tuple[str, ...] = ("starter",)
    # number of blocks
    depth: int | Auto = setting("auto", least=1, inherit=True)
    # longest row in tokens
    context: int | Auto = setting("auto", least=16, inherit=True)
    # entries of the tokenizer
    vocab_size: int | Auto = setting("auto", least=265, inherit=True)
    # architecture: modern or classic
    preset: Preset = setting("modern", inherit=True)
    # order of the data and starting weights
    seed: int = setting(1337, least=0, inherit=True)
    # where to compute
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    # number format of the matrix products
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    # CPU threads
    threads: int | Auto = setting("auto", least=1)
    # operations of a training step: PyTorch's or our own for CPUs
    kernels: Literal["auto", "torch", "native"] = "auto"
    # compile the training step
    compile: Literal["auto", "on", "off"] = "auto"
    # rows that go through the model at once
    device_batch: int | Auto = setting("auto", least=1)
    # tokens per optimizer step, a power of two
    batch_tokens: int | Auto = setting("auto", least=1)


# what describes a stage of ours; behind -- stands another program, which has settings of its own
OF_STAGES = (
    *(name for name in named_fields(StageSettings) if name not in named_fields(Checked)),
    "like", "worker", "rows", "prompt_tokens", "new_tokens", "num_slots",
)  # fmt: skip
OF_PROGRAMS = ("apply", "folder")
OF_GENERATION = ("rows", "prompt_tokens", "new_tokens")
OF_TRAINING = (
    "data", "depth", "context", "vocab_size", "preset", "kernels", "compile", "device_batch", "batch_tokens",
)  # fmt: skip
# of a training: what --like brings, with all the rest
SETTLED = (*OF_TRAINING, "from_run", "seed", "device", "dtype", "threads", "num_slots")


@dataclass(frozen=True, kw_only=True)
class OptimiseSettings(StageSettings):
    """`intone optimise STAGE` or `-- PROGRAM`: find what makes it slow or wrong, change it, and prove each change.

    What a stage's settings say is where the round starts; --from also names the run that generates. Tokens per
    optimizer step are never changed.
    """

    # our stage: base, mid, sft, rl; infer (generation), serve (that over HTTP); pipeline (both, of --like)
    stage: str | None = setting(None, positional=True)
    # stop after the findings and the plan; nothing is changed
    analyse_only: bool = False
    # at most four fresh processes of each side, two pairs each: proves large differences only
    quick: bool = False
    # begin no further try after this many minutes
    minutes: float | None = setting(None, least=0.1)
    # write what was kept into your own files at the end, uncommitted
    apply: bool = False
    # begin a new round even where an unfinished one of this target could go on
    new: bool = False
    # folder that the program is started in
    folder: str = "."
    # compare with this revision of the code instead, and end with 1 where the working tree is slower
    against: str | None = None
    # round that --undo takes back; none given: the newest
    id: str | None = None
    # take back what a round kept: its changes in your files, or its preset
    undo: bool = False
    # run whose stage is looked at exactly as it was settled there
    like: str | None = None
    # Python module that runs the jobs in place of ours, and may have switches of its own: docs/optimise.md
    worker: str = "intone.worker"
    # texts that infer and serve generate
    rows: int = setting(16, least=1)
    # tokens of each of its prompts
    prompt_tokens: int = setting(64, least=1)
    # new tokens of each text
    new_tokens: int = setting(64, least=2)
    # texts that infer, serve and rl write at once; auto: as suits the device
    num_slots: int | Auto = setting("auto", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stage is not None and self.stage not in WORDS:
            raise unknown_name("stage", self.stage, WORDS)
        if self.stage in ("mid", "sft", "rl") and self.from_run is None and self.like is None:
            fix = "add --from RUN or --like RUN; `intone runs` lists them"
            if self.stage == "rl":
                fix = "add --like RUN of an intone train rl (--prepare is enough), or --from RUN to plan one from there"
            raise UserError(f"optimise {self.stage} needs a run to start from", value=self.stage, fix=fix)
        if self.stage == "pipeline" and self.like is None:
            raise UserError("optimise pipeline needs a run", value=self.stage, fix="add --like RUN; see `intone runs`")
