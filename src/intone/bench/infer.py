"""`intone bench infer`: how fast the engine answers, beside nanochat, transformers and litgpt in turns, and alone."""

import dataclasses
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from intone.bench.infer_settings import BenchInferSettings
from intone.bench.rows import new_row, row_path
from intone.bench.train_nanochat import CLONE, find_checkout
from intone.errors import UserError
from intone.evals.intervals import Interval
from intone.fields import flag_of, shown
from intone.hardware import load_facts, quiet
from intone.log import say, table, three_digits
from intone.prove.live import LineChild
from intone.records import Answer, ResultRow, append_result
from intone.resolving import Resolved, named_fields

FOREIGN = Path(__file__).parent / "foreign"
ORDINARY = 9  # entries at the end of the vocabulary that no prompt contains: the special tokens
# of the 97.5 % point of Student's t, by degrees of freedom; beyond: the normal distribution's
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
TORCH_NAMES = {"fp32": "float32", "bf16": "bfloat16"}
LEFT_OUT = ("cases", "nanochat", "nanochat_python", "transformers_python", "litgpt_python", "out", "plots", "json")


@dataclasses.dataclass(frozen=True)
class Load:
    """What both sides write in a round: prompts of random length, new tokens of a fixed number.

    share: of the prompts that the other side, which takes them one by one, is given; both are compared per token.
    """

    num_prompts: int
    prompt_tokens: tuple[int, int]  # from, to
    new_tokens: int
    share: int

    def prompts(self, vocab_size: int, seed: int) -> list[list[int]]:
        """New ones for every seed, so that no round finds what another one computed."""
        rng = np.random.default_rng(seed)
        low, high = self.prompt_tokens
        lengths = rng.integers(low, high + 1, self.num_prompts)
        return [rng.integers(0, vocab_size - ORDINARY, length).tolist() for length in lengths]


LOADS = {
    "b1": Load(1, (32, 32), 64, 1),
    "b16": Load(16, (32, 32), 64, 1),
    "eval200": Load(200, (8, 32), 32, 4),
    "transformers": Load(1, (32, 32), 64, 1),
    "litgpt": Load(1, (32, 32), 64, 1),
}
IDS = {
    "b1": "cpu.infer.b1.vs_nanochat",
    "b16": "cpu.infer.b16_prompts.vs_nanochat",
    "eval200": "cpu.infer.eval200.vs_one_by_one",
    "transformers": "cpu.infer.b1.vs_transformers",
    "litgpt": "cpu.infer.b1.vs_litgpt",
}


def bench_infer(settings: BenchInferSettings, _origins: Mapping[str, Resolved]) -> Answer:
    """Measures the cases one after the other; each appends its rows when it is done. Raises UserError."""
    path = Path(settings.out).absolute() if settings.out else row_path("infer")
    if set(settings.cases) & {"b1", "b16", "eval200"} and settings.nanochat is None:
        raise UserError("there is no checkout of nanochat to compare with", fix=f"--nanochat PATH, after: {CLONE}")
    texts, rows = list[str](), list[ResultRow]()
    result: dict[str, Any] = {}
    facts = load_facts()
    beside = [case for case in dict.fromkeys(settings.cases) if case in ("b1", "b16", "eval200")]
    with quiet(facts.folder, "intone bench infer"):
        measured = []
        if beside:
            measured.append(beside_nanochat(settings, beside))
        if "transformers" in settings.cases:
            measured.append([beside_transformers(settings)])
        if "litgpt" in settings.cases:
            measured.append([beside_litgpt(settings)])
        if "cold" in settings.cases:
            measured.append([cold_start(settings)])
        if "cache" in settings.cases:
            measured.append(cache_shares(settings))
        if "bpb" in settings.cases:
            measured.append([eight_bits(settings)])
        for group in measured:
            for row in group:
                append_result(path, row)
                rows.append(row)
        if "grid" in settings.cases:
            from intone.bench.infer_grid import grid

            text, result["grid"] = grid(settings, Path(settings.plots).absolute() if settings.plots else path.parent)
            texts.append(text)
    if rows:
        lines = [[row.id, three_digits(row.value), interval_words(row), str(row.n), row.unit] for row in rows]
        texts.append(table(lines, header=["row", "value", "95% interval", "n", "unit"]))
        texts.append(f"rows are in {path}")
    result["rows"] = [dataclasses.asdict(row) for row in rows]
    return Answer(result, "\n".join(texts), path=str(path))


def interval_words(row: ResultRow) -> str:
    return "-" if row.low is None or row.high is None else f"[{row.low:.3g}, {row.high:.3g}]"


def beside_nanochat(settings: BenchInferSettings, cases: Sequence[str]) -> list[ResultRow]:
    """Rows of the cases against nanochat's Engine, one prompt after the other as its evaluations do."""
    assert settings.nanochat is not None, "bench_infer looked"
    checkout = find_checkout(settings.nanochat, settings.nanochat_python)
    shape = our_shape(settings, "modern")
    argv = [
        checkout.python, str(FOREIGN / "nanochat_infer.py"), "--nanochat", str(checkout.path),
        "--window-pattern", shape.window_pattern, "--depth", str(shape.depth), "--context", str(shape.context),
        "--vocab-size", str(shape.vocab_size), "--aspect-ratio", str(shape.width // shape.depth),
        "--head-width", str(shape.head_width),
    ]  # fmt: skip
    rows = []
    with (
        our_child(settings, "modern", settings.dtype, settings.weights) as ours,
        LineChild(argv, environment(settings), name="nanochat") as theirs,
    ):
        start([ours, theirs])
        for case in cases:
            ratio, rates = in_turns(settings, LOADS[case], ours, theirs, seed=hash_of(case))
            say(f"{case}: {rates[0]:,.1f} tokens/s against nanochat's {rates[1]:,.1f}")
            rows.append(
                new_row(
                    IDS[case],
                    ratio,
                    "ratio of tokens/s",
                    n=settings.rounds,
                    baseline=f"nanochat {checkout.revision}, fp32, one prompt after the other: {rates[1]:,.1f} "
                    f"tokens/s; ours {rates[0]:,.1f} with {stored(settings)} weights",
                    command=command_line(settings, case),
                )  # fmt: skip
            )
    return rows


def beside_transformers(settings: BenchInferSettings) -> ResultRow:
    """The row against transformers' generate with the same weights and number format; greedy texts are compared."""
    dtype = settings.their_dtype
    with tempfile.TemporaryDirectory(prefix="bench-infer-") as folder:
        argv = [
            settings.transformers_python or sys.executable, str(FOREIGN / "transformers_infer.py"),
            "--folder", folder, "--dtype", TORCH_NAMES[dtype],
        ]  # fmt: skip
        # with weights in the format that both compute in, not in fewer bits
        with our_child(settings, "classic", dtype, "auto", export=folder) as ours:
            ours.wait_ready()
            with LineChild(argv, environment(settings), name="transformers") as theirs:
                facts = start([theirs])[0]
                same: list[bool] = []
                load = LOADS["transformers"]
                ratio, rates = in_turns(settings, load, ours, theirs, seed=hash_of("transformers"), same=same)
    if dtype == "fp32" and not all(same):
        raise UserError(
            f"greedy texts differ in {same.count(False)} of {len(same)} rounds: the models are not the same"
        )
    say(f"transformers: {rates[0]:,.1f} tokens/s against {rates[1]:,.1f}; {sum(same)} of {len(same)} texts are equal")
    return new_row(
        IDS["transformers"], ratio, "ratio of tokens/s", n=settings.rounds,
        baseline=f"transformers {facts['version']} {facts['architecture']}, {dtype}, greedy: {rates[1]:,.1f} tokens/s; "
        f"ours {rates[0]:,.1f}; {sum(same)} of {len(same)} texts equal",
        command=command_line(settings, "transformers"),
    )  # fmt: skip


def beside_litgpt(settings: BenchInferSettings) -> ResultRow:
    """The row against litgpt's generate with as many numbers in matrices, in the same number format."""
    from intone.model.cost import num_parameters

    dtype = settings.their_dtype
    shape = our_shape(settings, "classic")
    numbers = {
        "depth": shape.depth, "width": shape.width, "num-heads": shape.num_heads, "head-width": shape.head_width,
        "mlp-width": shape.mlp_ratio * shape.width, "vocab-size": shape.padded_vocab, "context": shape.context,
    }  # fmt: skip
    argv = [
        settings.litgpt_python or sys.executable, str(FOREIGN / "litgpt_infer.py"), "--dtype", TORCH_NAMES[dtype],
        *(word for name, value in numbers.items() for word in (f"--{name}", str(value))),
    ]  # fmt: skip
    with (
        our_child(settings, "classic", dtype, "auto") as ours,
        LineChild(argv, environment(settings), name="litgpt") as theirs,
    ):
        facts = start([ours, theirs])[1]
        counts = num_parameters(shape)
        own = counts["matrices"] + counts["head"]
        if abs(facts["matrix_parameters"] - own) > 0.01 * own:
            raise UserError(
                f"litgpt's model has {facts['matrix_parameters']:,} numbers in matrices, ours {own:,}",
                value=facts["matrix_parameters"],
                fix="choose a --depth at which both have whole heads",
            )
        ratio, rates = in_turns(settings, LOADS["litgpt"], ours, theirs, seed=hash_of("litgpt"))
    say(f"litgpt: {rates[0]:,.1f} tokens/s against {rates[1]:,.1f}")
    return new_row(
        IDS["litgpt"], ratio, "ratio of tokens/s", n=settings.rounds,
        baseline=f"litgpt {facts['version']}, {dtype}, greedy, other weights: {rates[1]:,.1f} tokens/s; "
        f"ours {rates[0]:,.1f}",
        command=command_line(settings, "litgpt"),
    )  # fmt: skip


def in_turns(
    settings: BenchInferSettings, load: Load, ours: LineChild, theirs: LineChild, *, seed: int,
    same: list[bool] | None = None,
) -> tuple[Interval, tuple[float, float]]:  # fmt: skip
    """The ratio of tokens per second with its interval, and both rates (medians). same: whether texts were equal."""
    rates: list[tuple[float, float]] = []
    for number in range(settings.rounds):
        prompts = load.prompts(settings.vocab_size, seed + number)
        sides = ((ours, prompts), (theirs, prompts[: load.share]))
        order = (0, 1) if number % 2 == 0 else (1, 0)
        found = {p: sides[p][0].block(prompts=sides[p][1], new_tokens=load.new_tokens) for p in order}
        rates.append((found[0]["tokens"] / found[0]["seconds"], found[1]["tokens"] / found[1]["seconds"]))
        if same is not None:
            same.append(found[0]["ids"] == found[1]["ids"])
    logs = np.log([a / b for a, b in rates])
    middle = tuple(float(np.median([pair[side] for pair in rates])) for side in (0, 1))
    return interval_of(logs), (middle[0], middle[1])


def interval_of(logs: np.ndarray) -> Interval:
    """The geometric mean of ratios, given as logarithms, with Student's interval."""
    mean, count = float(logs.mean()), len(logs)
    half = STUDENT.get(count - 1, 1.96) * float(logs.std(ddof=1)) / math.sqrt(count)
    return Interval(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


def cold_start(settings: BenchInferSettings) -> ResultRow:
    """Seconds from the launch of a process to the first token, each time with an empty INTONE_HOME."""
    seconds = []
    with tempfile.TemporaryDirectory(prefix="bench-infer-") as folder:
        save_random(settings, Path(folder))
        for _ in range(settings.rounds):
            with tempfile.TemporaryDirectory(prefix="bench-home-") as empty:
                words = [sys.executable, "-m", "intone.bench.infer_cold", folder, settings.dtype, settings.weights]
                words.append("cpu")
                variables = os.environ | environment(settings) | {"INTONE_HOME": empty}
                variables |= {"INTONE_BENCH_BEGIN": repr(time.monotonic())}
                done = subprocess.run(words, env=variables, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise UserError(f"the cold start failed: {done.stderr.strip().splitlines()[-1:]}")
                found = json.loads(done.stdout.splitlines()[-1])
                seconds.append(float(found["seconds"]))
                say("cold: " + ", ".join(f"{name} {value:.2f} s" for name, value in found["parts"].items()))
    ordered = sorted(seconds)
    # the ends of five values hold their median with 94 %
    found_interval = Interval(float(np.median(ordered)), ordered[0], ordered[-1])
    return new_row(
        "cpu.infer.cold_start_s", found_interval, "s", n=len(seconds), baseline=None,
        command=command_line(settings, "cold"),
    )  # fmt: skip


def save_random(settings: BenchInferSettings, folder: Path) -> None:
    """A save with random weights and its tokenizer, written by a process of its own: this one stays small."""
    words = [sys.executable, "-m", "intone.bench.infer_side", "--save", str(folder), describe(settings, "modern")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"no save could be written: {done.stderr.strip().splitlines()[-1:]}")


def cache_shares(settings: BenchInferSettings) -> list[ResultRow]:
    """How full pages are in a load of mixed lengths, and tokens fed to distinct ones where prompts begin alike.

    Counts, which no model's size changes: a small model makes them.
    """
    words = [
        sys.executable,
        "-m",
        "intone.bench.infer_side",
        "--cache",
        str(settings.rounds),
        describe(settings, "modern"),
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"the cache could not be measured: {done.stderr.strip().splitlines()[-1:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    rows = []
    for name, unit in (("kv_used_share", "share"), ("prefill_ratio", "ratio")):
        values = sorted(found[name])
        rows.append(
            new_row(
                f"cpu.infer.{name}",
                Interval(float(np.median(values)), values[0], values[-1]),
                unit,
                n=len(values),
                baseline=found["load"],
                command=command_line(settings, "cache"),
            )  # fmt: skip
        )
    return rows


def eight_bits(settings: BenchInferSettings) -> ResultRow:
    """Bits per byte that 8-bit weights cost a trained run, by its own evaluation. Raises UserError where that fails."""
    words = [sys.executable, "-m", "intone", "eval", settings.from_run, "--tasks", "bpb", "--weights", "int8", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    said = json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else {}
    if done.returncode or "eight_bits" not in said.get("result", {}):
        why = said.get("error", {}).get("message") or done.stderr.strip()[-300:] or "it has no validation text"
        raise UserError(f"{settings.from_run} could not be evaluated: {why}", value=settings.from_run)
    found = said["result"]["eight_bits"]
    return new_row(
        "cpu.infer.int8_bpb_loss", Interval(found["value"], found["low"], found["high"]), "bits per byte", n=1,
        baseline=f"{found['without']:.4f} bits per byte in {found['dtype']} on {found['num_bytes']:,} bytes of "
        f"validation text; products of {found['products']}",
        command=command_line(settings, "bpb"),
    )  # fmt: skip


def describe(settings: BenchInferSettings, preset: str, **more: Any) -> str:
    """The words by which infer_side.py knows what to build."""
    asked = {
        "preset": preset, "depth": settings.depth, "vocab_size": settings.vocab_size, "context": settings.context,
        "dtype": settings.dtype, "weights": settings.weights, "threads": settings.threads, "device": settings.device,
        "slots": None,
    }  # fmt: skip
    return json.dumps(asked | more)


def our_child(
    settings: BenchInferSettings, preset: str, dtype: str, weights: str, *, export: str | None = None
) -> LineChild:
    """Our engine in a process of its own."""
    words = describe(settings, preset, dtype=dtype, weights=weights, export=export)
    return LineChild([sys.executable, "-m", "intone.bench.infer_side", words], environment(settings), name="intone")


def start(children: Sequence[LineChild]) -> list[Mapping[str, Any]]:
    """What each child says of itself once it is ready."""
    facts = []
    for child in children:
        ready = child.wait_ready()
        say(f"{child.name}: " + ", ".join(f"{name} {value}" for name, value in ready.facts.items()))
        facts.append(ready.facts)
    return facts


def environment(settings: BenchInferSettings) -> dict[str, str]:
    """Variables of every side alike. fp32 is nanochat's own choice on a CPU; the person may have set another."""
    variables = {"NANOCHAT_DTYPE": "float32"}
    return variables | ({"OMP_NUM_THREADS": str(settings.threads)} if settings.threads else {})


def our_shape(settings: BenchInferSettings, preset: str) -> Any:
    from intone.bench.infer_side import shape_of

    return shape_of({**dataclasses.asdict(settings), "preset": preset})


def stored(settings: BenchInferSettings) -> str:
    return settings.dtype if settings.weights == "auto" else settings.weights


def hash_of(case: str) -> int:
    """The first seed of a case's prompts."""
    return 1000 * sum(case.encode())


def command_line(settings: BenchInferSettings, case: str) -> str:
    """The command that makes a row again, with NANOCHAT for the checkout's path."""
    words = ["intone bench infer --cases", case]
    if case in ("b1", "b16", "eval200"):
        words.append("--nanochat NANOCHAT")
    for name, entry in named_fields(type(settings)).items():
        value = getattr(settings, name)
        if name == "from_run":
            # a path means nothing on another machine
            words += ["--from", "RUN" if Path(value).is_absolute() else value] if case == "bpb" else []
        elif name not in LEFT_OUT and value != entry.default:
            words += [flag_of(entry), shown(value)]
    return " ".join(words)
