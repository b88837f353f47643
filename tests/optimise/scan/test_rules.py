"""Every rule on code with the fault in several spellings, and on code that looks alike and is right."""

import textwrap

import pytest

from intone.optimise.scan.finding import CLASSES
from intone.optimise.scan.rulebook import RULES
from intone.optimise.scan.run import scan_texts

# rule -> code in which it must be found
FAULTS: dict[str, list[str]] = {}
# rule -> code in which it must not be found
RIGHT: dict[str, list[str]] = {}


def fault(rule: str, code: str) -> None:
    FAULTS.setdefault(rule, []).append(textwrap.dedent(code))


def right(rule: str, code: str) -> None:
    RIGHT.setdefault(rule, []).append(textwrap.dedent(code))


# --- S01 -------------------------------------------------------------------------------------------------------------
fault("S01", """
    import torch
    def generate(model, ids, num_samples):
        probs = model(ids)[:, -1].softmax(-1)
        first = torch.multinomial(probs, num_samples=1)
        tokens = first[:, 0].tolist()
        column = [tokens[0]] * num_samples
        return column
""")  # fmt: skip
fault("S01", """
    from torch import multinomial as draw_one
    import torch
    def rollouts(policy, prompt, n):
        nxt = draw_one(policy(prompt)[:, -1].softmax(-1), 1)
        ids = prompt.expand(n, -1)
        return torch.cat([ids, nxt.expand(n, 1)], dim=1)
""")  # fmt: skip
fault("S01", """
    import torch
    def sample_token(logits):
        probs = torch.softmax(logits, dim=-1)
        return torch.multinomial(probs, 1)
    class Sampler:
        def start(self, logits, rows):
            token = sample_token(logits).item()
            return torch.full((rows, 1), token)
""")  # fmt: skip
fault("S01", """
    from torch.distributions import Categorical
    def start(logits, rows):
        token = Categorical(logits=logits[0]).sample()
        return [int(token) for _ in range(rows)]
""")  # fmt: skip
right("S01", """
    import torch
    def generate(model, ids, num_samples):
        logits = model(ids)[:, -1].expand(num_samples, -1)
        return torch.multinomial(logits.softmax(-1), num_samples=1)[:, 0].tolist()
""")  # fmt: skip
right("S01", """
    import torch
    def greedy(model, ids, num_samples):
        token = model(ids)[:, -1].argmax(-1)
        return token.expand(num_samples)
""")  # fmt: skip
right("S01", """
    import random
    def pick(rows, n):
        sample = random.sample(rows, 1)
        return [sample[0]] * n
""")  # fmt: skip

# --- S02 -------------------------------------------------------------------------------------------------------------
fault("S02", """
    import torch
    def generate(model, ids, num_samples=4, seed=42):
        rng = torch.Generator(device=ids.device)
        rng.manual_seed(seed)
        for _ in range(9):
            probs = model(ids).softmax(-1)
            nxt = torch.multinomial(probs, 1, generator=rng)
        return nxt
""")  # fmt: skip
fault("S02", """
    import torch as T
    def complete(model, ids, batch_size, seed):
        g = T.Generator().manual_seed(seed)
        return T.multinomial(model(ids).softmax(-1), 1, generator=g)
""")  # fmt: skip
right("S02", """
    import torch
    def generate(model, ids, num_samples=4, seed=42):
        streams = [torch.Generator().manual_seed(seed + row) for row in range(num_samples)]
        return [torch.multinomial(model(ids).softmax(-1), 1, generator=g) for g in streams]
""")  # fmt: skip
right("S02", """
    import torch
    def generate(model, ids, max_tokens, seed=42):
        rng = torch.Generator()
        rng.manual_seed(seed)
        return torch.multinomial(model(ids).softmax(-1), 1, generator=rng)
""")  # fmt: skip

# --- S03 -------------------------------------------------------------------------------------------------------------
fault("S03", """
    import torch
    def train(model, opt, loader, seed):
        for x, y in loader:
            torch.manual_seed(seed)
            loss = model(x, y)
            loss.backward()
            opt.step()
""")  # fmt: skip
fault("S03", """
    import torch
    def sample(logits, seed=1234):
        torch.manual_seed(seed)
        return torch.multinomial(logits.softmax(-1), 1)
""")  # fmt: skip
fault("S03", """
    import numpy as np
    class Rows:
        def __getitem__(self, i):
            np.random.seed(0)
            return self.rows[i], np.random.rand()
""")  # fmt: skip
right("S03", """
    import torch
    torch.manual_seed(1337)
    def train(model, loader, seed):
        for step, batch in enumerate(loader):
            torch.manual_seed(seed + step)
            model(batch)
""")  # fmt: skip
right("S03", """
    import torch
    def study(seeds):
        for seed in seeds:
            torch.manual_seed(seed)
            run()
""")  # fmt: skip

# --- S04 -------------------------------------------------------------------------------------------------------------
fault("S04", """
    import torch
    from torch.distributed import init_process_group
    init_process_group("nccl")
    torch.manual_seed(1337)
    def get_batch(data, n, t):
        ix = torch.randint(len(data) - t, (n,))
        return torch.stack([data[i:i + t] for i in ix])
""")  # fmt: skip
right("S04", """
    import os, torch
    from torch.distributed import init_process_group
    init_process_group("nccl")
    rank = int(os.environ["RANK"])
    torch.manual_seed(1337 + rank)
    def get_batch(data, n, t):
        ix = torch.randint(len(data) - t, (n,))
        return torch.stack([data[i:i + t] for i in ix])
""")  # fmt: skip

# --- S05 -------------------------------------------------------------------------------------------------------------
fault("S05", """
    import numpy as np
    from torch.utils.data import DataLoader, Dataset
    class Rows(Dataset):
        def __init__(self, rows):
            self.rows, self.rng = rows, np.random.default_rng(0)
        def __getitem__(self, i):
            return self.rows[i][self.rng.integers(4):]
    loader = DataLoader(Rows([]), num_workers=4)
""")  # fmt: skip
right("S05", """
    import numpy as np
    from torch.utils.data import DataLoader, Dataset
    class Rows(Dataset):
        def __init__(self, rows):
            self.rows, self.rng = rows, np.random.default_rng(0)
        def __getitem__(self, i):
            return self.rows[i][self.rng.integers(4):]
    loader = DataLoader(Rows([]), num_workers=0)
""")  # fmt: skip

# --- S06 -------------------------------------------------------------------------------------------------------------
fault("S06", """
    import torch
    from torch.utils.data import DataLoader
    def run(rows, model, ids):
        stream = torch.Generator().manual_seed(1)
        loader = DataLoader(rows, shuffle=True, generator=stream)
        for batch in loader:
            model(batch)
            print(torch.multinomial(model(ids).softmax(-1), 1, generator=stream))
""")  # fmt: skip
right("S06", """
    import torch
    from torch.utils.data import DataLoader
    def run(rows, model, ids):
        order, tokens = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
        loader = DataLoader(rows, shuffle=True, generator=order)
        for batch in loader:
            model(batch)
            print(torch.multinomial(model(ids).softmax(-1), 1, generator=tokens))
""")  # fmt: skip

# --- S10 -------------------------------------------------------------------------------------------------------------
fault("S10", """
    import torch
    def generate(model, idx, max_new_tokens, block_size):
        for _ in range(max_new_tokens):
            idx_cond = idx if idx.size(1) <= block_size else idx[:, -block_size:]
            logits, _ = model(idx_cond)
            nxt = torch.multinomial(logits[:, -1].softmax(-1), 1)
            idx = torch.cat((idx, nxt), dim=1)
        return idx
""")  # fmt: skip
fault("S10", """
    import torch
    class LM(torch.nn.Module):
        def stream(self, tokens, n):
            out = list(tokens)
            while len(out) < n:
                logits = self(torch.tensor([out]))
                out.append(logits[0, -1].argmax().item())
                yield out[-1]
""")  # fmt: skip
fault("S10", """
    import torch
    def decode(net, seq, start, end):
        for t in range(start, end):
            logits = net(seq[:, :t])
            seq[:, t] = logits[:, -1].argmax(dim=-1)
        return seq
""")  # fmt: skip
fault("S10", """
    def answer(model, ids):
        return model.generate(ids, max_new_tokens=64, use_cache=False)
""")  # fmt: skip
right("S10", """
    import torch
    def generate(model, idx, n):
        past = None
        for _ in range(n):
            out = model(idx[:, -1:] if past is not None else idx, past_key_values=past)
            past = out.past_key_values
            nxt = out.logits[:, -1].argmax(-1, keepdim=True)
            idx = torch.cat((idx, nxt), dim=1)
        return idx
""")  # fmt: skip
right("S10", """
    import torch
    def decode(model, token, input_pos, n):
        tokens = []
        for _ in range(n):
            logits = model(token, input_pos)
            token = torch.multinomial(logits[:, -1].softmax(-1), 1)
            input_pos += 1
            tokens.append(token)
        return torch.cat(tokens, dim=1)
""")  # fmt: skip
right("S10", """
    def evaluate(model, batches):
        right = 0
        for x, y in batches:
            right += (model(x).argmax(-1) == y).sum().item()
        return right
""")  # fmt: skip

# --- S11 -------------------------------------------------------------------------------------------------------------
fault("S11", """
    def attend(q, k_cache, v_cache, k, v, pos):
        k_cache[:, pos:pos + k.shape[1]] = k
        v_cache[:, pos:pos + k.shape[1]] = v
        return q @ k_cache.transpose(-1, -2)
""")  # fmt: skip
fault("S11", """
    class Cache:
        def update(self, k, v):
            if self.pos >= self.max_len:
                return
            self.k_cache[:, :, self.pos] = k
            self.v_cache[:, :, self.pos] = v
            self.pos += 1
""")  # fmt: skip
fault("S11", """
    class Cache:
        def put(self, k, pos):
            pos = min(pos, self.max_len - 1)
            self.kv_cache[:, pos] = k
""")  # fmt: skip
right("S11", """
    def attend(q, k_cache, k, pos):
        end = pos + k.shape[1]
        if end > k_cache.shape[1]:
            raise ValueError(f"the cache holds {k_cache.shape[1]} positions, {end} are needed")
        k_cache[:, pos:end] = k
        return k_cache[:, :end]
""")  # fmt: skip
right("S11", """
    class Cache:
        def update(self, k, start):
            assert start + k.size(2) <= self.max_seq_len, "full"
            self.cache[:, :, start:start + k.size(2)] = k
""")  # fmt: skip

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

LOOP = """
    import torch
    def train(model, opt, loader):
        for step, (x, y) in enumerate(loader):
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
"""
# --- S21 -------------------------------------------------------------------------------------------------------------
fault("S21", LOOP)
fault("S21", LOOP.replace("    def train", "    # model = torch.compile(model)\n    def train"))
right("S21", LOOP + "\n    train(torch.compile(Model()), None, None)\n")
right("S21", LOOP.replace("        for step", "        model.compile()\n        for step"))

# --- S22 -------------------------------------------------------------------------------------------------------------
COLLATE = """
    import torch
    def collate(batch):
        width = max(len(ids) for ids, mask in batch)
        inputs = torch.full((len(batch), width), 0)
        targets = torch.full((len(batch), width), -100)
        return inputs, targets
"""
fault("S22", COLLATE + "    model = torch.compile(model, dynamic=False)\n")
fault(
    "S22",
    LOOP.replace("            loss = model", "            fast_model = torch.compile(model)\n            loss = model"),
)
right("S22", COLLATE + "    model = torch.compile(model, dynamic=True)\n")
right("S22", "import torch\nmodel = torch.compile(model, dynamic=False)\n")

# --- S23 -------------------------------------------------------------------------------------------------------------
fault("S23", COLLATE)
fault("S23", """
    from torch.nn.utils.rnn import pad_sequence
    def collate(rows):
        ids = pad_sequence([r["input_ids"] for r in rows], batch_first=True)
        labels = pad_sequence([r["labels"] for r in rows], batch_first=True, padding_value=-100)
        return {"input_ids": ids, "labels": labels}
""")  # fmt: skip
fault("S23", """
    def tokenize(rows, tokenizer):
        enc = tokenizer(rows["text"], padding="max_length", truncation=True, max_length=2048)
        enc["labels"] = [[t if t != 0 else -100 for t in row] for row in enc["input_ids"]]
        return enc
""")  # fmt: skip
fault("S23", """
    def collate(rows, pad, max_len):
        ids = [row + [pad] * (max_len - len(row)) for row in rows]
        targets = [row[1:] + [-1] * (max_len + 1 - len(row)) for row in rows]
        return ids, targets
""")  # fmt: skip
right("S23", """
    import torch
    def stack(prompts, pad):
        width = max(len(p) for p in prompts)
        out = torch.full((len(prompts), width), pad)
        return out
""")  # fmt: skip
right("S23", """
    def pack(conversations, capacity, bos):
        rows, targets = [], []
        for _ in range(8):
            row = []
            while len(row) < capacity:
                row.extend(conversations.pop())
                if not conversations:
                    row.extend([bos] * (capacity - len(row)))
                    targets.append(-1)
            rows.append(row)
        return rows
""")  # fmt: skip

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

# --- S31 -------------------------------------------------------------------------------------------------------------
fault("S31", """
    import torch
    def decode(model, token, pos, eos, n):
        for _ in range(n):
            logits = model(token, pos)
            token = torch.multinomial(logits[:, -1].softmax(-1), 1)
            pos += 1
            if token.item() == eos:
                break
""")  # fmt: skip
right("S31", """
    import torch
    def decode(model, token, pos, n):
        out = []
        for _ in range(n):
            logits = model(token, pos)
            token = torch.multinomial(logits[:, -1].softmax(-1), 1)
            pos += 1
            out.append(token)
        return torch.cat(out, dim=1).tolist()
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

# --- S34 .. S37 ------------------------------------------------------------------------------------------------------
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
fault("S37", "def f(x, device):\n    return x.to(device).pin_memory()\n")
fault("S37", "import torch\nx = torch.empty(4, device='cuda', pin_memory=True)\n")
right("S37", "def f(x, device):\n    return x.pin_memory().to(device, non_blocking=True)\n")

# --- S40, S41 --------------------------------------------------------------------------------------------------------
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

# --- S45 .. S47 ------------------------------------------------------------------------------------------------------
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

# --- S50 .. S56 ------------------------------------------------------------------------------------------------------
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
fault("S53", ACCUM + """
    def collate(ids, mask):
        targets = ids.clone()
        targets[mask == 0] = -100
        return targets
""")  # fmt: skip
right("S53", ACCUM)
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
fault("S56", SCALED.replace("            scaler.unscale_(opt)\n", "").replace("scaler.step(opt)", "opt.step()"))
right("S56", SCALED)

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

# --- S60 .. S62 ------------------------------------------------------------------------------------------------------
fault("S60", """
    import torch
    def save(model, path):
        torch.save(model.state_dict(), path)
""")  # fmt: skip
fault("S60", """
    from torch import save
    def keep(ckpt, out):
        save(ckpt, f"{out}/last.pt")
""")  # fmt: skip
right("S60", """
    import os, torch
    def save(model, path):
        torch.save(model.state_dict(), path + ".tmp")
        os.replace(path + ".tmp", path)
""")  # fmt: skip
right("S60", """
    import io, torch
    def pack(model):
        buffer = io.BytesIO()
        torch.save(model.state_dict(), buffer)
        return buffer.getvalue()
""")  # fmt: skip
fault("S61", "import pickle\ndef load(p):\n    with open(p, 'rb') as f:\n        return pickle.load(f)\n")
fault("S61", "from torch import load as read\nstate = read('a.pt', weights_only=False)\n")
fault("S61", "import numpy as np\nx = np.load('a.npy', allow_pickle=True)\n")
fault("S61", "import yaml\nx = yaml.load(open('a.yml'), Loader=yaml.Loader)\n")
right("S61", "import torch\nstate = torch.load('a.pt', weights_only=True)\n")
right("S61", "import json, yaml\nx = json.load(open('a.json'))\ny = yaml.safe_load(open('a.yml'))\n")
fault("S62", """
    def run_tool(expression):
        return eval(expression, {"__builtins__": {}})
    def step(tokenizer, ids):
        return run_tool(tokenizer.decode(ids).strip())
""")  # fmt: skip
fault("S62", """
    import subprocess, sys
    def check(completion):
        return subprocess.run([sys.executable, "-c", completion])
""")  # fmt: skip
fault("S62", """
    import os
    def agent(client, messages):
        reply = client.chat.completions.create(messages=messages).choices[0].message.content
        os.system(reply)
""")  # fmt: skip
right("S62", """
    import ast
    def run_tool(tokenizer, ids):
        return ast.literal_eval(tokenizer.decode(ids))
""")  # fmt: skip
right("S62", "exec(open('configurator.py').read())\nmodel.eval()\n")

# --- S70 -------------------------------------------------------------------------------------------------------------
fault("S70", """
    def pack(buffer, capacity):
        rows = []
        while buffer:
            room = capacity
            row = []
            while buffer:
                best = -1
                for i, doc in enumerate(buffer):
                    if len(doc) <= room:
                        best = i
                if best < 0:
                    break
                doc = buffer.pop(best)
                row += doc
                room -= len(doc)
            rows.append(row)
        return rows
""")  # fmt: skip
fault("S70", """
    def pack(docs, capacity):
        bins = []
        for doc in docs:
            for b in bins:
                if sum(map(len, b)) + len(doc) <= capacity:
                    b.append(doc)
                    break
            else:
                bins.append([doc])
        return bins
""")  # fmt: skip
fault("S70", """
    import torch
    def concat(docs):
        tokens = torch.empty(0)
        for doc in docs:
            tokens = torch.cat([tokens, doc])
        return tokens
""")  # fmt: skip
fault("S70", """
    def batches(docs):
        queue = list(docs)
        while queue:
            yield queue.pop(0)
""")  # fmt: skip
right("S70", """
    from collections import deque
    import torch
    def concat(docs):
        queue, parts = deque(docs), []
        while queue:
            parts.append(queue.popleft())
        return torch.cat(parts)
""")  # fmt: skip
right("S70", """
    def encode(texts, bos):
        out = []
        for row in texts:
            row.insert(0, bos)
            out.append(row)
        return out
""")  # fmt: skip

# --- S75 .. S78 ------------------------------------------------------------------------------------------------------
fault("S75", """
    import torch
    from torch.utils.data import DataLoader
    def main(model, optimizer, rows, resume):
        loader = DataLoader(rows, shuffle=True)
        start = 0
        if resume:
            state = torch.load(resume, weights_only=True)
            optimizer.load_state_dict(state["optimizer"])
            start = state["step"]
        return loader, start
""")  # fmt: skip
right("S75", """
    import torch
    from torch.utils.data import DataLoader
    def main(model, optimizer, rows, resume):
        loader = DataLoader(rows, shuffle=True)
        if resume:
            state = torch.load(resume, weights_only=True)
            optimizer.load_state_dict(state["optimizer"])
            torch.set_rng_state(state["rng"])
            iterator = iter(loader)
            for _ in range(state["step"]):
                next(iterator)
        return loader
""")  # fmt: skip
fault("S76", """
    import os
    def shards(data_dir):
        for name in os.listdir(data_dir):
            with open(os.path.join(data_dir, name)) as f:
                yield f.read()
""")  # fmt: skip
fault("S76", """
    from pathlib import Path
    class TokenData:
        def __init__(self, folder):
            self.shards = list(Path(folder).glob("*.bin"))
""")  # fmt: skip
right("S76", """
    import glob
    def shards(data_dir):
        files = glob.glob(data_dir + "/*.parquet")
        files.sort()
        return files
""")  # fmt: skip
right("S76", "import os\ndef shards(data_dir):\n    return sorted(os.listdir(data_dir))\n")
fault("S77", "def is_val(doc):\n    return hash(doc) % 100 == 0\n")
fault("S77", "def rank_of(text, world):\n    return abs(hash(text)) % world\n")
right("S77", "import zlib\ndef is_val(doc):\n    return zlib.crc32(doc.encode()) % 100 == 0\n")
fault("S78", """
    from torch.utils.data import DataLoader, DistributedSampler
    def train(rows, epochs):
        loader = DataLoader(rows, sampler=DistributedSampler(rows))
        for epoch in range(epochs):
            for batch in loader:
                pass
""")  # fmt: skip
right("S78", """
    from torch.utils.data import DataLoader, DistributedSampler
    def train(rows, epochs):
        sampler = DistributedSampler(rows)
        loader = DataLoader(rows, sampler=sampler)
        for epoch in range(epochs):
            sampler.set_epoch(epoch)
            for batch in loader:
                pass
""")  # fmt: skip

# --- S07, S08, S09 ----------------------------------------------------------------------------------------------------
BATCHER = """
    import torch
    class Batcher:
        def __init__(self):
            self.gen = torch.Generator()
        def join(self, request):
            self.gen.manual_seed(request.seed)
            self.rows.append(request)
        def step(self, logits):
            return torch.multinomial(logits.softmax(-1), 1, generator=self.gen)
"""
fault("S07", BATCHER)
right("S07", BATCHER.replace("def join", "def seed"))
right("S07", BATCHER.replace("request.seed", "1"))
SPANS = """
    import torch
    class Spans:
        def __init__(self, rank, seed=3):
            self.gen = torch.Generator().manual_seed(seed)
        def __call__(self, ids):
            return torch.rand(ids.shape, generator=self.gen) < 0.15
"""
fault("S08", SPANS)
right("S08", SPANS.replace("manual_seed(seed)", "manual_seed(seed + rank)"))
right("S08", SPANS.replace("torch.rand(ids.shape, generator=self.gen)", "torch.randperm(len(ids), generator=self.gen)"))
fault("S09", """
    import numpy as np
    def mine(files, seed, rank, world):
        order = np.random.default_rng(seed + rank).permutation(len(files))
        return [files[i] for i in order[rank::world]]
""")  # fmt: skip
right("S09", """
    import numpy as np
    def mine(files, seed, rank, world):
        order = np.random.default_rng(seed).permutation(len(files))
        return [files[i] for i in order[rank::world]]
""")  # fmt: skip

# --- S58, S79 ---------------------------------------------------------------------------------------------------------
BACKWARD, STEP, MOVES = "                loss.backward()\n", "            opt.step()\n", "    scheduler.step()\n"
fault("S58", ACCUM.replace(BACKWARD, f"{BACKWARD}            {MOVES}"))
right("S58", ACCUM.replace(STEP, f"{STEP}        {MOVES}"))
fault("S79", """
    from concurrent.futures import ProcessPoolExecutor, as_completed
    def tokenise(files, encode):
        rows = []
        with ProcessPoolExecutor() as pool:
            for done in as_completed([pool.submit(encode, name) for name in files]):
                rows.extend(done.result())
        return rows
""")  # fmt: skip
right("S79", """
    from concurrent.futures import ProcessPoolExecutor, as_completed
    def tokenise(files, encode):
        rows = {}
        with ProcessPoolExecutor() as pool:
            jobs = {pool.submit(encode, name): name for name in files}
            for done in as_completed(jobs):
                rows[jobs[done]] = done.result()
        return [rows[name] for name in files]
""")  # fmt: skip

# --- S80 -------------------------------------------------------------------------------------------------------------
ORDERED = """
    import os, random
    class Stream:
        def __iter__(self):
            dice = random.Random(SEED)
            files = list(self.files)
            dice.shuffle(files)
            yield from files
"""
fault("S80", ORDERED.replace("SEED", "os.urandom(8)"))
right("S80", ORDERED.replace("SEED", "self.seed + self.epoch"))


def cases(table: dict[str, list[str]]) -> list[object]:
    return [pytest.param(rule, code, id=f"{rule}-{n}") for rule, codes in table.items() for n, code in enumerate(codes)]


@pytest.mark.parametrize(("rule", "code"), cases(FAULTS))
def test_a_planted_fault_is_found(rule, code):
    found = scan_texts({"a.py": code}, only=[rule]).findings
    assert [finding.rule for finding in found][:1] == [rule]
    assert found[0].kind in CLASSES and found[0].excerpt and found[0].message and found[0].evidence


@pytest.mark.parametrize(("rule", "code"), cases(RIGHT))
def test_code_that_looks_alike_and_is_right_is_left_alone(rule, code):
    assert [finding.message for finding in scan_texts({"a.py": code}, only=[rule]).findings] == []


def test_every_rule_has_a_planted_fault_and_a_near_miss():
    assert set(FAULTS) == set(RULES)
    assert set(RIGHT) == set(RULES)
    assert {rule.kind for rule, _ in RULES.values()} == set(CLASSES)
