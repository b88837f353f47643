"""A known machine, and one thread: the models here are tiny."""

import json

import pytest
import torch

from intone import cli
from intone.exchange import importing
from intone.hardware import Facts

GIB = 2**30
FACTS = Facts(
    fingerprint="ab" * 8, torch_version="2.13.0+cpu", libc="glibc 2.36", cores_logical=2, cores_physical=2,
    busy_cores=0.0, device="cpu", memory_bytes=8 * GIB, memory_available_bytes=7 * GIB, fp32_flops_per_s=50e9,
)  # fmt: skip


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def known_machine(home, tmp_path, monkeypatch):
    """Facts without a measurement, and a nanochat home of this test alone."""
    monkeypatch.setattr(importing, "load_facts", lambda: FACTS)
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "nanochat-home"))
    return home


@pytest.fixture
def command(known_machine, capsys):
    """Runs `intone WORDS --json` in this process -> (exit code, the JSON object of its last line)."""

    def run(*words):
        code = cli.main([*map(str, words), "--json"])
        return code, json.loads(capsys.readouterr().out.splitlines()[-1])

    return run
