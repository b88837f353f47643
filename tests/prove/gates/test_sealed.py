"""Sealed inputs: any change to a file of the harness, the data or the settings is noticed."""

import os

import pytest

from intone.model.checkpoint import list_checkpoints
from intone.paths import write_json
from intone.prove.gates import sealed


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "judge.py").write_text("assert loss < 3\n")
    (tmp_path / "inner" / "data.bin").write_bytes(bytes(range(256)))
    return tmp_path


def test_untouched_files_pass_and_a_copy_with_equal_bytes_too(folder):
    before = sealed.seal([folder])
    text = (folder / "judge.py").read_text()
    (folder / "judge.py").unlink()
    (folder / "judge.py").write_text(text)
    assert sealed.gate(before).run().reason == "2 files are what they were before"


def test_a_changed_byte_with_size_and_time_kept_is_named(folder):
    before = sealed.seal([folder])
    path = folder / "inner" / "data.bin"
    state = path.stat()
    path.write_bytes(bytes([9, *range(1, 256)]))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    result = sealed.gate(before).run()
    assert result.passed is False and result.reason == f"{path} was changed while it was being measured"


def test_added_and_removed_files_are_named(folder):
    before = sealed.seal([folder])
    (folder / "conftest.py").write_text("")
    (folder / "judge.py").unlink()
    result = sealed.gate(before).run()
    assert result.passed is False and result.evidence["added"] == [str(folder / "conftest.py")]
    assert result.reason == f"{folder / 'judge.py'} was removed while it was being measured, and 1 more"


def test_a_large_file_is_known_by_its_ends_and_its_change_time(folder, monkeypatch):
    monkeypatch.setattr(sealed, "HASHED_BYTES", 100)
    monkeypatch.setattr(sealed, "END_BYTES", 8)
    path = folder / "inner" / "data.bin"
    before = sealed.seal([path])
    assert sealed.gate(before).run().passed
    state = path.stat()
    with open(path, "r+b") as file:  # in the middle, which is not read
        file.seek(99)
        file.write(b"!")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert sealed.gate(before).run().passed is False


def test_python_caches_come_and_go(folder):
    before = sealed.seal([folder])
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "judge.pyc").write_bytes(b"x")
    assert sealed.gate(before).run().passed


def test_nothing_sealed_is_not_judged(tmp_path):
    assert sealed.gate(sealed.seal([tmp_path / "nowhere"])).run().passed is None


def test_the_inputs_of_a_job_are_its_settings_data_tokenizer_and_first_weights(jobs, run_here):
    before = jobs.side(run_here, steps=1)
    run_here(before.folder)
    side = jobs.side(run_here, init_from=str(before.folder), val=str(jobs.folder / "text"))
    inputs = sealed.inputs_of(side.folder)
    files = sealed.seal(inputs).files
    save = list_checkpoints(before.folder)[0]
    for path in (side.folder / "config.json", side.folder / "choices.json", save / "model.safetensors"):
        assert str(path) in files
    assert any(name.startswith(str(jobs.folder / "text")) and name.endswith(".ids") for name in files)
    assert any(name.startswith(str(jobs.folder / "tokenizer")) for name in files)


def test_the_inputs_of_a_generation_are_the_model_and_the_tokenizer(tmp_path):
    write_json(tmp_path / "config.json", {"job": "generate", "from": "/a/run", "tokenizer": "/a/tok", "prompts": ["x"]})
    named = [str(path) for path in sealed.inputs_of(tmp_path)]
    assert named == [str(tmp_path / "config.json"), "/a/run", "/a/tok"]


def test_the_harness_is_this_package():
    files = sealed.seal(sealed.harness()).files
    names = [name for name in files if name.endswith(("prove/gates/sealed.py", "train/loop.py"))]
    assert len(names) == 2
