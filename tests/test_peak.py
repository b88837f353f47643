"""The cost of a run: seconds and peak memory over all calls that worked on it."""

import os
import shutil
import subprocess
import sys

import pytest

from intone import peak
from intone.paths import read_json, write_json
from intone.peak import CostWatch, process_tree, proportional_bytes, resident
from tests.tiny_jobs import wait_for

BLOCK_BYTES = 150 * 2**20
# holds a block of memory in a grandchild until its stdin closes
HOLDER = f"""
import subprocess, sys
code = "import sys; block = b'x' * {BLOCK_BYTES}; print('ready', flush=True); sys.stdin.read()"
subprocess.run([sys.executable, "-c", code], check=True)
"""


def test_the_memory_of_grandchildren_counts(tmp_path):
    with CostWatch(tmp_path / "spent.json") as cost:
        holder = subprocess.Popen([sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert holder.stdout.readline() == b"ready\n"
        assert len(process_tree(os.getpid())) >= 3
        wait_for(lambda: cost.peak_bytes > BLOCK_BYTES, "a look at the memory")
        holder.communicate()
    assert read_json(tmp_path / "spent.json")["peak_bytes"] == cost.peak_bytes > BLOCK_BYTES


def test_a_later_call_adds_its_seconds_and_keeps_the_larger_peak(tmp_path):
    write_json(tmp_path / "spent.json", {"format": 1, "seconds": 5_000.0, "peak_bytes": 2**45})
    with CostWatch(tmp_path / "spent.json") as cost:
        assert 5_000 <= cost.seconds < 5_100
    kept = read_json(tmp_path / "spent.json")
    assert kept["format"] == 1
    assert 5_000 < kept["seconds"] < 5_100
    assert kept["peak_bytes"] == 2**45


def test_what_a_killed_call_cost_is_kept_while_it_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(peak, "KEEP_EVERY_S", 0.0)
    with CostWatch(tmp_path / "spent.json"):
        wait_for((tmp_path / "spent.json").exists, "the first writing")


def test_the_time_inside_a_phase_is_counted_to_it_over_all_calls(tmp_path):
    write_json(tmp_path / "spent.json", {"format": 1, "seconds": 9.0, "peak_bytes": 1, "phases": {"planning": 70.0}})
    with CostWatch(tmp_path / "spent.json") as cost:
        with cost.phase("planning"):
            wait_for(lambda: cost.phases["planning"] > 70.0, "the clock of a phase at work")
        with pytest.raises(ValueError, match="planted"), cost.phase("base"):
            raise ValueError("planted")
        after = cost.phases
        assert list(after) == ["planning", "base"]
    kept = read_json(tmp_path / "spent.json")["phases"]
    assert kept == after  # nothing is counted outside
    assert 70.0 < kept["planning"] < 130.0 and kept["base"] > 0


def test_a_folder_that_is_deleted_meanwhile_stays_deleted(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with CostWatch(folder / "spent.json"):
        shutil.rmtree(folder)
    assert not folder.exists()


def test_shared_pages_make_the_proportional_size_smaller_than_the_resident_one():
    assert 0 < proportional_bytes(os.getpid()) <= 1.1 * resident(os.getpid())


def test_a_process_that_has_ended_needs_nothing():
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert proportional_bytes(ended.pid) == resident(ended.pid) == 0
    assert process_tree(ended.pid) == [ended.pid]
