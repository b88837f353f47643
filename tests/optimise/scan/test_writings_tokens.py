"""How different hands write faults of sampling: tokens that are copied, streams, text without a cache."""

import pytest
from tests.optimise.scan.variants import Collection, Variant

WRITINGS = Collection()
fault, right = WRITINGS.fault, WRITINGS.right

# --- copied-token -----------------------------------------------------------------------------------------------------
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
fault("copied-token", "one text for every answer", """
    import torch
    def write(model, tok, ids):
        for _ in range(20):
            ids = torch.multinomial(model(ids, cache=model.cache)[:, -1].softmax(-1), 1)
        return tok.decode(ids)
    def answers(model, tok, ids, n):
        text = write(model, tok, ids)
        return [text] * n  # <-
""")  # fmt: skip
fault("copied-token", "state of the object handed to each row", """
    import torch
    class Row:
        def __init__(self, ids, last):
            self.ids, self.last = ids, last
    class Engine:
        def prefill(self, ids):
            self.first = torch.multinomial(self.model(ids)[:, -1].softmax(-1), 1)
        def rows(self, ids, n):
            return [Row(ids, self.first) for _ in range(n)]  # <-
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
fault("copied-token", "comprehension that appends", """
    import torch
    def begin(model, ids, rows):
        tok = torch.multinomial(model(ids)[0, -1].softmax(-1), 1).item()
        [r.append(tok) for r in rows]  # <-
        return rows
""")  # fmt: skip
fault("copied-token", "exponential race behind a name", """
    import torch
    def start(probs, n):
        q = torch.empty_like(probs).exponential_(1.0)
        tok = torch.argmax(probs / q, dim=-1, keepdim=True)
        return tok.expand(n, 1)  # <-
""")  # fmt: skip
right("copied-token", "greedy broadcast", """
    def go(model, ids, n):
        tok = model(ids)[:, -1].argmax(-1, keepdim=True)
        return tok.expand(n, 1)
""")  # fmt: skip
right("copied-token", "expand logits then draw", """
    import torch
    def go(model, ids, n):
        logits = model(ids)[:, -1].expand(n, -1)
        return torch.multinomial(logits.softmax(-1), 1)
""")  # fmt: skip
right("copied-token", "noise per row", """
    import torch
    def sample_rows(logits):
        noise = -torch.log(-torch.log(torch.rand_like(logits)))
        return (logits + noise).argmax(-1)
""")  # fmt: skip
# --- rng --------------------------------------------------------------------------------------------------------------
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
fault("rng", "the engine's generator for all that a request wants", """
    import torch
    class Engine:
        def __init__(self, runner, seed=0):
            self.runner = runner
            self.gen = torch.Generator().manual_seed(seed)

        def _draw(self, probs):
            return torch.multinomial(probs, 1, generator=self.gen)  # <-

        def serve(self, req):
            out = torch.empty(req.num_samples, req.length, dtype=torch.long)
            probs = self.runner.prefill(req)
            for t in range(req.length):
                out[:, t] = self._draw(probs).squeeze(1)
                probs = self.runner.step(out[:, t])
            return out
""")  # fmt: skip
fault("rng", "one noise row for all rows", """
    import torch
    def sample_rows(logits):
        noise = -torch.log(-torch.log(torch.rand(logits.size(-1))))  # <-
        return (logits + noise).argmax(-1)
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
fault("rng", "default seed in generate", """
    import torch
    class Generator:
        def generate(self, prompt, n=1, seed=1234):
            torch.manual_seed(seed)  # <-
            ids = torch.tensor([prompt] * n)
            for _ in range(10):
                ids = torch.cat([ids, torch.multinomial(self.model(ids)[:, -1].softmax(-1), 1)], 1)
            return ids
""")  # fmt: skip
fault("rng", "fork workers inherit numpy global", """
    import numpy as np
    from multiprocessing import Process
    def play(i, q):
        for _ in range(100):
            q.put(np.random.choice(5))  # <-
    def main(q):
        ps = [Process(target=play, args=(i, q)) for i in range(8)]
        for p in ps:
            p.start()
""")  # fmt: skip
fault("rng", "scheduler draws for all requests", """
    import torch
    class Scheduler:
        def __init__(self, runner, seed):
            self.runner = runner
            self.gen = torch.Generator()
            self.gen.manual_seed(seed)
            self.active = []
        def step(self):
            logits = self.runner(torch.stack([r.last for r in self.active]))
            toks = torch.multinomial(torch.softmax(logits, -1), 1, generator=self.gen)  # <-
            for r, t in zip(self.active, toks):
                r.last = t
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
fault("no-kv-cache", "pipeline keyword", """
    from transformers import pipeline
    pipe = pipeline("text-generation", model="gpt2")
    def ask(q):
        return pipe(q, max_new_tokens=64, use_cache=False)[0]["generated_text"]  # <-
""")  # fmt: skip
fault("no-kv-cache", "generation settings dict in yaml like", """
    GEN = dict(do_sample=True, top_p=0.9)
    GEN["use_cache"] = False  # <-
    def answer(model, ids):
        return model.generate(ids, **GEN)
""")  # fmt: skip
fault("no-kv-cache", "flag default false", """
    import argparse
    def main(model, ids):
        p = argparse.ArgumentParser()
        p.add_argument("--use-cache", action="store_true")
        args = p.parse_args()
        return model.generate(ids, max_new_tokens=100, use_cache=args.use_cache)  # <-
""")  # fmt: skip
right("no-kv-cache", "generate default", """
    def go(model, ids):
        return model.generate(ids, max_new_tokens=10, use_cache=True)
""")  # fmt: skip
right("no-kv-cache", "chat turns of an API", """
    def chat(llm, messages, turns):
        for _ in range(turns):
            reply = llm(messages)
            messages.append({"role": "assistant", "content": reply})
            messages.append({"role": "user", "content": input()})
""")  # fmt: skip
right("no-kv-cache", "the newest of the pieces", """
    import torch
    def write(lm, prompt, n):
        pieces, x, cache = [prompt], prompt, lm.new_cache()
        for _ in range(n):
            x = torch.multinomial(lm(x, cache=cache)[:, -1].softmax(-1), 1)
            pieces.append(x)
        return torch.cat(pieces, 1)
""")  # fmt: skip


@pytest.mark.parametrize("variant", [pytest.param(one, id=f"{one.kind}: {one.name}") for one in WRITINGS.variants])
def test_each_writing_of_a_fault_of_sampling_is_found_and_what_is_right_is_left_alone(variant: Variant):
    found = variant.found()
    assert bool(found) == variant.fault, found or f"nothing at {variant.place}"
