"""Faults and near misses of the rules about generation: the cache of keys, and waiting for every token."""

import pytest
from tests.optimise.scan.cases import Cases, check_fault, check_right

CASES = Cases()
fault, right = CASES.fault, CASES.right

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

right("S10", """
    import torch
    def decode(model, token, ids, cache, n, penalty):
        for _ in range(n):
            scores = penalty(ids, model(token, cache=cache)[:, -1])
            token = torch.multinomial(torch.softmax(scores, -1), 1)
            ids = torch.cat([ids, token], dim=1)
        return ids
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
fault("S11", """
    class StaticKV:
        def fill(self, start, k, v):
            stop = start + k.shape[2]
            if stop > self.max_len:
                stop = self.max_len
            self.k[:, :, start:stop] = k[:, :, :stop - start]
            self.v[:, :, start:stop] = v[:, :, :stop - start]
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

# --- S12 -------------------------------------------------------------------------------------------------------------
CUT = """
    def answer(tokenizer, model, text, window):
        ids = tokenizer.encode(text)
        SAID
        return model.generate(ids[-window:])
"""
fault("S12", CUT.replace("SAID", "pass"))
right("S12", CUT.replace("SAID", "assert len(ids) <= window, len(ids)"))

# --- S39 -------------------------------------------------------------------------------------------------------------
fault("S39", """
    import torch
    def ends(mask):
        return torch.tensor([row.sum().item() for row in mask], device=mask.device)
""")  # fmt: skip
right("S39", """
    import torch
    def ends(mask):
        return torch.tensor([sum(row) for row in mask.tolist()], device=mask.device)
""")  # fmt: skip
# --- S24 -------------------------------------------------------------------------------------------------------------
TURNS = """
    import torch
    @torch.no_grad()
    def settle(net, x, times):
        x = x.to("cuda")
        for i, t in enumerate(times):
            x = x - net(x, t)
            if TEST:
                break
        return x
"""
fault("S24", TURNS.replace("TEST", "x.norm() < 1e-3"))
right("S24", TURNS.replace("TEST", "i % 20 == 0 and x.norm() < 1e-3"))

# --- S19 --------------------------------------------------------------------------------------------------------------
fault("S19", """
    from collections import deque
    class KVCache:
        def __init__(self, size):
            self.keys, self.values = deque(maxlen=size), deque(maxlen=size)
""")  # fmt: skip
fault("S19", """
    import torch
    class KVCache:
        def update(self, k, v):
            self.k = torch.cat([self.k, k], dim=2)
            self.v = torch.cat([self.v, v], dim=2)
            self.k = self.k[:, :, -self.size:]
            self.v = self.v[:, :, -self.size:]
""")  # fmt: skip
fault("S19", """
    class PagedCache:
        def take(self, name):
            if not self.free_pages:
                self.free_pages.append(self.pages[next(iter(self.pages))].pop(0))
            return self.free_pages.pop()
""")  # fmt: skip
right("S19", """
    from collections import deque
    class Meter:
        def __init__(self, size):
            self.values = deque(maxlen=size)
""")  # fmt: skip
right("S19", """
    import torch
    class SlidingWindowCache:
        def update(self, k, v):
            self.k = torch.cat([self.k, k], dim=2)[:, :, -self.window:]
            self.v = torch.cat([self.v, v], dim=2)[:, :, -self.window:]
""")  # fmt: skip
right("S19", """
    class PagedCache:
        def take(self, name):
            if not self.free_pages:
                raise MemoryError("no page is free")
            return self.free_pages.pop()
""")  # fmt: skip

# --- S90 -------------------------------------------------------------------------------------------------------------
fault("S90", """
    from heapq import heappop
    class PageTable:
        '''Pages of keys and values in the cache.'''
        def page(self):
            return heappop(self._free) if len(self._free) > 0 else self.pages[-1]
""")
right("S90", """
    class PageTable:
        '''Pages of keys and values in the cache.'''
        def page(self):
            return self._free.pop() if self._free else None
        def peek(self):
            if not self._free:
                return self.null_page
            return self._free.pop()
""")


@pytest.mark.parametrize(("rule", "code"), CASES.faults())
def test_a_planted_fault_is_found(rule, code):
    check_fault(rule, code)


@pytest.mark.parametrize(("rule", "code"), CASES.near_misses())
def test_code_that_looks_alike_and_is_right_is_left_alone(rule, code):
    check_right(rule, code)
