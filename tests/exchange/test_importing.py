"""`intone import`: a foreign checkpoint becomes a run that works like any other, or nothing is left of the attempt."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.exchange.conftest import FACTS
from tests.exchange.reference import (
    CASES,
    NUM_GREEDY,
    PROMPT_LENGTH,
    nanochat_folder,
    read_fixture,
    sample_ids,
)
from torch.testing import assert_close

import intone
from intone import api, cli, ground, jobs, planning
from intone.engine.load import load_model
from intone.engine.requests import Request
from intone.exchange import importing
from intone.exchange.importing import choose_dtype
from intone.exchange.nanochat import find_save, read_nanochat
from intone.paths import write_json
from intone.records import read_choices, read_outcome, write_choices
from intone.resolving import Layer, identity, resolve
from intone.runs import create_run, find_run, list_runs
from intone.settings import TrainSettings
from intone.tune.trial import TrialResult

TIMES = [name for name in CASES if name != "transformers"]


def left_in(home: Path) -> list[str]:
    """What stands among the runs, half-made folders too."""
    return sorted(path.name for path in (home / "runs").iterdir()) if (home / "runs").exists() else []


# --- a run ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", TIMES)
def test_an_imported_checkpoint_is_a_run_with_the_logits_of_nanochat(command, known_machine, tmp_path, case):
    code, answer = command("import", nanochat_folder(tmp_path, case), "--name", "mine")
    assert (code, answer["outcome"], answer["run"]) == (0, "done", "mine")
    result, fixture = answer["result"], read_fixture(case)
    assert (result["stage"], result["step"], result["chat"]) == ("sft", 7, "intone chat --from mine")
    assert set(result["reasons"]) >= {"rope_base", "softcap", "qk_scale", "norm_eps", "window_pattern", "dtype"}
    with intone.load("mine") as model:
        ids = sample_ids(171, 270, CASES[case].seed)
        gpt = load_model(model.place.folder, dtype="fp32", device=torch.device("cpu"))
        with torch.no_grad():
            logits = gpt.logits(torch.tensor([ids]))[0, fixture.positions]
        assert_close(logits, fixture.logits, atol=2e-5, rtol=0)  # as in test_nanochat.py
        if fixture.greedy is not None:
            request = Request(ids[:PROMPT_LENGTH], max_tokens=NUM_GREEDY, temperature=0.0, tools=False)
            assert model.engine.generate([request])[0][0].ids == fixture.greedy


def test_the_run_folder_is_complete_and_needs_nothing_of_its_source(command, known_machine, tmp_path):
    _, answer = command("import", nanochat_folder(tmp_path / "nanochat", "modern"))
    shutil.rmtree(tmp_path / "nanochat")
    run = find_run("d3-1")
    assert (run.verb, run.state, run.stages, run.finished_stage()) == ("import", "done", ("sft",), "sft")
    stage = run.stage_folder("sft")
    assert sorted(path.name for path in run.folder.iterdir()) == ["run.json", "sft", "tokenizer"]
    assert sorted(path.name for path in stage.iterdir()) == [
        "checkpoints", "choices.json", "config.json", "outcome.json"
    ]  # fmt: skip
    assert read_outcome(stage).message.startswith("imported from ")
    choices = read_choices(stage)
    assert choices.settings["rope_base"].value == 100_000.0
    assert "it has smear and backout" in choices.settings["rope_base"].reason
    assert Path(api.read_job(stage).tokenizer) == run.folder / "tokenizer"
    assert not list(run.folder.rglob("*.pkl")) and not list(run.folder.rglob("*.pt"))
    assert answer["path"] == str(run.folder)
    assert command("runs", "d3-1")[1]["result"]["run"]["stages"] == {"sft": "done"}


def test_an_imported_checkpoint_chats(command, known_machine, tmp_path):
    command("import", nanochat_folder(tmp_path, "modern"), "--name", "mine")
    words = ["chat", "--from", "mine", "--prompt", "Who are you?", "--max-tokens", "9", "--temperature", "0"]
    code, answer = command(*words)
    assert (code, answer["run"]) == (0, "mine")
    assert answer["result"]["answer"]
    assert command(*words)[1]["result"]["answer"] == answer["result"]["answer"]


def test_the_command_as_people_type_it_says_what_it_took_and_why(known_machine, tmp_path, capsys):
    assert cli.main(["import", str(nanochat_folder(tmp_path, "classic"))]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 100 + len(str(tmp_path))
    text = " ".join(out.split())
    assert text.startswith("nanochat checkpoint of 2025-10-13 to 2026-01-10, step 7 182k parameters: depth 3, width 64")
    assert "rope_base 10000.0, rope_bf16 yes, qk_scale 1.0" in text
    assert "which wrote them: it has neither residual scalars nor value embeddings" in text
    assert "stage sft: it lies in chatsft_checkpoints" in text
    assert text.endswith("next: intone chat --from d3-1")


def test_names_are_given_in_turn_and_never_taken_twice(command, known_machine, tmp_path):
    folder = nanochat_folder(tmp_path, "classic")
    assert [command("import", folder)[1]["run"] for _ in range(2)] == ["d3-1", "d3-2"]
    assert [api.read_job(find_run(name).stage_folder("sft")).tokenizer[-15:] for name in ("d3-1", "d3-2")] == [
        "/d3-1/tokenizer", "/d3-2/tokenizer"
    ]  # fmt: skip
    assert command("import", folder, "--name", "mine")[0] == 0
    code, answer = command("import", folder, "--name", "mine")
    assert (code, answer["error"]["message"]) == (2, "run 'mine' exists already")
    assert command("import", folder, "--name", "a/b")[0] == 2
    assert left_in(known_machine) == ["d3-1", "d3-2", "mine"]


def test_a_name_that_is_taken_meanwhile_is_passed_over(command, known_machine, tmp_path, monkeypatch):
    taken = known_machine / "runs" / "d3-1"
    monkeypatch.setattr(importing, "free_names", lambda _: iter(["d3-1", "d3-2"]))
    taken.mkdir(parents=True)
    assert command("import", nanochat_folder(tmp_path, "classic"))[1]["run"] == "d3-2"
    assert api.read_job(find_run("d3-2").stage_folder("sft")).tokenizer.endswith("d3-2/tokenizer")
    assert list(taken.iterdir()) == []


# --- further training -----------------------------------------------------------------------------------------------


@pytest.fixture
def trials(known_machine, monkeypatch):
    """Planning without measurements."""

    def run(runner, dtype, *, compiled, num_steps, kernels="torch"):
        return TrialResult([2.0] * num_steps, 0.1, 0.1, None)

    monkeypatch.setattr(planning, "load_facts", lambda: FACTS)
    monkeypatch.setattr(ground.TrialRunner, "run", run)


def test_an_imported_checkpoint_is_trained_further_with_a_fresh_optimizer(command, trials, tmp_path):
    command("import", nanochat_folder(tmp_path, "modern"), "--name", "mine")
    rows = [
        {"messages": [{"role": "user", "content": f"Where is {n}?"}, {"role": "assistant", "content": f"At {n % 7}."}]}
        for n in range(90)
    ]
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = {
        "stage": "sft", "from_run": "mine", "data": (str(tmp_path / "talk.jsonl"),), "steps": 2, "dtype": "fp32",
        "threads": 1, "compile": "off", "keep": 1,
    }  # fmt: skip
    settings, origins = resolve(TrainSettings, [Layer("flag", "test", asked)])
    run = create_run(identity(settings), verb="train", stages=("sft",), name="further")
    plan = planning.plan_stage(settings, origins, run.folder, started_s=planning.time.monotonic())
    job, choices = plan.stages["sft"]
    assert (job.keep_optimizer, job.schedule.warmup_steps > 0) == (False, True)
    job = dataclasses.replace(job, rows_per_step=3, eval_tokens=192)
    write_choices(run.stage_folder("sft"), choices)
    write_json(run.stage_folder("sft") / "config.json", job.as_json())
    outcome = jobs.start(run.stage_folder("sft"), choices.environment).wait()
    assert (outcome.outcome, outcome.step) == ("done", 2), outcome.message


def test_a_run_like_an_imported_one_is_refused(command, known_machine, tmp_path):
    command("import", nanochat_folder(tmp_path, "modern"), "--name", "mine")
    code, answer = command("train", "sft", "--like", "mine")
    assert (code, answer["error"]["message"]) == (2, "run mine was imported: it has no plan of a training to repeat")
    assert left_in(known_machine) == ["mine"]


def test_an_imported_checkpoint_is_evaluated_on_a_text(command, known_machine, tmp_path):
    command("import", nanochat_folder(tmp_path, "classic"), "--name", "mine")
    code, answer = command("eval", "mine", "--tasks", "bpb")
    assert (code, answer["error"]["fix"]) == (2, "name one: --val PATH")
    (tmp_path / "text.txt").write_text("The ship sails past the island. " * 40)
    code, answer = command("eval", "mine", "--tasks", "bpb", "--val", tmp_path / "text.txt")
    assert code == 0 and answer["result"]["bpb"]["value"] > 5  # random weights: worse than guessing bytes


# --- the tokenizer --------------------------------------------------------------------------------------------------


def test_the_tokenizer_is_found_beside_the_weights_first_and_in_nanochats_home_last(command, tmp_path):
    folder = nanochat_folder(tmp_path / "base", "classic")
    usual = tmp_path / "base" / "tokenizer" / "tokenizer.pkl"

    def source():
        return command("import", folder)[1]["result"]["tokenizer"]["source"]

    assert source() == str(usual)
    (tmp_path / "nanochat-home" / "tokenizer").mkdir(parents=True)
    at_home = Path(shutil.copy(usual, tmp_path / "nanochat-home" / "tokenizer"))
    beside = Path(shutil.copy(usual, folder))
    assert source() == str(beside)
    beside.unlink()
    usual.unlink()
    assert source() == str(at_home)
    at_home.rename(tmp_path / "elsewhere.pkl")
    code, answer = command("import", folder)
    assert code == 2 and str(at_home.parent) in answer["error"]["message"]
    assert answer["error"]["fix"].endswith("--tokenizer FILE or FOLDER")
    assert command("import", folder, "--tokenizer", tmp_path / "elsewhere.pkl")[0] == 0


# --- nothing half-done ----------------------------------------------------------------------------------------------


def cut_weights(folder):
    path = folder / "model_000007.pt"
    path.write_bytes(path.read_bytes()[:-700])


def hostile_tokenizer(folder):
    (folder.parents[1] / "tokenizer" / "tokenizer.pkl").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")


def nan_weights(folder):
    weights = read_fixture("modern").weights(CASES["modern"].seed)
    weights["lm_head.weight"][3, 3] = float("nan")
    torch.save(weights, folder / "model_000007.pt")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_weights, "is cut off or damaged"),
        (hostile_tokenizer, "asks for os.system"),
        (nan_weights, "lm_head.weight in .* holds numbers that are not finite"),
        (lambda folder: (folder / "meta_000007.json").unlink(), "lacks its meta_"),
        (lambda folder: (folder / "meta_000007.json").write_text("{"), "cannot be read as JSON"),
    ],
)
def test_a_bad_checkpoint_leaves_nothing_behind(command, known_machine, tmp_path, damage, message):
    folder = nanochat_folder(tmp_path, "modern")
    damage(folder)
    code, answer = command("import", folder)
    assert (code, answer["outcome"]) == (2, "bad_input")
    assert re.search(message, answer["error"]["message"]) and answer["error"]["fix"]
    assert left_in(known_machine) == [] and not (tmp_path / "ran").exists() and not Path("ran").exists()


def test_a_file_that_may_not_be_read_is_named(command, known_machine, tmp_path, monkeypatch):
    def refused(*_args):
        raise PermissionError(13, "Permission denied", "/data/d20/model_000007.pt")

    monkeypatch.setattr(importing, "read_nanochat", refused)  # root reads everything
    code, answer = command("import", nanochat_folder(tmp_path, "modern"))
    assert (code, answer["error"]["message"]) == (2, "cannot read /data/d20/model_000007.pt: Permission denied")


@pytest.mark.parametrize("step", ["save_checkpoint", "write_choices", "save_run"])
def test_a_failure_at_any_step_of_writing_leaves_nothing_behind(command, known_machine, tmp_path, monkeypatch, step):
    def fails(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(importing, step, fails)
    code, answer = command("import", nanochat_folder(tmp_path, "modern"))
    assert (code, answer["outcome"]) == (2, "disk_full")
    assert left_in(known_machine) == []


KILLED = """
import os, signal, sys
from intone.exchange import importing
from intone.hardware import Facts
importing.load_facts = lambda: Facts(fingerprint="x", cores_logical=1, cores_physical=1)
importing.write_outcome = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
from intone import cli
cli.main(["import", sys.argv[1]])
"""


def test_what_a_killed_import_left_is_no_run_and_goes_with_the_next(command, known_machine, tmp_path):
    folder = nanochat_folder(tmp_path, "modern")
    environment = {**os.environ, "INTONE_HOME": str(known_machine)}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder)], env=environment, check=False, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL
    assert [name.startswith(".import-") for name in left_in(known_machine)] == [True]
    assert list_runs() == ([], [])
    assert command("import", folder)[1]["run"] == "d3-1"
    assert left_in(known_machine) == ["d3-1"]


# --- what PATH is ---------------------------------------------------------------------------------------------------


def test_paths_that_hold_no_checkpoint_say_what_to_name(command, known_machine, tmp_path):
    folder = nanochat_folder(tmp_path / "base", "classic")
    (tmp_path / "empty").mkdir()
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')

    def error(*words):
        code, answer = command("import", *words)
        assert code == 2
        return tuple(answer["error"][key].replace(str(tmp_path), "T") for key in ("message", "fix"))

    assert error(tmp_path / "base") == (
        "T/base holds checkpoints in its folders", "name one of: T/base/chatsft_checkpoints/d3"
    )  # fmt: skip
    assert error(tmp_path / "empty")[0] == "T/empty holds no checkpoint that intone knows"
    assert error(tmp_path / "llama")[0] == "T/llama holds the architecture 'LlamaForCausalLM'"
    assert error(tmp_path / "nothing")[1] == "check the spelling"
    assert error("karpathy/nanochat-d32")[1].endswith("hf download karpathy/nanochat-d32 --local-dir nanochat-d32")
    assert error(folder, "--step", "9") == ("T/base/chatsft_checkpoints/d3 has no step 9", "steps that are there: 7")
    assert error(tmp_path / "llama", "--step", "9")[0].startswith("--step is for nanochat's folders")
    command("import", folder, "--name", "mine")
    assert error(find_run("mine").folder)[1].startswith("intone chat --from ")
    assert left_in(known_machine) == ["mine"]


# --- what it computes in --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trained_in", "rates", "expected", "origin"),
    [
        ("bf16", (50e9, 200e9), "bf16", "measured"),
        ("bf16", (50e9, 20e9), "fp32", "measured"),
        ("bf16", (50e9, None), "fp32", "default"),
        ("fp32", (50e9, 200e9), "fp32", "from"),
        ("fp16", (50e9, 200e9), "fp32", "from"),
    ],
)
def test_bf16_is_taken_where_it_was_trained_in_and_is_faster_here(tmp_path, trained_in, rates, expected, origin):
    model = read_nanochat(find_save(nanochat_folder(tmp_path, "classic"), None))
    model = dataclasses.replace(model, trained_in=trained_in, trained_reason="said so")
    facts = dataclasses.replace(FACTS, fp32_flops_per_s=rates[0], bf16_flops_per_s=rates[1])
    choice = choose_dtype(model, facts)
    assert (choice.value, choice.origin) == (expected, origin)
    assert choice.reason.startswith(f"trained in {trained_in} (said so)")
