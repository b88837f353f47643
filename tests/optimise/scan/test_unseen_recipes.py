"""What rules took for granted in a large code base that they were not made with: each fact with its look-alike."""

import textwrap

import pytest
from tests.optimise.scan.cases import COLLATE, Cases, check_fault, check_right

from intone.optimise.scan.run import scan_texts

CASES = Cases()
fault, right = CASES.fault, CASES.right

# --- compile: a switch in settings that are handed in is off only where the file with them says so --------------------
SWITCHED = """
    import torch
    class Recipe:
        def __init__(self, {cfg}):
            {settings}
            self.on = cfg.get("compile", False)
        def setup(self):
            self.model = Net()
            if self.on:
                self.model = torch.compile(self.model)
        def train(self, opt, loader):
            for x, y in loader:
                loss = self.model(x, y)
                loss.backward()
                opt.step()
                opt.zero_grad()
"""
fault("S21", SWITCHED.format(cfg="_=None", settings='cfg = {"compile": False}'))
right("S21", SWITCHED.format(cfg="cfg", settings="self.cfg = cfg"))

# --- eval-mode: to parse the name of a model is not to run it ---------------------------------------------------------
right("S45", """
    from hub import parse_model_handle
    def validate_handle(handle):
        return parse_model_handle(handle).framework
""")  # fmt: skip

# --- recast: a loss that is only ever handed parts --------------------------------------------------------------------
LOSS = """
    import torch.nn.functional as F
    from torch import nn
    class Loss(nn.Module):
        def compute(self, logits, labels):
            return F.cross_entropy(logits.float(), labels)
        def forward(self, logits, labels):
            {body}
"""
fault("S40", LOSS.format(body="return self.compute(logits, labels)"))
IN_PARTS = """
            total = 0.0
            for one, y in zip(logits, labels):
                total += self.compute(one, y)
            return total"""
right("S40", LOSS.format(body=IN_PARTS))
right("S40", """
    import torch
    import torch.nn.functional as F
    from torch import nn
    class Divergence(nn.Module):
        def forward(self, logits, teacher_logits, labels):
            teacher = F.softmax(teacher_logits, dim=-1, dtype=torch.float32)
            return -(teacher * F.log_softmax(logits, dim=-1, dtype=torch.float32)).sum()
    class InParts(nn.Module):
        def __init__(self):
            super().__init__()
            self.divergence = Divergence()
        def forward(self, logits, teacher_logits, labels):
            total = 0.0
            for part, teacher_part, y in zip(logits, teacher_logits, labels):
                total += self.divergence(part, teacher_part, y)
            return total
""")  # fmt: skip

# --- host-sync: a reference that works on the host --------------------------------------------------------------------
FILL = """
    import torch
    from torch import nn
    def {name}(counts):
        return torch.arange(counts[0].item())
    class Experts(nn.Module):
        def forward(self, x, counts):
            return x[{name}(counts)]
"""
fault("S32", FILL.format(name="fill_places"))
right("S32", FILL.format(name="fill_places_cpu"))

# --- packing: a text has few turns, a data set has many texts ---------------------------------------------------------
GROWN = """
    def render({walked}, tok):
        ids = []
        for one in {walked}:
            ids = ids + tok.encode(one)
        return ids
"""
fault("S70", GROWN.format(walked="documents"))
right("S70", GROWN.format(walked="messages"))

# --- data-order: a set that becomes a table ---------------------------------------------------------------------------
NAMES = """
    def token_names(config):
        found = set()
        for token in config["tokens"]:
            found.add(token["text"])
        return list(found)
    class Tokenizer:
        def __init__(self, config):
            self.names = token_names(config)
            self.table = {}
            for name in self.names:
                %s
"""
fault("S76", NAMES % "self.table[name] = len(self.table); self.rows.append(name)")
right("S76", NAMES % "self.table[name] = self.number(name)")

# --- checkpoint: the settings of an adapter are no state --------------------------------------------------------------
SAVED = """
    import json
    def save_checkpoint(state_dict, path):
        with open(path, "w") as file:
            json.dump(state_dict[{key}], file)
"""
fault("S60", SAVED.format(key="PROGRESS"))
right("S60", SAVED.format(key="ADAPTER_CONFIG"))


@pytest.mark.parametrize("rule, code", CASES.faults())
def test_each_fault_is_found(rule: str, code: str) -> None:
    check_fault(rule, code)


@pytest.mark.parametrize("rule, code", CASES.near_misses())
def test_what_lacks_the_fact_is_not_named(rule: str, code: str) -> None:
    check_right(rule, code)


READ = """
import torch
from torch import nn
class {name}(nn.Module):
    def forward(self, x, size):
        height, width = size.tolist()
        return x[:, :height, :width]
"""
PACKED = """
def make_loader(rows, packed):
    return DataLoader(rows, collate_fn=collate if not packed else collate_packed, shuffle=True)
"""
SHARDS = """
import torch.distributed.checkpoint as dcp
def save(model, where, step):
    dcp.save({"model": model.state_dict()}, checkpoint_id=where)
"""


@pytest.mark.parametrize(
    "rule, texts, confidence",
    [
        ("S32", {"model.py": READ.format(name="Encoder")}, "high"),
        ("S32", {"model.py": READ.format(name="ImageTransform")}, "low"),
        ("S32", {"export/model.py": READ.format(name="Encoder")}, "low"),
        ("S23", {"data.py": COLLATE}, "high"),
        ("S23", {"data.py": COLLATE, "train.py": PACKED}, "low"),
        ("S60", {"save.py": SHARDS}, "low"),
        ("S60", {"save.py": SHARDS.replace("dcp.save(", "torch.save(").replace("checkpoint_id", "f")}, "high"),
    ],
)
def test_what_cannot_be_proven_here_is_of_low_confidence(rule: str, texts: dict[str, str], confidence: str) -> None:
    scan = scan_texts({name: textwrap.dedent(text) for name, text in texts.items()}, only=[rule])
    assert [finding.confidence for finding in scan.findings] == [confidence]
