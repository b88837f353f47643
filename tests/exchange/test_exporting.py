"""`intone export`: other programs get the same function, and a folder is replaced whole or not at all."""

import dataclasses
import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.exchange.reference import CASES, encoding, nanochat_folder, read_fixture, sample_ids, weights_for
from torch.testing import assert_close

import intone
from intone.config import OptimConfig, ScheduleConfig, TrainJob, model_config
from intone.data.chat import parse_messages
from intone.data.tokenizer import tokenizer_from_ranks
from intone.engine.load import load_model
from intone.engine.requests import Request
from intone.exchange import exporting
from intone.model.checkpoint import load_weights, save_checkpoint
from intone.model.gpt import GPT
from intone.paths import write_json
from intone.records import Choices, Outcome, Segment, write_choices, write_outcome
from intone.resolving import identity
from intone.runs import create_run, find_stage
from intone.settings import RunSettings

CONTEXT = 96
CHAT = [{"role": "user", "content": "What is the thing in the tin?"}]


@pytest.fixture
def make_run(known_machine):
    """Writes a finished run of one stage whose every weight is random -> its name."""

    def make(preset, name, **changes):
        tokenizer = tokenizer_from_ranks(encoding()._mergeable_ranks, encoding()._pat_str)
        tokenizer.save(known_machine / "tokenizers" / "little")
        config = model_config(preset, depth=2, vocab_size=270, context=CONTEXT, head_width=32)
        config = dataclasses.replace(config, **changes)
        # the names with "lambda" in them make scalars that are neither 0 nor 1
        shapes = {key: tuple(value.shape) for key, value in GPT(config).state_dict().items()}
        known = {"residual_scale": "resid_lambdas", "embedding_scale": "x0_lambdas", "head.weight": "lm_head.weight",
                 "smear_scale": "smear_lambda", "backout_scale": "backout_lambda"}  # fmt: skip
        weights = weights_for({known.get(key, key): shape for key, shape in shapes.items()}, seed=9)
        weights = {key: weights[known.get(key, key)] for key in shapes}
        run = create_run(identity(RunSettings(depth=2)), verb="run", stages=("sft",), name=name)
        stage = run.stage_folder("sft")
        job = TrainJob(
            stage="sft", model=config, tokenizer=str(known_machine / "tokenizers" / "little"),
            tokenizer_hash=tokenizer.hash, data=(), val=None, context=CONTEXT, steps=4, rows_per_step=1,
            optim=OptimConfig(), schedule=ScheduleConfig(), seed=0,
        )  # fmt: skip
        segment = Segment(0, device_batch=1, compiled=False, dtype="fp32", attention="sdpa", reason="test", threads=1)
        write_json(stage / "config.json", job.as_json())
        write_choices(stage, Choices({}, (segment,)))
        save_checkpoint(stage, 4, model=config, weights=weights, optimizer={}, state={}, tokenizer_hash=tokenizer.hash)
        write_outcome(stage, Outcome("done", 4))
        return name

    return make


# --- transformers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_kv_heads", [1, 4])
def test_transformers_loads_a_classic_export_and_goes_on_with_the_same_tokens(
    make_run, command, tmp_path, num_kv_heads
):
    transformers = pytest.importorskip("transformers", reason="transformers is the reader of this format")
    make_run("classic", "old", num_kv_heads=num_kv_heads)
    code, answer = command("export", "old", "--to", tmp_path / "out")
    assert (code, answer["result"]["format"]) == (0, "transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert type(model).__name__ == "NanoChatForCausalLM" and model.dtype == torch.float32
    inputs = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    theirs = model.generate(**inputs, max_new_tokens=50, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
    with intone.load("old") as ours:
        request = Request(parse_messages(CHAT), max_tokens=50, temperature=0.0, tools=False)
        mine = ours.engine.generate([request])[0][0]
    assert mine.ids == theirs
    assert len(set(mine.ids)) > 10 and len(mine.ids) == 50  # a text worth comparing
    gpt = load_model(find_stage("old").folder, dtype="fp32", device=torch.device("cpu"))
    ids = torch.tensor([sample_ids(77, 270, 0)])
    with torch.no_grad():
        # rotary angles in float32 there and in float64 here
        assert_close(model(ids).logits, gpt.logits(ids), atol=2e-5, rtol=0)


def test_an_answer_ends_in_transformers_where_it_ends_in_ours(make_run, command, tmp_path):
    make_run("classic", "old")
    command("export", "old", "--to", tmp_path / "out")
    ends = json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"]
    with intone.load("old") as ours:
        assert sorted(ends) == sorted(ours.engine._specials.ends)


def test_a_model_of_2025_from_nanochat_goes_on_alike_in_transformers(known_machine, command, tmp_path):
    """Their rounded rotary tables are told: float32 logits differ in the third decimal, and so may a close choice."""
    transformers = pytest.importorskip("transformers", reason="transformers is the reader of this format")
    command("import", nanochat_folder(tmp_path, "classic"), "--name", "mine")
    _, answer = command("export", "mine", "--to", tmp_path / "out")
    assert any("third decimal" in note for note in answer["result"]["notes"])
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    fixture = read_fixture("classic")
    with torch.no_grad():
        logits = model(torch.tensor([sample_ids(171, 270, CASES["classic"].seed)])).logits[0, fixture.positions]
    assert 1e-4 < (logits - fixture.logits).abs().max() < 0.03


@pytest.mark.parametrize("form", ["transformers", "auto"])
def test_a_modern_model_has_no_architecture_in_transformers(make_run, command, tmp_path, form):
    make_run("modern", "new")
    code, answer = command("export", "new", "--to", tmp_path / "out", "--format", form)
    if form == "auto":
        assert (code, answer["result"]["format"]) == (0, "safetensors")
        assert any("transformers has no architecture" in note for note in answer["result"]["notes"])
        return
    assert code == 2
    assert answer["error"]["message"] == "transformers has no architecture for this model: qk_scale is 1.2"
    assert "--format safetensors" in answer["error"]["fix"]
    assert not (tmp_path / "out").exists()


# --- there and back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["modern", "classic"])
def test_as_safetensors_weights_and_settings_come_back_bit_for_bit(make_run, command, tmp_path, preset):
    make_run(preset, "first")
    command("export", "first", "--to", tmp_path / "out", "--format", "safetensors")
    _, answer = command("import", tmp_path / "out", "--name", "second")
    assert (answer["result"]["stage"], answer["result"]["step"]) == ("sft", 4)
    (config, weights, saved), (again, back, copy) = (load_weights(find_stage(n).folder) for n in ("first", "second"))
    assert again == config and saved.tokenizer_hash == copy.tokenizer_hash
    assert list(back) and all(torch.equal(back[name], value) for name, value in weights.items())


def test_as_transformers_the_rows_in_use_come_back_bit_for_bit(make_run, command, tmp_path):
    make_run("classic", "first")
    command("export", "first", "--to", tmp_path / "out")
    command("import", tmp_path / "out", "--name", "second")
    (config, weights, _), (again, back, _) = (load_weights(find_stage(n).folder) for n in ("first", "second"))
    assert dataclasses.replace(again, vocab_multiple=64) == config
    for name, value in weights.items():
        assert torch.equal(back[name], value[:270] if value.shape[0] == 320 else value), name


def test_what_transformers_saves_again_is_imported_too(make_run, command, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is the writer here")
    make_run("classic", "first")
    command("export", "first", "--to", tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="300KB")
    transformers.AutoTokenizer.from_pretrained(tmp_path / "out").save_pretrained(tmp_path / "theirs")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    code, answer = command("import", tmp_path / "theirs", "--name", "second")
    assert (code, answer["result"]["stage"]) == (0, "sft"), answer
    (_, weights, saved), (_, back, copy) = (load_weights(find_stage(n).folder) for n in ("first", "second"))
    assert saved.tokenizer_hash == copy.tokenizer_hash
    assert torch.equal(back["blocks.1.mlp.up.weight"], weights["blocks.1.mlp.up.weight"].bfloat16().float())


def test_tables_padded_by_transformers_users_are_cut_to_the_tokenizer(make_run, command, tmp_path):
    make_run("classic", "first")
    command("export", "first", "--to", tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    for rows, expected in ((320, 0), (321, 2), (269, 2)):
        weights = load_file(tmp_path / "out" / "model.safetensors")
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            whole = torch.zeros(max(rows, 270), 128)
            whole[:270] = weights[name][:270]
            weights[name] = whole[:rows].clone()
        folder = tmp_path / f"padded-{rows}"
        folder.mkdir()
        save_file(weights, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({**settings, "vocab_size": rows}))
        code, answer = command("import", folder, "--tokenizer", tmp_path / "out", "--name", f"padded-{rows}")
        assert code == expected
        if code:
            assert "has 270 entries, the model in" in answer["error"]["message"]
            continue
        assert (answer["result"]["model"]["vocab_size"], answer["result"]["model"]["vocab_multiple"]) == (270, 64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "has format 2, this version reads 1"),
        ({"stage": "pre"}, "is not as `intone export` writes it"),
        ({"extra": 1}, "is not as `intone export` writes it"),
        ({"step": -1}, "step is not a whole number from 0 but '-1'"),
        ({"model": {}}, "model setting 'vocab_size' is missing"),
        ({"program": "other"}, "holds the architecture 'None'"),
    ],
)
def test_settings_of_an_export_that_were_changed_are_refused(make_run, command, tmp_path, changes, message):
    make_run("modern", "first")
    command("export", "first", "--to", tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    code, answer = command("import", tmp_path / "out")
    assert code == 2 and re.search(message, answer["error"]["message"])


# --- the folder -----------------------------------------------------------------------------------------------------


def files_in(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_is_replaced_only_by_force_and_only_where_it_is_an_export(make_run, command, tmp_path):
    make_run("modern", "new")
    make_run("classic", "old")
    out = tmp_path / "deep" / "out"
    assert command("export", "new", "--to", out)[0] == 0
    before = files_in(out)
    code, answer = command("export", "old", "--to", out)
    assert (code, answer["error"]["fix"]) == (2, "name another folder, or add --force")
    assert files_in(out) == before
    assert command("export", "old", "--to", out, "--force")[0] == 0
    assert "generation_config.json" in files_in(out)
    assert command("export", "new", "--to", out, "--force")[0] == 0
    assert files_in(out) == before
    (out / "notes.txt").write_text("mine")
    code, answer = command("export", "new", "--to", out, "--force")
    assert code == 2 and "holds other files: notes.txt" in answer["error"]["message"]
    assert files_in(out) == {**before, "notes.txt": b"mine"}
    code, answer = command("export", "new", "--to", out / "notes.txt")
    assert (code, answer["error"]["message"]) == (2, f"{out / 'notes.txt'} is a file")
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("forced", [False, True])
def test_a_failure_leaves_the_folder_as_it_was(make_run, command, tmp_path, monkeypatch, forced):
    make_run("modern", "new")
    out = tmp_path / "out"
    if forced:
        command("export", "new", "--to", out)
    before = files_in(out) if forced else None

    def fails(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "_save", fails)
    code, answer = command("export", "new", "--to", out, *(["--force"] if forced else []))
    assert (code, answer["outcome"]) == (2, "disk_full")
    assert (files_in(out) if out.exists() else None) == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".out")] == []


def test_weights_can_be_read_by_whoever_can_read_the_settings(make_run, command, tmp_path):
    make_run("classic", "old")
    command("export", "old", "--to", tmp_path / "out")
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    assert len(set(modes.values())) == 1, modes
