"""Probes: each judgement on data with and without the fault, and whole probes of programs in a child process."""

import json
import textwrap

import pytest

from intone.cli import main
from intone.optimise.scan.finding import CLASSES
from intone.optimise.scan.probes import judge
from intone.optimise.scan.probes.run import PROBES, findings_of, run_probes

ROWS = [[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12]]


def test_rows_that_share_their_first_token_are_told_from_a_model_that_is_sure():
    assert judge.judge_first_tokens([[5, 5, 5], [9, 9, 9]], [1, 1]).outcome == "fault"
    assert judge.judge_first_tokens([[5, 5, 5], [5, 5, 5]], [1, 1]).outcome == "unclear"
    assert judge.judge_first_tokens([[5, 6, 5], [9, 9, 2]], [1, 1]).outcome == "holds"
    assert judge.judge_first_tokens([[5, 6, 5], [9, 9, 2]], [1, 2]).outcome == "fault"


def test_a_row_that_depends_on_its_neighbours_is_found_at_its_first_difference():
    assert judge.judge_row_streams([1, 2, 3], [1, 2, 3]).outcome == "holds"
    look = judge.judge_row_streams([1, 2, 3], [1, 9, 3])
    assert look.outcome == "fault" and "token 1" in look.evidence[0]


def test_time_that_grows_with_the_text_is_recomputation_and_flat_time_is_not():
    assert judge.judge_latency([(16, 0.001), (512, 0.031), (16, 0.001), (512, 0.030)]).outcome == "fault"
    assert judge.judge_latency([(16, 0.001), (512, 0.0013)]).outcome == "holds"
    assert judge.judge_latency([(16, 1e-6), (512, 3e-5)]).outcome == "unclear"


def test_equal_rows_in_batches_and_on_ranks_are_found():
    assert judge.judge_duplicates([ROWS[:2], ROWS[2:]]).outcome == "holds"
    assert judge.judge_duplicates([ROWS[:2], ROWS[:2]]).outcome == "fault"
    assert judge.judge_ranks([[ROWS[:2]], [ROWS[2:]]]).outcome == "holds"
    assert judge.judge_ranks([[ROWS[:2]], [ROWS[1:3]]]).outcome == "fault"


def test_a_loader_that_starts_over_is_found():
    batches = [(row, row) for row in ROWS]
    assert judge.judge_resume(batches[2:], batches[2:], 2).outcome == "holds"
    assert judge.judge_resume(batches[2:], batches[:2], 2).outcome == "fault"


def test_rows_without_anything_to_learn_and_much_padding_are_found():
    assert judge.judge_mask([[[1, -1], [-1, 2]]], -1).outcome == "holds"
    assert judge.judge_mask([[[1, -1], [-1, -1]]], -1).outcome == "fault"
    assert judge.judge_padding([[[1, 2, 0], [1, 0, 0]]], 0).outcome == "fault"
    assert judge.judge_padding([[[0, 2, 3], [1, 2, 4]]], 0).outcome == "holds"


def test_supervised_tokens_per_second_stand_beside_all_that_is_computed():
    padded = [([[1, 2, 0, 0]], [[2, -1, -1, -1]])] * 2
    look = judge.judge_throughput(padded, 2.0, -1, 0)
    assert look.outcome == "fault" and look.message == "1 supervised tokens/s of 4 tokens/s computed"
    assert "at most 2 times" in look.evidence[1]
    assert judge.judge_throughput([([[1, 2, 3, 4]], [[2, 3, 4, -1]])], 1.0, -1, 0).outcome == "holds"
    assert judge.judge_throughput(padded, 2.0, -1, None).outcome == "holds"
    assert judge.judge_throughput(padded, 0.0, -1, 0).outcome == "unclear"


def test_every_probe_belongs_to_a_class():
    assert {rule.kind for rule in PROBES.values()} <= set(CLASSES)


TARGETS = """
import random, time

def tokens(seed, row, n):
    rng = random.Random(seed * 1000 + row)
    return [rng.randrange(50) for _ in range(n)]

def step(inputs, targets):
    time.sleep(0.0005)

def right():
    def generate(prompt, rows, max_tokens, temperature, seed):
        time.sleep(0.0006 * max_tokens)
        return [[7] * max_tokens if temperature == 0 else tokens(seed, row, max_tokens) for row in range(rows)]
    def batches(first, count, rank, ranks):
        found = []
        for step in range(first, first + count):
            rows = [[10 * ((step * ranks + rank) * 4 + i) + j for j in range(4)] for i in range(4)]
            found.append((rows, [row[1:] + [-1] for row in rows]))
        return found
    return {"generate": generate, "batches": batches, "pad": -5, "context": 64, "step": step}

def wrong():
    def generate(prompt, rows, max_tokens, temperature, seed):
        time.sleep(0.00005 * sum(len(prompt) + n for n in range(max_tokens)))
        first = tokens(seed, 0, 1)
        rest = random.Random(seed)
        drawn = [[rest.randrange(50) for _ in range(rows)] for _ in range(max_tokens - 1)]
        return [first + [column[row] for column in drawn] if temperature else [7] * max_tokens for row in range(rows)]
    def batches(first, count, rank, ranks):
        return [([[n, 0, 0, 0], [n, 0, 0, 0]], [[-1] * 4, [n] * 4]) for n in range(count)]
    return {"generate": generate, "batches": batches, "pad": 0, "context": 256, "step": step}

def stuck():
    time.sleep(60)

def raises():
    def generate(prompt, rows, max_tokens, temperature, seed):
        raise ValueError("no weights")
    return {"generate": generate}
"""


@pytest.fixture
def code(tmp_path, monkeypatch):
    monkeypatch.setenv("INTONE_HOME", str(tmp_path / "home"))
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "probed.py").write_text(textwrap.dedent(TARGETS))
    return tmp_path / "code"


def test_a_program_without_faults_holds_every_probe(code):
    looks = run_probes("probed:right", code, 30)
    assert {look["rule"]: look["outcome"] for look in looks} == dict.fromkeys(PROBES, "holds")
    assert findings_of(looks, "probed:right") == []


def test_a_program_with_every_fault_fails_every_probe_but_those_it_cannot_fail(code, capsys):
    assert main(["scan", str(code), "--probe", "probed:wrong", "--json"]) == 1
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])["result"]
    # its batches do not depend on where they start, which is the fault of B06; every rank has the same rows
    assert {look["rule"] for look in answer["looks"] if look["outcome"] == "fault"} == set(PROBES)
    assert main(["scan", str(code), "--board"]) == 0
    assert "B03-" in capsys.readouterr().out
    assert main(["scan", str(code), "--fail-on", "never"]) == 0
    assert main(["scan", str(code), "--probe", "probed:right"]) == 0
    main(["scan", str(code), "--board"])
    assert "fixed: 9" in capsys.readouterr().out


def test_a_target_that_hangs_is_ended_in_time(code, capsys):
    assert main(["scan", str(code), "--probe", "probed:stuck", "--probe-s", "2"]) == 2
    assert "no answer within 2 s" in capsys.readouterr().err


def test_a_target_that_raises_is_unclear_and_no_finding(code):
    looks = run_probes("probed:raises", code, 30)
    assert {look["outcome"] for look in looks} == {"unclear"}
    assert "no weights" in looks[0]["message"]


@pytest.mark.long
def test_our_own_engine_and_loader_hold_every_probe(tmp_path):
    looks = run_probes("auto", tmp_path, 100)
    outcomes = {look["rule"]: look["outcome"] for look in looks}
    assert {rule: outcome for rule, outcome in outcomes.items() if outcome == "fault"} == {}
    assert {outcomes[rule] for rule in ("B01", "B02", "B04", "B05", "B06", "B07", "B09")} == {"holds"}
