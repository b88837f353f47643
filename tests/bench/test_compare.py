"""`intone bench A -- B`: what the two sides are, what may differ between them, and what is said."""

import dataclasses
import json
import re

import pytest

import intone
from intone import cli, planning
from intone.bench import compare
from intone.bench.settings import BenchSettings
from intone.config import OptimConfig, TrainJob
from intone.errors import UserError
from intone.hardware import Facts
from intone.paths import read_json
from intone.prove.measure import Measured, SideFailed, SideResult
from intone.prove.verdict import Comparison, rejected
from intone.records import Outcome, read_choices
from intone.resolving import Layer, resolve
from intone.tune.trial import TrialResult

FACTS = Facts(
    fingerprint="ab" * 8, torch_version="2.13.0+cpu", libc="glibc 2.36", cores_logical=2, cores_physical=2,
    busy_cores=0.0, device="cpu", memory_bytes=2**33, memory_available_bytes=2**33, fp32_flops_per_s=50e9,
)  # fmt: skip
ASKED = {
    "depth": 1, "context": 32, "vocab_size": 300, "dtype": "fp32", "threads": 1, "compile": "off", "kernels": "torch",
    "batch_tokens": 256, "device_batch": 8, "seed": 5,
}  # fmt: skip
FASTER = Comparison(1.31, 1.25, 1.37, 6, 0.97, 1.03, "faster", "the whole interval is beyond 1% and twice the noise")


@pytest.fixture
def text(tmp_path):
    """The flag for a small text."""
    ships = [f"Ship {n} sails past island {n * 7 % 31} to the north. " * 5 for n in range(200)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": ship}) + "\n" for ship in ships))
    return {"data": (str(tmp_path / "text.jsonl"),)}


@pytest.fixture(autouse=True)
def known_machine(home, monkeypatch):
    """Nothing is measured while planning."""
    monkeypatch.setattr(planning, "load_facts", lambda: FACTS)
    monkeypatch.setattr(
        planning.settle_ground.__globals__["TrialRunner"], "run",
        lambda runner, dtype, *, num_steps, **way: TrialResult([2.0] * num_steps, 0.1, 0.1, None),
    )  # fmt: skip


def planned(name, **values):
    settings, origins = resolve(BenchSettings, [Layer("flag", "test", {**ASKED, **values})])
    return compare.plan_side(name, settings, origins)


@pytest.fixture
def pair(text):
    """Two sides of equal settings."""
    return planned("A", **text), planned("B", **text)


def changed(side, **fields):
    return dataclasses.replace(side, job=dataclasses.replace(side.job, **fields))


def test_a_side_is_the_job_that_train_would_make_with_steps_to_spare(text):
    side = planned("A", **text, device_batch=3)
    assert (side.job.stage, side.job.model.depth, side.job.context, side.job.rows_per_step) == ("base", 1, 32, 8)
    assert (side.job.keep, side.job.eval_every, side.job.samples) == (0, None, ())
    assert side.job.steps >= 1_000_000
    assert [segment.device_batch for segment in side.choices.segments] == [3]
    assert side.choices.settings["depth"].origin == "flag"


def test_sides_that_only_compute_otherwise_may_be_compared(text):
    a, b = planned("A", **text), planned("B", **text, device_batch=2, dtype="bf16")
    assert compare.check_work(a, b, allowed=False) == []


def test_another_amount_of_work_is_refused_by_name_or_labelled(text):
    a, b = planned("A", **text), planned("B", **text, batch_tokens=512)
    with pytest.raises(UserError) as caught:
        compare.check_work(a, b, allowed=False)
    assert caught.value.message == "A and B do different work: rows per step (--batch-tokens): 8 and 16"
    assert compare.check_work(a, b, allowed=True) == [
        "different work, only tokens per second are compared: rows per step (--batch-tokens): 8 and 16"
    ]


def test_every_part_of_a_job_is_judged_or_known_not_to_matter(pair):
    """A part added later must not slip through as equal."""
    a, b = pair
    for entry in dataclasses.fields(a.job):
        other = changed(b, **{entry.name: "something else"})
        if entry.name in compare.BESIDE:
            assert compare.check_work(a, other, allowed=False) == []
        elif entry.name in compare.WORK:
            label = re.escape(compare.LABELS.get(entry.name, entry.name))
            with pytest.raises(UserError, match=f"do different work: {label}"):
                compare.check_work(a, other, allowed=False)
        else:
            assert compare.check_work(a, other, allowed=False)[0].startswith("the recipes differ")


def test_other_rates_of_learning_are_no_other_work_but_are_said(pair):
    a, b = pair
    notes = compare.check_work(a, changed(b, optim=OptimConfig(matrix_lr=0.5)), allowed=False)
    assert len(notes) == 1
    assert "optim.matrix_lr: " in notes[0] and " and 0.5" in notes[0]


def test_every_start_of_a_side_is_a_folder_of_its_own(pair, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(compare, "WorkerChild", lambda folder, env, name: started.append((folder, env, name)))
    side = compare.as_side(pair[0], tmp_path, "tokens")
    side.start()
    side.start()
    assert [(folder.name, name) for folder, _, name in started] == [("A-1", "A"), ("A-2", "A")]
    assert all(env == pair[0].choices.environment for _, env, _ in started)
    assert TrainJob.from_json(read_json(tmp_path / "A-2" / "config.json")) == pair[0].job
    assert read_choices(tmp_path / "A-2").segments == pair[0].choices.segments


# --- the verb ---------------------------------------------------------------------------------------


def words_of(values):
    return [word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", str(value))]


@pytest.fixture
def bench(text, monkeypatch, capsys):
    """bench(verdict, *words) -> (exit code, stdout) of `intone bench` with a measurement that came out so."""

    def run(comparison, *words, b=("--device-batch", "2")):
        def measured(sides, *, quick, max_pairs):
            if isinstance(comparison, Exception):
                raise comparison
            results = tuple(SideResult(s.name, "tokens", 1e4, 9e3, 1.1e4, 2.5, 0.5, 2**30, {}) for s in sides)
            return Measured(results, (comparison,), (), 2 if quick else 5, quick, 31.4, "")

        monkeypatch.setattr(compare, "measure_rounds", measured)
        code = cli.main(["bench", *words_of(ASKED), "--data", *text["data"], *words, "--", *b])
        return code, capsys.readouterr().out

    return run


def test_a_verdict_is_exit_0_and_stands_last(bench):
    code, out = bench(FASTER, "--quick")
    assert code == 0
    assert out.splitlines() == [
        "A: --device-batch 8",
        "B: --device-batch 2",
        "",
        "side  tokens/s  slowest to fastest round  first step  again  peak memory",
        "A       10,000           9,000 to 11,000       2.5 s  0.5 s        1 GiB",
        "B       10,000           9,000 to 11,000       2.5 s  0.5 s        1 GiB",
        "",
        "quick: 2 replicates of fresh processes, 0 rounds in 31 s",
        "B is faster: +31.0% [+25.0, +37.0], 6 pairs",
        "the whole interval is beyond 1% and twice the noise",
    ]


@pytest.mark.parametrize(("expect", "code"), [("faster", 0), ("same", 1), ("slower", 1)])
def test_another_verdict_than_expected_is_exit_1(bench, expect, code):
    got, out = bench(FASTER, "--expect", expect)
    assert got == code
    assert (f"expected was: {expect}" in out) == bool(code)


def test_a_rejected_change_is_a_verdict_too(bench):
    code, out = bench(rejected("B: memory ran out"))
    assert (code, out.splitlines()[-1]) == (0, "rejected: B: memory ran out")
    assert bench(rejected("B: memory ran out"), "--expect", "faster")[0] == 1


def test_a_baseline_that_cannot_run_is_its_outcome(bench):
    failure = SideFailed("A", Outcome("out_of_memory", None, "memory ran out", "use a smaller --device-batch"))
    code, out = bench(failure, "--json")
    answer = json.loads(out)
    assert (code, answer["outcome"], answer["exit"]) == (1, "out_of_memory", 1)
    assert answer["error"]["fix"] == "use a smaller --device-batch"


def test_machines_get_the_whole_measurement(bench):
    code, out = bench(FASTER, "--json")
    answer = json.loads(out)
    comparison = answer["result"]["comparison"]
    assert {name: comparison[name] for name in vars(FASTER)} == FASTER.as_json()
    assert comparison["after"] == {"name": "B", "value": 1e4, "low": 9e3, "high": 1.1e4, "unit": "tokens/s"}
    assert [side["plan"]["device_batch"] for side in answer["result"]["sides"]] == [8, 2]
    assert (answer["result"]["stage"], answer["result"]["quick"]) == ("base", False)


def test_b_has_the_settings_of_a_but_for_its_own(bench, monkeypatch):
    """Else every setting would have to be written twice, and a forgotten one would be another recipe."""
    code, out = bench(FASTER, "--json", b=("--dtype", "bf16"))
    plans = [side["plan"] for side in json.loads(out)["result"]["sides"]]
    assert [(plan["dtype"], plan["device_batch"]) for plan in plans] == [("fp32", 8), ("bf16", 8)]


@pytest.mark.parametrize(
    ("words", "message", "fix"),
    [
        ("bench", "there is nothing to compare with", "write what B does otherwise behind --"),
        ("bench base -- --quick", "--quick holds for both sides", "put --quick before the --"),
        ("bench -- sft --from x", "STAGE holds for both sides", "put STAGE before the --"),
        ("bench -- --depht 3", "unknown flag --depht of intone bench", "did you mean --depth?"),
        ("bench -- --help", "--help stands behind the --", "see intone bench --help"),
        ("bench --pairs 2 -- --depth 3", "pairs is 2, it must be at least 5", "use 5 or more"),
        ("bench bass -- --depth 3", "unknown stage or suite of intone bench 'bass'", "did you mean 'base'?"),
        ("bench prov", "unknown stage or suite of intone bench 'prov'", "did you mean 'prove'?"),
        ("bench sft -- --compile on", "bench sft needs a run to start from", "add --from RUN"),
        ("bench prove -- --rounds 3", "intone bench prove takes no command after --", "leave out the --"),
        ("bench prove --round 3", "unknown flag --round of intone bench prove", "did you mean --rounds?"),
    ],
)
def test_what_cannot_be_compared_is_said_with_a_fix(words, message, fix, capsys):
    assert cli.main(words.split()) == 2
    err = capsys.readouterr().err
    assert message in err and fix in err


def test_the_help_of_the_verb_names_its_suites_and_they_have_their_own(capsys):
    assert cli.main(["bench", "--help"]) == 0
    assert re.search(r"\n  prove +the measuring itself", capsys.readouterr().out)
    assert cli.main(["bench", "prove", "--help"]) == 0
    assert "--small-rounds" in capsys.readouterr().out


def test_from_python_the_verdict_is_an_object(text, monkeypatch):
    asked = {}

    def measured(sides, **options):
        asked.update(options, names=[side.name for side in sides])
        return Measured((None, None), (FASTER,), (), 2, True, 1.0, "")

    monkeypatch.setattr(compare, "measure_rounds", measured)
    assert intone.compare({**ASKED, **text}, {"device_batch": 1}, quick=True, pairs=7) == FASTER
    assert asked == {"names": ["A", "B"], "quick": True, "max_pairs": 7}
    with pytest.raises(UserError, match="unknown setting 'device_bach'"):
        intone.compare(ASKED, {"device_bach": 1})
    with pytest.raises(UserError, match="do different work"):
        intone.compare({**ASKED, **text}, {"context": 64, "device_batch": 4})
