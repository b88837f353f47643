"""The case study on a GPU: its own model, what is measured of it, and which rows come out."""

import time
from pathlib import Path

import pytest
from tests.bench.test_casestudy import FACTS, RATES, table_of

from intone.bench.gpu_suites import casestudy as suite
from intone.bench.gpu_suites.bench import Bench
from intone.bench.gpu_suites.synthetic import synthetic_talks, synthetic_tokenizer
from intone.data.chat import render
from intone.data.loader import Rows
from intone.data.shards import TokenSet
from intone.engine.load import load_model
from intone.model.cost import num_parameters
from intone.records import read_results


@pytest.fixture
def bench(tmp_path, home, monkeypatch):
    monkeypatch.setattr(suite, "load_facts", lambda: FACTS)
    (tmp_path / "scratch").mkdir()
    return Bench(
        out=tmp_path, prefix="tiny", device="cpu", command="c", machine={}, machine_folder=tmp_path / "machine",
        code="abc", end_s=time.monotonic() + 60, scratch=tmp_path / "scratch",
    )  # fmt: skip


def test_on_a_gpu_it_is_the_published_model_in_steps_of_the_published_size(bench):
    bench.prefix = "h200"
    shape = suite.shape_of(bench)
    assert num_parameters(shape.config)["total"] == 178_520_064
    assert shape.rows_per_step * shape.config.context == 65_536
    assert (shape.texts, shape.prompt_tokens, shape.new_tokens, shape.quick) == (93, 50, 200, False)


def test_its_tokenizer_has_the_published_entries_and_its_talks_the_lengths():
    tokenizer = synthetic_tokenizer(65_536)
    assert tokenizer.vocab_size == 65_536
    lengths = [len(render(talk, tokenizer)[0]) for talk in synthetic_talks(tokenizer, 300, mean_tokens=430, seed=1)]
    assert 380 < sum(lengths) / len(lengths) < 480


def test_jobs_weights_and_prompts_fit_together(bench):
    shape = suite.shape_of(bench)
    kit = suite.make_kit(bench, shape)
    for stage, job in kit.jobs.items():
        batch = Rows([TokenSet.open(Path(job.data[0]))], job.context, 0).rows(0, shape.rows_per_step)
        assert (batch.targets >= 0).any(), stage
    assert kit.segment.device_batch <= shape.rows_per_step
    texts = suite.make_texts(bench, shape, kit)
    model = load_model(texts.weights, dtype="fp32", device=bench.device)
    assert model.config == shape.config and float(model.head.weight.abs().max()) > 0


def test_every_value_of_a_table_becomes_a_row_and_known_ones_are_not_measured_again(bench, monkeypatch):
    asked = []

    def fake(kit, stage, *, quick, keys):
        asked.append((stage, quick, keys))
        return table_of(RATES)

    monkeypatch.setattr(suite, "train_table", fake)
    monkeypatch.setattr(suite, "inference_table", lambda texts, **how: table_of(RATES))
    suite.casestudy(bench)
    assert asked == [("sft", True, ("start", "auto_batch", "everything"))]
    rows = {row.id: row for row in read_results(bench.out / "rows.jsonl")}
    assert rows["tiny.casestudy.sft"].unit == "x" and "tiny.casestudy.sft.without_packing" in rows
    again = Bench(**{name: getattr(bench, name) for name in bench.__dataclass_fields__})
    suite.casestudy(again)
    assert len(asked) == 1


def test_looks_at_the_gpu_are_read_and_their_ends_left_out(monkeypatch, tmp_path):
    lines = tmp_path / "looks"
    lines.write_text("".join(f"{value}\n" for value in (0, 3, 50, 90, 92, "[N/A]", 94, 40, 0)))
    monkeypatch.setattr(suite.Utilisation, "COMMAND", ("cat", str(lines)))
    with suite.Utilisation() as used:
        used._reader.join()
    assert used.shares == [0.9, 0.92, 0.94]
