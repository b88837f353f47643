"""nanochat's side of a comparison of training: the checkout, its driver, and its fastest way on this machine."""

import contextlib
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from intone.bench.train_ours import bench_home
from intone.config import ModelConfig
from intone.errors import UserError
from intone.hardware import Facts, environment
from intone.log import say
from intone.paths import file_sha256
from intone.prepare import short_hash
from intone.prove.live import LineChild, LiveFailed
from intone.records import Choice
from intone.tune.trials import Trials, code_fingerprint

DRIVER = Path(__file__).parent / "foreign" / "nanochat_train.py"
REVISION = "92d63d4"
CLONE = f"git clone https://github.com/karpathy/nanochat && git -C nanochat checkout {REVISION}"
# SHA-256 of the files at that commit whose numbers and code are compared with or repeated by the driver
FILES = {
    "nanochat/gpt.py": "8cdedc2e418b9d4dc45884e07f59904fcdec066bb3d76664b2adf2d415f704e3",
    "nanochat/optim.py": "7c9b714c6f76e3a9d50fc530044b2767d0cd89391237e609548f1cd730afed8f",
    "nanochat/common.py": "b843db6e769db18d3364e42cb3742a9537a3d4cf43e5f098293babc7ddeb44bf",
    "nanochat/flash_attention.py": "a10b0b10ad91893fcf9c9b19c96bd3468a2721cf156dcdbeeeecf05f97f22c2f",
    "scripts/base_train.py": "87395b8078491d5088e7e8100866162b494638097215759b46d8ceb5d2f0fdcc",
}
ANSWER_S = 600.0  # of an evaluation or a file of weights
PROBE_STEPS = 2  # timed, after two that warm up
SAME = 1.01  # a way must be this much faster than the way as shipped to replace it
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


@dataclass(frozen=True)
class Checkout:
    """A checkout of nanochat, the Python that can import it, and what it is."""

    path: Path
    python: str
    revision: str  # REVISION, or a hash of other contents


@dataclass(frozen=True)
class Way:
    """How nanochat's step is computed: what its users choose by flags and variables, not what it computes."""

    micro_rows: int
    threads: int
    our_variables: bool = False  # with the allocator and threading variables that our own workers get


def find_checkout(path: str, python: str | None, *, any_revision: bool = False) -> Checkout:
    """Raises UserError where path is no nanochat, or another one than the baseline and any_revision is not said."""
    root = Path(path).expanduser().absolute()
    missing = [name for name in FILES if not (root / name).is_file()]
    if missing and (not any_revision or missing[0] == "nanochat/gpt.py"):
        raise UserError(f"{root} is no checkout of nanochat: {missing[0]} is missing", value=path, fix=CLONE)
    hashes = {name: file_sha256(root / name) for name in FILES if name not in missing}
    differing = [name for name, digest in hashes.items() if digest != FILES[name]]
    if differing and not any_revision:
        raise UserError(
            f"{root} is not nanochat at {REVISION}: {differing[0]} differs",
            value=path,
            fix=f"{CLONE}; or --any-revision, which measures against another baseline",
        )
    revision = REVISION if not differing and not missing else f"with files {short_hash(hashes)}"
    return Checkout(root, python or sys.executable, revision)


class NanochatChild(LineChild):
    """The driver at work on one model."""

    def __init__(
        self, checkout: Checkout, model: ModelConfig, rows: Path, way: Way, facts: Facts, *, dtype: str,
        batch_tokens: int, steps: int = 0, warm: int = 2, seed: int = 42, scalar_rates: float = 1.0,
        repeat: bool = False, cache: Path | None = None,
    ) -> None:  # fmt: skip
        """dtype fp32 (as shipped on a CPU) or bf16. steps: of the schedules, 0: by nanochat's rule.

        scalar_rates: factor on its rates of scalars and gates. repeat: begin with the first row again behind the last,
        where only time counts. cache: of compiled code.
        """
        numbers: dict[str, float] = {"batch-tokens": batch_tokens, "steps": steps, "warm": warm, "seed": seed}
        numbers["scalar-rates"] = scalar_rates
        argv = command(checkout, model, rows, way.micro_rows, numbers) + ["--repeat"] * repeat
        super().__init__(argv, variables(way, facts, dtype=dtype, cache=cache), name=f"nanochat {dtype}")

    def ask(self, what: str, **question: Any) -> dict[str, Any]:
        """What the driver answers to something else than a block: evaluate or weights. Raises LiveFailed."""
        self._write({"do": what, **question})
        return self._read(ANSWER_S, f"did not answer {what}")


def command(
    checkout: Checkout, model: ModelConfig, rows: Path, micro_rows: int, numbers: Mapping[str, float]
) -> list[str]:
    """The words that start the driver for a model of the same shape as ours."""
    numbers = {
        "depth": model.depth, "context": model.context, "vocab-size": model.vocab_size,
        "aspect-ratio": model.width // model.depth, "head-width": model.head_width, "micro-rows": micro_rows, **numbers,
    }  # fmt: skip
    words = [checkout.python, str(DRIVER), "--nanochat", str(checkout.path), "--rows", str(rows)]
    words += ["--window-pattern", model.window_pattern]
    return words + list(itertools.chain(*((f"--{name}", str(value)) for name, value in numbers.items())))


def variables(way: Way, facts: Facts, *, dtype: str, cache: Path | None = None) -> dict[str, str]:
    """The driver's environment. fp32, nanochat's own choice on a CPU, is said too: the person may have set another."""
    settings = {
        "OMP_NUM_THREADS": str(way.threads),
        "TORCHINDUCTOR_CACHE_DIR": str(cache or bench_home() / "inductor"),
        "NANOCHAT_DTYPE": DTYPES[dtype],
    }
    if way.our_variables:
        ours = environment(facts, threads=way.threads, already={})
        settings = {name: item.value for name, item in ours.items()} | settings
    return settings


def best_way(
    checkout: Checkout, model: ModelConfig, rows: Path, facts: Facts, *, dtype: str, batch_tokens: int,
    sizes: Sequence[int], fresh: bool = False,
) -> Way:  # fmt: skip
    """nanochat's fastest micro-batch, threads and variables here, by timing its own step; kept per machine.

    As shipped: 32 rows where they divide the step, all cores, no variables.
    """
    whole = batch_tokens // model.context  # rows of a step: all at once where there are fewer than the least size
    fitting = [size for size in sizes if whole % size == 0] or ([whole] if whole < min(sizes) else [])
    if not fitting:
        raise UserError(
            f"no micro-batch of {', '.join(map(str, sizes))} rows divides the {whole} rows of a step",
            value=batch_tokens,
            fix=f"add --their-rows {whole}",
        )
    key = {
        "nanochat": checkout.revision, "python": checkout.python, "model": model.as_json(), "dtype": dtype,
        "batch_tokens": batch_tokens, "sizes": fitting, "cores": facts.cores_physical,
        "driver": code_fingerprint("bench/foreign"),
    }  # fmt: skip

    def decide() -> Choice:
        timed: dict[Way, float] = {}

        def time_way(way: Way) -> float:
            child = NanochatChild(
                checkout, model, rows, way, facts, dtype=dtype, batch_tokens=batch_tokens, repeat=True
            )
            with child, readable(child):
                child.wait_ready()
                answer = child.block(steps=PROBE_STEPS)
            timed[way] = answer["tokens"] / answer["seconds"]
            say(f"nanochat {dtype}, depth {model.depth}: {describe(way)}: {timed[way]:,.0f} tokens/s")
            return timed[way]

        way = max((Way(size, facts.cores_physical) for size in sorted(fitting, reverse=True)), key=time_way)
        others = [Way(way.micro_rows, way.threads, our_variables=True)]
        if way.threads > 1:
            others.append(Way(way.micro_rows, way.threads // 2))
        faster = [other for other in others if time_way(other) > SAME * timed[way]]
        way = max([way, *faster], key=timed.__getitem__)
        beat = tuple({"value": asdict(other), "why": f"{rate:,.0f} tokens/s"} for other, rate in timed.items())
        return Choice(asdict(way), f"{timed[way]:,.0f} tokens/s, the most of {len(timed)} ways", "measured", beat)

    settled = Trials(facts, fresh=fresh).settle("nanochat", key, decide)
    way = Way(**settled.value)
    say(f"nanochat {dtype}, depth {model.depth}: {describe(way)} ({settled.reason})")
    return way


@contextlib.contextmanager
def readable(child: LineChild) -> Iterator[None]:
    """A live child that fails raises UserError with its own words."""
    try:
        yield
    except LiveFailed as failure:
        raise UserError(failure.outcome.message, value=child.name, fix=failure.outcome.fix) from failure


def describe(way: Way) -> str:
    """32 rows, 2 threads, our variables."""
    words = [f"{way.micro_rows} rows", f"{way.threads} threads"]
    return ", ".join([*words, "our variables"] if way.our_variables else words)
