"""Rules on modes, compiled code, casts of caches and side streams: each finds a planted fault, and no near miss."""

import pytest
from tests.optimise.scan.cases import Cases, check_fault, check_right

CASES = Cases()
fault, right = CASES.fault, CASES.right

# --- S42 --------------------------------------------------------------------------------------------------------------
DROPS = """
    import torch.nn.functional as F
    from torch import nn
    class Block(nn.Module):
        def forward(self, x):
            return F.dropout(self.up(x), p=0.1{told})
"""
fault("S42", DROPS.format(told=""))
right("S42", DROPS.format(told=", training=self.training"))
fault("S42", """
    from torch import nn
    class Block(nn.Module):
        def forward(self, x):
            return nn.Dropout(0.1)(self.up(x))
""")  # fmt: skip

# --- S43 --------------------------------------------------------------------------------------------------------------
SHARED = """
    import torch
    def run(model, rows, train):
        for x, y in rows:
            loss = model(x, y)
            if train:
                loss.backward()
    def fit(model, rows, held_out):
        run(model, rows, True)
        {around}
            run(model, held_out, False)
"""
fault("S43", SHARED.format(around="if held_out:"))
right("S43", SHARED.format(around="with torch.no_grad():"))

# --- S44 --------------------------------------------------------------------------------------------------------------
ASKED = """
    import functools
    import torch
    class Stepper:
        @{kept}property
        def fast(self):
            return torch.compile(self.model)
"""
fault("S44", ASKED.format(kept=""))
right("S44", ASKED.format(kept="functools.cached_"))

# --- S72 --------------------------------------------------------------------------------------------------------------
PINNED = """
    from torch.utils.data import DataLoader
    class Batch{base}:
        def to(self, device):
            return Batch(self.rows.to(device, non_blocking=True))
    def join(rows):
        return Batch(rows)
    def batches(rows):
        return DataLoader(rows, collate_fn=join, pin_memory=True)
"""
fault("S72", PINNED.format(base=""))
right("S72", PINNED.format(base="(NamedTuple)"))

# --- S73 --------------------------------------------------------------------------------------------------------------
AHEAD = """
    import torch
    class Ahead:
        def preload(self):
            with torch.cuda.stream(self.side):
                self.x = self.x.cuda(non_blocking=True)
        def next(self):
            torch.cuda.current_stream().wait_stream(self.side)
            x = self.x
            {said}
            self.preload()
            return x
"""
fault("S73", AHEAD.format(said="self.x = next(self.rows)"))
right("S73", AHEAD.format(said="x.record_stream(torch.cuda.current_stream())"))

# --- S74 --------------------------------------------------------------------------------------------------------------
CACHED = """
    import torch.nn.functional as F
    from torch import nn
    class Attention(nn.Module):
        def forward(self, x, cache):
            q, k, v = self.qkv(x).chunk(3, -1)
            cache.append(k{new}, v{new})
            return F.scaled_dot_product_attention(q, cache.k{old}, cache.v{old})
"""
fault("S74", CACHED.format(new="", old=".to(q.dtype)"))
right("S74", CACHED.format(new=".to(cache.dtype)", old=""))


@pytest.mark.parametrize(("rule", "code"), CASES.faults())
def test_a_planted_fault_is_found(rule, code):
    check_fault(rule, code)


@pytest.mark.parametrize(("rule", "code"), CASES.near_misses())
def test_code_that_looks_alike_and_is_right_is_left_alone(rule, code):
    check_right(rule, code)
