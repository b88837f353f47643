"""`intone tune --facts`."""

import dataclasses
import json

from intone.tune import facts as tune_facts


def test_the_table_shows_every_fact_with_its_source(facts, capsys, monkeypatch):
    monkeypatch.setattr(tune_facts, "load_facts", lambda again: facts)
    result = tune_facts.print_facts()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["fact", "value", "source"]
    assert any(line.split() == ["bf16", "products,", "large", "200", "GFLOP/s", "measured"] for line in lines)
    assert any(line.split() == ["copy", "bandwidth", "unknown", "measured"] for line in lines)
    assert any(line.startswith("  MALLOC_MMAP_MAX_=0") for line in lines)
    assert lines[-1].startswith("kept in ")
    assert result["facts"]["cores_physical"] == {"value": 4, "source": "driver", "unit": ""}


def test_with_json_nothing_is_printed_and_the_result_is_json(facts, capsys, monkeypatch):
    monkeypatch.setattr(tune_facts, "load_facts", lambda again: facts)
    result = tune_facts.print_facts(json=True)
    assert capsys.readouterr().out == ""
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_a_missing_compiler_is_shown_with_its_fix(facts):
    text = tune_facts.facts_text(dataclasses.replace(facts, cxx=None))
    assert "torch.compile needs a C++ compiler: apt install g++ python3-dev" in text.splitlines()


def test_fresh_measures_again(facts, monkeypatch):
    asked = []
    monkeypatch.setattr(tune_facts, "load_facts", lambda again: asked.append(again) or facts)
    tune_facts.print_facts(json=True, fresh=True)
    assert asked == [True]
