"""Seven classes of fault in ways of writing that were missed once, and code beside them that is right."""

import pytest
from tests.optimise.scan.variants import Collection, Variant

WAYS = Collection()
fault, right = WAYS.fault, WAYS.right

# --- recast: the logits of all steps before, cast at every step -------------------------------------------------------
fault("recast", "stack of a list", """
    import torch
    import torch.nn.functional as F

    def run(model, x, picked, n):
        kept = []
        for _ in range(n):
            logits = model(x)[:, -1]
            kept.append(logits)
            scores = F.log_softmax(torch.stack(kept, 1).float(), -1)  # <-
            x = scores[:, -1].argmax(-1, keepdim=True)
        return scores
""")  # fmt: skip
fault("recast", "grown tensor", """
    import torch

    def run(model, x, n):
        history = torch.empty(x.size(0), 0, 50)
        for _ in range(n):
            step_logits = model(x)[:, -1:]
            history = torch.cat([history, step_logits], 1)
            x = history.float().softmax(-1)[:, -1].argmax(-1, keepdim=True)  # <-
        return x
""")  # fmt: skip
fault("recast", "dtype of softmax over a cat", """
    import torch

    def run(model, x, n):
        steps = []
        while len(steps) < n:
            steps += [model(x)[:, -1:]]
            everything = torch.cat(steps, 1)
            p = torch.softmax(everything, -1, dtype=torch.float32)  # <-
            x = p[:, -1].argmax(-1, keepdim=True)
        return p
""")  # fmt: skip
fault("recast", "part of a buffer so far", """
    import torch

    def run(model, x, buf, n):
        for t in range(n):
            logits = model(x)[:, -1]
            buf[:, t] = logits
            lp = buf[:, : t + 1].to(torch.float32).log_softmax(-1)  # <-
            x = lp[:, -1].argmax(-1, keepdim=True)
        return lp
""")  # fmt: skip
right("recast", "cast once as it is kept", """
    import torch

    def run(model, x, n):
        kept = []
        for _ in range(n):
            logits = model(x)[:, -1].float()
            kept.append(logits)
            x = logits.argmax(-1, keepdim=True)
            spread = torch.stack(kept, 1).float().std()
        return spread
""")  # fmt: skip
right("recast", "cast once behind the loop", """
    import torch

    def run(model, x, n):
        kept = []
        for _ in range(n):
            logits = model(x)[:, -1]
            kept.append(logits)
            x = logits.argmax(-1, keepdim=True)
        return torch.stack(kept, 1).float()
""")  # fmt: skip

# --- pickle: a loader that was made elsewhere -------------------------------------------------------------------------
FAR = "\n".join(f"    ROW_{n} = {n}" for n in range(12))
fault("pickle", "partial of the file", f"""
    import functools
    import torch
    read = functools.partial(torch.load, weights_only=False)
{FAR}

    def restore(model, path):
        model.load_state_dict(read(path)["model"])  # <-
""")  # fmt: skip
fault("pickle", "partial imported from another file", """
=== reading.py
from functools import partial
import torch
read_state = partial(torch.load, map_location="cpu", weights_only=False)
=== main.py
from reading import read_state

def restore(model, path):
    model.load_state_dict(read_state(path))  # <-
""")  # fmt: skip
fault("pickle", "partial that a class keeps", f"""
    import torch
    from functools import partial
    class Store:
        load = staticmethod(partial(torch.load, weights_only=False))
{FAR.replace("    ROW", "        ROW")}

        def restore(self, model, path):
            model.load_state_dict(self.load(path))  # <-
""")  # fmt: skip
fault("pickle", "partial that an object keeps", f"""
    import torch
    from functools import partial
    class Store:
        def __init__(self):
            self.load = partial(torch.load, weights_only=False)
{FAR.replace("    ROW", "        ROW")}

        def restore(self, model, path):
            model.load_state_dict(self.load(path))  # <-
""")  # fmt: skip
right("pickle", "partial of the safe way", """
    import functools
    import torch
    read = functools.partial(torch.load, weights_only=True)

    def restore(model, path):
        model.load_state_dict(read(path)["model"])
""")  # fmt: skip

# --- accumulation: means of parts are added up, and nothing divides by their number -----------------------------------
fault("accumulation", "mask inside a helper", """
    import torch

    def logp(model, x, mask):
        nll = model(x)
        return -(nll * mask[:, 1:]).sum(1)

    def pair_loss(model, part):
        return -torch.nn.functional.logsigmoid(0.1 * logp(model, part.x, part.m)).mean(), part.x.size(0)

    def train(model, opt, loader):
        for batch in loader:
            for part in batch.split(2):
                loss, n = pair_loss(model, part)
                loss.backward()  # <-
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
fault("accumulation", "masked mean of each part", """
    import torch

    def train(model, opt, loader, n):
        for x, mask in loader:
            for xs, ms in zip(x.chunk(n), mask.chunk(n)):
                nll = model(xs)
                loss = (nll * ms).sum() / ms.sum().clamp(min=1)
                loss.backward()  # <-
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
fault("accumulation", "ratio times advantage", """
    import torch

    def train(policy, opt, loader, n):
        for i, (x, old, adv) in enumerate(loader):
            ratio = (policy(x) - old).exp()
            gain = ratio * adv
            loss = -gain.mean()
            loss.backward()  # <-
            if (i + 1) % n == 0:
                opt.step()
                opt.zero_grad()
""")  # fmt: skip
fault("accumulation", "masked mean by names", """
    import torch

    def masked_mean(values, keep):
        count = keep.sum()
        return (values * keep).sum().div(count)

    def train(model, opt, loader, micro):
        for batch in loader:
            for part in batch.split(micro):
                loss = masked_mean(model(part.x), part.keep)
                loss.backward()  # <-
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
right("accumulation", "divided by all tokens of the step", """
    import torch

    def train(model, opt, loader, n):
        for x, mask in loader:
            total = mask.sum()
            for xs, ms in zip(x.chunk(n), mask.chunk(n)):
                loss = (model(xs) * ms).sum() / total
                loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
right("accumulation", "mean of parts divided by their number", """
    import torch

    def train(model, opt, loader, n):
        for x, mask in loader:
            for xs, ms in zip(x.chunk(n), mask.chunk(n)):
                loss = (model(xs) * ms).sum() / ms.sum()
                (loss / n).backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip

# --- cache-overflow: a pool without a free block gives one that is in use ---------------------------------------------
POOL = """
    class BlockPool:
        '''Blocks of the paged KV cache.'''
        def __init__(self, n):
            self.n, self.free, self.used, self.newest = n, list(range(n)), [], 0
"""
fault("cache-overflow", "the newest once more", f"""{POOL}
        def acquire(self):
            if len(self.free) == 0:
                return self.newest  # <-
            self.newest = self.free.pop()
            return self.newest
""")  # fmt: skip
fault("cache-overflow", "one of those in use", f"""{POOL}
        def acquire(self):
            block = self.free.pop() if self.free else self.used[-1]  # <-
            self.used.append(block)
            return block
""")  # fmt: skip
fault("cache-overflow", "caught, and the last block", f"""{POOL}
        def acquire(self):
            try:
                return self.free.pop()
            except IndexError:
                return self.n - 1  # <-
""")  # fmt: skip
fault("cache-overflow", "block 0 behind the test", f"""{POOL}
        def acquire(self):
            if self.free:
                return self.free.pop()
            return 0  # <-
""")  # fmt: skip
fault("cache-overflow", "nothing found in a table", """
    class SlotTable:
        '''Rows of the kv cache.'''
        def take(self):
            for slot, busy in enumerate(self.busy):
                if not busy:
                    self.busy[slot] = True
                    return slot
            return len(self.busy) - 1  # <-
""")  # fmt: skip
right("cache-overflow", "none is given", f"""{POOL}
        def acquire(self):
            if not self.free:
                return None
            return self.free.pop()
        def claim(self):
            return self.free.pop() if self.free else -1
        def must(self):
            if not self.free:
                raise MemoryError("no block is free")
            return self.free.pop()
""")  # fmt: skip
right("cache-overflow", "a text is stopped for it", f"""{POOL}
        def acquire(self):
            if not self.free:
                self.preempt(self.used[0])
            return self.free.pop() if self.free else self.evict_oldest()
""")  # fmt: skip

# --- async-copy: one pinned buffer, filled through a view of it -------------------------------------------------------
STAGE = """
    import numpy as np
    import torch
    class Feeder:
        def __init__(self, rows, device):
            self.rows, self.device = rows, device
            self.stage = torch.empty(32, 128, dtype=torch.long, pin_memory=True)
"""
for way, filled in {
    "numpy view": "self.stage.numpy()[...] = self.rows[at]",
    "array of the tensor": "np.asarray(self.stage)[:] = self.rows[at]",
    "method on a view": "self.stage.view(-1).numpy().fill(at)",
    "rows of a view": "self.stage.data[:16].index_copy_(0, at, self.rows)",
    "read into it": "self.file.readinto(self.stage.numpy())",
}.items():
    fault("async-copy", way, f"""{STAGE}
        def load(self, at):
            {filled}
            return self.stage.to(self.device, non_blocking=True)  # <-
""")  # fmt: skip
right("async-copy", "waits before it fills", f"""{STAGE}
        def load(self, at):
            self.done.synchronize()
            self.stage.numpy()[...] = self.rows[at]
            return self.stage.to(self.device, non_blocking=True)
""")  # fmt: skip

# --- device-string: a tensor that is only known by what is done with it -----------------------------------------------
for way, asked in {
    "in a tuple": 'clip.device in ("cuda", "cuda:0")',
    "not equal": 'clip.device != "cpu"',
    "key of a table": '{"cuda": True, "cpu": False}.get(clip.device)',
    "the other way round": '"cuda" == clip.device',
}.items():
    fault("device-string", f"forward, {way}", f"""
    import torch.nn as nn
    class Normalise(nn.Module):
        def forward(self, clip):
            if {asked}:  # <-
                clip = clip * 2
            return clip
""")  # fmt: skip
    fault("device-string", f"used as a tensor, {way}", f"""
    def prepare(clip):
        rows = clip.unsqueeze(0)
        if {asked}:  # <-
            return rows
        return rows + 1
""")  # fmt: skip
right("device-string", "a record of the project", """
    class Clip:
        def __init__(self, path, device: str = "cpu"):
            self.path, self.device = path, device
        def half(self):
            return self.path

    def prepare(path):
        clip = Clip(path)
        clip.half()
        return clip.device == "cuda"
""")  # fmt: skip

# --- host-sync: a meter that reads what it is handed ------------------------------------------------------------------
for way, read in {
    "item": "self.val = val.item()",
    "item in a sum": "self.total += val.item() * n",
    "list": "self.rows.extend(val.reshape(-1).tolist())",
    "behind an if of the type": "val = val.item() if isinstance(val, torch.Tensor) and val.numel() == 1 else val",
    "behind a question of the type": "self.val = val.item() if torch.is_tensor(val) else val",
}.items():
    fault("host-sync", way, f"""
    import torch

    class Meter:
        def update(self, val, n=1):
            {read}  # <-
            self.count += n

    def train(model, opt, loader, device):
        meter = Meter()
{FAR.replace("    ROW", "        row")}
        for x, y in loader:
            x, y = x.to(device), y.to(device)
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            meter.update(loss, x.size(0))
""")  # fmt: skip
right("host-sync", "a meter that adds up on the device", """
    import torch

    class Meter:
        def update(self, val, n=1):
            self.total += val.detach() * n
            self.count += n

    def train(model, opt, loader, device):
        meter = Meter()
        for x, y in loader:
            loss = model(x.to(device), y.to(device))
            loss.backward()
            opt.step()
            opt.zero_grad()
            meter.update(loss, 1)
""")  # fmt: skip


def _name(variant: Variant) -> str:
    return f"{variant.kind}-{variant.name.replace(' ', '-')}"


@pytest.mark.parametrize("variant", WAYS.variants, ids=_name)
def test_faults_are_found_and_what_is_right_is_not(variant: Variant) -> None:
    assert bool(variant.found()) == variant.fault, variant.found()
