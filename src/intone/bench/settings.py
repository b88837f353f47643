"""What a person can ask of `intone bench`: the settings of its suites"""

from dataclasses import dataclass
from typing import Literal

from intone.errors import UserError
from intone.fields import Checked, setting
from intone.optimise.settings import StageSettings
from intone.settings import Stage


@dataclass(frozen=True, kw_only=True)
class BenchSettings(StageSettings):
    """`intone bench [STAGE] A-settings -- B-settings`: is B faster than A?

    B has the settings of A but for what stands behind the --. Settings marked aside are about the comparison and
    stand before it.
    """

    # stage whose training is compared: base (text), mid (text and conversations) or sft; those two need --from
    stage: Stage = setting("base", positional=True)
    # bitwise repeatable on a GPU too
    deterministic: bool = False
    # at most four fresh processes of each side, two pairs each: proves large differences only
    quick: bool = setting(False, aside=True)
    # stop at this many pairs of measurements without a verdict
    pairs: int = setting(10, least=5, aside=True)
    # exit with 1 unless this is the verdict on B
    expect: Literal["faster", "slower", "same"] | None = setting(None, aside=True)
    # compare tokens per second also where model, data or tokens per step differ
    different_work: bool = setting(False, aside=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stage != "base" and self.from_run is None:
            raise UserError(
                f"bench {self.stage} needs a run to start from",
                value=self.stage,
                fix="add --from RUN; `intone runs` lists them",
            )


@dataclass(frozen=True, kw_only=True)
class BenchProveSettings(Checked):
    """`intone bench prove`: how often the verdicts are right on this machine, and how long one takes."""

    # sim: made-up noise; aa: A against A; planted: B slowed down by 30 %; small: by 5 %
    parts: tuple[Literal["sim", "aa", "planted", "small"], ...] = ("sim", "aa", "planted", "small")
    # comparisons in aa and in planted
    rounds: int = setting(20, least=1)
    # comparisons in small
    small_rounds: int = setting(5, least=1)
    # file that rows are appended to; none given: bench/results/prove.jsonl of this checkout
    out: str | None = None
    # file that every pair is appended to, one comparison a line
    raw: str | None = None


@dataclass(frozen=True, kw_only=True)
class BenchTuneSettings(Checked):
    """`intone bench tune`: the found micro-batch against all others, and what finding it takes."""

    # models to tune
    depths: tuple[int, ...] = (2, 4, 6)
    # tokens of a row
    contexts: tuple[int, ...] = (256, 1024)
    # wall-clock of the whole: cases that no longer fit are left out, the smallest ones come first
    minutes: float = setting(12.0, least=1.0)
    # file that rows are appended to; none given: bench/results/tune.jsonl of this checkout
    out: str | None = None
