"""Faults and near misses of the rules about gradients gathered over micro-batches."""

import textwrap

import pytest
from tests.optimise.scan.cases import LOOP, Cases, check_fault, check_right

CASES = Cases()
fault, right = CASES.fault, CASES.right

# --- S50 -------------------------------------------------------------------------------------------------------------
fault("S50", """
    def train(model, opt, loader, accumulation_steps):
        for i, batch in enumerate(loader):
            loss = model(batch) / accumulation_steps
            loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
fault("S50", """
    def step(model, optimizer, batch, grad_accum):
        for micro in batch.chunk(grad_accum):
            loss = model(micro)
            (loss / grad_accum).backward()
            optimizer.step()
""")  # fmt: skip
right("S50", LOOP)
right("S50", """
    def train(model, opt, loader, accumulation_steps):
        for i, batch in enumerate(loader):
            (model(batch) / accumulation_steps).backward()
            if (i + 1) % accumulation_steps == 0:
                opt.step()
                opt.zero_grad()
""")  # fmt: skip

# --- S51 -------------------------------------------------------------------------------------------------------------
ACCUM = """
    def train(model, opt, loader, accum):
        for step in range(100):
            for micro in range(accum):
                loss = model(next(loader))
                loss = loss / accum
                loss.backward()
            opt.step()
            opt.zero_grad()
"""
fault(
    "S51",
    ACCUM.replace(
        "                loss.backward()", "                opt.zero_grad()\n                loss.backward()"
    ),
)
right("S51", ACCUM)
right(
    "S51",
    ACCUM.replace("            opt.zero_grad()\n", "").replace(
        "            for micro", "            opt.zero_grad()\n            for micro"
    ),
)

# --- S52 -------------------------------------------------------------------------------------------------------------
fault("S52", ACCUM.replace("                loss = loss / accum\n", ""))
fault(
    "S52",
    ACCUM.replace("                loss = loss / accum\n", "").replace(
        "            opt.step()", "                loss = loss / accum\n            opt.step()"
    ),
)
fault("S52", """
    def train(model, opt, loader, accum):
        for i, batch in enumerate(loader):
            loss = model(batch)
            loss.backward()
            if (i + 1) % accum == 0:
                opt.step()
                opt.zero_grad()
""")  # fmt: skip
right("S52", ACCUM)
right("S52", ACCUM.replace("loss = loss / accum", "loss *= 1.0 / accum"))
right(
    "S52",
    ACCUM.replace("                loss = loss / accum\n", "").replace(
        "            opt.step()",
        "            for p in model.parameters():\n                p.grad.div_(accum)\n            opt.step()",
    ),
)
right("S52", """
    def train(model, opt, loader):
        for epoch in range(3):
            for batch in loader:
                loss = model(batch)
                loss.backward()
                opt.step()
                opt.zero_grad()
""")  # fmt: skip

# --- S53 -------------------------------------------------------------------------------------------------------------
fault("S53", ACCUM + """
    def collate(ids, mask):
        targets = ids.clone()
        targets[mask == 0] = -100
        return targets
""")  # fmt: skip
right("S53", ACCUM)

# --- S54 -------------------------------------------------------------------------------------------------------------
fault(
    "S54", "from torch.nn.parallel import DistributedDataParallel as DDP\nmodel = DDP(model)\n" + textwrap.dedent(ACCUM)
)
fault("S54", """
    import torch.distributed as dist
    def train(model, opt, loader, accum):
        for step in range(100):
            for micro in range(accum):
                (model(next(loader)) / accum).backward()
                for p in model.parameters():
                    dist.all_reduce(p.grad)
            opt.step()
""")  # fmt: skip
right("S54", ACCUM)
right("S54", """
    from contextlib import nullcontext
    from torch.nn.parallel import DistributedDataParallel as DDP
    def train(model, opt, loader, accum):
        model = DDP(model)
        for step in range(100):
            for micro in range(accum):
                with nullcontext() if micro == accum - 1 else model.no_sync():
                    (model(next(loader)) / accum).backward()
            opt.step()
""")  # fmt: skip

# --- S55 -------------------------------------------------------------------------------------------------------------
SCALED = """
    import torch
    def train(model, opt, loader, scaler):
        for batch in loader:
            scaler.scale(model(batch)).backward()
            scaler.unscale_(opt)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(opt)
            scaler.update()
"""
fault("S55", SCALED.replace("            scaler.unscale_(opt)\n", ""))
right("S55", SCALED)

# --- S56 -------------------------------------------------------------------------------------------------------------
fault("S56", SCALED.replace("            scaler.unscale_(opt)\n", "").replace("scaler.step(opt)", "opt.step()"))
right("S56", SCALED)

# --- S57 -------------------------------------------------------------------------------------------------------------
fault("S57", """
    def step(model, opt, stream, accum):
        for _ in range(accum):
            loss = model(next(stream)) / accum
            (loss / accum).backward()
        opt.step()
""")  # fmt: skip
fault("S57", """
    def step(model, opt, stream, accum):
        for _ in range(accum):
            loss = model(next(stream)) * accum
            loss.backward()
        opt.step()
""")  # fmt: skip
right("S57", """
    def step(model, opt, stream, accum, weight):
        for _ in range(accum):
            loss = model(next(stream)) * weight / accum
            loss.backward()
        opt.step()
""")  # fmt: skip

# --- S58 -------------------------------------------------------------------------------------------------------------
BACKWARD, STEP, MOVES = "                loss.backward()\n", "            opt.step()\n", "    scheduler.step()\n"
fault("S58", ACCUM.replace(BACKWARD, f"{BACKWARD}            {MOVES}"))
right("S58", ACCUM.replace(STEP, f"{STEP}        {MOVES}"))

# --- S59 -------------------------------------------------------------------------------------------------------------
LIBRARY = """
    from accelerate import Accelerator
    def train(model, opt, loader, n):
        accelerator = Accelerator(gradient_accumulation_steps=n)
        for batch in loader:
            with accelerator.accumulate(model):
                loss = model(batch)
                accelerator.backward(loss)
                opt.step()
                opt.zero_grad()
"""
fault("S59", LIBRARY.replace("n)", "accum)").replace("backward(loss)", "backward(loss / accum)"))
right("S59", LIBRARY)
fault("S59", """
    import lightning
    class Plan(lightning.LightningModule):
        def training_step(self, batch, index):
            return self.loss(batch) / self.trainer.accumulate_grad_batches
""")  # fmt: skip
right("S59", """
    import lightning
    class Plan(lightning.LightningModule):
        def __init__(self):
            self.automatic_optimization = False
        def training_step(self, batch, index):
            self.manual_backward(self.loss(batch) / self.hparams.accumulate)
""")  # fmt: skip


@pytest.mark.parametrize(("rule", "code"), CASES.faults())
def test_a_planted_fault_is_found(rule, code):
    check_fault(rule, code)


@pytest.mark.parametrize(("rule", "code"), CASES.near_misses())
def test_code_that_looks_alike_and_is_right_is_left_alone(rule, code):
    check_right(rule, code)
