"""`intone bench transformers`: our training step beside transformers' NanoChatForCausalLM, same weights, same rows"""

import dataclasses
import importlib.util
import math
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from intone.bench.casestudy import Prepared, prepared
from intone.bench.casestudy_rows import interval_of
from intone.bench.casestudy_settings import TransformersSettings, command_line
from intone.bench.casestudy_train import BLOCK_S, SHAPES, Plan, side_of
from intone.bench.gpu import short_name
from intone.bench.rows import new_row, row_path
from intone.data.loader import Rows
from intone.data.shards import TokenSet
from intone.errors import UserError
from intone.exchange.exporting import read_source, write_transformers
from intone.hardware import load_facts
from intone.log import table, three_digits
from intone.prove.live import LineChild
from intone.prove.measure import Measured, Side, SideFailed, measure_rounds
from intone.prove.verdict import Comparison
from intone.records import Answer, ResultRow, append_result
from intone.resolving import Resolved

DRIVER = Path(__file__).parent / "foreign" / "transformers_train.py"
NUM_STEPS = 64  # whose rows the other side gets; it begins again behind them
SAME = 2e-3  # relative difference of the first loss up to which both compute one function (bf16 moves it by 1e-3)
OURS = "intone"
MIN_ROUNDS = 5


def bench_transformers(settings: TransformersSettings, _origins: Mapping[str, Resolved]) -> Answer:
    """The verb. Raises UserError where transformers is not there, or does not compute the same function."""
    if settings.preset != "classic":
        raise UserError("transformers knows the classic architecture only", value=settings.preset,
                        fix="leave out --preset")  # fmt: skip
    python = settings.transformers_python or sys.executable
    if python == sys.executable and importlib.util.find_spec("transformers") is None:
        raise UserError("transformers is not installed", fix="pip install transformers, or --transformers-python")
    facts = load_facts()
    with prepared(settings, facts) as ready:
        rows = write_rows(ready)
        model = ready.kit.scratch / "model"
        model.mkdir()
        write_transformers(model, read_source(str(ready.weights)))
        heard: dict[str, list[float]] = {}
        ways = ["eager", "compiled"] if ready.kit.no_compile is None else ["eager"]
        sides = [dataclasses.replace(side_of(ready.kit, "base", OURS, Plan(ready.kit.tuned, False), heard), name=OURS)]
        theirs = {name: theirs_of(ready, python, model, rows, name) for name in ways}
        try:
            shape = SHAPES[settings.quick]
            measured = measure_rounds([*sides, *theirs.values()], shape=shape, block_s=BLOCK_S[settings.quick])
        except SideFailed as failure:
            raise UserError(str(failure), value=failure.side, fix=failure.outcome.fix) from failure
        check_loss(ready, measured)
    prefix = "cpu" if (facts.device or "cpu") == "cpu" else short_name(facts, facts.device or "cpu")
    kept = rows_of(measured, settings, prefix, ready.ground.config.depth)
    path = Path(settings.out).absolute() if settings.out else row_path("casestudy")
    for row in kept:
        append_result(path, row)
    result = {
        "comparisons": [
            {"name": f"{side.name if side else '?'} against {OURS}", "comparison": found.as_json()}
            for side, found in zip(measured.sides[1:], measured.comparisons, strict=True)
        ],
        "rows": [dataclasses.asdict(row) for row in kept],
    }  # fmt: skip
    text = f"{ready.words}\n\n{text_of(measured)}"
    text += f"\n{len(kept)} rows are in {path}" if kept else "\nno row was kept: they need five steady rounds"
    return Answer(result, text, path=str(path))


def write_rows(ready: Prepared) -> Path:
    """The rows of the first steps of our side as arrays."""
    job = ready.kit.jobs["base"]
    folder = ready.kit.scratch / "rows"
    folder.mkdir()
    rows = Rows([TokenSet.open(Path(name)) for name in job.data], job.context, job.seed)
    batch = rows.rows(0, NUM_STEPS * job.rows_per_step)
    for name in ("ids", "targets", "documents"):
        np.save(folder / f"{name}.npy", getattr(batch, name))
    return folder


def theirs_of(ready: Prepared, python: str, model: Path, rows: Path, way: str) -> Side:
    """transformers as a side, eager or compiled, with our micro-batch, dtype and threads."""
    ground, job = ready.ground, ready.kit.jobs["base"]
    words = [
        python, str(DRIVER), "--model", str(model), "--rows", str(rows), "--micro-rows", str(ground.device_batch),
        "--rows-per-step", str(job.rows_per_step), "--dtype", ground.dtype, "--threads", str(ground.threads),
        "--device", ground.device,
    ]  # fmt: skip
    words += ["--compile"] if way == "compiled" else []
    name = f"transformers {way}"
    environment = {**ground.environment, "HF_HUB_OFFLINE": "1"}
    return Side(name, lambda: LineChild(words, environment, name=name))


def check_loss(ready: Prepared, measured: Measured) -> None:
    """Raises UserError where the first loss of the two is not the same: then they are not the same model."""
    ours = first_loss(ready)
    for side in measured.sides[1:]:
        if side is None:
            continue
        theirs = float(side.facts["masked_loss"])
        if not math.isclose(ours, theirs, rel_tol=SAME):
            raise UserError(f"the first loss of {side.name} is {theirs:.5f}, ours {ours:.5f}: not the same function",
                            value=theirs)  # fmt: skip


def first_loss(ready: Prepared) -> float:
    """The loss of our first step, by a worker of its own."""
    heard: dict[str, list[float]] = {}
    side = side_of(ready.kit, "base", "first", Plan(ready.kit.tuned, False), heard)
    with side.start() as child:
        child.wait_ready()
        return float(child.block(steps=1, restart=True)["losses"][0])


def rows_of(measured: Measured, settings: TransformersSettings, prefix: str, depth: int) -> list[ResultRow]:
    """Ours over transformers' faster way; none of a quick, short or disturbed measurement."""
    disturbed = sum(bool(entry.disturbed) for entry in measured.rounds)
    if settings.quick or len(measured.rounds) < MIN_ROUNDS or 2 * disturbed > len(measured.rounds):
        return []
    pairs = [
        (side, found) for side, found in zip(measured.sides[1:], measured.comparisons, strict=True)
        if side is not None and found.verdict != "rejected"
    ]  # fmt: skip
    if not pairs:
        return []
    side, found = max(pairs, key=lambda pair: pair[0].rate)
    ours = interval_of(inverted(found))
    assert ours is not None, "a side with a rate has a ratio"
    version = side.facts.get("transformers", "unknown")
    baseline = f"transformers {version}, {side.name.split()[-1]}, AdamW: {three_digits(side.rate)} tokens/s"
    name = f"{prefix}.train.d{depth}.vs_transformers"
    command = command_line("transformers", settings)
    return [new_row(name, ours, "x", n=found.num_pairs, baseline=baseline, command=command)]


def inverted(found: Comparison) -> Comparison:
    """The same comparison seen from the other side."""
    if found.ratio is None or found.low is None or found.high is None:
        return found
    return dataclasses.replace(found, ratio=1 / found.ratio, low=1 / found.high, high=1 / found.low)


def text_of(measured: Measured) -> str:
    """The sides with their rates, and how often ours is as fast."""
    rows = []
    for side, found in zip(measured.sides, (None, *measured.comparisons), strict=True):
        if side is None:
            continue
        back = inverted(found) if found is not None else None
        known = back is not None and back.ratio is not None
        rows.append([
            side.name, three_digits(side.rate), f"{three_digits(side.low)} to {three_digits(side.high)}",
            f"{side.first_s:.1f} s", f"{back.ratio:.2f}x [{back.low:.2f}, {back.high:.2f}]" if known else "-",  # type: ignore[union-attr]
        ])  # fmt: skip
    header = ["side", "tokens/s", "slowest to fastest round", "first step", "ours is as fast"]
    same = "same weights and rows, first losses equal; ours trains with Muon, theirs with AdamW"
    lines = [table(rows, header=header), same]
    lines += [f"the machine was unsteady: {measured.unsteady}"] if measured.unsteady else []
    return "\n".join(lines)
