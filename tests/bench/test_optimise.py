"""`intone bench optimise`: the starting point as a target, and what is said of a round on it."""

import dataclasses
import json

import pytest
from tests.bench.test_casestudy import FACTS, FAST

from intone.bench import optimise
from intone.bench.casestudy_infer import Texts
from intone.bench.casestudy_round import (
    FAULTS,
    begin_round,
    faults_text,
    found_of,
    measured_words,
    start_target,
    totals_of,
)
from intone.bench.casestudy_settings import OptimiseSettings
from intone.bench.casestudy_start import SWITCHES, Faults
from intone.bench.casestudy_train import Kit
from intone.bench.optimise import fault_json, rows_of, words_of
from intone.bench.targets import meaning
from intone.optimise.detect.catalogue import DETECTORS
from intone.optimise.items import Item
from intone.optimise.ledger import Try
from intone.optimise.rounds import new_folder
from intone.optimise.signals import Signals
from intone.optimise.stages.report import write_stage_report
from intone.optimise.stages.round import StageRound
from intone.paths import read_json
from intone.records import Choice, Choices, read_choices


@pytest.fixture
def target(tmp_path, tiny_job):
    weights = tmp_path / "weights"
    (weights / "checkpoints").mkdir(parents=True)
    choices = Choices({"device": Choice("cpu", "test", "default")}, (FAST,), {}, {"A": "1"})
    texts = Texts(weights, tmp_path / "tokenizer", "fp32", "cpu", 1, 256, 3, 5, 6, {"B": "2"}, tmp_path)
    kit = Kit({"base": tiny_job, "sft": tiny_job}, choices, tmp_path, None)
    return start_target(tmp_path / "start", kit, texts, ["sft", "inference"])


def test_the_start_is_four_rows_and_eager_by_its_plan_and_the_rest_by_switches(target):
    segment = read_choices(target.folder / "train").segments[0]
    assert (segment.device_batch, segment.compiled, segment.kernels) == (4, False, "torch")
    assert target.parts == ("train", "generate") and target.variables("generate", {}) == {"B": "2"}
    assert {entry.name for entry in target.switches} == {"padded_rows", "no_cache", "copied_first_token"}
    assert all(entry.now is True and entry.mended is False for entry in target.switches)
    config = read_json(target.folder / "generate" / "config.json")
    assert config["from"] == str(target.folder / "weights") and len(config["prompts"]) == 3


def test_every_switch_is_a_fault_that_the_worker_knows_and_answers_a_detector():
    for entry in SWITCHES["switches"]:
        assert hasattr(Faults(), entry["name"]) and entry["detector"] in DETECTORS
    assert {name for _, detectors in FAULTS.values() for name in detectors} <= set(DETECTORS)


def comparison(ratio, verdict="faster"):
    return {"ratio": ratio, "low": ratio - 0.1, "high": ratio + 0.1, "num_pairs": 6, "noise_low": 0.99,
            "noise_high": 1.01, "verdict": verdict, "reason": "", "more_pairs": None}  # fmt: skip


def whole(round_, *, passed=True):
    without = [{"name": "train-padded-rows", "comparison": comparison(1.3)},
               {"name": "train-kernels", "comparison": comparison(1.2, "rejected")}]  # fmt: skip
    round_.ledger.note("whole", part="train", kept=["train-padded-rows"], comparison=comparison(1.6), without=without,
                       gates={"passed": passed}, faults=[])  # fmt: skip


def test_what_was_found_and_what_was_mended_are_told_apart(target, tmp_path):
    round_ = begin_round(tmp_path / "round", target, FACTS)
    finding = {"detector": "D16", "evidence": ["45% padding"]}
    round_.ledger.note("finding", part="train", kept=[], finding=finding)
    round_.ledger.note("finding", part="generate", kept=[], finding=finding | {"detector": "D8"})
    looked = Signals(device_batch=4, ladder={"4": 1.0, "8": 0.98}, kernels_gain=1.01)
    round_.ledger.note("signals", part="train", kept=[], signals=looked.as_json())
    item = Item("train-padded-rows", "Pack", "D16", "h", (), (1.0, 2.0), "settings", {"part": "train"}, "", "", "")
    kept = Try(item, "faster", "", True, None, {"passed": True}, None, 1.0)
    round_.ledger.note("try", after=[], **{"try": kept.as_json()})
    cache = dataclasses.replace(item, title="Cache", finding="D8", change={"part": "generate"})
    failed = Try(cache, "not proven", "the machine was unsteady", False, None, {"passed": True}, None, 1.0)
    round_.ledger.note("try", after=[], **{"try": failed.as_json()})
    found = found_of(round_, ["train", "generate"])
    state = {entry.name: (entry.evidence is not None, entry.entry is not None) for entry in found}
    assert state == {
        "batch of 4": (False, False), "no fast code": (False, False), "padded rows": (True, True),
        "no cache": (True, False), "copied first token": (False, False),
    }  # fmt: skip
    text = faults_text(found)
    assert "not found" in text and "batch of 4: tokens/s over those of 4 rows: 8 rows 0.98" in text
    assert "our kernels 1.01" in text and "no cache: it was not looked at; Cache: the machine was unsteady" in text
    assert "not measured" in text and "padded rows:" not in text
    assert fault_json(found[2])["kept"] == "train-padded-rows"


@pytest.mark.parametrize(
    ("detector", "signals", "words"),
    [
        ("D16", Signals(pad_share=0.07), "7.0% of the positions"),
        ("D8", Signals(kind="generate", late_over_early=1.4), "1.40 times"),
        ("D22", Signals(kind="generate", num_samples=64, distinct_first=9, expected_distinct=9.5), "9 different"),
    ],
)
def test_what_was_measured_of_a_fault_that_was_not_found_is_said(detector, signals, words):
    assert words in measured_words(detector, signals)


def test_a_whole_is_a_row_with_what_each_change_is_worth_in_it_unless_a_gate_rejected_it(target, tmp_path):
    round_ = begin_round(tmp_path / "round", target, FACTS)
    whole(round_)
    assert [(name, interval.value, pairs) for name, interval, pairs in totals_of(round_)] == [
        ("sft", 1.6, 6), ("sft.without_padded_rows", 1.3, 6)
    ]  # fmt: skip
    other = begin_round(tmp_path / "other", target, FACTS)
    whole(other, passed=False)
    assert totals_of(other) == []


def test_rows_say_how_many_faults_were_mended_and_what_that_brings(target, tmp_path, monkeypatch):
    monkeypatch.setattr("intone.bench.rows.load_facts", lambda: FACTS)
    round_ = begin_round(tmp_path / "round", target, FACTS)
    whole(round_)
    found = found_of(round_, ["train"])
    rows = rows_of(round_, found, prefix="cpu", command="c")
    assert [row.id for row in rows] == [
        "cpu.optimise.sft.mended", "cpu.optimise.sft", "cpu.optimise.sft.without_padded_rows"
    ]  # fmt: skip
    assert rows[0].value == 0 and rows[0].n == 3 and len({meaning(row.id) for row in rows}) == 3
    round_.ledger.note("left", part="train", item="train-kernels", title="Kernels")
    assert "cpu.optimise.sft.mended" not in [row.id for row in rows_of(round_, found, prefix="cpu", command="c")]


def test_a_second_call_goes_on_with_an_unfinished_round_whatever_its_minutes(home, target, monkeypatch, capsys):
    def prepared(settings, facts):
        raise AssertionError("everything was prepared already")

    monkeypatch.setattr(optimise, "prepared", prepared)
    folder = new_folder("casestudy")
    asked = json.loads(json.dumps(dataclasses.asdict(OptimiseSettings())))
    for name in ("out", "json", "minutes", "new"):
        del asked[name]
    begun = StageRound.begin(folder, target, FACTS, words=["bench", "optimise"], asked={"bench": asked})
    again = optimise.opened(OptimiseSettings(minutes=5.0, out="x.jsonl"), FACTS)
    assert (again.folder, again.minutes) == (begun.folder, 5.0)
    assert "goes on with the round casestudy-1, 0 changes tried; --new begins again" in capsys.readouterr().err
    with pytest.raises(AssertionError, match="prepared already"):
        optimise.opened(OptimiseSettings(new=True), FACTS)
    with pytest.raises(AssertionError, match="prepared already"):
        optimise.opened(OptimiseSettings(depth=3), FACTS)


def test_the_report_names_the_command_that_does_it_again(target, tmp_path):
    words = words_of(OptimiseSettings(quick=True, parts=("inference",), new=True, out="x.jsonl"))
    assert words == ["bench", "optimise", "--parts", "inference", "--quick"]
    (tmp_path / "round").mkdir()
    round_ = StageRound.begin(tmp_path / "round", target, FACTS, words=words, asked={})
    text = write_stage_report(round_.folder).markdown.read_text()
    assert "intone bench optimise --parts inference --quick --new" in text and "intone optimise bench" not in text
