"""What a round does with looks, gates and verdicts: order, keeping, trying again, and going on after a stop."""

import json

import pytest

from intone.errors import UserError
from intone.optimise.detect.finding import Bottleneck
from intone.optimise.items import Item
from intone.optimise.ledger import Try
from intone.optimise.signals import Signals
from intone.optimise.stages import round as module
from intone.optimise.stages.gates import StageGates
from intone.optimise.stages.preset import preset_of
from intone.optimise.stages.report import write_stage_report
from intone.optimise.stages.round import StageRound
from intone.optimise.stages.target import Target
from intone.optimise.stages.words import round_text
from intone.prove.gates.result import GateReport, GateResult, Threshold
from intone.prove.measure import Measured, SideResult
from intone.prove.verdict import Comparison

RULE = Threshold("a rule", "a test")


class World:
    """A training that is eager, padded, and 4 rows at a time: what mending is worth, and what was asked of it."""

    def __init__(self):
        self.asked = []
        self.stop_at = None
        self.rejects = set()
        self.crashes = False
        self.gain = 1.5
        world = self
        # a function, so that it is bound to the round
        self.compared_of = lambda round_, *words, **options: world.compared(round_, *words, **options)

    def look(self, target, state, facts, scratch, *, quick=False):
        segment, switches = state.get("segment", {}), state.get("switches", {})
        packed = switches.get("padded_rows") is False
        rows = segment.get("device_batch", 4)
        return Signals(
            step_s=0.1, num_steps=9, parts={"forward": 0.3, "backward": 0.7}, device_batch=rows, compiled=False,
            pad_share=0.0 if packed else 0.6, memory_kinds={"weights": 2**20},
            # more rows bring something only once they are not mostly padding
            ladder={"4": 1.0, "8": 1.3} if rows == 4 else {}, elasticity=1.3 if rows == 4 else None,
        )  # fmt: skip

    def gates(self, part, before, after, *, whole=False):
        self.asked.append(("gates", after))
        if self.stop_at == len(self.asked):
            raise KeyboardInterrupt
        bad = any(name in self.rejects for values in after.values() for name in values)
        return GateReport((GateResult("parity", not bad, "other losses" if bad else "alike", RULE, fix="undo"),))

    def compared(self, round_, part, states, *, against=None, max_pairs=None, shape=None):
        self.asked.append(("measure", tuple(states)))
        last = list(states.values())[-1]
        packed = last.get("switches", {}).get("padded_rows") is False
        ends, word = (self.gain, self.gain - 0.1, self.gain + 0.1), "faster" if packed else "same"
        found = Comparison(*ends, 6, 0.99, 1.01, word, "planted")
        sides = [SideResult(name, "supervised", 1.0, 1.0, 1.0, 1.0, None, None, {}) for name in states]
        if self.crashes:
            sides[1], found = None, Comparison(None, None, None, 0, None, None, "rejected", "it died")
        over = {name: found for name in states if against not in (None, name)}
        return Measured(tuple(sides), (found,), (), 3, False, 1.0, ""), over


@pytest.fixture
def world(monkeypatch):
    made = World()
    monkeypatch.setattr(module, "LOOKS", {"train": made.look})
    monkeypatch.setattr(module.StageGates, "judge", lambda gates, *words, **options: made.gates(*words, **options))
    monkeypatch.setattr(StageRound, "compared", made.compared_of)
    return made


@pytest.fixture
def round_(start, facts, tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "train").symlink_to(start.folder / "train")
    target = Target(tmp_path / "target", start.worker, {}, start.switches, start.switch_file)
    (tmp_path / "round").mkdir()
    return StageRound.begin(tmp_path / "round", target, facts, words=["sft"], asked={})


def test_one_change_after_the_other_is_kept_and_the_rest_looked_at_anew(world, round_):
    tries = round_.run()
    assert [(entry.item.name, entry.kept) for entry in tries] == [("train-padded-rows", True), ("train-rows-8", True)]
    (whole,) = round_.ledger.lines("whole")
    assert {entry["name"] for entry in whole["without"]} == {"train-padded-rows", "train-rows-8"}
    assert [line["kept"] for line in round_.ledger.lines("signals")] == [
        [], ["train-padded-rows"], ["train-padded-rows", "train-rows-8"]
    ]  # fmt: skip
    assert preset_of(round_) == {
        "format": 1, "settings": {"device_batch": 8}, "beside": {"switches": {"padded_rows": False}},
    }  # fmt: skip
    text = write_stage_report(round_.folder).markdown.read_text()
    assert "Memory by kind" in text and "What each kept change moved" in text and "1.500" in text


def without_of(round_):
    (whole,) = round_.ledger.lines("whole")
    return {entry["name"]: entry["when"] for entry in whole["without"]}


@pytest.mark.parametrize(("quick", "gain"), [(True, 1.5), (False, 12.0)])
def test_the_last_change_is_told_from_the_whole_by_its_own_try(world, round_, quick, gain):
    """Its try compared the same two states; a whole round measures them again unless they are far apart."""
    round_.measure, world.gain = {"quick": quick}, gain
    round_.run()
    assert world.asked[-1] == ("measure", ("with all", "as it was", "without train-padded-rows"))
    assert without_of(round_) == {"train-padded-rows": "whole", "train-rows-8": "tried"}
    assert "without train-rows-8: " in round_text(round_.ledger)
    assert ", measured when it was tried" in round_text(round_.ledger)


def test_a_whole_round_measures_every_change_against_the_whole_again(world, round_):
    round_.run()
    assert without_of(round_) == {"train-padded-rows": "whole", "train-rows-8": "whole"}


def test_how_long_the_rest_takes_is_said_as_soon_as_something_was_measured(world, round_, capsys):
    round_.run()
    assert "2 changes to try; how long that takes is known behind the first\n" in capsys.readouterr().err
    again = StageRound(round_.folder, round_.facts)
    again.pace.seconds = {("look", "train"): [10.0], ("gates", "train"): [5.0], ("side", "train"): [8.0]}
    # nothing is left to try; the sum: gates once, and four sides, of two changes that were kept
    assert again.left_text("train", ()) == "0 changes to try, at most about 37 s left by what was measured so far"


def test_what_a_gate_rejects_is_never_measured_and_stays_in_the_ledger(world, round_):
    world.rejects = {"padded_rows"}
    tries = round_.run()
    assert (tries[0].verdict, tries[0].kept) == ("rejected", False) and "other losses" in tries[0].reason
    assert [entry.item.name for entry in tries] == ["train-padded-rows", "train-rows-8"]
    assert tries[1].verdict == "same" and not tries[1].kept and not round_.ledger.lines("whole")


def test_what_failed_before_is_tried_again_after_a_change_that_was_kept(world, round_, monkeypatch):
    real = world.look

    def look(target, state, facts, scratch):
        signals = real(target, state, facts, scratch)
        # rows look more promising than packing at first, so they are tried first, and in vain
        return Signals.from_json({**signals.as_json(), "ladder": {"4": 1.0, "8": 9.0}, "elasticity": 9.0}) if (
            signals.device_batch == 4
        ) else signals

    monkeypatch.setattr(module, "LOOKS", {"train": look})
    assert [(entry.item.name, entry.verdict) for entry in round_.run()] == [
        ("train-rows-8", "same"), ("train-padded-rows", "faster"), ("train-rows-8", "faster")
    ]  # fmt: skip


def test_a_round_that_was_stopped_goes_on_behind_its_last_try(world, round_, facts):
    world.stop_at = 3  # in the gates of the second change
    with pytest.raises(KeyboardInterrupt):
        round_.run()
    assert [entry.item.name for entry in round_.ledger.tries()] == ["train-padded-rows"]
    world.stop_at = None
    again = StageRound(round_.folder, facts)
    assert [entry.item.name for entry in again.run()] == ["train-padded-rows", "train-rows-8"]
    starts = [line for line in again.ledger.lines("signals") if line["kept"] == []]
    assert len(starts) == 1, "what was looked at is not looked at again"


def test_no_further_change_is_begun_after_the_minutes_and_what_was_left_is_said(world, round_):
    round_.minutes = 0.0
    assert round_.run() == [] and round_.ledger.lines("end")
    assert [line["item"] for line in round_.ledger.lines("left")] == ["train-padded-rows"]
    assert "left when the minutes were over, train: Pack" in round_text(round_.ledger)


def test_a_change_that_dies_before_it_is_measured_is_a_crash_in_the_ledger(world, round_):
    world.crashes = True
    assert {(entry.verdict, entry.reason, entry.kept) for entry in round_.run()} == {("crashed", "it died", False)}


def test_a_state_that_does_not_run_as_it_is_ends_the_round_without_a_word_on_the_change(start, facts, tmp_path):
    (tmp_path / "round").mkdir()
    dead, measure = Target(start.folder, "no_such_module"), {"lock": False}
    made = StageRound.begin(tmp_path / "round", dead, facts, words=[], asked={}, measure=measure)
    with pytest.raises(UserError, match="before could not be measured"):
        made.compared("train", {"before": {}, "b": {}})


def test_the_ledger_is_json_that_anybody_can_read(world, round_):
    round_.run()
    kinds = [json.loads(line)["kind"] for line in (round_.folder / "ledger.jsonl").read_text().splitlines()]
    assert kinds[:3] == ["signals", "finding", "finding"] and kinds[-2:] == ["whole", "end"]


def test_a_quick_round_keeps_what_mends_a_fault_without_measuring_its_speed(world, round_, facts):
    finding = Bottleneck("D22", "copied", ("64 alike",), "any", "behaviour", None, "distinct_first", is_fault=True)
    item = Item("train-x", "Mend", "D22", "h", (), (1.0, None), "settings", {"part": "train", "switches": {"x": 1}},
                "", "", "")  # fmt: skip
    with StageGates.opened(round_.target, facts, round_.folder / "trials") as gates:
        round_.measure = {"quick": True}
        found = round_.attempt("train", item, finding, gates)
        assert found.kept and found.comparison is None and found.reason.endswith("speed: not measured (quick)")
        assert [kind for kind, _ in world.asked] == ["gates"]
        round_.measure = {}
        assert round_.attempt("train", item, finding, gates).comparison is not None


def test_a_report_of_one_look_has_one_column_and_no_interval_that_says_nothing(world, round_):
    world.rejects = {"padded_rows", "device_batch"}
    round_.run()
    wide = Comparison(1.5, 0.01, 900.0, 7, 0.9, 1.1, "not proven", "unsteady")
    kept = Try(round_.ledger.tries()[0].item, "not proven", wide.text(), False, wide.as_json(), None, None, 1.0)
    round_.ledger.note("try", after=[], **{"try": kept.as_json()})
    text = write_stage_report(round_.folder).markdown.read_text()
    assert "| at the peak | memory |" in text and "says nothing" in text and "900" not in text
