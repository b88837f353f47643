"""Facts of a whole program: draws without rows, caches that give what is in use, modes that nobody sets."""

import pytest
from tests.optimise.scan.variants import Collection, Variant

WAYS = Collection()
fault, right = WAYS.fault, WAYS.right

# --- copied-token ---
fault("copied-token", "a time for a batch", """
    import torch
    def flow_step(net, x1, opt):
        b = x1.shape[0]
        t = torch.rand(1, device=x1.device)  # <-
        x0 = torch.randn_like(x1)
        xt = (1 - t) * x0 + t * x1
        v = net(xt, t.expand(b))
        loss = ((v - (x1 - x0)) ** 2).mean()
        loss.backward(); opt.step(); opt.zero_grad()
""")  # fmt: skip
fault("copied-token", "first tokens side by side", """
    import torch
    @torch.no_grad()
    def best_of(model, prompt, n):
        ids = prompt.unsqueeze(0)
        out = model(ids, use_cache=True)
        first = torch.distributions.Categorical(logits=out.logits[:, -1]).sample()
        cache = out.past_key_values
        cache.batch_repeat_interleave(n)
        ids = first.repeat_interleave(n)[:, None]  # <-
        rows = [ids]
        for _ in range(100):
            out = model(ids, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            ids = torch.distributions.Categorical(logits=out.logits[:, -1]).sample()[:, None]
            rows.append(ids)
        return torch.cat(rows, 1)
""")  # fmt: skip
fault("copied-token", "noise for one row of scores", """
    import torch
    import torch.nn.functional as F
    class VQ(torch.nn.Module):
        def forward(self, logits):
            # logits (B, T, K)
            if self.training:
                noise = -torch.empty(logits.shape[1:], device=logits.device).exponential_().log()  # <-
                logits = logits + noise
            return F.one_hot(logits.argmax(-1), logits.size(-1))
""")  # fmt: skip
fault("copied-token", "noise of the width alone", """
    import torch
    class Noisy(torch.nn.Module):
        def __init__(self, d, s): super().__init__(); self.s = s; self.l = torch.nn.Linear(d, d)
        def forward(self, x):
            h = self.l(x)
            if self.training:
                h = h + self.s * torch.randn(h.size(-1), device=h.device)  # <-
            return h
""")  # fmt: skip
fault("copied-token", "one share for a batch", """
    import torch
    def mixup(x, y):
        lam = torch.distributions.Beta(0.2, 0.2).sample()  # <-
        idx = torch.randperm(x.size(0))
        return lam * x + (1 - lam) * x[idx], lam * y + (1 - lam) * y[idx]
    def step(net, x, y, opt):
        xx, yy = mixup(x, y)
        loss = (net(xx) - yy).pow(2).mean(); loss.backward(); opt.step()
""")  # fmt: skip
right("copied-token", "one text", """
    import torch
    def answer(model, prompt):
        ids = prompt.unsqueeze(0)
        logits = model(ids)[0, -1]
        g = -torch.log(-torch.log(torch.rand(logits.shape[-1])))
        return int((logits + g).argmax())
""")  # fmt: skip
# --- cache-overflow ---
fault("cache-overflow", "numbers of pages that come again", """
    import torch
    class BlockTable:
        def __init__(self, pages, page, layers, h, d):
            self.pool = torch.empty(pages, page, layers, 2, h, d)
            self.pages, self.page = pages, page
            self.next_page = 0
            self.map = {}
        def page_for(self, seq, pos):
            key = (seq, pos // self.page)
            if key not in self.map:
                self.map[key] = self.next_page % self.pages  # <-
                self.next_page += 1
            return self.map[key]
        def write(self, seq, pos, kv):
            self.pool[self.page_for(seq, pos), pos % self.page] = kv
""")  # fmt: skip
fault("cache-overflow", "places cut in attention", """
    import torch
    class Attn(torch.nn.Module):
        def forward(self, x, pos, kc, vc):
            k, v = self.k(x), self.v(x)
            idx = torch.clamp(pos, max=kc.size(1) - 1)  # <-
            kc.index_copy_(1, idx, k)
            vc.index_copy_(1, idx, v)
            return torch.nn.functional.scaled_dot_product_attention(self.q(x), kc, vc)
""")  # fmt: skip
fault("cache-overflow", "a slot that is taken", """
    import numpy as np
    class Slots:
        def __init__(self, n):
            self.owner = [None] * n
            self.kv = np.zeros((n, 4096, 2, 8, 64))
        def admit(self, rid):
            for i, o in enumerate(self.owner):
                if o is None:
                    self.owner[i] = rid
                    return i
            self.owner[0] = rid
            return 0  # <-
""")  # fmt: skip
fault("cache-overflow", "slots that come again", """
    import torch
    class SlotAllocator:
        def __init__(self, num_slots, layers, heads, dim):
            self.num_slots = num_slots
            self.k = torch.zeros(layers, num_slots, heads, dim)
            self.v = torch.zeros(layers, num_slots, heads, dim)
            self.cursor = -1
        def next_slot(self):
            self.cursor = (self.cursor + 1) % self.num_slots  # <-
            return self.cursor
        def store(self, layer, k, v):
            s = self.next_slot()
            self.k[layer, s], self.v[layer, s] = k, v
""")  # fmt: skip
fault("cache-overflow", "places left out by a mask", """
    import torch
    class StaticKV:
        def __init__(self, b, n, h, d): self.buf = torch.zeros(2, b, h, n, d); self.n = n
        def update(self, k, v, pos):
            keep = pos < self.n
            self.buf[0][:, :, pos[keep]] = k[:, :, keep]  # <-
            self.buf[1][:, :, pos[keep]] = v[:, :, keep]
            return self.buf
""")  # fmt: skip
fault("cache-overflow", "the last page again", """
    import torch
    class Paged:
        def __init__(self, n): self.kv = torch.zeros(n, 16, 2, 8, 64); self.table = {}; self.n = n; self.top = 0
        def page(self, seq):
            p = min(self.top, self.n - 1)  # <-
            self.top += 1
            self.table.setdefault(seq, []).append(p)
            return p
""")  # fmt: skip
fault("cache-overflow", "joined and cut", """
    import torch
    def append_kv(state, k, v):
        k_all = torch.cat([state["k"], k], 1)
        v_all = torch.cat([state["v"], v], 1)
        state["k"] = k_all[:, :state["limit"]]  # <-
        state["v"] = v_all[:, :state["limit"]]
        return state
""")  # fmt: skip
right("cache-overflow", "a pool that raises", """
    import torch
    class Pool:
        def __init__(self, n):
            self.pages = torch.empty(n, 16, 2, 8, 64); self.free = list(range(n))
        def take(self):
            if not self.free: raise RuntimeError("no page is free")
            return self.free.pop()
        def slot(self, table, pos):
            return table[pos // 16] * 16 + pos % 16
""")  # fmt: skip
right("cache-overflow", "a window that says so", """
    import torch
    class KV:
        # Sliding window of keys and values.
        def __init__(self, window, h, d):
            self.k = torch.zeros(window, h, d); self.window = window; self.pos = 0
        def put(self, k):
            self.k[self.pos % self.window] = k
            self.pos += 1
""")  # fmt: skip
# --- eval-mode ---
fault("eval-mode", "a model from its settings", """
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification
    def load(path, dev):
        cfg = AutoConfig.from_pretrained(path)
        net = AutoModelForSequenceClassification.from_config(cfg)
        net.load_state_dict(torch.load(f"{path}/w.pt", map_location=dev, weights_only=True))  # <-
        return net.to(dev)
    def moderate(texts, tok, net):
        with torch.inference_mode():
            return net(**tok(texts, return_tensors="pt", padding=True)).logits.softmax(-1)
""")  # fmt: skip
right("eval-mode", "set to evaluation", """
    import torch
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__(); self.drop = torch.nn.Dropout(0.1); self.l = torch.nn.Linear(3, 3)
        def greedy(self, x): return self.l(self.drop(x)).argmax(-1)
    class Service:
        def __init__(self, path):
            net = Net()
            net.load_state_dict(torch.load(path, weights_only=True))
            self.net = net.requires_grad_(False).eval()
        def ask(self, x): return self.net.greedy(x)
""")  # fmt: skip
right("eval-mode", "a training that goes on", """
    import torch
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__(); self.drop = torch.nn.Dropout(0.1); self.l = torch.nn.Linear(3, 3)
        def forward(self, x): return self.l(self.drop(x))
    def train(net, opt, loader, path):
        net.load_state_dict(torch.load(path, weights_only=True))
        for x, y in loader:
            loss = torch.nn.functional.mse_loss(net(x), y); loss.backward(); opt.step(); opt.zero_grad()
""")  # fmt: skip
# --- no-kv-cache ---
fault("no-kv-cache", "frames and no tokens", """
    import torch
    def speak(decoder, memory, bos, limit):
        frames = bos
        for t in range(limit):
            out = decoder(frames, memory)  # <-
            frames = torch.cat((frames, out[:, -1:]), dim=1)
        return frames
""")  # fmt: skip
fault("no-kv-cache", "beams of lists", """
    import torch
    def score_then_extend(model, prefix, width, depth):
        frontier = [(prefix, 0.)]
        while depth:
            nxt = []
            for toks, s in frontier:
                lp = torch.log_softmax(model(torch.tensor(toks)[None])[0, -1], 0)  # <-
                for p, i in zip(*lp.topk(width)):
                    nxt.append((toks + [i.item()], s + p.item()))
            frontier = sorted(nxt, key=lambda z: z[1])[-width:]
            depth -= 1
        return frontier
""")  # fmt: skip
right("no-kv-cache", "options with a cache", """
    import torch
    def step(model, ids):
        return model(ids, use_cache=False).logits
    GEN = {"do_sample": True, "top_p": 0.9, "use_cache": True}
    CFG = {"use_cache": False, "hidden_size": 64}
""")  # fmt: skip


def _name(variant: Variant) -> str:
    return f"{variant.kind}-{variant.name.replace(' ', '-')}"


@pytest.mark.parametrize("variant", WAYS.variants, ids=_name)
def test_faults_are_found_and_what_is_right_is_not(variant: Variant) -> None:
    assert bool(variant.found()) == variant.fault, variant.found()
