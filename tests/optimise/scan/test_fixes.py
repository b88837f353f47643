"""Patches: each says what it changes, changes nothing else, and the fault is gone afterwards."""

import subprocess
import sys
import textwrap

import pytest

from intone.errors import UserError
from intone.optimise.items import Item
from intone.optimise.scan.codemods import CODEMODS
from intone.optimise.scan.finding import CLASSES
from intone.optimise.scan.fixes import patch_for
from intone.optimise.scan.plan import TERMS, plan_items
from intone.optimise.scan.run import scan_path, scan_texts

pytest.importorskip("libcst", reason="the extra `scan` is not installed")
# rule -> (code with a fault, lines that the patch must hold)
CASES = {
    "S01": ("""
        import torch
        def generate(model, ids, num_samples):
            probs = model(ids)[:, -1].softmax(-1)  # the last position
            first = torch.multinomial(probs, num_samples=1)
            tokens = first[:, 0].tolist()
            column = [tokens[0]] * num_samples
            return column
        """, ["+    first = torch.multinomial(probs.expand(num_samples, -1), num_samples=1)", "+    column = tokens"]),
    "S33": ("""
        import torch
        def pins(device: torch.device):
            return device == "cuda"  # pinned memory
        """, ['+    return device.type == "cuda"  # pinned memory']),
    "S37": ("""
        def move(x, device):
            return x.to(device).pin_memory()
        """, ["+    return x.pin_memory().to(device)"]),
    "S45": ("""
        def evaluate(model, batches):
            return sum(model(b) for b in batches)
        """, ["+import torch", "+@torch.no_grad()"]),
    "S52": ("""
        def train(model, opt, loader, accum):
            for i, batch in enumerate(loader):
                loss = model(batch)
                loss.backward()
                if (i + 1) % accum == 0:
                    opt.step()
                    opt.zero_grad()
        """, ["+        (loss / accum).backward()"]),
    "S55": ("""
        import torch
        def step(model, opt, batch, scaler):
            scaler.scale(model(batch)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(opt)
        """, ["+    scaler.unscale_(opt)"]),
    "S56": ("""
        def step(model, opt, batch, scaler):
            scaler.scale(model(batch)).backward()
            opt.step()
        """, ["+    scaler.step(opt)", "+    scaler.update()"]),
    "S60": ("""
        import torch
        def save(model, folder):
            torch.save(model.state_dict(), f"{folder}/model.pt")
        """, ["+import os", '+    final_path = f"{folder}/model.pt"', "+    os.replace(temporary_path, final_path)"]),
    "S61": ("""
        import torch
        def load(path):
            return torch.load(path, map_location="cpu", weights_only=False)
        """, ['+    return torch.load(path, map_location="cpu", weights_only=True)']),
    "S76": ("""
        import os
        def shards(data_dir):
            return [open(name).read() for name in os.listdir(data_dir)]
        def texts(data_dir):
            for name in os.listdir(data_dir):
                yield open(name).read()
        """, ["+    for name in sorted(os.listdir(data_dir)):"]),
    "S77": ("""
        def is_val(doc):
            return hash(doc) % 100 == 0
        """, ["+import zlib", "+    return zlib.crc32(str(doc).encode()) % 100 == 0"]),
}  # fmt: skip


@pytest.mark.parametrize("rule", CASES)
def test_a_patch_removes_the_fault_and_touches_nothing_else(rule):
    code, added = CASES[rule]
    code = textwrap.dedent(code)
    scan = scan_texts({"a.py": code}, only=[rule])
    patch = patch_for(scan.findings, scan)
    assert list(patch.fixed) == [finding.id for finding in scan.findings] != []
    assert [line for line in added if line not in patch.diff.splitlines()] == []
    assert scan_texts(patch.after, only=[rule]).findings == ()
    gone = [line for line in code.splitlines() if line not in patch.after["a.py"].splitlines()]
    assert len(gone) <= 2 * len(scan.findings)


def test_every_codemod_has_a_case():
    assert set(CASES) == set(CODEMODS)


def test_device_that_may_be_a_string_too_is_made_a_device_first():
    code = 'import torch\ndef pins(device="cuda"):\n    return device == "cuda"\npins(torch.device("cpu"))\n'
    scan = scan_texts({"a.py": code}, only=["S33"])
    assert 'torch.device(device).type == "cuda"' in patch_for(scan.findings, scan).after["a.py"]


def test_what_no_codemod_can_do_is_an_instruction():
    code = "import pickle\ndef load(f):\n    return pickle.load(f)\n"
    scan = scan_texts({"a.py": code})
    patch = patch_for(scan.findings, scan)
    assert patch.diff == "" and "safetensors" in patch.left[scan.findings[0].id]
    item = plan_items(scan.findings, scan, patch)[0]
    assert item.how == "instruction" and item.gate == "G2" and item.finding == scan.findings[0].id


def test_plan_items_survive_json_and_stand_in_the_order_of_their_rank():
    code = "import pickle\ndef load(f):\n    return pickle.load(f)\ndef is_val(doc):\n    return hash(doc) % 9\n"
    scan = scan_texts({"a.py": code})
    items = plan_items(scan.findings, scan)
    assert [item.finding[:3] for item in items] == ["S61", "S77"]  # graver, but never judged on code of strangers
    assert [Item.from_json(item.as_json()) for item in items] == items
    assert set(TERMS) == set(CLASSES)


def test_git_applies_and_undoes_a_patch(tmp_path):
    code = textwrap.dedent(CASES["S60"][0])
    (tmp_path / "a.py").write_text(code)
    scan = scan_path(tmp_path)
    (tmp_path / "fix.patch").write_text(patch_for(scan.findings, scan).diff)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["git", "apply", "fix.patch"], cwd=tmp_path, check=True)
    assert "os.replace" in (tmp_path / "a.py").read_text()
    subprocess.run(["git", "apply", "-R", "fix.patch"], cwd=tmp_path, check=True)
    assert (tmp_path / "a.py").read_text() == code


def test_a_file_that_changed_meanwhile_is_not_overwritten(tmp_path):
    (tmp_path / "a.py").write_text(textwrap.dedent(CASES["S60"][0]))
    scan = scan_path(tmp_path)
    patch = patch_for(scan.findings, scan)
    (tmp_path / "a.py").write_text("x = 1\n")
    with pytest.raises(UserError, match="was changed"):
        patch.apply(scan)
    assert (tmp_path / "a.py").read_text() == "x = 1\n"


def test_without_libcst_scanning_works_and_a_patch_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "libcst", None)
    scan = scan_texts({"a.py": textwrap.dedent(CASES["S60"][0])})
    with pytest.raises(UserError, match="libcst") as caught:
        patch_for(scan.findings, scan)
    assert "pip install" in caught.value.fix
