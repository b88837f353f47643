"""How code for one rule is written down, with its fault or alike and right, and how the rule is asked about it."""

import textwrap
from typing import Any

import pytest

from intone.optimise.scan.finding import CLASSES
from intone.optimise.scan.run import scan_texts

# a training loop in which nothing is wrong but what is not there
LOOP = """
    import torch
    def train(model, opt, loader):
        for step, (x, y) in enumerate(loader):
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
"""
# padding to the longest row of a batch
COLLATE = """
    import torch
    def collate(batch):
        width = max(len(ids) for ids, mask in batch)
        inputs = torch.full((len(batch), width), 0)
        targets = torch.full((len(batch), width), -100)
        return inputs, targets
"""


class Cases:
    """Code for several rules, entered one by one."""

    def __init__(self) -> None:
        self.with_fault: dict[str, list[str]] = {}
        self.without: dict[str, list[str]] = {}

    def fault(self, rule: str, code: str) -> None:
        """Code in which the rule must find something."""
        self.with_fault.setdefault(rule, []).append(textwrap.dedent(code))

    def right(self, rule: str, code: str) -> None:
        """Code that looks like a fault of the rule and is none."""
        self.without.setdefault(rule, []).append(textwrap.dedent(code))

    def faults(self) -> list[Any]:
        """(rule, code) of each fault for pytest.mark.parametrize."""
        return parameters(self.with_fault)

    def near_misses(self) -> list[Any]:
        """The same of the code that is right."""
        return parameters(self.without)


def parameters(table: dict[str, list[str]]) -> list[Any]:
    return [pytest.param(rule, code, id=f"{rule}-{n}") for rule, codes in table.items() for n, code in enumerate(codes)]


def check_fault(rule: str, code: str) -> None:
    """The rule finds the fault, and says what, where and by which evidence."""
    found = scan_texts({"a.py": code}, only=[rule]).findings
    assert [finding.rule for finding in found][:1] == [rule]
    assert found[0].kind in CLASSES and found[0].excerpt and found[0].message and found[0].evidence


def check_right(rule: str, code: str) -> None:
    """The rule finds nothing."""
    assert [finding.message for finding in scan_texts({"a.py": code}, only=[rule]).findings] == []
