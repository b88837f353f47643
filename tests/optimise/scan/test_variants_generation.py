"""Faults of generation in many spellings: over helpers, methods and files, and code that looks alike and is right."""

import pytest
from tests.optimise.scan.variants import Collection

GENERATION = Collection()
fault, right = GENERATION.fault, GENERATION.right

# --- no-kv-cache ------------------------------------------------------------------------------------------------------
fault("no-kv-cache", "a helper picks the token", """
    import torch
    def pick(model, ids, temperature):
        logits = model(ids)[:, -1] / temperature
        return torch.multinomial(logits.softmax(-1), 1)
    def write(model, ids, count, temperature=0.8):
        for _ in range(count):
            ids = torch.cat([ids, pick(model, ids, temperature)], dim=1)  # <-
        return ids
""")  # fmt: skip
fault("no-kv-cache", "an object keeps the text", """
    import torch
    class Writer:
        def __init__(self, model, prompt):
            self.model, self.ids = model, prompt
        def advance(self):
            out = self.model(self.ids)
            token = out[:, -1].argmax(-1, keepdim=True)
            self.ids = torch.cat((self.ids, token), 1)
            return token
        def run(self, count):
            return [self.advance() for _ in range(count)]
        def stream(self, count):
            for _ in range(count):
                yield self.advance()  # <-
""")  # fmt: skip
fault("no-kv-cache", "a list of tokens, made a tensor by a helper in another file", """
    === tensors.py
    import torch
    def as_batch(tokens, device):
        return torch.tensor([tokens], dtype=torch.long, device=device)
    === story.py
    import torch
    from tensors import as_batch
    def tell(net, tokens, limit, device):
        tokens = list(tokens)
        while len(tokens) < limit:
            logits = net(as_batch(tokens, device))  # <-
            nxt = int(torch.argmax(logits[0, -1]))
            if nxt == 0:
                break
            tokens.append(nxt)
        return tokens
""")  # fmt: skip
fault("no-kv-cache", "a compiled forward under another name", """
    import torch
    class Chat:
        def __init__(self, model):
            self.fwd = torch.compile(model)
        def reply(self, x, n):
            for _ in range(n):
                y = self.fwd(x)  # <-
                p = torch.softmax(y[:, -1, :], dim=-1)
                x = torch.hstack((x, torch.multinomial(p, 1)))
            return x
""")  # fmt: skip
fault("no-kv-cache", "a buffer that is filled and cut", """
    import torch
    def fill(model, prompt, total):
        seq = torch.zeros(1, total, dtype=torch.long)
        seq[:, : prompt.size(1)] = prompt
        for end in range(prompt.size(1), total):
            probs = model(seq[:, :end])[:, -1].softmax(-1)  # <-
            seq[:, end] = torch.multinomial(probs, 1).squeeze(1)
        return seq
""")  # fmt: skip
fault("no-kv-cache", "a function that calls itself", """
    import torch
    def extend(model, ids, left):
        if left == 0:
            return ids
        token = model(ids)[:, -1].argmax(-1, keepdim=True)  # <-
        return extend(model, torch.cat([ids, token], dim=1), left - 1)
""")  # fmt: skip
fault("no-kv-cache", "a helper hands back the longer text", """
    import torch
    def sample_next(logits, generator):
        return torch.multinomial(logits.softmax(-1), 1, generator=generator)
    def one_more(model, ids, generator):
        logits = model(ids).logits[:, -1]
        return torch.cat([ids, sample_next(logits, generator)], dim=-1)
    def generate(model, ids, count, generator):
        for _ in range(count):
            ids = one_more(model, ids, generator)  # <-
        return ids
""")  # fmt: skip
fault("no-kv-cache", "the text itself grows and is encoded again", """
    import torch
    def answer(model, tokenizer, text, limit):
        for _ in range(limit):
            ids = tokenizer.encode(text)
            logits = model(torch.tensor([ids]))  # <-
            token = torch.argmax(logits[0, -1]).item()
            text += tokenizer.decode([token])
        return text
""")  # fmt: skip
fault("no-kv-cache", "a lambda runs the model", """
    import torch
    def complete(model, ids, steps):
        last = lambda seq: model(seq)[:, -1]
        for _ in range(steps):
            ids = torch.cat([ids, torch.multinomial(last(ids).softmax(-1), 1)], 1)  # <-
        return ids
""")  # fmt: skip
fault("no-kv-cache", "a network by another name", """
    import torch
    def tell(f, ids, n):
        for _ in range(n):
            z = f(ids)[:, -1]  # <-
            ids = torch.cat([ids, torch.multinomial(z.softmax(-1), 1)], 1)
        return ids
""")  # fmt: skip
fault("no-kv-cache", "a state record holds the text", """
    from dataclasses import dataclass
    import torch
    @dataclass
    class State:
        ids: torch.Tensor
        done: bool = False
    def step(model, state):
        scores = model(state.ids)[:, -1]
        token = torch.multinomial(torch.softmax(scores, -1), num_samples=1)
        state.ids = torch.cat([state.ids, token], dim=1)
        state.done = bool((token == 2).all())
    def run(model, ids, limit):
        state = State(ids)
        for _ in range(limit):
            step(model, state)  # <-
            if state.done:
                break
        return state.ids
""")  # fmt: skip
right("no-kv-cache", "only the newest token goes in", """
    import torch
    def step(model, token, cache):
        return model(token, cache=cache)[:, -1]
    def write(model, ids, count, cache):
        logits = step(model, ids, cache)
        for _ in range(count):
            token = torch.multinomial(logits.softmax(-1), 1)
            ids = torch.cat([ids, token], 1)
            logits = step(model, token, cache)
        return ids
""")  # fmt: skip
right("no-kv-cache", "an evaluation over batches that keeps predictions", """
    import torch
    def accuracy(model, loader):
        hits = []
        for x, y in loader:
            guess = model(x).argmax(-1)
            hits.append((guess == y).float().mean())
        return torch.stack(hits).mean()
""")  # fmt: skip
right("no-kv-cache", "positions are handed over by a method", """
    import torch
    class Decoder:
        def __init__(self, model):
            self.model, self.pos, self.out = model, 0, []
        def feed(self, token):
            logits = self.model(token, start_pos=self.pos)
            self.pos += token.size(1)
            return logits[:, -1].argmax(-1, keepdim=True)
        def run(self, prompt, n):
            token = self.feed(prompt)
            for _ in range(n):
                self.out.append(token)
                token = self.feed(token)
            return self.out
""")  # fmt: skip

# --- cache-overflow ---------------------------------------------------------------------------------------------------
fault("cache-overflow", "what does not fit is cut off", """
    import torch
    class KVCache:
        def __init__(self, rows, length, width):
            self.k = torch.zeros(rows, length, width)
            self.v = torch.zeros(rows, length, width)
            self.used, self.length = 0, length
        def push(self, k, v):
            end = min(self.used + k.size(1), self.length)
            n = end - self.used
            self.k[:, self.used:end] = k[:, :n]  # <-
            self.v[:, self.used:end] = v[:, :n]
            self.used = end
            return self.k[:, :end], self.v[:, :end]
""")  # fmt: skip
fault("cache-overflow", "a full cache is handed back as it is", """
    class Memory:
        def __init__(self, keys, values, capacity):
            self.keys, self.values, self.capacity, self.n = keys, values, capacity, 0
        def write(self, k, v):
            if self.n + k.shape[2] > self.capacity:  # <-
                return self.keys, self.values
            self.keys[:, :, self.n : self.n + k.shape[2]] = k
            self.values[:, :, self.n : self.n + k.shape[2]] = v
            self.n += k.shape[2]
            return self.keys, self.values
""")  # fmt: skip
fault("cache-overflow", "written only while there is room", """
    class Layer:
        def attend(self, k, v, pos):
            t = k.size(1)
            if pos + t <= self.max_len:  # <-
                self.cache_k[:, pos:pos + t] = k
                self.cache_v[:, pos:pos + t] = v
            return self.mix(self.cache_k, self.cache_v)
""")  # fmt: skip
fault("cache-overflow", "a helper writes with no look at the end", """
    def put(store, start, x):
        store[:, start:start + x.size(1)] = x  # <-
        return store
    class Attention:
        def forward(self, q, k, v, start):
            self.k_cache = put(self.k_cache, start, k)
            self.v_cache = put(self.v_cache, start, v)
            return q @ self.k_cache.transpose(-1, -2)
""")  # fmt: skip
fault("cache-overflow", "positions are clamped", """
    import torch
    class Cache:
        def update(self, positions, k, v):
            at = positions.clamp(max=self.k.size(2) - 1)  # <-
            self.k.index_copy_(2, at, k)
            self.v.index_copy_(2, at, v)
            return self.k, self.v
""")  # fmt: skip
fault("cache-overflow", "the caller cuts the position", """
    class KV:
        def __init__(self, k, v):
            self.k, self.v = k, v
        def write(self, slot, k, v):
            self.k[:, slot] = k
            self.v[:, slot] = v
    class Runner:
        def __init__(self, model, kv, max_seq):
            self.model, self.kv, self.max_seq, self.pos = model, kv, max_seq, 0
        def step(self, k, v):
            slot = min(self.pos, self.max_seq - 1)  # <-
            self.kv.write(slot, k, v)
            self.pos += 1
""")  # fmt: skip
fault("cache-overflow", "positions past the end are masked out", """
    def scatter(kv_cache, slots, x):
        fits = slots < kv_cache.size(1)
        kv_cache[:, slots[fits]] = x[:, fits]  # <-
        return kv_cache
""")  # fmt: skip
fault("cache-overflow", "the error is swallowed", """
    def append(past, i, k):
        try:
            past[:, i:i + k.size(1)] = k  # <-
        except (IndexError, RuntimeError):
            pass
        return past
""")  # fmt: skip
right("cache-overflow", "refused by an error", """
    class KVCache:
        def push(self, k, v):
            end = self.used + k.size(1)
            if end > self.k.size(1):
                raise ValueError(f"{end} positions do not fit into {self.k.size(1)}")
            self.k[:, self.used:end] = k
            self.v[:, self.used:end] = v
            self.used = end
""")  # fmt: skip
right("cache-overflow", "grown when it is full", """
    import torch
    class KVCache:
        def push(self, k, v):
            end = self.used + k.size(1)
            if end > self.k.size(1):
                self.k = torch.cat([self.k, torch.zeros_like(self.k)], 1)
                self.v = torch.cat([self.v, torch.zeros_like(self.v)], 1)
            self.k[:, self.used:end] = k
            self.v[:, self.used:end] = v
""")  # fmt: skip
right("cache-overflow", "a check in a function of its own", """
    def require_room(cache, end):
        if end > cache.size(1):
            raise RuntimeError("the text is longer than the cache")
    def store(cache, start, x):
        require_room(cache, start + x.size(1))
        cache[:, start:start + x.size(1)] = x
""")  # fmt: skip
right("cache-overflow", "a dict of results with a bound", """
    class Results:
        def __init__(self, limit):
            self.cache, self.limit = {}, limit
        def keep(self, key, value):
            if len(self.cache) < self.limit:
                self.cache[key] = value
""")  # fmt: skip

# --- rng --------------------------------------------------------------------------------------------------------------
fault("rng", "a helper seeds again for every token", """
    import torch
    def choose(logits, seed):
        torch.manual_seed(seed)  # <-
        return torch.multinomial(logits.softmax(-1), 1)
    def run(model, token, cache, n, seed):
        for _ in range(n):
            token = choose(model(token, cache=cache)[:, -1], seed)
        return token
""")  # fmt: skip
fault("rng", "the sampler keeps one generator for a batch of prompts", """
    import torch
    class Sampler:
        def __init__(self, seed):
            self.gen = torch.Generator()  # <-
            self.gen.manual_seed(seed)
        def draw(self, probs):
            return torch.multinomial(probs, 1, generator=self.gen)
    class Engine:
        def __init__(self, model, seed=0):
            self.model, self.sampler = model, Sampler(seed)
        def generate(self, ids, num_samples):
            ids = ids.expand(num_samples, -1)
            return self.sampler.draw(self.model(ids)[:, -1].softmax(-1))
""")  # fmt: skip
fault("rng", "every row's generator has one seed", """
    import torch
    def rollouts(n, seed):
        return [torch.Generator().manual_seed(seed) for _ in range(n)]  # <-
""")  # fmt: skip
fault("rng", "each batch is drawn by a generator made anew", """
    import numpy as np
    def get_batch(data, rows, width):
        rng = np.random.default_rng(1234)  # <-
        starts = rng.integers(0, len(data) - width, rows)
        return np.stack([data[s:s + width] for s in starts])
""")  # fmt: skip
fault("rng", "an epoch's shuffle is seeded with a setting", """
    import random
    from dataclasses import dataclass
    @dataclass
    class Config:
        seed: int = 17
        epochs: int = 4
    def order(rows, cfg):
        random.seed(cfg.seed)  # <-
        random.shuffle(rows)
        return rows
    def fit(rows, cfg, train_on):
        for epoch in range(cfg.epochs):
            for row in order(rows, cfg):
                train_on(row)
""")  # fmt: skip
fault("rng", "all ranks seed alike, in another file than the batches", """
    === setup.py
    import torch
    import torch.distributed as dist
    SEED = 1337
    def start():
        dist.init_process_group("nccl")
        torch.manual_seed(SEED)  # <-
    === batches.py
    import torch
    def draw(data, rows, width):
        at = torch.randint(len(data) - width, (rows,))
        return torch.stack([data[i:i + width] for i in at])
    === train.py
    from setup import start
    from batches import draw
    def main(data):
        start()
        return draw(data, 32, 256)
""")  # fmt: skip
fault("rng", "workers are seeded alike", """
    import numpy as np
    from torch.utils.data import DataLoader
    def init(worker):
        np.random.seed(42)  # <-
    def loader(rows):
        return DataLoader(rows, num_workers=8, worker_init_fn=init)
""")  # fmt: skip
fault("rng", "the state is put back at every step", """
    import torch
    def train(model, opt, batches):
        state = torch.get_rng_state()
        for x, y in batches:
            torch.set_rng_state(state)  # <-
            loss = model(x, y)
            loss.backward()
            opt.step()
            opt.zero_grad()
""")  # fmt: skip
fault("rng", "every layer begins with the same weights", """
    import torch
    import torch.nn as nn
    class Block(nn.Module):
        def __init__(self, width, seed=0):
            super().__init__()
            torch.manual_seed(seed)  # <-
            self.w = nn.Linear(width, width)
    class Net(nn.Module):
        def __init__(self, depth, width):
            super().__init__()
            self.blocks = nn.ModuleList([Block(width) for _ in range(depth)])
""")  # fmt: skip
right("rng", "seeded once at the start of each run", """
    import torch
    def train(config, seed):
        torch.manual_seed(seed)
        return fit(config)
    def sweep(configs, seed=0):
        for config in configs:
            train(config, seed)
""")  # fmt: skip
right("rng", "the seed follows the step", """
    import torch
    def noise(shape, seed, step):
        gen = torch.Generator().manual_seed(seed * 1000 + step)
        return torch.rand(shape, generator=gen)
    def train(model, opt, batches, seed):
        for step, (x, y) in enumerate(batches):
            loss = model(x + noise(x.shape, seed, step), y)
            loss.backward()
            opt.step()
""")  # fmt: skip
right("rng", "the rank is part of the seed", """
    === setup.py
    import os
    import torch
    import torch.distributed as dist
    def start(seed=1337):
        dist.init_process_group("nccl")
        torch.manual_seed(seed + int(os.environ["RANK"]))
    === train.py
    import torch
    from setup import start
    def main(data):
        start()
        at = torch.randint(len(data) - 256, (32,))
        return torch.stack([data[i:i + 256] for i in at])
""")  # fmt: skip
right("rng", "each row has its own stream", """
    import torch
    def rollouts(model, prompt, n, seed):
        streams = [torch.Generator().manual_seed(seed + row) for row in range(n)]
        probs = model(prompt)[:, -1].softmax(-1)
        return [torch.multinomial(probs, 1, generator=g) for g in streams]
""")  # fmt: skip

# --- copied-token -----------------------------------------------------------------------------------------------------
fault("copied-token", "a helper copies", """
    import torch
    def spread(token, rows):
        return [token] * rows  # <-
    def start(model, prompt, rows):
        probs = model(prompt)[0, -1].softmax(-1)
        return spread(torch.multinomial(probs, 1).item(), rows)
""")  # fmt: skip
fault("copied-token", "expanded in a method", """
    import torch
    class Engine:
        def first(self, logits):
            return torch.multinomial(logits.softmax(-1), 1)
        def begin(self, logits, n):
            token = self.first(logits)
            return token.expand(n, 1)  # <-
""")  # fmt: skip
fault("copied-token", "repeat_interleave of a draw from another file", """
    === draws.py
    from torch.distributions import Categorical
    def draw(logits):
        return Categorical(logits=logits).sample()
    === rollout.py
    from draws import draw
    def rollout(policy, prompt, group):
        first = draw(policy(prompt)[:, -1])
        return first.repeat_interleave(group, dim=0)  # <-
""")  # fmt: skip
fault("copied-token", "filled into a column", """
    import torch
    def begin(logits, out):
        token = int(torch.multinomial(torch.softmax(logits[-1], 0), 1))
        out[:, 0].fill_(token)  # <-
        return out
""")  # fmt: skip
fault("copied-token", "a list comprehension over rows", """
    import torch
    def begin(model, ids, rows):
        nxt = torch.multinomial(model(ids)[:, -1].softmax(-1), 1).tolist()[0][0]
        texts = [[nxt] for _ in range(rows)]  # <-
        return texts
""")  # fmt: skip
fault("copied-token", "torch.full with a drawn token", """
    import torch
    def first_column(logits, rows, top_k=50):
        best, ids = torch.topk(logits, top_k)
        choice = ids[torch.multinomial(best.softmax(-1), 1)]
        return torch.full((rows, 1), choice.item())  # <-
""")  # fmt: skip
right("copied-token", "the prompt is copied, the draw is per row", """
    import torch
    def start(model, prompt, rows):
        logits = model(prompt)[:, -1].expand(rows, -1)
        return torch.multinomial(logits.softmax(-1), 1)
""")  # fmt: skip
right("copied-token", "a special token is copied", """
    import torch
    def starts(tokenizer, rows):
        return torch.full((rows, 1), tokenizer.bos_id)
""")  # fmt: skip

# --- eval-output ------------------------------------------------------------------------------------------------------
fault("eval-output", "a tool table", """
    TOOLS = {"python": exec, "calc": eval}
    def use(name, reply):
        return TOOLS[name](reply)  # <-
""")  # fmt: skip
fault("eval-output", "a runner in another file", """
    === tools.py
    def calculate(expression):
        return eval(expression, {"__builtins__": {}})  # <-
    === chat.py
    from tools import calculate
    def turn(model, tokenizer, ids):
        text = tokenizer.decode(model.generate(ids)[0])
        return calculate(text.split("=")[0].strip())
""")  # fmt: skip
fault("eval-output", "a shell", """
    import subprocess
    SHELL = True
    def act(client, messages):
        answer = client.chat.completions.create(messages=messages).choices[0].message.content
        return subprocess.run(answer, shell=SHELL, capture_output=True)  # <-
""")  # fmt: skip
fault("eval-output", "a child Python with the text as its program", """
    import subprocess, sys
    def check(engine, prompt):
        program = engine.complete(prompt)
        command = [sys.executable, "-c", program]
        return subprocess.run(command, timeout=5)  # <-
""")  # fmt: skip
fault("eval-output", "compiled first", """
    def grade(model, tokenizer, ids):
        source = tokenizer.decode(model.generate(ids)[0].tolist())
        code = compile(source, "answer", "exec")
        scope = {}
        exec(code, scope)  # <-
        return scope.get("result")
""")  # fmt: skip
fault("eval-output", "pieces that were decoded one by one", """
    def run(model, tokenizer, stream):
        pieces = []
        for token in stream:
            pieces.append(tokenizer.decode([token]))
        exec("".join(pieces))  # <-
""")  # fmt: skip
fault("eval-output", "another name for eval", """
    import builtins
    evaluate = getattr(builtins, "eval")
    def score(completion):
        return evaluate(completion)  # <-
""")  # fmt: skip
fault("eval-output", "a reward that runs what was written", """
    def reward(completion, tests):
        return passes(completion.split("```")[1], tests)
    def passes(program, tests):
        scope = {}
        try:
            exec(program, scope)  # <-
        except Exception:
            return 0.0
        return float(tests(scope))
""")  # fmt: skip
right("eval-output", "parsed by literal_eval", """
    import ast
    def value(model, tokenizer, ids):
        return ast.literal_eval(tokenizer.decode(model.generate(ids)[0]))
""")  # fmt: skip
right("eval-output", "a setting of the person's own", """
    def overrides(argv):
        for arg in argv:
            exec(arg)
""")  # fmt: skip


@pytest.mark.parametrize("variant", GENERATION.variants, ids=lambda v: f"{v.kind}: {v.name}")
def test_variant_of_a_fault_is_found_and_a_near_miss_is_not(variant):
    assert bool(variant.found()) == variant.fault, variant.found()
