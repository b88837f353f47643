"""Accidents in the middle of a run, through the real command; and that the table of accidents names real tests."""

import ast
import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from intone import jobs
from intone.paths import write_json
from intone.prepare import ensure_mix, ensure_tokenizer, ensure_val, find_source
from intone.runs import create_run
from intone.settings import Layer, TrainSettings, identity, resolve
from tests.conftest import REPOSITORY
from tests.tiny_jobs import CONFIG, ENVIRONMENT, losses, wait_for, write_job

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


def test_a_shard_that_is_deleted_in_the_middle_does_not_end_the_run(run):
    _, stage, token_set = run
    job = jobs.start(stage, ENVIRONMENT)
    wait_for(lambda: len(losses(stage)) > 3, "the fourth step")
    for path in token_set.glob("shard_*"):
        path.unlink()
    assert job.wait().outcome == "done"
    assert [step for step, _ in losses(stage)] == list(range(1, STEPS + 1))


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


def test_every_line_of_the_table_of_accidents_names_a_test_that_exists():
    lines = (REPOSITORY / "docs" / "accidents.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| ") and not line.startswith("| accident ")]
    assert len(rows) > 30
    for row in rows:
        found = re.search(r"`(tests/[\w/]+\.py)::(\w+)` \|$", row)
        assert found, row
        tree = ast.parse((REPOSITORY / found[1]).read_text())
        assert found[2] in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, row
