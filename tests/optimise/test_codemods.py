"""Codemods change what they mean and nothing else, and leave alone what was decided already."""

import ast
from pathlib import Path

import pytest

from intone.optimise.codemods import apply_codemod

TRAIN = '''\
import torch
from torch.optim import AdamW
ä = "ü"; model = torch.nn.Linear(2, 2)
opt = torch.optim.SGD(model.parameters(), lr=0.1)  # keep me
other = AdamW(
    model.parameters(),
    lr=1e-3,
)
'''


def changed(tmp_path: Path, source: str, codemod: str) -> str:
    (tmp_path / "a.py").write_text(source)
    apply_codemod(tmp_path, codemod)
    return (tmp_path / "a.py").read_text()


def test_optimizers_become_fused_where_nobody_decided(tmp_path: Path):
    found = changed(tmp_path, TRAIN, "fused_optimizer")
    assert "opt = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)  # keep me" in found
    assert "lr=1e-3,\n fused=True)" in found and ast.parse(found)


@pytest.mark.parametrize(
    "source",
    [
        "import torch\nopt = torch.optim.AdamW(p, fused=False)\n",
        "import torch\nopt = torch.optim.AdamW(p, foreach=True)\n",
        "import torch\nopt = torch.optim.AdamW(p, **extra)\n",
        "class AdamW: ...\nopt = AdamW(p)\n",
        "def broken(:\n",
    ],
)
def test_an_optimizer_that_was_decided_about_or_is_another_stays(tmp_path: Path, source: str):
    assert changed(tmp_path, source, "fused_optimizer") == source


def test_the_model_of_the_optimizer_is_compiled_behind_it(tmp_path: Path):
    made = "    net = Net()\n    o = torch.optim.AdamW(net.parameters(), lr=1)\n    train(net)\n"
    source = f"import torch\ndef f():\n{made}"
    assert "lr=1)\n    net = torch.compile(net)\n    train(net)" in changed(tmp_path, source, "compile_model")
    has_it, has_no_name = source.replace("train(", "torch.compile("), source.replace("net.param", "self.param")
    for other in (has_it, has_no_name):
        assert changed(tmp_path, other, "compile_model") == other


def test_a_loader_without_workers_gets_two(tmp_path: Path):
    assert changed(tmp_path, "DataLoader(d, batch_size=4)\n", "loader_workers") == (
        "DataLoader(d, batch_size=4, num_workers=2, persistent_workers=True)\n"
    )
    assert changed(tmp_path, "DataLoader(d, num_workers=0)\n", "loader_workers") == (
        "DataLoader(d, num_workers=2, persistent_workers=True)\n"
    )
    assert changed(tmp_path, "DataLoader(d, num_workers=4)\n", "loader_workers") == "DataLoader(d, num_workers=4)\n"
