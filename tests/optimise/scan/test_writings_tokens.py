"""How different hands write faults of sampling: tokens that are copied, streams, text without a cache."""

import pytest
from tests.optimise.scan.variants import Collection, Variant

WRITINGS = Collection()
fault, right = WRITINGS.fault, WRITINGS.right

# --- copied-token -----------------------------------------------------------------------------------------------------
fault("copied-token", "vote over samples", """
    import torch
    class SelfConsistency:
        def __init__(self, lm, k):
            self.lm, self.k = lm, k
        def _prefill(self, ids):
            out = self.lm(ids, use_cache=True)
            p = torch.softmax(out.logits[0, -1].float() / 0.7, dim=0)
            return torch.multinomial(p, num_samples=1), out.past_key_values
        def run(self, ids, steps):
            tok, past = self._prefill(ids)
            past.batch_repeat_interleave(self.k)
            col = tok.unsqueeze(0).tile(self.k, 1)  # <-
            cols = [col]
            for _ in range(steps):
                out = self.lm(col, past_key_values=past, use_cache=True)
                col = torch.multinomial(out.logits[:, -1].softmax(-1), 1)
                cols.append(col)
            return torch.cat(cols, 1)
""")  # fmt: skip
fault("copied-token", "same id in each sequence's list", """
    import torch
    def fork_sequences(runner, prompt, n):
        probs = runner.prefill(prompt)
        first = torch.multinomial(probs, 1).item()
        seqs = [list(prompt) for _ in range(n)]
        for s in seqs:
            s.append(first)  # <-
        return seqs
""")  # fmt: skip
fault("copied-token", "scatter", """
    import torch
    def step(logits, buf, t):
        nxt = torch.multinomial(torch.softmax(logits[:1], -1), 1)
        buf.scatter_(1, torch.full((buf.size(0), 1), t), nxt.expand(buf.size(0), 1))  # <-
        return buf
""")  # fmt: skip
fault("copied-token", "masked_fill the finished else the drawn one", """
    import torch
    def go(model, ids, n, eos, steps):
        x = ids.expand(n, -1)
        done = torch.zeros(n, dtype=torch.bool)
        out = []
        for _ in range(steps):
            probs = model(x, cache=model.cache)[:, -1].softmax(-1)
            tok = torch.multinomial(probs[0], 1)
            col = torch.where(done, eos, tok)  # <-
            done = done | (col == eos)
            x = col[:, None]
            out.append(x)
        return torch.cat(out, 1)
""")  # fmt: skip
fault("copied-token", "stacked by list comprehension in call", """
    import torch
    def group_rollout(policy, prompt, G):
        logits, cache = policy.prefill(prompt)
        a0 = torch.distributions.Categorical(logits=logits[-1]).sample()
        rows = torch.stack([torch.cat([prompt, a0.view(1)]) for _ in range(G)])  # <-
        return rows, cache
""")  # fmt: skip
fault("copied-token", "a helper that repeats what it is given", """
    import torch
    def widen(x, n):
        return x.repeat_interleave(n, dim=0)
    def draw(logits):
        return torch.multinomial(logits.softmax(-1), 1)



    def begin(model, ids, n):
        prompts = widen(ids, n)
        tok = widen(draw(model(ids)[:, -1]), n)  # <-
        return torch.cat([prompts, tok], 1)
""")  # fmt: skip
fault("copied-token", "ones times the token in place", """
    import torch
    def begin(probs, n, bos):
        rows = torch.ones(n, 2, dtype=torch.long)
        rows[:, 0] = bos
        rows[:, 1:] *= torch.multinomial(probs, 1)  # <-
        return rows
""")  # fmt: skip
fault("copied-token", "map over rows", """
    import torch
    def prefill(model, ids, n):
        tok = torch.multinomial(model(ids)[:, -1].softmax(-1), 1)
        return list(map(lambda i: torch.cat([ids, tok], 1), range(n)))  # <-
""")  # fmt: skip
fault("copied-token", "index_select zeros", """
    import torch
    def widen(model, ids, n):
        tok = torch.multinomial(model(ids)[:, -1].softmax(-1), 1)
        tok = tok.index_select(0, torch.zeros(n, dtype=torch.long))  # <-
        return tok
""")  # fmt: skip
right("copied-token", "sampling with replacement", """
    import torch
    def seeds(probs, n):
        return torch.multinomial(probs, n, replacement=True).view(n, 1)
""")  # fmt: skip
right("copied-token", "label smoothing repeat", """
    import torch
    def targets(labels, n):
        return labels.repeat_interleave(n)
""")  # fmt: skip
right("copied-token", "greedy broadcast", """
    def go(model, ids, n):
        tok = model(ids)[:, -1].argmax(-1, keepdim=True)
        return tok.expand(n, 1)
""")  # fmt: skip
# --- rng --------------------------------------------------------------------------------------------------------------
fault("rng", "sampler class made per call", """
    import torch
    class Sampler:
        def __init__(self, seed=1234):
            self.g = torch.Generator()
            self.g.manual_seed(seed)
        def __call__(self, probs):
            return torch.multinomial(probs, 1, generator=self.g)
    def generate(model, ids, n):
        out = []
        for _ in range(n):
            draw = Sampler()  # <-
            ids = draw(model(ids, cache=model.cache)[:, -1].softmax(-1))
            out.append(ids)
        return out
""")  # fmt: skip
fault("rng", "global seed before each epoch", """
    import random, numpy as np, torch
    def seed_all(s):
        random.seed(s)
        np.random.seed(s)
        torch.manual_seed(s)
    def fit(model, loader, opt, epochs, cfg):
        for ep in range(epochs):
            seed_all(cfg.seed)  # <-
            for x in loader:
                loss = model(x)
                loss.backward()
                opt.step()
                opt.zero_grad()
""")  # fmt: skip
fault("rng", "mask collator with one stream in workers", """
    import numpy as np
    from torch.utils.data import DataLoader
    class MaskCollator:
        def __init__(self, seed):
            self.rng = np.random.default_rng(seed)
        def __call__(self, rows):
            return [(r, self.rng.random(len(r)) < 0.15) for r in rows]  # <-
    def make(ds):
        return DataLoader(ds, collate_fn=MaskCollator(0), num_workers=6)
""")  # fmt: skip
fault("rng", "same noise on all ranks", """
    import torch
    import torch.distributed as dist
    def train(unet, data, opt, cfg):
        dist.init_process_group("nccl")
        rank = dist.get_rank()
        torch.manual_seed(cfg.seed)  # <-
        unet = torch.nn.parallel.DistributedDataParallel(unet.cuda(rank))
        for step in range(cfg.steps):
            ix = torch.randint(0, len(data), (16,))
            x = data[ix].cuda(rank)
            loss = unet(x, torch.randn_like(x))
            loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
fault("rng", "route that seeds", """
    from aiohttp import web
    import torch
    routes = web.RouteTableDef()
    @routes.post("/v1/gen")
    async def gen(request):
        body = await request.json()
        torch.manual_seed(body.get("seed", 42))  # <-
        out = request.app["model"].generate(body["ids"], do_sample=True)
        return web.json_response(out.tolist())
""")  # fmt: skip
fault("rng", "augment reseeds from config", """
    import random
    class Augment:
        def __init__(self, cfg):
            self.cfg = cfg
        def __call__(self, x):
            random.seed(self.cfg.seed)  # <-
            return x if random.random() < 0.5 else x.flip(-1)
""")  # fmt: skip
fault("rng", "eval harness resets global stream", """
    import torch
    @torch.no_grad()
    def sample_texts(model, prompts):
        torch.manual_seed(1337)  # <-
        return [model.generate(p, do_sample=True) for p in prompts]
    def train(model, loader, opt, prompts):
        for i, x in enumerate(loader):
            loss = model(x)
            loss.backward()
            opt.step()
            opt.zero_grad()
            if i % 500 == 0:
                model.eval()
                print(sample_texts(model, prompts))
                model.train()
""")  # fmt: skip
fault("rng", "seed of a config dict in a distributed program", """
    import numpy as np, torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    def train(cfg, tokens, model, opt):
        dist.init_process_group("nccl")
        torch.manual_seed(cfg["seed"])  # <-
        rng = np.random.default_rng(cfg["seed"])
        model = DistributedDataParallel(model)
        for _ in range(cfg["steps"]):
            at = rng.integers(0, len(tokens) - 65, size=8)
            loss = model(torch.stack([tokens[i:i + 65] for i in at]))
            loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
fault("rng", "numpy stream of the server", """
    import numpy as np
    RNG = np.random.default_rng(0)
    def sample(probs_batch):
        return [RNG.choice(len(p), p=p) for p in probs_batch]  # <-
""")  # fmt: skip
fault("rng", "list times n shares one generator", """
    import torch
    def rows(logits, n, seed):
        gens = [torch.Generator().manual_seed(seed)] * n  # <-
        return [torch.multinomial(l.softmax(-1), 1, generator=g) for l, g in zip(logits, gens)]
""")  # fmt: skip
right("rng", "parts of one draw by micro-batch and rank", """
    import torch
    def rows_at(data, step, micro, rank):
        gen = torch.Generator().manual_seed(step)
        order = torch.randint(len(data), (64,), generator=gen)
        lo = micro * 16 + rank * 4
        return data[order[lo:lo + 4]]
    def train(data, model, opt, rank):
        for step in range(100):
            for micro in range(4):
                loss = model(rows_at(data, step, micro, rank))
                loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
right("rng", "per epoch seed", """
    import numpy as np
    def order(n, seed, epoch):
        return np.random.default_rng((seed, epoch)).permutation(n)
""")  # fmt: skip
right("rng", "a seed of the request", """
    import torch
    def complete(model, req):
        gen = torch.Generator().manual_seed(req["seed"])
        return torch.multinomial(model(req["ids"])[:, -1].softmax(-1), 1, generator=gen)
""")  # fmt: skip
# --- no-kv-cache ------------------------------------------------------------------------------------------------------
fault("no-kv-cache", "pipeline from helper with settings", """
    from transformers import pipeline
    SETTINGS = {"max_new_tokens": 128, "do_sample": False, "use_cache": False}  # <-
    def build(name):
        return pipeline("text-generation", model=name)
    def ask(pipe, q):
        return pipe(q, **SETTINGS)[0]["generated_text"]
""")  # fmt: skip
fault("no-kv-cache", "nucleus helper on logits", """
    import torch
    from torch.nn import functional as F
    def top_p(logits, p):
        s, i = logits.sort(descending=True)
        keep = s.softmax(-1).cumsum(-1) <= p
        s[~keep] = float("-inf")
        return i.gather(-1, torch.multinomial(s.softmax(-1), 1))
    @torch.no_grad()
    def complete(transformer, context, length):
        generated = context
        for _ in range(length):
            hidden = transformer(generated)  # <-
            nxt = top_p(hidden[:, -1, :], 0.9)
            generated = torch.cat((generated, nxt), dim=1)
        return generated
""")  # fmt: skip
fault("no-kv-cache", "MoE wrapper class with method forward_logits", """
    import torch
    class Runtime:
        def __init__(self, net):
            self.net = net
            self.tokens = []
        def logits(self):
            x = torch.tensor(self.tokens, device="cuda").unsqueeze(0)
            return self.net(x)[0, -1]  # <-
        def step(self):
            t = torch.argmax(self.logits()).item()
            self.tokens.append(t)
            return t
        def run(self, prompt, n):
            self.tokens = list(prompt)
            while len(self.tokens) < n:
                self.step()
            return self.tokens
""")  # fmt: skip
fault("no-kv-cache", "batch with padding buffer", """
    import torch
    def batch_generate(lm, prompts, pad, n):
        width = max(map(len, prompts)) + n
        buf = torch.full((len(prompts), width), pad)
        for r, p in enumerate(prompts):
            buf[r, :len(p)] = torch.tensor(p)
        cur = min(map(len, prompts))
        while cur < width:
            logits = lm(buf[:, :cur])[:, -1]  # <-
            nxt = logits.argmax(-1)
            buf[:, cur] = torch.where(buf[:, cur] == pad, nxt, buf[:, cur])
            cur += 1
        return buf
""")  # fmt: skip
fault("no-kv-cache", "audio codes", """
    import torch
    def codes(model, text, T):
        seq = torch.zeros(1, 0, dtype=torch.long)
        for t in range(T):
            out = model(text, seq)  # <-
            seq = torch.cat([seq, out[:, -1:].argmax(-1)], dim=-1)
        return seq
""")  # fmt: skip
fault("no-kv-cache", "two settings in one breath", """
    def train(model, loader, opt):
        model.config.use_cache = model.generation_config.use_cache = False  # <-
        for x in loader:
            loss = model(x).loss
            loss.backward()
            opt.step()
            opt.zero_grad()
        return model.generate(x)
""")  # fmt: skip
fault("no-kv-cache", "settings class handed on", """
    from dataclasses import asdict, dataclass
    @dataclass
    class Sampling:
        do_sample: bool = True
        use_cache: bool = False  # <-
    def answer(model, ids, s: Sampling):
        return model.generate(ids, **asdict(s))
""")  # fmt: skip
fault("no-kv-cache", "text in, text out", """
    def story(model, tok, text, n):
        for _ in range(n):
            enc = tok(text, return_tensors="pt")
            out = model(**enc)  # <-
            text = text + tok.decode(out.logits[0, -1].argmax())
        return text
""")  # fmt: skip
fault("no-kv-cache", "partial generate", """
    import functools
    def make(model):
        return functools.partial(model.generate, do_sample=True, use_cache=False)  # <-
""")  # fmt: skip
fault("no-kv-cache", "constant off", """
    USE_CACHE = False
    def answer(model, ids):
        return model.generate(ids, max_new_tokens=64, use_cache=USE_CACHE)  # <-
""")  # fmt: skip
right("no-kv-cache", "generate default", """
    def go(model, ids):
        return model.generate(ids, max_new_tokens=10, use_cache=True)
""")  # fmt: skip
right("no-kv-cache", "diffusion loop", """
    import torch
    def denoise(model, x, steps):
        for t in reversed(range(steps)):
            x = x - model(x, t)
        return x
""")  # fmt: skip
right("no-kv-cache", "scoring a growing list of texts", """
    def collect(model, rows):
        out = []
        for r in rows:
            out.append(model(r).argmax(-1))
        return out
""")  # fmt: skip


@pytest.mark.parametrize("variant", [pytest.param(one, id=f"{one.kind}: {one.name}") for one in WRITINGS.variants])
def test_each_writing_of_a_fault_of_sampling_is_found_and_what_is_right_is_left_alone(variant: Variant):
    found = variant.found()
    assert bool(found) == variant.fault, found or f"nothing at {variant.place}"
