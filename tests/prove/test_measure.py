"""Measuring in turns, with real child processes whose claimed seconds follow a known truth."""

import itertools
import json
import sys
from dataclasses import replace

import pytest
from tests.tiny_jobs import ENVIRONMENT, write_job

from intone.errors import UserError
from intone.hardware import load_facts
from intone.paths import FolderLock
from intone.prove import measure
from intone.prove.live import LineChild, WorkerChild
from intone.prove.measure import Side, SideFailed, compare, measure_rounds
from intone.prove.noise import Signals

# says that a step takes STEP seconds, give or take; every process is as fast as its seed says; writes what it did
CHILD = """
import json, os, random, sys
name, step_s, sigma, seed, log = sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
draw = random.Random(seed)
own = draw.gauss(0, sigma)
note = lambda *words: print(*words, file=open(log, "a"))
print(json.dumps(dict(ready=True, first_s=2.0, warm_s=0.1, facts={})), flush=True)
for line in sys.stdin:
    command = json.loads(line)
    if command["do"] == "quit": break
    note(name, os.getpid(), json.dumps(command))
    EXTRA
    seconds = command["steps"] * step_s * 2.718281828 ** (own + draw.gauss(0, sigma))
    print(json.dumps(dict(seconds=seconds, tokens=100 * command["steps"], peak_bytes=5)), flush=True)
"""


class Steady:
    """A machine on which nothing else happens."""

    num_cpus = 2

    def __init__(self, pids, *, has_gpu=False):
        self._clock = itertools.count()

    def look(self):
        return Signals(float(next(self._clock)), 0.0, 0.0, 0.0, None, None, None, None, 1e-3)


@pytest.fixture
def side_of(tmp_path):
    """side_of(name, step_s) -> a Side; what its children were asked is in side_of.asked()."""
    seeds = itertools.count(400)

    def made(name, step_s=0.02, *, sigma=0.002, extra="pass", **fields):
        code = CHILD.replace("EXTRA", extra)

        def start():
            words = [name, str(step_s), str(sigma), str(next(seeds)), str(tmp_path / "asked")]
            return LineChild([sys.executable, "-c", code, *words], name=name)

        return Side(name, start, **fields)

    def asked():
        rows = [line.split(" ", 2) for line in (tmp_path / "asked").read_text().splitlines()]
        return [(name, int(pid), json.loads(command)) for name, pid, command in rows]

    made.asked = asked
    return made


@pytest.fixture(autouse=True)
def steady(monkeypatch, home):
    """A machine whose facts are known and on which only the children's claims vary."""
    monkeypatch.setattr(measure, "Watch", Steady)
    monkeypatch.setattr(measure, "load_facts", lambda: replace(load_facts(measure=lambda facts: {"device": "cpu"})))


def measured(*sides, **options):
    return measure_rounds(sides, watch=options.pop("watch", Steady), **options)


def test_blocks_come_in_the_order_a_b_b_a_then_b_a_a_b(side_of):
    found = measured(side_of("A"), side_of("B"))
    assert ["".join(block.side for block in entry.blocks) for entry in found.rounds[:4]] == [
        "ABBA", "BAAB", "ABBA", "BAAB"
    ]  # fmt: skip
    size = found.rounds[0].blocks[0].answer["tokens"] // 100
    timed = [name for name, _, command in side_of.asked() if command["steps"] == size]
    assert "".join(timed[:4]) == "ABBA"


def test_every_replicate_has_fresh_processes_and_at_least_three_are_measured(side_of):
    found = measured(side_of("A"), side_of("B"))
    assert found.num_replicates >= 3
    pids = {name: {pid for other, pid, _ in side_of.asked() if other == name} for name in "AB"}
    assert len(pids["A"]) == len(pids["B"]) == found.num_replicates
    assert not found.quick


def test_equal_sides_are_the_same_and_it_ends_as_soon_as_that_is_sure(side_of):
    found = measured(side_of("A"), side_of("B"))
    (comparison,) = found.comparisons
    assert comparison.verdict == "same"
    assert 5 <= comparison.num_pairs < 10


@pytest.mark.parametrize(("step_s", "word", "ratio"), [(0.026, "slower", 1 / 1.3), (0.016, "faster", 1.25)])
def test_a_planted_difference_is_named_within_ten_pairs(side_of, step_s, word, ratio):
    comparison = compare(side_of("A", sigma=0.03), side_of("B", step_s, sigma=0.03), watch=Steady)
    assert comparison.verdict == word
    assert comparison.low < ratio < comparison.high
    assert comparison.num_pairs <= 10


def test_what_ten_pairs_cannot_show_is_not_proven_with_a_count_to_go(side_of):
    comparison = compare(side_of("A", sigma=0.05), side_of("B", 0.019, sigma=0.05), watch=Steady)
    assert comparison.verdict == "not proven"
    assert comparison.more_pairs is None or comparison.more_pairs > 5


def test_quick_takes_pairs_of_three_or_four_processes_and_says_so(side_of):
    found = measured(side_of("A"), side_of("B", 0.01), quick=True)
    assert (found.quick, found.num_replicates) == (True, 3)
    assert (found.comparisons[0].verdict, found.comparisons[0].num_pairs) == ("faster", 6)
    unsure = measured(side_of("A", sigma=0.05), side_of("B", 0.019, sigma=0.05), quick=True)
    assert (unsure.num_replicates, unsure.comparisons[0].num_pairs) == (4, 8)


def test_sides_that_are_far_apart_get_shorter_blocks(side_of):
    found = measured(side_of("A", 0.3), side_of("B", 0.02), quick=True)
    seconds = {name: found.rounds[0].of(name)[0].seconds for name in "AB"}
    assert seconds == {"A": pytest.approx(0.3, rel=0.05), "B": pytest.approx(0.16, rel=0.05)}
    assert found.comparisons[0].ratio == pytest.approx(15, rel=0.05)
    # one of three sides is near the first: its difference needs whole blocks
    found = measured(side_of("A", 0.3), side_of("B", 0.02), side_of("C", 0.29), quick=True)
    assert found.rounds[0].of("B")[0].seconds == pytest.approx(0.5, rel=0.1)


def test_a_measurement_says_how_long_it_takes_and_how_far_it_is(side_of, capsys):
    measured(side_of("A"), side_of("B", 0.01), quick=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("a pair takes 2.") and "at most 8 pairs, " in lines[0]
    assert lines[1].startswith("replicate 1, 2 pairs, against A: B +") and lines[1].endswith(" left")
    assert lines[-1].startswith("replicate 3, 6 pairs, against A: B +") and lines[-1].endswith("] faster")


def test_blocks_are_sized_to_the_time_asked_for_and_equal_where_the_sides_are_about_as_fast(side_of):
    found = measured(side_of("A"), side_of("B", 0.03), side_of("C", 0.1), block_s=1.0, max_pairs=5)
    sizes = {name: {block.work for entry in found.rounds for block in entry.of(name)} for name in "ABC"}
    assert all(len(size) == 1 for size in sizes.values())
    seconds = {name: found.rounds[0].of(name)[0].seconds for name in "ABC"}
    assert all(0.9 < value < 1.1 for value in seconds.values())
    found = measured(side_of("A"), side_of("B", 0.03))
    first, second = found.rounds[0].of("A")[0], found.rounds[0].of("B")[0]
    assert first.work == second.work


def test_three_sides_are_each_compared_with_the_first(side_of):
    found = measured(side_of("A"), side_of("B", 0.01), side_of("C", 0.04))
    assert [entry.verdict for entry in found.comparisons] == ["faster", "slower"]
    assert ["".join(block.side for block in entry.blocks) for entry in found.rounds[:2]] == ["ABCCBA", "CBAABC"]
    rates = [side.rate for side in found.sides]
    assert rates == [pytest.approx(100 / step_s, rel=0.05) for step_s in (0.02, 0.01, 0.04)]
    assert [(side.first_s, side.warm_first_s, side.peak_bytes) for side in found.sides] == [(2.0, 2.0, 5)] * 3


def test_a_plan_goes_with_every_block(side_of):
    measured(side_of("A"), side_of("B", command={"plan": {"device_batch": 4}}), quick=True)
    plans = {(name, json.dumps(command.get("plan"))) for name, _, command in side_of.asked()}
    assert plans == {("A", "null"), ("B", '{"device_batch": 4}')}


def test_a_change_that_dies_is_rejected_and_the_others_go_on(side_of):
    dies = "if command['steps'] > 20: print(json.dumps(dict(error='too large', outcome='out_of_memory'))); break"
    found = measured(side_of("A"), side_of("B", extra=dies), side_of("C", 0.01))
    assert [entry.verdict for entry in found.comparisons] == ["rejected", "faster"]
    assert found.comparisons[0].reason == "B: too large"
    assert found.sides[1] is None


def test_a_baseline_that_dies_is_no_verdict(side_of):
    with pytest.raises(SideFailed) as caught:
        measured(side_of("A", extra="sys.exit('no memory left')"), side_of("B"))
    assert str(caught.value) == "A could not be measured: A ended with exit code 1: no memory left"
    assert (caught.value.side, caught.value.outcome.outcome) == ("A", "error")


def test_a_side_that_does_not_count_its_work_is_rejected(side_of):
    found = measured(side_of("A"), side_of("B", unit="supervised"))
    assert found.comparisons[0].verdict == "rejected"
    assert found.comparisons[0].reason == "B answered None for supervised"


def test_a_limit_of_time_ends_it_with_what_there_is(side_of):
    found = measured(side_of("A"), side_of("B", 0.01), limit_s=0.0)
    assert found.num_replicates == 1
    assert found.comparisons[0].verdict == "not proven"
    assert found.comparisons[0].more_pairs >= 4


# --- an unsteady machine ----------------------------------------------------------------------------


class Neighbour(Steady):
    """Another program works on one core; never before this look, from it on always or for a while."""

    begins, ends = 0, 10**9
    looks = itertools.count()

    def look(self):
        number = next(type(self).looks)
        busy_s = min(max(number, self.begins), self.ends)
        return replace(super().look(), at_s=float(number), used_s=float(busy_s))


def neighbour(begin, end=10**9):
    return type("Neighbour", (Neighbour,), {"begins": begin, "ends": end, "looks": itertools.count()})


def test_a_disturbed_round_is_set_aside_and_done_once_more(side_of):
    found = measured(side_of("A"), side_of("B"), watch=neighbour(2, 7))
    assert [bool(entry.disturbed) for entry in found.rounds] == [True] + [False] * (len(found.rounds) - 1)
    assert [entry.replicate for entry in found.rounds[:3]] == [1, 1, 2]
    assert found.unsteady == f"other programs used 0.8 of 2 cores in 1 of {len(found.rounds)} rounds"
    assert found.comparisons[0].verdict == "same"
    assert found.comparisons[0].num_pairs == len(found.rounds) - 1


def test_a_machine_that_is_never_steady_gives_no_verdict_and_is_not_measured_for_long(side_of):
    """B is twice as fast, by itself or because of the neighbour: nobody can tell."""
    found = measured(side_of("A"), side_of("B", 0.01), watch=neighbour(0))
    (comparison,) = found.comparisons
    assert comparison.verdict == "not proven"
    assert comparison.reason == "the machine was unsteady: other programs used 1.0 of 2 cores in 6 of 6 rounds"
    assert comparison.ratio == pytest.approx(2, rel=0.05)
    assert comparison.more_pairs is None
    assert found.num_replicates == 3


def test_a_quick_look_at_a_machine_that_is_never_quiet_does_not_wait_for_it(side_of):
    found = measured(side_of("A"), side_of("B", 0.01), watch=neighbour(0), quick=True)
    # the first round once more, and none after it
    assert [entry.replicate for entry in found.rounds] == [1, 1, 1, 2, 2, 3, 3]
    found = measured(side_of("A"), side_of("B", 0.01), watch=neighbour(0), quick=False)
    assert [entry.replicate for entry in found.rounds] == [1, 1, 2, 2, 3, 3]


class Taking(Steady):
    """The host takes this share of a processor from every block."""

    share, heat = 0.1, None
    looks = itertools.count()

    def look(self):
        number = next(type(self).looks)
        return replace(super().look(), at_s=float(number), stolen_s=self.share * number, throttled=self.heat and number)


def taking(share, *, heat=None):
    return type("Taking", (Taking,), {"share": share, "heat": heat, "looks": itertools.count()})


def test_a_difference_beyond_all_that_interfered_is_proven_and_its_interval_allows_for_it(side_of):
    """The host took a tenth of every block: B, twice as fast, might be 1.8 times as fast or 2.2 times."""
    found = measured(side_of("A"), side_of("B", 0.01), watch=taking(0.1))
    (comparison,) = found.comparisons
    assert all(entry.disturbed for entry in found.rounds)
    assert comparison.verdict == "faster" and "the host took 5% of the processor time" in comparison.reason
    assert comparison.ratio == pytest.approx(2, rel=0.05)
    assert comparison.low < 1.83 and comparison.high > 2.18
    (backwards,) = measured(side_of("A", 0.01), side_of("B"), watch=taking(0.1)).comparisons
    assert backwards.verdict == "slower" and backwards.low < 0.46 and backwards.high > 0.54


def test_a_difference_that_might_be_what_interfered_is_not_proven(side_of):
    (comparison,) = measured(side_of("A"), side_of("B", 0.01), watch=taking(0.6)).comparisons
    assert comparison.verdict == "not proven" and comparison.low < 1 < comparison.high
    assert comparison.reason.startswith("the machine was unsteady: the host took 30%")


def test_heat_has_no_bound_and_leaves_no_interval(side_of):
    (comparison,) = measured(side_of("A"), side_of("B", 0.01), watch=taking(0.0, heat=1)).comparisons
    assert comparison.verdict == "not proven" and comparison.low is None and "heat" in comparison.text()


def test_a_machine_that_becomes_unsteady_for_good_gives_no_verdict(side_of):
    found = measured(side_of("A"), side_of("B", 0.01), watch=neighbour(16))
    assert sum(not entry.disturbed for entry in found.rounds) == 2
    assert found.comparisons[0].verdict == "not proven"
    assert found.comparisons[0].reason.startswith("the machine was unsteady: ")


# --- the lock, and real workers ---------------------------------------------------------------------


def test_nobody_else_measures_meanwhile_and_the_holder_has_a_name(side_of, home):
    lock = measure.load_facts().folder / "quiet.lock"
    seen = []

    def look():
        with pytest.raises(UserError):
            FolderLock(lock)
        seen.append(lock.read_text())
        return side_of("A").start()

    measured(Side("A", look), side_of("B"), quick=True)
    assert seen[0].startswith("the comparison of A and B (process ")
    FolderLock(lock).close()  # given back


def test_a_caller_that_holds_the_lock_says_so(side_of, home):
    with FolderLock(measure.load_facts().folder / "quiet.lock"):
        assert measured(side_of("A"), side_of("B"), quick=True, lock=False).num_replicates >= 3


@pytest.mark.long
def test_real_workers_are_measured(tiny_job, tmp_path):
    """One micro-batch of six rows against six of one: more work per row, the same losses."""
    numbers = itertools.count()

    def start():
        folder = tmp_path / f"job{next(numbers)}"
        folder.mkdir()
        return WorkerChild(write_job(folder, tiny_job, steps=10**6, rows_per_step=6), ENVIRONMENT)

    a = Side("whole", start, {"plan": {"device_batch": 6}})
    b = Side("rows", start, {"plan": {"device_batch": 1}})
    found = measured(a, b, quick=True, block_s=0.1)
    assert found.num_replicates in (3, 4)
    assert found.comparisons[0].ratio < 0.9
    assert found.comparisons[0].num_pairs >= 6
    blocks = [block for entry in found.rounds for block in entry.blocks]
    assert all(block.work == 6 * 32 * len(block.answer["losses"]) for block in blocks)
    assert all(side.peak_bytes > 1e7 and side.first_s > 0 for side in found.sides)
