"""How much an engine computes at once: timed by a child where that is asked for, taken from what is kept elsewhere."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.tiny_jobs import make_data, write_job

from intone import cli
from intone.api import evaluation_asked
from intone.child import ChildFailed
from intone.engine.choose import ALONE_TOKENS, MOST_SLOTS
from intone.engine.fixed import CONTEXTS
from intone.hardware import known_facts
from intone.runs import find_stage
from intone.settings import EvalSettings
from intone.tune.engine import QUESTIONS, Seen, faster_by, kept_engine, pick, settle_engine
from intone.tune.trials import Trials

ROWS, PROMPTS, BUCKETS = QUESTIONS


def seen(question, device, speed=None, apart=None, refused=None, again=None):
    """As if a value were so many times as fast as the rule's, which takes a millisecond; again: measured once more."""
    values = question.values[device]
    times = [[] if (refused or {}).get(value) else [0.001 / (speed or {}).get(value, 1.0)] * 3 for value in values]
    differences = [(apart or {}).get(value, 1e-6) for value in values]
    right = [place for place in range(1, len(values)) if times[place] and (differences[place] or 1.0) <= 1e-4]
    best = max(right, key=lambda place: 1 / times[place][0])
    again_s = [[0.001] * 3, [0.001 / again] * 3 if again else times[best]]
    reasons = [(refused or {}).get(value) for value in values]
    return Seen(times, differences, reasons, allowed=1e-4, again=best, again_s=again_s)


@pytest.fixture
def settled(facts, config, trials):
    """settled({rows: speed}, ...) -> (choices, how often the engine was timed); prompts are all alike."""

    def ask(speed=None, *, device="cpu", failure=None, **about):
        asked = []

        def measure(*question):
            asked.append(question)
            if failure:
                raise ChildFailed(failure)
            found = {entry.name: seen(entry, device) for entry in QUESTIONS if device in entry.values}
            return found | {"num_slots": seen(ROWS, device, speed, **about)}

        choices = settle_engine(
            facts, config, trials, tokenizer=Path("words"), device=device, dtype="bf16", weights="auto",
            measure=measure,
        )  # fmt: skip
        return choices, len(asked)

    return ask


def test_the_rules_values_are_those_of_an_engine_that_nobody_measured():
    for device, kind in (("cpu", "cpu"), ("cuda", "other"), ("mps", "other")):
        assert (ROWS.rule(device), PROMPTS.rule(device)) == (MOST_SLOTS[kind], ALONE_TOKENS[kind])
    assert BUCKETS.rule("cuda") == CONTEXTS


def test_the_rule_stays_unless_another_number_is_clearly_faster(settled):
    choices, _ = settled({128: 1.04, 16: 0.5})
    rows = choices["num_slots"]
    assert (rows.value, rows.origin, choices["prompt_tokens"].value) == (64, "measured", 512)
    assert {entry["value"]: entry["why"] for entry in rows.beat}[128].startswith("1.04x as fast as 64")
    assert "64: 1,000 tokens/s" in rows.reason and set(choices) == {"num_slots", "prompt_tokens"}


def test_the_fastest_with_the_same_texts_is_taken_and_remembered(settled, facts, config):
    choices, num_asked = settled({128: 1.2, 32: 1.1})
    rows = choices["num_slots"]
    assert (rows.value, num_asked) == (128, 1) and rows.reason.startswith("1.20x as fast as the rule's 64; log-prob")
    assert rows.beat[0] == {"value": 64, "why": "128 are 1.20x as fast"}
    again, num_asked = settled({16: 9.0})
    assert (again["num_slots"].value, again["num_slots"].origin, num_asked) == (128, "cached", 0)
    ask = dict(device="cpu", dtype="bf16", weights="auto")
    assert kept_engine(facts, config, **ask)["num_slots"].value == 128
    same = {**ask, "weights": "bf16"}  # by another name
    assert kept_engine(facts, config, **same)["num_slots"].value == 128
    others = ({"device": "cuda"}, {"dtype": "fp32"}, {"weights": "int8"})
    assert [kept_engine(facts, config, **{**ask, **other}) for other in others] == [{}] * 3
    assert kept_engine(facts, replace(config, depth=4), **ask) == {}


def test_what_was_fast_in_a_good_moment_only_is_not_taken(settled):
    rows = settled({32: 1.7}, again=1.01)[0]["num_slots"]
    assert rows.value == 64
    assert rows.beat[0] == {"value": 32, "why": "1.70x as fast as 64, 1.01x when both were measured again"}
    slow_spell = [[0.002, 0.002, 0.001], [0.001] * 3]
    assert faster_by(*slow_spell) == 1.0  # two of three rounds were slow for one of them: its fastest says it is not


def test_a_number_that_gives_other_texts_is_rejected_however_fast(settled):
    choices, _ = settled({128: 3.0, 32: 1.5}, apart={128: 0.01})
    assert choices["num_slots"].value == 32
    why = {entry["value"]: entry["why"] for entry in choices["num_slots"].beat}[128]
    assert why == "3.00x as fast as 64, but its log-probabilities differ by 0.01 nats; 0.0001 are allowed"
    silent = pick(ROWS, ROWS.values["cpu"], seen(ROWS, "cpu", {16: 2.0}, apart={16: None}))
    assert silent.value == 64 and "cannot be compared" in silent.beat[0]["why"]


def test_texts_whose_cache_does_not_fit_are_not_tried(settled):
    choices, _ = settled({16: 1.0}, refused={128: "their cache would be cut"})
    assert {"value": 128, "why": "their cache would be cut"} in choices["num_slots"].beat


def test_an_engine_that_cannot_be_timed_leaves_the_rule_and_is_tried_again(settled):
    choices, _ = settled(failure="ended by SIGILL")
    assert {entry.value for entry in choices.values()} == {64, 512}
    assert all(entry.origin == "default" and "SIGILL" in entry.reason for entry in choices.values())
    assert settled({32: 2.0})[1] == 1


def test_a_gpu_has_lengths_of_steps_too_and_mps_says_that_nothing_was_measured(settled):
    choices, _ = settled({128: 1.0}, device="cuda")
    assert (choices["num_slots"].value, choices["buckets"].value) == (256, (512, 2048))
    choices, num_asked = settled(device="mps")
    assert num_asked == 0 and all("nothing was measured on mps" in entry.reason for entry in choices.values())
    assert {name: entry.value for name, entry in choices.items()} == {"num_slots": 256, "prompt_tokens": 8192}


def test_show_tells_what_the_engine_of_a_run_would_find(home, tmp_path, capsys):
    job = make_data(tmp_path)
    folder = write_job(tmp_path / "base", job)
    for words in (["chat", "--from"], ["serve", "--from"], ["eval"]):
        assert cli.main([*words, str(folder), "--show"]) == 0
        assert "intone tune infer measures it" in capsys.readouterr().out
    facts = known_facts()
    settle_engine(
        facts, job.model, Trials(facts), tokenizer=tmp_path, device="cpu", dtype="fp32", weights="auto",
        measure=lambda *_: {"num_slots": seen(ROWS, "cpu", {16: 2.0}), "prompt_tokens": seen(PROMPTS, "cpu")},
    )  # fmt: skip
    assert cli.main(["chat", "--from", str(folder), "--device", "cpu", "--show", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out.splitlines()[-1])["result"]["forecast"]
    assert shown["num_slots"]["value"] == 16 and "2.00x as fast as the rule's 64" in shown["num_slots"]["reason"]
    asked = evaluation_asked(find_stage(str(folder)), EvalSettings())
    assert asked["engine"] == {"num_slots": 16, "prompt_tokens": 512}
    assert cli.main(["eval", str(folder), "--show"]) == 0
    assert "2.00x as fast as the rule's 64" in capsys.readouterr().out
    assert cli.main(["chat", "--url", "http://127.0.0.1:1", "--show"]) == 0
    assert "the engine is the server's" in capsys.readouterr().out
