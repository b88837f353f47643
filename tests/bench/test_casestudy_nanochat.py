"""nanochat's own code as a row of the case study: the driver, the conversations it gets, and what is refused."""

import json
import sys
from pathlib import Path

import pytest
from tests.bench.test_casestudy import RATES, table_of

from intone.bench import casestudy_nanochat
from intone.bench.casestudy_nanochat import Nanochat, find_nanochat, step_conversations
from intone.bench.casestudy_rows import EVERYTHING, NANOCHAT, table_text, values_of
from intone.config import model_config
from intone.data.loader import Rows
from intone.data.shards import TokenSet
from intone.errors import UserError
from intone.prove.live import LiveFailed

MODEL = model_config("classic", depth=1, vocab_size=300, context=64, head_width=32)
GPT = """
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

print("it talks on stdout")


@dataclass
class GPTConfig:
    sequence_len: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_kv_head: int
    n_embd: int


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)

    def init_weights(self):
        nn.init.normal_(self.wte.weight)
        nn.init.zeros_(self.lm_head.weight)

    def setup_optimizers(self):
        return [torch.optim.SGD(self.parameters(), lr=50.0)]

    def forward(self, ids, targets=None):
        logits = self.lm_head(self.wte(ids))
        if targets is None:
            return logits
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)

    @torch.inference_mode()
    def generate(self, tokens, max_tokens, temperature=1.0):
        assert temperature == 0
        for _ in range(max_tokens):
            tokens = [*tokens, int(self(torch.tensor([tokens]))[0, -1].argmax())]
            yield tokens[-1]
"""


@pytest.fixture
def theirs(tmp_path):
    """A checkout with nanochat's interface at that commit around a model of two tables."""
    (tmp_path / "nanochat").mkdir()
    (tmp_path / "nanochat" / "gpt.py").write_text(GPT)
    return Nanochat(tmp_path, sys.executable, "cpu", {}, tmp_path)


def test_it_takes_the_steps_of_the_file_in_batches_of_four_and_learns(theirs, tmp_path):
    conversations = [[list(range(n, n + 9)), [-1, *range(n + 2, n + 10)]] for n in range(6)]
    steps = [conversations, conversations[:1]]
    (tmp_path / "steps.json").write_text(json.dumps(steps))
    side = theirs.side(MODEL, "--steps", str(tmp_path / "steps.json"), unit="supervised", count="steps")
    with side.start() as child:
        ready = child.wait_ready()
        assert ready.facts["parameters"] == 2 * 300 * MODEL.width
        first = child.block(steps=3)
        again = child.block(steps=2)
    assert first["first_step"] == 2 and again["first_step"] == 5  # two steps warmed up
    assert first["supervised"] == (6 + 1 + 6) * 8 and again["supervised"] == (1 + 6) * 8
    assert first["seconds"] > 0
    assert again["losses"][1] < first["losses"][0]


def test_it_writes_as_many_tokens_as_are_asked_for_of_one_prompt_after_the_other(theirs):
    way = theirs.generation(MODEL, [[1, 2], [3, 4, 5]], new_tokens=4)
    with way.side.start() as child:
        child.wait_ready()
        answer = child.block(requests=3)
    # the first prompt was taken to warm up
    assert (answer["first_request"], answer["tokens"], answer["prompt_tokens"]) == (1, 12, 3 + 2 + 3)


def test_another_version_is_refused_by_the_driver_in_words(theirs):
    (theirs.path / "nanochat" / "gpt.py").write_text("class GPT:\n    generate = None\n")
    with pytest.raises(LiveFailed, match="has no GPT.setup_optimizers: it is another version") as caught:
        theirs.generation(MODEL, [[1]], 1).side.start().wait_ready()
    assert "01f5f10" in caught.value.outcome.fix


def test_the_conversations_of_a_step_hold_all_that_is_learned_in_it(tiny_job):
    steps = step_conversations(tiny_job, 2)
    sets = [TokenSet.open(Path(folder)) for folder in tiny_job.data]
    rows = Rows(sets, tiny_job.context, tiny_job.seed, learn_all=tiny_job.learn_all)
    for number, conversations in enumerate(steps):
        batch = rows.rows(number * tiny_job.rows_per_step, tiny_job.rows_per_step)
        learned = sorted(target for _, targets in conversations for target in targets if target >= 0)
        assert learned == sorted(batch.targets[batch.targets >= 0].tolist())
        assert all(len(ids) == len(targets) for ids, targets in conversations)


def test_a_checkout_that_is_missing_or_another_and_another_architecture_are_refused(tmp_path, monkeypatch):
    def find(preset="classic"):
        return find_nanochat(str(tmp_path), "python", preset, device="cpu", environment={}, scratch=tmp_path)

    with pytest.raises(UserError, match="no checkout of nanochat: nanochat/gpt.py is missing"):
        find()
    for name in casestudy_nanochat.FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    with pytest.raises(UserError, match="not nanochat at 01f5f10: nanochat/gpt.py differs") as caught:
        find()
    assert caught.value.fix == casestudy_nanochat.CLONE
    hashes = {name: casestudy_nanochat.file_sha256(tmp_path / name) for name in casestudy_nanochat.FILES}
    monkeypatch.setattr(casestudy_nanochat, "FILES", hashes)
    with pytest.raises(UserError, match="architecture classic"):
        find("modern")
    assert find().path == tmp_path


def test_its_row_is_what_everything_is_measured_against_and_no_change_of_ours():
    table = table_of({**RATES, NANOCHAT: RATES["start"] / 2})
    ratio = table.without[NANOCHAT]
    assert ratio.ratio == pytest.approx(2 * RATES[EVERYTHING] / RATES["start"], rel=0.05)
    assert f"everything against {table.lines[NANOCHAT].way.words}: " in table_text(table)
    value = next(value for value in values_of(table) if value.name == f"casestudy.{table.part}.{NANOCHAT}")
    assert value.interval.value == ratio.ratio and value.baseline == table.lines[NANOCHAT].way.words
