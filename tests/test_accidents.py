"""Accidents in the middle of a run, through the real command; and that the table of accidents names real tests."""

import ast
import functools
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from intone import jobs
from intone.errors import UserError
from intone.model.checkpoint import list_checkpoints, newest_checkpoint
from intone.paths import read_json, write_json
from intone.prepare import ensure_mix, ensure_tokenizer, ensure_val, find_source
from intone.records import Outcome, read_log, read_outcome, write_outcome
from intone.resolving import Layer, identity, resolve
from intone.runs import create_run
from intone.settings import TrainSettings
from intone.train.loop import Trainer
from intone.worker import StopFlag, run_guarded
from tests.conftest import REPOSITORY
from tests.tiny_jobs import CONFIG, ENVIRONMENT, losses, wait_for, worker_of, write_job

STEPS = 250  # long enough to come between, short enough for a test: two seconds of training


@pytest.fixture
def run(home, tiny_job, tmp_path):
    """(words, stage folder, training set) of a planned run on text of ours."""
    ships = [f"Ship {n} sails past island {n * 7 % 31} to the north. " * 5 for n in range(120)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": ship}) + "\n" for ship in ships))
    source = find_source("documents", [str(tmp_path / "text.jsonl")], [])
    folder, tokenizer = ensure_tokenizer([source], CONFIG.vocab_size)
    assert tokenizer.vocab_size == CONFIG.vocab_size
    mix = ensure_mix(source, folder, tokenizer, tokens=1000, name="base")
    val = ensure_val(source, folder, tokenizer, name="base")
    job = replace(
        tiny_job, data=mix.folders, val=str(val.folder), tokenizer=str(folder), tokenizer_hash=tokenizer.hash,
        steps=STEPS, save_every_s=0.3,
    )  # fmt: skip
    settings, _ = resolve(TrainSettings, [Layer("flag", "test", {"stage": "base", "depth": 1})])
    made = create_run(identity(settings), verb="train", stages=("base",), name="sea")
    write_json(made.folder / "forecast.json", {"format": 1, "minutes": 1.0})
    stage = write_job(made.stage_folder("base"), job)
    return "train base --depth 1 --name sea --json", stage, mix.sets[0].folder


@pytest.mark.long
def test_a_shard_that_is_deleted_in_the_middle_does_not_end_the_run(run):
    _, stage, token_set = run
    job = jobs.start(stage, ENVIRONMENT)
    wait_for(lambda: len(losses(stage)) > 3, "the fourth step")
    for path in token_set.glob("shard_*"):
        path.unlink()
    assert job.wait().outcome == "done"
    assert [step for step, _ in losses(stage)] == list(range(1, STEPS + 1))


@pytest.mark.long
def test_a_shard_that_is_cut_in_the_middle_is_made_again_and_the_run_goes_on(run, home):
    words, stage, token_set = run
    path = token_set / "shard_00000.ids"
    content = path.read_bytes()
    environment = {**os.environ, "INTONE_HOME": str(home), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "intone", *words.split()]
    command = subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: list((stage / "checkpoints").glob("step_*")), "a save")
    os.truncate(path, 0)
    out, err = command.communicate()
    assert command.returncode == 0, err
    assert json.loads(out.splitlines()[-1])["outcome"] == "done"
    assert f"{path} has 0 bytes where the manifest says {len(content):,}: it is made again from its text" in err
    assert path.read_bytes() == content
    assert [step for step, _ in losses(stage)] == list(range(1, STEPS + 1))


# --- a job folder -------------------------------------------------------------------------------------------------


@pytest.fixture
def torch_as_it_was():
    """A trainer sets threads and determinism for its whole process; afterwards they are as before."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def after(steps):
    """A stop signal that arrives in this step."""
    left = [steps]

    def should_stop():
        left[0] -= 1
        return left[0] <= 0

    return should_stop


def without(*path):
    """Takes one key out of a JSON object."""

    def change(content):
        value = json.loads(content)
        inner = value
        for key in path[:-1]:
            inner = inner[key]
        del inner[path[-1]]
        return json.dumps(value)

    return change


def with_value(*path, value):
    """Puts another value at one place of a JSON object."""

    def change(content):
        whole = json.loads(content)
        inner = whole
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        return json.dumps(whole)

    return change


DAMAGE = {
    "config cut": ("config.json", lambda text: text[:-9], "config.json is not valid JSON"),
    "config empty": ("config.json", lambda text: "", "config.json is not valid JSON"),
    "config a list": ("config.json", lambda text: "[1, 2]", "config.json is no object of names and values"),
    "config without steps": ("config.json", without("steps"), "job setting 'steps' is missing"),
    "config without width": ("config.json", without("model", "width"), "model setting 'width' is missing"),
    "config with words for steps": ("config.json", with_value("steps", value="9"), "'steps' is '9', it must be"),
    "config with words for widths": ("config.json", with_value("model", "width", value=[1]), "'width' is [1], it must"),
    "config without a model": ("config.json", with_value("model", value=3), "model settings are 3, they must be"),
    "config of another data": ("config.json", with_value("data", value="here"), "'data' is 'here', it must be a list"),
    "choices cut": ("choices.json", lambda text: text[:-9], "choices.json is not valid JSON"),
    "choices gone": ("choices.json", None, "choices.json does not exist"),
    "choices a number": ("choices.json", lambda text: "3", "choices.json has format None"),
    "choices of later": ("choices.json", with_value("format", value=2), "choices.json has format 2"),
    "choices without a plan": ("choices.json", with_value("segments", value=[]), "segments begin at steps []"),
    "choices with half a plan": ("choices.json", without("segments", 0, "dtype"), "segment: key 'dtype' is missing"),
    "choices with words": ("choices.json", with_value("segments", 0, "from_step", value="x"), "must be a whole number"),
    "choices with a number": ("choices.json", with_value("segments", value=5), "'segments' is 5, it must be a list"),
    "choices of settings": ("choices.json", with_value("settings", "device", value=5), "device is 5, it must be an"),
    "choices of fall-backs": ("choices.json", with_value("fallbacks", "device_batch", value=5), "must be a list"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_job_or_plan_is_named_nothing_is_touched_and_repaired_it_goes_on(
    tiny_job, tmp_path, torch_as_it_was, name
):
    """Two steps are there already."""
    file, damage, message = DAMAGE[name]
    folder = tmp_path / "job"
    shutil.copytree(begun_job(tiny_job), folder)
    good = (folder / file).read_text()
    if damage is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(damage(good))
    before = contents(folder, besides=file)
    outcome = run_guarded(folder, lambda: False)
    assert (outcome.outcome, outcome.step) == ("bad_input", 2)
    assert message in outcome.message
    assert contents(folder, besides=file) == before
    (folder / file).write_text(good)
    if name in ("config cut", "choices gone"):  # that it goes on need not be shown nineteen times
        assert run_guarded(folder, lambda: False) == Outcome("done", 9)
        assert [step for step, _ in losses(folder)] == list(range(1, 10))


@functools.cache
def begun_job(job):
    """The folder of a job that was stopped after two steps."""
    folder = write_job(Path(job.tokenizer).parent / "begun", job, val=None)
    assert Trainer(folder, after(2)).run().outcome == "stopped"
    return folder


def contents(folder, *, besides):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != besides}


KEYS = {
    "evaluate": {"from": "x", "tokenizer": "x", "dtype": "fp32", "tasks": [], "context": 8, "val_tokens": 8},
    "generate": {"from": "x", "tokenizer": "x", "prompts": []},
}


@pytest.mark.parametrize("kind", KEYS)
def test_other_jobs_name_a_key_that_is_missing_or_that_nobody_reads(tmp_path, kind):
    for key in KEYS[kind]:
        write_json(tmp_path / "config.json", {"job": kind, **{k: v for k, v in KEYS[kind].items() if k != key}})
        outcome = run_guarded(tmp_path, StopFlag())
        assert (outcome.outcome, outcome.message) == ("bad_input", f"{kind} job setting {key!r} is missing")
    write_json(tmp_path / "config.json", {"job": kind, **KEYS[kind], "thread": 3})
    outcome = run_guarded(tmp_path, StopFlag())
    assert (outcome.message, outcome.fix) == (f"unknown {kind} job setting 'thread'", "did you mean 'threads'?")


@pytest.mark.parametrize(
    ("kind", "key", "value", "words"),
    [
        ("evaluate", "context", "8", "a whole number"),
        ("evaluate", "threads", "2", "a whole number or null"),
        ("evaluate", "tasks", ["bpd"], "a list, of each one of bpb, starter"),
        ("evaluate", "weights", "int4", "one of auto, fp32, bf16, int8"),
        ("generate", "from", None, "a text"),
        ("generate", "prompts", "Once", "a list"),
        ("generate", "sampling", [1], "an object"),
    ],
)
def test_other_jobs_name_a_value_of_another_kind(tmp_path, kind, key, value, words):
    write_json(tmp_path / "config.json", {"job": kind, **KEYS[kind], key: value})
    outcome = run_guarded(tmp_path, StopFlag())
    message = f"{kind} job setting {key!r} is {value!r}, it must be {words}"
    assert (outcome.outcome, outcome.message) == ("bad_input", message)


def test_bits_per_byte_without_a_text_are_refused(tmp_path):
    write_json(tmp_path / "config.json", {"job": "evaluate", **KEYS["evaluate"], "tasks": ["bpb"]})
    outcome = run_guarded(tmp_path, StopFlag())
    message = "evaluate job setting 'val' is missing, which task bpb needs"
    assert (outcome.outcome, outcome.message) == ("bad_input", message)


def test_an_unknown_way_to_sample_is_named(tmp_path):
    write_json(tmp_path / "config.json", {"job": "generate", **KEYS["generate"], "sampling": {"temprature": 1}})
    outcome = run_guarded(tmp_path, StopFlag())
    assert (outcome.message, outcome.fix) == ("unknown sampling setting 'temprature'", "did you mean 'temperature'?")


def test_a_disk_that_becomes_read_only_ends_the_job_and_writable_it_goes_on(tiny_job, tmp_path, torch_as_it_was):
    if os.geteuid() != 0:
        pytest.skip("making a disk read-only needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a disk could not be mounted: {mounted.stderr.decode().strip()}")
    try:
        folder = write_job(disk / "job", tiny_job, val=None)
        Trainer(folder, after(2)).run()
        write_outcome(folder, Outcome("stopped", 2))
        before = contents(folder, besides="outcome.json")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(UserError, match=r"cannot write .*job: Read-only file system") as caught:
            jobs.start(folder, ENVIRONMENT)
        assert caught.value.fix == "choose a writable folder, for example INTONE_HOME=~/intone"
        by_hand = run_guarded(folder, lambda: False)
        assert (by_hand.outcome, by_hand.step) == ("bad_input", 2)
        assert by_hand.message.endswith("Read-only file system")
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        assert contents(folder, besides="outcome.json") == before
        assert run_guarded(folder, lambda: False) == Outcome("done", 9)
        assert [step for step, _ in losses(folder)] == list(range(1, 10))
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_clock_that_jumps_changes_no_duration_and_no_save(tiny_job, tmp_path, torch_as_it_was, monkeypatch):
    days = itertools.cycle([0.0, -9e5, 9e6, -5e8])
    true_time, true_ns = time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: true_time() + next(days))
    monkeypatch.setattr(time, "time_ns", lambda: true_ns() + int(1e9 * next(days)))
    folder = write_job(tmp_path / "job", tiny_job, val=None, save_every_s=1e4)
    begin_s = time.monotonic()
    assert run_guarded(folder, lambda: False) == Outcome("done", 9)
    took_s = time.monotonic() - begin_s
    rows = read_log(folder / "log.jsonl", "step")
    assert all(0 < row["step_s"] < took_s and 0 <= row["data_s"] <= row["step_s"] for row in rows)
    assert [path.name for path in list_checkpoints(folder)] == ["step_000009"]  # none was due
    assert 0 < newest_checkpoint(folder)[0].state["elapsed_s"] < took_s


def test_the_log_is_on_the_disk_before_the_save_that_needs_it(tiny_job, tmp_path, torch_as_it_was, monkeypatch):
    """After a power cut there is no save without the rows that lead to it."""
    happened = []
    true_sync, true_replace = os.fsync, os.replace

    def sync(handle):
        happened.append(os.readlink(f"/proc/self/fd/{handle}"))
        true_sync(handle)

    def move(source, target):
        happened.append(str(target))
        true_replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", move)
    folder = write_job(tmp_path / "job", tiny_job, val=None, steps=2, save_every_s=1e4)
    assert run_guarded(folder, lambda: False) == Outcome("done", 2)
    log, save = str(folder / "log.jsonl"), str(folder / "checkpoints" / "step_000002")
    assert log in happened[: happened.index(save)]


def test_ctrl_c_twice_stops_at_once_and_keeps_the_save(run, home):
    words, stage, _ = run
    environment = {**os.environ, "INTONE_HOME": str(home), "OMP_NUM_THREADS": "1"}
    config = read_json(stage / "config.json")
    write_json(stage / "config.json", {**config, "steps": 100_000})
    command = subprocess.Popen(
        [sys.executable, "-m", "intone", *words.split()], env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    wait_for(lambda: list_checkpoints(stage), "a save")
    worker = wait_for(lambda: worker_of(command.pid), "the worker")
    worker.suspend()  # it cannot end its step: a polite stop would wait for it
    os.killpg(command.pid, signal.SIGINT)
    wait_for(lambda: pending(worker, signal.SIGTERM), "the command to hand the stop on")
    os.killpg(command.pid, signal.SIGINT)
    out, err = command.communicate()
    assert command.returncode == 130, err
    assert json.loads(out.splitlines()[-1])["outcome"] == "stopped"
    assert not worker.is_running()
    assert read_outcome(stage).outcome == "stopped"
    save, problems = newest_checkpoint(stage)
    assert save.step >= 1 and problems == []


def pending(process, number):
    """Whether a signal waits for a process that does not run."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith(("SigPnd:", "ShdPnd:")) and int(line.split()[1], 16) >> (number - 1) & 1:
            return True
    return False


def test_every_line_of_the_table_of_accidents_names_a_test_that_exists():
    lines = (REPOSITORY / "docs" / "accidents.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| ") and not line.startswith("| accident ")]
    assert len(rows) > 30
    for row in rows:
        found = re.search(r"`(tests/[\w/]+\.py)::(\w+)` \|$", row)
        assert found, row
        tree = ast.parse((REPOSITORY / found[1]).read_text())
        assert found[2] in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, row
