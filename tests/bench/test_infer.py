"""The bench of generation on tiny models: both sides are driven in turns, and what is counted is right."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import torch

from intone.bench import infer, infer_grid, infer_side
from intone.bench.gpu_suites import infer as gpu_infer
from intone.bench.gpu_suites.bench import Bench
from intone.bench.infer import BenchInferSettings, Load, bench_infer, command_line, interval_of
from intone.bench.train_nanochat import Checkout
from intone.config import model_config
from intone.errors import UserError
from intone.model.cost import num_parameters
from intone.records import read_results

TINY = {"depth": 2, "vocab_size": 300, "context": 64, "threads": 1, "dtype": "fp32"}
ENGINE = """
import torch
from nanochat.common import COMPUTE_DTYPE

print("nanochat talks on stdout")

class Engine:
    def __init__(self, model, tokenizer):
        self.model, self.ends = model, {tokenizer.encode_special("<|assistant_end|>"), tokenizer.get_bos_token_id()}

    @torch.inference_mode()
    def generate(self, tokens, num_samples=1, max_tokens=None, temperature=1.0, top_k=None, seed=42):
        assert temperature == 0.0 and num_samples == 1
        ids = list(tokens)
        for _ in range(max_tokens):
            ids.append(int(self.model(ids)))
            if ids[-1] in self.ends:
                return
            yield [ids[-1]], [1]
"""
GPT = """
from dataclasses import dataclass
import torch

@dataclass
class GPTConfig:
    sequence_len: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_kv_head: int
    n_embd: int
    window_pattern: str

class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.table = torch.nn.Parameter(torch.empty(config.vocab_size, config.n_embd))

    def init_weights(self):
        torch.nn.init.zeros_(self.table)

    def forward(self, ids):
        return (self.table @ self.table[ids[-1]]).argmax() + len(ids) % 2
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nanochat")
    (folder / "nanochat").mkdir()
    for name, text in (("gpt", GPT), ("engine", ENGINE), ("common", "import torch\nCOMPUTE_DTYPE = torch.float32\n")):
        (folder / "nanochat" / f"{name}.py").write_text(text)
    return Checkout(folder, sys.executable, "a stand-in")


@pytest.fixture
def tiny(monkeypatch, checkout, tmp_path):
    """Settings of a tiny comparison whose rows go to a file of its own, with loads of seconds."""
    monkeypatch.setattr(infer, "find_checkout", lambda path, python: checkout)
    monkeypatch.setattr(infer, "LOADS", {
        "b1": Load(1, (5, 5), 6, 1), "b16": Load(5, (4, 9), 5, 2), "transformers": Load(1, (7, 7), 9, 1),
    })  # fmt: skip
    return BenchInferSettings(**TINY, nanochat="x", out=str(tmp_path / "rows.jsonl"), plots=str(tmp_path))


@pytest.mark.long
def test_both_engines_write_in_turns_and_a_row_says_against_what(tiny):
    answer = bench_infer(dataclasses.replace(tiny, cases=("b1", "b16")), {})
    rows = {row.id: row for row in read_results(infer.Path(tiny.out))}
    assert set(rows) == {"cpu.infer.b1.vs_nanochat", "cpu.infer.b16_prompts.vs_nanochat"}
    for row in rows.values():
        assert row.n == 5 and row.low <= row.value <= row.high and "a stand-in, fp32" in row.baseline
    assert "--depth 2" in rows["cpu.infer.b1.vs_nanochat"].command
    assert "cpu.infer.b16_prompts.vs_nanochat" in answer.text


def test_a_comparison_without_a_checkout_is_refused_before_anything_is_measured():
    with pytest.raises(UserError, match="no checkout of nanochat") as refused:
        bench_infer(BenchInferSettings(**TINY, cases=("b1",)), {})
    assert "git clone" in refused.value.fix


@pytest.mark.long
def test_transformers_writes_the_same_greedy_text_with_the_same_weights(tiny):
    pytest.importorskip("transformers", reason="the other side is transformers")
    row = infer.beside_transformers(tiny)
    assert row.id == "cpu.infer.b1.vs_transformers" and "5 of 5 texts equal" in row.baseline
    assert "NanoChatForCausalLM, fp32" in row.baseline


LITGPT = """
import torch

class Config:
    def __init__(self, **named):
        self.__dict__ |= named
        assert self.n_head * self.head_size == self.n_embd and self.rotary_percentage == 1.0

class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.transformer = torch.nn.Module()
        self.transformer.wte = torch.nn.Embedding(config.vocab_size, config.n_embd)
        # a block's four of attention and two of the MLP in one, and the head
        rows = config.n_layer * (4 * config.n_embd + 2 * config.intermediate_size) + config.vocab_size
        self.matrices = torch.nn.Linear(config.n_embd, rows, False)
        self.max_seq_length, self.cached = 0, False

    def set_kv_cache(self, batch_size, max_seq_length):
        assert max_seq_length == self.max_seq_length and not self.cached
        self.cached = True

    def clear_kv_cache(self):
        self.cached = False

def generate(model, prompt, length, *, temperature, top_p, include_prompt):
    assert model.cached and temperature == 0.0 and not include_prompt
    return torch.ones(length - len(prompt), dtype=torch.long)
"""


@pytest.fixture
def litgpt(monkeypatch, tmp_path):
    """A stand-in package that a child of this process imports as litgpt."""
    (tmp_path / "litgpt-1.2.dist-info").mkdir()
    (tmp_path / "litgpt-1.2.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: litgpt\nVersion: 1.2\n")
    (tmp_path / "litgpt" / "generate").mkdir(parents=True)
    for name in ("__init__", "generate/__init__"):
        (tmp_path / "litgpt" / f"{name}.py").touch()
    for name in ("config", "model", "generate/base"):
        (tmp_path / "litgpt" / f"{name}.py").write_text(LITGPT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")


@pytest.mark.long
def test_litgpt_writes_in_turns_with_a_model_of_the_same_size(tiny, litgpt, monkeypatch):
    monkeypatch.setattr(infer, "LOADS", {"litgpt": Load(1, (5, 5), 6, 1)})
    row = infer.beside_litgpt(tiny)
    assert row.id == "cpu.infer.b1.vs_litgpt" and "litgpt 1.2, fp32, greedy, other weights" in row.baseline
    assert row.low <= row.value <= row.high and row.command == command_line(tiny, "litgpt")


def test_counts_of_the_cache_need_no_clock():
    found = infer_side.cache_counts(
        json.loads(infer.describe(BenchInferSettings(**TINY), "modern")) | {"context": 256}, 1
    )
    (used,), (ratio,) = found["kv_used_share"], found["prefill_ratio"]
    assert 0.3 < used < 1 and 1.0 <= ratio < 1.5


@pytest.mark.long
def test_a_cold_start_is_timed_from_the_launch(tiny, monkeypatch):
    monkeypatch.setattr(BenchInferSettings, "__post_init__", lambda self: None)
    row = infer.cold_start(dataclasses.replace(tiny, rounds=1))
    assert row.id == "cpu.infer.cold_start_s" and row.unit == "s" and 0.5 < row.value < 300


@pytest.mark.long
def test_the_grid_is_a_table_a_plot_and_numbers(tiny, monkeypatch, tmp_path):
    monkeypatch.setattr(infer_grid, "TEXTS", (1, 3))
    monkeypatch.setattr(infer_grid, "LENGTHS", (5, 33))
    monkeypatch.setattr(infer_grid, "NEW_TOKENS", 3)
    text, found = infer_grid.grid(tiny, tmp_path)
    assert [(p["num_texts"], p["prompt_tokens"]) for p in found["points"]] == [(1, 5), (3, 5), (1, 33), (3, 33)]
    assert "TTFT" in text and "keys and values that its windows see" in text
    assert json.loads((tmp_path / "infer.json").read_text())["points"] == found["points"]
    assert (tmp_path / "infer.svg").read_text().startswith("<svg") and "33 tokens" in (
        tmp_path / "infer.svg"
    ).read_text()


def test_bytes_of_a_step_are_what_it_reads_and_no_more():
    config = model_config("modern", depth=12, vocab_size=32_768, context=2048, head_width=128)
    counts = num_parameters(config)
    matrices = counts["matrices"] + counts["head"]
    # one text, 100 tokens behind it: 12 blocks of keys and values; rows of 2 tokens and of 6 value tables
    expected = 2 * matrices + 2 * (12 * 2 * 768 * 100 + 6 * 768 + 2 * 768)
    assert infer_grid.step_bytes(config, 1, 100, "bf16", "bf16") == expected
    # at 2,000 tokens the nine blocks with a window see 513
    longer = infer_grid.step_bytes(config, 1, 2000, "int8", "bf16")
    assert longer == matrices + 2 * (2 * 768 * (3 * 2000 + 9 * 513) + 8 * 768)
    assert infer_grid.token_flops(config, 100) == 2 * matrices + 12 * 4 * 768 * 100


def test_an_interval_holds_the_mean_of_logarithms():
    same = interval_of(np.log([2.0, 2.0, 2.0, 2.0, 2.0]))
    assert (same.value, same.low, same.high) == pytest.approx((2.0, 2.0, 2.0))
    spread = interval_of(np.log([1.0, 2.0, 4.0, 2.0, 2.0]))
    # standard deviation 0.49 of five, Student's 2.776
    assert spread.value == pytest.approx(2.0) and spread.high == pytest.approx(
        2 * np.exp(2.776 * 0.4901 / 5**0.5), rel=1e-3
    )


def test_a_rows_command_names_what_was_chosen():
    settings = BenchInferSettings(depth=6, weights="int8", nanochat="/somewhere", out="/tmp/x")
    assert command_line(settings, "b1") == "intone bench infer --cases b1 --nanochat NANOCHAT --depth 6 --weights int8"
    assert command_line(settings, "cold") == "intone bench infer --cases cold --depth 6 --weights int8"


@pytest.mark.long
def test_the_gpu_suite_runs_on_tiny_shapes(checkout, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_infer, "COLD_STARTS", 1)
    bench = Bench(
        out=tmp_path, prefix="tiny", device="cpu", command="c", machine={}, machine_folder=tmp_path / "machine",
        code="c", end_s=0.0, scratch=tmp_path, nanochat=checkout.path, nanochat_python=sys.executable,
    )  # fmt: skip
    gpu_infer.infer(bench)
    rows = {row.id: row for row in read_results(tmp_path / "rows.jsonl")}
    names = ("d2.b1.vs_nanochat", "d2.b1.mbu", "gsm8k_loop.vs_nanochat", "cold_start_s")
    assert set(rows) == {f"tiny.infer.{name}" for name in names}
    assert "nanochat on 1 of them" in rows["tiny.infer.gsm8k_loop.vs_nanochat"].baseline
    assert torch.isfinite(torch.tensor([row.value for row in rows.values()])).all()
