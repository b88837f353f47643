"""What a person can ask of `intone bench serve`."""

from dataclasses import dataclass
from typing import Literal

from intone.errors import UserError
from intone.fields import Checked, setting


@dataclass(frozen=True, kw_only=True)
class BenchServeSettings(Checked):
    """`intone bench serve`: what HTTP costs under 256 streams, and whether hostile requests do harm."""

    # streams: tokens per second over HTTP against the engine alone; hostile: good and bad requests mixed
    parts: tuple[Literal["streams", "hostile"], ...] = ("streams", "hostile")
    # run whose model answers in streams
    from_run: str = setting("latest", flag="from")
    # instead of a run: a model of this depth with random weights; 12 is about 100 million parameters
    random_depth: int | None = setting(None, least=1)
    # streams at once
    streams: int = setting(256, least=2)
    # new tokens of every stream
    tokens: int = setting(128, least=2)
    # rounds, each once without and once with HTTP
    rounds: int = setting(5, least=1)
    # requests of hostile
    requests: int = setting(10_000, least=100)
    # seed of hostile
    seed: int = setting(0, least=0)
    # file that rows are appended to; none given: bench/results/serve.jsonl of this checkout
    out: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.random_depth is not None and self.from_run != "latest":
            raise UserError(
                f"both --from {self.from_run} and --random-depth {self.random_depth} are given",
                value=self.random_depth, fix="keep one of them",
            )  # fmt: skip
