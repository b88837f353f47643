"""Faults and near misses of the rules about devices: waits for them, and copies to them and back."""

import pytest
from tests.optimise.scan.cases import LOOP, Cases, check_fault, check_right

CASES = Cases()
fault, right = CASES.fault, CASES.right

# --- S30 -------------------------------------------------------------------------------------------------------------
fault("S30", """
    def train(model, opt, loader, accum):
        total = 0.0
        for step in range(100):
            for micro in range(accum):
                loss = model(next(loader)) / accum
                loss.backward()
                total += loss.item()
            opt.step()
""")  # fmt: skip
fault("S30", """
    def train(model, opt, loader, accum):
        for i, batch in enumerate(loader):
            loss = model(batch) / accum
            loss.backward()
            print(f"step {i} loss {loss}")
            if (i + 1) % accum == 0:
                opt.step()
""")  # fmt: skip
fault("S30", LOOP + "            history.append(float(loss.detach()))\n")
right("S30", LOOP + "            if step % 100 == 0:\n                print(loss.item())\n")
right("S30", LOOP + "            total = total + loss.detach()\n        return total.item()\n")
fault("S30", """
    def train(model, opt, loader, accum):
        for step in range(100):
            for micro in range(accum):
                loss = model(next(loader)) / accum
                loss.backward()
            opt.step()
            value = loss.item()
""")  # fmt: skip
right("S30", """
    def train(model, opt, loader, accum):
        for step in range(100):
            for micro in range(accum):
                loss = model(next(loader)) / accum
                loss.backward()
            opt.step()
            if step % 50 == 0:
                value = loss.item()
""")  # fmt: skip

# --- S32 -------------------------------------------------------------------------------------------------------------
fault("S32", """
    import torch.nn as nn
    class Attention(nn.Module):
        def forward(self, x, cache):
            start = cache.lengths.max().item()
            return x[:, :start]
""")  # fmt: skip
right("S32", """
    import torch.nn as nn
    class Attention(nn.Module):
        def forward(self, x, start: int):
            return x[:, :start]
        def describe(self):
            return self.scale.item()
""")  # fmt: skip

# --- S33 -------------------------------------------------------------------------------------------------------------
fault("S33", """
    import torch
    def loader(device="cuda"):
        pinned = device == "cuda"
        return pinned
    loader(device=torch.device("cuda", 0))
""")  # fmt: skip
fault("S33", """
    import torch
    def move(x: torch.Tensor, device: torch.device):
        if device in ("cuda", "mps"):
            return x.to(device)
        return x
""")  # fmt: skip
fault("S33", """
    def check(x):
        if "cpu" != x.device:
            return True
""")  # fmt: skip
fault("S33", """
    import torch
    class Trainer:
        def __init__(self):
            self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        def run(self):
            match self.device:
                case "cuda":
                    return 1
            return 0
""")  # fmt: skip
fault("S33", """
    def first(model):
        device = next(model.parameters()).device
        return "cuda" in device
""")  # fmt: skip
right("S33", """
    import torch
    def loader(device="cuda"):
        return device == "cuda"
    loader("cpu")
""")  # fmt: skip
right("S33", """
    import torch
    def move(x, device: torch.device):
        return x.pin_memory() if device.type == "cuda" else x
""")  # fmt: skip
right("S33", """
    def main(args):
        return args.device == "cuda" or str(args.device) == "cpu"
""")  # fmt: skip
right("S33", """
    import torch
    def same(x):
        return x.device == torch.device("cuda")
""")  # fmt: skip

# --- S34 -------------------------------------------------------------------------------------------------------------
fault("S34", """
    import torch
    def batch(rows, device):
        x = torch.tensor(rows)
        return x.to(device, non_blocking=True)
""")  # fmt: skip
fault("S34", """
    from torch.utils.data import DataLoader
    loader = DataLoader(rows, batch_size=8)
    for x, y in loader:
        x = x.cuda(non_blocking=True)
""")  # fmt: skip
right("S34", """
    import torch
    def batch(rows, device):
        x = torch.tensor(rows, pin_memory=True)
        y = torch.tensor(rows).pin_memory()
        return x.to(device, non_blocking=True), y.to(device, non_blocking=True)
""")  # fmt: skip
right("S34", """
    from torch.utils.data import DataLoader
    loader = DataLoader(rows, batch_size=8, pin_memory=True)
    for x, y in loader:
        x = x.cuda(non_blocking=True)
""")  # fmt: skip

# --- S35 -------------------------------------------------------------------------------------------------------------
fault("S35", """
    def read(x):
        host = x.to("cpu", non_blocking=True)
        return host.numpy()
""")  # fmt: skip
fault("S35", """
    import torch
    def read(x):
        host = torch.empty(x.shape, pin_memory=True)
        host.copy_(x, non_blocking=True)
        return host.tolist()
""")  # fmt: skip
right("S35", """
    import torch
    def read(x):
        host = x.to("cpu", non_blocking=True)
        torch.cuda.synchronize()
        return host.numpy()
""")  # fmt: skip

# --- S36 -------------------------------------------------------------------------------------------------------------
fault("S36", """
    import torch
    def batches(source, device):
        staging = torch.empty(1024, dtype=torch.long, pin_memory=True)
        out = torch.empty(1024, dtype=torch.long, device=device)
        for row in source:
            staging[:] = row
            out.copy_(staging, non_blocking=True)
            yield out
""")  # fmt: skip
right("S36", """
    import torch
    def batches(source, device):
        staging = torch.empty(1024, dtype=torch.long, pin_memory=True)
        done = torch.cuda.Event()
        for row in source:
            done.synchronize()
            staging[:] = row
            out = staging.to(device, non_blocking=True)
            done.record()
            yield out
""")  # fmt: skip
right("S36", """
    import torch
    def batches(source, device):
        for row in source:
            staging = torch.tensor(row, pin_memory=True)
            yield staging.to(device, non_blocking=True)
""")  # fmt: skip

# --- S37 -------------------------------------------------------------------------------------------------------------
fault("S37", "def f(x, device):\n    return x.to(device).pin_memory()\n")
fault("S37", "import torch\nx = torch.empty(4, device='cuda', pin_memory=True)\n")
right("S37", "def f(x, device):\n    return x.pin_memory().to(device, non_blocking=True)\n")

# --- S38 -------------------------------------------------------------------------------------------------------------
fault("S38", """
    import torch
    def ahead(batches, device):
        side = torch.cuda.Stream()
        for batch in batches:
            with torch.cuda.stream(side):
                batch = batch.to(device, non_blocking=True)
            yield batch
""")  # fmt: skip
right("S38", """
    import torch
    def ahead(batches, device):
        side = torch.cuda.Stream()
        for batch in batches:
            with torch.cuda.stream(side):
                batch = batch.to(device, non_blocking=True)
            torch.cuda.current_stream().wait_stream(side)
            yield batch
""")  # fmt: skip
# --- S63 --------------------------------------------------------------------------------------------------------------
fault("S63", """
    class Pool:
        def send(self, rows):
            buf = self.free.get()
            buf.copy_(rows)
            on_device = buf.to("cuda", non_blocking=True)
            self.free.put(buf)
            return on_device
""")  # fmt: skip
right("S63", """
    import torch
    class Pool:
        def send(self, rows):
            buf = self.free.get()
            buf.copy_(rows)
            on_device = buf.to("cuda", non_blocking=True)
            torch.cuda.current_stream().synchronize()
            self.free.put(buf)
            return on_device
""")  # fmt: skip

# --- S64 --------------------------------------------------------------------------------------------------------------
fault("S64", """
    import torch
    from torch.utils.data import DataLoader
    def join(rows):
        return torch.stack(rows).cuda()
    def batches(rows):
        return DataLoader(rows, collate_fn=join, pin_memory=True)
""")  # fmt: skip
right("S64", """
    import torch
    from torch.utils.data import DataLoader
    def join(rows):
        return torch.stack(rows)
    def batches(rows):
        return DataLoader(rows, collate_fn=join, pin_memory=True)
""")  # fmt: skip


@pytest.mark.parametrize(("rule", "code"), CASES.faults())
def test_a_planted_fault_is_found(rule, code):
    check_fault(rule, code)


@pytest.mark.parametrize(("rule", "code"), CASES.near_misses())
def test_code_that_looks_alike_and_is_right_is_left_alone(rule, code):
    check_right(rule, code)
