"""The suite about the measuring itself: its planted fault is there, and its rows count what they say."""

import json

import pytest

from intone import cli
from intone.bench import prove
from intone.bench.prove import PARTS, aa_rows, pairs_json, planted_rows, seconds_row, sides_of, small_rows, tiny_job
from intone.prove.measure import Measured
from intone.prove.rounds import Block, Round
from intone.prove.verdict import Comparison, unproven
from intone.records import read_results


@pytest.fixture(autouse=True)
def known_machine(home, monkeypatch):
    """Facts without a measurement."""
    from intone import hardware

    monkeypatch.setattr(prove, "load_facts", lambda: hardware.load_facts(measure=lambda _: {"device": "cpu"}))
    monkeypatch.setattr("intone.bench.rows.load_facts", prove.load_facts)


def measured(verdict, num_pairs=6, seconds=40.0):
    comparison = Comparison(0.8, 0.7, 0.9, num_pairs, 0.97, 1.03, verdict, "because")
    return Measured((None, None), (comparison,), (), 5, False, seconds, "")


def values(rows):
    return {row.id: (row.value, row.n) for row in rows}


def test_false_alarms_are_counted_in_both_directions():
    rounds = [measured(word) for word in ("same", "faster", "not proven", "slower", "slower")]
    assert values(aa_rows(rounds)) == {"cpu.prove.aa_false_positives": (1, 5), "cpu.prove.aa_false_slower": (2, 5)}


def test_a_slow_down_counts_as_found_only_by_its_name_and_within_ten_pairs():
    rounds = [measured("slower"), measured("slower", 10), measured("slower", 11), measured("not proven")]
    assert values(planted_rows(rounds)) == {"cpu.prove.power_30pct": (0.5, 4)}


def test_a_small_slow_down_may_be_slower_or_not_proven_and_nothing_else():
    rounds = [measured(word) for word in ("slower", "not proven", "same", "faster")]
    assert values(small_rows(rounds)) == {"cpu.prove.wrong_5pct": (2, 4)}


def test_the_time_of_a_verdict_is_a_median_with_its_interval():
    row = seconds_row([float(value) for value in range(1, 41)])
    assert (row.value, row.low, row.high, row.n) == (20.5, 14.0, 27.0, 40)  # ranks 14 and 27 of 40: 96 %
    assert (seconds_row([7.0]).low, seconds_row([7.0]).high) == (7.0, 7.0)


@pytest.mark.long
def test_the_planted_fault_makes_every_step_as_much_longer_as_it_says(tmp_path):
    """Four times as long, so that it shows on any machine; same losses."""
    job = tiny_job(tmp_path)
    plain, slowed = sides_of(3.0)(tmp_path, job)
    with plain.start() as a, slowed.start() as b:
        for child in (a, b):
            child.wait_ready()
        pairs = [(a.block(steps=4), b.block(steps=4)) for _ in range(3)]
    assert [pair[0]["losses"] for pair in pairs] == [pair[1]["losses"] for pair in pairs]
    assert 2.5 < min(pair[1]["seconds"] for pair in pairs) / min(pair[0]["seconds"] for pair in pairs) < 6


def test_a_against_a_is_the_very_same_program():
    assert PARTS["aa"].sides is not PARTS["planted"].sides
    a, b = PARTS["aa"].sides(None, None)
    assert a.start.__code__ is b.start.__code__


def test_the_command_appends_rows_and_keeps_every_pair(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prove, "SIMULATED", 40)
    monkeypatch.setattr(prove, "measure_rounds", lambda sides: measured("slower"))
    words = ["bench", "prove", "--rounds", "3", "--small-rounds", "2", "--out", str(tmp_path / "rows.jsonl")]
    assert cli.main([*words, "--raw", str(tmp_path / "raw.jsonl"), "--json"]) == 0
    found = values(read_results(tmp_path / "rows.jsonl"))
    assert found["cpu.prove.power_sim"] == (1.0, 40)
    assert found["cpu.prove.aa_false_sim"] == (0, 40)
    assert found["cpu.prove.aa_false_slower"] == (3, 3)
    assert found["cpu.prove.power_30pct"] == (1.0, 3)
    assert found["cpu.prove.wrong_5pct"] == (0, 2)
    assert found["cpu.prove.seconds_per_verdict"] == (40.0, 8)
    out, err = capsys.readouterr()
    assert len(json.loads(out)["result"]["rows"]) == len(found)
    assert "30 % slower 3 of 3: slower: -20.0% [-30.0, -10.0], 6 pairs, 40 s; left 0 s" in err
    assert len((tmp_path / "raw.jsonl").read_text().splitlines()) == 8


def test_pairs_are_kept_by_replicate_with_what_disturbed_them():
    def block(side, seconds):
        return Block(side, 1, 0, 100.0, seconds, {}, None, None)

    blocks = (block("A", 1.0), block("B", 2.0), block("B", 2.5), block("A", 4.0))
    one = Measured((None, None), (unproven("why"),), (Round(1, blocks, ()), Round(2, blocks, ())), 2, False, 9.0, "")
    kept = pairs_json(one)
    assert kept["replicates"] == [[[(100.0, 25.0), (50.0, 40.0)]]] * 2
    assert kept["disturbed"] == [[], []]
    assert kept["comparison"]["verdict"] == "not proven"
