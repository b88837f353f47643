"""`intone bench optimise`: the starting point as a target, and what is said of a round on it."""

import pytest
from tests.bench.test_casestudy import FACTS, FAST

from intone.bench import optimise
from intone.bench.casestudy_infer import Texts
from intone.bench.casestudy_round import FAULTS, begin_round, faults_text, found_of, start_target, totals_of
from intone.bench.casestudy_start import SWITCHES, Faults
from intone.bench.casestudy_train import Kit
from intone.bench.optimise import fault_json, rows_of
from intone.bench.targets import meaning
from intone.optimise.detect.catalogue import DETECTORS
from intone.optimise.items import Item
from intone.optimise.ledger import Try
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


def test_what_was_found_and_what_was_mended_are_told_apart(target, tmp_path):
    round_ = begin_round(tmp_path / "round", target, FACTS)
    finding = {"detector": "D16", "evidence": ["45% padding"]}
    round_.ledger.note("finding", part="train", kept=[], finding=finding)
    round_.ledger.note("finding", part="generate", kept=[], finding=finding | {"detector": "D8"})
    item = Item("train-padded-rows", "Pack", "D16", "h", (), (1.0, 2.0), "settings", {"part": "train"}, "", "", "")
    kept = Try(item, "faster", "", True, None, {"passed": True}, None, 1.0)
    round_.ledger.note("try", after=[], **{"try": kept.as_json()})
    comparison = {"ratio": 1.6, "low": 1.5, "high": 1.7, "num_pairs": 6, "noise_low": 0.99, "noise_high": 1.01,
                  "verdict": "faster", "reason": "", "more_pairs": None}  # fmt: skip
    round_.ledger.note("whole", part="train", kept=["train-padded-rows"], comparison=comparison, without=[])
    found = found_of(round_, ["train", "generate"])
    state = {entry.name: (entry.evidence is not None, entry.entry is not None) for entry in found}
    assert state == {
        "batch of 4": (False, False), "no fast code": (False, False), "padded rows": (True, True),
        "no cache": (True, False), "copied first token": (False, False),
    }  # fmt: skip
    assert "padded rows" in faults_text(found) and "not found" in faults_text(found)
    assert fault_json(found[2])["kept"] == "train-padded-rows"
    assert [(name, interval.value, pairs) for name, interval, pairs in totals_of(round_)] == [("sft", 1.6, 6)]


def test_rows_say_how_many_faults_were_mended_and_what_that_brings(target, tmp_path, monkeypatch):
    monkeypatch.setattr(optimise, "totals_of", lambda _: [("sft", optimise.proportion(1, 2), 6)])
    monkeypatch.setattr("intone.bench.rows.load_facts", lambda: FACTS)
    found = found_of(begin_round(tmp_path / "round", target, FACTS), ["train"])
    rows = rows_of(begin_round(tmp_path / "other", target, FACTS), found, prefix="cpu", command="c")
    assert [row.id for row in rows] == ["cpu.optimise.mended", "cpu.optimise.sft"]
    assert rows[0].value == 0 and rows[0].n == 3 and all(meaning(row.id) for row in rows)
