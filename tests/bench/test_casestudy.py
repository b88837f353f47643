"""`intone bench casestudy`: its rows, what is measured once, what is kept, and a whole small measurement."""

import json
from dataclasses import replace

import pytest
from tests.tiny_jobs import SEGMENT

from intone import cli
from intone.bench import casestudy, casestudy_infer, casestudy_rows, casestudy_train
from intone.bench import rows as bench_rows
from intone.bench.casestudy_rows import EVERYTHING, START, Way, result_rows, table_text, to_table
from intone.bench.casestudy_settings import CasestudySettings, CombinedSettings, CompileSettings, command_line
from intone.bench.casestudy_train import KEYS, Kit, compile_notes, parity_words, plans_of, ways_of
from intone.hardware import Facts
from intone.prove import measure
from intone.prove.measure import Measured, Side, SideResult
from intone.prove.noise import Signals
from intone.prove.rounds import Block, Round, pairs_between
from intone.prove.verdict import Comparison, judge
from intone.records import Choice, Choices, Outcome
from intone.tune.trial import TrialResult, TrialRunner

FAST = replace(SEGMENT, device_batch=8, compiled=True, attention="products")


FACTS = Facts(
    fingerprint="ab" * 8, torch_version="2.13.0+cpu", libc="glibc 2.36", cores_logical=2, cores_physical=2,
    busy_cores=0.0, device="cpu", memory_bytes=2**33, memory_available_bytes=2**33, fp32_flops_per_s=50e9,
)  # fmt: skip


@pytest.fixture(autouse=True)
def known_machine(monkeypatch):
    """Nothing is measured about the machine itself."""
    for module in (casestudy, measure, bench_rows):
        monkeypatch.setattr(module, "load_facts", lambda: FACTS)


@pytest.fixture
def kit(tmp_path, tiny_job):
    """A plan that compiles 8 rows at a time."""
    choices = Choices({"device": Choice("cpu", "test", "default")}, (FAST,), {}, {})
    jobs = {"base": tiny_job, "sft": replace(tiny_job, stage="sft")}
    return Kit(jobs, choices, tmp_path, None)


def shape(plan):
    segment = plan.choices.segments[0]
    return segment.device_batch, segment.compiled, plan.padded


def test_an_interval_that_says_nothing_is_not_printed_as_one():
    found = Comparison(1.15, 0.9, 1.4, 3, None, None, "not proven", "3 of 3 rounds disturbed")
    assert found.times == "1.15x [0.90, 1.40]"
    assert replace(found, low=0.05, high=17.5).times == "1.15x, no interval"
    assert replace(found, low=0.0, high=5403284.6).times == "1.15x, no interval"


def test_each_row_of_sft_changes_one_thing_until_everything(kit):
    plans = plans_of(kit, "sft")
    assert {key: shape(plan) for key, plan in plans.items()} == {
        "start": (4, False, True), "auto_batch": (8, False, True), "compile": (8, True, True),
        "packing": (8, True, False), "everything": (8, True, False),
        "without_auto_batch": (4, True, False), "without_fast_code": (8, False, False),
        "without_packing": (8, True, True), "without_allocator": (8, True, False),
    }  # fmt: skip
    assert len({plan.choices.segments[0].dtype for plan in plans.values()}) == 1, "the baseline has our dtype"


def test_text_is_never_padded(kit):
    assert not any(plan.padded for plan in plans_of(kit, "base").values())


def test_rows_of_one_plan_are_measured_once_and_say_which(kit):
    ways = {way.key: way for way in ways_of(kit, "sft", KEYS["sft"], {})}
    assert ways["everything"].side is None and "'+ packing', which is measured" in ways["everything"].note
    assert ways["without_packing"].side is None and "'+ compile'" in ways["without_packing"].note
    assert [key for key, way in ways.items() if way.side] == [
        "start", "auto_batch", "compile", "packing", "without_auto_batch", "without_fast_code"
    ]  # fmt: skip


def test_only_what_was_tuned_has_the_memory_settings_that_were_chosen(kit):
    chosen = {"MALLOC_TOP_PAD_": "1", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "OMP_NUM_THREADS": "2"}
    tuned = replace(kit.tuned, environment=chosen, segments=(replace(FAST, compiled=False, head_pieces=4),))
    for stage in ("sft", "base"):
        plans = plans_of(replace(kit, tuned=tuned), stage)
        with_settings = {key for key, plan in plans.items() if plan.choices.environment == chosen}
        assert with_settings == {key for key in plans if key.startswith(("everything", "without"))} - {
            "without_allocator"
        }  # fmt: skip
        assert plans["start"].choices.environment == {"OMP_NUM_THREADS": "2"}
        assert plans["start"].choices.segments[0].head_pieces == 1 < plans["everything"].choices.segments[0].head_pieces
    ways = {way.key: way for way in ways_of(replace(kit, tuned=tuned), "base", KEYS["base"], {})}
    assert ways["everything"].side is not None and ways["without_allocator"].side is not None


def test_without_a_compiler_the_row_says_so_and_the_others_are_measured(kit):
    no = replace(kit, no_compile="torch.compile needs a C++ compiler", tuned=replace(kit.tuned, segments=(SEGMENT,)))
    ways = {way.key: way for way in ways_of(no, "sft", KEYS["sft"], {})}
    assert ways["compile"].side is None and "needs a C++ compiler" in ways["compile"].note
    assert ways["start"].side is not None and ways["packing"].side is not None


def test_losses_that_part_from_fp32_are_rejected_in_words():
    reference = [3.0 - 0.1 * step for step in range(10)]
    words = parity_words({"start": reference, "everything": [loss * 1.05 for loss in reference]}, reference, "fp32")
    assert words["start"] == "losses of 10 equal steps within 0.0e+00 of fp32 eager, packed"
    assert "REJECTED" in words["everything"]


# --- tables ---------------------------------------------------------------------------------------------------------

SIGNALS = Signals(0.0, None, None, 0.0, None, None, None, None, 0.001)


def measured(rates, *, rounds=6, replicates=3):
    """Blocks of 2 s at these rates by side, two a side and round, a processor busy for 1 of 2 s."""
    entries = []
    for number in range(rounds):
        blocks = []
        for turn, side in enumerate([*rates, *reversed(rates)]):
            wobble = 1 + 0.001 * ((number + turn) % 3)
            after = replace(SIGNALS, at_s=2.0, own_s=1.0)
            answer = {"steps": 4, "seconds": 2.0}
            blocks.append(
                Block(side, number % replicates, number, 2 * rates[side] * wobble, 2.0, answer, SIGNALS, after)
            )
        entries.append(Round(number % replicates, tuple(blocks), ()))
    sides = tuple(SideResult(side, "tokens", rate, rate, rate, 3.0, 1.0, 2**30, {}) for side, rate in rates.items())
    names = list(rates)
    comparisons = tuple(judge(pairs_between(entries, names[0], name)) for name in names[1:])
    return Measured(sides, comparisons, tuple(entries), replicates, False, 60.0, "")


def ways(*keys):
    return [Way(key, casestudy_train.WORDS.get(key, key), "4", Side(key, lambda: None)) for key in keys]


def table_of(rates, **options):
    found = measured(rates, **options)
    return to_table(
        "sft", "SFT", ways(*rates), found, unit="supervised tokens", work=1000.0, work_words="step", threads=1,
        parity={EVERYTHING: "losses alike"},
    )  # fmt: skip


RATES = {"start": 100.0, "auto_batch": 150.0, "everything": 400.0, "without_auto_batch": 320.0,
         "without_packing": 250.0}  # fmt: skip


def test_the_total_is_measured_and_each_part_is_taken_out_of_it():
    table = table_of(RATES)
    assert table.lines[EVERYTHING].ratio.ratio == pytest.approx(4.0, rel=0.01)
    assert table.without["without_packing"].ratio == pytest.approx(1.6, rel=0.01)
    text = table_text(table)
    assert "3.17x" in text and "4.00x [" in text and "75%" in text and "50%" in text and "10 s" in text
    assert "everything as tuned: losses alike; first step 3.0 s, 1.0 s in later processes; peak 1 GiB" in text
    assert "whole stack: passed: measured together: 4.00x" in text


def test_a_passenger_in_the_stack_is_named():
    text = table_text(table_of(RATES | {"without_auto_batch": 400.0}))
    assert "whole stack: rejected: auto_batch has no gain of its own" in text


def test_rows_are_kept_of_five_rounds_and_more_with_ids_of_their_own():
    rows = {row.id: row for row in result_rows(table_of(RATES), prefix="cpu", command="c")}
    assert set(rows) == {
        "cpu.casestudy.sft", "cpu.casestudy.sft.auto_batch", "cpu.casestudy.sft.without_auto_batch",
        "cpu.casestudy.sft.without_packing", "cpu.casestudy.sft.start.per_s", "cpu.casestudy.sft.everything.per_s",
    }  # fmt: skip
    total = rows["cpu.casestudy.sft"]
    assert (total.unit, total.n) == ("x", 6) and total.low < total.value < total.high
    assert total.baseline == "start, batch 4: 100 supervised tokens/s"
    assert rows["cpu.casestudy.sft.without_packing"].value == pytest.approx(1.6, rel=0.01)
    assert result_rows(table_of(RATES, rounds=4), prefix="cpu", command="c") == []


def test_a_disturbed_measurement_keeps_ratios_with_an_interval_and_no_rates():
    table = table_of(RATES)
    rounds = tuple(replace(entry, disturbed=("something",)) for entry in table.measured.rounds[:4])
    spoiled = replace(table, measured=replace(table.measured, rounds=(*rounds, *table.measured.rounds[4:])))
    names = {row.id for row in result_rows(spoiled, prefix="cpu", command="c")}
    assert "cpu.casestudy.sft" in names and not any(name.endswith("per_s") for name in names)
    total = table.lines[EVERYTHING]
    unknown = replace(total, ratio=replace(total.ratio, low=None, high=None))
    spoiled = replace(spoiled, lines={**table.lines, EVERYTHING: unknown})
    assert "cpu.casestudy.sft" not in {row.id for row in result_rows(spoiled, prefix="cpu", command="c")}


def test_what_compiling_costs_stands_beside_what_it_saves():
    found = measured({START: 100.0, EVERYTHING: 200.0})
    table = to_table("compile", "100 steps", ways(START, EVERYTHING), found, unit="tokens", work=10_000.0,
                     work_words="100 steps", threads=1, parity={})  # fmt: skip
    assert compile_notes(table, 100) == [
        "with 2.5 s of compiling the 100 steps take 52.5 s, without 100.0 s",
        "compiling has paid after 5 steps",
    ]


def test_the_command_of_a_row_repeats_what_was_asked_but_no_path():
    settings = CasestudySettings(parts=("sft",), sft=("/secret/talk.jsonl",), rows=8, depth=3)
    words = command_line("casestudy", settings)
    assert words == "intone bench casestudy --parts sft --depth 3 --rows 8 --sft TALK"
    assert command_line("compile", CompileSettings()) == "intone bench compile"


def test_as_many_processes_are_measured_as_are_asked_for(kit, monkeypatch):
    shapes = []

    def measured(sides, *, shape, **_):
        shapes.append(shape)
        raise measure.SideFailed("start", Outcome("error", None, "not measured here"))

    monkeypatch.setattr(casestudy_train, "measure_rounds", measured)
    for settings in (CombinedSettings(), CombinedSettings(quick=True), CombinedSettings(replicates=5)):
        with pytest.raises(measure.SideFailed):
            casestudy_train.train_table(kit, "base", quick=settings.quick, replicates=settings.asked_replicates)
    assert shapes == [(3, 2), (1, 3), (5, 2)]
    assert command_line("combined", CombinedSettings(replicates=5)) == "intone bench combined --replicates 5"


def test_published_figures_stand_for_rows_that_exist():
    known = {*KEYS["sft"], *KEYS["base"], START, "batch", EVERYTHING}
    assert {key for _, key in casestudy_rows.PUBLISHED} <= known


# --- the whole verb -------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_the_verb_measures_every_table_and_keeps_no_row_of_a_quick_look(home, monkeypatch, tmp_path, capsys):
    # one round in one process a side: what is measured means nothing, that all of it runs is the point
    monkeypatch.setattr(casestudy_train, "SHAPES", {True: (1, 1)})
    monkeypatch.setattr(casestudy_train, "BLOCK_S", {True: 0.05})
    monkeypatch.setattr(casestudy_infer, "SHAPES", {True: (1, 1)})
    monkeypatch.setattr(casestudy, "START_STEPS", {True: 2})
    monkeypatch.setattr(casestudy, "DATA_STEPS", 4)
    # few processes: each takes seconds to start
    monkeypatch.setitem(KEYS, "sft", (START, "compile", "packing"))
    ends = casestudy_infer.ways_of
    monkeypatch.setattr(
        casestudy_infer, "ways_of", lambda texts: [way for way in ends(texts) if way.key not in ("cache", "batch")]
    )
    monkeypatch.setattr(
        TrialRunner, "run", lambda runner, dtype, *, num_steps, **way: TrialResult([2.0] * num_steps, 0.1, 0.1, None)
    )
    out = tmp_path / "rows.jsonl"
    talks = tmp_path / "talks.jsonl"
    talks.write_text("".join(
        json.dumps({"messages": [{"role": "user", "content": f"{n} birds"}, {"role": "assistant", "content": "fly " * (
            1 + n % 5)}]}) + "\n" for n in range(300)
    ))  # fmt: skip
    text = tmp_path / "text.jsonl"
    text.write_text(
        "".join(json.dumps({"text": f"{n} birds sat on roof {n * n % 97}. " * 4}) + "\n" for n in range(300))
    )
    words = (
        "--quick --depth 1 --context 64 --vocab-size 300 --batch-tokens 512 --device-batch 8 --dtype fp32 --threads 1 "
        "--kernels torch --compile off --rows 3 --prompt-tokens 5 --new-tokens 6 --parts sft inference --json"
    )
    code = cli.main(["bench", "casestudy", *words.split(), "--data", str(text), "--sft", str(talks), "--out", str(out)])
    printed = capsys.readouterr().out
    answer = json.loads(printed.splitlines()[-1])
    assert (code, answer["outcome"]) == (0, "done")
    sft, inference = answer["result"]["tables"]
    assert [row["key"] for row in sft["rows"]] == ["start", "packing"]
    assert "a C++ compiler" in sft["left_out"]["+ compile"]
    assert all("losses of 10 equal steps within" in row["parity"] for row in sft["rows"])
    assert not any("REJECTED" in row["parity"] for row in sft["rows"])
    assert [row["key"] for row in inference["rows"]] == ["start", "everything"]
    assert inference["rows"][-1]["parity"] == "2 of 2 greedy texts of 6 tokens are those without a cache"
    assert inference["left_out"] == {"+ graphs": "not here: graphs of recorded work are for CUDA"}
    assert not out.exists()
