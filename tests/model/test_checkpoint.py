"""Saves: complete or absent, whatever ends the process; what is damaged is noticed, named and gone round."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from intone.errors import Damaged, DiskFull, UserError
from intone.model import checkpoint as module
from intone.model.checkpoint import (
    discard_after,
    list_checkpoints,
    load_weights,
    newest_checkpoint,
    prune,
    read_checkpoint,
    remove_leftovers,
    save_checkpoint,
    step_folder,
)

FILES = ("manifest.json", "model.safetensors", "optimizer.rank0.safetensors", "state.json")


@pytest.fixture
def save(random_model):
    """Saves a tiny job at a step; the number of the step is in its weights, moments and state."""
    config = random_model().config

    def saved(folder, step, *, size=11):
        tensors = {"w": torch.full((size, 3), float(step)), "b": torch.arange(5) + step}
        return save_checkpoint(
            folder, step, model=config, weights=tensors, optimizer={"m": torch.full((7,), step, dtype=torch.float64)},
            state={"step": step, "tokens": 77 * step}, tokenizer_hash="abc",
        )  # fmt: skip

    saved.config = config
    return saved


def steps_in(folder):
    return [module.saved_step(path) for path in list_checkpoints(folder)]


def flip_last_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_save_reads_back_as_it_was(tmp_path, save):
    folder = save(tmp_path, 30)
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    read = read_checkpoint(folder)
    assert (read.step, read.model, read.tokenizer_hash) == (30, save.config, "abc")
    assert read.state == {"step": 30, "tokens": 2310}
    assert torch.equal(read.weights["w"], torch.full((11, 3), 30.0))
    assert torch.equal(read.weights["b"], torch.arange(5) + 30)
    assert read.optimizer["m"].dtype == torch.float64
    assert read_checkpoint(folder, optimizer=False).optimizer == {}


def test_a_save_without_moments_says_so(tmp_path, save):
    folder = save(tmp_path, 30)
    assert module.has_optimizer(folder)
    module.save_checkpoint(
        tmp_path, 31, model=save.config, weights={"w": torch.zeros(3)}, optimizer={}, state={}, tokenizer_hash="abc"
    )
    assert not module.has_optimizer(folder.with_name("step_000031"))


def test_the_manifest_describes_the_save(tmp_path, save):
    manifest = json.loads((save(tmp_path, 30) / "manifest.json").read_text())
    assert (manifest["format"], manifest["step"], manifest["torch"]) == (1, 30, torch.__version__)
    assert set(manifest["files"]) == set(FILES) - {"manifest.json"}


def test_a_second_save_of_a_step_replaces_the_first(tmp_path, save):
    flip_last_byte(save(tmp_path, 30) / "model.safetensors")
    save(tmp_path, 30, size=4)
    assert newest_checkpoint(tmp_path)[0].weights["w"].shape == (4, 3)


def test_saves_are_listed_by_step_and_other_folders_are_left_out(tmp_path, save):
    for step in (1_000_000, 20, 3):
        save(tmp_path, step)
    shutil.copytree(step_folder(tmp_path, 20), tmp_path / "checkpoints" / "step_000020.bak")
    (tmp_path / "checkpoints" / "step_000050").mkdir()
    assert steps_in(tmp_path) == [3, 20, 1_000_000]
    assert list_checkpoints(tmp_path / "nothing") == []


# --- a process that ends while it saves -----------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from intone.config import model_config
from intone.model import checkpoint

def save(folder, step):
    checkpoint.save_checkpoint(
        folder, step, model=model_config("classic", depth=1, vocab_size=61, context=45),
        weights={"w": torch.zeros(3)}, optimizer={"m": torch.zeros(3)}, state={"step": step}, tokenizer_hash="abc",
    )

def die_in(owner, call, after):
    real = getattr(owner, call)
    passes = iter(range(after))
    setattr(owner, call, lambda *args: real(*args) if next(passes, None) is not None else os.kill(os.getpid(), 9))

for name, owner, call, after in (
    ("weights", checkpoint, "_save_tensors", 1),
    ("manifest", checkpoint, "write_json", 1),
    ("rename", os, "replace", 2),
    ("sync", checkpoint, "sync_folder", 0),
):
    folder = Path(sys.argv[1]) / name
    save(folder, 1)
    child = os.fork()
    if child == 0:
        die_in(owner, call, after)
        save(folder, 2)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
"""


@pytest.fixture(scope="module")
def killed_saves(tmp_path_factory):
    """A folder of jobs whose process was killed while it saved step 2, each in another place; step 1 was saved."""
    folder = tmp_path_factory.mktemp("killed")
    subprocess.run([sys.executable, "-c", KILLED, str(folder)], check=True)
    return folder


@pytest.mark.parametrize("place", ["weights", "manifest", "rename", "sync"])
def test_a_kill_while_saving_leaves_a_complete_save_or_none(killed_saves, save, place):
    folder = killed_saves / place
    complete = [1, 2] if place == "sync" else [1]  # after the rename it counts
    assert steps_in(folder) == complete
    found, problems = newest_checkpoint(folder)
    assert (found.step, problems) == (complete[-1], [])
    assert len(list((folder / "checkpoints").glob(".step_*.tmp"))) == 2 - len(complete)
    save(folder, 3)  # the next save removes what was left
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == [f"step_00000{step}" for step in (*complete, 3)]


def test_what_a_killed_deletion_left_is_removed_and_copies_are_not(tmp_path, save):
    save(tmp_path, 1)
    (save(tmp_path, 2) / "manifest.json").unlink()
    shutil.copytree(step_folder(tmp_path, 1), tmp_path / "checkpoints" / "step_000001.mine")
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_000001", "step_000001.mine"]
    remove_leftovers(tmp_path / "nothing")


def test_an_error_while_saving_leaves_no_trace(tmp_path, save, monkeypatch):
    save(tmp_path, 1)

    def failing(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "file_sha256", failing)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_000001"]


# --- damage ---------------------------------------------------------------------------------------


def cut(path):
    path.write_bytes(path.read_bytes()[:-3])


def rename_a_model_setting(path):
    path.write_text(path.read_text().replace('"softcap"', '"softcep"'))


DAMAGES = {
    "a flipped bit in the weights": ("model.safetensors", flip_last_byte, "does not have the checksum"),
    "a flipped bit in the moments": ("optimizer.rank0.safetensors", flip_last_byte, "does not have the checksum"),
    "a short file": ("model.safetensors", cut, r"has \d+ bytes, its manifest says \d+"),
    "a missing file": ("state.json", Path.unlink, "has None bytes"),
    "another state": ("state.json", lambda path: path.write_text('{"step": 3}\n'), "bytes|checksum"),
    "half a manifest": ("manifest.json", cut, "not valid JSON"),
    "an empty manifest": ("manifest.json", lambda path: path.write_text("{}"), "is not the manifest of a save"),
    "no object": ("manifest.json", lambda path: path.write_text("[1]"), "is not the manifest of a save"),
    "too few keys": ("manifest.json", lambda path: path.write_text('{"format": 1}'), "step_000020.*files"),
    "another key": ("manifest.json", rename_a_model_setting, "unknown model setting 'softcep'"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_save_falls_back_to_the_one_before_and_says_so(tmp_path, save, damage, capsys):
    name, spoil, words = DAMAGES[damage]
    for step in (5, 10, 20):
        save(tmp_path, step)
    spoil(step_folder(tmp_path, 20) / name)
    found, problems = newest_checkpoint(tmp_path)
    assert found.step == 10
    assert len(problems) == 1 and re.search(words, problems[0])
    # who reads the weights alone takes the newest whose weights are good
    weights, said = (20, "") if name.startswith("optimizer") else (10, f"damaged save skipped: {problems[0]}\n")
    assert load_weights(tmp_path)[1]["w"][0, 0] == weights
    assert capsys.readouterr().err == said


def test_saves_that_are_all_damaged_raise_with_the_first_reason_and_a_way_out(tmp_path, save):
    for step in (5, 10):
        flip_last_byte(save(tmp_path, step) / "model.safetensors")
    with pytest.raises(Damaged, match="every save in .* is damaged: .*step_000010.*checksum") as caught:
        newest_checkpoint(tmp_path)
    assert caught.value.fix == f"delete {tmp_path / 'checkpoints'}; the stage then starts again from its beginning"


def test_a_save_of_another_format_is_not_taken_for_damage(tmp_path, save):
    save(tmp_path, 5)
    path = save(tmp_path, 10) / "manifest.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(UserError, match="has format 2, this version reads 1") as caught:
        newest_checkpoint(tmp_path)
    assert not isinstance(caught.value, Damaged)
    assert steps_in(tmp_path) == [5, 10]


def test_a_job_without_saves_has_no_newest_one_and_no_weights(tmp_path):
    assert newest_checkpoint(tmp_path) == (None, [])
    with pytest.raises(UserError, match="has no save yet"):
        load_weights(tmp_path)


# --- deleting -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep", "best", "left"),
    [(2, None, [30, 40]), (1, 10, [10, 40]), (2, 40, [30, 40]), (9, 10, [10, 20, 30, 40]), (1, 15, [40])],
)
def test_prune_keeps_the_newest_and_the_best(tmp_path, save, keep, best, left):
    for step in (10, 20, 30, 40):
        save(tmp_path, step)
    prune(tmp_path, keep=keep, best_step=best)
    assert steps_in(tmp_path) == left
    assert len(list((tmp_path / "checkpoints").iterdir())) == len(left)


def test_discard_after_deletes_what_was_saved_later(tmp_path, save):
    for step in (10, 20, 30):
        save(tmp_path, step)
    discard_after(tmp_path, 10)
    assert steps_in(tmp_path) == [10]


# --- a full disk ----------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB, or a skip with the reason."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_named_and_earlier_saves_stay_whole(small_disk, save):
    save(small_disk, 10, size=20_000)  # 240 kB
    before = {path: path.read_bytes() for path in step_folder(small_disk, 10).iterdir()}
    with pytest.raises(DiskFull, match="no space left on the disk of .*step_000020") as caught:
        save(small_disk, 20, size=200_000)
    assert "goes on from the last save" in caught.value.fix
    assert {path: path.read_bytes() for path in step_folder(small_disk, 10).iterdir()} == before
    assert [path.name for path in (small_disk / "checkpoints").iterdir()] == ["step_000010"]
    assert newest_checkpoint(small_disk)[0].step == 10
    save(small_disk, 30, size=20_000)  # the space of the failed save is free again
    assert steps_in(small_disk) == [10, 30]
