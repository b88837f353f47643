"""Faults and near misses of the rules about training steps: micro-batches, compiling, casts, evaluations."""

import pytest
from tests.optimise.scan.cases import COLLATE, LOOP, Cases, check_fault, check_right

CASES = Cases()
fault, right = CASES.fault, CASES.right

# --- S20 -------------------------------------------------------------------------------------------------------------
fault("S20", """
    device_batch_size = 4  # max to avoid OOM
    target_examples_per_step = 32
    grad_accum_steps = target_examples_per_step // device_batch_size
""")  # fmt: skip
fault("S20", """
    import argparse
    parser = argparse.ArgumentParser()
    parser.add_argument("--micro-batch-size", type=int, default=2)
    parser.add_argument("--gradient-accumulation-steps", type=int, default=16)
""")  # fmt: skip
fault("S20", """
    from dataclasses import dataclass
    @dataclass
    class TrainConfig:
        per_device_train_batch_size: int = 1
        gradient_accumulation_steps: int = 32
""")  # fmt: skip
right("S20", """
    batch_size = 4
    gradient_accumulation_steps = 1
""")  # fmt: skip
right("S20", """
    device_batch_size = 64
    grad_accum_steps = 8
""")  # fmt: skip
right("S20", """
    micro_batch_size = find_batch_size(model)
    grad_accum_steps = total // micro_batch_size
    eval_batch_size = 4
""")  # fmt: skip

# --- S21 -------------------------------------------------------------------------------------------------------------
fault("S21", LOOP)
fault("S21", LOOP.replace("    def train", "    # model = torch.compile(model)\n    def train"))
right("S21", LOOP + "\n    train(torch.compile(Model()), None, None)\n")
right("S21", LOOP.replace("        for step", "        model.compile()\n        for step"))

# --- S22 -------------------------------------------------------------------------------------------------------------
fault("S22", COLLATE + "    model = torch.compile(model, dynamic=False)\n")
fault(
    "S22",
    LOOP.replace("            loss = model", "            fast_model = torch.compile(model)\n            loss = model"),
)
right("S22", COLLATE + "    model = torch.compile(model, dynamic=True)\n")
right("S22", "import torch\nmodel = torch.compile(model, dynamic=False)\n")

# --- S40 -------------------------------------------------------------------------------------------------------------
fault("S40", """
    import torch.nn.functional as F
    def forward(self, x, targets):
        logits = self.lm_head(x)
        logits = logits.float()
        return F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))
""")  # fmt: skip
fault("S40", """
    import torch
    import torch.nn.functional as F
    def loss(model, x, y):
        logits = model(x).logits
        return F.cross_entropy(logits.to(torch.float32).flatten(0, 1), y.flatten())
""")  # fmt: skip
right("S40", """
    import torch.nn.functional as F
    def forward(self, x, targets):
        total = 0
        for piece, y in zip(x.chunk(8), targets.chunk(8)):
            logits_chunk = self.lm_head(piece)
            total += F.cross_entropy(logits_chunk.float(), y)
        return total
""")  # fmt: skip
right("S40", """
    def sample(model, ids):
        logits = model(ids)[:, -1]
        return logits.float().softmax(-1)
""")  # fmt: skip

# --- S41 -------------------------------------------------------------------------------------------------------------
fault("S41", """
    import torch.nn as nn
    import torch.nn.functional as F
    class Linear(nn.Linear):
        def forward(self, x):
            return F.linear(x, self.weight.to(dtype=x.dtype))
""")  # fmt: skip
fault("S41", """
    import torch
    def train(model, opt, loader):
        for x, y in loader:
            model.half()
            loss = model(x, y)
            loss.backward()
            model.float()
            opt.step()
""")  # fmt: skip
right("S41", """
    import torch.nn as nn
    import torch.nn.functional as F
    class RMSNorm(nn.Module):
        def forward(self, x):
            return F.rms_norm(x, (x.size(-1),)) * self.weight.to(x.dtype)
""")  # fmt: skip
right("S41", """
    import torch, torch.nn as nn
    import torch.nn.functional as F
    class Int8Linear(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.register_buffer("weight", torch.empty(n, n, dtype=torch.int8))
        def forward(self, x):
            return F.linear(x, self.weight.to(x.dtype)) * self.scales
""")  # fmt: skip

# --- S45 -------------------------------------------------------------------------------------------------------------
fault("S45", """
    def evaluate(model, batches):
        model.eval()
        total = 0
        for x, y in batches:
            total += model(x, y)
        return total
""")  # fmt: skip
fault("S45", """
    def train(model, opt, loader, val):
        for step, batch in enumerate(loader):
            if step % 100 == 0:
                model.eval()
                val_loss = sum(model(b) for b in val)
                model.train()
            loss = model(batch)
            loss.backward()
            opt.step()
""")  # fmt: skip
fault("S45", """
    def pick(candidates, rows):
        for one in candidates:
            one.eval()
            print(sum((one(x).argmax(1) == y).float().mean() for x, y in rows))
""")  # fmt: skip
right("S45", """
    import torch
    @torch.inference_mode()
    def evaluate(model, batches):
        return sum(model(x, y) for x, y in batches)
""")  # fmt: skip
right("S45", """
    import torch
    def val_loss(model, batch):
        return model(batch)
    def report(model, batches):
        with torch.no_grad():
            return [val_loss(model, b) for b in batches]
""")  # fmt: skip

# --- S46 -------------------------------------------------------------------------------------------------------------
DROPOUT = """
    import torch
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = torch.nn.Dropout(0.1)
    def train(model, opt, loader):
        for batch in loader:
            loss = model(batch)
            loss.backward()
            opt.step()
"""
fault("S46", DROPOUT + """
    @torch.no_grad()
    def evaluate(model, batches):
        return sum(model(b) for b in batches)
""")  # fmt: skip
right("S46", DROPOUT + """
    @torch.no_grad()
    def evaluate(model, batches):
        model.eval()
        out = sum(model(b) for b in batches)
        model.train()
        return out
""")  # fmt: skip
right("S46", DROPOUT.replace("torch.nn.Dropout(0.1)", "None").replace("drop", "d") + """
    @torch.no_grad()
    def evaluate(model, batches):
        return sum(model(b) for b in batches)
""")  # fmt: skip

# --- S47 -------------------------------------------------------------------------------------------------------------
fault("S47", """
    import torch
    def train(model, opt, loader, val):
        for step, batch in enumerate(loader):
            loss = model(batch)
            loss.backward()
            opt.step()
            if step % 100 == 0:
                model.eval()
                with torch.no_grad():
                    print(model(val))
""")  # fmt: skip
right("S47", """
    import torch
    def train(model, opt, loader, val):
        for epoch in range(3):
            model.train()
            for batch in loader:
                loss = model(batch)
                loss.backward()
                opt.step()
            model.eval()
""")  # fmt: skip
# --- S48 --------------------------------------------------------------------------------------------------------------
fault("S48", """
    import torch
    from lib import Net
    def load(path):
        model = Net(dropout=0.1)
        model.load_state_dict(torch.load(path, weights_only=True))
        return model
    def answer(model, ids):
        with torch.no_grad():
            return model(ids).argmax(-1)
""")  # fmt: skip
fault("S48", """
    import torch
    def answer(model, ids):
        model.train()
        with torch.no_grad():
            return model(ids).argmax(-1)
""")  # fmt: skip
right("S48", """
    import torch
    from lib import Net
    def load(path):
        model = Net(dropout=0.1)
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()
    def answer(model, ids):
        with torch.no_grad():
            return model(ids).argmax(-1)
""")  # fmt: skip
right("S48", """
    import torch
    from lib import Net
    def convert(path, out):
        model = Net(dropout=0.1)
        model.load_state_dict(torch.load(path, weights_only=True))
        torch.save(model.state_dict(), out)
""")  # fmt: skip

# --- S49 --------------------------------------------------------------------------------------------------------------
fault("S49", """
    def distil(student, teacher, batches, opt, far):
        for x in batches:
            loss = far(student(x), teacher(x))
            loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
fault("S49", """
    def scores(model, x):
        return model(x).log_softmax(-1)
    class Trainer:
        def fit(self, batches):
            for x in batches:
                loss = (scores(self.policy, x) - scores(self.ref, x)).square().mean()
                loss.backward()
                self.opt.step()
                self.opt.zero_grad()
""")  # fmt: skip
right("S49", """
    import torch
    def distil(student, teacher, batches, opt, far):
        for x in batches:
            with torch.no_grad():
                wanted = teacher(x)
            loss = far(student(x), wanted)
            loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
right("S49", """
    def perceive(model, critic, batches, opt):
        for x in batches:
            loss = (critic(model(x)) - critic(x)).square().mean()
            loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip

# --- S65 --------------------------------------------------------------------------------------------------------------
HOOK = """
    import lightning as L, torch
    class Net(L.LightningModule):
        def training_step(self, batch, _): return self.net(**batch).loss
        def write(self, ids, n):
            past = None
            for _ in range(n):
                out = self.net(ids, past_key_values=past, use_cache=True)
                past = out.past_key_values
                ids = torch.multinomial(torch.softmax(out.logits[:, -1], -1), 1)
            return ids
        def on_train_batch_end(self, outputs, batch, number):
            if number % 1000 == 0:
                print(DONE)
"""
fault("S65", HOOK.replace("DONE", "self.write(self.prompt, 50)"))
right("S65", HOOK.replace(
    "print(DONE)", "self.net.eval(); self.preview(); self.net.train()") + """
        @torch.no_grad()
        def preview(self):
            print(self.write(self.prompt, 50))
""")  # fmt: skip

# --- S68 --------------------------------------------------------------------------------------------------------------
EPOCH = """
    import torch
    def epoch(model, loader, opt=None):
        total = 0
        for x, y in loader:
            WITH
                loss = model(x, y)
            if opt is not None:
                loss.backward(); opt.step(); opt.zero_grad()
            total += loss.detach()
        return total
    def main(model, train, test, opt):
        for _ in range(5):
            epoch(model, train, opt)
            print(epoch(model, test))
"""
fault("S68", EPOCH.replace("WITH", "with torch.autocast('cuda'):"))
right("S68", EPOCH.replace("WITH", "with torch.set_grad_enabled(opt is not None):"))

# --- S69 --------------------------------------------------------------------------------------------------------------
AFTER = """
    import torch
    def main(model, opt, loader, prompt):
        model.train()
        for batch in loader:
            model(**batch).loss.backward(); opt.step(); opt.zero_grad()
        MODE
        with torch.no_grad():
            print(model.generate(prompt, max_new_tokens=50))
"""
fault("S69", AFTER.replace("MODE", "torch.cuda.empty_cache()"))
right("S69", AFTER.replace("MODE", "model.eval()"))
TWICE = """
    import torch
    def main(model, opt, batches, profile):
        model.train()
        if profile:
            for batch in batches:
                logits, loss = model(batch)
                opt.zero_grad(); loss.backward(); opt.step()
        else:
            for batch in batches:
                logits, loss = model(batch)
                opt.zero_grad(); loss.backward(); opt.step()
"""
right("S69", TWICE)  # the second loop trains too


@pytest.mark.parametrize(("rule", "code"), CASES.faults())
def test_a_planted_fault_is_found(rule, code):
    check_fault(rule, code)


@pytest.mark.parametrize(("rule", "code"), CASES.near_misses())
def test_code_that_looks_alike_and_is_right_is_left_alone(rule, code):
    check_right(rule, code)
