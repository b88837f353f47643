"""What the scan took for faults in three more code bases of strangers, written anew, each beside its real fault."""

import textwrap

import pytest
from tests.optimise.scan.cases import Cases, check_fault, check_right

from intone.optimise.scan.run import python_files, scan_texts

CASES = Cases()
fault, right = CASES.fault, CASES.right

# --- a temporary folder that the caller gives another name ------------------------------------------------------------
SAVES = """
    import os, torch
    from pathlib import Path
    def put(folder, name, state):
        where = Path(folder) / name
        torch.save(state, where)
    class Keeper:
        def save_checkpoint(self, folder, model):
            with {into} as here:
                put(here, "model.pt", model.state_dict())
"""
right("S60", SAVES.format(into="self._temporary_folder(folder)"))
fault("S60", SAVES.format(into="self.locked(folder)"))

# --- what stands in the message of an assertion -----------------------------------------------------------------------
PASSES = """
    import torch
    from torch import nn
    class Net(nn.Module):
        def forward(self, x: torch.Tensor):
            {reads}
            return self.up(x)
"""
right("S32", PASSES.format(reads='assert x.ndim == 3, f"{x.sum().item()} in all"'))
right("S32", PASSES.format(reads='if x.ndim != 3: raise ValueError(x.sum().item())'))
fault("S32", PASSES.format(reads="total = x.sum().item()"))

# --- a few prompts of a batch, and a set of texts ---------------------------------------------------------------------
JOINS = """
    import torch
    def {name}(chunks):
        return torch.tensor(sum(chunks, []))
"""
right("S71", JOINS.format(name="generate"))
right("S70", JOINS.format(name="generate"))
fault("S71", JOINS.format(name="read_shards"))
fault("S70", JOINS.format(name="read_shards"))

# --- dropout whose share the caller sets by the mode ------------------------------------------------------------------
DROPS = """
    import torch
    from torch import nn
    import torch.nn.functional as F
    class Block(nn.Module):
        def mix(self, q, share=0.1):
            raise NotImplementedError
        def forward(self, q):
            return self.mix(q, share={share})
    class Plain(Block):
        def mix(self, q, share=0.1):
            return F.dropout(q, p=share)
"""
right("S42", DROPS.format(share="0.0 if not self.training else self.share"))
fault("S42", DROPS.format(share="self.share"))

# --- one of two losses, weighed by 1 - share --------------------------------------------------------------------------
WEIGHS = """
    def train(model, opt, rows, n):
        share = 0.0
        for step, (x, y) in enumerate(rows):
            first, second = model(x, y)
            loss = {loss}
            loss.backward()
            if (step + 1) % n == 0:
                opt.step()
                opt.zero_grad()
"""
right("S57", WEIGHS.format(loss="(share * first + (1 - share) * second) / n"))
fault("S57", WEIGHS.format(loss="(first + second) * n"))

# --- loaders for evaluation -------------------------------------------------------------------------------------------
SAMPLES = """
    from torch.utils.data import DataLoader, DistributedSampler
    def {name}(rows, epochs):
        for epoch in range(epochs):
            yield DataLoader(rows, sampler=DistributedSampler(rows))
"""
right("S78", SAMPLES.format(name="build_eval_loader"))
fault("S78", SAMPLES.format(name="build_loader"))

# --- a device that is made where the comparison has been answered -----------------------------------------------------
right("S33", """
    import torch
    def place(layers, where):
        for layer, d in where.items():
            if d != "cpu":
                d = torch.device(d)
            layers[layer].to(d)
""")
fault("S33", """
    import torch
    def place(layers, where):
        for layer, d in where.items():
            d = torch.device(d)
            if d != "cpu":
                layers[layer].to(d)
""")

# --- a cache that is off for what stands between ----------------------------------------------------------------------
CALIBRATES = """
    import torch
    def calibrate(self, rows):
        before = self.model.config.use_cache
        self.model.config.use_cache = False
        for row in rows:
            self.model.generate(row)
        {after}
"""
right("S10", CALIBRATES.format(after="self.model.config.use_cache = before"))
fault("S10", CALIBRATES.format(after="pass"))

# --- sets of what is no row of data -----------------------------------------------------------------------------------
UPLOADS = """
    def write_rows(shards, {name}):
        {name} = set()
        for shard in shards:
            {name}.add(str(shard.path))
        for path in {name}:
            with open(path) as rows:
                send(rows.read())
"""
right("S76", UPLOADS.format(name="files_to_upload"))
fault("S76", UPLOADS.format(name="shard_files"))

# --- micro-batches that were chosen for each model, and those of an evaluation ----------------------------------------
ACCUMULATES = """
    from torch.utils.data import DataLoader
    ACCUMULATE = 8
    def train(model, opt, rows, size):
        {rows}
        for step, (x, y) in enumerate(loader):
            (model(x, y) / ACCUMULATE).backward()
            if (step + 1) % ACCUMULATE == 0:
                opt.step()
                opt.zero_grad()
"""
right("S20", ACCUMULATES.format(rows='micro_batch = {"1B": 2, "150M": 32}.get(size, 4); loader = rows(micro_batch)'))
right("S20", ACCUMULATES.format(rows="val_loader = DataLoader(rows, batch_size=4); loader = rows"))
fault("S20", ACCUMULATES.format(rows="micro_batch = 4; loader = rows(micro_batch)"))
fault("S20", ACCUMULATES.format(rows="loader = DataLoader(rows, batch_size=4)"))


@pytest.mark.parametrize("rule, code", CASES.faults())
def test_the_fault_is_found(rule: str, code: str) -> None:
    check_fault(rule, code)


@pytest.mark.parametrize("rule, code", CASES.near_misses())
def test_what_is_right_is_left_alone(rule: str, code: str) -> None:
    check_right(rule, code)


# --- what stays possible, and is held back ----------------------------------------------------------------------------
OWN = """
import os, pickle
def table(rows, path):
    if os.path.exists(path):
        return pickle.load(open({loaded}, "rb"))
    made = count(rows)
    pickle.dump(made, open(path, "wb"))
    return made
"""
LISTS = """
import glob
def read(folder):
    rows = []
    for path in glob.glob(folder + "/*.jsonl"):
        rows.append(open(path).read())
    return rows
"""
STEPS = """
import torch
def train(model, opt, rows):
    for step, (x, y) in enumerate(rows):
        loss = model(x, y)
        loss.backward()
        opt.step()
        opt.zero_grad()
"""
SMALL = """
block_size = {tokens}
micro_batch = 4
accumulate = 8
def train(model, opt, rows):
    for step, (x, y) in enumerate(rows):
        (model(x, y) / accumulate).backward()
        if (step + 1) % accumulate == 0:
            opt.step()
            opt.zero_grad()
"""


@pytest.mark.parametrize(
    "rule, name, code, confidence",
    [
        ("S61", "a.py", OWN.format(loaded="path"), "low"),
        ("S61", "a.py", OWN.format(loaded="rows"), "high"),
        ("S76", "prepare_rows.py", LISTS, "low"),
        ("S76", "rows.py", LISTS, "high"),
        ("S21", "train.py", STEPS + "def learn(reward_model):\n    return reward_model.generate(3)\n", "low"),
        ("S21", "train.py", STEPS + "from bitsandbytes import nn\n", "low"),
        ("S21", "train.py", STEPS, "medium"),
        ("S20", "train.py", SMALL.format(tokens=4096), "low"),
        ("S20", "train.py", SMALL.format(tokens=256), "high"),
    ],
)
def test_what_may_be_wanted_so_is_of_low_confidence(rule: str, name: str, code: str, confidence: str) -> None:
    found = scan_texts({name: textwrap.dedent(code)}, only=[rule]).findings
    assert [finding.confidence for finding in found] == [confidence]


def test_packages_of_others_that_were_copied_in_are_left_out(tmp_path) -> None:
    for folder in ("own", "inference/dependencies/theirs"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.py").write_text("x = 1\n")
    assert [file.relative_to(tmp_path).as_posix() for file in python_files(tmp_path)[1]] == ["own/a.py"]


def test_a_function_that_is_looked_up_through_what_starts_it_ends(tmp_path) -> None:
    loops = "import asyncio\nTABLE = {}\nasync def go(name):\n    f = await asyncio.wait_for(TABLE[name], 3)\n"
    loops += "    TABLE[name] = f\n    return f(await asyncio.shield(f))\n"
    assert scan_texts({"a.py": loops}).unread == ()
