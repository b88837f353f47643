"""The Python interface and the verbs over it, with a tiny untrained model in a real run folder."""

import io
import json
import sys

import pytest
import torch

import intone
from intone import cli
from intone.config import OptimConfig, ScheduleConfig, TrainJob, model_config
from intone.data.shards import ensure_token_set
from intone.data.tokenizer import SPLIT_PATTERN, Tokenizer
from intone.errors import Damaged, UserError
from intone.model.checkpoint import save_checkpoint
from intone.model.gpt import GPT
from intone.paths import write_json
from intone.records import Choices, Outcome, Segment, write_choices, write_outcome
from intone.resolving import identity
from intone.runs import create_run, find_run
from intone.settings import RunSettings

CONTEXT = 192
CONFIG = model_config("modern", depth=1, vocab_size=265, context=CONTEXT)
SEGMENT = Segment(0, device_batch=3, compiled=False, dtype="fp32", attention="sdpa", reason="test", threads=1)


@pytest.fixture
def run(home):
    """A finished run of one stage whose model was never trained; facts of the machine are there already."""
    torch.manual_seed(0)
    tokenizer = Tokenizer([bytes([value]) for value in range(256)], SPLIT_PATTERN)
    folder = home / "tokenizers" / "bytes"
    tokenizer.save(folder)
    val, _ = ensure_token_set(
        home / "text" / "val", tokenizer, kind="documents", documents=lambda _: ["A short text to predict. " * 9] * 3
    )
    run = create_run(identity(RunSettings(depth=1)), verb="run", stages=("base",), name="tiny")
    stage = run.stage_folder("base")
    job = TrainJob(
        stage="base", model=CONFIG, tokenizer=str(folder), tokenizer_hash=tokenizer.hash, data=(),
        val=str(val.folder), context=CONTEXT, steps=1, rows_per_step=1, optim=OptimConfig(),
        schedule=ScheduleConfig(), seed=0, eval_tokens=2 * CONTEXT,
    )  # fmt: skip
    write_json(stage / "config.json", job.as_json())
    write_choices(stage, Choices({}, (SEGMENT,), environment={"OMP_NUM_THREADS": "1"}))
    save_checkpoint(
        stage, 1, model=CONFIG, weights=GPT(CONFIG).state_dict(), optimizer={}, state={}, tokenizer_hash=tokenizer.hash
    )
    write_outcome(stage, Outcome("done", 1))
    return run


@pytest.fixture
def no_measuring(monkeypatch):
    """Facts without a measurement, which takes seconds and is tested elsewhere."""
    from intone import hardware, tuning

    monkeypatch.setattr(tuning, "load_facts", lambda **_: hardware.load_facts(measure=lambda _: {"device": "cpu"}))


@pytest.fixture
def terminal(monkeypatch):
    """Makes stdin a terminal, or a pipe with this text."""

    def use(text=None):
        stream = io.StringIO(text or "")
        stream.isatty = lambda: text is None
        monkeypatch.setattr(sys, "stdin", stream)

    return use


def test_a_loaded_model_answers_questions_and_conversations(run, no_measuring):
    with intone.load("tiny") as model:
        answer = model.chat("Hello?", max_tokens=5)
        assert isinstance(answer, str)
        assert model.chat([{"role": "user", "content": "Hello?"}], max_tokens=5) == answer
        assert model.engine.context == CONTEXT
        with pytest.raises(UserError, match="unknown role 'robot'"):
            model.chat([{"role": "robot", "content": "Hello?"}])
        with pytest.raises(UserError, match="the last message must be from the user"):
            model.chat([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])


def test_the_same_seed_gives_the_same_answer_at_any_temperature(run, no_measuring):
    with intone.load("tiny/base") as model:
        answers = [model.chat("Hello?", max_tokens=9, temperature=1.5, seed=seed) for seed in (3, 3, 4)]
    assert answers[0] == answers[1] != answers[2]


def test_a_run_that_is_not_there_raises_before_anything_is_loaded(run):
    with pytest.raises(UserError, match="did you mean 'tiny'?"):
        intone.load("tinny")


def test_a_tokenizer_that_was_exchanged_is_noticed(run, home, no_measuring):
    Tokenizer([bytes([value]) for value in reversed(range(256))], SPLIT_PATTERN).save(home / "tokenizers" / "bytes")
    with pytest.raises(Damaged, match="is not the one that"):
        intone.load("tiny")


def test_training_from_python_refuses_what_the_flags_refuse():
    with pytest.raises(UserError, match="unknown setting 'dept'\n  fix: did you mean 'depth'?"):
        intone.train("base", dept=3)
    with pytest.raises(UserError, match="stage 'bse' is not one of base, mid, sft"):
        intone.train("bse")


def test_the_package_has_nothing_but_its_doors():
    with pytest.raises(AttributeError, match="module 'intone' has no attribute 'lod'"):
        _ = intone.lod


def test_chat_answers_a_prompt_once_on_stdout(run, no_measuring, capsys):
    assert cli.main(["chat", "--from", "tiny", "--prompt", "Hello?", "--max-tokens", "5", "--temperature", "0"]) == 0
    streamed = capsys.readouterr().out
    assert cli.main(["chat", "--prompt", "Hello?", "--max-tokens", "5", "--temperature", "0", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["result"]["prompt"] == "Hello?"
    assert value["result"]["answer"] + "\n" == streamed
    assert (value["run"], value["path"]) == ("tiny", str(run.folder / "base"))


def test_chat_answers_piped_text_once(run, no_measuring, terminal, capsys):
    terminal("Hello?\n")
    assert cli.main(["chat", "--max-tokens", "5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["result"]["prompt"] == "Hello?"
    terminal(" \n")
    assert cli.main(["chat"]) == 2
    assert "nothing was piped in" in capsys.readouterr().err


def test_chat_in_a_terminal_cannot_end_in_json(run, terminal, capsys):
    terminal()
    assert cli.main(["chat", "--json"]) == 2
    assert "--json needs a question" in capsys.readouterr().err


def test_eval_measures_a_finished_run_in_a_worker(run, no_measuring, capsys, tmp_path):
    (tmp_path / "other.txt").write_text("Quite another text, to be predicted too. " * 20)
    assert cli.main(["eval", "tiny", "--tasks", "bpb", "--val", str(tmp_path / "other.txt"), "--json"]) == 0
    value = json.loads(capsys.readouterr().out.splitlines()[-1])
    bpb = value["result"]["bpb"]
    assert set(value["result"]) == {"bpb"}
    assert 6 < bpb["value"] < 10  # about log2(265) bits for each byte, since nothing was learned
    assert value["run"] == "tiny"
    assert find_run("tiny") == run


def test_eval_says_that_a_run_has_no_validation_text(run, capsys):
    job = json.loads((run.folder / "base" / "config.json").read_text())
    write_json(run.folder / "base" / "config.json", {**job, "val": None})
    assert cli.main(["eval"]) == 2
    assert "this run has no validation text\n  fix: name one: --val PATH" in capsys.readouterr().err


def test_tune_needs_to_be_told_what(home, capsys):
    assert cli.main(["tune"]) == 2
    assert "intone tune --facts" in capsys.readouterr().err


def test_the_facts_of_the_machine_are_a_table_or_json(home, no_measuring, capsys):
    assert cli.main(["tune", "--facts"]) == 0
    assert capsys.readouterr().out.startswith("fact ")
    assert cli.main(["tune", "--facts", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["result"]) >= {"fingerprint", "facts", "environment"}
