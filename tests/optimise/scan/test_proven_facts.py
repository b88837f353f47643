"""Code of strangers that looks like a fault and is none: each rule demands the fact that makes it one."""

import pytest
from tests.optimise.scan.cases import Cases, check_fault, check_right

from intone.optimise.scan.run import scan_texts

CASES = Cases()
fault, right = CASES.fault, CASES.right

# the number of micro-batches is a flag; 1 by default means that nothing is added up
ADDS_UP = """
    import argparse
    import torch
    from torch.nn.parallel import DistributedDataParallel
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--accumulation_steps", type=int, default=COUNT)
    args = parser.parse_args()
    model = DistributedDataParallel(make_model())
    optimizer = torch.optim.AdamW(model.parameters())
    for step, (x, y) in enumerate(loader, start=1):
        loss = model(x, y) / args.accumulation_steps
        loss.backward()
        if step % args.accumulation_steps == 0:
            optimizer.step()
            optimizer.zero_grad()
"""
for number in ("S20", "S54"):
    fault(number, ADDS_UP.replace("COUNT", "8"))
    right(number, ADDS_UP.replace("COUNT", "1"))

# a factor that happens to be 1 as the number of micro-batches is
right("S57", ADDS_UP.replace("COUNT", "1").replace("model(x, y) /", "(1 - 0.0) * model(x, y) /"))

# n-grams of a reward are no rows
right("S20", """
    def repeats(text, n=3):
        words = text.split()
        return len({tuple(words[i:i + n]) for i in range(len(words) - n + 1)})

    def train(model, loader, optimizer, accum):
        for step, batch in enumerate(loader):
            reward = repeats(batch["text"])
            loss = model(batch) * reward / accum
            loss.backward()
            if (step + 1) % accum == 0:
                optimizer.step()
                optimizer.zero_grad()
""")  # fmt: skip

SEEDED = """
    import random
    import torch
    def set_all(seed):
        torch.manual_seed(seed)
    def main(prompts, model):
        for prompt in prompts:
            set_all(SEED)
            print(model.generate(prompt))
"""
fault("S03", SEEDED.replace("SEED", "42"))
right("S03", SEEDED.replace("SEED", "random.randint(0, 2**31)"))

RESUMED = """
    import torch
    def setup_seed(seed):
        torch.manual_seed(seed)
    def main(model, optimizer, rows, epochs):
        state = torch.load("last.pt")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        for epoch in range(state["epoch"], epochs):
            SEEDS
            order = torch.randperm(len(rows)).tolist()
            for at in order:
                loss = model(rows[at])
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
"""
fault("S75", RESUMED.replace("SEEDS", "print(epoch)"))
right("S75", RESUMED.replace("SEEDS", "setup_seed(42 + epoch)"))

CUT = """
    def answer(model, tokenizer, prompt, limit):
        ids = tokenizer(prompt, return_tensors="pt", truncation=True LENGTH)
        return model.generate(**ids)
"""
fault("S12", CUT.replace(" LENGTH", ", max_length=limit"))
right("S12", CUT.replace(" LENGTH", ""))

KEPT = """
    import torch
    def save(path, model, optimizer, step, **others):
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
        MORE
        torch.save(state, path)
    def train(model, optimizer, scheduler, loader):
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
        for step, x in enumerate(loader):
            model(x).backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            save("last.pt", model, optimizer, step, scheduler=scheduler)
"""
fault("S92", KEPT.replace("MORE", "print(step)"))
right("S92", KEPT.replace("MORE", "for key, part in others.items():\n            state[key] = part.state_dict()"))

right("S23", """
    def train(model, loader, tokenizer, optimizer):
        for batch in loader:
            asked = tokenizer(batch["prompt"], return_tensors="pt", padding=True, padding_side="left")
            written = model.generate(**asked)
            labels = written[:, 1:].clone()
            labels[labels == tokenizer.pad_token_id] = -100
            loss = model(written, labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
""")  # fmt: skip

JOINED = """
    import torch
    from torch.utils.data import DataLoader, IterableDataset
    class Joined(IterableDataset):
        def __init__(self, rows):
            self.rows = rows
        def METHOD(self, group):
            return group
    class Collate:
        def __call__(self, batch):
            width = max(len(ids) for ids, mask in batch)
            inputs = torch.full((len(batch), width), 0)
            targets = torch.full((len(batch), width), -100)
            return inputs, targets
    def loaders(rows):
        join = Collate()
        return DataLoader(Joined(rows), batch_size=8, shuffle=True, collate_fn=join)
"""
fault("S23", JOINED.replace("METHOD", "_take_group"))
right("S23", JOINED.replace("METHOD", "_pack_group"))


@pytest.mark.parametrize(("rule", "code"), CASES.faults())
def test_where_the_fact_is_there_the_fault_is_found(rule, code):
    check_fault(rule, code)


@pytest.mark.parametrize(("rule", "code"), CASES.near_misses())
def test_where_the_fact_is_not_there_nothing_is_said(rule, code):
    check_right(rule, code)


def test_a_conversion_that_writes_in_place_is_held_back():
    code = "import torch\ndef {}(model, path):\n    torch.save(model.state_dict(), path)\n"
    found = [scan_texts({"a.py": code.format(name)}, only=["S60"]).findings[0] for name in ("save", "convert_weights")]
    assert [finding.confidence for finding in found] == ["high", "low"]
