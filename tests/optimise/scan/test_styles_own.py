"""What findings in our own code base taught: where a rule was too wide, what is right beside what is wrong."""

import pytest
from tests.optimise.scan.variants import Collection

from intone.optimise.scan.run import scan_texts

OWN = Collection()
fault, right = OWN.fault, OWN.right

# --- packing: what a list holds ---------------------------------------------------------------------------------------
WORK_LIST = """
    def reached(start, links):
        found, todo = [], LIST
        while todo:
            at = todo.pop(0)  # <-
            BODY
        return found
"""
fault("packing", "a work list of texts", WORK_LIST.replace("LIST", "list(start)").replace(
    "BODY", "found.append(links.encode(at.text))"))  # fmt: skip
right("packing", "a work list of a graph", WORK_LIST.replace("LIST", "[start]").replace("  # <-", "").replace(
    "BODY", "found.append(at); todo += [one for one in links(at) if one not in found]"))  # fmt: skip
PLACED = """
    def lay_out(docs, width):
        waiting = MAKE
        bins = []
        while waiting:
            room = width
            for doc in docs:
                if len(doc) <= room and doc.number in waiting:
                    waiting.remove(doc.number)  # <-
                    room -= len(doc)
            bins.append(width - room)
        return bins
"""
fault("packing", "numbers of texts in a list", PLACED.replace("MAKE", "[doc.number for doc in docs]"))
right("packing", "numbers of what is open in a set", """
    def read_all(selector, first, second):
        open_ends, output = {first, second}, b""
        while open_ends:
            for end in selector.select():
                data = end.read()
                output += data
                if not data:
                    open_ends.remove(end)
        return output
""")  # fmt: skip
WINDOW = """
    def run(batches, start, finish, lag):
        waiting = []
        for batch in batches:
            waiting.ADD
            while len(waiting) > lag:
                finish(waiting.pop(0), batch)  # <-
"""
fault("packing", "the front of all that was read", WINDOW.replace("ADD", "extend(start(batch))"))
right("packing", "a window of what was started", WINDOW.replace("  # <-", "").replace("ADD", "append(start(batch))"))
ADMITTED = """
    class Scheduler:
        def __init__(self, limits):
            self.rows, self.waiting, self.limits = [], [], limits
        def admit(self):
            while self.waiting and len(self.rows) < self.limits.LIMIT:
                one = self.waiting.pop()
                taken = [row for row in self.rows if row.length > one.length]  # <-
                self.rows.append(one.begin(taken))
        def end(self, row):
            self.rows.remove(row)
"""
fault("packing", "every text looks at all rows that are packed", ADMITTED.replace("LIMIT", "rows_per_shard"))
right("packing", "rows that run at the same time", ADMITTED.replace("LIMIT", "num_slots").replace("  # <-", ""))
right("packing", "a conversation cut after an error", """
    def ask(send, rows):
        begins = [index for index, row in enumerate(rows) if row["role"] == "user"]
        while True:
            try:
                return send(rows)
            except OverflowError:
                del rows[begins[0] : begins[1]]
                begins = [index for index, row in enumerate(rows) if row["role"] == "user"]
""")  # fmt: skip
right("packing", "growing is no row", """
    class Outbox:
        def __init__(self):
            self.growing = []
        def take(self, arrived):
            while arrived:
                number = arrived.popleft()
                for key in [key for key in self.growing if key[0] == number]:
                    self.growing.remove(key)
""")  # fmt: skip

# --- eval-mode: a method that is called model -------------------------------------------------------------------------
CHAT = """
    import torch
    class Chat:
        def __init__(self, known):
            self.known, self.name = known, None
            INIT
        def obey(self, line):
            return self.model(line)  # <-
        METHOD
    def chat_loop(chat, lines):
        for line in lines:
            chat.obey(line)
"""
fault("eval-mode", "a model that an object keeps", CHAT.replace("INIT", "self.model = torch.nn.Linear(4, 4)").replace(
    "METHOD", "").replace("return self.model(line)", "return self.model(line).argmax(-1).item()"))  # fmt: skip
right("eval-mode", "a command that is called model", CHAT.replace("INIT", "").replace("  # <-", "").replace(
    "METHOD", "def model(self, name):\n            self.name = self.known[name]"))  # fmt: skip

# --- host-sync: what is a number by now -------------------------------------------------------------------------------
ROWS = """
    from dataclasses import dataclass
    import torch
    @dataclass
    class Row:
        step: int
        loss: TYPE
    def line(row: Row):
        return f"{row.loss:.3f}"  # <-
    def train(model, opt, batches):
        for step, batch in enumerate(batches):
            loss = model(batch)
            loss.backward()
            opt.step()
            opt.zero_grad()
            MADE
"""
fault("host-sync", "a row that keeps the tensor", ROWS.replace("TYPE", "torch.Tensor").replace(
    "MADE", "print(line(Row(step, loss)))").replace("  # <-", "").replace(
    "print(line(Row(step, loss)))", "print(line(Row(step, loss)))  # <-"))  # fmt: skip
right("host-sync", "a row whose class says that it is a number", ROWS.replace("TYPE", "float | None").replace(
    "  # <-", "").replace("MADE", "print(line(batch.last_row()))"))  # fmt: skip
COUNTED = """
    def train(model, opt, loader):
        for batch in loader:
            losses, counts = [], []
            for part in batch:
                loss = model(part)
                loss.backward()
                losses.append(loss.detach())
                counts.append(len(part))
            opt.step()
            opt.zero_grad()
            for loss, count in zip(losses, counts):
                print(int(WHICH))  # <-
"""
fault("host-sync", "the first of two that are walked together", COUNTED.replace("WHICH", "loss"))
right("host-sync", "the second of two that are walked together", COUNTED.replace("WHICH", "count").replace(
    "  # <-", ""))  # fmt: skip


def test_a_number_that_a_step_hands_back_is_no_second_read():
    code = """
import math
class Trainer:
    def step(self):
        loss = self.model(self.x, self.y)
        loss.backward()
        self.opt.step()
        self.opt.zero_grad()
        return float(loss) / 4, 4
    def run(self, steps):
        for _ in range(steps):
            mean, count = self.step()
            self.log.append(mean if math.isfinite(mean) else None)
"""
    (found,) = [one for one in scan_texts({"a.py": code}).findings if one.rule == "S30"]
    assert found.line == 9 and not any("isfinite" in line for line in found.evidence)


# --- rng: experiments and turns ---------------------------------------------------------------------------------------
PROMPTS = """
    import numpy as np
    def prompts(rows, length):
        return np.random.default_rng(0).integers(0, 512, (rows, length))  # <-
    def run(engine, sizes):
        for SIZES:
            engine.generate(prompts(ASKED))
"""
fault("rng", "the same rows at every step", PROMPTS.replace("SIZES", "step in range(100)").replace("ASKED", "16, 64"))
right("rng", "other rows for every size", PROMPTS.replace("SIZES", "rows in sizes").replace(
    "ASKED", "rows, 64").replace("  # <-", ""))  # fmt: skip

# --- small-batch: whose number it is ----------------------------------------------------------------------------------
SEGMENTS = """
    === train.py
    class Step:
        def __init__(self, model, opt, device_batch):
            self.model, self.opt, self.device_batch = model, opt, device_batch
        def run(self, rows):
            for begin in range(0, len(rows), self.device_batch):
                loss = self.model(rows[begin : begin + self.device_batch])
                loss.backward()
            self.opt.step()
            self.opt.zero_grad()
    === prepare.py
    from train import Step
    def prepared(model, opt):
        return Step(model, opt, device_batch=1)  # <-
    OTHER
"""
fault("small-batch", "one row for all", SEGMENTS.replace("OTHER", ""))
right("small-batch", "one row for a look, else as measured", SEGMENTS.replace("  # <-", "").replace(
    "OTHER", "def tuned(model, opt, find):\n        return Step(model, opt, device_batch=find(model))"))  # fmt: skip


@pytest.mark.parametrize("variant", [pytest.param(one, id=f"{one.kind}: {one.name}") for one in OWN.variants])
def test_what_is_wrong_is_found_and_what_is_right_beside_it_is_not(variant):
    found = variant.found()
    assert bool(found) == variant.fault, found or "missed"
