"""Loading a run for an answer brings in what generation needs and nothing else: every module is waited for"""

import json
import shutil
import socket
import subprocess
import sys

import pytest
from tests.tiny_jobs import make_data, write_job

from intone.config import TrainJob
from intone.engine.choose import BY_RULE
from intone.evals import eight_bits
from intone.evals.eight_bits import Loss
from intone.hardware import known_facts
from intone.model.checkpoint import save_checkpoint, step_folder, weights_hash
from intone.model.gpt import GPT
from intone.model.native import build
from intone.paths import read_json
from intone.records import Choice
from intone.runs import find_stage
from intone.serve import engine_process
from intone.serve.engine_process import Service
from intone.serve.loading import measure_eight_bits, open_run, renew
from intone.tune.engine import engine_key
from intone.tune.trials import Trials

# sympy and PyTorch's compilers come with one careless operation on a tensor without memory: 1.8 s of processor time
SLOW = (
    "sympy", "torch._dynamo", "torch._inductor", "pandas", "pyarrow", "matplotlib", "tyro", "rich", "fastapi",
    "uvicorn", "transformers", "huggingface_hub", "jinja2", "triton", "llguidance", "intone.train",
    "intone.bench",
)  # fmt: skip
PROGRAM = """
import json, sys
import intone
with intone.load(sys.argv[1]) as model:
    model.chat("hi", max_tokens=2)
print(json.dumps(sorted(sys.modules)))
"""


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """The folder of a finished stage with random weights."""
    folder = tmp_path_factory.mktemp("run")
    job = make_data(folder)
    write_job(folder / "base", job)
    model = GPT(job.model)
    model.init_weights(0)
    save_checkpoint(
        folder / "base", 9, model=job.model, weights=dict(model.state_dict()), optimizer={}, state={},
        tokenizer_hash=job.tokenizer_hash,
    )  # fmt: skip
    return folder / "base"


def test_an_answer_needs_none_of_the_slow_modules(stage):
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(stage)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert [name for name in SLOW if name in loaded] == []
    assert "intone.engine.engine" in loaded


def test_eight_bits_are_used_where_they_were_shown_to_cost_little_and_the_reason_is_said(stage):
    if build.obstacle("generate") is not None:
        pytest.skip(str(build.obstacle("generate")))
    checkpoint = weights_hash(step_folder(stage, 9))
    loss = Loss(checkpoint, "fp32", eight_bits.products_here(), 0.0004, 0.0001, 0.0007, 1.2, 9000, "2026-01-01")
    for known, asked, stored, words in (
        (None, "auto", "fp32", "as computed in"), (loss, "auto", "int8", "8 bits cost this save +0.0004 bits per byte"),
        (loss, "bf16", "bf16", "as asked"), (None, "int8", "int8", "as asked"),
    ):  # fmt: skip
        (stage / eight_bits.FILE).unlink(missing_ok=True)
        if known is not None:
            eight_bits.keep(stage, known)
        with open_run(str(stage), device="cpu", weights=asked).engine as engine:
            value, reason = engine.settings["weights"]
            assert (value, words in reason) == (stored, True), reason


def test_how_much_is_computed_at_once_is_what_was_measured_here_unless_it_is_asked_for(stage, home):
    facts, config = known_facts(), TrainJob.from_json(read_json(stage / "config.json")).model
    key = engine_key(config, device="cpu", dtype="fp32", weights="auto")
    with open_run(str(stage), device="cpu").engine as engine:
        assert engine.settings["num_slots"] == (64, BY_RULE)
    for kind, value in (("engine_num_slots", 5), ("engine_prompt_tokens", 128)):
        Trials(facts).record(kind, key, Choice(value, "the fastest", "measured"))
    with open_run(str(stage), device="cpu", num_slots=3).engine as engine:
        assert engine.settings["num_slots"] == (3, "as asked")
        value, reason = engine.settings["prompt_tokens"]
        assert value == 128 and reason.startswith("the fastest (measured ")
    with open_run(str(stage), device="cpu", dtype="bf16").engine as engine:
        assert engine.settings["num_slots"][0] == 64, "that was measured of fp32"


def small_loss(folder, step):
    """As if it had been measured that 8 bits cost this save next to nothing."""
    checkpoint = weights_hash(step_folder(folder, step))
    eight_bits.keep(
        folder, Loss(checkpoint, "fp32", eight_bits.products_here(), 0.0, 0.0, 0.001, 1.2, 9000, "2026-01-01")
    )


def later_save(stage, folder, step=12):
    """A copy of the stage, its save known to lose little by 8 bits; later() adds another save."""
    shutil.copytree(stage, folder)
    small_loss(folder, 9)
    model = GPT(TrainJob.from_json(read_json(folder / "config.json")).model)
    model.init_weights(1)

    def later():
        job = TrainJob.from_json(read_json(folder / "config.json"))
        save_checkpoint(
            folder, step, model=job.model, weights=dict(model.state_dict()), optimizer={}, state={},
            tokenizer_hash=job.tokenizer_hash,
        )  # fmt: skip

    return later


@pytest.mark.skipif(build.obstacle("generate") is not None, reason=f"no kernels here: {build.obstacle('generate')}")
def test_eight_bits_that_cost_one_save_little_are_not_kept_for_the_next_before_it_was_measured(
    stage, tmp_path, monkeypatch
):
    later = later_save(stage, tmp_path / "base")
    opened = open_run(str(tmp_path / "base"), device="cpu")
    ours, theirs = socket.socketpair()
    with opened.engine as engine, ours, theirs:
        assert engine.settings["weights"][0] == "int8"
        later()
        assert renew(opened) == (12, True)
        assert engine.settings["weights"][0] == "fp32", "nobody knows what they cost this save"
        service, seen = Service(opened, ours), []
        service._likes_eight_bits = True
        monkeypatch.setattr(
            engine_process, "measure_eight_bits",
            lambda place: seen.append(engine.settings["weights"][0]) or small_loss(place.folder, 12),
        )  # fmt: skip
        service._update(1)
        service._measuring.shutdown()
        assert seen == ["fp32"], "it is measured once, while the engine answers without 8 bits"
        value, reason = engine.settings["weights"]
        assert value == "int8" and "8 bits cost this save +0.0000 bits per byte" in reason
        service._others.shutdown()


@pytest.mark.long
@pytest.mark.skipif(build.obstacle("generate") is not None, reason=f"no kernels here: {build.obstacle('generate')}")
def test_the_measurement_for_a_newer_save_is_kept_beside_it(stage, tmp_path, monkeypatch):
    monkeypatch.setenv("INTONE_HOME", str(tmp_path / "home"))
    later_save(stage, tmp_path / "base")()
    measure_eight_bits(find_stage(str(tmp_path / "base")))
    checkpoint = weights_hash(step_folder(tmp_path / "base", 12))
    loss = eight_bits.known_loss(tmp_path / "base", checkpoint=checkpoint, dtype="fp32")
    assert loss is not None and loss.num_bytes > 100
